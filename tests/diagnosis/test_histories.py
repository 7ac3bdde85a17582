"""What a curve alone says, on curves whose cause is known."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

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


def over_steps(steps):
    return xr.DataArray(2.0 ** np.arange(len(steps)), dims="step", coords={"step": steps})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ll.explain_history([1, 2, 3]), ["losses", "at least 4"]),
        (lambda: ll.explain_history(np.ones((4, 4))), ["losses", "(4, 4)"]),
        (lambda: ll.explain_history([1, 2, 3, -np.inf]), ["-inf"]),
        (lambda: ll.explain_history([np.nan, 2, 3, 4]), ["finite numbers at the start", "got nan", "check_labels"]),
        (lambda: ll.explain_history(over_steps([0, 1, 2, 4, 8])), ["evenly spaced", "1 to 4", "recent"]),
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

    @pytest.mark.parametrize(
        "curve",
        [
            np.linspace(0.4, 1.2, 40),  # a loss on held-out data that grows by as much every epoch
            1 - 0.9 * np.exp(-np.arange(30) / 8),  # accuracy
            0.02 + np.arange(60) ** 0.5,
            np.concatenate([np.linspace(1, 0.4, 30), np.linspace(0.4, 1.3, 60)]),
        ],
    )
    def test_what_rises_ever_more_slowly_is_no_growing_mode(self, curve):
        found = ll.explain_history(curve, 1e-3, "adam")
        assert found.cause is ll.Cause.unknown
        assert found.confidence < 0.5
        assert found.sharpness is None

    def test_a_score_that_is_maximised_is_not_called_noise(self):
        draws = np.random.default_rng(0)
        accuracy = 1 - 0.9 * np.exp(-np.arange(80) / 15) + 0.02 * draws.normal(size=80)
        found = ll.explain_history(accuracy, 1e-3, "adam")
        assert found.cause is ll.Cause.unknown
        assert "a score that is maximised" in found.remedies[0]

    def test_no_curvature_is_read_from_growth_that_is_not_steady(self):
        found = ll.explain_history([1, 1.5, 4, 40, 90, 2000, 9000], 0.1)
        assert found.cause is ll.Cause.learning_rate_above_threshold
        assert found.confidence < 0.9
        assert found.sharpness is None
        assert found.overflow_epoch is None
        assert "the curvature" in str(found)

    def test_noisy_growth_over_many_decades_is_divergence(self):
        """Whether or not each of the last factors is above 1."""
        for seed in range(20):
            noise = np.exp(0.3 * np.random.default_rng(seed).normal(size=40))
            found = ll.explain_history(1.5 ** np.arange(40) * noise, 0.1)
            assert found.cause is ll.Cause.learning_rate_above_threshold
            assert found.confidence <= 0.7
            assert found.sharpness is None

    @pytest.mark.parametrize("optimizer", ["adam", optax.lion])
    def test_growth_under_adaptive_steps_is_less_certain_and_has_a_remedy(self, optimizer):
        found = ll.explain_history(1.2 ** np.arange(30), 0.1, optimizer)
        assert found.cause is ll.Cause.learning_rate_above_threshold
        assert "learning rate" in found.remedies[0]
        assert found.confidence <= (0.7 if optimizer == "adam" else 0.95)

    def test_losses_over_all_that_a_double_holds(self, recwarn):
        found = ll.explain_history([1e-300, 1e-100, 1, 1e100, 1e200, 1e300], 0.1, dtype="float64")
        assert found.cause is ll.Cause.learning_rate_above_threshold
        assert not recwarn.list

    def test_a_loss_without_a_floor_is_told(self):
        found = ll.explain_history(-(2.0 ** np.arange(20)), 0.1)
        assert "without a lower bound" in found.remedies[0]
        assert found.confidence <= 0.5

    def test_a_growth_that_could_be_a_drift_is_not_certain(self):
        """Six factors of 1.1 after a flat stretch: too little to be sure of."""
        curve = np.concatenate([np.full(20, 1.0), 1.1 ** np.arange(1, 7)])
        found = ll.explain_history(curve, 0.1)
        assert found.cause is ll.Cause.learning_rate_above_threshold
        assert found.confidence <= 0.7

    def test_four_records_are_enough_for_growth_but_not_for_certainty(self):
        found = ll.explain_history([1, 4, 16, 64], 0.5)
        assert found.cause is ll.Cause.learning_rate_above_threshold
        assert found.growth == pytest.approx(4)
        assert found.sharpness == pytest.approx(6)  # (1 - 0.5 x 6)^2
        assert found.confidence < 0.9

    def test_a_rise_of_a_thousandth_is_no_catapult(self):
        found = ll.explain_history([2.3001, 2.3012, 2.29, *np.geomspace(2.2, 0.1, 40)], 0.1, full_batch=True)
        assert found.cause is ll.Cause.healthy
        assert found.confidence < 0.9

    @pytest.mark.parametrize("value", [2.3, 0.0, -1.0])
    def test_a_constant_loss_did_not_rise_and_not_fall(self, value, recwarn):
        found = ll.explain_history([value] * 30, 0.1)
        assert found.cause is ll.Cause.healthy
        assert "hardly fell" in found.remedies[0]
        assert ll.explain_history([value] * 4, 0.1).cause is ll.Cause.healthy
        assert not recwarn.list


class TestLossesThatAreNotFinite:
    @pytest.mark.parametrize(
        ("curve", "cause"),
        [
            ([2.3, np.nan, np.nan, np.nan], "unknown"),
            ([2.3, 1e9, np.inf, np.nan], "learning_rate_above_threshold"),
        ],
    )
    def test_from_the_first_records_on(self, curve, cause):
        found = ll.explain_history(curve, 0.1)
        assert found.cause.value == cause
        assert found.confidence <= 0.5
        assert found.overflow_epoch == int(np.argmin(np.isfinite(curve))) + 1
        assert "check_inputs" in str(found)

    @pytest.mark.parametrize("before", [2, 8])
    def test_one_that_is_finite_again_did_not_end_the_run(self, before):
        curve = np.geomspace(2, 0.5, 20)
        curve[before] = np.inf
        found = ll.explain_history(curve, 0.1)
        assert found.cause is ll.Cause.floating_point
        assert found.confidence <= 0.5
        assert f"not finite at record {before + 1}, finite again later" in str(found)
        assert found.evidence["records_finite_again"] == 19 - before

    def test_what_is_predicted_is_told_from_what_was_seen(self):
        losses = printed_losses()
        ahead = ll.explain_history(losses, 0.01, num_examples=20)
        assert ahead.overflow_is_predicted
        assert "from record 64 on (predicted)" in str(ahead)
        seen = ll.explain_history([*losses, np.inf], 0.01)
        assert not seen.overflow_is_predicted
        assert "from record 21 on\n" in str(seen)


def test_a_record_over_steps_brings_its_spacing():
    wide = xr.DataArray(2.0 ** np.arange(8), dims="step", coords={"step": 10 * np.arange(8)})
    found = ll.explain_history(wide, 0.1)
    assert found.growth == pytest.approx(2**0.1)
    assert ll.explain_history(wide.values, 0.1, steps_per_record=10) == found
