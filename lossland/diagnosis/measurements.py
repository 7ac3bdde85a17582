"""What happened around a rise: curvature at saved states, the change of the loss taken apart, the batches' noise."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from lossland.diagnosis.decomposition import Change, decompose_change
from lossland.diagnosis.observation import Observation
from lossland.diagnosis.replays import Case, tree_of
from lossland.problems.problem import Problem, cast_floating
from lossland.stability.shares import second_moment_share
from lossland.sweeps.batches import Batches
from lossland.sweeps.forks import PARAMS, fork
from lossland.sweeps.programs import numerics

LOOKED_AT = (400, 200, 140, 100, 80, 60, 50, 40, 30, 20, 14, 10, 7, 5, 3, 2, 1, 0)
"""Steps before the valley at which curvature is measured."""
SAMPLES = 36
"""States per run: as many for every run, so that a second one compiles nothing."""
PAIRS = 6
"""Steps of a rise that are decomposed: the largest."""
AT_ONCE = 256
"""Examples whose gradients are held together."""


def with_curvature(case: Case, seen: Sequence[Observation]) -> list[Observation]:
    """Measure sharpness, the mode that turns unstable and the gradient at some states of every run with a rise."""
    rising = [place for place, one in enumerate(seen) if one.rise is not None]
    if not rising:
        return list(seen)
    steps = np.stack([_sampled(seen[place]) for place in rising])
    places = np.repeat(rising, steps.shape[1])
    found = measured(case, case.states(places, steps.ravel()))
    table = {name: values.reshape(steps.shape) for name, values in found.items()}
    shares = _shares(case, rising, seen, steps, table) if case.is_adaptive else np.full(len(rising), np.nan)
    out = list(seen)
    for row, place in enumerate(rising):
        one = seen[place]
        assert one.rise is not None
        order = np.unique(steps[row], return_index=True)[1]
        clock = steps[row][order]
        values = {name: rows[row][order] for name, rows in table.items()}
        before = clock <= one.rise.valley
        inside = (clock >= one.rise.valley - 2) & (clock <= max(one.rise.peak, one.rise.start))
        gradient = values["gradient_norm"]
        out[place] = one.changed(
            ratio_step=clock.astype(float),
            ratio=values["ratio"],
            sharpness=values["sharpness"],
            floor_mass=_largest(values.get("mode_floor_mass"), inside),
            excess=_largest(values.get("gradient_excess_max"), inside),
            gradient_jump=_largest(gradient, inside) / float(np.median(gradient[before])) if before.any() else np.nan,
            moment_share=float(shares[row]),
        )
    return out


def measured(case: Case, states: xr.Dataset) -> dict[str, np.ndarray]:
    """Measure curvature at saved states: name -> (state,); "ratio" is the sharpness over its threshold."""
    probes = ["loss", "gradient_norm", "sharpness"]
    if case.is_adaptive:
        probes += ["preconditioned_mode", "update_statistics"]
    records = fork(
        case.problem, case.optimizer, states, {"unchanged": {"dtype": case.dtype}}, num_steps=1, probes=probes
    ).isel(arm=0, step=0)
    found = {str(name): records[name].values.astype(float) for name in records.data_vars if records[name].ndim == 1}
    top = found["preconditioned_sharpness" if case.is_adaptive else "sharpness"]
    return found | {"ratio": top / case.thresholds(states["step"].values)}


def _sampled(one: Observation) -> np.ndarray:
    """Steps at which curvature is looked at: dense before the valley, some in the rise, first and last."""
    rise, last = one.rise, int(one.step[np.isfinite(one.loss)][-1])
    assert rise is not None
    wanted = [0, 1, 2, 5, last, *(rise.valley - back for back in LOOKED_AT)]
    wanted += np.linspace(rise.valley, rise.start, 4).astype(int).tolist()
    wanted += np.linspace(rise.start, min(rise.peak, last), 3).astype(int).tolist()
    wanted += [last if rise.recovery is None else rise.recovery]
    if (grown := one.rate_rise) is not None:
        wanted += [grown.step + late for late in (0, 1, 3, 10)]
    inside = np.clip(wanted, 0, last)
    grid = one.step[np.unique(np.searchsorted(one.step, inside).clip(0, len(one.step) - 1))]
    grid = grid[grid <= last]
    return np.append(grid, np.full(SAMPLES - len(grid), grid[-1]))[:SAMPLES] if len(grid) < SAMPLES else grid[:SAMPLES]


def _shares(
    case: Case, rising: list[int], seen: Sequence[Observation], steps: np.ndarray, table: dict[str, np.ndarray]
) -> np.ndarray:
    """Share of the second moment in the rise of the ratio from its trough to its last crossing before the rise."""
    pairs = {}
    for row, place in enumerate(rising):
        rise = seen[place].rise
        assert rise is not None
        inside = np.flatnonzero(
            (steps[row] >= rise.valley - max(LOOKED_AT)) & (steps[row] <= max(rise.start, rise.valley + 1))
        )
        found_pair = _trough_and_crossing(table["ratio"][row][inside])
        if found_pair is not None:
            first, second = steps[row][inside][list(found_pair)].tolist()
            if first < second:
                pairs[row] = first, second
    found = np.full(len(rising), np.nan)
    if not pairs:
        return found
    rows = np.array(list(pairs))
    first, second = np.array(list(pairs.values())).T
    places = np.asarray(rising)[rows]
    share = second_moment_share(
        case.problem, case.optimizer, case.states(places, first), case.states(places, second), dtype=case.dtype
    )
    moment, hessian = share["moment_rise"].values, share["hessian_rise"].values
    # Where the Hessian falls the whole rise is the second moment's, and more.
    found[rows] = np.where(share["converged"].values, np.where(hessian < 0, 1.0, moment / (moment + hessian)), np.nan)
    return found


def _trough_and_crossing(ratio: np.ndarray) -> tuple[int, int] | None:
    """Places of the last crossing of 1 from below and of the lowest ratio since the one before; None without any."""
    if not np.isfinite(ratio).all() or len(ratio) < 2:
        return None
    ups = 1 + np.flatnonzero((ratio[1:] >= 1) & (ratio[:-1] < 1))
    crossing = int(ups[-1]) if len(ups) else int(np.argmax(ratio))
    earlier = np.flatnonzero(ratio[: max(crossing - 1, 0)] >= 1)
    begin = int(earlier[-1]) if len(earlier) and len(ups) else 0
    return (begin + int(np.argmin(ratio[begin : crossing + 1])), crossing) if crossing else None


def with_decomposition(case: Case, seen: Sequence[Observation]) -> list[Observation]:
    """Split the largest steps of every rise into slope, curvature and rest of the full-data loss."""
    rising = [place for place, one in enumerate(seen) if one.rise is not None]
    pairs = {place: found for place in rising if len(found := _rising_steps(seen[place]))}
    if not pairs:
        return list(seen)
    places = np.repeat(list(pairs), PAIRS)
    first = np.concatenate([np.resize(found[:, 0], PAIRS) for found in pairs.values()])
    second = np.concatenate([np.resize(found[:, 1], PAIRS) for found in pairs.values()])
    sides = [tree_of(case.problem, case.states(places, steps)[PARAMS].values) for steps in (first, second)]
    change = decompose_change(case.problem.objective, *sides, batched=True)
    out = list(seen)
    for row, place in enumerate(pairs):
        own = np.arange(row * PAIRS, row * PAIRS + min(PAIRS, len(pairs[place])))
        out[place] = seen[place].changed(**_summed(change, own))
    return out


def _summed(change: Change, own: np.ndarray) -> dict[str, float]:
    parts = {name: np.asarray(getattr(change, name))[own] for name in ("slope", "curvature", "rest", "change")}
    finite = np.all([np.isfinite(values) for values in parts.values()], axis=0)
    return {name: float(values[finite].sum()) if finite.any() else np.nan for name, values in parts.items()}


def _rising_steps(one: Observation) -> np.ndarray:
    """(n, 2) neighbouring steps from the valley to where the rise shows, over which the loss rose most."""
    assert one.rise is not None
    inside = np.flatnonzero(
        (one.step >= one.rise.valley) & (one.step <= max(one.rise.start, one.rise.valley + 1)) & np.isfinite(one.loss)
    )
    if len(inside) < 2:
        return np.empty((0, 2), int)
    with np.errstate(divide="ignore", invalid="ignore"):
        height = np.diff(one.loss[inside])
    order = np.argsort(-height)[:PAIRS]
    chosen = np.sort(order[height[order] > 0])
    return np.stack([one.step[inside[chosen]], one.step[inside[chosen + 1]]], 1)


def with_noise(case: Case, seen: Sequence[Observation]) -> list[Observation]:
    """Measure the noise of the batches' gradients at the valley of every rise, and who makes it."""
    batches = case.batches
    if batches.batch_size is None or batches.batch_size >= case.problem.num_examples:
        return list(seen)
    out = list(seen)
    rising = [place for place, one in enumerate(seen) if one.rise is not None]
    if not rising:
        return out
    steps = np.array([seen[place].rise.valley for place in rising])  # pyright: ignore[reportOptionalMemberAccess]
    params = case.states(np.array(rising), steps)[PARAMS].values.astype(case.dtype)
    with numerics(case.dtype):
        square, spread = (np.asarray(x, float) for x in noise_program(case.problem)(params))
    size, total = batches.batch_size, case.problem.num_examples
    few = max(1, total // 20)
    for row, place in enumerate(rising):
        one = seen[place]
        noise = spread[row].mean() / size * (total - size) / (total - 1)
        order = np.argsort(-spread[row])
        out[place] = one.changed(
            noise_ratio=float(noise / square[row]) if square[row] > 0 else np.inf,
            outlier_share=float(spread[row][order[:few]].sum() / max(spread[row].sum(), np.finfo(float).tiny)),
            outliers=tuple(int(index) for index in order[:few]),
            **_ragged(one, batches),
        )
    return out


@functools.lru_cache(maxsize=32)
def noise_program(problem: Problem) -> Callable[[Any], Any]:
    """Compile params (state, parameter) -> |g|^2 (state,), |g_i - g|^2 (state, example) of the mean loss."""

    def one(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
        data = cast_floating(problem.data, flat.dtype)

        def loss(x: jax.Array, index: jax.Array) -> jax.Array:
            return problem.loss(tree_of(problem, x), jax.tree.map(lambda leaf: leaf[index][None], data))

        def over_examples(function: Callable[[jax.Array], jax.Array]) -> jax.Array:
            examples = jnp.arange(problem.num_examples)
            return jax.lax.map(function, examples, batch_size=min(AT_ONCE, problem.num_examples))

        mean = jax.grad(lambda x: over_examples(lambda index: loss(x, index)).mean())(flat)
        spread = over_examples(lambda index: jnp.sum((jax.grad(loss)(flat, index) - mean) ** 2))
        return jnp.vdot(mean, mean), spread

    return jax.jit(lambda params: jax.lax.map(one, params))


def _ragged(one: Observation, batches: Batches) -> dict[str, float]:
    """Share of all rises of the full loss that follow the ragged last batch of an epoch."""
    if not batches.rest or batches.rest > (batches.batch_size or 0) / 2 or one.resolution != 1:
        return {}
    with np.errstate(divide="ignore", invalid="ignore"):
        climbs = np.clip(np.nan_to_num(np.diff(np.log(one.loss)), posinf=0, neginf=0), 0, None)
    last = one.step[:-1] % batches.per_epoch == batches.per_epoch - 1
    total = float(climbs.sum())
    return {
        "ragged_share": float(climbs[last].sum() / total) if total > 0 else np.nan,
        "ragged_expected": 1 / batches.per_epoch,
    }


def _largest(values: np.ndarray | None, inside: np.ndarray) -> float:
    if values is None or not inside.any() or not np.isfinite(values[inside]).any():
        return np.nan
    return float(np.nanmax(values[inside]))
