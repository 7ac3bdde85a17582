"""Boundaries found from few runs: against dense maps, on smooth and fractal sets, and through the engine."""

import numpy as np
import optax
import pytest

import lossland as ll
from lossland.stability.boundaries import Axis, Plane, boundary, boundary_cells, refine
from tests.cases import linear_problem, problem_named


def circle(y, x):
    return (x - 0.43) ** 2 + (y - 0.51) ** 2 < 0.09


def mandelbrot(y, x):
    c = (-2.1 + 3 * x) + 1j * (-1.5 + 3 * y)
    z = np.zeros_like(c)
    with np.errstate(all="ignore"):
        for _ in range(60):
            z = z * z + c
        return ~(abs(z) < 2)


def by_refinement(inside, resolution, stride):
    asked = []

    def train(rows, columns):
        asked.append(rows * resolution + columns)
        return inside(rows / (resolution - 1), columns / (resolution - 1))

    found, trained = refine(train, resolution, stride)
    asked = np.concatenate(asked)
    assert len(np.unique(asked)) == len(asked) == trained.sum(), "no point is trained twice"
    rows, columns = np.indices((resolution, resolution)) / (resolution - 1)
    return found, trained, inside(rows.ravel(), columns.ravel()).reshape(resolution, resolution)


class TestRefinement:
    @pytest.mark.parametrize("stride", [1, 4, 16])
    @pytest.mark.parametrize("resolution", [2, 3, 50, 129])
    def test_a_smooth_boundary_is_that_of_the_dense_map(self, resolution, stride):
        found, trained, dense = by_refinement(circle, resolution, stride)
        np.testing.assert_array_equal(found[trained], dense[trained])
        if resolution > 4:
            np.testing.assert_array_equal(found, dense)
        if stride == 1:
            assert trained.all()

    def test_512_by_512_costs_at_least_5_times_fewer_runs(self):
        found, trained, dense = by_refinement(circle, 512, 16)
        np.testing.assert_array_equal(boundary_cells(found), boundary_cells(dense))
        assert trained.sum() * 5 <= trained.size

    def test_of_a_fractal_every_cell_found_is_right_and_few_are_missed(self):
        found, trained, dense = by_refinement(mandelbrot, 512, 16)
        ours, theirs = boundary_cells(found), boundary_cells(dense)
        assert not (ours & ~theirs).any()
        assert (theirs & ~ours).sum() / theirs.sum() < 0.05
        assert trained.sum() * 5 <= trained.size

    def test_an_island_between_the_first_points_is_missed_and_a_finer_stride_finds_it(self):
        def island(y, x):
            return (abs(x - 8 / 63) < 0.03) & (abs(y - 8 / 63) < 0.03)

        missed, _, dense = by_refinement(island, 64, 16)
        assert dense.any()
        assert not missed.any()
        np.testing.assert_array_equal(by_refinement(island, 64, 2)[0], dense)

    def test_every_boundary_cell_has_four_trained_corners(self):
        found, trained, _ = by_refinement(mandelbrot, 100, 8)
        rows, columns = np.nonzero(boundary_cells(found))
        assert all(trained[rows + i, columns + j].all() for i in (0, 1) for j in (0, 1))


PLANE = Plane(Axis("learning_rate", 1e-3, 0.1), Axis("scale", 0.5, 2.0))


class TestTraining:
    def test_the_engine_finds_two_over_sharpness(self):
        found = boundary(problem_named("line"), optax.sgd, PLANE, 32, seeds=[0, 3], num_steps=200, stride=8)
        hessian = 2 * np.array([[np.mean(np.arange(1, 21) ** 2.0), 10.5], [10.5, 1.0]])
        critical = 2 / np.linalg.eigvalsh(hessian)[-1]
        expected = np.broadcast_to(found["learning_rate"].values > critical, (2, 32, 32))
        np.testing.assert_array_equal(found["diverges"], expected)
        assert found["diverges"].dims == ("seed", "scale", "learning_rate")
        assert (found["num_trained"] == found["trained"].sum(("scale", "learning_rate"))).all()
        assert (found["num_trained"] < 32 * 32 / 2).all()

    def test_what_is_trained_is_bit_for_bit_the_dense_map(self):
        plane = Plane(Axis("learning_rate", 0.1, 3.0), Axis("scale", 0.5, 3.0))
        settings = {"num_steps": 60, "every": 3, "lane_width": 16}
        few, all_ = (
            boundary(problem_named("cubic"), optax.sgd, plane, 33, stride=8, adaptive=adaptive, **settings)
            for adaptive in (True, False)
        )
        trained = few["trained"].values
        np.testing.assert_array_equal(few["diverges"].values[trained], all_["diverges"].values[trained])
        ours, theirs = (boundary_cells(one["diverges"].values) for one in (few, all_))
        assert theirs.sum() > 20
        assert not (ours & ~theirs).any()

    def test_a_folder_is_gone_on_with(self, tmp_path, monkeypatch):
        from lossland.stability import boundaries

        def call():
            return boundary(problem_named("line"), optax.sgd, PLANE, 16, num_steps=50, stride=8, out=tmp_path)

        first, calls = call(), []

        def counted(*arguments, **options):
            calls.append(arguments[4])
            runs = ll.run(*arguments, **options)
            return runs

        monkeypatch.setattr(boundaries, "run", counted)
        monkeypatch.setattr("lossland.sweeps.programs.GroupProgram.compute", None)  # nothing is trained again
        again = call()
        assert calls
        np.testing.assert_array_equal(first["diverges"], again["diverges"])

    def test_tied_hyperparameters_follow_their_side(self):
        plane = Plane(Axis("learning_rate", 1e-3, 1e-1), Axis("momentum", 0.1, 0.8, log=False), {"scale": "y"})
        points = plane.points(5, np.array([0, 4]), np.array([1, 2]))
        np.testing.assert_allclose(points["scale"], points["momentum"])
        np.testing.assert_allclose(points["momentum"], [0.1, 0.8])
        np.testing.assert_allclose(points["learning_rate"], 1e-3 * 100 ** np.array([0.25, 0.5]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Axis("learning_rate", 0.0, 1.0), ["learning_rate", "log=False"]),
        (lambda: Axis("learning_rate", 2.0, 1.0), ["low < high"]),
        (lambda: Plane(Axis("a", 1, 2), Axis("a", 1, 2)), ["distinct"]),
        (lambda: Plane(Axis("a", 1, 2), Axis("b", 1, 2), {"c": "z"}), ["tied", "'x' or 'y'"]),
        (lambda: boundary(linear_problem(), optax.sgd, PLANE, 1), ["resolution"]),
        (lambda: boundary(linear_problem(), optax.sgd, PLANE, 8, stride=3), ["stride", "power of 2"]),
        (
            lambda: boundary(linear_problem(), optax.sgd, PLANE.zoomed(1.0, 1.0, 1e7), 8),
            [PLANE.x.name, "units of rounding of float32", "dtype='float64'"],
        ),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=r".") as error:
        call()
    for word in words:
        assert word in str(error.value)
