"""Several extremal eigenpairs at once: Lanczos with full reorthogonalisation, restarts and a search for copies.

The basis V is kept orthonormal to rounding and its image H V is kept beside it, so V^T H V and the residuals are what
they are called, whatever directions the basis was built from: there is no recurrence to lose, and no ghost.

One Krylov space sees every eigenvalue once, however often it occurs. When the wanted pairs have converged, the
iteration goes on from a random vector orthogonal to all it has, and ends only when this search finds nothing that
belongs among them: either its own top value has converged below theirs, or a bound on Lanczos from a random start says
that it would have shown itself.

Source: Morgan and Scott 1986 (the residual as the next direction, equal to Lanczos where there is one Krylov space); Wu
and Simon 2000 (thick restart); Parlett 1998, sections 6.9 and 11.7 (twice is enough; error of Ritz values); Kuczynski
and Wozniakowski 1992, theorem 3.2 (the bound).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from lossland.curvature.factorisations import eigh
from lossland.curvature.lanczos import (
    MAX_BASIS_BYTES,
    ROUNDING_UNITS,
    basis_size,
    check_positive,
    check_start,
    dot,
    generic_vector,
    unit,
)

_BLOCK = (
    8  # basis rows per pass of the reorthogonalisation: its cost follows the rows in use, not the size of the basis
)
_MISS_PROBABILITY = 0.01  # that a copy of a wanted eigenvalue escapes the search


class FlatEigenpairs(NamedTuple):
    """Eigenpairs on flat vectors, most wanted first.

    values: `Float[Array, "k"]`; vectors: `Float[Array, "k p"]`, orthonormal rows; residuals: `Float[Array, "k"]`,
    ||H v - value v|| in the units of `values`; num_matvecs: `Int[Array, ""]`; converged: `Bool[Array, "k"]`.
    """

    values: Array
    vectors: Array
    residuals: Array
    num_matvecs: Array
    converged: Array


class _Ritz(NamedTuple):
    """The wanted pairs at the latest check; coefficients: `Float[Array, "k size"]`, their vectors in the basis."""

    coefficients: Array
    values: Array
    residuals: Array
    converged: Array


class _Cycle(NamedTuple):
    """State of the iteration. `step` and `limit` are the same in all lanes, the rest belongs to a lane.

    Rows of the basis from `search_start` on were grown from the latest random vector.
    """

    step: Array
    limit: Array
    basis: Array
    images: Array
    projected: Array
    vector: Array
    norm: Array  # largest ||H v|| seen, a lower bound of ||H||
    ritz: _Ritz
    next_check: Array
    search_start: Array
    num_searched: Array
    num_matvecs: Array
    active: Array
    failed: Array


class _Solve(NamedTuple):
    total: Array
    cycle: _Cycle
    pairs: FlatEigenpairs


def extremal_eigenpairs(
    matvec_flat: Callable[[Array], Array],
    start: Array,
    k: int,
    *,
    by_magnitude: bool = False,
    tol: float = 1e-4,
    num_vectors: int | None = None,
    max_matvecs: int = 1000,
    any_lane: Callable[[Array], Array] = lambda active: active,
) -> FlatEigenpairs:
    """Find the k largest eigenvalues of a symmetric matrix, signed or `by_magnitude`, each as often as it occurs.

    A pair has converged when its residual is <= tol |value| and the estimated error of the value, min(r, ||R||^2 /
    gap), is <= max(tol^2, 32 eps) |value|; or when the residual is below what the precision resolves, 32 eps ||H||.
    Then copies are searched for (see the module); the probability to miss one is about 1 %, and none where the space is
    exhausted. A lane that has run out of products before its search ended has no value flagged as converged.

    matvec_flat: `Float[Array, "p"] -> Float[Array, "p"]`; start: `Float[Array, "p"]`. num_vectors: basis size, 3 k + 32
    by default, within 256 MB with the images. any_lane: as in `lanczos.top_eigenpair`. A lane whose product is not
    finite returns NaN and `converged` False.

    Raises ValueError where k is not in 1..p, or num_vectors is below 2 k + 8 and below p.
    """
    check_start(start)
    check_positive("tol", tol)
    check_positive("max_matvecs", max_matvecs)
    num_params, dtype = start.shape[0], start.dtype
    if not 1 <= k <= num_params:
        raise ValueError(f"k: expected 1 <= k <= {num_params}, the number of parameters, got {k}; ask for fewer pairs")
    least = min(2 * k + 8, num_params)  # with fewer, the rounding of many restarts adds up
    if num_vectors is not None and num_vectors < least:
        raise ValueError(f"num_vectors: expected at least {least} for k = {k}, got {num_vectors}; raise it or lower k")
    size = max(basis_size(num_params, num_vectors or 3 * k + 32, dtype, MAX_BASIS_BYTES // 2), least)
    num_kept = min(k + (size - k) // 2, size - 1)
    num_apart = max((size - k) // 4, 1)  # of these, for a search: fewer than the rows a restart leaves it
    rounding = ROUNDING_UNITS * float(jnp.finfo(dtype).eps)
    value_tol = max(tol**2, rounding)
    tiny = float(jnp.finfo(dtype).tiny)
    search_constant = math.log(1.648 * math.sqrt(num_params) / _MISS_PROBABILITY)
    shortest_search = math.ceil((search_constant + 1) / 2)
    padded = -(-size // _BLOCK) * _BLOCK
    index = jnp.arange(size)
    nowhere = 2 * size  # beyond all rows

    def wanted(values: Array) -> Array:
        return jnp.abs(values) if by_magnitude else values

    def decompose(projected: Array, inside: Array) -> tuple[Array, Array]:
        """Return eigenvalues of some rows of V^T H V, most wanted first, then -inf, and eigenvectors as rows."""
        masked = jnp.where(inside[:, None] & inside[None, :], projected, 0)
        # Rows that do not exist get an eigenvalue that cannot be mistaken: outside the spectrum.
        radius = jnp.max(jnp.sum(jnp.abs(masked), axis=1)) + tiny
        values, vectors = eigh(masked + jnp.diag(jnp.where(inside, 0, 2 * radius)))
        exists = values < 1.5 * radius
        order = jnp.argsort(jnp.where(exists, -wanted(values), jnp.inf), stable=True)
        return jnp.where(exists, values, -jnp.inf)[order], vectors.T[order]

    def combine(coefficients: Array, rows: Array, num_rows: Array) -> Array:
        """Return coefficients @ rows, of which only the first are read: the others are zero."""
        coefficients = jnp.pad(coefficients, ((0, 0), (0, padded - size)))

        def visit(block: Array, total: Array) -> Array:
            part = lax.dynamic_slice_in_dim(coefficients, block * _BLOCK, _BLOCK, axis=1)
            return total + dot(part, lax.dynamic_slice_in_dim(rows, block * _BLOCK, _BLOCK))

        total = jnp.zeros((coefficients.shape[0], num_params), dtype)
        return lax.fori_loop(0, (num_rows + _BLOCK - 1) // _BLOCK, visit, total)

    def orthogonalise(basis: Array, vector: Array, num_rows: Array) -> tuple[Array, Array]:
        """Return the part of `vector` orthogonal to the basis, and its components on the basis: twice is enough."""

        def project(vector: Array) -> tuple[Array, Array]:
            def visit(block: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
                rest, components = state
                rows = lax.dynamic_slice_in_dim(basis, block * _BLOCK, _BLOCK)
                part = dot(rows, vector)
                return rest - dot(part, rows), lax.dynamic_update_slice_in_dim(components, part, block * _BLOCK, 0)

            begin = (vector, jnp.zeros(padded, dtype))
            return lax.fori_loop(0, (num_rows + _BLOCK - 1) // _BLOCK, visit, begin)

        once, components = project(vector)
        twice, corrections = project(once)
        return twice, (components + corrections)[:size]

    def check(state: _Cycle) -> tuple[_Ritz, Array, Array, Array, Array]:
        """Rayleigh-Ritz on the basis: pairs, whether this is the end, next vector, where its search starts, wait."""
        values, vectors = decompose(state.projected, index < state.step)
        found, found_vectors = decompose(state.projected, (index >= state.search_start) & (index < state.step))
        is_searching = state.search_start < state.step
        best = jnp.where(is_searching, found[0], 0)
        exists = jnp.isfinite(values[:k])
        top, coefficients = jnp.where(exists, values[:k], 0), vectors[:k]
        next_value, next_vector = jnp.append(values, -jnp.inf)[k], vectors[min(k, size - 1)]
        has_next = jnp.isfinite(next_value)
        next_value = jnp.where(has_next, next_value, 0)
        chosen = jnp.concatenate([coefficients, next_vector[None], found_vectors[:1]])
        factors = jnp.concatenate([top, jnp.stack([next_value, best])])
        images, ritz_vectors = (combine(chosen, rows, state.step) for rows in (state.images, state.basis))
        remainders = images - factors[:, None] * ritz_vectors
        lengths = jnp.linalg.norm(remainders, axis=1)
        residuals = jnp.where(exists, lengths[:k], jnp.inf)
        # The wanted values as a block: error of value i <= ||R||^2 / (distance of value i to the best one left out),
        # which itself may still move by its own residual.
        gap = jnp.abs(wanted(top) - wanted(next_value))
        gap = jnp.where(has_next, jnp.maximum(gap - lengths[k], gap / 4), jnp.inf)
        error = jnp.minimum(residuals, jnp.sum(residuals**2) / jnp.maximum(gap, tiny))
        unresolved = rounding * state.norm
        limit = jnp.maximum(tol * jnp.abs(top), unresolved)
        is_accurate = (error <= value_tol * jnp.abs(top)) | (residuals <= unresolved)
        converged = (residuals <= limit) & is_accurate
        complete = jnp.all(converged)
        distance = jnp.where(converged | ~exists, 0, residuals / jnp.maximum(limit, tiny))
        direction = remainders[jnp.where(complete, k + 1, jnp.argmax(distance))]
        direction, _ = orthogonalise(state.basis, direction, state.step)
        length = jnp.linalg.norm(direction)

        # P(a value better than `edge` is left) <= 1.648 sqrt(p) exp(-sqrt(e) (2 t - 1)) after t products from a random
        # vector, e = (edge - best value found from it) / (edge - worst value there is).
        edge = wanted(top)[k - 1]
        high = wanted(best)
        low = jnp.min(jnp.where(jnp.isfinite(values), values, jnp.inf))
        spread = jnp.maximum(2 * edge if by_magnitude else edge - low, tiny)
        margin = jnp.clip((edge - high) / spread, 1e-4, 1)
        num_needed = jnp.ceil((search_constant / jnp.sqrt(margin) + 1) / 2).astype(jnp.int32)
        has_converged = length <= jnp.maximum(tol * jnp.abs(best), unresolved)
        found_nothing = is_searching & (high <= edge + tol * jnp.abs(edge) + unresolved)
        done = complete & found_nothing & (has_converged | (state.num_searched >= num_needed))
        done = done | (complete & (state.step >= num_params))

        draw = jnp.where(complete, ~found_nothing, length <= unresolved)
        seed = state.num_matvecs.astype(jnp.uint32) * jnp.uint32(0x85EBCA6B)
        vector = lax.cond(
            any_lane(draw),
            lambda: jnp.where(
                draw,
                orthogonalise(state.basis, generic_vector(seed, num_params, dtype), state.step)[0],
                direction,
            ),
            lambda: direction,
        )
        search_start = jnp.where(draw, state.step, jnp.where(complete, state.search_start, nowhere))
        # A residual rarely falls by more than 8 times a product: wait for the first check that can succeed.
        worst = jnp.maximum(jnp.max(distance), 1)
        wait = jnp.ceil(jnp.log(worst) / math.log(8.0)).astype(jnp.int32)
        wait = jnp.where(complete, num_needed - state.num_searched, wait)
        wait = jnp.where(draw, shortest_search, jnp.clip(wait, 1, 8))
        return _Ritz(coefficients, top, residuals, converged), done, unit(vector), search_start, wait

    def step(state: _Cycle) -> _Cycle:
        product = matvec_flat(state.vector)
        length = jnp.linalg.norm(product)
        finite = jnp.isfinite(length)
        write = state.active & finite
        product = jnp.where(write, product, 0)
        basis = lax.dynamic_update_index_in_dim(state.basis, state.vector, state.step, 0)
        images = lax.dynamic_update_index_in_dim(state.images, product, state.step, 0)
        rest, components = orthogonalise(basis, product, state.step + 1)
        projected = state.projected.at[state.step].set(components).at[:, state.step].set(components)
        norm = jnp.where(write, jnp.maximum(state.norm, length), state.norm)
        beta = jnp.linalg.norm(rest)
        new = state._replace(
            step=state.step + 1,
            basis=basis,
            images=images,
            projected=jnp.where(write, projected, state.projected),
            norm=norm,
            num_searched=state.num_searched + 1,
            num_matvecs=state.num_matvecs + state.active,
            failed=state.failed | (state.active & ~finite),
        )
        ends = (beta <= rounding * norm) | (new.step >= num_params) | (new.step == state.limit)
        due = write & (ends | (new.step >= state.next_check))
        begin = (state.ritz, jnp.zeros((), bool), state.vector, state.search_start, jnp.zeros((), jnp.int32))
        ritz, done, vector, search_start, wait = lax.cond(any_lane(due), lambda: check(new), lambda: begin)
        active = write & ~(due & done)
        ahead = jnp.where(due, vector, rest / jnp.where(beta > 0, beta, 1))
        return new._replace(
            vector=jnp.where(active, ahead, 0),
            ritz=_Ritz(*(jnp.where(due, fresh, kept) for fresh, kept in zip(ritz, state.ritz, strict=True))),
            next_check=jnp.where(due, new.step + wait, state.next_check),
            search_start=jnp.where(due, search_start, state.search_start),
            num_searched=jnp.where(due & (search_start == new.step), 0, new.num_searched),
            active=active,
        )

    def restart(state: _Cycle) -> _Cycle:
        """Compress the basis to the best of its Ritz vectors, those of a search apart; the next vector stays."""
        apart = state.step - state.search_start >= num_apart
        border = jnp.where(apart, state.search_start, nowhere)
        num_old = jnp.where(apart, jnp.minimum(border, num_kept - num_apart), num_kept)
        _, vectors = decompose(state.projected, index < jnp.minimum(border, state.step))
        _, found = decompose(state.projected, (index >= border) & (index < state.step))
        rank = jnp.arange(num_kept)
        is_old = rank < num_old
        chosen = jnp.where(is_old[:, None], vectors[rank], found[jnp.where(is_old, 0, rank - num_old)])
        compressed = dot(chosen, dot(state.projected, chosen.T))
        is_drawn = state.search_start == state.step  # the next vector is a random one
        is_lost = ~apart & (state.search_start < state.step)  # draw another, with more rows to follow
        return state._replace(
            step=jnp.full((), num_kept, jnp.int32),
            basis=jnp.zeros_like(state.basis).at[:num_kept].set(dot(chosen, state.basis[:size])),
            images=jnp.zeros_like(state.images).at[:num_kept].set(dot(chosen, state.images[:size])),
            projected=jnp.zeros_like(state.projected).at[:num_kept, :num_kept].set(compressed),
            next_check=jnp.where(is_lost, num_kept, state.next_check - (state.step - num_kept)),
            search_start=jnp.where(apart | is_drawn, num_old, nowhere),
        )

    def cycle(solve: _Solve) -> _Solve:
        limit = jnp.minimum(size, solve.cycle.step + max_matvecs - solve.total)
        begin = solve.cycle._replace(limit=limit)
        end = lax.while_loop(lambda state: any_lane(state.active) & (state.step < state.limit), step, begin)
        ritz = end.ritz
        fresh = FlatEigenpairs(
            values=jnp.where(end.failed, jnp.nan, ritz.values),
            vectors=jnp.where(end.failed, jnp.nan, combine(ritz.coefficients, end.basis, end.step)),
            residuals=jnp.where(end.failed, jnp.nan, ritz.residuals),
            num_matvecs=end.num_matvecs,
            converged=ritz.converged & ~end.failed & ~end.active,
        )
        pairs = FlatEigenpairs(
            *(jnp.where(begin.active, new, old) for new, old in zip(fresh, solve.pairs, strict=True))
        )
        following = lax.cond(any_lane(end.active), lambda: restart(end), lambda: end)
        return _Solve(solve.total + end.step - begin.step, following, pairs)

    norm = jnp.linalg.norm(start)
    nothing = jnp.full(k, jnp.nan, dtype)
    zero, no, none = jnp.zeros((), dtype), jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    unconverged = jnp.zeros(k, bool)
    begin = _Cycle(
        step=none,
        limit=none,
        basis=jnp.zeros((padded, num_params), dtype),
        images=jnp.zeros((padded, num_params), dtype),
        projected=jnp.zeros((size, size), dtype),
        # A start that is zero or not finite must fail in its first product, not converge on the zero vector.
        vector=jnp.where(jnp.isfinite(norm) & (norm > 0), start / norm, jnp.nan),
        norm=zero,
        ritz=_Ritz(jnp.zeros((k, size), dtype), nothing, nothing, unconverged),
        next_check=jnp.asarray(min(k + 3, size), jnp.int32),
        search_start=jnp.asarray(nowhere, jnp.int32),
        num_searched=none,
        num_matvecs=none,
        active=jnp.ones((), bool),
        failed=no,
    )
    pairs = FlatEigenpairs(nothing, jnp.zeros((k, num_params), dtype), nothing, none, unconverged)
    solve = _Solve(none, begin, pairs)
    end = lax.while_loop(lambda solve: any_lane(solve.cycle.active) & (solve.total < max_matvecs), cycle, solve)
    return end.pairs
