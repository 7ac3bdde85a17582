"""Explanations of trained runs: cause, the remedy as predicted by theory and verified by replay, clear errors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossland as ll
from lossland.diagnosis import replays
from lossland.diagnosis.explain import _from_the_start, _one_run
from lossland.diagnosis.observation import Observation, largest_rise
from lossland.problems.reported import linear_regression
from lossland.problems.synthetic import quadratic, uv_model
from lossland.sweeps.forks import state_probe
from lossland.sweeps.probes import as_probes


@pytest.fixture(scope="module")
def diverged():
    problem = linear_regression()
    sweep = ll.Sweep({"learning_rate": [0.006, 0.0075]}, seeds=2, num_steps=40, every=1)
    return problem, ll.run(problem, optax.sgd, sweep, ["loss", "sharpness"], progress=False)


@pytest.fixture(scope="module")
def explained(diverged):
    problem, runs = diverged
    return ll.explain(runs.sel(learning_rate=0.0075, seed=1), problem, optax.sgd)


@pytest.mark.slow
class TestDivergence:
    def test_cause_and_critical_learning_rate_are_those_of_the_closed_form(self, explained):
        x = np.arange(1, 21)
        top = np.linalg.eigvalsh(2 * np.array([[np.mean(x**2), x.mean()], [x.mean(), 1]]))[-1]
        assert explained.cause is ll.Cause.learning_rate_above_threshold
        assert explained.evidence["ratio_to_threshold_at_the_start"].value == pytest.approx(0.0075 * top / 2, rel=1e-4)
        remedy = explained.remedies[0]
        assert remedy.change == f"learning rate below {2 / top:.3g}"
        assert remedy.verified is True
        assert remedy.measured < 1.001 < remedy.unchanged

    def test_the_rise_is_curvature(self, explained):
        # On a quadratic there is no rest.
        assert abs(explained.evidence["rest_of_the_rise"].value) < 1e-3
        parts = [explained.evidence[f"{name}_part_of_the_rise"].value for name in ("slope", "curvature")]
        assert sum(parts) == pytest.approx(1, abs=1e-3)
        assert parts[1] > 1

    def test_the_page_says_it(self, explained):
        page = str(explained)
        assert "learning rate above threshold" in page
        assert "verified, largest rise" in page
        assert "seed 1" in page

    def test_json_is_strict_and_complete(self, explained):
        read = json.loads(explained.to_json(), parse_constant=lambda word: pytest.fail(word))
        assert read["cause"] == "learning_rate_above_threshold"
        assert read["remedies"][0]["verified"] is True
        assert read["run"]["learning_rate"] == 0.0075

    def test_a_run_below_the_threshold_is_healthy(self, diverged):
        problem, runs = diverged
        found = ll.explain(runs.sel(learning_rate=0.006, seed=0), problem, optax.sgd)
        assert found.cause is ll.Cause.healthy
        assert found.remedies == ()

    def test_the_figure_shows_run_arm_and_threshold(self, explained):
        figure = explained.plot()
        labels = {line.get_label() for ax in figure.axes for line in ax.lines}
        assert {"this run", "smaller learning rate"} <= labels
        assert len(figure.axes) == 2


class TestRecordsAlone:
    def test_the_cause_is_found_and_what_was_not_tested_is_told(self, diverged):
        _, runs = diverged
        found = ll.explain(runs.sel(learning_rate=0.0075, seed=0))
        assert found.cause is ll.Cause.learning_rate_above_threshold
        assert any("counterfactuals" in text for text in found.untested)
        assert all(remedy.verified is None for remedy in found.remedies)

    def test_without_curvature_it_is_less_sure(self, diverged):
        _, runs = diverged
        run = runs.sel(learning_rate=0.0075, seed=0)
        bare = ll.explain(run.drop_vars([name for name in run.data_vars if "sharpness" in str(name)]))
        assert bare.cause is ll.Cause.learning_rate_above_threshold
        assert bare.confidence < ll.explain(run).confidence
        assert any("curvature" in text for text in bare.untested)


class TestErrors:
    def test_several_runs_say_how_to_select_one(self, diverged):
        problem, runs = diverged
        with pytest.raises(ValueError, match=r"2 values of learning_rate.*runs\.sel\(learning_rate=0\.006"):
            ll.explain(runs.isel(seed=0), problem, optax.sgd)

    def test_another_problem_is_refused(self, diverged):
        _, runs = diverged
        with pytest.raises(ValueError, match="the one that was trained"):
            ll.explain(runs.isel(learning_rate=0, seed=0), linear_regression(10), optax.sgd)

    def test_what_is_no_run_is_refused(self):
        with pytest.raises(ValueError, match=r"Dataset .*that ll\.run returns"):
            ll.explain([1.0, 2.0])  # pyright: ignore[reportArgumentType]

    @pytest.mark.parametrize(
        ("optimizer", "words"),
        [
            (ll.Optimizer(optax.sgd, momentum=0.9), r"Optimizer\(sgd\), got Optimizer\(sgd, momentum=0\.9\)"),
            (optax.adam, r"got Optimizer\(adam\)"),
            (ll.Optimizer(optax.sgd, learning_rate=0.006), r"expected learning_rate = 0\.0075.*got 0\.006"),
        ],
    )
    def test_another_optimizer_is_refused(self, diverged, optimizer, words):
        problem, runs = diverged
        with pytest.raises(ValueError, match=words):
            ll.explain(runs.sel(learning_rate=0.0075, seed=0), problem, optimizer)

    def test_what_was_swept_may_be_given_again(self, diverged):
        problem, runs = diverged
        run = runs.sel(learning_rate=0.0075, seed=0)
        assert replays.checked(run, problem, ll.Optimizer(optax.sgd, learning_rate=0.0075)).arguments == {}

    def test_a_run_that_was_not_computed_is_refused(self, diverged):
        _, runs = diverged
        run = runs.sel(learning_rate=0.006, seed=0)
        with pytest.raises(ValueError, match=r"status not_run.*computes what is missing"):
            ll.explain(run.assign(status=run["status"] * 0))


@pytest.mark.slow
class TestOtherCauses:
    def test_catapult(self):
        problem = uv_model(128)
        runs = ll.run(problem, optax.sgd, ll.Sweep({"learning_rate": [1.45]}, 1, 200, 1), progress=False)
        found = ll.explain(runs, problem, optax.sgd)
        assert found.cause is ll.Cause.catapult
        assert found.remedies[0].verified

    def test_momentum(self):
        problem, optimizer = quadratic((1.0, 2.0)), ll.Optimizer(optax.sgd, momentum=0.97)
        runs = ll.run(problem, optimizer, ll.Sweep({"learning_rate": [0.01]}, 1, 300, 1), progress=False)
        found = ll.explain(runs, problem, optimizer)
        assert found.cause is ll.Cause.momentum_overshoot
        assert found.remedies[0].verified


class TestReplays:
    def test_saved_states_are_read_where_they_were_recorded(self):
        probes = [*as_probes(["loss"]), state_probe()]
        runs = ll.run(
            quadratic((1.0, 2.0)), optax.sgd, ll.Sweep({"learning_rate": [0.5]}, 1, 20, 1), probes, progress=False
        )
        case = replays.retrained(_one_run(runs), quadratic((1.0, 2.0)), optax.sgd)
        assert case.same_bits
        np.testing.assert_allclose(case.thresholds(np.array([0, 7])), 2 / 0.5)

    def test_a_warm_up_from_rate_0_has_thresholds(self, monkeypatch):
        warm_up = ll.Schedule(optax.linear_schedule, init_value=0.0, transition_steps=10)
        optimizer = ll.Optimizer(optax.sgd, learning_rate=warm_up)
        runs = ll.run(quadratic((1.0, 2.0)), optimizer, ll.Sweep({"end_value": [0.5]}, 1, 20, 9), progress=False)
        monkeypatch.setattr(replays, "LARGEST_RECORD", 250)  # a third of the states, which 9 is a multiple of
        case = replays.retrained(_one_run(runs), quadratic((1.0, 2.0)), optimizer)
        assert case.runs["step"].values.tolist() == [0, 3, 6, 9, 12, 15, 18, 20]
        assert case.difference < 1e-5
        np.testing.assert_allclose(case.thresholds(np.array([0, 5, 10])), [np.inf, 8, 4], rtol=1e-6)

    def test_a_rise_beyond_the_replay_is_compared_with_nothing(self):
        step = np.arange(1000)
        loss = np.exp(-step / 100)
        loss[700:710] *= 4
        one = Observation(step, loss, *largest_rise(step, loss))
        assert "beyond" in str(_from_the_start(one, {"unchanged": np.log(4)}, 512))
        assert _from_the_start(one, {"unchanged": np.log(4)}, 720) == pytest.approx(np.log(4), rel=0.1)
        quiet = {"unchanged": np.log(4), "full_batch": 0.0}
        assert "full data" in str(_from_the_start(one, quiet, 720))


def test_a_run_that_begins_without_a_loss_is_told_from_its_data():
    x = np.ones((6, 2), np.float32) * np.arange(6, dtype=np.float32)[:, None]

    def loss(params, batch):
        return jnp.mean(jnp.log(-((batch[0] @ params - batch[1]) ** 2)))

    problem = ll.Problem(lambda key: jax.random.normal(key, (2,)), loss, (x, x[:, 0]), name="without_a_loss")
    runs = ll.run(problem, optax.sgd, ll.Sweep({"learning_rate": [0.1]}, 1, 10, 5), progress=False)
    found = ll.explain(runs, problem, optax.sgd)
    assert found.cause is ll.Cause.unknown
    assert any("columns equal another" in finding for finding in found.findings)
    assert any("no state before" in text for text in found.untested)
    assert "not finite at step 0" in str(found)


class TestUsersOwnDerivatives:
    """A custom_vjp as JAX's documentation writes it: its forward rule calls the function itself."""

    def test_a_wrong_bias_is_found_though_there_is_no_forward_mode(self):
        @jax.custom_vjp
        def layer(w, b, x):
            return x @ w + b

        layer.defvjp(
            lambda w, b, x: (layer(w, b, x), (w, x)), lambda kept, g: (kept[1].T @ g, -g.sum(0), g @ kept[0].T)
        )

        def loss(params, batch):
            hidden = jnp.tanh(layer(params["w1"], params["b1"], batch[0]))
            return jnp.mean((layer(params["w2"], params["b2"], hidden) - batch[1]) ** 2)

        def init(key):
            first, second = jax.random.split(key)
            weights = {"w1": jax.random.normal(first, (1, 4)), "w2": 0.3 * jax.random.normal(second, (4, 1))}
            return weights | {"b1": jnp.zeros(4), "b2": jnp.zeros(1)}

        x = np.linspace(-2, 2, 16)[:, None]
        problem = ll.Problem(init, loss, (x, np.sin(2 * x) + 0.5), name="hand_written")
        runs = ll.run(problem, optax.sgd, ll.Sweep({"learning_rate": [0.1]}, 1, 60, 1), progress=False)
        found = ll.explain(runs, problem, optax.sgd)
        assert found.cause is ll.Cause.wrong_gradient
        assert found.remedies[0].verified
        assert "b2" in found.remedies[0].change


def test_labels_without_a_loss_at_the_first_step_are_the_cause():
    x = np.random.default_rng(0).normal(size=(12, 2))
    classes = np.where(np.arange(12) == 4, 3, np.arange(12) % 3)
    problem = ll.Problem(
        lambda key: jax.random.normal(key, (2, 3)),
        lambda params, batch: optax.softmax_cross_entropy_with_integer_labels(batch[0] @ params, batch[1]).mean(),
        (x, classes),
        name="classes",
    )
    runs = ll.run(problem, optax.sgd, ll.Sweep({"learning_rate": [0.1]}, 1, 5, 1), progress=False)
    found = ll.explain(runs, problem, optax.sgd)
    assert found.cause is ll.Cause.invalid_labels
    assert found.remedies[0].change == "mend the labels of rows 4"


def test_a_batch_loss_that_was_not_recorded_is_not_explained():
    """The loss over the full data falls, that of batches does not: the second has to have been seen."""
    draws = np.random.default_rng(0)
    x, y = draws.normal(size=(24, 2)), draws.normal(size=24)
    problem = ll.Problem(
        lambda key: 3 + jax.random.normal(key, (2,)),
        lambda params, batch: jnp.mean((batch[0] @ params - batch[1]) ** 2),
        (x, y),
        name="noisy_targets",
    )
    sweep = ll.Sweep({"learning_rate": [1e-3]}, 1, 30, 1, batch_size=4)
    causes = []
    for probes in (["loss"], ["loss", "batch_loss"]):
        runs = ll.run(problem, optax.sgd, sweep, probes=probes, progress=False)
        causes.append(ll.explain(runs, problem, optax.sgd).cause)
    assert causes == [ll.Cause.healthy, ll.Cause.minibatch_noise]


def test_one_record_says_next_to_nothing(diverged):
    """A run that rose at every step, of which the first record alone was kept."""
    _, runs = diverged
    found = ll.explain(runs.sel(learning_rate=0.0075, seed=1).isel(step=[0]))
    assert found.cause is ll.Cause.healthy
    assert found.confidence < 0.5
    assert "rises between records: 40 steps raised the loss" in str(found)
    found.plot()
