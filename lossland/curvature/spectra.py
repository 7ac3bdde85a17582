"""What is asked of a second-derivative matrix: extreme eigenvalues, trace, density, curvature along a direction.

"Top" and "lowest" are of the signed eigenvalues: of (-10, 2, 1) the top is 2, the lowest -10, the largest in magnitude
-10. Sharpness is the top one. Nothing is returned without its own error: a residual, or a standard error.

Source: Epperly, Tropp and Webber 2024 (trace); Golub and Welsch 1969, Ghorbani et al.
2019 (density).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from lossland.arguments import FUNCTION, KEY, TREE, a, count, expects, number, optional
from lossland.curvature.eigenpairs import extremal_eigenpairs
from lossland.curvature.factorisations import complete_qr, eigh, qr
from lossland.curvature.lanczos import ROUNDING_UNITS, dot, generic_vector, top_eigenpair, unit
from lossland.curvature.operators import Matvec, Params, dense, flatten, hessian, negated

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


class Estimate(NamedTuple):
    """A random estimate: `value` and `standard_error`, `Float[Array, ""]` in the same units, and the products used."""

    value: Array
    standard_error: Array
    num_matvecs: Array


class SpectralDensity(NamedTuple):
    """The density of the eigenvalues, normalised to 1, with its error.

    grid: `Float[Array, "grid"]`, equidistant, in the units of the eigenvalues, over the whole spectrum and its blur;
    density, standard_error: `Float[Array, "grid"]`, means over cells of the grid, and errors over the random vectors;
    nodes, weights: `Float[Array, "probe node"]`, the quadrature before the blur, weights of a probe summing to 1: a sum
    of weights * f(nodes), averaged over the probes, estimates trace(f(H)) / p.
    """

    grid: Array
    density: Array
    standard_error: Array
    nodes: Array
    weights: Array
    num_matvecs: Array

    def moment(self, order: int) -> Estimate:
        """Estimate trace(H^order) / p: the mean eigenvalue for 1, squared Frobenius norm / p for 2."""
        return _mean_over_probes(jnp.sum(self.weights * self.nodes**order, axis=1), self.num_matvecs)


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


@expects(matvec=FUNCTION, like=TREE, key=KEY, num_matvecs=count(4))
def trace(matvec: Matvec, *, like: Params, key: Array, num_matvecs: int = 32) -> Estimate:
    """Estimate the trace of a symmetric matrix with XTrace: exchangeable, unbiased, exact for rank < num_matvecs / 2.

    For each of s = num_matvecs / 2 random vectors w_i: the trace of H on the range of H applied to the other vectors,
    plus w_i^T (I - Q_i Q_i^T) H (I - Q_i Q_i^T) w_i for the rest; the mean over i. standard_error: their spread /
    sqrt(s). The s estimates share their vectors, so the error is somewhat too small: on spectra that fall slowly the
    truth lay within two of it in 86 % of draws, not 95 %. Memory: 2 s vectors. Batched by `vmap` or `lax.map`.

    Raises ValueError where num_matvecs < 4, or `like` is not of one real float dtype.

    Source: Epperly, Tropp and Webber 2024, section 2, with the normalisation of section 2.3; the leave-one-out bases
    are taken from complete QR factors, so that a matrix of low rank gives its trace and not NaN.
    """
    if num_matvecs < 4:
        raise ValueError(f"num_matvecs: expected at least 4, two for each of two random vectors, got {num_matvecs}")
    matvec_flat, _ = flatten(matvec, like)
    flat, _ = ravel_pytree(like)
    num_params, dtype = flat.size, flat.dtype
    num_probes = min(num_matvecs // 2, num_params)
    probes = jax.random.normal(key, (num_probes, num_params), dtype)
    images = lax.map(matvec_flat, probes)
    basis, factor = qr(images.T)
    compressed = dot(basis.T, lax.map(matvec_flat, basis.T).T)
    components = dot(basis.T, probes.T)
    total = jnp.trace(compressed)
    used = jnp.asarray(2 * num_probes, jnp.int32)
    if num_probes == num_params:
        return Estimate(total, jnp.zeros((), dtype), used)

    def leave_one_out(index: Array) -> Array:
        others = jnp.where(jnp.arange(num_probes) == index, 0, factor)
        others = jnp.roll(others, -1 - index, axis=1)[:, : num_probes - 1]
        # The direction of the basis that only this probe contributes.
        missing = complete_qr(others)[:, -1]
        inside = components[:, index] - missing * dot(missing, components[:, index])
        probe = probes[index]
        rest = dot(probe, images[index]) - 2 * dot(inside, factor[:, index]) + dot(inside, dot(compressed, inside))
        # ||w - Q u||^2 = ||w||^2 - ||u||^2. A sphere of the right radius in place of the Gaussian removes its spread.
        squared = jnp.maximum(dot(probe, probe) - dot(inside, inside), jnp.finfo(dtype).tiny)
        return total - dot(missing, dot(compressed, missing)) + (num_params - num_probes + 1) / squared * rest

    estimates = lax.map(leave_one_out, jnp.arange(num_probes))
    return _mean_over_probes(estimates, used)


@expects(
    matvec=FUNCTION,
    like=TREE,
    key=KEY,
    num_probes=count(2),
    num_steps=count(),
    num_points=count(2, 2**24),
    width=number(above=0),
)
def spectral_density(
    matvec: Matvec,
    *,
    like: Params,
    key: Array,
    num_probes: int = 8,
    num_steps: int = 64,
    num_points: int = 1024,
    width: float = 0.01,
) -> SpectralDensity:
    """Estimate the density of eigenvalues with stochastic Lanczos quadrature, blurred by a Gaussian.

    density(x) = 1/p sum_i N(x; eigenvalue_i, (width * range)^2), estimated by num_probes random vectors with num_steps
    products each; cells of the grid are integrated exactly, so the sum over the grid times its spacing is 1 whatever
    the width. width: standard deviation of the blur in units of the range of the spectrum. Memory: three vectors:
    Lanczos runs without reorthogonalisation, whose copies of converged eigenvalues share their weight and leave the
    density unchanged.

    Raises ValueError where a number is out of range, or `like` is not of one real float dtype.

    Source: Golub and Welsch 1969; Ghorbani, Krishnan and Xiao 2019; Chen, Trogdon and Ubaru 2022 (finite precision).
    """
    for name, value, least in (
        ("num_probes", num_probes, 2),
        ("num_steps", num_steps, 1),
        ("num_points", num_points, 2),
    ):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if not width > 0:
        raise ValueError(f"width: expected a fraction > 0 of the range of the spectrum, got {width}")
    matvec_flat, _ = flatten(matvec, like)
    flat, _ = ravel_pytree(like)
    num_steps = min(num_steps, flat.size)

    def quadrature(index: Array) -> tuple[Array, Array]:
        start = jax.random.normal(jax.random.fold_in(key, index), flat.shape, flat.dtype)
        return _gauss_quadrature(matvec_flat, start, num_steps)

    nodes, weights = lax.map(quadrature, jnp.arange(num_probes))
    low, high = jnp.min(nodes), jnp.max(nodes)
    spread = high - low
    # A matrix c I has no range: any width shows its one peak.
    spread = jnp.where(spread > 0, spread, jnp.maximum(jnp.abs(high), 1))
    deviation = width * spread
    margin = 5 * deviation + spread / num_points
    edges = jnp.linspace(low - margin, high + margin, num_points + 1)

    def blurred(pair: tuple[Array, Array]) -> Array:
        nodes, weights = pair
        reach = (edges[:, None] - nodes) / (deviation * math.sqrt(2))
        return jnp.diff(dot(0.5 * lax.erf(reach), weights)) / (edges[1] - edges[0])

    densities = lax.map(blurred, (nodes, weights))
    num_matvecs = jnp.asarray(num_probes * num_steps, jnp.int32)
    density = _mean_over_probes(densities, num_matvecs)
    grid = (edges[1:] + edges[:-1]) / 2
    return SpectralDensity(grid, density.value, density.standard_error, nodes, weights, num_matvecs)


def _gauss_quadrature(matvec_flat: Callable[[Array], Array], start: Array, num_steps: int) -> tuple[Array, Array]:
    """Return nodes and weights of the Gauss quadrature of the spectral measure of `start`: `Float[Array, "steps"]`."""
    dtype = start.dtype

    def step(state: tuple[Array, Array, Array, Array, Array], _: Any) -> tuple[Any, tuple[Array, Array, Array]]:
        vector, previous, beta, norm, alive = state
        product = matvec_flat(vector) - beta * previous
        alpha = dot(vector, product)
        product = product - alpha * vector
        # A second time: close to an invariant subspace the rest is mostly rounding.
        again = dot(vector, product)
        product = product - again * vector
        alpha = alpha + again
        beta = jnp.linalg.norm(product)
        norm = jnp.maximum(norm, jnp.abs(alpha) + beta)
        goes_on = alive & ~(beta <= ROUNDING_UNITS * jnp.finfo(dtype).eps * norm)
        following = jnp.where(goes_on, product / jnp.where(goes_on, beta, 1), 0)
        coupling = jnp.where(goes_on, beta, 0)
        return (following, vector, coupling, norm, goes_on), (alpha, coupling, alive)

    zero = jnp.zeros((), dtype)
    begin = (unit(start), jnp.zeros_like(start), zero, zero, jnp.ones((), bool))
    _, (alpha, beta, alive) = lax.scan(step, begin, length=num_steps)
    # Rows after an invariant subspace is complete have no weight; put them where they do not widen the spectrum.
    alpha = jnp.where(alive, alpha, alpha[0])
    nodes, vectors = eigh(jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1))
    return nodes, vectors[0] ** 2


def _mean_over_probes(samples: Array, num_matvecs: Array) -> Estimate:
    """Average over the first axis; the standard error is the sample deviation / sqrt(n)."""
    error = jnp.std(samples, axis=0, ddof=1) / math.sqrt(samples.shape[0])
    return Estimate(jnp.mean(samples, axis=0), error, num_matvecs)


class CrossCheck(NamedTuple):
    """An estimate beside what the dense matrix says, as NumPy arrays in float64.

    exact: the eigenvalues nearest to the estimated ones, each used once, so that a ghost has none near it; or the
    trace; or the first two moments. ranks: how many eigenvalues are larger, for eigenpairs: 0, 1, 2, ... for the top
    ones, p - 1, p - 2, ... for the lowest; None otherwise. error: |estimate - exact|. bound: what the estimate says of
    its error: the residuals, or four standard errors.
    """

    exact: np.ndarray
    ranks: np.ndarray | None
    error: np.ndarray
    bound: np.ndarray


@expects(
    estimate=a(
        "eigenpairs, a trace or a density, as lossland.curvature returns", Eigenpairs, Estimate, SpectralDensity
    ),
    build=FUNCTION,
    params=TREE,
)
def cross_check(
    estimate: Eigenpairs | Estimate | SpectralDensity, build: Callable[[Params], Matvec], params: Params
) -> CrossCheck:
    """Compare an estimate with the dense matrix, formed and diagonalised in float64 (p^2 numbers, p products).

    estimate: what `top_eigenpairs`, its siblings, `trace` or `spectral_density` returned. build: params -> product,
    e.g. `lambda params: hessian(objective, params)`; it is called with the parameters in float64, so data that it
    closes over should not be cast down by it. For use outside `jit`; the global precision stays as it is.

    Raises ValueError above 30,000 parameters.
    """
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), params)
        matrix = np.asarray(jax.jit(lambda params: dense(build(params), params))(params))
    if isinstance(estimate, Eigenpairs):
        spectrum = np.linalg.eigvalsh((matrix + matrix.T) / 2)[::-1]
        values = np.asarray(estimate.values, float)
        free, ranks = np.ones(len(spectrum), bool), []
        for value in values:
            rank = int(np.argmin(np.where(free, np.abs(spectrum - value), np.inf)))
            free[rank] = False
            ranks.append(rank)
        exact = spectrum[ranks]
        return CrossCheck(exact, np.asarray(ranks), np.abs(values - exact), np.asarray(estimate.residuals, float))
    if isinstance(estimate, Estimate):
        estimates, exact = [estimate], np.asarray(np.trace(matrix))
    else:
        estimates = [estimate.moment(1), estimate.moment(2)]
        exact = np.asarray([np.trace(matrix), np.sum(matrix * matrix.T)]) / len(matrix)
    values, errors = (np.reshape([getattr(e, name) for e in estimates], exact.shape) for name in Estimate._fields[:2])
    return CrossCheck(exact, None, np.abs(values - exact), 4 * errors)


@expects(objective=FUNCTION, params=TREE)
def gradient_curvature(objective: Callable[[Params], Array], params: Params) -> Array:
    """Return the curvature along the gradient, g^T H g / g^T g: `Float[Array, ""]`, units of the Hessian.

    It is at most the sharpness, and equals it when the gradient lies along the top eigenvector. NaN where g = 0.
    """
    gradient = jax.grad(objective)(params)
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
