"""Targets are labels only where the loss takes them for labels; noise of gradients does not depend on its pieces."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lossland.diagnosis import measurements, replays
from lossland.diagnosis.data_checks import labels_of, made_valid, without_a_loss, wrong_with
from lossland.diagnosis.observation import Rise, observe
from lossland.problems.problem import Problem
from lossland.reproductions.fault_scenarios import noisy_line, soft_labels
from lossland.sweeps.execution import run as train
from lossland.sweeps.sweep import Sweep

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


@pytest.mark.parametrize(
    ("targets", "rows"),
    [
        (np.where(np.arange(12) == 5, -1, np.arange(12) % 2), (5,)),
        (np.where(np.arange(12) > 9, 7, np.arange(12) % 2), (10, 11)),
        (np.arange(12) % 2, ()),
    ],
    ids=["negative", "too_large", "right"],
)
def test_rows_whose_labels_alone_make_the_loss_nan_are_named(targets, rows):
    def loss(params, batch):
        known = (batch[1] >= 0) & (batch[1] < 2)
        logits = jax.nn.log_softmax(batch[0] @ params)
        return -jnp.mean(jnp.where(known, logits[jnp.arange(len(batch[1])), batch[1] % 2], jnp.nan))

    problem = Problem(lambda key: jax.random.normal(key, (3, 2)), loss, (X, targets), name="classes")
    assert without_a_loss(problem) == rows
    always = Problem(problem.init, lambda params, batch: jnp.nan * loss(params, batch), (X, targets), name="always")
    assert without_a_loss(always) == ()  # not the labels' fault


def test_the_noise_ratio_does_not_depend_on_whether_the_loss_is_a_mean_or_a_sum():
    """Equation: |g_B - E g_B|^2 / |E g_B|^2: every gradient is the batch's size times larger."""
    draws = np.random.default_rng(3)
    x, y = draws.normal(size=(12, 3)), draws.normal(size=12)
    ratios = []
    for kind, size in (("mean", jnp.mean), ("sum", jnp.sum)):
        problem = Problem(
            lambda key: 0.1 * jax.random.normal(key, (3,)),
            lambda params, batch, size=size: size((batch[0] @ params - batch[1]) ** 2),
            (x, y),
            normalisation=kind,
            name=kind,
        )
        rate = 0.4 if kind == "mean" else 0.4 / 2
        runs = train(problem, optax.sgd, Sweep({"learning_rate": [rate]}, 1, 40, 1, batch_size=2), progress=False)
        case = replays.retrained(runs.isel(learning_rate=0), problem, optax.sgd)
        one = replace(observe(case.runs.isel(seed=0)), rise=Rise(0, 1, 2, None, 2.0))
        ratios.append(measurements.with_noise(case, [one])[0].noise_ratio)
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-4)
