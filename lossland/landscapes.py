"""Slices through a loss landscape: the loss along lines and over planes, and the directions worth cutting along.

A slice is `objective(params + s * direction)`. Along a unit eigenvector with eigenvalue h, and at a point where the
gradient has the component g along it, it is `objective(params) + g s + h s^2 / 2` near s = 0.

Source: Goodfellow, Vinyals and Saxe 2015 (lines); Li, Xu, Taylor, Studer and Goldstein 2018 (filter normalisation,
planes from principal components of a trajectory).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from lossland.arguments import FUNCTION, KEY, TREE, count, either, expects, number, optional, pair, several
from lossland.curvature import hessian, top_eigenpairs
from lossland.curvature.operators import scalar

__all__ = [
    "filter_normalised",
    "gradient_direction",
    "line",
    "plane",
    "principal_directions",
    "random_direction",
    "top_eigenvectors",
    "trajectory_plane",
]

Params = Any
Objective = Callable[[Params], Array]
MOST_POINTS = 2**24
"""Points of one line."""
REACH = either(number(above=0), pair(number()))
POINTS = either(count(2, 2**12), pair(count(2, 2**12)))
MARGIN = 0.2
"""A plane of a trajectory reaches this share of the trajectory's extent beyond it."""


@expects(
    objective=FUNCTION, params=TREE, direction=TREE, extent=REACH, num_points=count(2, MOST_POINTS), batch_size=count()
)
def line(
    objective: Objective,
    params: Params,
    direction: Params,
    *,
    extent: float | tuple[float, float] = 1.0,
    num_points: int = 101,
    batch_size: int = 16,
) -> xr.Dataset:
    """Evaluate the loss along a line through a point.

    Equation: loss(s) = objective(params + s direction), s equidistant in [-extent, extent].

    Args:
        objective: params -> `Float[Array, ""]`, such as `problem.objective`.
        params: pytree, the point at s = 0.
        direction: pytree like `params`; its length is the unit of s (1 for eigenvectors).
        extent: largest |s|, or (lowest, highest).
        num_points: points on the line.
        batch_size: points that are evaluated at once.

    Returns:
        Dataset with `loss` over the dim `distance`, in units of the direction's length.

    Raises:
        ValueError: if the direction is not a pytree like the parameters, or is not finite, or a number is out of range.
    """
    flat, flats, unravel = _flat(params, [direction], "direction")
    distances = _distances(extent, num_points, "extent")
    losses = _losses(objective, flat, flats, distances[:, None], unravel, batch_size)
    return xr.Dataset(
        {"loss": ("distance", losses, {"units": "1", "description": "objective(params + distance * direction)"})},
        {"distance": ("distance", distances, {"units": "length of the direction", "description": "along the line"})},
        {"description": "loss along a line", "direction_norm": float(np.linalg.norm(flats[0]))},
    )


@expects(
    objective=FUNCTION,
    params=TREE,
    directions=several(TREE),
    extent=either(REACH, several(REACH)),
    num_points=POINTS,
    batch_size=count(),
)
def plane(
    objective: Objective,
    params: Params,
    directions: Sequence[Params],
    *,
    extent: float | Sequence[float | tuple[float, float]] = 1.0,
    num_points: int | tuple[int, int] = 51,
    batch_size: int = 16,
) -> xr.Dataset:
    """Evaluate the loss over a plane through a point.

    Equation: loss(a, b) = objective(params + a directions[0] + b directions[1]).

    Args:
        objective, params, batch_size: as for `line`.
        directions: two pytrees like `params`, neither zero nor parallel. Where they are not orthogonal the picture is
            sheared; the attribute `cosine` says by how much.
        extent: largest |a| and |b|, or one such value or (lowest, highest) for each.
        num_points: along each direction.

    Returns:
        Dataset with `loss` over the dims `first` and `second`.

    Raises:
        ValueError: as `line`, and if there are not two directions that span a plane.
    """
    if len(directions) != 2:
        raise ValueError(f"directions: expected two, got {len(directions)}; for one, use line")
    flat, flats, unravel = _flat(params, directions)
    norms = np.linalg.norm(flats, axis=1)
    cosine = float(flats[0] @ flats[1] / (norms[0] * norms[1]))
    if abs(cosine) > 1 - 1e-6:
        raise ValueError(f"directions: they are parallel (cosine {cosine:.6f}) and span no plane; choose another")
    extents, counts = _two(extent), _two(num_points)
    if len(extents) != 2 or len(counts) != 2:
        raise ValueError("extent, num_points: expected one value, or two, one for each direction")
    axes = [_distances(reach, count, "extent") for reach, count in zip(extents, counts, strict=True)]
    places = np.stack([grid.reshape(-1) for grid in np.meshgrid(*axes, indexing="ij")], axis=1)
    losses = _losses(objective, flat, flats, places, unravel, batch_size).reshape(len(axes[0]), len(axes[1]))
    text = "objective(params + first * directions[0] + second * directions[1])"
    return xr.Dataset(
        {"loss": (("first", "second"), losses, {"units": "1", "description": text})},
        {
            name: (name, values, {"units": "length of the direction", "description": f"along the {name} direction"})
            for name, values in zip(("first", "second"), axes, strict=True)
        },
        {"description": "loss over a plane", "cosine": cosine, "direction_norms": norms.tolist()},
    )


@expects(objective=FUNCTION, trajectory=TREE, directions=optional(several(TREE)), num_points=POINTS, batch_size=count())
def trajectory_plane(
    objective: Objective,
    trajectory: Params,
    *,
    directions: Sequence[Params] | None = None,
    num_points: int | tuple[int, int] = 51,
    batch_size: int = 16,
) -> xr.Dataset:
    """Evaluate the loss over the plane that holds most of a trajectory, with the trajectory in it.

    The plane goes through the last point, along the first two principal components of the points minus the last one
    (or along `directions`, made orthonormal), and reaches 20 % beyond the trajectory on every side. Principal
    components of any smooth path look like Lissajous curves, of a random walk too: read the plane, not its shape.

    Args:
        objective, num_points, batch_size: as for `plane`.
        trajectory: pytree whose leaves have a leading axis of points, at least three.
        directions: two pytrees like one point, in place of the principal components.

    Returns:
        Dataset as of `plane`, with the trajectory's coordinates `path` over (point, direction), the loss along it
        `path_loss` over `point` (the true one, not that of its projection), and `explained`: the share of the
        squared distance to the last point that each direction holds.

    Raises:
        ValueError: as `plane`, and if the leaves have not the same number of points, at least three, all finite.
    """
    points = _points(trajectory, 3)
    last = jax.tree.map(lambda leaf: leaf[-1], trajectory)
    if directions is None:
        chosen = principal_directions(trajectory, 2)[0]
    else:
        if len(directions) != 2:
            raise ValueError(f"directions: expected two, got {len(directions)}")
        chosen = _orthonormal(last, directions)
    flat, flats, _ = _flat(last, chosen)
    offsets = points - flat
    path = offsets @ flats.T
    low, high = path.min(axis=0), path.max(axis=0)
    room = MARGIN * np.maximum(high - low, 1e-3 * max(float((high - low).max()), np.finfo(np.float32).tiny))
    extent = [(float(low[place] - room[place]), float(high[place] + room[place])) for place in range(2)]
    result = plane(objective, last, chosen, extent=extent, num_points=num_points, batch_size=batch_size)
    total = float(np.sum(offsets**2))
    explained = np.sum(path**2, axis=0) / total if total else np.full(2, np.nan)
    along = np.asarray(lax.map(objective, jax.tree.map(jnp.asarray, trajectory), batch_size=batch_size))
    result["path"] = (
        ("point", "direction"),
        path,
        {"units": "parameters", "description": "coordinates of the trajectory's points, projected onto the plane"},
    )
    result["path_loss"] = ("point", along, {"units": "1", "description": "loss at the points, not projected"})
    result["explained"] = (
        "direction",
        explained,
        {"units": "1", "description": "share of the squared distance to the last point along each direction"},
    )
    return result


@expects(objective=FUNCTION, params=TREE, k=count(), tol=number(above=0))
def top_eigenvectors(objective: Objective, params: Params, k: int = 2, *, tol: float = 1e-4) -> list[Params]:
    """Find the k sharpest directions: unit eigenvectors of the Hessian, largest eigenvalue first.

    Raises:
        ValueError: if one of them has not converged, naming its residual.
    """
    pairs = top_eigenpairs(hessian(objective, params), like=params, k=k, tol=tol)
    if not bool(jnp.all(pairs.converged)):
        worst = float(jnp.max(pairs.residuals))
        raise ValueError(f"k: an eigenvector has not converged (residual {worst:.3g}); ask for fewer, or a larger tol")
    return [jax.tree.map(lambda leaf, place=place: leaf[place], pairs.vectors) for place in range(k)]


@expects(objective=FUNCTION, params=TREE)
def gradient_direction(objective: Objective, params: Params) -> Params:
    """Return the unit vector along the gradient, uphill.

    Raises:
        ValueError: if the gradient is zero or not finite.
    """
    gradient = jax.grad(scalar(objective))(params)
    flat, unravel = ravel_pytree(gradient)
    norm = float(jnp.linalg.norm(flat))
    if not (np.isfinite(norm) and norm > 0):
        raise ValueError(f"params: the gradient has norm {norm:g}, which gives no direction")
    return unravel(flat / norm)


@expects(key=KEY, params=TREE)
def random_direction(key: Array, params: Params) -> Params:
    """Draw a filter-normalised Gaussian direction: see `filter_normalised`."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        jax.random.normal(one, jnp.shape(leaf), jnp.result_type(leaf)) for one, leaf in zip(keys, leaves, strict=True)
    ]
    return filter_normalised(jax.tree.unflatten(structure, drawn), params)


@expects(direction=TREE, params=TREE)
def filter_normalised(direction: Params, params: Params) -> Params:
    """Scale each filter of a direction to the norm of the same filter of the parameters.

    Equation: d_f <- d_f ||w_f|| / ||d_f|| for every filter f: the weights of one output unit, i.e. all axes but the
    last of an array with two axes or more. Arrays with fewer axes (biases, scales) do not move: their direction is 0.
    To normalise twice changes nothing; neither argument is changed.

    Raises:
        ValueError: if the direction is not a pytree like the parameters, or is zero or not finite.
    """
    _flat(params, [direction], "direction")

    def scaled(move: Array, weight: Array) -> Array:
        if jnp.ndim(weight) < 2:
            return jnp.zeros_like(move)
        axes = tuple(range(jnp.ndim(weight) - 1))
        length = jnp.sqrt(jnp.sum(jnp.square(move), axis=axes, keepdims=True))
        wanted = jnp.sqrt(jnp.sum(jnp.square(weight), axis=axes, keepdims=True))
        return move * jnp.where(length > 0, wanted / jnp.where(length > 0, length, 1), 0)

    return jax.tree.map(scaled, direction, params)


@expects(trajectory=TREE, k=count())
def principal_directions(trajectory: Params, k: int = 2) -> tuple[list[Params], np.ndarray]:
    """Find the principal components of a trajectory's points minus its last one, and the share each explains.

    Returns:
        k unit directions, pytrees like one point, and `Float[np.ndarray, "k"]`: shares of the summed squares.

    Raises:
        ValueError: if the leaves have not the same number of points, all finite, or these do not span k directions.
    """
    points = _points(trajectory, 2)
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[-1], trajectory))
    offsets = points[:-1] - points[-1]
    _, values, components = np.linalg.svd(offsets, full_matrices=False)
    if len(values) < k or not values[0] > 0 or values[k - 1] <= 1e-7 * values[0]:
        raise ValueError(
            f"trajectory: its points span fewer than {k} directions; record more of them, or further apart"
        )
    shares = values**2 / np.sum(values**2)
    return [unravel(jnp.asarray(component, flat.dtype)) for component in components[:k]], shares[:k]


def _points(trajectory: Params, least: int) -> np.ndarray:
    """Check that a trajectory has so many points, and return them: `Float64[ndarray, "point parameter"]`."""
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(trajectory)}
    if len(sizes) != 1 or min(sizes) < (least,):
        raise ValueError(
            f"trajectory: expected leaves with one leading axis of at least {least} points, got leading axes "
            f"{sorted(sizes)}"
        )
    points = np.asarray(jax.vmap(lambda point: ravel_pytree(point)[0])(trajectory), np.float64)
    if not (finite := np.isfinite(points).all(axis=1)).all():
        raise ValueError(
            f"trajectory: expected finite points, got NaN or inf from number {int(np.argmin(finite))} of {len(points)} "
            "on; take those before it"
        )
    return points


def _orthonormal(params: Params, directions: Sequence[Params]) -> list[Params]:
    _, flats, unravel = _flat(params, directions)
    basis, factor = np.linalg.qr(flats.T)
    return [unravel(column * np.sign(factor[place, place])) for place, column in enumerate(basis.T)]


def _flat(
    params: Params, directions: Sequence[Params], name: str = "directions"
) -> tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], Params]]:
    """The point and the directions as float64 vectors, and the way back to a pytree in the parameters' dtypes."""
    shapes = jax.tree.map(jnp.shape, params)
    for place, direction in enumerate(directions):
        if jax.tree.structure(direction) != jax.tree.structure(params) or jax.tree.map(jnp.shape, direction) != shapes:
            raise ValueError(
                f"{name}: number {place}: expected a pytree like the parameters, {shapes}, got "
                f"{jax.tree.map(jnp.shape, direction)}"
            )
    flat, unravel = ravel_pytree(params)
    flats = np.stack([np.asarray(ravel_pytree(direction)[0], np.float64) for direction in directions])
    for place, one in enumerate(flats):
        if not np.isfinite(one).all():
            raise ValueError(f"{name}: number {place}: expected finite values, got NaN or inf")
        if not np.any(one):
            raise ValueError(f"{name}: number {place}: it is zero, which is no direction")
    return np.asarray(flat, np.float64), flats, lambda vector: unravel(jnp.asarray(vector, flat.dtype))


def _single(value: Any) -> bool:
    """Whether one number was given, of Python, NumPy or JAX, and not one for each side or direction."""
    return not isinstance(value, (tuple, list)) and np.ndim(value) == 0


def _two(value: Any) -> tuple[Any, ...]:
    """What was given for both directions at once, or for each."""
    return (value, value) if _single(value) else tuple(value)


def _distances(extent: Any, num_points: int, name: str) -> np.ndarray:
    low, high = (-extent, extent) if _single(extent) else extent
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"{name}: expected a positive finite number, or (lowest, highest), got {extent!r}")
    return np.linspace(float(low), float(high), num_points)


def _losses(
    objective: Objective,
    flat: np.ndarray,
    directions: np.ndarray,
    places: np.ndarray,
    unravel: Callable[[np.ndarray], Params],
    batch_size: int,
) -> np.ndarray:
    """Losses at `flat + places @ directions`, `batch_size` points at a time in one compiled program."""
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least one point, got {batch_size}")

    @jax.jit
    def evaluate(origin: Params, moves: list[Params], places: Array) -> Array:
        def one(place: Array) -> Array:
            def moved(leaf: Array, *along: Array) -> Array:
                return leaf + sum(place[index] * move for index, move in enumerate(along))

            return scalar(objective)(jax.tree.map(moved, origin, *moves))

        return lax.map(one, places, batch_size=batch_size)

    origin = unravel(flat)
    dtype = jnp.result_type(*jax.tree.leaves(origin))
    moves = [unravel(direction) for direction in directions]
    return np.asarray(evaluate(origin, moves, jnp.asarray(places, dtype)))
