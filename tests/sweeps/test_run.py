"""The engine: what it records, that bits depend on the lane width alone, and that nothing finished is lost."""

import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

import lossland as ll
from tests.cases import OPTIMIZERS, problem_named

RATES = np.geomspace(1e-3, 3, 12)


def bits(dataset: xr.Dataset) -> dict[str, np.ndarray]:
    return {str(name): np.asarray(values) for name, values in dataset.data_vars.items()}


def assert_same_bits(one: xr.Dataset, other: xr.Dataset) -> None:
    assert set(one.data_vars) == set(other.data_vars)
    for name, values in bits(one).items():
        assert values.dtype == bits(other)[name].dtype, name
        np.testing.assert_array_equal(values, bits(other)[name], err_msg=name)  # NaN equals NaN; no tolerance


@pytest.fixture(scope="module")
def runs():
    sweep = ll.Sweep({"learning_rate": RATES, "momentum": [0.0, 0.5]}, seeds=[0, 1, 5], num_steps=60, every=7)
    return ll.run(problem_named("cubic"), optax.sgd, sweep, probes=["loss", "gradient_norm", "sharpness"])


class TestRecords:
    def test_dims_and_coordinates(self, runs):
        assert runs["loss"].dims == ("learning_rate", "momentum", "seed", "step")
        assert runs["status"].dims == ("learning_rate", "momentum", "seed")
        assert runs["threshold"].dims == ("learning_rate", "momentum")
        np.testing.assert_array_equal(runs["learning_rate"], RATES)
        assert runs["seed"].values.tolist() == [0, 1, 5]
        assert runs["step"].values.tolist() == [0, 7, 14, 21, 28, 35, 42, 49, 56, 60]

    def test_every_variable_says_what_it_is(self, runs):
        for name, values in {**runs.data_vars, **runs.coords}.items():
            assert values.attrs.get("units"), name
            assert len(values.attrs.get("description", "")) > 5, name
        for name in (
            "problem",
            "optimizer",
            "sweep",
            "lane_width",
            "dtype",
            "matmul_precision",
            "jax_version",
            "platform",
        ):
            assert runs.attrs[name], name

    def test_status_codes_are_named(self, runs):
        names = runs["status"].attrs["flag_meanings"].split()
        codes = runs["status"].attrs["flag_values"]
        assert dict(zip(names, codes, strict=True)) == {outcome.name: int(outcome) for outcome in ll.Outcome}
        assert set(np.unique(runs["status"])) <= set(codes)

    def test_threshold_is_that_of_heavy_ball(self, runs):
        expected = 2 * (1 + runs["momentum"]) / runs["learning_rate"]
        xr.testing.assert_allclose(runs["threshold"], expected.transpose(*runs["threshold"].dims), rtol=1e-9)
        np.testing.assert_allclose(runs["relative_sharpness"], runs["sharpness"] / runs["threshold"], rtol=1e-6)

    def test_a_seed_means_the_same_start_everywhere(self, runs):
        first = runs["loss"].isel(step=0)
        assert (first == first.isel(learning_rate=0, momentum=0)).all()
        assert len(np.unique(first.isel(learning_rate=0, momentum=0))) == 3

    def test_records_equal_a_plain_loop(self, runs):
        problem = problem_named("cubic")
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 5), 0)
        params = problem.init(key)
        losses = []
        for _ in range(15):
            losses.append(float(problem.objective(params)))
            gradient = jax.grad(problem.objective)(params)
            params = jax.tree.map(lambda p, g: p - np.float32(RATES[6]) * g, params, gradient)
        run = runs.isel(learning_rate=6).sel(momentum=0.0, seed=5)
        np.testing.assert_allclose(run["loss"].sel(step=[0, 7, 14]), np.array(losses)[[0, 7, 14]], rtol=2e-5)
        np.testing.assert_allclose(
            run["gradient_norm"].sel(step=14), optax.tree.norm(jax.grad(problem.objective)(params)), rtol=1e-1
        )

    def test_figures_over_every_step(self):
        sweep = ll.Sweep({"learning_rate": RATES}, seeds=3, num_steps=40, every=1)
        runs = ll.run(problem_named("cubic"), optax.sgd, sweep)
        for index in np.ndindex(runs["status"].shape):
            losses = runs["loss"].values[index]
            bad = np.flatnonzero(~np.isfinite(losses))
            assert runs["first_bad_step"].values[index] == (bad[0] if bad.size else -1)
            alive = losses[: bad[0]] if bad.size else losses
            assert runs["peak_loss"].values[index] == alive.max()
            before, after = losses[:-1][: len(alive)], losses[1:][: len(alive)]
            rounding = 8 * np.finfo(np.float32).eps * (np.abs(before) + np.abs(losses[0]))
            rises = np.flatnonzero(~(after <= before + rounding))
            assert runs["num_rises"].values[index] == rises.size
            assert runs["first_rise_step"].values[index] == (rises[0] + 1 if rises.size else -1)
        assert (runs["status"] == ll.Outcome.diverged).any()
        assert (runs["first_rise_step"] < 0).any()

    def test_a_diverged_run_is_frozen_at_its_first_bad_step(self):
        sweep = ll.Sweep({"learning_rate": [1.0]}, seeds=3, num_steps=60, every=1)
        runs = ll.run(problem_named("line"), optax.sgd, sweep)
        assert (runs["status"] == ll.Outcome.diverged).all()
        for seed in runs["seed"].values:
            losses, bad = runs["loss"].sel(seed=seed).values[0], runs["first_bad_step"].sel(seed=seed).item()
            assert 0 < bad < 60
            assert np.isfinite(losses[:bad]).all()
            assert np.isposinf(losses[bad])
            assert np.isnan(losses[bad + 1 :]).all()
        thawed = ll.run(problem_named("line"), optax.sgd, ll.Sweep({"learning_rate": [1.0]}, 3, 60, 1, freeze=False))
        np.testing.assert_array_equal(thawed["first_bad_step"], runs["first_bad_step"])
        assert np.isposinf(thawed["loss"]).sum() > np.isposinf(runs["loss"]).sum()

    def test_problem_arguments_are_axes(self):
        problem = problem_named("cubic")
        sweep = ll.Sweep({"scale": [0.5, 1.0, 2.0], "learning_rate": [0.01]}, seeds=2, num_steps=3, every=3)
        runs = ll.run(problem, optax.sgd, sweep)
        assert runs["loss"].dims == ("scale", "learning_rate", "seed", "step")
        assert len(np.unique(runs["loss"].isel(step=0))) == 6
        alone = ll.run(problem.with_arguments(scale=2.0), optax.sgd, ll.Sweep({"learning_rate": [0.01]}, 2, 3, 3))
        np.testing.assert_allclose(alone["loss"], runs["loss"].sel(scale=2.0), rtol=1e-6)

    def test_no_axes_and_a_finished_transformation(self):
        runs = ll.run(problem_named("line"), optax.sgd(1e-3), ll.Sweep({}, seeds=2, num_steps=5, every=5))
        assert runs["loss"].dims == ("seed", "step")
        assert runs["threshold"].dims == ()
        assert float(runs["threshold"]) == pytest.approx(2000, rel=1e-9)


class TestProbes:
    def test_user_probe_returning_a_dict_and_a_vector(self):
        def layers(problem, optimizer, state):
            """Norm of every layer."""
            norms = jnp.stack([jnp.linalg.norm(layer["w"]) for layer in state.params])
            return {"layer_norms": norms, "objective_again": problem.objective(state.params)}

        sweep = ll.Sweep({"learning_rate": [0.01, 0.1]}, seeds=2, num_steps=4, every=2)
        runs = ll.run(problem_named("cubic"), optax.adam, sweep, probes=["loss", layers])
        assert runs["layer_norms"].dims == ("learning_rate", "seed", "step", "layer_norms_axis_0")
        assert runs["layer_norms"].sizes["layer_norms_axis_0"] == 3
        np.testing.assert_allclose(runs["objective_again"], runs["loss"], rtol=1e-5)

    def test_user_probe_sees_bound_optimizer(self):
        def step_length(problem, optimizer, state):
            updates, _ = optimizer.update(state.gradient, state.opt_state, state.params)
            return optax.tree.norm(updates) / optax.tree.norm(state.gradient)

        sweep = ll.Sweep({"learning_rate": [0.01, 0.1]}, seeds=2, num_steps=2, every=1)
        runs = ll.run(problem_named("cubic"), optax.sgd, sweep, probes=[step_length])
        np.testing.assert_allclose(runs["step_length"], np.broadcast_to([[[0.01]], [[0.1]]], (2, 2, 3)), rtol=1e-5)

    @pytest.mark.parametrize("name", ["peak_loss", "status", "seed", "learning_rate"])
    def test_records_that_every_result_has_are_refused(self, name, compilations):
        probe = ll.Probe(name, lambda problem, optimizer, state: state.loss)
        with pytest.raises(ValueError, match=name):
            ll.run(problem_named("line"), optax.sgd, ll.Sweep({"learning_rate": [0.1]}, 1, 2, 1), [probe])
        assert not compilations

    def test_fixed_arguments_without_a_hash(self):
        optimizer = ll.Optimizer(optax.adamw, learning_rate=np.float32(0.01), mask={"w": True, "b": False})
        runs = ll.run(problem_named("line"), optimizer, ll.Sweep({"weight_decay": [0.0, 0.1]}, 1, 2, 1))
        assert len(np.unique(runs["loss"].isel(step=-1))) == 2

    @pytest.mark.parametrize(
        ("probes", "words"),
        [
            ("loss", ["list", "probes=["]),
            (["los"], ["'los'", "loss", "sharpness"]),
            ([lambda problem, optimizer, state: 0.0], ["lambda", "ll.Probe"]),
            ([abs], ["(problem, optimizer, state)"]),
            (["loss", "loss"], ["distinct", "loss"]),
            ([3], ["name or a function", "int"]),
        ],
    )
    def test_bad_probes_are_named(self, probes, words, compilations):
        with pytest.raises(ValueError, match=r".") as error:
            ll.run(problem_named("line"), optax.sgd, ll.Sweep({"learning_rate": [0.1]}, 1, 2, 1), probes=probes)
        for word in words:
            assert word in str(error.value)
        assert not compilations


class TestBits:
    """One run's bits depend on the lane width and on nothing else that a user may change."""

    PROBES = ("loss", "gradient_norm", "sharpness")

    def run(self, width, rates=RATES, seeds=(0, 1, 2, 3, 4), name="cubic", probes=PROBES, **options):
        sweep = ll.Sweep({"learning_rate": rates}, seeds, num_steps=50, every=10, lane_width=width)
        return ll.run(problem_named(name), optax.sgd, sweep, probes=probes, **options)

    @pytest.mark.parametrize("width", [1, 4, pytest.param(16, marks=pytest.mark.long)])
    def test_permuting_extending_and_taking_apart(self, width):
        whole = self.run(width)
        assert (whole["status"] == ll.Outcome.diverged).any()  # NaN-producing neighbours are part of the grid
        permuted = self.run(width, rates=RATES[::-1], seeds=(3, 1, 0, 4, 2))
        assert_same_bits(permuted.sel(seed=[0, 1, 2, 3, 4]).isel(learning_rate=slice(None, None, -1)), whole)
        extended = self.run(width, rates=np.append(RATES, [0.017, 5.0]), seeds=range(9))
        assert_same_bits(extended.sel(learning_rate=RATES, seed=[0, 1, 2, 3, 4]), whole)
        alone = self.run(width, rates=RATES[7:8], seeds=[3])
        assert_same_bits(alone, whole.isel(learning_rate=[7]).sel(seed=[3]))

    @pytest.mark.parametrize("width", [1, 16])
    def test_neighbours_that_produce_nan(self, width):
        calm = self.run(width, rates=[0.01, 0.02], seeds=range(4))
        wild = self.run(width, rates=[0.01, 1e3, 0.02, 1e30], seeds=range(4))
        assert (wild["status"].sel(learning_rate=[1e3, 1e30]) == ll.Outcome.diverged).all()
        assert_same_bits(wild.sel(learning_rate=[0.01, 0.02]), calm)

    @pytest.mark.parametrize("width", [1, pytest.param(16, marks=pytest.mark.long)])
    def test_extra_probes(self, width):
        def mine(problem, optimizer, state):
            return jnp.vdot(state.gradient[0]["w"], state.params[0]["w"])

        few, many = self.run(width, probes=["loss"]), self.run(width, probes=[*self.PROBES, mine])
        assert_same_bits(many[list(few.data_vars)], few)

    def test_lane_width_is_recorded_and_chosen_from_the_problem_alone(self):
        sweeps = [ll.Sweep({"learning_rate": RATES[:n]}, n, 2, 1) for n in (1, 5)]
        few, many = (ll.run(problem_named("cubic"), optax.sgd, sweep) for sweep in sweeps)
        assert few.attrs["lane_width"] == many.attrs["lane_width"]

    def test_float64_starts_where_float32_does(self):
        sweep = {"axes": {"learning_rate": [0.01]}, "seeds": 3, "num_steps": 10, "every": 10}
        single = ll.run(problem_named("cubic"), optax.sgd, ll.Sweep(**sweep))
        double = ll.run(problem_named("cubic"), optax.sgd, ll.Sweep(**sweep, dtype="float64"))
        assert double["loss"].dtype == np.float64
        assert jnp.zeros(1).dtype == np.float32  # nothing global was touched
        np.testing.assert_allclose(single["loss"], double["loss"], rtol=1e-5)


class TestCompilation:
    def test_one_program_for_a_thousand_learning_rates(self, compilations):
        problem = ll.Problem(problem_named("line").init, problem_named("line").loss, problem_named("line").data)

        def count(rates):
            before = len(compilations)
            ll.run(problem, optax.sgd, ll.Sweep({"learning_rate": rates}, seeds=2, num_steps=5, every=5))
            return len(compilations) - before

        ten = count(np.geomspace(1e-4, 1e-2, 10))
        assert ten >= 1
        assert count(np.geomspace(1e-5, 1e-3, 1000)) == 0

    def test_a_first_sweep_compiles_as_often_for_a_thousand_rates_as_for_ten(self, compilations):
        counts = []
        for rates in (np.geomspace(1e-4, 1e-2, 10), np.geomspace(1e-4, 1e-2, 1000)):
            problem = ll.Problem(problem_named("line").init, problem_named("line").loss, problem_named("line").data)
            before = len(compilations)
            ll.run(problem, optax.sgd, ll.Sweep({"learning_rate": rates}, seeds=2, num_steps=5, every=5))
            counts.append(len(compilations) - before)
        assert counts[0] == counts[1]
        assert counts[0] <= 4, "starting points, first evaluation, training, threshold: one program each"


class TestOracle:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_trajectories_equal_a_numpy_float64_oracle(self, name):
        from tests.oracles import numpy_trajectory

        factory, arguments = OPTIMIZERS[name]
        problem = problem_named("cubic")
        axes = {key: [value] for key, value in arguments.items()}
        sweep = ll.Sweep(axes, seeds=2, num_steps=100, every=20, dtype="float64")
        runs = ll.run(problem, factory, sweep)
        for seed in range(2):
            expected = numpy_trajectory(problem, name, arguments, seed, 100)
            np.testing.assert_allclose(runs["loss"].sel(seed=seed).values.ravel(), expected[::20], rtol=1e-12)


class TestInput:
    @pytest.mark.parametrize(
        ("factory", "axes", "words"),
        [
            (optax.sgd, {"lr": [0.1]}, ["'lr'", "learning_rate", "momentum", "scale"]),
            (optax.sgd, {"momentum": [0.1]}, ["needs learning_rate"]),
            (optax.adam, {"learning_rate": [0.1], "momentum": [0.9]}, ["'momentum'", "b1"]),
            (ll.Optimizer(optax.sgd, learning_rate=0.1), {"learning_rate": [0.1]}, ["both fixed", "learning_rate"]),
            (optax.warmup_constant_schedule, {"learning_rate": [0.1]}, ["'learning_rate'"]),
            (3, {"learning_rate": [0.1]}, ["optimizer", "factory", "got 3"]),
        ],
    )
    def test_bad_optimizers_are_named(self, factory, axes, words, compilations):
        with pytest.raises(ValueError, match=r".") as error:
            ll.run(problem_named("line"), factory, ll.Sweep(axes, 1, 2, 1))
        for word in words:
            assert word in str(error.value)
        assert not compilations

    def test_problem_and_sweep_are_checked(self):
        with pytest.raises(ValueError, match=r"problem: expected an ll\.Problem, got 3"):
            ll.run(3, optax.sgd, ll.Sweep({"learning_rate": [0.1]}))  # pyright: ignore
        with pytest.raises(ValueError, match=r"sweep: expected an ll\.Sweep, got "):
            ll.run(problem_named("line"), optax.sgd, {"learning_rate": [0.1]})  # pyright: ignore

    def test_data_that_overflow_the_precision(self):
        problem = ll.Problem(lambda key: jnp.zeros(1), lambda p, b: jnp.mean(b * p), np.array([1.0, 1e300]))
        with pytest.raises(ValueError, match="overflow float32"):
            ll.run(problem, optax.sgd, ll.Sweep({"learning_rate": [0.1]}, 1, 2, 1))

    def test_integers_that_would_wrap_around(self):
        problem = ll.Problem(lambda key: jnp.zeros(1), lambda p, b: jnp.mean(b * p), np.array([1, 2**33]))
        with pytest.raises(ValueError, match=r"data: integers up to 8589934592 do not fit into int32"):
            ll.run(problem, optax.sgd, ll.Sweep({"learning_rate": [0.1]}, 1, 2, 1))

    @pytest.mark.parametrize(
        ("name", "factory"),
        [
            ("status", lambda learning_rate, status: optax.sgd(learning_rate * status)),
            ("threshold", lambda learning_rate, threshold: optax.sgd(learning_rate * threshold)),
            ("num_rises", lambda learning_rate, num_rises: optax.sgd(learning_rate * num_rises)),
        ],
    )
    def test_an_argument_named_as_a_result_is_refused(self, name, factory):
        axes = {"learning_rate": [0.1], name: [0.5]}
        with pytest.raises(ValueError, match=f"axes: '{name}' is a name that every result has"):
            ll.run(problem_named("line"), factory, ll.Sweep(axes, 1, 2, 1))

    def test_more_runs_than_a_machine_holds(self):
        axes = {name: np.linspace(0.1, 0.9, 2000) for name in ("learning_rate", "b1", "b2")}
        with pytest.raises(ValueError, match="axes: 8000000000 runs are more than"):
            ll.Sweep(axes, 1, 2, 1)


SMALL = {"axes": {"learning_rate": RATES}, "seeds": 5, "num_steps": 20, "every": 5, "lane_width": 4}


class TestDisk:
    def run(self, out, **options):
        return ll.run(problem_named("cubic"), optax.sgd, ll.Sweep(**{**SMALL, **options}), ["loss", "sharpness"], out)

    @pytest.mark.slow
    def test_load_brings_back_the_dataset(self, tmp_path):
        runs = self.run(tmp_path / "runs")
        loaded = ll.load(tmp_path / "runs")
        xr.testing.assert_identical(loaded, runs)
        assert len(list((tmp_path / "runs").glob("tile-*.npz"))) > 1
        assert json.loads((tmp_path / "runs" / "manifest.json").read_text())["format"] == 2

    def test_what_is_missing_is_computed_again_with_the_same_bits(self, tmp_path):
        runs = self.run(tmp_path)
        tiles = sorted(tmp_path.glob("tile-*.npz"))
        untouched = tiles[0].stat().st_mtime_ns
        for tile in tiles[1::2]:
            tile.unlink()
        partial = ll.load(tmp_path)
        assert 0 < (partial["status"] == ll.Outcome.not_run).sum() < partial["status"].size
        assert np.isnan(partial["loss"].where(partial["status"] == ll.Outcome.not_run)).all()
        xr.testing.assert_equal(self.run(tmp_path), runs)
        assert tiles[0].stat().st_mtime_ns == untouched

    def test_a_stopped_sweep_keeps_what_was_finished(self, tmp_path):
        class Stop(Exception):
            pass

        def stop(done, diverged, total):
            if done >= total // 3:
                raise Stop

        sweep = ll.Sweep(**SMALL)
        with pytest.raises(Stop):
            ll.run(problem_named("cubic"), optax.sgd, sweep, ["loss"], tmp_path, progress=stop)
        partial = ll.load(tmp_path)
        assert (partial["status"] != ll.Outcome.not_run).any()
        whole = ll.run(problem_named("cubic"), optax.sgd, sweep, ["loss"], tmp_path)
        kept = (partial["status"] != ll.Outcome.not_run).values
        np.testing.assert_array_equal(whole["loss"].values[kept], partial["loss"].values[kept])
        xr.testing.assert_equal(whole, ll.run(problem_named("cubic"), optax.sgd, sweep, ["loss"]))

    def test_another_sweep_is_refused_and_nothing_is_overwritten(self, tmp_path):
        self.run(tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(ValueError, match="holds another sweep"):
            self.run(tmp_path, num_steps=25)
        with pytest.raises(ValueError, match="problem"):
            ll.run(problem_named("line"), optax.sgd, ll.Sweep(**SMALL), ["loss", "sharpness"], tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_another_optimizer_of_the_same_name_is_refused(self, tmp_path):
        def make(factor):
            def mine(learning_rate):
                return optax.chain(optax.scale(factor), optax.sgd(learning_rate))

            return mine

        ll.run(problem_named("cubic"), make(1.0), ll.Sweep(**SMALL), ["loss"], tmp_path)
        with pytest.raises(ValueError, match="optimizer_program"):
            ll.run(problem_named("cubic"), make(0.5), ll.Sweep(**SMALL), ["loss"], tmp_path)

    def test_an_edited_probe_of_the_same_name_is_refused(self, tmp_path):
        def make(power):
            def mine(problem, optimizer, state):
                return state.loss**power

            return mine

        ll.run(problem_named("cubic"), optax.sgd, ll.Sweep(**SMALL), [make(1)], tmp_path)
        with pytest.raises(ValueError, match="probes_program"):
            ll.run(problem_named("cubic"), optax.sgd, ll.Sweep(**SMALL), [make(2)], tmp_path)

    @pytest.mark.slow
    def test_arrays_that_a_probe_or_an_optimizer_has_closed_over_count(self, tmp_path):
        def probe_of(values):
            def mine(problem, optimizer, state):
                return jax.jit(lambda loss: jnp.sum(loss * values))(state.loss)

            return mine

        def optimizer_of(values):
            def mine(learning_rate):
                scaled = optax.stateless(lambda updates, params: jax.tree.map(lambda leaf: leaf * values[0], updates))
                return optax.chain(scaled, optax.sgd(learning_rate))

            return mine

        for make in (np.asarray, jnp.asarray):
            place = tmp_path / make.__module__
            ll.run(problem_named("cubic"), optax.sgd, ll.Sweep(**SMALL), [probe_of(make([1.0, 2.0]))], place)
            with pytest.raises(ValueError, match="probes_program"):
                ll.run(problem_named("cubic"), optax.sgd, ll.Sweep(**SMALL), [probe_of(make([3.0, 9.0]))], place)
        first, other = (ll.Optimizer(optimizer_of(jnp.asarray([factor]))) for factor in (1.0, 0.5))
        ll.run(problem_named("cubic"), first, ll.Sweep(**SMALL), ["loss"], tmp_path / "optimizer")
        with pytest.raises(ValueError, match="optimizer_program"):
            ll.run(problem_named("cubic"), other, ll.Sweep(**SMALL), ["loss"], tmp_path / "optimizer")

    def test_a_folder_with_other_things_is_refused(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("precious")
        with pytest.raises(ValueError, match="not empty"):
            self.run(tmp_path)
        with pytest.raises(ValueError, match="no lossland sweep"):
            ll.load(tmp_path)

    @pytest.mark.parametrize("damage", ["truncate", "flip", "swap"])
    def test_a_damaged_tile_is_named(self, tmp_path, damage):
        self.run(tmp_path)
        tiles = sorted(tmp_path.glob("tile-*.npz"))
        content = bytearray(tiles[0].read_bytes())
        if damage == "truncate":
            tiles[0].write_bytes(content[: len(content) // 2])
        elif damage == "flip":
            content[len(content) // 3] ^= 0x10
            tiles[0].write_bytes(content)
        else:
            tiles[0].write_bytes(tiles[1].read_bytes())
        loaded = ll.load(tmp_path)  # lazy: what is wrong is said when a tile is read
        with pytest.raises(ValueError, match=r"tile-000000\.npz"):
            loaded.load()
        with pytest.raises(ValueError, match=r"tile-000000\.npz"):
            ll.load(tmp_path, lazy=False)

    def test_an_error_in_the_callback_leaves_nothing_running(self):
        def fail(*told):
            raise RuntimeError("mine")

        with pytest.raises(RuntimeError, match="mine") as kept:
            ll.run(problem_named("cubic"), optax.sgd, ll.Sweep(**SMALL), progress=fail)
        assert kept.traceback  # a traceback holds the frames alive, as in a notebook
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("lossland")]

    def test_progress_callback_counts_runs(self):
        seen = []
        runs = self.run(None)
        ll.run(
            problem_named("cubic"),
            optax.sgd,
            ll.Sweep(**SMALL),
            progress=lambda done, diverged, total: seen.append((done, diverged, total)),
        )
        assert seen[-1] == (60, int((runs["status"] == ll.Outcome.diverged).sum()), 60)
        assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
