"""Real data: scaling, subsampling, and the message when scikit-learn is missing."""

import sys

import jax
import numpy as np
import pytest
import sklearn.datasets

from lossland.problems import datasets
from tests.problems.quick import quick

DIGITS = sklearn.datasets.load_digits()


def test_digits_are_all_there_between_zero_and_one():
    x, labels = datasets.digits(widths=(4,)).data
    assert (x.shape, x.dtype, labels.dtype) == ((1797, 64), np.float32, np.int32)
    assert (x.min(), x.max()) == (0, 1)
    np.testing.assert_array_equal(x * 16, DIGITS.data)  # sixteenths are exact in float32
    np.testing.assert_array_equal(labels, DIGITS.target)


def test_digit_rows_are_the_images():
    images, labels = datasets.digit_rows(num_examples=57, seed=3).data
    keep = datasets.stratified(DIGITS.target, 57, seed=3)
    np.testing.assert_array_equal(images * 16, DIGITS.images[keep])
    np.testing.assert_array_equal(labels, DIGITS.target[keep])
    with pytest.raises(ValueError, match=r"loss: expected one of cross_entropy, mse, got 'hinge'"):
        datasets.digit_rows(loss="hinge")
    with pytest.raises(ValueError, match=r"width: expected an even number of units, for two heads, got 15"):
        datasets.digit_rows(width=15)


def test_breast_cancer_is_standardised():
    x, labels = datasets.breast_cancer(widths=(4,)).data
    assert x.shape == (569, 30)
    np.testing.assert_allclose(x.mean(axis=0, dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(axis=0, dtype=np.float64), 1, rtol=1e-6)
    assert np.bincount(labels).tolist() == [212, 357]


@pytest.mark.parametrize(("builder", "outputs"), [(datasets.digits, 10), (datasets.breast_cancer, 2)])
def test_depth_width_activation_and_loss_can_be_chosen(builder, outputs):
    for widths in ((), (5,), (6, 5)):
        params = jax.eval_shape(builder(widths=widths, activation="relu", num_examples=40).init, jax.random.key(0))
        assert [params[f"Dense_{i}"]["kernel"].shape[1] for i in range(len(params))] == [*widths, outputs]
    # With all weights zero the outputs are zero: log(classes) and half the squared length of a one-hot vector.
    for loss, expected in (("cross_entropy", np.log(outputs)), ("mse", 0.5)):
        problem = builder(widths=(5,), loss=loss, num_examples=40)
        shapes = jax.eval_shape(problem.init, jax.random.key(0))
        zero = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        np.testing.assert_allclose(quick(problem.objective)(zero), expected, rtol=1e-6)


@pytest.mark.parametrize("num_examples", [10, 57, 300, 1796])
def test_subsamples_keep_every_class_in_its_share_and_are_nested(num_examples):
    keep = datasets.stratified(DIGITS.target, num_examples)
    assert len(set(keep)) == num_examples
    assert (np.diff(keep) > 0).all()
    shares = np.bincount(DIGITS.target) * num_examples / 1797
    assert np.abs(np.bincount(DIGITS.target[keep], minlength=10) - shares).max() <= 1
    assert set(datasets.stratified(DIGITS.target, num_examples - 1)) < set(keep)
    assert set(datasets.stratified(DIGITS.target, num_examples, seed=1)) != set(keep)


def test_subsampled_data_are_rows_of_the_table():
    x, labels = datasets.digits(widths=(4,), num_examples=57, seed=3).data
    keep = datasets.stratified(DIGITS.target, 57, seed=3)
    np.testing.assert_array_equal(x * 16, DIGITS.data[keep])
    np.testing.assert_array_equal(labels, DIGITS.target[keep])
    # Standardised over the whole table, so that subsamples of one example show the same numbers.
    whole, _ = datasets.breast_cancer_table()
    part, _ = datasets.breast_cancer(widths=(4,), num_examples=30).data
    assert {row.tobytes() for row in part} <= {row.tobytes() for row in whole}


@pytest.mark.parametrize("num_examples", [0, -3, 1798])
def test_impossible_subsamples_are_refused(num_examples):
    with pytest.raises(ValueError, match=rf"num_examples: expected .* got {num_examples}"):
        datasets.digits(num_examples=num_examples)


@pytest.mark.parametrize("builder", [datasets.digits, datasets.breast_cancer])
def test_a_missing_scikit_learn_is_named_with_its_cure(builder, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r'pip install "lossland\[data\]"'):
        builder()
