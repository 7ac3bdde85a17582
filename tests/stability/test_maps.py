"""Reading maps: outcomes, fractions, critical learning rates with intervals, on problems with a known answer."""

import numpy as np
import optax
import pytest
import xarray as xr
from scipy.stats import binom

import lossland as ll
from lossland.stability.maps import OUTCOMES, median_over_seeds, outcomes
from tests.cases import linear_problem, problem_named

HESSIAN = 2 * np.array([[np.mean(np.arange(1, 21) ** 2.0), 10.5], [10.5, 1.0]])
CRITICAL = 2 / np.linalg.eigvalsh(HESSIAN)[-1]


@pytest.fixture(scope="module")
def line():
    rates = CRITICAL * np.geomspace(0.5, 2, 40)
    sweep = ll.Sweep({"learning_rate": rates}, seeds=12, num_steps=300, every=10)
    return ll.run(problem_named("line"), optax.sgd, sweep, probes=["loss", "sharpness"])


@pytest.fixture(scope="module")
def cubic():
    sweep = ll.Sweep({"learning_rate": np.geomspace(0.01, 2, 20), "scale": [1.0, 2.0]}, seeds=6, num_steps=100, every=5)
    return ll.run(problem_named("cubic"), optax.sgd, sweep)


def test_outcomes_are_exclusive_and_complete(cubic):
    kinds = outcomes(cubic)
    total = sum(kinds[name].astype(int) for name in OUTCOMES)
    assert (total == 1).all()
    assert all(kinds[name].any() for name in OUTCOMES), "the grid is chosen so that all three occur"
    assert (cubic["first_rise_step"].where(kinds["never_rises"]).fillna(-1) == -1).all()
    assert kinds["diverges"].where(cubic["status"] == ll.Outcome.diverged, True).all()


def test_a_bounded_loss_can_diverge_without_overflow():
    problem = ll.Problem(
        lambda key: np.float32(0.1) * np.ones(1, np.float32) + 0 * optax.tree.norm([0.0]),
        lambda params, batch: -(1 / (1 + 10 * params[0] ** 2)) + 0 * batch.sum(),
        np.zeros(1),
        name="bump",
    )
    runs = ll.run(problem, optax.sgd, ll.Sweep({"learning_rate": [1e-3, 1e3]}, 1, 50, 1))
    assert (runs["status"] == ll.Outcome.finished).all()
    assert outcomes(runs)["diverges"].values.ravel().tolist() == [False, True]


def test_a_run_that_does_not_move_has_not_diverged():
    runs = ll.run(problem_named("line"), optax.sgd, ll.Sweep({"learning_rate": [1e-12, 1e-3]}, 3, 20, 5))
    assert outcomes(runs)["never_rises"].all()


def test_stability_map_is_the_mean_over_seeds(cubic):
    stable = ll.stability_map(cubic)
    kinds = outcomes(cubic)
    for name in OUTCOMES:
        assert stable[name].dims == ("learning_rate", "scale")
        np.testing.assert_allclose(stable[name], kinds[name].mean("seed"))
    np.testing.assert_allclose(sum(stable[name] for name in OUTCOMES), 1)


def test_cut_offs_reach_maps_and_critical_rates(cubic):
    """A run has recovered only if it ends below a tenth of where it started: more runs diverge, at smaller rates."""
    strict = ll.Cutoffs(recovery=0.1)
    kinds = outcomes(cubic, strict)
    assert (kinds["diverges"] >= outcomes(cubic)["diverges"]).all()
    assert (kinds["diverges"] != outcomes(cubic)["diverges"]).any()
    np.testing.assert_allclose(ll.stability_map(cubic, strict)["diverges"], kinds["diverges"].mean("seed"))
    found, usual = ll.critical_learning_rate(cubic, cutoffs=strict), ll.critical_learning_rate(cubic)
    assert (found["critical_learning_rate"] <= usual["critical_learning_rate"]).all()
    assert (found["critical_learning_rate"] < usual["critical_learning_rate"]).any()


def test_the_quadratic_diverges_exactly_above_two_over_sharpness(line):
    stable = ll.stability_map(line)
    above = line["learning_rate"] > CRITICAL
    np.testing.assert_array_equal(stable["diverges"], above.astype(float))
    np.testing.assert_array_equal(stable["predicted"], above.astype(float))
    assert (stable["rises_and_recovers"] == 0).all()


@pytest.mark.parametrize("event", ["diverges", "rises"])
def test_critical_learning_rate_brackets_the_known_one(line, event):
    found = ll.critical_learning_rate(line, event)
    assert (found["below"] < CRITICAL).all()
    assert (found["above"] > CRITICAL).all()
    assert found["low"] < CRITICAL < found["high"]
    assert found["low"] <= found["median"] <= found["high"]
    np.testing.assert_allclose(found["predicted"], CRITICAL, rtol=1e-4)
    np.testing.assert_array_equal(found["last_safe_learning_rate"], found["below"])
    assert found["critical_learning_rate"].dims == ("seed",)


def test_boundary_off_the_grid_is_censored(line):
    low = ll.critical_learning_rate(line.sel(learning_rate=slice(0, CRITICAL)))
    assert np.isinf(low["median"])
    assert np.isinf(low["critical_learning_rate"]).all()
    high = ll.critical_learning_rate(line.sel(learning_rate=slice(CRITICAL, None)))
    assert high["median"] == 0
    assert high["low"] == 0


def test_other_axes_stay_and_order_of_rates_does_not_matter(cubic):
    found = ll.critical_learning_rate(cubic)
    assert found["median"].dims == ("scale",)
    turned = ll.critical_learning_rate(cubic.isel(learning_rate=slice(None, None, -1)))
    xr.testing.assert_equal(turned["median"], found["median"])


def test_runs_that_were_not_computed_do_not_count(cubic):
    missing = cubic.copy(deep=True)
    missing["status"][..., 3:] = int(ll.Outcome.not_run)
    stable, half = ll.stability_map(missing), ll.stability_map(cubic.isel(seed=slice(3)))
    assert (stable["num_runs"] == 3).all()
    for name in OUTCOMES:
        np.testing.assert_allclose(stable[name], half[name])
    for event in ("rises", "diverges"):
        some = ll.critical_learning_rate(missing, event)
        whole = ll.critical_learning_rate(cubic.isel(seed=slice(3)), event)
        assert some["critical_learning_rate"].isel(seed=slice(3, None)).isnull().all()
        for name in ("median", "low", "high", "coverage"):
            np.testing.assert_array_equal(some[name], whole[name])


def test_predictions_of_runs_that_were_not_computed_are_unknown(line):
    missing = line.copy(deep=True)
    gone = {"seed": slice(4, None)}
    missing["status"][..., 4:] = int(ll.Outcome.not_run)
    missing["relative_sharpness"] = missing["relative_sharpness"].where(missing["seed"] < 4)
    np.testing.assert_array_equal(ll.stability_map(missing)["predicted"], ll.stability_map(line)["predicted"])
    found = ll.critical_learning_rate(missing)
    assert found["predicted"].isel(gone).isnull().all()
    np.testing.assert_allclose(median_over_seeds(found["predicted"])["high"], CRITICAL, rtol=1e-4)


def test_a_sweep_of_which_nothing_was_computed_has_no_boundary(cubic):
    missing = cubic.copy(deep=True)
    missing["status"][:] = int(ll.Outcome.not_run)
    assert ll.stability_map(missing)["diverges"].isnull().all()
    found = ll.critical_learning_rate(missing)
    assert found["median"].isnull().all()
    assert (found["coverage"] == 0).all()


def test_the_bracket_is_made_of_rates_that_were_computed(line):
    last_safe = int(np.flatnonzero(line["learning_rate"] < CRITICAL)[-1])
    missing = line.copy(deep=True)
    missing["status"][last_safe] = int(ll.Outcome.not_run)
    missing["first_bad_step"][last_safe] = -1
    found = ll.critical_learning_rate(missing)
    np.testing.assert_array_equal(found["below"], line["learning_rate"][last_safe - 1])
    np.testing.assert_array_equal(found["above"], line["learning_rate"][last_safe + 1])


@pytest.mark.parametrize("count", [1, 2, 5, 6, 16, 64])
def test_interval_of_the_median_has_the_stated_coverage(count):
    values = xr.DataArray(np.arange(count, dtype=float), dims="seed")
    found = median_over_seeds(values)
    low, high = int(found["low"]), int(found["high"])
    exact = binom.cdf(count - low - 1, count, 0.5) - binom.cdf(low, count, 0.5)
    assert float(found["coverage"]) == pytest.approx(max(exact, 0))
    assert low + high == count - 1
    if count >= 6:
        assert found["coverage"] >= 0.95
    else:
        assert low == 0, "too few seeds for 95 %: the full range"


def test_interval_covers_the_true_median_as_often_as_it_says():
    draws = np.random.default_rng(0).exponential(size=(4000, 16))
    found = median_over_seeds(xr.DataArray(draws, dims=("trial", "seed")))
    hits = ((found["low"] <= np.log(2)) & (np.log(2) <= found["high"])).mean()
    coverage = float(found["coverage"][0])
    standard_error = np.sqrt(coverage * (1 - coverage) / 4000)
    assert abs(float(hits) - coverage) < 4 * standard_error


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda runs: ll.stability_map(xr.Dataset()), ["ll.run"]),
        (lambda runs: ll.stability_map(runs.drop_vars("loss")), ["loss", "probes="]),
        (lambda runs: ll.critical_learning_rate(runs, "explodes"), ["event", "diverges", "explodes"]),
        (lambda runs: ll.critical_learning_rate(runs.isel(learning_rate=0)), ["learning_rate"]),
    ],
)
def test_bad_input_is_named(cubic, make, words):
    with pytest.raises(ValueError, match=r".") as error:
        make(cubic)
    for word in words:
        assert word in str(error.value)


def test_the_largest_eigenvalue_alone_decides():
    wide = linear_problem(5)
    sharp = 2 / np.linalg.eigvalsh(2 * np.array([[11.0, 3.0], [3.0, 1.0]]))[-1]
    runs = ll.run(wide, optax.sgd, ll.Sweep({"learning_rate": [0.99 * sharp, 1.01 * sharp]}, 8, 600, 20))
    assert outcomes(runs)["diverges"].values.tolist() == [[False] * 8, [True] * 8]
