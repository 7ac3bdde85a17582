"""Six classes, what they owe to cut-offs, phase diagrams, and critical constants with a known answer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

import lossland as ll
from lossland.problems.synthetic import quadratic, uv_model
from lossland.stability.constants import catapult_window, critical_constants
from lossland.stability.cutoffs import CUTOFFS, Cutoffs
from lossland.stability.intervals import binomial_interval
from lossland.stability.maps import outcomes
from lossland.stability.phases import CLASSES, classes, cutoff_sensitivity, outcome_probability, phase_diagram
from tests.cases import problem_named


@pytest.fixture(scope="module")
def cubic():
    """Rates from far too small to far too large."""
    sweep = ll.Sweep({"learning_rate": np.geomspace(1e-6, 30, 24), "scale": [1.0, 2.0]}, 6, num_steps=200, every=10)
    return ll.run(problem_named("cubic"), optax.sgd, sweep, ["loss", "sharpness"], progress=False)


def kernel(problem, optimizer, state):
    u, v = state.params["u"], state.params["v"]
    return (jnp.vdot(u, u) + jnp.vdot(v, v)) / u.size


@pytest.fixture(scope="module")
def thrown():
    """The two-layer linear model of width 512 around both edges of its window."""
    rates = np.concatenate([np.arange(0.7, 1.4, 0.02), np.arange(1.5, 2.7, 0.02)])
    sweep = ll.Sweep({"learning_rate": rates}, 12, num_steps=300, every=300)
    return ll.run(uv_model(512), optax.sgd, sweep, ["loss", kernel], progress=False)


class TestClasses:
    def test_one_of_six_holds_for_every_run(self, cubic):
        found = classes(cubic)
        assert list(found) == list(CLASSES)
        assert (sum(found[name].astype(int) for name in CLASSES) == 1).all()
        # Off the edge, a run that rose shows when the edge is narrow.
        narrow = classes(cubic, Cutoffs(edge=0.01))
        present = {name for name in CLASSES if found[name].any() or narrow[name].any()}
        assert present >= {"never_rises", "rises_and_recovers", "edge_of_stability", "stalls", "non_finite"}

    def test_they_refine_the_three_outcomes(self, cubic):
        found, coarse = classes(cubic), outcomes(cubic)
        np.testing.assert_array_equal(found["diverges"] | found["non_finite"], coarse["diverges"])
        assert not (found["never_rises"] & ~coarse["never_rises"]).any()
        for name in ("rises_and_recovers", "edge_of_stability"):
            assert not (found[name] & ~coarse["rises_and_recovers"]).any()

    def test_the_edge_is_read_from_the_sharpness_where_there_is_one(self, cubic):
        late = cubic["relative_sharpness"].isel(step=slice(-3, None)).median("step")
        at_edge = classes(cubic)["edge_of_stability"]
        assert (abs(late.where(at_edge) - 1).max() <= CUTOFFS.edge).item()
        assert classes(cubic).attrs["edge_read_from"] == "relative_sharpness"
        plain = cubic.drop_vars("relative_sharpness")
        assert classes(plain).attrs["edge_read_from"] == "num_rises"
        shares = (plain["num_rises"] / plain["steps_done"]).where(classes(plain)["edge_of_stability"])
        assert shares.min() >= CUTOFFS.rising

    def test_the_edge_of_an_adaptive_optimizer_is_read_from_the_preconditioned_sharpness(self, cubic):
        adaptive = cubic.drop_vars("relative_sharpness")
        adaptive["preconditioned_sharpness"] = cubic["relative_sharpness"] * cubic["threshold"]
        found = classes(adaptive)
        assert found.attrs["edge_read_from"] == "preconditioned_sharpness"
        np.testing.assert_array_equal(found["edge_of_stability"], classes(cubic)["edge_of_stability"])

    def test_without_a_threshold_nothing_is_predicted_and_rises_are_counted(self):
        sweep = ll.Sweep({"learning_rate": [0.01, 0.1]}, 2, 20, 5)
        runs = ll.run(quadratic([1.0]), optax.lion, sweep, ["loss", "sharpness"], progress=False)
        assert "relative_sharpness" not in runs
        assert classes(runs).attrs["edge_read_from"] == "num_rises"
        assert "predicted" not in ll.stability_map(runs)
        assert "predicted" not in ll.critical_learning_rate(runs)

    def test_a_bounded_loss_that_ends_high_diverges_without_becoming_infinite(self):
        problem = ll.Problem(
            lambda key: 0.1 + 0.01 * jax.random.normal(key, (1,)),
            lambda params, batch: -(1 / (1 + 10 * params[0] ** 2)) + 0 * batch.sum(),
            np.zeros(1),
            name="bump",
        )
        found = classes(ll.run(problem, optax.sgd, ll.Sweep({"learning_rate": [1e-2, 1e3]}, 2, 50, 1), progress=False))
        assert found["diverges"].values.tolist() == [[False, False], [True, True]]
        assert not found["non_finite"].any()

    def test_runs_that_were_not_computed_have_no_class(self, cubic):
        missing = cubic.copy(deep=True)
        missing["status"][..., 3:] = int(ll.Outcome.not_run)
        found = classes(missing)
        assert not any(found[name][..., 3:].any() for name in CLASSES)

    @pytest.mark.parametrize(("name", "value"), [("tail", 0.0), ("tail", 1.5), ("edge", -1.0), ("recovery", 0.0)])
    def test_bad_cutoffs_are_named(self, name, value):
        with pytest.raises(ValueError, match=name):
            Cutoffs(**{name: value})


class TestSensitivity:
    def test_it_is_the_fraction_of_runs_whose_class_changes(self, cubic):
        found = cutoff_sensitivity(cubic, factor=4.0)
        assert set(found["cutoff"].values) == {"tail", "recovery", "progress", "edge", "rising"}
        both = [classes(cubic, cutoffs) for cutoffs in (CUTOFFS, Cutoffs(progress=CUTOFFS.progress * 4))]
        changed = np.any([(both[0][name] != both[1][name]).values for name in CLASSES], axis=0).mean()
        here = found.sel(cutoff="progress", direction="higher")
        assert float(here["changed"]) == pytest.approx(changed)
        assert changed > 0
        np.testing.assert_allclose(here["fraction"].sel({"class": "stalls"}), both[1]["stalls"].mean())
        np.testing.assert_allclose(found["fraction"].sum("class"), 1)
        assert (found["changed"].sel(cutoff="rising") == 0).all(), "sharpness was recorded, so rises are not asked"

    def test_a_factor_that_changes_nothing_is_refused(self, cubic):
        with pytest.raises(ValueError, match="factor"):
            cutoff_sensitivity(cubic, factor=1.0)


class TestProbability:
    @pytest.mark.parametrize("method", ["wilson", "clopper_pearson"])
    def test_fractions_have_binomial_intervals(self, cubic, method):
        found = outcome_probability(cubic, "diverges", method)
        np.testing.assert_allclose(found["probability"], ll.stability_map(cubic)["diverges"])
        counts = outcomes(cubic)["diverges"].sum("seed")
        low, high = binomial_interval(counts.values, np.full(counts.shape, 6), method)
        np.testing.assert_allclose(found["low"], low)
        np.testing.assert_allclose(found["high"], high)
        assert ((found["low"] <= found["probability"]) & (found["probability"] <= found["high"])).all()

    def test_finer_classes_and_unknown_names(self, cubic):
        found = outcome_probability(cubic, "stalls")
        np.testing.assert_allclose(found["probability"], classes(cubic)["stalls"].mean("seed"))
        with pytest.raises(ValueError, match="edge_of_stability"):
            outcome_probability(cubic, "explodes")


class TestPhaseDiagram:
    def test_any_two_axes_pool_the_others(self):
        axes = {"learning_rate": np.geomspace(0.01, 10, 6), "momentum": [0.0, 0.9], "scale": [0.5, 1.0, 2.0]}
        runs = ll.run(problem_named("cubic"), optax.sgd, ll.Sweep(axes, 4, 60, 3), progress=False)
        found = phase_diagram(runs, "scale", "momentum")
        assert found["probability"].dims == ("momentum", "scale")
        assert (found["num_runs"] == 24).all()
        kinds = classes(runs)
        for name in CLASSES:
            expected = kinds[name].mean(("learning_rate", "seed"))
            np.testing.assert_allclose(found["fraction"].sel({"class": name}), expected)
        np.testing.assert_array_equal(found["phase"], found["fraction"].argmax("class"))
        np.testing.assert_allclose(found["probability"], outcomes(runs)["diverges"].mean(("learning_rate", "seed")))

    @pytest.mark.parametrize(("x", "y"), [("scale", "width"), ("seed", "scale"), ("scale", "scale")])
    def test_axes_that_do_not_exist_are_named(self, cubic, x, y):
        with pytest.raises(ValueError, match=r"axes|another axis"):
            phase_diagram(cubic, x, y)


class TestConstants:
    def test_the_linear_model_is_thrown_up_from_2_and_lost_beyond_4(self, thrown):
        window = catapult_window(thrown, "kernel")
        onset, end = (window.sel(edge=edge) for edge in ("onset", "end"))
        assert ((onset["below"] < 2.03) & (onset["above"] > 2.0)).all()
        assert ((end["below"] < 4.0) & (end["above"] > 3.9)).all()
        np.testing.assert_allclose(window["width"], end["value"] - onset["value"])
        assert onset["low"] <= onset["median"] <= onset["high"]

    def test_brackets_are_rates_of_the_grid_times_the_initial_kernel(self, thrown):
        found = critical_constants(thrown, unit="kernel").sel(constant="c_max")
        ratio = found["below"] / found["initial_sharpness"]
        assert all(np.isclose(thrown["learning_rate"].values, one).any() for one in ratio.values)
        np.testing.assert_allclose(found["value"], np.sqrt(found["below"] * found["above"]))
        np.testing.assert_allclose(found["initial_sharpness"], thrown["kernel"].isel(step=0, learning_rate=0))

    def test_the_kernel_never_rises_below_4(self, thrown):
        found = critical_constants(thrown, unit="kernel")
        assert (found["above"].sel(constant="c_sharp") >= found["below"].sel(constant="c_max")).all()

    def test_a_constant_off_the_grid_is_infinite(self, thrown):
        below = critical_constants(thrown.sel(learning_rate=slice(0, 0.8)), unit="kernel")
        assert np.isinf(below["value"].sel(constant="c_max")).all()
        assert np.isinf(below["median"].sel(constant="c_max"))

    def test_quadratics_never_sharpen_and_rise_where_they_diverge(self):
        rates = np.geomspace(1e-3, 0.05, 30)
        sweep = ll.Sweep({"learning_rate": rates}, 4, num_steps=40, every=1)
        runs = ll.run(problem_named("line"), optax.sgd, sweep, ["loss", "sharpness"], progress=False)
        found = critical_constants(runs, within=10)
        for name in ("c_rise", "c_max"):
            one = found.sel(constant=name)
            assert ((one["below"] < 2.0) & (one["above"] > 2.0)).all()
        assert (found["value"].sel(constant="c_loss") >= found["value"].sel(constant="c_rise")).all()
        assert np.isinf(found["value"].sel(constant="c_sharp")).all()

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            (lambda runs: runs.drop_vars("kernel"), "kernel"),
            (lambda runs: runs.isel(learning_rate=0), "learning_rate"),
            (lambda runs: runs.isel(step=[0]), "within"),
        ],
    )
    def test_bad_input_is_named(self, thrown, change, word):
        with pytest.raises(ValueError, match=word):
            critical_constants(change(thrown), unit="kernel")


def test_classes_are_read_from_a_loaded_folder_too(tmp_path):
    sweep = ll.Sweep({"learning_rate": [0.1, 10.0]}, 2, 30, 3)
    runs = ll.run(problem_named("cubic"), optax.sgd, sweep, out=tmp_path, progress=False)
    xr.testing.assert_equal(classes(ll.load(tmp_path)).compute(), classes(runs))
