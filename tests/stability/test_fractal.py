"""Box counting against sets of known dimension; zooms; the published rule of convergence."""

import numpy as np
import optax
import pytest
import xarray as xr

import lossland as ll
from lossland.problems.trainability import cosine_quadratic, mean_field_network
from lossland.stability.boundaries import Axis, Plane, boundary_cells
from lossland.stability.fractal import (
    boundary_dimension,
    box_counts,
    box_dimension,
    dimension_dependence,
    local_dimensions,
    richest,
    typical,
    zoom,
)
from lossland.stability.trainability import drift, not_converged, per_layer_sgd, tail_loss, track_tail_loss
from tests.stability.test_boundaries import mandelbrot

SIDE = 512


def line():
    cells = np.zeros((SIDE, SIDE), bool)
    cells[100] = True
    return cells


def sierpinski():
    rows, columns = np.indices((SIDE, SIDE))
    return (rows & columns) == 0


def cantor_dust():
    places = np.arange(4**5)
    kept = np.all([(places // 4**k) % 4 % 3 == 0 for k in range(5)], axis=0)  # the outer two of four quarters
    return kept[:, None] & kept


class TestDimension:
    @pytest.mark.parametrize(
        ("cells", "dimension"),
        [
            (line(), 1.0),
            (np.ones((SIDE, SIDE), bool), 2.0),
            (sierpinski(), np.log2(3)),
            (cantor_dust(), 1.0),
            (np.eye(SIDE, dtype=bool), 1.0),
        ],
    )
    def test_of_exact_fractals(self, cells, dimension):
        assert box_dimension(cells) == pytest.approx(dimension, abs=0.05)

    def test_of_self_similar_sets_at_powers_of_two_is_exact(self):
        np.testing.assert_allclose(local_dimensions(sierpinski()), np.log2(3))

    def test_counts_do_not_grow_where_the_grid_lies_badly(self):
        block = np.zeros((64, 64), bool)
        block[3:7, 3:7] = True
        sizes, counts = box_counts(block)
        assert dict(zip(sizes.tolist(), counts.tolist(), strict=True))[4] == 1

    def test_of_a_set_on_a_line(self):
        cells = np.zeros(4**6, bool)
        places = np.arange(4**6)
        cells[np.all([(places // 4**k) % 4 % 3 == 0 for k in range(6)], axis=0)] = True
        assert box_dimension(cells) == pytest.approx(0.5, abs=0.05)

    def test_of_nothing_is_unknown(self):
        assert np.isnan(box_dimension(np.zeros((64, 64), bool)))

    def test_interval_over_seeds_and_maps_without_a_boundary(self):
        _, columns = np.indices((129, 129))
        straight = [columns > 30 + 5 * seed for seed in range(4)]
        flags = xr.DataArray(np.array([*straight, np.zeros((129, 129), bool)]), dims=("seed", "y", "x"))
        found = boundary_dimension(flags.assign_coords(seed=range(5)))
        assert found["dimension"].isnull().values.tolist() == [False] * 4 + [True]
        assert float(found["mean"]) == pytest.approx(1)
        assert found["low"] <= found["mean"] <= found["high"]

    def test_dependence_changes_one_setting_at_a_time(self):
        asked = []

        def measure(resolution, slope):
            asked.append((resolution, slope))
            rows, columns = np.indices((resolution, resolution))
            maps = np.array([columns > slope * rows + shift for shift in (3, 5, 7)])
            return xr.DataArray(maps, dims=("seed", "y", "x"), coords={"seed": range(3)})

        found = dimension_dependence(measure, {"resolution": 65, "slope": 0.5}, {"resolution": [129], "slope": [0, 1]})
        assert asked == [(65, 0.5), (129, 0.5), (65, 0), (65, 1)]
        assert found["setting"].values.tolist() == ["reference", "resolution", "slope", "slope"]
        np.testing.assert_allclose(found["difference"][0], 0)
        expected = (found["dimension"] - found["dimension"][0]).mean("seed")
        np.testing.assert_allclose(found["difference"], expected)
        with pytest.raises(ValueError, match="steps"):
            dimension_dependence(measure, {"resolution": 65}, {"steps": [1]})


class TestZoom:
    def draw(self, plane, resolution=64):
        y, x = np.meshgrid(plane.y.values(resolution), plane.x.values(resolution), indexing="ij")
        return xr.Dataset(
            {"diverges": (("seed", "y", "x"), mandelbrot(y, x)[None])},
            {"seed": [0], "y": y[:, 0], "x": x[0]},
        )

    def test_frames_shrink_around_a_point_of_the_boundary(self):
        plane = Plane(Axis("x", 0, 1, log=False), Axis("y", 0, 1, log=False))
        frames = list(zoom(self.draw, plane, 4, 2.0))
        widths = [plane.x.high - plane.x.low for plane, _ in frames]
        np.testing.assert_allclose(widths, [1, 0.5, 0.25, 0.125])
        for _, found in frames:
            cells = boundary_cells(found["diverges"].values[0])
            assert cells[28:36, 28:36].any() or found is frames[0][1]

    def test_typical_cells_are_drawn_evenly_and_the_richest_is_the_densest(self):
        cells = np.zeros((64, 64), bool)
        cells[5, :40] = True
        cells[40:48, 40:48] = True
        choose = typical(np.random.default_rng(0))
        rows = np.array([choose(cells)[0] for _ in range(2000)])
        share = 40 / 104
        assert abs((rows == 5).mean() - share) < 4 * np.sqrt(share * (1 - share) / 2000)
        row, column = richest(cells)
        assert (row, column) in {(i, j) for i in range(40, 48) for j in range(40, 48)}

    @pytest.mark.parametrize(("frames", "factor", "name"), [(0, 2.0, "num_frames"), (3, 1.0, "factor")])
    def test_bad_input_is_named(self, frames, factor, name):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            next(zoom(self.draw, Plane(Axis("x", 1, 2), Axis("y", 1, 2)), frames, factor))


class TestTrainability:
    def test_tail_loss_is_the_mean_of_the_last_recorded_losses(self):
        steps = 60
        optimizer = optax.chain(track_tail_loss(steps, last=20), optax.sgd(3.0))
        sweep = ll.Sweep({"offset": [0.0, 1.0, 30.0]}, 2, steps, 1, dtype="float64")
        runs = ll.run(mean_field_network(4), optimizer, sweep, ["loss", tail_loss], progress=False)
        losses = (runs["loss"] / runs["loss"].isel(step=0)).isel(step=slice(-21, -1))
        np.testing.assert_allclose(runs["tail_loss"].isel(step=-1), losses.mean("step"), rtol=1e-12)

    def test_runs_that_overflow_or_end_high_do_not_converge(self):
        def optimizer(learning_rate):
            return optax.chain(track_tail_loss(100), optax.sgd(learning_rate))

        sweep = ll.Sweep({"learning_rate": [0.1, 3.0, 1e4]}, 1, 100, 100, dtype="float64")
        runs = ll.run(mean_field_network(4, "identity"), optimizer, sweep, ["loss", tail_loss], progress=False)
        lost = not_converged(runs).values.ravel()
        assert lost.tolist() == [False, bool(runs["tail_loss"][1, 0, -1] >= 1), True]
        assert not_converged(runs, cutoff=1e-9).values.ravel().tolist()[0]
        with pytest.raises(ValueError, match="track_tail_loss"):
            not_converged(runs.drop_vars("tail_loss"))

    def test_layers_learn_at_their_own_rates_and_drift_adds_at_every_step(self, x64):
        params = {"input": np.ones((2, 2)), "output": np.ones((2, 1))}
        gradient = {"input": np.full((2, 2), 3.0), "output": np.full((2, 1), 5.0)}
        optimizer = optax.chain(per_layer_sgd(0.1, 0.01), drift(0.5))
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(gradient, state, params)
            np.testing.assert_allclose(updates["input"], -0.3 + 0.5)
            np.testing.assert_allclose(updates["output"], -0.05)

    def test_cosine_quadratic_is_convex_up_to_roughness_one(self, x64):
        import jax
        import jax.numpy as jnp

        x = jnp.linspace(-1, 1, 4001)
        for roughness, least in ((0.5, 1.0), (1.0, 0.0), (1.5, -1.0)):
            second = jax.vmap(jax.grad(jax.grad(self._bare(roughness))))(x)
            assert float(second.min()) == pytest.approx(least, abs=1e-3)

    def _bare(self, roughness):
        problem = cosine_quadratic()
        return lambda x: problem.loss(x, np.zeros(1), roughness=roughness, wavelength=0.2)

    def test_examples_are_as_many_as_free_dimensions(self):
        assert mean_field_network(16).num_examples == 272
        assert mean_field_network(16, "identity").num_examples == 16
        with pytest.raises(ValueError, match="identity, relu, tanh"):
            mean_field_network(activation="sine")
        with pytest.raises(ValueError, match="last"):
            track_tail_loss(10, last=20)
