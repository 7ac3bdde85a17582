"""One tile of runs, pure: arrays in, arrays out. Knows no file, no device and no clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lossland.optimizers import Optimizer
from lossland.problems.problem import Problem
from lossland.sweeps.batches import Batches
from lossland.sweeps.probes import Probe
from lossland.sweeps.single_run import Progress, SingleRun, alive, blank, key_of

SUMMARY = {
    "first_bad_step": ("step", "first step before which the loss was not finite; -1 if there was none"),
    "first_rise_step": ("step", "first step before which the loss stood higher than one step earlier; -1 if never"),
    "num_rises": ("step", "number of steps that raised the loss"),
    "peak_loss": ("1", "largest finite loss over all steps"),
    "steps_done": ("step", "steps that were computed"),
}
"""Per-run figures over *every* step, recorded or not: name -> (units, description)."""

NOISY_SUMMARY = {
    **SUMMARY,
    "first_bad_step": ("step", "first step before which the batch loss was not finite; -1 if there was none"),
    "first_rise_step": ("step", "first record whose full-data loss stands above the record before; -1 if none does"),
    "num_rises": ("1", "number of records whose full-data loss stands above the record before"),
    "peak_loss": ("1", "largest finite full-data loss over all records"),
}
"""The same where a step sees a batch, or random layers: losses of steps are then not comparable, those of records are
(the full data, evaluation mode)."""


class TileProgram(NamedTuple):
    """Functions of one tile, each to be jitted: `begin` once, then `advance` until `num_steps`.

    begin: (num_chunks, hyperparameters, seeds, start, data) -> (progress, records)
    advance: (num_chunks, now, index, until, hyperparameters, seeds, progress, records, data) -> (progress, records,
        number of runs alive). `progress` and `records` have axes (chunk, lane, ...), records then (record, ...). `now`
        and `until` are steps, `index` the number of records already made.
    """

    begin: Callable[..., Any]
    advance: Callable[..., Any]


def starting_points(problem: Problem) -> Callable[..., Any]:
    """Build the function that draws starting points: ({argument: (chunk, lane)}, seeds: (chunk, lane)) -> params and
    model state.

    A seed means the same start at every hyperparameter and in every sweep.
    """

    def one(arguments: dict[str, jax.Array], seed: jax.Array) -> Any:
        params = problem.with_arguments(**arguments).init(key_of(seed, "init"))
        return params, problem.init_state(key_of(seed, "model_state")) if problem.init_state else ()

    def chunks(arguments: dict[str, jax.Array], seeds: jax.Array) -> Any:
        # One by one: many starts are drawn by factorisations, which do not bear to be batched on every platform.
        return lax.map(lambda chunk: lax.map(lambda run: one(*run), chunk), (arguments, seeds))

    return chunks


def tile_program(
    problem: Problem,
    optimizer: Optimizer,
    probes: tuple[Probe, ...],
    batches: Batches,
    *,
    num_steps: int,
    every: int,
    dtype: str,
    freeze: bool,
    lane_width: int,
) -> TileProgram:
    """Build the program of one tile.

    Chunks of `lane_width` runs are computed one after another; only the first `num_chunks` are, so a tile that is not
    full costs no more than what it holds. A kernel of one lane is not vectorised over runs at all.
    """
    num_records = -(-num_steps // every) + 1

    def any_lane(flag: jax.Array) -> jax.Array:
        # Reducing over the named axis leaves the loop's condition unbatched: vmap then inserts no copies of the carry.
        return flag if lane_width == 1 else lax.pmax(flag.astype(jnp.int32), "lanes") > 0

    def one(hyperparameters: dict[str, jax.Array], seed: jax.Array, data: Any) -> SingleRun:
        return SingleRun(
            problem,
            optimizer,
            probes,
            batches,
            hyperparameters,
            seed,
            data,
            num_steps=num_steps,
            every=every,
            dtype=dtype,
            freeze=freeze,
            any_lane=any_lane,
        )

    def begin_lane(hyperparameters: Any, seed: jax.Array, params: Any, model_state: Any, data: Any) -> Any:
        run = one(hyperparameters, seed, data)
        progress = run.begin(params, model_state)
        shapes = jax.eval_shape(lambda: run.record(progress)[0])
        records = {name: jnp.broadcast_to(blank(shape), (num_records, *shape.shape)) for name, shape in shapes.items()}
        return progress, records

    def advance_lane(
        hyperparameters: Any,
        seed: jax.Array,
        progress: Progress,
        records: Any,
        now: Any,
        index: Any,
        until: Any,
        data: Any,
    ) -> Any:
        progress, records = one(hyperparameters, seed, data).advance(now, index, until, progress, records)
        return progress, records, alive(progress) | (not freeze)

    def lanes(function: Callable[..., Any], per_lane: Any, *shared: Any) -> Any:
        """Call a function of one lane on a chunk: arguments with a lane axis, then shared ones."""
        if lane_width == 1:
            first = jax.tree.map(lambda leaf: leaf[0], per_lane)
            return jax.tree.map(lambda leaf: leaf[None], function(*first, *shared))
        axes = (0,) * len(per_lane) + (None,) * len(shared)
        return jax.vmap(function, in_axes=axes, axis_name="lanes")(*per_lane, *shared)

    def at(tree: Any, chunk: Any) -> Any:
        return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, chunk, keepdims=False), tree)

    def put(tree: Any, part: Any, chunk: Any) -> Any:
        return jax.tree.map(lambda leaf, new: lax.dynamic_update_index_in_dim(leaf, new, chunk, 0), tree, part)

    def begin(num_chunks: Any, hyperparameters: Any, seeds: jax.Array, start: Any, data: Any) -> Any:
        def chunk(own: Any) -> Any:
            hyperparameters, seeds, start = own
            return lanes(begin_lane, (hyperparameters, seeds, *start), data)

        everything = (hyperparameters, seeds, start)
        one = jax.eval_shape(chunk, jax.tree.map(lambda leaf: leaf[0], everything))
        empty = jax.tree.map(lambda leaf: zeros(leaf, seeds.shape[:1]), one)
        return lax.fori_loop(0, num_chunks, lambda place, tile: put(tile, chunk(at(everything, place)), place), empty)

    def advance(
        num_chunks: Any,
        now: Any,
        index: Any,
        until: Any,
        hyperparameters: Any,
        seeds: jax.Array,
        progress: Any,
        records: Any,
        data: Any,
    ) -> Any:
        def body(chunk: Any, carry: Any) -> Any:
            progress, records, num_alive = carry
            own = (at(hyperparameters, chunk), at(seeds, chunk), at(progress, chunk), at(records, chunk))
            new_progress, new_records, living = lanes(advance_lane, own, now, index, until, data)
            alive_here = jnp.sum(living).astype(jnp.int32)
            return put(progress, new_progress, chunk), put(records, new_records, chunk), num_alive + alive_here

        return lax.fori_loop(0, num_chunks, body, (progress, records, jnp.int32(0)))

    return TileProgram(begin, advance)


def zeros(like: Any, before: tuple[int, ...] = (), arrays: Any = jnp) -> Any:
    """Zeros, or keys of zeros, of a shape behind the axes `before`; `arrays` is the module that makes them."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.zeros((*before, *like.shape, 2), jnp.uint32))
    return arrays.zeros((*before, *like.shape), like.dtype)


def summarise(progress: Progress, num_steps: int, freeze: bool) -> dict[str, np.ndarray]:
    """Per-run figures of a finished tile, on the host: {name: (chunk, lane)}."""
    bad = np.asarray(progress.first_bad_step)
    return {
        "first_bad_step": bad,
        "first_rise_step": np.asarray(progress.first_rise_step),
        "num_rises": np.asarray(progress.num_rises),
        "peak_loss": np.asarray(progress.peak_loss),
        "steps_done": np.where((bad < 0) | (not freeze), num_steps, bad).astype(np.int32),
    }
