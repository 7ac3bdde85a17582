"""One tile of runs, pure: arrays in, records out. Knows no file, no device and no clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from lossland.optimizers import Optimizer
from lossland.problems.problem import Problem, cast_floating
from lossland.sweeps.probes import Lane, Probe, State

STREAMS = {"init": 0}
"""Key streams of a seed. Each use of randomness has its own, so that adding one never moves another."""

ROUNDING = 8.0
"""A step counts as a rise when the loss grows by more than this many units of rounding of (loss + first loss)."""

SUMMARY = {
    "first_bad_step": ("step", "first step before which the loss was not finite; -1 if there was none"),
    "first_rise_step": ("step", "first step before which the loss stood higher than one step earlier; -1 if never"),
    "num_rises": ("step", "number of steps that raised the loss"),
    "peak_loss": ("1", "largest finite loss over all steps"),
    "steps_done": ("step", "steps that were computed"),
}
"""Per-run figures over *every* step, recorded or not: name -> (units, description)."""


class Progress(NamedTuple):
    """One run under way."""

    state: State
    first_bad_step: jax.Array
    first_rise_step: jax.Array
    num_rises: jax.Array
    peak_loss: jax.Array
    first_loss: jax.Array
    memories: tuple[Any, ...]


def starting_points(problem: Problem) -> Callable[..., Any]:
    """Build the function that draws starting points: ({argument: (chunk, lane)}, seeds: (chunk, lane)) -> params.

    The key is `fold_in(fold_in(key(0), seed), stream)`: a seed means the same start at every hyperparameter and in
    every sweep.
    """

    def one(arguments: dict[str, jax.Array], seed: jax.Array) -> Any:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), seed), STREAMS["init"])
        return problem.with_arguments(**arguments).init(key)

    def chunks(arguments: dict[str, jax.Array], seeds: jax.Array) -> Any:
        # Chunk by chunk, so that bits depend on the lane width here too, and on nothing else.
        return lax.map(lambda chunk: jax.vmap(one)(*chunk), (arguments, seeds))

    return chunks


def lane_program(
    problem: Problem,
    optimizer: Optimizer,
    probes: tuple[Probe, ...],
    *,
    num_steps: int,
    every: int,
    dtype: str,
    freeze: bool,
    any_lane: Lane,
) -> Callable[..., tuple[dict[str, jax.Array], dict[str, jax.Array]]]:
    """Build one run: (hyperparameters, params, data) -> (records with a leading axis of recorded steps, summary).

    Written for a single run; `any_lane` joins the lanes of a kernel where a loop has to decide for all of them.
    """
    num_records = -(-num_steps // every) + 1
    problem_names = frozenset(problem.arguments)

    def run(hyperparameters: dict[str, jax.Array], params: Any, data: Any) -> Any:
        params = cast_floating(params, dtype)
        mine = {name: value for name, value in hyperparameters.items() if name in problem_names}
        bound_problem = problem.with_data(data).with_arguments(**mine)
        bound_optimizer = optimizer.with_arguments(
            **{name: value for name, value in hyperparameters.items() if name not in problem_names}
        )
        transformation = bound_optimizer.build()

        def objective(params: Any) -> jax.Array:
            return bound_problem.loss(params, data)

        def start() -> Progress:
            loss, gradient = jax.value_and_grad(objective)(params)
            state = State(jnp.int32(0), params, transformation.init(params), loss, gradient)
            bad = ~jnp.isfinite(loss)
            return Progress(
                state,
                first_bad_step=jnp.where(bad, 0, -1).astype(jnp.int32),
                first_rise_step=jnp.int32(-1),
                num_rises=jnp.int32(0),
                peak_loss=jnp.where(bad, -jnp.inf, loss),
                first_loss=loss,
                memories=tuple(probe.start(bound_problem, params) for probe in probes),
            )

        def alive(progress: Progress) -> jax.Array:
            return progress.first_bad_step < 0

        def step(progress: Progress) -> Progress:
            old = progress.state
            updates, opt_state = transformation.update(
                old.gradient, old.opt_state, old.params, value=old.loss, grad=old.gradient, value_fn=objective
            )
            params = optax.apply_updates(old.params, updates)
            loss, gradient = jax.value_and_grad(objective)(params)
            now = old.step + 1
            ongoing = alive(progress)
            bad = ~jnp.isfinite(loss)
            rounding = ROUNDING * jnp.finfo(loss.dtype).eps * (jnp.abs(old.loss) + jnp.abs(progress.first_loss))
            # A non-finite loss is a rise too: that is how a divergence reads.
            rose = ongoing & ~(loss <= old.loss + rounding)
            return Progress(
                State(now, params, opt_state, loss, gradient),
                first_bad_step=jnp.where(ongoing & bad, now, progress.first_bad_step),
                first_rise_step=jnp.where(rose & (progress.first_rise_step < 0), now, progress.first_rise_step),
                num_rises=progress.num_rises + rose,
                peak_loss=jnp.where(ongoing & ~bad, jnp.maximum(progress.peak_loss, loss), progress.peak_loss),
                first_loss=progress.first_loss,
                memories=progress.memories,
            )

        def measure(progress: Progress) -> tuple[dict[str, jax.Array], Progress]:
            values: dict[str, jax.Array] = {}
            memories = []
            for probe, memory in zip(probes, progress.memories, strict=True):
                measured, memory = probe(bound_problem, bound_optimizer, progress.state, memory, any_lane)
                if twice := set(measured) & set(values):
                    raise ValueError(f"probes: {probe.name} records {', '.join(sorted(twice))}, as another probe does")
                values.update(measured)
                memories.append(memory)
            return values, progress._replace(memories=tuple(memories))

        def record(index: jax.Array, progress: Progress, records: dict[str, jax.Array]) -> Any:
            values, progress = measure(progress)
            # The record at the first bad step still shows what was there; later ones would show nothing but its ashes.
            worth = alive(progress) | (progress.first_bad_step == progress.state.step) | (not freeze)
            kept = {name: jnp.where(worth, value, blank(value)) for name, value in values.items()}
            return progress, {name: records[name].at[index].set(kept[name]) for name in records}

        def segment(carry: Any) -> Any:
            index, progress, records = carry
            progress, records = record(index, progress, records)
            last = jnp.minimum((index + 1) * every, num_steps)

            def more(carry: tuple[jax.Array, Progress]) -> jax.Array:
                now, progress = carry
                return (now < last) & going(progress)

            def advance(carry: tuple[jax.Array, Progress]) -> tuple[jax.Array, Progress]:
                now, progress = carry
                return now + 1, step(progress)

            _, progress = lax.while_loop(more, advance, (index * every, progress))
            return index + 1, progress, records

        def going(progress: Progress) -> jax.Array:
            return any_lane(alive(progress)) if freeze else jnp.bool_(True)

        def unfinished(carry: Any) -> jax.Array:
            index, progress, _ = carry
            # A run that died exactly where a record is due still gets that record, whatever its neighbours do.
            due = progress.first_bad_step == jnp.minimum(index * every, num_steps)
            return (index < num_records) & (going(progress) | any_lane(due))

        first = start()
        shapes = jax.eval_shape(lambda: measure(first)[0])
        records = {name: jnp.broadcast_to(blank(shape), (num_records, *shape.shape)) for name, shape in shapes.items()}
        _, progress, records = lax.while_loop(unfinished, segment, (jnp.int32(0), first, records))
        summary = {
            "first_bad_step": progress.first_bad_step,
            "first_rise_step": progress.first_rise_step,
            "num_rises": progress.num_rises,
            "peak_loss": progress.peak_loss,
            "steps_done": jnp.where(alive(progress) | (not freeze), num_steps, progress.first_bad_step),
        }
        return records, summary

    return run


def tile_program(
    problem: Problem,
    optimizer: Optimizer,
    probes: tuple[Probe, ...],
    *,
    num_steps: int,
    every: int,
    dtype: str,
    freeze: bool,
    lane_width: int,
) -> Callable[..., Any]:
    """Build one tile: (num_chunks, {name: (chunk, lane)}, params with (chunk, lane) axes, data) -> (records, summary).

    Chunks of `lane_width` runs are computed one after another; only the first `num_chunks` are, so a tile that is not
    full costs no more than what it holds. A kernel of one lane is not vectorised over runs at all.
    """

    def any_lane(flag: jax.Array) -> jax.Array:
        # Reducing over the named axis leaves the loop's condition unbatched: vmap then inserts no copies of the carry.
        return flag if lane_width == 1 else lax.pmax(flag.astype(jnp.int32), "lanes") > 0

    run = lane_program(
        problem, optimizer, probes, num_steps=num_steps, every=every, dtype=dtype, freeze=freeze, any_lane=any_lane
    )

    @jax.jit  # traced once, for its shapes and for the loop
    def chunk(hyperparameters: dict[str, jax.Array], params: Any, data: Any) -> Any:
        if lane_width > 1:
            return jax.vmap(run, in_axes=(0, 0, None), axis_name="lanes")(hyperparameters, params, data)
        first = jax.tree.map(lambda leaf: leaf[0], (hyperparameters, params))
        return jax.tree.map(lambda leaf: leaf[None], run(*first, data))

    def tile(num_chunks: jax.Array, hyperparameters: dict[str, jax.Array], params: Any, data: Any) -> Any:
        def at(index: Any) -> Any:
            return jax.tree.map(
                lambda leaf: lax.dynamic_index_in_dim(leaf, index, keepdims=False), (hyperparameters, params)
            )

        shapes = jax.eval_shape(lambda: chunk(*at(0), data))
        chunks = jax.tree.leaves(params)[0].shape[0]
        outputs = jax.tree.map(lambda shape: jnp.zeros((chunks, *shape.shape), shape.dtype), shapes)

        def body(index: jax.Array, outputs: Any) -> Any:
            results = chunk(*at(index), data)
            return jax.tree.map(
                lambda kept, new: lax.dynamic_update_index_in_dim(kept, new, index, 0), outputs, results
            )

        return lax.fori_loop(0, num_chunks, body, outputs)

    return tile


def blank(value: Any) -> jax.Array:
    """What a record holds where nothing was measured: NaN for floats, False for flags, 0 for counts (see `status`)."""
    return jnp.full((), np.nan if jnp.issubdtype(value.dtype, jnp.floating) else 0, value.dtype)
