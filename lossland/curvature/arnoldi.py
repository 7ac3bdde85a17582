"""One outermost eigenvalue of a matrix that is not symmetric, such as the Jacobian of an optimizer's step.

The Krylov spaces of A and of A^T are built side by side. Left and right eigenvector together give the value to second
order in their errors (the two-sided Rayleigh quotient) and its condition number, without which a residual says little:
a small residual proves a small error of the *matrix*, not of the eigenvalue.

Source: Arnoldi 1951; Ostrowski 1958 (two-sided quotient); Saad 2011, *Numerical Methods for Large Eigenvalue Problems*,
chapters 3 and 6; Chen and Demmel 2000, "Balancing sparse matrices for computing eigenvalues" (balancing by products).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lossland.arguments import ARRAY, FUNCTION, Rule, choice, count, expects, number
from lossland.curvature.factorisations import eig
from lossland.curvature.lanczos import ROUNDING_UNITS, check_positive, check_start, dot, generic_vector, unit

Target = Literal["largest", "oscillating"]
_MIXTURE = (1.0, 0.3, 0.1)  # weights of the most wanted Ritz vectors in a restart
_BALANCING_ROUNDS, _BALANCING_PROBES = 10, 2
_LARGEST_SCALE = 1e12


class OutermostEigenpair(NamedTuple):
    """One eigenvalue of a real matrix A with its two eigenvectors and what certifies it.

    value: `Complex[Array, ""]`, of a conjugate pair the one above the real axis; vector, left_vector:
    `Complex[Array, "p"]`, unit norm, A x = value x and y^T A = value y^T; residual: ||A x - value x||, measured;
    condition: 1 / |y^T x|, at least 1; error_bound: condition x residual, to first order a bound on the distance to an
    eigenvalue (without "to first order" where A is symmetric); num_matvecs: products with A and with A^T; converged:
    error_bound <= tol |value|, or below what the precision resolves.
    """

    value: Array
    vector: Array
    left_vector: Array
    residual: Array
    condition: Array
    error_bound: Array
    num_matvecs: Array
    converged: Array


class _Solve(NamedTuple):
    cycle: Array
    start: Array
    left_start: Array
    pair: OutermostEigenpair


@expects(
    matvec=FUNCTION,
    rmatvec=FUNCTION,
    start=ARRAY,
    target=choice("largest", "oscillating"),
    tol=number(above=0),
    num_vectors=count(),
    max_restarts=count(),
)
def outermost_eigenpair(
    matvec: Callable[[Array], Array],
    rmatvec: Callable[[Array], Array],
    start: Array,
    *,
    target: Target = "largest",
    tol: float = 1e-6,
    num_vectors: int = 64,
    max_restarts: int = 6,
) -> OutermostEigenpair:
    """Find the eigenvalue of largest modulus ("largest") or of smallest real part ("oscillating") of a real matrix.

    Arnoldi with full reorthogonalisation on A and on A^T, restarted from the most wanted Ritz vectors. Where
    `num_vectors` reaches the dimension the first cycle is a dense eigensolver. matvec: x -> A x; rmatvec: x -> A^T x,
    both `Float[Array, "p"] -> Float[Array, "p"]`; start: `Float[Array, "p"]`, generic. A product that is not finite
    gives NaN and `converged` False.

    Raises ValueError where `start` is not a vector of floats, a number is out of range or the target is another.
    """
    check_start(start)
    check_positive("tol", tol)
    check_positive("num_vectors", num_vectors)
    check_positive("max_restarts", max_restarts)
    if target not in ("largest", "oscillating"):
        raise ValueError(f"target: expected 'largest' or 'oscillating', got {target!r}")
    dtype, num_params = start.dtype, start.shape[0]
    size = min(num_vectors, num_params)

    def apply(product: Callable[[Array], Array], vector: Array) -> Array:
        parts = lax.map(product, jnp.stack([jnp.real(vector), jnp.imag(vector)]))  # one copy of the program for both
        return lax.complex(parts[0], parts[1])

    def cycle(solve: _Solve) -> _Solve:
        values, vectors = _ritz(matvec, solve.start, size)
        left_values, left_vectors = _ritz(rmatvec, solve.left_start, size)
        order = jnp.argsort(_rank(values, target))
        # Of a conjugate pair the upper one; its left partner is the Ritz pair nearest in value.
        first = jnp.where(jnp.imag(values[order[0]]) >= 0, values[order[0]], jnp.conj(values[order[0]]))
        x = _unit(vectors[jnp.argmin(jnp.abs(values - first))])
        y = _unit(left_vectors[jnp.argmin(jnp.abs(left_values - first))])
        overlap = jnp.sum(y * x)
        image = apply(matvec, x)
        value = jnp.where(jnp.abs(overlap) > 0, jnp.sum(y * image) / overlap, first)
        residual = jnp.linalg.norm(image - value * x)
        condition = jnp.maximum(1 / jnp.abs(overlap), 1)
        bound = condition * residual
        floor = ROUNDING_UNITS * float(jnp.finfo(dtype).eps) * condition * jnp.max(jnp.abs(values))
        pair = OutermostEigenpair(
            value,
            x,
            y,
            residual,
            condition,
            bound,
            solve.pair.num_matvecs + 2 * size + 2,
            bound <= jnp.maximum(tol * jnp.abs(value), floor),
        )
        left_order = jnp.argsort(_rank(left_values, target))
        return _Solve(
            solve.cycle + 1,
            _mixed(vectors[order[: len(_MIXTURE)]], solve.start),
            _mixed(left_vectors[left_order[: len(_MIXTURE)]], solve.left_start),
            pair,
        )

    number = jnp.zeros((), dtype)
    wide = jnp.zeros((), jnp.result_type(dtype, jnp.complex64))
    nothing = jnp.zeros(num_params, wide.dtype)
    begin = OutermostEigenpair(
        wide, nothing, nothing, number, number, number, jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    )
    solve = _Solve(jnp.zeros((), jnp.int32), unit(start), unit(start), begin)
    return lax.while_loop(
        lambda solve: (solve.cycle < max_restarts) & ~solve.pair.converged,
        cycle,
        solve,
    ).pair


@expects(
    matvec=FUNCTION,
    rmatvec=FUNCTION,
    num_params=count(),
    dtype=Rule("a dtype of floats", lambda dtype: jnp.issubdtype(dtype, jnp.floating)),
)
def balancing(
    matvec: Callable[[Array], Array], rmatvec: Callable[[Array], Array], num_params: int, dtype: jnp.dtype
) -> Array:
    """Find a diagonal D, `Float[Array, "p"]`, for which rows and columns of D^-1 A D have like norms.

    The eigenvalues stay; their condition numbers fall, from 1e15 and more where coordinates have units of their own
    (parameters and second moments). From products with random signs; A itself is never formed.
    """

    shape = num_params, dtype

    def improve(round_: Array, scale: Array) -> Array:
        def norms(probe: Array) -> tuple[Array, Array]:
            sign = jnp.sign(generic_vector((round_ * _BALANCING_PROBES + probe + 1).astype(jnp.uint32), *shape))
            return jnp.square(matvec(scale * sign) / scale), jnp.square(rmatvec(sign / scale) * scale)

        rows, columns = (jnp.sum(part, 0) for part in lax.map(norms, jnp.arange(_BALANCING_PROBES)))
        ratio = jnp.sqrt(jnp.sqrt(rows / columns))
        good = (rows > 0) & (columns > 0) & jnp.isfinite(ratio)
        scale = scale * jnp.where(good, jnp.clip(ratio, 1e-6, 1e6), 1)
        return jnp.clip(scale, 1 / _LARGEST_SCALE, _LARGEST_SCALE)

    return lax.fori_loop(0, _BALANCING_ROUNDS, improve, jnp.ones(num_params, dtype))


def _ritz(product: Callable[[Array], Array], start: Array, size: int) -> tuple[Array, Array]:
    """Build a Krylov basis and return all Ritz values and vectors (rows)."""
    num_params, dtype = start.shape[0], start.dtype
    tiny = ROUNDING_UNITS * float(jnp.finfo(dtype).eps)

    def orthogonalise(basis: Array, vector: Array) -> tuple[Array, Array]:
        components = jnp.zeros(size, dtype)
        for _ in range(2):  # twice is enough
            part = dot(basis, vector)
            vector, components = vector - dot(part, basis), components + part
        return vector, components

    def extend(index: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        basis, projected, vector = state
        basis = basis.at[index].set(vector)
        image = product(vector)
        rest, components = orthogonalise(basis, image)
        beta = jnp.linalg.norm(rest)
        ended = beta <= tiny * jnp.linalg.norm(image)  # an invariant subspace: go on outside of it
        fresh, _ = orthogonalise(basis, generic_vector(index.astype(jnp.uint32) + 77, num_params, dtype))
        following = unit(jnp.where(ended, fresh, rest))
        projected = projected.at[:, index].set(components)
        inside = index + 1 < size
        coupling = jnp.where(inside & ~ended, beta, 0)
        projected = projected.at[jnp.minimum(index + 1, size - 1), index].add(coupling)
        return basis, projected, following

    begin = (jnp.zeros((size, num_params), dtype), jnp.zeros((size, size), dtype), unit(start))
    basis, projected, _ = lax.fori_loop(0, size, extend, begin)
    finite = jnp.all(jnp.isfinite(projected))
    values, coefficients = eig(jnp.where(finite, projected, 0))
    vectors = lax.complex(dot(jnp.real(coefficients.T), basis), dot(jnp.imag(coefficients.T), basis))
    return jnp.where(finite, values, jnp.nan), jnp.where(finite, vectors, jnp.nan)


def _rank(values: Array, target: Target) -> Array:
    return -jnp.abs(values) if target == "largest" else jnp.real(values)


def _unit(vector: Array) -> Array:
    return vector / jnp.linalg.norm(vector)


def _mixed(vectors: Array, fallback: Array) -> Array:
    """Combine the most wanted Ritz vectors into one real start."""
    weights = jnp.asarray(_MIXTURE[: vectors.shape[0]], fallback.dtype)
    parts = jax.vmap(_unit)(vectors)
    mixture = dot(weights, jnp.real(parts)) + dot(weights, jnp.imag(parts))
    return jnp.where(jnp.all(jnp.isfinite(mixture)), unit(mixture), fallback)
