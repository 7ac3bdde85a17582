"""Explanations of trained runs: cause, the remedy as predicted by theory and verified by replay, clear errors."""

import json

import numpy as np
import optax
import pytest

import lossland as ll
from lossland.problems.reported import linear_regression
from lossland.problems.synthetic import quadratic, uv_model


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
        with pytest.raises(ValueError, match=r"dataset that ll\.run returns"):
            ll.explain([1.0, 2.0])  # pyright: ignore[reportArgumentType]


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
