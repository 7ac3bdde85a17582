"""Slices of loss landscapes: what they show near a point, directions, the trajectory's plane, pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossland as ll
from lossland import landscapes
from lossland.curvature import hessian, lowest_eigenpairs, top_eigenpairs
from lossland.figures import slices

INPUTS = np.random.default_rng(0).normal(size=(60, 4))
TARGETS = np.sin(INPUTS.sum(1, keepdims=True))


def initial(key):
    first, second = jax.random.split(key)
    return {
        "hidden": {"w": jax.random.normal(first, (4, 8)), "b": jnp.full(8, 0.1)},
        "out": {"w": jax.random.normal(second, (8, 1)), "b": jnp.zeros(1)},
    }


def objective(params):
    hidden = jnp.tanh(INPUTS @ params["hidden"]["w"] + params["hidden"]["b"])
    return jnp.mean((hidden @ params["out"]["w"] + params["out"]["b"] - TARGETS) ** 2)


@pytest.fixture
def params(x64):
    return initial(jax.random.key(0))


def descended(params, num_steps=40, rate=0.05):
    points = [params]
    for _ in range(num_steps):
        params = jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(objective)(params))
        points.append(params)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["top", "second", "lowest"])
def test_along_an_eigenvector_the_loss_is_its_quadratic_model(params, which):
    matvec = hessian(objective, params)
    pairs = top_eigenpairs(matvec, like=params, k=2, tol=1e-8)
    if which == "lowest":
        pairs = lowest_eigenpairs(matvec, like=params, tol=1e-8)
    place = 1 if which == "second" else 0
    vector = jax.tree.map(lambda leaf: leaf[place], pairs.vectors)
    gradient = jax.grad(objective)(params)
    slope = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(vector), strict=True))
    found = landscapes.line(objective, params, vector, extent=1e-4, num_points=11)
    s = found["distance"].values
    quadratic = found["loss"].values - float(objective(params)) - float(slope) * s
    away = s != 0
    np.testing.assert_allclose(quadratic[away], 0.5 * float(pairs.values[place]) * s[away] ** 2, rtol=1e-3)


def test_a_plane_holds_its_lines(params):
    directions = landscapes.top_eigenvectors(objective, params, 2)
    plane = landscapes.plane(objective, params, directions, extent=(0.5, (-1.0, 2.0)), num_points=(5, 7))
    assert dict(plane.sizes) == {"first": 5, "second": 7}
    np.testing.assert_allclose(plane["second"], np.linspace(-1, 2, 7))
    for place, count, extent in ((0, 5, 0.5), (1, 7, (-1.0, 2.0))):
        line = landscapes.line(objective, params, directions[place], extent=extent, num_points=count)
        name, other = (("first", "second"), ("second", "first"))[place]
        np.testing.assert_allclose(plane["loss"].sel({other: 0.0}, method="nearest"), line["loss"], rtol=1e-12)
        assert plane[name].size == count
    assert abs(plane.attrs["cosine"]) < 1e-6


@pytest.mark.parametrize("kind", [np.float32, np.float64, jnp.float32], ids=["float32", "float64", "jax"])
def test_numbers_of_numpy_and_jax_are_numbers(params, kind):
    directions = [landscapes.gradient_direction(objective, params), params]
    for one in (
        landscapes.line(objective, params, directions[0], extent=kind(0.5), num_points=np.int64(3)),
        landscapes.plane(objective, params, directions, extent=kind(0.5), num_points=np.int32(3)),
    ):
        for name in one["loss"].dims:
            np.testing.assert_array_equal(one[name], [-0.5, 0, 0.5])


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_the_batch_size_changes_nothing(params, batch_size):
    direction = landscapes.gradient_direction(objective, params)
    one, other = (
        landscapes.line(objective, params, direction, num_points=9, batch_size=size) for size in (batch_size, 9)
    )
    np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-12)


def test_the_gradient_points_uphill(params):
    direction = landscapes.gradient_direction(objective, params)
    found = landscapes.line(objective, params, direction, extent=1e-3, num_points=3)["loss"].values
    assert found[0] < found[1] < found[2]


class TestFilterNormalisation:
    def test_every_filter_gets_the_norm_of_its_weights(self, params):
        direction = landscapes.random_direction(jax.random.key(1), params)
        for layer in ("hidden", "out"):
            np.testing.assert_allclose(
                np.linalg.norm(direction[layer]["w"], axis=0), np.linalg.norm(params[layer]["w"], axis=0), rtol=1e-12
            )
            assert not np.any(direction[layer]["b"]), "biases do not move"

    def test_twice_is_once_and_arguments_stay(self, params):
        draw = jax.tree.map(lambda leaf: jnp.ones_like(leaf) * 3, params)
        before = jax.tree.map(np.array, (draw, params))
        once = landscapes.filter_normalised(draw, params)
        for _ in range(3):
            again = landscapes.filter_normalised(once, params)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), again, once)
        jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, (draw, params)))

    def test_convolutions_have_filters_of_three_axes(self, x64):
        kernel = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 2, 5)))}
        direction = landscapes.random_direction(jax.random.key(0), kernel)["kernel"]
        lengths = [np.linalg.norm(direction[..., place]) for place in range(5)]
        np.testing.assert_allclose(lengths, [np.linalg.norm(kernel["kernel"][..., place]) for place in range(5)])

    def test_a_filter_of_zeros_does_not_move(self, x64):
        direction = landscapes.filter_normalised({"w": jnp.zeros((3, 2)).at[0, 0].set(1.0)}, {"w": jnp.ones((3, 2))})
        np.testing.assert_allclose(direction["w"], [[3**0.5, 0], [0, 0], [0, 0]])

    def test_rescaling_a_network_rescales_its_slice(self, params):
        """Two ReLU layers, one ten times larger, the next ten times smaller, are the same function: so is the slice."""

        def network(params):
            return jnp.mean((jax.nn.relu(INPUTS @ params["a"]) @ params["b"] - TARGETS) ** 2)

        weights = {"a": params["hidden"]["w"], "b": params["out"]["w"]}
        rescaled = {"a": weights["a"] * 10, "b": weights["b"] / 10}
        draw = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(2), leaf.shape), weights)
        slices = [
            landscapes.line(network, point, landscapes.filter_normalised(draw, point), num_points=7)["loss"]
            for point in (weights, rescaled)
        ]
        np.testing.assert_allclose(slices[0], slices[1], rtol=1e-9)


class TestTrajectory:
    def test_principal_directions_of_a_path_in_a_plane(self, x64):
        rng = np.random.default_rng(0)
        basis = np.linalg.qr(rng.normal(size=(6, 2)))[0]
        coordinates = rng.normal(size=(20, 2)) * [3, 0.5]
        trajectory = {"x": jnp.asarray(coordinates @ basis.T + 1.0)}
        directions, shares = landscapes.principal_directions(trajectory, 2)
        flats = np.stack([direction["x"] for direction in directions])
        np.testing.assert_allclose(flats @ flats.T, np.eye(2), atol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(flats @ basis, axis=1), 1, rtol=1e-12)
        assert shares.sum() == pytest.approx(1)
        with pytest.raises(ValueError, match="fewer than 3 directions"):
            landscapes.principal_directions(trajectory, 3)

    def test_plane_of_a_descent(self, params):
        trajectory = descended(params)
        plane = landscapes.trajectory_plane(objective, trajectory, num_points=21)
        path = plane["path"].values
        np.testing.assert_allclose(path[-1], 0, atol=1e-12)
        for place, name in enumerate(("first", "second")):
            assert plane[name][0] < path[:, place].min()
            assert plane[name][-1] > path[:, place].max()
        np.testing.assert_allclose(plane["path_loss"][-1], float(objective(jax.tree.map(lambda x: x[-1], trajectory))))
        assert 0.9 < float(plane["explained"].sum()) <= 1 + 1e-12
        own = landscapes.trajectory_plane(
            objective, trajectory, directions=[jax.grad(objective)(params), params], num_points=5
        )
        assert abs(own.attrs["cosine"]) < 1e-9

    @pytest.mark.parametrize("function", [landscapes.principal_directions, landscapes.trajectory_plane])
    def test_a_run_that_diverges_says_from_where(self, function):
        path = np.cumsum(np.eye(5, dtype=np.float32), 0)
        path[3:] = np.nan
        arguments = (lambda p: jnp.sum(p**2),) if function is landscapes.trajectory_plane else ()
        with pytest.raises(ValueError, match="NaN or inf from number 3 of 5"):
            function(*arguments, path)
        function(*arguments, path[:3])

    def test_too_short(self):
        with pytest.raises(ValueError, match="at least 3 points"):
            landscapes.trajectory_plane(objective, {"x": jnp.zeros((2, 3))})


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"direction": {"x": jnp.ones(2)}}, "direction: number 0: expected a pytree like the parameters"),
            ({"direction": {"x": jnp.zeros(3)}}, "direction: number 0: it is zero"),
            ({"direction": {"x": jnp.array([1.0, np.nan, 0.0])}}, "direction: number 0: expected finite"),
            ({"extent": -1.0}, "extent: expected a finite number above 0"),
            ({"num_points": 1}, "num_points: expected"),
            ({"batch_size": 0}, "batch_size: expected"),
        ],
    )
    def test_line(self, change, message):
        arguments = {"direction": {"x": jnp.ones(3)}} | change
        direction = arguments.pop("direction")
        with pytest.raises(ValueError, match=message):
            landscapes.line(lambda p: jnp.sum(p["x"] ** 2), {"x": jnp.zeros(3)}, direction, **arguments)

    def test_plane(self):
        point, one = {"x": jnp.zeros(3)}, {"x": jnp.ones(3)}
        for directions, message in (([one], "expected two"), ([one, {"x": -2 * jnp.ones(3)}], "parallel")):
            with pytest.raises(ValueError, match=message):
                landscapes.plane(lambda p: jnp.sum(p["x"] ** 2), point, directions)

    def test_no_gradient(self):
        with pytest.raises(ValueError, match="norm 0"):
            landscapes.gradient_direction(lambda p: jnp.sum(p**2), jnp.zeros(3))


@pytest.mark.slow
def test_pictures(params, tmp_path):
    trajectory = descended(params)
    figure = slices.plane_figure(landscapes.trajectory_plane(objective, trajectory, num_points=31), "Descent")
    vectors = landscapes.top_eigenvectors(objective, params, 2)
    values = top_eigenpairs(hessian(objective, params), like=params, k=2).values
    lines = {
        f"eigenvector {place + 1}": landscapes.line(objective, params, vector, extent=0.5)
        for place, vector in enumerate(vectors)
    }
    curvatures = {name: float(value) for name, value in zip(lines, values, strict=True)}
    for name, drawn in (("plane", figure), ("line", slices.line_figure(lines, curvatures, "Eigenvectors"))):
        paths = ll.figures.save(drawn, tmp_path / name)
        assert all(path.stat().st_size > 5000 for path in paths)
    nowhere = landscapes.plane(lambda p: jnp.sum(p) * np.nan, jnp.ones(2), list(jnp.eye(2)), num_points=3)
    with pytest.raises(ValueError, match="nowhere finite"):
        slices.plane_figure(nowhere)
    with pytest.raises(ValueError, match="expected 1 to 5"):
        slices.line_figure({})
