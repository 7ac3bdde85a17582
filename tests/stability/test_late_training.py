"""Maps of late training: sums over constructed runs, recorded curves, forgetting against dense matrices, predictions
on quadratics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr
from jax.flatten_util import ravel_pytree

import lossland as ll
from lossland.figures.late_training import late_training_figure
from lossland.optimizers import Optimizer
from lossland.problems.synthetic import quadratic
from lossland.stability import late_prediction
from lossland.stability.intervals import binomial_interval
from lossland.stability.late_prediction import late_training_scores, predict_from_states, predict_late_spikes
from lossland.stability.late_training import late_training, late_training_map
from lossland.sweeps.forgetting_probe import forgetting
from lossland.sweeps.probes import State
from lossland.sweeps.sweep import Outcome
from tests.cases import network_problem, problem_named
from tests.curvature.cases import quick_jit
from tests.sweeps.test_curvature_probes import dense
from tests.sweeps.test_loss_probes import recounted

STEPS = np.arange(0, 101, 10)


def constructed(first, final, bad=None, status=None, late=30):
    """Runs over (learning_rate, b2, seed) whose probes recorded this: first spike (-1 for none), final loss."""
    first, final = np.asarray(first), np.asarray(final, float)
    shape = first.shape
    bad = np.full(shape, -1) if bad is None else np.asarray(bad)
    status = np.where(bad >= 0, Outcome.diverged, Outcome.finished) if status is None else np.asarray(status)
    dims = ("learning_rate", "b2", "seed")
    steps = np.broadcast_to(STEPS, (*shape, len(STEPS)))
    alive = (steps <= bad[..., None]) | (bad[..., None] < 0)
    loss = np.where(steps >= 90, final[..., None], 1.0)
    shown = (steps >= first[..., None]) & (first[..., None] >= 0) & alive
    records = {
        "loss": np.where(alive, loss, np.nan),
        "late_step": np.where(alive, np.where(steps >= late, late, -1), 0),
        "late_peak_loss": np.where(alive, 7.0, np.nan),
    }
    variables = {name: ((*dims, "step"), values) for name, values in records.items()}
    for name, values in (
        ("first_late_spike", np.where(alive, np.where(shown, first[..., None], -1), 0)),
        ("num_late_spikes", shown.astype(int)),
    ):
        variables[name] = ((*dims, "step", "visible"), values[..., None])
    variables |= {"status": (dims, status), "first_bad_step": (dims, bad)}
    coordinates = {"learning_rate": [1e-3, 1e-2], "b2": [0.9, 0.999], "seed": np.arange(shape[-1]), "step": STEPS}
    return xr.Dataset(variables, coordinates, {"late_visible": "[2.0]"})


class TestSums:
    def test_probability_median_time_and_price_are_those_of_the_runs(self):
        none = [-1] * 6
        first = [[[40, 50, 60, 70, -1, -1], none], [[40, -1, -1, -1, -1, -1], [31, 32, 33, 34, 35, 36]]]
        final = [[[1e-3] * 6, [4e-3] * 6], [[1e-5, 2e-5, 3e-5, 4e-5, 5e-5, 6e-5], [6e-3] * 6]]
        found = late_training(constructed(first, final))
        np.testing.assert_allclose(found["probability"], [[4 / 6, 0], [1 / 6, 1]])
        np.testing.assert_allclose(found["probability_low"], binomial_interval([[4, 0], [1, 6]], 6)[0])
        # The third of six is the first time by which half of the runs have spiked; two are censored.
        np.testing.assert_array_equal(found["time"], [[60, np.inf], [np.inf, 33]])
        np.testing.assert_array_equal(found["time_high"].values[0], [np.inf, np.inf])
        np.testing.assert_array_equal(found["time_low"].values[1], [40, 31])
        np.testing.assert_allclose(found["price"], [[1, 4], [1, 200]], rtol=1e-6)
        np.testing.assert_allclose(found["price_overall"], [[1e-3 / 3e-5, 4e-3 / 3e-5], [1, 200]], rtol=1e-6)
        np.testing.assert_allclose(found["worst_final_loss"].values[1], [6e-5, 6e-3])
        assert (found["worst_loss"] == 7).all()
        assert (found["not_late"] == 0).all()

    def test_runs_that_diverge_late_have_spiked_and_those_that_diverge_early_or_were_not_run_do_not_count(self):
        first = np.full((2, 2, 4), -1)
        bad = np.full((2, 2, 4), -1)
        bad[0, 0] = [55, -1, -1, 20]
        runs = constructed(first, np.full(first.shape, 1e-3), bad)
        runs["status"][1, 1, :3] = int(Outcome.not_run)
        found = late_training(runs)
        assert found["num_runs"].values.tolist() == [[3, 4], [4, 1]]
        np.testing.assert_allclose(found["probability"].values[0, 0], 1 / 3)
        np.testing.assert_array_equal(found["first_spike"].values[0, 0], [55, np.inf, np.inf, np.nan])
        assert found["spikes"].values[0, 0, 0] == 1
        assert found["worst_final_loss"].values[0, 0] == np.inf
        assert found["not_late"].values[0, 0] == 0.25

    def test_a_run_that_dies_between_records_was_late_if_its_loss_was_low_by_then(self):
        first = np.full((2, 2, 4), -1)
        bad = np.full((2, 2, 4), -1)
        bad[0, 0] = [36, 36, 29, -1]  # late training may begin at step 31; the record before these says nothing
        runs = constructed(first, np.full(first.shape, 1e-3), bad, late=40)
        low = runs["loss"].where((runs["step"] < 20) | (runs["seed"] == 1), 0.01)
        runs = runs.assign(loss=runs["loss"].where(runs["loss"].isnull(), low))
        runs.attrs |= {"late_after": "31", "late_begun": "0.1"}
        found = late_training(runs)
        np.testing.assert_array_equal(found["first_spike"].values[0, 0], [36, np.nan, np.nan, np.inf])
        assert found["num_runs"].values[0, 0] == 2
        assert found["probability"].values[0, 0] == 0.5

    def test_missing_records_and_bad_arguments_are_named(self):
        runs = constructed(np.full((2, 2, 2), -1), np.ones((2, 2, 2)))
        for name in ("loss", "first_late_spike"):
            with pytest.raises(ValueError, match=f"expected a record of {name}"):
                late_training(runs.drop_vars(name))
        with pytest.raises(ValueError, match="after: expected a step before num_steps"):
            late_training_map(problem_named("cubic"), optax.adam, {"learning_rate": [0.1]}, 1, 10, after=10)


def test_the_map_says_what_the_recorded_curves_say(tmp_path):
    """Steps, counts and losses against runs recorded at every step; several factors; a folder that resumes."""
    axes, seeds, steps = {"learning_rate": [0.1, 0.3], "b2": [0.95, 0.99]}, 3, 600
    problem = quadratic((0.3, 10.0))
    call = {"after": 150, "visible": (2.0, 4.0), "begun": 0.5, "every": 1}
    found = late_training_map(problem, optax.adam, axes, seeds, steps, out=tmp_path, **call)
    runs = ll.load(tmp_path)
    curves = runs["loss"].load()
    spiked = 0
    for place in np.ndindex(2, 2, 3):
        losses = curves.values[place].astype(float)
        for index, factor in enumerate(call["visible"]):
            starts, late = recounted(losses, 150, factor, share=0.5)
            assert late < steps
            expected = starts[0] if starts else np.inf
            assert found["first_spike"].values[(*place, index)] == expected
            assert found["spikes"].values[(*place, index)] == len(starts)
            spiked += bool(starts)
    assert spiked > 0
    np.testing.assert_allclose(found["run_final_loss"], curves.sel(step=slice(540, None)).median("step"), rtol=1e-6)
    again = late_training(runs)
    xr.testing.assert_equal(again, found.drop_attrs())


class TestForgetting:
    @pytest.mark.long
    def test_the_wait_is_the_root_of_the_dense_eigenvalue_with_the_second_moment_forgotten(self, x64):
        problem, rate, n = network_problem(width=3, num_examples=7), 1e-2, 40
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), problem.init(jax.random.key(1)))
        flat, unravel = ravel_pytree(params)
        nu = 2 * np.random.default_rng(0).normal(size=flat.size) ** 2
        loss, gradient = jax.value_and_grad(problem.objective)(params)
        hessian = dense(problem, params)
        probe = forgetting(20_000.0, tol=1e-6, max_matvecs=400)

        @quick_jit
        def measure(b2, eps):
            optimizer = Optimizer(optax.adam, learning_rate=rate, b1=0.9, b2=b2, eps=eps)
            adam, *rest = optimizer.init(params)
            opt_state = (adam._replace(count=jnp.int32(n - 1), nu=unravel(jnp.asarray(nu))), *rest)
            state = State(jnp.int32(n - 1), params, opt_state, loss, gradient)
            return probe(problem, optimizer, state, probe.start(problem, params), lambda active: active)[0]

        for b2, eps in ((0.9, 1e-9), (0.999, 1e-9), (0.99, 1e-3), (0.99, 1.0)):
            v = b2 * nu + (1 - b2) * np.asarray(ravel_pytree(gradient)[0]) ** 2

            def ratio(wait, b2=b2, eps=eps, v=v):
                p = np.sqrt(b2**wait * v / (1 - b2 ** (n + wait))) + eps
                value, vectors = np.linalg.eigh(hessian / np.sqrt(np.outer(p, p)))
                return rate * value[-1] / 38, np.sum(vectors[:, -1] ** 4 / p)

            values = measure(jnp.float64(b2), jnp.float64(eps))
            found = {name.removeprefix("forgetting_"): float(value) for name, value in values.items()}
            assert ratio(0)[0] < 1
            if eps == 1.0:  # above the floor
                assert ratio(20_000)[0] < 1
                assert found["wait"] == np.inf
                assert found["ratio"] == pytest.approx(ratio(20_000)[0], rel=1e-3)
                continue
            assert ratio(found["wait"])[0] == pytest.approx(1, abs=2e-3)
            assert found["refill"] == pytest.approx(ratio(found["wait"])[1], rel=2e-2)
            ahead, behind = (np.log(ratio(found["wait"] + by)[0]) for by in (0.05, -0.05))
            assert found["slope"] == pytest.approx((ahead - behind) / 0.1, rel=2e-2)

    def test_optimizers_without_these_moments_are_named(self):
        sweep = ll.Sweep({"learning_rate": [0.1]}, 1, 2, 1)
        refused = (
            (optax.sgd, "one set of second moments"),
            (optax.rmsprop, "an argument b1"),
            (optax.nadam, "expected optax.adam or optax.adamw"),
            (optax.amsgrad, "expected optax.adam or optax.adamw"),
            (ll.Optimizer(optax.adam, eps_root=1e-6), "without eps_root or nesterov, got adam with eps_root"),
        )
        for optimizer, message in refused:
            with pytest.raises(ValueError, match=message):
                ll.run(problem_named("line"), optimizer, sweep, [forgetting(10.0)], progress=False)
        with pytest.raises(ValueError, match="horizon: expected a positive number"):
            forgetting(0.0)


class TestPrediction:
    @pytest.mark.long
    def test_on_a_quadratic_the_eps_that_prevents_crossings_is_the_one_measured(self):
        """The Hessian stays what it is there: at full forgetting the ratio is 0.01 x 100 / 38 / eps."""
        problem, after, steps = quadratic((1e-4, 100.0)), 400, 1500
        adam = Optimizer(optax.adam, learning_rate=1e-2, b1=0.9)
        axes = {"b2": [0.97, 0.98], "eps": [1e-8, 0.9 / 38, 1.1 / 38]}
        found = predict_late_spikes(problem, adam, axes, 2, steps, after=after)
        runs = ll.run(problem, adam, ll.Sweep(axes, [5, 6], steps, 3), ["loss", "preconditioned_mode"], progress=False)
        late = (runs["preconditioned_sharpness"] / runs["threshold"]).sel(step=slice(after, None))
        crosses = (late >= 1).any("step")
        for eps, expected in zip(axes["eps"], (1, 1, 0), strict=True):
            assert (crosses.sel(eps=eps) == expected).all()
            assert (found["crosses"].sel(eps=eps) == expected).all()
        np.testing.assert_allclose(found["epsilon_floor"], 1 / 38, rtol=1e-3)
        assert not found["bursts"].any()
        assert (found["probability"].sel(eps=1.1 / 38) == 0).all()
        assert (found["time"].sel(eps=1.1 / 38) == np.inf).all()

    def test_rounds_are_as_long_as_the_waits_and_seen_by_the_share_of_the_states(self):
        states = made_states(wait=[90.0, 90.0, 90.0, np.inf], rise_scale=[1, 1e-9, 1e-9, 1])
        found = predict_from_states(states, {"b1": 0.9}, 1000, 3000).isel(b2=0)
        half = float(found["round"]) / 2
        assert half == 90 + float(found["lag"])
        assert float(found["seen"]) == 0.25
        number = 1 + int((2000 - half) // (2 * half))
        assert float(found["probability"]) == pytest.approx(1 - 0.75**number)
        # 0.75^3 < 1/2 < 0.75^2.
        assert float(found["time"]) == pytest.approx(1000 + half + 2 * 2 * half)
        assert float(found["crosses"]) == 0.75
        calm = predict_from_states(made_states([np.inf] * 4, [1] * 4), {"b1": 0.9}, 1000, 3000).isel(b2=0)
        assert float(calm["probability"]) == 0
        assert float(calm["time"]) == np.inf
        short = predict_from_states(states, {"b1": 0.9}, 1000, 1080).isel(b2=0)
        assert float(short["probability"]) == 0

    def test_a_crossing_after_the_last_step_is_none(self):
        # From steps 700, 800, 900 and 1000: crossings at 1600, 1700, 1800 and 1900.
        for num_steps, share in ((1599, 0.0), (1600, 0.25), (1850, 0.75), (1900, 1.0)):
            found = predict_from_states(made_states([900.0] * 4, [1] * 4), {"b1": 0.9}, 1000, num_steps)
            assert float(found["crosses"][0]) == share

    @pytest.mark.parametrize("after", [60, 61, 1000, 2000, 8003])
    def test_states_lie_about_as_far_apart_as_records(self, after, monkeypatch):
        asked = []

        def stop(problem, optimizer, sweep, *rest, **options):
            asked.append(sweep.recorded_steps)
            raise StopIteration

        monkeypatch.setattr(late_prediction, "run", stop)
        with pytest.raises(StopIteration):
            predict_late_spikes(problem_named("line"), optax.adam, {"learning_rate": [1e-2]}, 1, 4 * after, after=after)
        gaps = np.diff(asked[0][-late_prediction.STATES :])
        assert gaps.min() >= gaps.max() / 2

    def test_states_above_the_threshold_do_not_count_unless_all_are(self):
        states = made_states(wait=[90.0, 0.0, 90.0, 90.0], rise_scale=[1] * 4, ratio=[0.9, 1.2, 0.9, 0.9])
        found = predict_from_states(states, {"b1": 0.9}, 1000, 3000).isel(b2=0)
        assert float(found["round"]) == 2 * (90 + float(found["lag"]))
        all_above = made_states(wait=[0.0] * 4, rise_scale=[1] * 4, ratio=[1.2] * 4)
        assert float(predict_from_states(all_above, {"b1": 0.9}, 1000, 3000)["round"][0]) < 60

    def test_bad_input_is_refused(self):
        problem, axes = problem_named("line"), {"learning_rate": [1e-2]}
        with pytest.raises(ValueError, match="after: expected a step"):
            predict_late_spikes(problem, optax.adam, axes, 1, 10, after=10)
        with pytest.raises(ValueError, match="expected an argument b1"):
            predict_late_spikes(problem, optax.sgd, axes, 1, 100)


def made_states(wait, rise_scale, ratio=(0.9,) * 4):
    """One setting, one seed, four states whose bursts raise the loss by far, or not at all."""
    dims = ("b2", "seed", "step")
    rate = 1e-2
    values = {
        "forgetting_wait": wait,
        "forgetting_slope": [5e-4] * 4,
        "forgetting_refill": 1e-3 / np.asarray(rise_scale, float),
        "preconditioned_sharpness": 38 / rate * np.asarray(ratio),
        "mode_energy": [1e-8] * 4,
        "loss": [1e-4] * 4,
    }
    found = xr.Dataset({name: (dims, np.asarray(array, float)[None, None]) for name, array in values.items()})
    return found.assign(threshold=38 / rate).assign_coords(
        learning_rate=rate, b2=[0.999], seed=[0], step=[700, 800, 900, 1000]
    )


def maps(probability, time, seeds=(0, 1)):
    dims = ("learning_rate", "b2")
    coordinates = {"learning_rate": [1e-3, 1e-2], "b2": [0.9, 0.99, 0.999], "seed": list(seeds)}
    values = {"probability": probability, "time": time, "price": np.ones((2, 3))}
    found = xr.Dataset({name: (dims, np.asarray(array, float)) for name, array in values.items()}, coordinates)
    blank = (("learning_rate", "b2", "seed"), np.zeros((2, 3, len(seeds))))
    return found.assign(first_spike=blank).assign_attrs(num_steps=1000, late_after="100", after=100)


def said(probability, time):
    one = maps(probability, time, (2, 3)).assign(epsilon_floor=(("learning_rate", "b2"), np.full((2, 3), 1e-3)))
    return one


class TestScores:
    measured = maps([[0, 0, 1], [0.4, 0.6, np.nan]], [[np.inf, np.inf, 500], [np.inf, 300, np.nan]])

    def test_shares_and_times_are_counted_over_settings(self):
        predicted = said([[0, 0.7, 1], [0, 1, 1]], [[np.inf, 200, 900], [np.inf, 200, 200]])
        scores = late_training_scores(self.measured, predicted)
        assert float(scores["right"]) == 0.8
        assert float(scores["always"]) == 0.6
        assert float(scores["found"]) == 1
        assert float(scores["false_alarms"]) == pytest.approx(1 / 3)
        assert float(scores["time_ratio_median"]) == pytest.approx((2 + 0.5) / 2)
        assert int(scores["num_times"]) == 2
        assert scores["right_side"].values.tolist() == [[1, 0, 1], [1, 1, -1]]

    def test_a_map_is_not_scored_by_its_own_seeds(self):
        predicted = said(np.zeros((2, 3)), np.full((2, 3), np.inf)).assign_coords(seed=[1, 2])
        with pytest.raises(ValueError, match="other seeds"):
            late_training_scores(self.measured, predicted)

    def test_the_figure_draws_the_boundary_between_cells_and_refuses_other_axes(self):
        predicted = said([[0, 0, 1], [0, 1, 1]], [[np.inf, np.inf, 900], [np.inf, 200, 200]])
        figure = late_training_figure(self.measured, predicted)
        (lines,) = figure.axes[0].collections[1:]
        # 0 0 1 over 0 1 1: one side between columns, two between rows.
        assert len(lines.get_segments()) == 3
        assert len(figure.axes) == 8
        with pytest.raises(ValueError, match="expected the axes learning_rate, b2 and eps"):
            late_training_figure(self.measured.rename(b2="b3"))
