"""The ends of a spectrum: eigenvalues of a symmetric product on pytrees, and the curvature along one direction.

"Top" and "lowest" are of the signed eigenvalues: of (-10, 2, 1) the top is 2, the lowest -10, the largest in magnitude
-10. Sharpness is the top one. Every value comes with the residual that certifies it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from lossland.arguments import FUNCTION, TREE, a, count, expects, number, optional
from lossland.curvature.eigenpairs import extremal_eigenpairs
from lossland.curvature.lanczos import generic_vector, top_eigenpair, unit
from lossland.curvature.operators import Matvec, Params, flatten, hessian, negated, scalar

_START_NOISE = 0.05  # beside a given start of norm 1


class Eigenpairs(NamedTuple):
    """Eigenvalues and what certifies them, most wanted first.

    values: `Float[Array, "k"]`; vectors: pytree like the parameters with a leading axis k, orthonormal; residuals:
    `Float[Array, "k"]`, bounds on ||H v - value v|| in the units of `values`: each value is within its residual of an
    eigenvalue; num_matvecs: `Int[Array, ""]`, products used; converged: `Bool[Array, "k"]`.
    """

    values: Array
    vectors: Params
    residuals: Array
    num_matvecs: Array
    converged: Array


SEARCH = {
    "matvec": FUNCTION,
    "like": TREE,
    "k": count(),
    "tol": number(above=0),
    "start": optional(TREE),
    "num_vectors": optional(count()),
    "max_matvecs": count(),
    "any_lane": FUNCTION,
}
"""What every search for eigenpairs expects."""


@expects(**SEARCH)
def top_eigenpairs(
    matvec: Matvec,
    *,
    like: Params,
    k: int = 1,
    tol: float = 1e-4,
    start: Params | None = None,
    num_vectors: int | None = None,
    max_matvecs: int = 1000,
    any_lane: Callable[[Array], Array] = lambda active: active,
) -> Eigenpairs:
    """Find the k largest signed eigenvalues, largest first, each as often as it occurs.

    H v = value v. Stops on residuals <= tol |value| and estimated errors of the values near tol^2 |value| (or the
    rounding of a product), and searches for copies before it ends. One pair takes three-term Lanczos (`lanczos`),
    several take `eigenpairs`.

    matvec: product with a symmetric matrix on pytrees like `like`, which gives shapes and dtype only. tol: relative; at
    1e-4 no top eigenvalue of 256 was missed, at 1e-3 one was. start: a pytree, by default a fixed generic vector; 5 %
    of noise is added to it; pass `warm_start(pairs)` of a nearby point to save products. num_vectors: basis size, by
    default 64 for one pair and 3 k + 32 for several, within 256 MB. Under `vmap`, `any_lane` saves copies of the basis:
    see `lanczos.top_eigenpair`. A value that is not finite, or not converged after max_matvecs products, says so in
    `converged`.

    Raises ValueError where k is not in 1..p, or `like` is not of one real float dtype, or `start` has another size.
    """
    if k != 1:
        return _several(matvec, like, k, False, tol, start, num_vectors, max_matvecs, any_lane)
    matvec_flat, flat, unravel = _flat_problem(matvec, like, start)
    top = top_eigenpair(
        matvec_flat, flat, tol=tol, num_vectors=num_vectors or 64, max_matvecs=max_matvecs, any_lane=any_lane
    )
    vectors = jax.vmap(unravel)(top.vector[None])
    return Eigenpairs(top.value[None], vectors, top.residual[None], top.num_matvecs, top.converged[None])


@expects(**SEARCH)
def lowest_eigenpairs(
    matvec: Matvec,
    *,
    like: Params,
    k: int = 1,
    tol: float = 1e-4,
    start: Params | None = None,
    num_vectors: int | None = None,
    max_matvecs: int = 1000,
    any_lane: Callable[[Array], Array] = lambda active: active,
) -> Eigenpairs:
    """Find the k lowest signed eigenvalues, most negative first, not smallest in magnitude: see `top_eigenpairs`."""
    pairs = top_eigenpairs(
        negated(matvec),
        like=like,
        k=k,
        tol=tol,
        start=start,
        num_vectors=num_vectors,
        max_matvecs=max_matvecs,
        any_lane=any_lane,
    )
    return pairs._replace(values=-pairs.values)


@expects(**SEARCH)
def largest_magnitude_eigenpairs(
    matvec: Matvec,
    *,
    like: Params,
    k: int = 1,
    tol: float = 1e-4,
    start: Params | None = None,
    num_vectors: int | None = None,
    max_matvecs: int = 1000,
    any_lane: Callable[[Array], Array] = lambda active: active,
) -> Eigenpairs:
    """Find the k eigenvalues largest in magnitude, of either sign, largest first: see `top_eigenpairs`."""
    return _several(matvec, like, k, True, tol, start, num_vectors, max_matvecs, any_lane)


def _several(
    matvec: Matvec,
    like: Params,
    k: int,
    by_magnitude: bool,
    tol: float,
    start: Params | None,
    num_vectors: int | None,
    max_matvecs: int,
    any_lane: Callable[[Array], Array],
) -> Eigenpairs:
    matvec_flat, flat, unravel = _flat_problem(matvec, like, start)
    pairs = extremal_eigenpairs(
        matvec_flat,
        flat,
        k,
        by_magnitude=by_magnitude,
        tol=tol,
        num_vectors=num_vectors,
        max_matvecs=max_matvecs,
        any_lane=any_lane,
    )
    return Eigenpairs(pairs.values, jax.vmap(unravel)(pairs.vectors), *pairs[2:])


def _flat_problem(
    matvec: Matvec, like: Params, start: Params | None
) -> tuple[Callable[[Array], Array], Array, Callable[[Array], Params]]:
    """Return the product on vectors, a start in general position and the way back to pytrees."""
    matvec_flat, unravel = flatten(matvec, like)
    flat, _ = ravel_pytree(like)
    noise = generic_vector(jnp.ones((), jnp.uint32), flat.size, flat.dtype)
    if start is None:
        return matvec_flat, noise, unravel
    given, _ = ravel_pytree(start)
    if given.shape != flat.shape or given.dtype != flat.dtype:
        raise ValueError(
            f"start: expected a pytree like `like`, {flat.size} numbers of {flat.dtype}, got {given.size} of "
            f"{given.dtype}; pass warm_start(pairs) of a problem with the same parameters"
        )
    # A start inside an invariant subspace would see nothing else.
    return matvec_flat, unit(given) + _START_NOISE * noise, unravel


@expects(pairs=a("eigenpairs, as top_eigenpairs returns", Eigenpairs))
def warm_start(pairs: Eigenpairs) -> Params:
    """Mix a start for a nearby point from its eigenpairs: the sum of all vectors; the solver adds noise.

    One vector alone is an exact eigenvector of what may meanwhile be the second eigenvalue: for k = 1, ask for two
    pairs, or use `lanczos.top_eigenpair`, which mixes its own.
    """
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), pairs.vectors)


@expects(objective=FUNCTION, params=TREE)
def gradient_curvature(objective: Callable[[Params], Array], params: Params) -> Array:
    """Return the curvature along the gradient, g^T H g / g^T g: `Float[Array, ""]`, units of the Hessian.

    It is at most the sharpness, and equals it when the gradient lies along the top eigenvector. NaN where g = 0.

    Raises ValueError where the objective is not a real scalar.
    """
    gradient = jax.grad(scalar(objective))(params)
    return _dot(gradient, hessian(objective, params)(gradient)) / _dot(gradient, gradient)


@expects(update=TREE, vector=TREE)
def alignment(update: Params, vector: Params) -> Array:
    """Return |<update, vector>| / (||update|| ||vector||), in [0, 1]: `Float[Array, ""]`.

    The sign of an eigenvector has no meaning, hence the modulus. NaN where one of them is zero.
    """
    return jnp.abs(_dot(update, vector)) / jnp.sqrt(_dot(update, update) * _dot(vector, vector))


def _dot(left: Params, right: Params) -> Array:
    products = jax.tree.map(lambda a, b: jnp.vdot(a, b, precision=lax.Precision.HIGHEST), left, right)
    return jax.tree.reduce(jnp.add, products)
