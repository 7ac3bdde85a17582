"""Several extremal eigenpairs at once: Lanczos with full reorthogonalisation, thick restart and a search for copies.

One Krylov space sees every eigenvalue once, however often it occurs. When the wanted pairs have converged, the
iteration therefore goes on from a random vector orthogonal to all it has, and ends only when that finds nothing that
belongs among them: either its Krylov space is exhausted, or a bound on Lanczos from a random start says so.

Source: Wu and Simon 2000 (thick restart); Parlett 1998, sections 6.9 and 13.8 (twice is enough; residual bounds);
Kuczynski and Wozniakowski 1992, theorem 3.2 (the bound).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from lossland.curvature.lanczos import (
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
    bounds on ||H v - value v|| in the units of `values`; num_matvecs: `Int[Array, ""]`; converged: `Bool[Array, "k"]`.
    """

    values: Array
    vectors: Array
    residuals: Array
    num_matvecs: Array
    converged: Array


class _Ritz(NamedTuple):
    """Rayleigh-Ritz on the basis as it stands, and what it says about the wanted pairs."""

    vectors: Array  # of V^T H V, all of them, most wanted first
    values: Array  # of the wanted ones
    residuals: Array
    converged: Array
    is_stuck: Array  # the worst residual points along the direction that was set aside
    search_low: Array  # worst and best value, in the order of `wanted`, found from the latest random vector
    search_high: Array
    search_converged: Array  # whether the best of them is an eigenvalue


class _Cycle(NamedTuple):
    """State of the iteration. All fields but the first two belong to a lane.

    H V = V projected + (next vector) beta e_last^T + (aside) aside_share^T + (what is lost), the columns of the last
    bounded by `lost`. The direction the iteration was following when it turned to a random vector is set aside.
    """

    step: Array
    limit: Array  # where the cycle ends; as `step`, the same in all lanes
    basis: Array
    projected: Array
    lost: Array
    aside: Array
    aside_share: Array
    vector: Array
    beta: Array
    count: Array
    num_matvecs: Array
    norm: Array  # largest ||H v|| seen, a lower bound of ||H||
    ritz: _Ritz
    next_check: Array
    is_searching: Array
    search_start: Array  # first basis row grown from the latest random vector; -1 once a restart has mixed them
    num_searched: Array  # products since that vector was drawn
    known: Array  # the wanted values when that vector was drawn
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
    wanted: Callable[[Array], Array] = lambda values: values,
    tol: float = 1e-4,
    num_vectors: int | None = None,
    max_matvecs: int = 1000,
    any_lane: Callable[[Array], Array] = lambda active: active,
) -> FlatEigenpairs:
    """Find the k eigenpairs of a symmetric matrix whose eigenvalues come first when sorted by `wanted`, largest first.

    A pair has converged when its residual is <= tol |value| and the estimated error of the value, min(r, r^2 / gap), is
    <= max(5 tol^2, 32 eps) |value|; or when the residual is below what the precision resolves, 32 eps ||H||. Then
    copies are searched for (see the module); the probability to miss one is about 1 %, and none where the space is
    exhausted.

    matvec_flat: `Float[Array, "p"] -> Float[Array, "p"]`; start: `Float[Array, "p"]`; wanted: `Float[Array, "n"]` ->
    `Float[Array, "n"]`, e.g. `jnp.abs`. num_vectors: basis size, 3 k + 32 by default, within 256 MB. any_lane: as in
    `lanczos.top_eigenpair`. A lane whose product is not finite returns NaN and `converged` False.

    Raises ValueError where k is not in 1..p, or num_vectors is below k + 2 and below p.
    """
    check_start(start)
    check_positive("tol", tol)
    check_positive("max_matvecs", max_matvecs)
    num_params, dtype = start.shape[0], start.dtype
    if not 1 <= k <= num_params:
        raise ValueError(f"k: expected 1 <= k <= {num_params}, the number of parameters, got {k}; ask for fewer pairs")
    least = min(k + 2, num_params)
    if num_vectors is not None and num_vectors < least:
        raise ValueError(f"num_vectors: expected at least {least} for k = {k}, got {num_vectors}; raise it or lower k")
    size = max(basis_size(num_params, num_vectors or 3 * k + 32, dtype), least)
    num_kept = min(k + (size - k) // 2, size - 2) if size > k + 1 else k
    eps = float(jnp.finfo(dtype).eps)
    rounding = ROUNDING_UNITS * eps
    value_tol = max(5 * tol**2, rounding)
    search_constant = math.log(1.648 * math.sqrt(num_params) / _MISS_PROBABILITY)
    padded = -(-size // _BLOCK) * _BLOCK

    def decompose(projected: Array, first: Array | int, last: Array) -> tuple[Array, Array]:
        """Return the eigenvalues, NaN where there are none, and eigenvectors of rows first..last of V^T H V."""
        index = jnp.arange(size)
        inside = (index >= first) & (index < last)
        masked = jnp.where(inside[:, None] & inside[None, :], projected, 0)
        # Rows that do not exist get an eigenvalue that cannot be mistaken: outside the spectrum.
        radius = jnp.max(jnp.sum(jnp.abs(masked), axis=1)) + jnp.finfo(dtype).tiny
        values, vectors = jnp.linalg.eigh(masked + jnp.diag(jnp.where(inside, 0, 2 * radius)))
        return jnp.where(values < 1.5 * radius, values, jnp.nan), vectors

    def rayleigh_ritz(state: _Cycle) -> _Ritz:
        values, vectors = decompose(state.projected, 0, state.count)
        order = jnp.argsort(jnp.where(jnp.isnan(values), jnp.inf, -wanted(values)), stable=True)
        values, vectors = values[order], vectors[:, order]
        shares = jnp.abs(vectors)
        ahead = state.beta * shares[jnp.maximum(state.count - 1, 0)]
        aside = dot(state.aside_share, shares)
        residuals = ahead + aside + dot(state.lost, shares)
        scale = jnp.fmax(jnp.nanmax(jnp.abs(values)), state.norm)
        top, bounds = values[:k], residuals[:k]
        # The wanted values as a block: error of value i <= ||R||^2 / (distance of value i to the best one left out).
        left_out = values[k] if size > k else jnp.asarray(jnp.nan, dtype)
        gap = jnp.where(jnp.isnan(left_out), jnp.inf, jnp.abs(wanted(top) - wanted(left_out)))
        error = jnp.minimum(bounds, jnp.sum(bounds**2) / jnp.maximum(gap, jnp.finfo(dtype).tiny))
        accurate = (bounds <= tol * jnp.abs(top)) & (error <= value_tol * jnp.abs(top))
        converged = (accurate | (bounds <= rounding * scale)) & jnp.isfinite(top)
        worst = jnp.argmax(jnp.where(converged, -1, bounds))
        # What the search has found: Ritz values of its own Krylov space, or, once mixed, all but the wanted ones.
        is_separate = state.search_start >= 0
        own_values, own_vectors = decompose(state.projected, state.search_start, state.count)
        own_residuals = state.beta * jnp.abs(own_vectors[jnp.maximum(state.count - 1, 0)])
        found = jnp.where(is_separate, own_values, jnp.where(jnp.arange(size) < k, jnp.nan, values))
        score = jnp.where(jnp.isnan(found), -jnp.inf, wanted(found))
        best = jnp.argmax(score)
        found_residual = jnp.where(is_separate, own_residuals, residuals)[best]
        return _Ritz(
            vectors=vectors,
            values=top,
            residuals=bounds,
            converged=converged,
            is_stuck=~converged[worst] & (aside[worst] > ahead[worst]),
            search_low=jnp.min(jnp.where(jnp.isnan(found), jnp.inf, score)),
            search_high=score[best],
            search_converged=found_residual <= jnp.maximum(tol * jnp.abs(found[best]), rounding * scale),
        )

    def orthogonalise(basis: Array, vector: Array, num_rows: Array) -> tuple[Array, Array]:
        """Return the part of `vector` orthogonal to the basis, and its components on the basis: twice is enough."""

        def visit(block: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            vector, removed, components = state
            rows = lax.dynamic_slice_in_dim(basis, block * _BLOCK, _BLOCK)
            part = dot(rows, vector)
            return (
                vector,
                removed + dot(part, rows),
                lax.dynamic_update_slice_in_dim(components, part, block * _BLOCK, 0),
            )

        total = jnp.zeros(padded, dtype)
        for _ in range(2):
            begin = (vector, jnp.zeros_like(vector), jnp.zeros(padded, dtype))
            _, removed, components = lax.fori_loop(0, (num_rows + _BLOCK - 1) // _BLOCK, visit, begin)
            vector = vector - removed
            total = total + components
        return vector, total[:size]

    def turn(state: _Cycle, is_random: Array) -> Array:
        """Return a unit vector orthogonal to the basis: a random one, or the direction that was set aside."""
        seed = (state.num_matvecs + 1).astype(jnp.uint32) * jnp.uint32(0x85EBCA6B)
        direction = jnp.where(is_random, generic_vector(seed, num_params, dtype), state.aside)
        return unit(orthogonalise(state.basis, direction, state.step)[0])

    def step(state: _Cycle) -> _Cycle:
        basis = lax.dynamic_update_index_in_dim(state.basis, state.vector, state.step, 0)
        product = matvec_flat(state.vector)
        length = jnp.linalg.norm(product)
        finite = jnp.isfinite(length)
        write = state.active & finite
        rest, components = orthogonalise(basis, jnp.where(finite, product, 0), state.step + 1)
        # Rows after this one hold what an earlier cycle left there.
        components = jnp.where(jnp.arange(size) <= state.step, components, 0)
        projected = state.projected.at[state.step].set(components).at[:, state.step].set(components)
        norm = jnp.where(write, jnp.maximum(state.norm, length), state.norm)
        beta = jnp.linalg.norm(rest)
        is_exhausted = state.step + 1 >= num_params
        is_invariant = (beta <= rounding * norm) | is_exhausted
        beta = jnp.where(is_invariant, 0, beta)
        new = state._replace(
            step=state.step + 1,
            basis=basis,
            projected=jnp.where(write, projected, state.projected),
            beta=jnp.where(write, beta, state.beta),
            count=jnp.where(write, state.step + 1, state.count),
            num_matvecs=state.num_matvecs + state.active,
            norm=norm,
            failed=state.failed | (state.active & ~finite),
        )
        due = write & (is_invariant | (new.step >= state.next_check) | (new.step == state.limit))
        ritz = lax.cond(any_lane(due), lambda: rayleigh_ritz(new), lambda: state.ritz)
        ritz = _Ritz(*(jnp.where(due, fresh, kept) for fresh, kept in zip(ritz, state.ritz, strict=True)))

        complete = due & jnp.all(ritz.converged)
        is_new = ~jnp.all(jnp.abs(ritz.values - state.known) <= tol * jnp.abs(ritz.values) + rounding * norm)
        # P(a value better than the k-th is left) <= 1.648 sqrt(p) exp(-sqrt(e) (2 t - 1)) after t products from a
        # random vector, e = (k-th value - best value found from it) / (k-th value - worst value found from it).
        edge = wanted(ritz.values)[k - 1]
        margin = (edge - ritz.search_high) / jnp.maximum(edge - ritz.search_low, jnp.finfo(dtype).tiny)
        margin = jnp.where(jnp.isfinite(margin), jnp.clip(margin, 1e-4, 1), 1)
        num_needed = jnp.ceil((search_constant / jnp.sqrt(margin) + 1) / 2).astype(jnp.int32)
        num_searched = state.num_searched + 1
        is_certain = is_invariant | ritz.search_converged | (num_searched >= num_needed)
        has_searched = state.is_searching & ~is_new & is_certain
        # For one pair copies change nothing, and only an invariant subspace can hide a better value.
        done = complete & (is_exhausted | has_searched | ((k == 1) & ~is_invariant))
        active = write & ~done
        draw = due & active & (is_invariant | (complete & is_new))
        swap = due & active & ~draw & state.is_searching & ritz.is_stuck
        turned = lax.cond(any_lane(draw | swap), lambda: turn(new, draw), lambda: jnp.zeros_like(rest))
        ahead = rest / jnp.where(beta > 0, beta, 1)
        last = jnp.arange(size) == state.step
        sets_aside = swap | (draw & ~is_invariant)

        ratio = ritz.residuals / jnp.maximum(tol * jnp.abs(ritz.values), rounding * norm)
        worst = jnp.max(jnp.where(ritz.converged, 0, ratio))
        # A residual rarely falls by more than 8 times a product: wait for the first check that can succeed.
        wait = jnp.where(worst > 1, jnp.clip(jnp.ceil(jnp.log(worst) / math.log(8.0)), 1, 8), 1).astype(jnp.int32)
        wait = jnp.where(complete & ~is_new, jnp.clip(num_needed - num_searched, 1, 8), wait)
        wait = jnp.where(draw, math.ceil((search_constant + 1) / 2), wait)
        return new._replace(
            lost=jnp.where(sets_aside & draw, new.lost + state.aside_share, new.lost),
            aside=jnp.where(sets_aside, rest, new.aside),
            aside_share=jnp.where(sets_aside, jnp.where(last, beta, 0), new.aside_share),
            beta=jnp.where(sets_aside, 0, new.beta),
            vector=jnp.where(active, jnp.where(draw | swap, turned, ahead), 0),
            ritz=ritz,
            next_check=jnp.where(due, new.step + wait, state.next_check),
            is_searching=state.is_searching | draw,
            search_start=jnp.where(draw, new.step, state.search_start),
            num_searched=jnp.where(draw, 0, num_searched),
            known=jnp.where(draw, ritz.values, state.known),
            active=active,
        )

    def restart(state: _Cycle) -> _Cycle:
        """Compress the basis of the lanes that go on to its most wanted Ritz vectors; the next vector stays."""
        vectors = state.ritz.vectors
        kept = vectors[:, :num_kept]
        values = jnp.sum(kept * dot(state.projected, kept), axis=0)
        index = jnp.arange(size)
        diagonal = jnp.zeros(size, dtype).at[:num_kept].set(values)
        shares = jnp.abs(vectors)
        lost, aside_share = (
            jnp.where(index < num_kept, dot(column, shares), 0) for column in (state.lost, state.aside_share)
        )
        return state._replace(
            step=jnp.full((), num_kept, jnp.int32),
            basis=jnp.zeros_like(state.basis).at[:num_kept].set(dot(kept.T, state.basis[:size])),
            projected=jnp.diag(diagonal),
            lost=lost,
            aside_share=aside_share,
            count=jnp.full((), num_kept, jnp.int32),
            next_check=state.next_check - (state.step - num_kept),
            search_start=jnp.where(state.search_start == state.step, num_kept, -1).astype(jnp.int32),
        )

    def cycle(solve: _Solve) -> _Solve:
        limit = jnp.minimum(size, solve.cycle.step + max_matvecs - solve.total)
        begin = solve.cycle._replace(limit=limit)
        end = lax.while_loop(lambda state: any_lane(state.active) & (state.step < state.limit), step, begin)
        ritz = end.ritz
        found = dot(ritz.vectors[:, :k].T, end.basis[:size])
        fresh = FlatEigenpairs(
            values=jnp.where(end.failed, jnp.nan, ritz.values),
            vectors=jnp.where(end.failed, jnp.nan, found),
            residuals=jnp.where(end.failed, jnp.nan, ritz.residuals),
            num_matvecs=end.num_matvecs,
            # A lane that has run out of products while it searched has not shown that its values are the wanted ones.
            converged=ritz.converged & ~end.failed & ~(end.active & (k > 1)),
        )
        pairs = FlatEigenpairs(
            *(jnp.where(begin.active, new, old) for new, old in zip(fresh, solve.pairs, strict=True))
        )
        goes_on = any_lane(end.active)
        following = lax.cond(goes_on, lambda: restart(end), lambda: end)
        return _Solve(solve.total + end.step - begin.step, following, pairs)

    norm = jnp.linalg.norm(start)
    is_usable = jnp.isfinite(norm) & (norm > 0)
    nothing = jnp.full(k, jnp.nan, dtype)
    zero, no = jnp.zeros((), dtype), jnp.zeros((), bool)
    begin = _Cycle(
        step=jnp.zeros((), jnp.int32),
        limit=jnp.zeros((), jnp.int32),
        basis=jnp.zeros((padded, num_params), dtype),
        projected=jnp.zeros((size, size), dtype),
        lost=jnp.zeros(size, dtype),
        aside=jnp.zeros(num_params, dtype),
        aside_share=jnp.zeros(size, dtype),
        # A start that is zero or not finite must fail in its first product, not converge on the zero vector.
        vector=jnp.where(is_usable, start / norm, jnp.nan),
        beta=zero,
        count=jnp.zeros((), jnp.int32),
        num_matvecs=jnp.zeros((), jnp.int32),
        norm=zero,
        ritz=_Ritz(jnp.eye(size, dtype=dtype), nothing, nothing, jnp.zeros(k, bool), no, zero, zero, no),
        next_check=jnp.asarray(min(k + 3, size), jnp.int32),
        is_searching=no,
        search_start=jnp.zeros((), jnp.int32),
        num_searched=jnp.zeros((), jnp.int32),
        known=nothing,
        active=jnp.ones((), bool),
        failed=no,
    )
    pairs = FlatEigenpairs(
        nothing, jnp.zeros((k, num_params), dtype), nothing, jnp.zeros((), jnp.int32), jnp.zeros(k, bool)
    )
    solve = _Solve(jnp.zeros((), jnp.int32), begin, pairs)
    end = lax.while_loop(lambda solve: any_lane(solve.cycle.active) & (solve.total < max_matvecs), cycle, solve)
    return end.pairs
