"""Targets are labels only where the loss takes them for labels; noise of gradients does not depend on its pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossland.diagnosis import measurements
from lossland.diagnosis.data_checks import labels_of, made_valid, wrong_with
from lossland.problems.problem import Problem
from lossland.reproductions.fault_scenarios import noisy_line, soft_labels

X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)


def linear(targets: np.ndarray) -> Problem:
    """A loss that is affine in its targets, whatever these are."""
    columns = targets.shape[1] if targets.ndim == 2 else 1

    def loss(params, batch):
        z = batch[0] @ params
        return jnp.mean(jnp.exp(z) - z * batch[1].reshape(z.shape))

    return Problem(lambda key: 0.1 * jax.random.normal(key, (3, columns)), loss, (X, targets), name="linear")


@pytest.mark.parametrize(
    "targets",
    [
        np.arange(12, dtype=np.float32),
        np.where(np.arange(12) % 2, 1, -1),
    ],
    ids=["counts", "signs"],
)
def test_what_need_not_be_labels_is_not_checked_as_such(targets):
    assert labels_of(linear(targets)) is None


def test_rows_and_classes_are():
    rows = labels_of(soft_labels(6.0, 1.0))
    assert rows is not None
    assert rows.kinds == ("row_sum",)
    classes = labels_of(linear(np.array([0, 1, -2] * 4)))
    assert classes is not None
    assert classes.kinds == ("outside_classes",)


def test_a_loss_that_is_not_finite_is_affine_in_nothing():
    rows = np.ones((12, 2), np.float32)
    empty = Problem(lambda key: jnp.zeros(3), lambda p, batch: jnp.log(-jnp.mean(batch[1]) - p @ p), (X, rows))
    assert labels_of(empty) is None


def test_what_is_wrong_whatever_the_loss_is_told():
    found = wrong_with(linear(np.array([0, 1, -2] * 4)))
    assert [text.split(":")[0] for text in found] == ["outside_classes"]


def test_rows_made_valid_are_distributions():
    made = made_valid(np.array([[2.0, -1.0, 2.0], [np.nan, 0.0, 3.0]]))
    np.testing.assert_allclose(made, [[0.5, 0, 0.5], [0, 0, 1]])


def test_noise_is_that_of_all_examples_at_once(monkeypatch):
    monkeypatch.setattr(measurements, "AT_ONCE", 8)  # 21 examples: two pieces and a rest
    problem = noisy_line(21, 1.0)
    params = problem.init(jax.random.key(0))
    flat = jax.flatten_util.ravel_pytree(params)[0]
    square, spread = measurements.noise_program(problem)(flat[None])
    x, y = problem.data

    def each(index):
        gradient = jax.grad(problem.loss)(params, (x[index][None], y[index][None]))
        return jax.flatten_util.ravel_pytree(gradient)[0]

    gradients = np.array([each(index) for index in range(21)])
    mean = gradients.mean(0)
    np.testing.assert_allclose(square, [mean @ mean], rtol=1e-4)
    np.testing.assert_allclose(spread[0], ((gradients - mean) ** 2).sum(1), rtol=1e-4)
