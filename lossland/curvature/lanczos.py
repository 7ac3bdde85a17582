"""Lanczos on flat vectors: the one solver behind every eigenvalue of the library.

`top_eigenpair` is the solver of the training engine: one eigenvalue, no reorthogonalisation, warm start, written so
that a `vmap` over runs copies nothing large. `extremal_eigenpairs` finds several, with reorthogonalisation, thick
restart and a search for multiple eigenvalues. Both stop on the residual, never on the change of a value.

Source: Paige 1972 (the three-term recurrence in finite precision); Parlett 1998, *The Symmetric Eigenvalue Problem*,
chapters 7 and 13; Wu and Simon 2000 (thick restart).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

MAX_BASIS_BYTES = 2**28
ROUNDING_UNITS = 32  # of eps * ||H||: what a float Hessian product cannot resolve; residuals below it are zero
_POINTS = 16  # shifts tried at once in a multisection: one vector register, 4 bits a round
_MIXTURE = (1.0, 0.3, 0.01)  # weights of the top Ritz vectors in a warm start: it holds those about to overtake
_NOISE = 0.05  # norm of the noise in a warm start: escapes exact invariance, costs less than a product


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
    |theta|; or when it is below what the precision resolves, 32 eps ||T||: an invariant subspace (zero matrix, low rank,
    1 x 1) ends there. A full basis restarts from the best Ritz vector, until `max_matvecs`.

    matvec_flat: `Float[Array, "p"] -> Float[Array, "p"]`. start: `Float[Array, "p"]`, any norm: a random vector, or the
    `next_start` of a previous point, which is the sum of the top three Ritz vectors plus noise: one old vector alone
    certifies the second eigenvalue after a crossing. tol: relative to |theta|.

    Under `jax.vmap(..., axis_name="lanes")` pass `any_lane=lambda active: lax.pmax(active.astype("int32"), "lanes") > 0`:
    the loop then has one predicate for all lanes and no `select` runs over the basis. A lane's result is fixed at its
    own stopping step, whatever its neighbours do. A lane whose product is not finite stops at once with value NaN and
    `converged` False; its `next_start` is finite again.

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
        beta_before = jnp.where(state.step > 0, state.beta[state.step - 1], 0)
        product = matvec_flat(state.vector) - beta_before * state.previous
        alpha_new = jnp.vdot(state.vector, product)
        product = product - alpha_new * state.vector
        beta_new = jnp.linalg.norm(product)
        finite = jnp.isfinite(alpha_new) & jnp.isfinite(beta_new)
        write = state.active & finite
        alpha = jnp.where(write, state.alpha.at[state.step].set(alpha_new), state.alpha)
        beta = jnp.where(write, state.beta.at[state.step].set(beta_new), state.beta)
        count = jnp.where(write, state.step + 1, state.count)
        matrix = _scaled(alpha, beta, count, state.step + 1)
        low, high, residual, accurate = _top_ritz_value(matrix, beta, state.low, tol)
        active = write & ~accurate
        next_vector = jnp.where(active, product / jnp.where(beta_new > 0, beta_new, 1), 0)
        return _Cycle(
            step=state.step + 1,
            basis=basis,
            vector=next_vector,
            previous=jnp.where(active, state.vector, 0),
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
        value, weights = _ritz_pairs(matrix, end.low, end.high)
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
        pair = TopEigenpair(*(jnp.where(solve.active, fresh, kept) for fresh, kept in zip(new, solve.pair, strict=True)))
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
    mixed = jnp.stack([weights[0], mixture @ weights])

    def add(row: Array, sums: Array) -> Array:
        # `where`, not a zero weight: a finished lane must not even have the sign of a zero changed by its neighbours.
        return jnp.where(row < count, sums + mixed[:, row, None] * basis[row], sums)

    _, sums = lax.while_loop(
        lambda state: state[0] < num_rows,
        lambda state: (state[0] + 1, add(*state)),
        (jnp.zeros((), jnp.int32), jnp.zeros((2, basis.shape[1]), basis.dtype)),
    )
    return unit(sums[0]), unit(sums[1])


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


def _pivots_from_below(matrix: _Tridiagonal, shift: Array, combine: Callable[..., Any], initial: Any) -> Any:
    """Fold over the pivots e_i = shift - alpha_i - beta_i^2 / e_{i+1} of shift I - T, from the last row up to the first.

    As many pivots are negative as T has eigenvalues > shift. Bottom up, because the top eigenvector of a converged T
    decays downwards: s_{i+1} = s_i beta_i / e_{i+1} is then accurate in relative terms down to the last component, which
    is the residual. combine: (carry, pivot, row) -> carry.
    """

    def visit(index: Array, state: tuple[Array, Any]) -> tuple[Array, Any]:
        below, carry = state
        row = matrix.num_rows - 1 - index
        pivot = shift - matrix.diagonal[row] - matrix.off_diagonal[row] ** 2 / below
        return pivot, combine(carry, pivot, row)

    return lax.fori_loop(0, matrix.num_rows, visit, (jnp.ones_like(shift), initial))[1]


def _exceeds_all(matrix: _Tridiagonal, shift: Array) -> Array:
    """Return whether shift > every eigenvalue of T: all pivots positive (a NaN, 0 / 0, counts as not)."""
    smallest = _pivots_from_below(
        matrix, shift, lambda carry, pivot, _: jnp.minimum(carry, pivot), jnp.full_like(shift, jnp.inf)
    )
    return smallest > 0


def _num_above(matrix: _Tridiagonal, shift: Array) -> Array:
    """Count the eigenvalues of T that are > shift."""
    return _pivots_from_below(
        matrix, shift, lambda carry, pivot, _: carry + (pivot < 0), jnp.zeros(shift.shape, jnp.int32)
    )


def _multisect(
    is_above: Callable[[Array], Array], low: Array, high: Array, bits: int, points: int = _POINTS
) -> tuple[Array, Array]:
    """Shrink the brackets (low, high] of the least shifts that `is_above` accepts by 2^bits.

    low, high: `Float[Array, "..."]`; is_above: shifts `Float[Array, "... points"]` -> bool.
    """
    fractions = jnp.arange(1, points + 1, dtype=low.dtype) / (points + 1)

    def shrink(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        shifts = low[..., None] + (high - low)[..., None] * fractions
        above = is_above(shifts)
        new_low = jnp.maximum(low, jnp.max(jnp.where(above, low[..., None], shifts), axis=-1))
        new_high = jnp.minimum(high, jnp.min(jnp.where(above, shifts, high[..., None]), axis=-1))
        return jnp.minimum(new_low, new_high), new_high

    return lax.fori_loop(0, math.ceil(bits / math.log2(points + 1)), shrink, (low, high))


def _top_ritz_value(
    matrix: _Tridiagonal, beta: Array, known: Array, tol: float
) -> tuple[Array, Array, Array, Array]:
    """Bracket the largest eigenvalue of T; return the bracket, the residual beta |s_last|, and whether both are accurate.

    known: a lower bound, from T without its last row. The bracket is as narrow as the stopping rule needs.
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
    high = 0.5 * (known + alpha_last) + jnp.hypot(0.5 * (known - alpha_last), beta_before)
    low = jnp.maximum(known, alpha_last)
    low, high = _multisect(
        lambda shifts: _exceeds_all(matrix, shifts), low - 4 * eps, high + 8 * eps, _bracket_bits(dtype, tol)
    )

    def accumulate(carry: tuple[Array, Array], pivot: Array, row: Array) -> tuple[Array, Array]:
        # share: (s_last / s_i)^2 / weight; weight: sum over k >= i of (s_k / s_i)^2.
        share, weight = carry
        is_inside = (row > 0) & (row <= last)
        grown = (matrix.off_diagonal[row - 1] / jnp.maximum(pivot, eps**2)) ** 2 * weight
        return (
            jnp.where(is_inside, share * (grown / (1 + grown)), share),
            jnp.where(is_inside, jnp.minimum(1 + grown, 1e30), weight),
        )

    one = jnp.ones((), dtype)
    share, _ = _pivots_from_below(matrix, high, accumulate, (one, one))
    coupling = beta[last] / matrix.scale
    residual = jnp.where(coupling <= rounding, 0, coupling * jnp.sqrt(share))
    size = jnp.where(low * high > 0, jnp.minimum(jnp.abs(low), jnp.abs(high)), 0)
    # min(r, r^2 / gap) <= value_tol |theta|, with the gap to the second Ritz value tested by one count of pivots.
    is_isolated = _num_above(matrix, low - residual**2 / (value_tol * size + eps**2)) <= 1
    is_accurate = (residual <= tol * size) & (is_isolated | (residual <= value_tol * size))
    is_accurate = is_accurate | (residual <= rounding)
    return low * matrix.scale, high * matrix.scale, residual * matrix.scale, is_accurate


def _bracket_bits(dtype: Any, tol: float) -> int:
    return min(math.ceil(-math.log2(tol)) + 4, jnp.finfo(dtype).nmant + 3)


def _ritz_pairs(matrix: _Tridiagonal, low: Array, high: Array) -> tuple[Array, Array]:
    """Return T's largest eigenvalue and the eigenvectors of its top three: `Float[Array, "3 rows"]`, zero where T has fewer.

    low, high: a bracket of the largest, which is refined to the last bit; the others are located to 12 bits, enough for
    inverse iteration.
    """
    size, dtype = matrix.diagonal.shape[0], matrix.diagonal.dtype
    eps = float(jnp.finfo(dtype).eps)
    inside = jnp.arange(size) < matrix.count
    low, high = (jnp.where(jnp.isfinite(end), end / matrix.scale, 0) for end in (low, high))
    low, high = _multisect(lambda shifts: _exceeds_all(matrix, shifts), low, high, jnp.finfo(dtype).nmant + 3)
    top = (low + high) / 2
    values = [high]
    if size > 1:
        # Two brackets of eight shifts share one pass: small loops stay in registers, larger ones do not.
        order = jnp.repeat(jnp.arange(1, len(_MIXTURE)), _POINTS // 2)

        def is_above(shifts: Array) -> Array:
            return (_num_above(matrix, shifts.ravel()) <= order).reshape(shifts.shape)

        low = jnp.full(len(_MIXTURE) - 1, -1 - eps, dtype)
        low, high = _multisect(is_above, low, jnp.broadcast_to(top, low.shape), bits=12, points=_POINTS // 2)
        values += list((low + high) / 2)
    zero = jnp.zeros(1, dtype)
    lower = jnp.concatenate([zero, matrix.off_diagonal[:-1]])
    upper = jnp.concatenate([matrix.off_diagonal[:-1], zero])
    # An irrational rotation: a constant right-hand side would be orthogonal to the odd eigenvectors of a symmetric T.
    seed = (0.5 + jnp.mod(0.6180339887 * jnp.arange(1, size + 1), 1)).astype(dtype)
    shifts = jnp.stack(values)

    def invert(index: Array, vectors: Array) -> Array:
        order = index // 2
        vector = jnp.where(index % 2 == 0, jnp.where(inside & (order < matrix.count), seed, 0), vectors[order])
        # A shift four rounding units off keeps the system regular and costs the vector nothing.
        diagonal = matrix.diagonal - shifts[order] - 4 * eps
        solved = lax.linalg.tridiagonal_solve(lower, diagonal, upper, vector[:, None])[:, 0]
        solved = unit(jnp.where(jnp.isfinite(solved) & inside, solved, vector))
        earlier = jnp.where((jnp.arange(len(values)) < order)[:, None], vectors, 0)
        return vectors.at[order].set(unit(solved - earlier.T @ (earlier @ solved)))

    vectors = lax.fori_loop(0, 2 * len(values), invert, jnp.zeros((len(values), size), dtype))
    return top * matrix.scale, vectors


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
