"""One top eigenvalue along training: three-term Lanczos on flat vectors, warm-started, stopped on its residual.

Written for a tile of runs: a `vmap` over runs copies nothing large, and the tridiagonal eigenproblem of a step costs a
few microseconds (bisection on pivots; no dense eigensolver). For several eigenvalues: `thick_restart`.

Source: Paige 1972 (the three-term recurrence in finite precision); Parlett 1998, *The Symmetric Eigenvalue Problem*,
chapters 3 and 13; Dhillon 1997 (eigenvectors of a tridiagonal matrix from its pivots).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from lossland.arguments import ARRAY, FUNCTION, count, expects, number

MAX_BASIS_BYTES = 2**28
ROUNDING_UNITS = 32  # of eps * ||H||: what a float Hessian product cannot resolve; residuals below it are zero
_POINTS = 16  # shifts tried at once in a multisection: one vector register, 4 bits a round
_NUM_INVERSIONS = 3
_MIXTURE = (1.0, 0.5, 0.2)  # weights of the top Ritz vectors in a warm start: it holds those about to overtake
_NOISE = 0.01  # norm of the noise in a warm start: escapes exact invariance, costs less than a product


class TopEigenpair(NamedTuple):
    """The largest signed eigenvalue of a symmetric operator and what certifies it, for one run.

    value: `Float[Array, ""]`; vector: `Float[Array, "p"]`, unit norm; residual: `Float[Array, ""]`, the Lanczos
    bound on ||H v - value v||, in the units of `value`; num_matvecs: `Int[Array, ""]`; converged: `Bool[Array, ""]`;
    next_start: `Float[Array, "p"]`, the start to pass at the next point of a trajectory.
    """

    value: Array
    vector: Array
    residual: Array
    num_matvecs: Array
    converged: Array
    next_start: Array


class _Tridiagonal(NamedTuple):
    """The leading `count` rows of T in units of `scale`; the rows after them are cut off and below its spectrum."""

    diagonal: Array
    off_diagonal: Array  # off_diagonal[i] couples rows i and i + 1
    count: Array
    num_rows: Array  # >= count and the same in all lanes: how far loops over rows go
    scale: Array  # Gershgorin bound on the spectral radius of T, or 1 where T is zero


class _Cycle(NamedTuple):
    """State of one Lanczos cycle. All fields but `step` belong to a lane; `step` is the same in all lanes."""

    step: Array
    basis: Array
    vector: Array
    previous: Array
    beta_last: Array
    alpha: Array
    beta: Array
    count: Array
    low: Array  # low <= top eigenvalue of T <= high, close enough for the stopping rule
    high: Array
    residual: Array
    active: Array
    failed: Array


class _Solve(NamedTuple):
    """State between cycles: the best pair so far, and whether the lane goes on."""

    total: Array
    basis: Array
    start: Array
    pair: TopEigenpair
    active: Array


def basis_size(num_params: int, num_vectors: int, dtype: Any, max_bytes: int = MAX_BASIS_BYTES) -> int:
    """Return how many basis vectors to keep: at most `num_vectors`, at most `num_params`, at most `max_bytes` of them.

    Never fewer than 4 (or `num_params`): below that a restarted iteration is a power iteration.
    """
    affordable = max(max_bytes // (num_params * jnp.dtype(dtype).itemsize), 4)
    return max(1, min(num_vectors, num_params, affordable))


@expects(
    matvec_flat=FUNCTION, start=ARRAY, tol=number(above=0), num_vectors=count(), max_matvecs=count(), any_lane=FUNCTION
)
def top_eigenpair(
    matvec_flat: Callable[[Array], Array],
    start: Array,
    *,
    tol: float = 1e-4,
    num_vectors: int = 64,
    max_matvecs: int = 512,
    any_lane: Callable[[Array], Array] = lambda active: active,
) -> TopEigenpair:
    """Find the largest signed eigenvalue of a symmetric matrix by three-term Lanczos with a stop on the residual.

    H V = V T + beta v e_last^T; a Ritz pair (theta, s) of T has ||H V s - theta V s|| = beta |s_last|. The lane stops
    when that is <= tol |theta| and the estimated error of the value, min(r, r^2 / gap), is <= max(5 tol^2, 32 eps)
    |theta|; or when it is below what the precision resolves, 32 eps ||T||: an invariant subspace (zero matrix, low
    rank, 1 x 1) ends there. A full basis restarts from the best Ritz vector, until `max_matvecs`.

    matvec_flat: `Float[Array, "p"] -> Float[Array, "p"]`. start: `Float[Array, "p"]`, any norm: a random vector, or the
    `next_start` of a previous point, which is the sum of the top three Ritz vectors plus noise: one old vector alone
    certifies the second eigenvalue after a crossing. tol: relative to |theta|.

    Under `jax.vmap(..., axis_name="lanes")` pass `any_lane=lambda active: lax.pmax(active.astype("int32"), "lanes") >
    0`: the loop then has one predicate for all lanes and no `select` runs over the basis. A lane's result is fixed at
    its own stopping step, whatever its neighbours do. A lane whose product is not finite stops at once with value NaN
    and `converged` False; its `next_start` is finite again.

    Raises ValueError where `start` is not a vector of floats or a number is out of range.
    """
    check_start(start)
    check_positive("tol", tol)
    check_positive("num_vectors", num_vectors)
    check_positive("max_matvecs", max_matvecs)
    num_params, dtype = start.shape[0], start.dtype
    size = basis_size(num_params, num_vectors, dtype)
    norm = jnp.linalg.norm(start)
    usable = jnp.isfinite(norm) & (norm > 0)
    direction = jnp.where(usable, start / jnp.where(usable, norm, 1), 0)

    def step(state: _Cycle) -> _Cycle:
        basis = lax.dynamic_update_index_in_dim(state.basis, state.vector, state.step, 0)
        product = matvec_flat(state.vector) - state.beta_last * state.previous
        alpha_new = dot(state.vector, product)
        product = product - alpha_new * state.vector
        beta_new = jnp.linalg.norm(product)
        finite = jnp.isfinite(alpha_new) & jnp.isfinite(beta_new)
        write = state.active & finite
        is_last = write & (jnp.arange(size) == state.step)
        alpha = jnp.where(is_last, alpha_new, state.alpha)
        beta = jnp.where(is_last, beta_new, state.beta)
        count = jnp.where(write, state.step + 1, state.count)
        matrix = _scaled(alpha, beta, count, state.step + 1)
        low, high, residual, accurate = _analyse(matrix, beta_new, state.low, tol)
        active = write & ~accurate
        next_vector = jnp.where(active, product / jnp.where(beta_new > 0, beta_new, 1), 0)
        return _Cycle(
            step=state.step + 1,
            basis=basis,
            vector=next_vector,
            previous=state.vector,
            beta_last=jnp.where(active, beta_new, 0),
            alpha=alpha,
            beta=beta,
            count=count,
            low=jnp.where(write, low, state.low),
            high=jnp.where(write, high, state.high),
            residual=jnp.where(write, residual, state.residual),
            active=active,
            failed=state.failed | (state.active & ~finite),
        )

    def cycle(solve: _Solve) -> _Solve:
        begin = _Cycle(
            step=jnp.zeros((), jnp.int32),
            basis=solve.basis,
            vector=jnp.where(solve.active, solve.start, 0),
            previous=jnp.zeros(num_params, dtype),
            beta_last=jnp.zeros((), dtype),
            alpha=jnp.zeros(size, dtype),
            beta=jnp.zeros(size, dtype),
            count=jnp.zeros((), jnp.int32),
            low=jnp.full((), -jnp.inf, dtype),
            high=jnp.full((), jnp.inf, dtype),
            residual=jnp.full((), jnp.inf, dtype),
            active=solve.active,
            failed=jnp.zeros((), bool),
        )
        limit = jnp.minimum(size, max_matvecs - solve.total)
        end = lax.while_loop(lambda state: any_lane(state.active) & (state.step < limit), step, begin)
        matrix = _scaled(end.alpha, end.beta, end.count, end.step)
        value, weights = _ritz_pairs(matrix, end.high)
        vector, mixture = _combine(end.basis, weights, end.count, end.step)
        # The bits of the value as seed: new noise at every point of a trajectory, the same in a rerun.
        seed = lax.bitcast_convert_type(value.astype(jnp.float32), jnp.uint32)
        noise = generic_vector(seed, num_params, dtype)
        fallback = jnp.where(usable, direction, noise)
        next_start = jnp.where(end.failed, fallback, unit(mixture + _NOISE * noise))
        new = TopEigenpair(
            value=jnp.where(end.failed, jnp.nan, value),
            vector=jnp.where(end.failed, jnp.nan, vector),
            residual=jnp.where(end.failed, jnp.nan, end.residual),
            num_matvecs=solve.pair.num_matvecs + end.count + end.failed.astype(jnp.int32),
            converged=~end.active & ~end.failed,
            next_start=next_start,
        )
        pair = TopEigenpair(
            *(jnp.where(solve.active, fresh, kept) for fresh, kept in zip(new, solve.pair, strict=True))
        )
        return _Solve(solve.total + end.step, end.basis, vector, pair, end.active)

    zero = jnp.zeros((), dtype)
    begin = _Solve(
        total=jnp.zeros((), jnp.int32),
        basis=jnp.zeros((size, num_params), dtype),
        start=direction,
        pair=TopEigenpair(zero, direction, zero, jnp.zeros((), jnp.int32), jnp.zeros((), bool), direction),
        active=jnp.ones((), bool),
    )
    # A start that is zero or not finite must fail in its first product, not converge on the zero vector.
    begin = begin._replace(start=jnp.where(usable, direction, jnp.nan))
    end = lax.while_loop(lambda solve: any_lane(solve.active) & (solve.total < max_matvecs), cycle, begin)
    return end.pair


def _combine(basis: Array, weights: Array, count: Array, num_rows: Array) -> tuple[Array, Array]:
    """Return the top Ritz vector and the sum of the top ones, reading only the rows that were written."""
    mixture = jnp.asarray(_MIXTURE[: weights.shape[0]], weights.dtype)
    mixed = jnp.stack([weights[0], dot(mixture, weights)])

    def add(row: Array, sums: Array) -> Array:
        # `where`, not a zero weight: a finished lane must not even have the sign of a zero changed by its neighbours.
        return jnp.where(row < count, sums + mixed[:, row, None] * basis[row], sums)

    _, sums = lax.while_loop(
        lambda state: state[0] < num_rows,
        lambda state: (state[0] + 1, add(*state)),
        (jnp.zeros((), jnp.int32), jnp.zeros((2, basis.shape[1]), basis.dtype)),
    )
    return unit(sums[0]), unit(sums[1])


def dot(left: Array, right: Array) -> Array:
    """Multiply matrices or vectors in full precision on every device."""
    return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)


def unit(vector: Array) -> Array:
    """Scale a vector to norm 1; zero stays zero."""
    norm = jnp.linalg.norm(vector)
    return vector / jnp.where(norm > 0, norm, 1)


def generic_vector(seed: Array, num_params: int, dtype: Any) -> Array:
    """Return a unit vector in general position that depends on `seed` (`UInt32[Array, ""]`) alone.

    A 32-bit mixing function (the finaliser of MurmurHash3): as good here as a random number, at a tenth of its cost,
    and the same under every random-number configuration.
    """
    bits = lax.iota(jnp.uint32, num_params) * jnp.uint32(0x9E3779B9) + seed
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    bits = bits ^ (bits >> 16)
    return unit(bits.astype(jnp.int32).astype(dtype) / 2.0**31)


# --- The tridiagonal matrix ---


def _scaled(alpha: Array, beta: Array, count: Array, num_rows: Array) -> _Tridiagonal:
    """Cut T to its leading `count` rows and divide it by a bound of its spectral radius."""
    index = jnp.arange(alpha.shape[0])
    alpha = jnp.where(index < count, alpha, 0)
    beta = jnp.where(index < count - 1, beta, 0)
    radius = jnp.max(jnp.abs(alpha) + beta + jnp.concatenate([jnp.zeros_like(beta[:1]), beta[:-1]]))
    scale = jnp.where(radius > 0, radius, 1)
    return _Tridiagonal(jnp.where(index < count, alpha / scale, -4), beta / scale, count, num_rows, scale)


def _analyse(matrix: _Tridiagonal, beta: Array, known: Array, tol: float) -> tuple[Array, Array, Array, Array]:
    """Bracket the largest eigenvalue of T; return low, high, the residual beta |s_last|, and whether both are accurate.

    beta: norm of what the last product left over; known: a lower bound, from T without its last row. The bracket is as
    narrow as the stopping rule needs: it is shrunk by trying 16 shifts at once; a shift exceeds all eigenvalues if all
    pivots are positive.
    """
    dtype = matrix.diagonal.dtype
    eps = float(jnp.finfo(dtype).eps)
    rounding = ROUNDING_UNITS * eps
    value_tol = max(5 * tol**2, rounding)
    last = matrix.count - 1
    alpha_last = matrix.diagonal[last]
    beta_before = jnp.where(last > 0, matrix.off_diagonal[last - 1], 0)
    # Interlacing: T's top eigenvalue is above the one without its last row, and below that of the 2 x 2 matrix in which
    # the last row couples to it with all its strength.
    known = jnp.where(last > 0, jnp.maximum(known / matrix.scale, -1), alpha_last)
    low = jnp.maximum(known, alpha_last) - 4 * eps
    high = 0.5 * (known + alpha_last) + jnp.hypot(0.5 * (known - alpha_last), beta_before) + 8 * eps
    bits = min(math.ceil(-math.log2(tol)) + 4, jnp.finfo(dtype).nmant + 3)
    num_rounds = math.ceil(bits / math.log2(_POINTS + 1))
    fractions = jnp.arange(1, _POINTS + 1, dtype=dtype) / (_POINTS + 1)
    coupling = beta / matrix.scale
    coupling = jnp.where(coupling <= rounding, 0, coupling)

    def visit(index: Array, state: tuple[Array, ...], shifts: Array) -> tuple[Array, ...]:
        below, smallest, num_above, share, weight = state
        row = matrix.num_rows - 1 - index
        pivot = shifts - matrix.diagonal[row] - matrix.off_diagonal[row] ** 2 / below
        # share: (s_last / s_i)^2 / weight; weight: sum over k >= i of (s_k / s_i)^2, in units that do not overflow.
        ratio = jnp.where((row > 0) & (row <= last), matrix.off_diagonal[row - 1], 0) / jnp.maximum(pivot, eps**2)
        grown = ratio**2 * weight
        share = jnp.where(row <= last, share * jnp.where(row > 0, grown / (1 + grown), 1), share)
        weight = jnp.minimum(1 + grown, 1e30)
        return pivot, jnp.minimum(smallest, pivot), num_above + (pivot < 0), share, weight

    def shrink(index: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, residual, _ = state
        # After the bracket, the last two rounds: the residual at its upper end, then how many eigenvalues are so close
        # below its lower end that they would spoil the error r^2 / gap of the value.
        spoiled = low - residual**2 / (value_tol * _least_modulus(low, high) + eps**2)
        shifts = jnp.where(
            index < num_rounds, low + (high - low) * fractions, jnp.where(index == num_rounds, high, spoiled)
        )
        one = jnp.ones_like(shifts)
        begin = (one, one, jnp.zeros(shifts.shape, jnp.int32), one, one)
        end = lax.fori_loop(0, matrix.num_rows, lambda index, state: visit(index, state, shifts), begin)
        _, smallest, num_above, share, _ = end
        is_above = smallest > 0
        new_high = jnp.minimum(high, jnp.min(jnp.where(is_above, shifts, high)))
        new_low = jnp.minimum(new_high, jnp.maximum(low, jnp.max(jnp.where(is_above, low, shifts))))
        is_bracketing = index < num_rounds
        return (
            jnp.where(is_bracketing, new_low, low),
            jnp.where(is_bracketing, new_high, high),
            jnp.where(index == num_rounds, coupling * jnp.sqrt(share[0]), residual),
            num_above[0],
        )

    begin = (low, high, coupling, jnp.zeros((), jnp.int32))
    low, high, residual, num_close = lax.fori_loop(0, num_rounds + 2, shrink, begin)
    size = _least_modulus(low, high)
    is_accurate = (residual <= tol * size) & ((num_close <= 1) | (residual <= value_tol * size))
    is_accurate = is_accurate | (residual <= rounding)
    return low * matrix.scale, high * matrix.scale, residual * matrix.scale, is_accurate


def _least_modulus(low: Array, high: Array) -> Array:
    return jnp.where(low * high > 0, jnp.minimum(jnp.abs(low), jnp.abs(high)), 0)


def _ritz_pairs(matrix: _Tridiagonal, high: Array) -> tuple[Array, Array]:
    """Return T's largest eigenvalue and the eigenvectors of about its top three: `Float[Array, "3 rows"]`.

    high: an upper bound of the largest, close to it. Inverse iteration there, each vector orthogonal to those before:
    the first is exact, the others lean towards the next eigenvectors, all that a start needs. Rows of zeros where T has
    fewer.
    """
    size, dtype = matrix.diagonal.shape[0], matrix.diagonal.dtype
    num_vectors = min(len(_MIXTURE), size)
    inside = jnp.arange(size) < matrix.count
    zero = jnp.zeros(1, dtype)
    lower = jnp.concatenate([zero, matrix.off_diagonal[:-1]])
    upper = jnp.concatenate([matrix.off_diagonal[:-1], zero])
    # A shift four rounding units off keeps the system regular and costs the vectors nothing.
    shift = jnp.where(jnp.isfinite(high), high / matrix.scale, 0) + 4 * float(jnp.finfo(dtype).eps)
    # An irrational rotation: a constant right-hand side would be orthogonal to the odd eigenvectors of a symmetric T.
    seed = (0.5 + jnp.mod(0.6180339887 * jnp.arange(1, size + 1), 1)).astype(dtype)

    def invert(index: Array, vectors: Array) -> Array:
        order = index // _NUM_INVERSIONS
        is_first = index % _NUM_INVERSIONS == 0
        vector = jnp.where(is_first, jnp.where(inside & (order < matrix.count), seed, 0), vectors[order])
        solved = lax.linalg.tridiagonal_solve(lower, matrix.diagonal - shift, upper, vector[:, None])[:, 0]
        solved = jnp.where(jnp.isfinite(solved) & inside, solved, vector)
        row = jnp.arange(num_vectors)[:, None]
        overlaps = jnp.where(row < order, jnp.sum(vectors * solved, axis=1, keepdims=True), 0)
        return jnp.where(row == order, unit(solved - jnp.sum(overlaps * vectors, axis=0)), vectors)

    begin = jnp.zeros((num_vectors, size), dtype)
    vectors = lax.fori_loop(0, _NUM_INVERSIONS * num_vectors, invert, begin)
    top = vectors[0]
    value = jnp.sum(matrix.diagonal * top**2) + 2 * jnp.sum(matrix.off_diagonal[:-1] * top[:-1] * top[1:])
    return value * matrix.scale, vectors


def check_start(start: Array) -> None:
    if start.ndim != 1 or start.size == 0:
        raise ValueError(
            f"start: expected a vector with at least one parameter, got shape {start.shape}; "
            "flatten a pytree with jax.flatten_util.ravel_pytree"
        )
    if not jnp.issubdtype(start.dtype, jnp.floating):
        raise ValueError(f"start: expected real floats, got {start.dtype}; cast it, e.g. start.astype('float32')")


def check_positive(name: str, number: float) -> None:
    if not number > 0:
        raise ValueError(f"{name}: expected a number > 0, got {number}")
