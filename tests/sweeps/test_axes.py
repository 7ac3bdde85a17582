"""Axes beyond the grid of optimizer arguments: points, random search, precisions, schedules, label noise."""

import re
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossland as ll
from tests.cases import OPTIMIZERS, problem_named

FIELDS = {"seeds": 3, "num_steps": 12, "every": 4, "lane_width": 4}


class TestPoints:
    points: ClassVar = {"learning_rate": [0.01, 0.1, 0.01], "momentum": [0.0, 0.5, 0.9]}

    def test_points_are_taken_together_and_equal_the_grid(self):
        grid = ll.run(
            problem_named("cubic"), optax.sgd, ll.Sweep({k: sorted(set(v)) for k, v in self.points.items()}, **FIELDS)
        )
        runs = ll.run(problem_named("cubic"), optax.sgd, ll.Sweep({}, points=self.points, **FIELDS))
        assert runs["loss"].dims == ("point", "seed", "step")
        assert runs["threshold"].dims == ("point",)
        for point, (rate, momentum) in enumerate(zip(*self.points.values(), strict=True)):
            assert float(runs["learning_rate"][point]) == rate
            assert float(runs["momentum"][point]) == momentum
            one, other = runs.isel(point=point), grid.sel(learning_rate=rate, momentum=momentum)
            np.testing.assert_array_equal(one["loss"], other["loss"])
            np.testing.assert_allclose(one["threshold"], other["threshold"], rtol=1e-12)

    @pytest.mark.slow
    def test_points_cross_axes_and_come_back_from_disk(self, tmp_path):
        sweep = ll.Sweep({"scale": [0.5, 1.0]}, points=self.points, **FIELDS)
        runs = ll.run(problem_named("cubic"), optax.sgd, sweep, out=tmp_path)
        assert runs["loss"].dims == ("scale", "point", "seed", "step")
        again = ll.load(tmp_path)
        np.testing.assert_array_equal(again["loss"], runs["loss"])
        np.testing.assert_array_equal(again["momentum"], self.points["momentum"])

    def test_random_points(self):
        ranges = {"learning_rate": (1e-4, 1.0, "log"), "momentum": (0.0, 0.9)}
        sweep = ll.Sweep.random(ranges, 400, draw=3, seeds=1, num_steps=1, every=1)
        rates, momenta = sweep.points["learning_rate"], sweep.points["momentum"]
        assert sweep.num_runs == 400
        # Quartiles of log-uniform and uniform draws, within four standard errors of a proportion.
        error = 4 * np.sqrt(0.25 * 0.75 / 400)
        for share in (0.25, 0.5, 0.75):
            assert abs((rates < 1e-4 * 1e4**share).mean() - share) < error
            assert abs((momenta < 0.9 * share).mean() - share) < error
        shorter = ll.Sweep.random(ranges, 10, draw=3, seeds=1, num_steps=1, every=1)
        np.testing.assert_array_equal(shorter.points["momentum"], momenta[:10])
        alone = ll.Sweep.random({"momentum": (0.0, 0.9)}, 10, draw=3, seeds=1, num_steps=1, every=1)
        np.testing.assert_array_equal(alone.points["momentum"], momenta[:10])

    @pytest.mark.parametrize(
        ("points", "words"),
        [
            ({}, ["points", "dict"]),
            ({"learning_rate": [0.1], "momentum": [0.1, 0.2]}, ["equal length", "momentum"]),
            ({"scale": [1.0]}, ["scale", "axis as well"]),
            ({"learning_rate": [np.nan]}, ["learning_rate", "finite"]),
        ],
    )
    def test_bad_points_are_named(self, points, words):
        with pytest.raises(ValueError, match=r".") as error:
            ll.Sweep({"scale": [1.0]}, points=points)
        for word in words:
            assert word in str(error.value)

    @pytest.mark.parametrize("given", [(1.0, 0.1), (0.0, 1.0, "log"), (0.1, 1.0, "linear")])
    def test_bad_ranges_are_named(self, given):
        with pytest.raises(ValueError, match=r"ranges\['learning_rate'\].*low < high"):
            ll.Sweep.random({"learning_rate": given}, 3)


class TestPrecision:
    @pytest.mark.slow
    def test_each_precision_equals_its_own_sweep(self):
        together = ll.run(
            problem_named("cubic"),
            optax.sgd,
            ll.Sweep({"dtype": ["float32", "float64"], "learning_rate": [0.01, 0.1]}, **FIELDS),
            ["loss", "sharpness"],
        )
        assert together["loss"].dtype == np.float64
        for dtype in ("float32", "float64"):
            sweep = ll.Sweep({"learning_rate": [0.01, 0.1]}, dtype=dtype, **FIELDS)
            alone = ll.run(problem_named("cubic"), optax.sgd, sweep, ["loss", "sharpness"])
            for name in ("loss", "sharpness"):
                np.testing.assert_array_equal(together[name].sel(dtype=dtype), alone[name].astype(np.float64))

    @pytest.mark.long
    def test_bfloat16_parameters(self):
        sweep = ll.Sweep({"learning_rate": [0.05]}, dtype="bfloat16", seeds=4, num_steps=200, every=50)
        kinds = {}

        def kept(problem, optimizer, state):
            kinds["params"] = jax.tree.leaves(state.params)[0].dtype
            return jax.tree.leaves(state.params)[1]

        runs = ll.run(problem_named("cubic"), optax.sgd, sweep, ["loss", "sharpness", kept])
        single = ll.run(
            problem_named("cubic"), optax.sgd, ll.Sweep({"learning_rate": [0.05]}, 4, 200, 50), ["loss", "sharpness"]
        )
        assert runs.attrs["dtype"] == "bfloat16"
        assert kinds["params"] == jnp.float32, "probes see single precision"
        values = runs["kept"].values
        np.testing.assert_array_equal(values, values.astype(jnp.bfloat16).astype(np.float32))
        # Eight bits of mantissa: near single precision at the start, and it learns.
        np.testing.assert_allclose(runs["loss"].isel(step=0), single["loss"].isel(step=0), rtol=0.05)
        np.testing.assert_allclose(runs["sharpness"].isel(step=0), single["sharpness"].isel(step=0), rtol=0.05)
        assert (runs["loss"].isel(step=-1) < 0.8 * runs["loss"].isel(step=0)).all()

    @pytest.mark.parametrize(
        "name",
        [pytest.param(name, marks=pytest.mark.long) for name in ("momentum", "rmsprop")]
        + [pytest.param("adam", marks=pytest.mark.slow)],
    )
    def test_bfloat16_with_arguments_on_axes(self, name):
        factory, arguments = OPTIMIZERS[name]
        sweep = ll.Sweep({key: [value] for key, value in arguments.items()}, 2, 10, 5, "bfloat16", batch_size=8)
        runs = ll.run(problem_named("cubic"), factory, sweep)
        assert np.isfinite(runs["loss"]).all()

    def test_sums_over_an_epoch_have_more_bits_than_bfloat16(self):
        data = np.random.default_rng(0).normal(1.0, 1.0, (4000, 1))
        problem = ll.Problem(lambda key: jnp.ones(1), lambda p, batch: jnp.mean((batch * p) ** 2), data, name="long")
        ends = {}
        for dtype in ("float32", "bfloat16"):
            sweep = ll.Sweep({"learning_rate": [0.0]}, 1, 125, 125, dtype, batch_size=32)
            runs = ll.run(problem, optax.sgd, sweep, ["loss", "epoch_mean_loss"])
            ends[dtype] = runs["epoch_mean_loss"].values.ravel()[-1]
            assert runs["peak_loss"].values.ravel()[0] == runs["loss"].values.max()
        assert ends["bfloat16"] == pytest.approx(ends["float32"], rel=2**-8)

    def test_unknown_precisions_are_refused(self):
        with pytest.raises(ValueError, match="float32, float64, bfloat16"):
            ll.Sweep({"dtype": ["float16"]})


class TestSchedules:
    decay = ll.Schedule(optax.polynomial_schedule, power=1, transition_steps=8)
    optimizer = ll.Optimizer(optax.sgd, learning_rate=decay)

    @pytest.mark.slow
    def test_arguments_of_a_schedule_are_axes(self):
        axes = {"init_value": [0.01, 0.1], "end_value": [0.001, 0.1]}
        runs = ll.run(problem_named("cubic"), self.optimizer, ll.Sweep(axes, dtype="float64", **FIELDS))
        built = optax.sgd(optax.polynomial_schedule(0.1, 0.001, 1, 8))
        alone = ll.run(problem_named("cubic"), built, ll.Sweep({}, dtype="float64", **FIELDS))
        np.testing.assert_allclose(runs["loss"].sel(init_value=0.1, end_value=0.001), alone["loss"], rtol=1e-6)
        plain = ll.run(problem_named("cubic"), optax.sgd, ll.Sweep({"learning_rate": [0.1]}, dtype="float64", **FIELDS))
        constant = runs.sel(init_value=0.1, end_value=0.1)["loss"]
        np.testing.assert_allclose(constant, plain["loss"].sel(learning_rate=0.1), rtol=1e-6)

    @pytest.mark.parametrize(
        ("make", "axes", "words"),
        [
            (lambda: ll.Schedule(optax.exponential_decay, rate=1), {}, ["'rate'", "decay_rate"]),
            (lambda: ll.Schedule(3), {}, ["schedule", "int"]),
            (lambda: TestSchedules.optimizer, {"init_value": [0.1]}, ["needs end_value"]),
            (lambda: TestSchedules.optimizer, {"transition_steps": [3.0]}, ["both fixed", "transition_steps"]),
            (lambda: TestSchedules.optimizer, {"lr": [3.0]}, ["'lr'", "init_value"]),
        ],
    )
    def test_bad_schedules_are_named(self, make, axes, words):
        with pytest.raises(ValueError, match=r".") as error:
            ll.run(problem_named("cubic"), make(), ll.Sweep(axes, 1, 2, 1))
        for word in words:
            assert word in str(error.value)


class TestPlan:
    @pytest.mark.slow
    def test_forecast_of_a_sweep(self, tmp_path):
        sweep = ll.Sweep({"learning_rate": np.geomspace(1e-3, 0.1, 6)}, 8, 200, 50)
        found = ll.plan(problem_named("cubic"), optax.sgd, sweep, ["loss"], lane_widths=[2, 16])
        assert [candidate.lane_width for candidate in found.candidates] == [2, 16]
        assert found.sweep.lane_width in (2, 16)
        text = str(found)
        for word in ("lane width", "fastest", "time", "memory", "disk"):
            assert word in text
        ll.run(problem_named("cubic"), optax.sgd, found.sweep, ["loss"], out=tmp_path)
        tiles = list(tmp_path.glob("tile-*.npz"))
        assert len(tiles) == found.num_tiles
        written = sum(ll.load(tmp_path)[name].nbytes for name in ("loss", "peak_loss", "first_bad_step"))
        assert written <= found.bytes_on_disk
        assert found.bytes_in_memory > found.bytes_on_disk

    def test_a_sweep_with_its_own_lane_width_is_not_tuned(self):
        sweep = ll.Sweep({"learning_rate": [0.1]}, 2, 5, 5, lane_width=3)
        found = ll.plan(problem_named("cubic"), optax.sgd, sweep)
        assert [candidate.lane_width for candidate in found.candidates] == [3]

    @pytest.mark.long
    def test_a_sweep_that_does_not_fit_says_which_width_would(self, monkeypatch):
        sweep = ll.Sweep({"learning_rate": [0.1]}, 2, 5, 5, lane_width=512)
        needed = ll.plan(problem_named("cubic"), optax.sgd, sweep).candidates[0].bytes_per_worker
        monkeypatch.setattr("lossland.sweeps.planning._available", lambda job: needed / 10)
        with pytest.raises(ValueError, match=r"lane width 512 needs .* a lane width of \d+ would fit") as error:
            ll.plan(problem_named("cubic"), optax.sgd, sweep)
        width = int(re.search(r"width of (\d+) would", str(error.value))[1])
        fitting = ll.plan(problem_named("cubic"), optax.sgd, sweep.with_lane_width(width)).candidates[0]
        assert needed / 100 < fitting.bytes_per_worker <= needed / 10
        monkeypatch.setattr("lossland.sweeps.planning._available", lambda job: 100.0)
        with pytest.raises(ValueError, match=r"no lane width would fit \(1 needs"):
            ll.plan(problem_named("cubic"), optax.sgd, sweep)

    @pytest.mark.slow
    def test_every_program_counts(self, monkeypatch):
        """A sweep over precisions takes as long as each of them on its own runs, and as much memory as the widest."""

        def trial(program, runs, num_chunks, device, steps):
            return len(runs) * steps, steps * {"float32": 1.0, "float64": 3.0}[program.dtype]

        monkeypatch.setattr("lossland.sweeps.programs.GroupProgram.trial", trial)
        monkeypatch.setattr("lossland.sweeps.planning._workers", lambda plan: list(plan.devices[:1]))
        monkeypatch.setattr("lossland.sweeps.plan._num_cores", lambda: 1)

        def candidate(dtypes):
            sweep = ll.Sweep({"learning_rate": [0.1], "dtype": dtypes}, 32, 5, 5, lane_width=4)  # full tiles
            return ll.plan(problem_named("cubic"), optax.sgd, sweep).candidates[0]

        single, double, both = (candidate(names) for names in (["float32"], ["float64"], ["float32", "float64"]))
        assert (single.run_steps_per_second, double.run_steps_per_second) == (16.0, 16 / 3)
        assert both.run_steps_per_second == pytest.approx(32 / (1 + 3))
        assert both.bytes_per_worker == double.bytes_per_worker > single.bytes_per_worker


def test_label_noise_is_an_axis():
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(300, 2)), rng.integers(0, 3, 300)
    clean = ll.Problem(
        lambda key: jnp.zeros((2, 3)),
        lambda params, batch: jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(batch[0] @ params + 5 * jax.nn.one_hot(labels, 3), batch[1])
        ),
        (inputs, labels),
    )
    noisy = ll.problems.with_label_noise(clean, num_classes=3)
    assert set(noisy.arguments) == {"label_noise"}
    params = jnp.zeros((2, 3))
    assert float(noisy.objective(params)) == pytest.approx(float(clean.objective(params)), rel=1e-6)
    runs = ll.run(noisy, optax.sgd, ll.Sweep({"label_noise": [0.0, 0.3, 1.0], "learning_rate": [0.0]}, 1, 1, 1))
    right, wrong = np.log(1 + 2 * np.exp(-5)), np.log(np.exp(5) + 2)
    # A noisy label is drawn from all classes: two times in three it is wrong.
    for level in (0.0, 0.3, 1.0):
        share = 2 * level / 3
        expected = (1 - share) * right + share * wrong
        error = 4 * (wrong - right) * np.sqrt(max(share * (1 - share), 1e-12) / 300)
        assert abs(runs["loss"].sel(label_noise=level).isel(step=0).item() - expected) < error + 1e-5
    assert (runs["loss"].isel(step=0).diff("label_noise") > 0).all()
    with pytest.raises(ValueError, match="num_classes"):
        ll.problems.with_label_noise(clean, num_classes=2)
