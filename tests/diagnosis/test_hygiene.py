"""What is wrong with labels, inputs, shapes and precision is found; what is right is left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossland as ll

ONE_HOT = np.eye(4)[np.arange(20) % 4]


def test_valid_labels_pass():
    soft = np.random.default_rng(0).dirichlet(np.ones(5), 40)
    for labels in (ONE_HOT, soft, soft.round(4), np.arange(20) % 4, ONE_HOT.astype(bool), np.float32(soft)):
        assert ll.check_labels(labels).ok, labels
    assert ll.check_labels(np.arange(20) % 4, num_classes=4).ok


def changed(row, value):
    labels = ONE_HOT.copy()
    labels[row] = value
    return labels


@pytest.mark.parametrize(
    ("labels", "kind", "places", "words"),
    [
        (changed(3, [0.9, 0.6, 0, 0]), "row_sum", (3,), "divide each row by its sum"),
        (changed(5, [0, 0, 0, 0]), "row_sum", (5,), "do not sum to one"),
        (changed(2, [1.5, -0.5, 0, 0]), "negative", (2,), "no lower bound"),
        (changed(7, [np.nan, 0, 0, 0]), "not_finite", (7,), "NaN"),
        (np.array([0, 1, -1, 2]), "outside_classes", (2,), "0 or more"),
        (np.array([0, 1.5, 1, 2]), "fractional", (1,), "whole"),
        (np.arange(5)[:, None], "column", (), "labels[:, 0]"),
    ],
)
def test_what_is_wrong_with_labels_is_named_with_its_rows(labels, kind, places, words):
    check = ll.check_labels(labels)
    assert check.kinds == (kind,)
    assert check.findings[0].places == places
    assert words in str(check)


def test_classes_outside_and_without_examples():
    check = ll.check_labels(np.array([0, 1, 1, 4]), num_classes=4)
    assert check.kinds == ("outside_classes", "missing_class")
    assert check.findings[1].places == (2, 3)


@pytest.mark.parametrize("factor", [2.0, 5.0])
def test_sums_of_labels_multiply_the_sharpness_as_the_finding_says(factor):
    logits = jnp.asarray([0.3, -0.2, 0.5])
    labels = np.array([[0.2, 0.3, 0.5]])

    def sharpness(labels):
        hessian = jax.hessian(lambda z: optax.softmax_cross_entropy(z, jnp.asarray(labels[0])))(logits)
        return np.linalg.eigvalsh(hessian)[-1]

    assert sharpness(factor * labels) / sharpness(labels) == pytest.approx(factor, rel=1e-5)
    assert f"factor of about {factor:g}" in str(ll.check_labels(factor * labels))


def test_inputs():
    generator = np.random.default_rng(0)
    table = generator.normal(size=(50, 4))
    assert ll.check_inputs(table).ok
    assert ll.check_inputs(generator.uniform(size=(50, 8, 8))).ok
    wrong = np.column_stack([table, np.full(50, 3.0), table[:, 1]])
    check = ll.check_inputs(wrong)
    assert check.kinds == ("constant", "duplicate")
    assert check.findings[0].places == (4,)
    assert check.findings[1].places == (5,)
    table[3, 2] = np.inf
    assert ll.check_inputs(table).findings[0].places == (3,)


def test_scale_of_inputs_is_said_with_the_sharpness_of_least_squares():
    """Case 1's inputs, 1 to 20: sharpness 288.539, standardised 2."""
    check = ll.check_inputs(np.arange(1.0, 21)[:, None])
    assert check.kinds == ("scale",)
    assert "288.5" in str(check)
    assert f"{288.5386 / 2:.3g} times" in str(check)


def test_shapes():
    assert ll.check_shapes(np.ones((5, 1)), np.ones((5, 1))).ok
    assert ll.check_shapes(np.ones((5, 1)), np.ones(5)).kinds == ("broadcast",)
    assert "(5, 5)" in str(ll.check_shapes(np.ones((5, 1)), np.ones(5)))
    assert ll.check_shapes(np.ones((5, 2)), np.ones((4, 2))).kinds == ("incompatible",)


def test_shapes_of_what_is_not_there_yet():
    predictions, targets = jax.ShapeDtypeStruct((5, 1), jnp.float32), jax.ShapeDtypeStruct((5,), jnp.float32)
    assert ll.check_shapes(predictions, targets).kinds == ("broadcast",)
    assert ll.check_shapes(predictions, predictions).ok
    kinds = []

    @jax.jit
    def traced(predictions, targets):
        kinds.extend(ll.check_shapes(predictions, targets).kinds)
        return predictions.sum()

    traced(np.ones((5, 1)), np.ones(5))
    assert kinds == ["broadcast"]


def test_inputs_that_tell_nothing():
    """One row, or nothing that moves: columns are constant, and nothing is divided by their spread."""
    assert ll.check_inputs(np.ones((6, 3))).kinds == ("constant",)
    assert ll.check_inputs([[1.0, 2.0]]).ok
    assert ll.check_inputs([1.0, 2.0, 4.0, 3.0]).ok


def test_inputs_whose_squares_overflow():
    check = ll.check_inputs(np.array([[1e200, 1.0], [2e200, 2.0], [4e200, 3.5]]))
    assert check.kinds == ("scale",)
    assert "sharpness inf" in str(check)


def test_many_columns_have_the_sharpness_of_their_singular_value():
    """More columns than rows: the other product, the same top eigenvalue."""
    table = 100 * np.random.default_rng(0).normal(size=(12, 40))
    top = 2 * np.linalg.svd(np.hstack([table, np.ones((12, 1))]), compute_uv=False)[0] ** 2 / 12
    assert f"least squares has sharpness {top:.4g}," in str(ll.check_inputs(table))


def test_labels_outside_are_quoted_as_they_are():
    assert "are -0.5, expected 0 or more" in str(ll.check_labels([0, 1, -0.5]))
    assert "are -3, expected 0 or more" in str(ll.check_labels([0, 1, -3]))


def test_precision():
    def loss(params, batch):
        return jnp.mean((params["w"] * batch - 1) ** 2)

    fine = ll.check_precision(loss, {"w": 0.5}, np.linspace(0, 1, 10))
    assert fine.ok
    assert ll.check_precision(loss, {"w": 1e20}, np.ones(3)).kinds == ("overflow",)
    assert ll.check_precision(loss, {"w": 0.5}, np.full(3, 1e-21)).kinds == ("underflow",)
    assert "epsilon" in ll.check_precision(loss, {"w": 0.5}, np.ones(3), dtype="float16").kinds

    def cancelling(params, batch):
        return ((1e8 + params["w"]) - 1e8) ** 2 + 0 * batch.sum()

    assert ll.check_precision(cancelling, {"w": 0.5}, np.ones(3)).kinds == ("gradient",)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ll.check_labels(["a", "b"]), ["labels", "number the classes"]),
        (lambda: ll.check_labels(np.zeros((2, 2, 2))), ["labels", "(2, 2, 2)"]),
        (lambda: ll.check_labels(np.zeros(0)), ["labels", "(0,)"]),
        (lambda: ll.check_labels([0, 1], num_classes=0), ["num_classes"]),
        (lambda: ll.check_inputs(np.array(["a"])), ["inputs"]),
        (lambda: ll.check_precision(lambda p, b: p, 1.0, 1.0, dtype="int8"), ["dtype", "int8"]),
        (lambda: ll.check_precision(lambda p, b: float(p) ** 2, 1.0, 1.0), ["loss", "JAX differentiates"]),
        (lambda: ll.check_precision(lambda p, b: p**2, np.ones(3), 1.0), ["loss", "scalar"]),
        (lambda: ll.check_precision(lambda p, b: 1.0 * p, 1, 1.0), ["params", "real floats"]),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=r".") as error:
        call()
    assert all(word in str(error.value) for word in words)
