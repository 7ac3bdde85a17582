"""What a curve alone says, on curves whose cause is known."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossland as ll
from lossland.diagnosis.histories import curvature_of_growth
from lossland.problems.reported import printed_losses
from lossland.problems.synthetic import half_moons
from tests.cases import problem_named

HESSIAN = 2 * np.array([[np.mean(np.arange(1, 21) ** 2.0), 10.5], [10.5, 1.0]])
SHARPNESS = np.linalg.eigvalsh(HESSIAN)[-1]


def test_the_twenty_printed_epochs_of_case_1():
    found = ll.explain_history(printed_losses(), learning_rate=0.01, num_examples=20)
    assert found.cause is ll.Cause.learning_rate_above_threshold
    assert found.confidence > 0.9
    assert found.growth == pytest.approx(3.5547, abs=1e-4)
    assert found.sharpness_times_learning_rate == pytest.approx(0.01 * SHARPNESS, rel=1e-5)
    assert found.critical_learning_rate == pytest.approx(2 / SHARPNESS, rel=1e-5)
    assert found.overflow_epoch == 64
    assert found.period == 2
    assert "learning rate below 0.006931" in str(found)
    assert json.loads(found.to_json())["cause"] == "learning_rate_above_threshold"


def histories(problem, optimizer, sweep):
    runs = ll.run(problem, optimizer, sweep, probes=["loss"], progress=False)
    return runs["loss"].stack(run=[d for d in runs["loss"].dims if d != "step"]).transpose("run", "step").values


@pytest.mark.parametrize(
    ("name", "optimizer", "arguments"),
    [
        ("sgd", optax.sgd, {}),
        ("momentum", lambda learning_rate: optax.sgd(learning_rate, momentum=0.9), {}),
        ("momentum", lambda learning_rate: optax.sgd(learning_rate, momentum=0.5), {"momentum": 0.5}),
        ("nesterov", lambda learning_rate: optax.sgd(learning_rate, momentum=0.9, nesterov=True), {}),
    ],
)
def test_curvature_from_growth_for_other_optimizers(name, optimizer, arguments):
    """Diverging runs of least squares: the sharpness follows from the growth, the rest from the sharpness."""
    critical = ll.threshold(optimizer, learning_rate=1.0).critical_curvature / SHARPNESS
    rates = critical * np.array([1.05, 1.3, 2.0])
    curves = histories(problem_named("line"), optimizer, ll.Sweep({"learning_rate": rates}, 4, 60, 1, dtype="float64"))
    for rate, curve in zip(np.repeat(rates, 4), curves, strict=True):
        found = ll.explain_history(curve, rate, name, **arguments)
        assert found.cause is ll.Cause.learning_rate_above_threshold
        assert found.sharpness == pytest.approx(SHARPNESS, rel=2e-2)
        assert found.critical_learning_rate == pytest.approx(critical, rel=2e-2)


def test_overflow_is_predicted_from_the_first_half():
    curve = histories(problem_named("line"), optax.sgd, ll.Sweep({"learning_rate": [0.01]}, 8, 90, 1))
    for one in curve:
        first = int(np.argmin(np.isfinite(one))) + 1
        assert ll.explain_history(one[:30], 0.01, num_examples=20).overflow_epoch == pytest.approx(first, abs=1)
        assert ll.explain_history(one, 0.01).overflow_epoch == first


def two_layer():
    """A product of two weights: large rates throw it to where it is flat."""
    return ll.Problem(
        lambda key: {"u": jnp.float32(3.0), "v": jnp.float32(0.1)},
        lambda params, batch: jnp.mean((params["u"] * params["v"] * batch - batch) ** 2) / 2,
        np.ones(4),
        name="product",
    )


def network(data):
    def init(key):
        first, second = jax.random.split(key)
        return {"a": jax.random.normal(first, (2, 32)), "b": jax.random.normal(second, (32,)) / 32**0.5}

    def loss(params, batch):
        x, y = batch
        logits = jnp.tanh(x @ params["a"]) @ params["b"]
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, y))

    return ll.Problem(init, loss, data, name="net")


SCENARIOS = {
    "healthy": lambda: (
        histories(network(half_moons(100)), optax.sgd, ll.Sweep({"learning_rate": [0.05]}, 20, 200, 1)),
        {"full_batch": True},
        ll.Cause.healthy,
    ),
    "catapult": lambda: (
        histories(two_layer(), optax.sgd, ll.Sweep({"learning_rate": np.linspace(0.24, 0.4, 20)}, 1, 100, 1)),
        {"full_batch": True},
        ll.Cause.catapult,
    ),
    "minibatch_noise": lambda: (
        noisy_histories(),
        {"full_batch": False},
        ll.Cause.minibatch_noise,
    ),
    "momentum_overshoot": lambda: (
        histories(
            problem_named("line"),
            lambda learning_rate: optax.sgd(learning_rate, momentum=0.95),
            ll.Sweep({"learning_rate": np.linspace(0.05, 0.3, 20) / SHARPNESS}, 1, 100, 1),
        ),
        {"full_batch": True, "optimizer": "momentum", "momentum": 0.95},
        ll.Cause.momentum_overshoot,
    ),
}


def noisy_histories():
    runs = ll.run(
        network(half_moons(100)),
        optax.sgd,
        ll.Sweep({"learning_rate": [0.3]}, 20, 300, 1, batch_size=8),
        probes=["batch_loss"],
        progress=False,
    )
    return runs["batch_loss"].values[0]


@pytest.mark.parametrize("name", SCENARIOS)
def test_causes_of_planted_curves(name):
    """Twenty runs each; "unknown" is allowed, another cause is not, and at least 80 % are named."""
    curves, arguments, cause = SCENARIOS[name]()
    found = [ll.explain_history(curve, 0.1, **{"optimizer": "sgd", **arguments}).cause for curve in curves]
    wrong = [one for one in found if one not in (cause, ll.Cause.unknown)]
    assert not wrong
    assert np.mean([one is cause for one in found]) >= 0.8


def test_growth_is_inverted():
    for factory, arguments in ((optax.sgd, {}), (optax.sgd, {"momentum": 0.9}), (optax.adam, {})):
        certificate = ll.threshold(factory, learning_rate=0.1, **arguments)
        for times in (1.01, 1.5, 20.0):
            curvature = times * certificate.critical_curvature
            assert curvature_of_growth(certificate, certificate.growth(curvature)) == pytest.approx(curvature)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ll.explain_history([1, 2, 3]), ["losses", "at least 4"]),
        (lambda: ll.explain_history(np.ones((4, 4))), ["losses", "(4, 4)"]),
        (lambda: ll.explain_history([1, 2, 3, -np.inf]), ["-inf"]),
        (lambda: ll.explain_history([np.nan, 2, 3, 4]), ["finite numbers at the start"]),
        (lambda: ll.explain_history([1, 2, 3, 4], 0.1, "sdg"), ["optimizer", "sdg", "adam"]),
        (lambda: ll.explain_history([1, 2, 3, 4], -0.1), ["learning_rate", "-0.1"]),
        (lambda: ll.explain_history([1, 2, 3, 4], dtype="int"), ["dtype", "float32"]),
        (lambda: ll.explain_history([1, 2, 3, 4], steps_per_record=0), ["steps_per_record"]),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=r".") as error:
        call()
    assert all(word in str(error.value) for word in words)


class TestCurvesThatMislead:
    def test_a_loss_that_grew_before_it_was_not_finite_diverged(self):
        found = ll.explain_history([2.3, 2.1, 2.0, 1.9, 1.8, 50, 1e6, np.nan], 0.1)
        assert found.cause is ll.Cause.learning_rate_above_threshold
        assert found.sharpness is None  # faster than exponential: no one mode's growth
        sudden = ll.explain_history([2.3, 2.1, 2.0, 1.9, 1.8, 1.7, 1.6, np.nan], 0.1)
        assert sudden.cause is ll.Cause.floating_point

    def test_a_slow_drift_is_neither_noise_nor_a_spike(self):
        drift = ll.explain_history(1 + np.arange(30) / 1000, 0.1)
        assert drift.cause is ll.Cause.unknown
        overfitted = np.concatenate([np.linspace(1, 0.4, 30), np.linspace(0.4, 0.9, 40)])
        assert ll.explain_history(overfitted, 1e-3, "adam").cause is ll.Cause.unknown
