"""One run as a pure function: steps, records, and when it is over. Written for a single lane of a kernel."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from lossland.optimizers import Optimizer
from lossland.problems.problem import Problem, cast_floating
from lossland.sweeps.batches import Batches
from lossland.sweeps.probes import Lane, Probe, State

STREAMS = {"init": 0, "batches": 1, "layers": 2, "model_state": 3}
"""Key streams of a seed. Each use of randomness has its own, so that adding one never moves another."""

ROUNDING = 8.0
"""A step counts as a rise when the loss grows by more than this many units of rounding of (loss + first loss)."""


class Progress(NamedTuple):
    """One run under way. `loss` and `gradient` are those of the batch that the next step will use."""

    step: jax.Array
    params: Any
    opt_state: Any
    loss: jax.Array
    gradient: Any
    model_state: Any
    next_model_state: Any
    order: Any
    epoch_sum: jax.Array
    epoch_count: jax.Array
    first_bad_step: jax.Array
    first_rise_step: jax.Array
    num_rises: jax.Array
    peak_loss: jax.Array
    compared_loss: jax.Array
    first_loss: jax.Array
    memories: tuple[Any, ...]


def key_of(seed: jax.Array, stream: str) -> jax.Array:
    """Key of one stream of a seed: `fold_in(fold_in(key(0), seed), stream)`."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), seed), STREAMS[stream])


def _follow(probe: Probe, memory: Any, step: jax.Array, loss: jax.Array) -> Any:
    """Show the loss to a probe, which must keep the form of its memory: a loop carries it."""
    after = probe.follow(memory, step, loss) if probe.follow is not None else memory

    def forms(kept: Any) -> Any:
        return jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}", kept)

    if jax.tree.structure(after) != jax.tree.structure(memory) or forms(after) != forms(memory):
        raise ValueError(
            f"{probe.name}: follow: expected a memory like that of begin, {forms(memory)}, got {forms(after)}; convert "
            "it, for example with jnp.asarray(value, dtype)"
        )
    return after


class SingleRun:
    """One run, written for a single lane; `any_lane` joins the lanes of a kernel where a loop decides for all."""

    def __init__(
        self,
        problem: Problem,
        optimizer: Optimizer,
        probes: tuple[Probe, ...],
        batches: Batches,
        hyperparameters: dict[str, jax.Array],
        seed: jax.Array,
        data: Any,
        *,
        num_steps: int,
        every: int,
        dtype: str,
        freeze: bool,
        any_lane: Lane,
    ):
        names = frozenset(problem.arguments)
        mine = {name: value for name, value in hyperparameters.items() if name in names}
        self.problem = problem.with_data(data).with_arguments(**mine)
        self.optimizer = optimizer.with_arguments(
            **{name: value for name, value in hyperparameters.items() if name not in names}
        )
        self.transformation = self.optimizer.build()
        self.probes, self.batches, self.data, self.seed = probes, batches, data, seed
        self.num_steps, self.every, self.dtype, self.freeze, self.any_lane = num_steps, every, dtype, freeze, any_lane
        self.noisy = is_noisy(problem, batches)
        # Curvature in 8 bits of mantissa measures rounding: probes see bfloat16 parameters through float32.
        self.separate = self.noisy or dtype == "bfloat16"

    def evaluate(self, now: jax.Array, order: Any, params: Any, model_state: Any) -> tuple[Any, Any, Any]:
        """Loss and gradient of the batch of step `now`, and the model state that this pass leaves."""
        key = jax.random.fold_in(key_of(self.seed, "layers"), now) if self.problem.takes_key else None

        def loss(params: Any, batch: Any) -> Any:
            return self.problem.training_loss(params, batch, key, model_state)

        def on(batch: Any) -> tuple[Any, Any, Any]:
            (value, after), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch)
            return value, gradient, _like(after, model_state)

        batch_key = key_of(self.seed, "batches") if self.batches.random else None
        return self.batches.with_batch(on, self.data, order, now, batch_key)

    def follow(self, memories: tuple[Any, ...], step: jax.Array, loss: jax.Array, worth: jax.Array) -> tuple[Any, ...]:
        """Show the loss to the probes that follow every step; a run that is over is followed no further."""
        return tuple(
            memory
            if probe.follow is None
            else jax.tree.map(functools.partial(jnp.where, worth), _follow(probe, memory, step, loss), memory)
            for probe, memory in zip(self.probes, memories, strict=True)
        )

    def order(self, now: jax.Array, order: Any) -> Any:
        """Order of the examples in the epoch of step `now`."""
        return self.batches.order(now, order, lambda: key_of(self.seed, "batches"))

    def begin(self, params: Any, model_state: Any) -> Progress:
        """Evaluate the first batch at the starting point."""
        params = cast_floating(params, self.dtype)
        model_state = cast_floating(model_state, self.dtype)
        order = self.order(jnp.int32(0), self.batches.blank_order())
        loss, gradient, after = self.evaluate(jnp.int32(0), order, params, model_state)
        bad = ~jnp.isfinite(loss)
        wide_loss = loss.astype(jnp.promote_types(loss.dtype, jnp.float32))  # sums and comparisons need more bits
        probed = self.problem.with_state(model_state)
        wide = cast_floating(params, "float32") if self.dtype == "bfloat16" else params
        memories = tuple(probe.start(probed, wide) for probe in self.probes)
        if not self.noisy:
            memories = self.follow(memories, jnp.int32(0), wide_loss, jnp.bool_(True))
        return Progress(
            step=jnp.int32(0),
            params=params,
            opt_state=self.transformation.init(params),
            loss=loss,
            gradient=gradient,
            model_state=model_state,
            next_model_state=after,
            order=order,
            epoch_sum=jnp.zeros_like(wide_loss),
            epoch_count=jnp.zeros_like(wide_loss),
            first_bad_step=jnp.where(bad, 0, -1).astype(jnp.int32),
            first_rise_step=jnp.int32(-1),
            num_rises=jnp.int32(0),
            peak_loss=jnp.full_like(wide_loss, -jnp.inf) if self.noisy else jnp.where(bad, -jnp.inf, wide_loss),
            compared_loss=jnp.full_like(wide_loss, jnp.inf) if self.noisy else wide_loss,
            first_loss=wide_loss,
            memories=memories,
        )

    def step(self, now: jax.Array, old: Progress) -> Progress:
        """Take step `now`, and evaluate the batch of the next one."""
        value_fn = self.problem.with_state(old.model_state).objective
        updates, opt_state = self.transformation.update(
            old.gradient, old.opt_state, old.params, value=old.loss, grad=old.gradient, value_fn=value_fn
        )
        params = optax.apply_updates(old.params, updates)
        opt_state = _like(opt_state, old.opt_state)  # float32 hyperparameters widen a bfloat16 state
        order = self.order(now + 1, old.order)
        loss, gradient, after = self.evaluate(now + 1, order, params, old.next_model_state)
        ongoing = alive(old)
        bad = ~jnp.isfinite(loss)
        new = old._replace(
            step=old.step + 1,
            params=params,
            opt_state=opt_state,
            loss=loss,
            gradient=gradient,
            model_state=old.next_model_state,
            next_model_state=after,
            order=order,
            first_bad_step=jnp.where(ongoing & bad, old.step + 1, old.first_bad_step),
        )
        if not self.noisy:
            followed = self.follow(old.memories, new.step, loss.astype(old.first_loss.dtype), ongoing)
            return _compare(new, loss, ongoing)._replace(memories=followed)
        size = self.batches.size_at(now).astype(old.epoch_sum.dtype)
        fresh = self.batches.position(now) == 0
        return new._replace(
            epoch_sum=jnp.where(fresh, 0, old.epoch_sum) + size * old.loss,
            epoch_count=jnp.where(fresh, 0, old.epoch_count) + size,
        )

    def record(self, progress: Progress) -> tuple[dict[str, jax.Array], Progress]:
        """Measure every probe: ({name: value}, progress with the probes' memories)."""
        problem, params = self.problem.with_state(progress.model_state), progress.params
        loss, gradient = progress.loss, progress.gradient
        if self.separate:
            if self.dtype == "bfloat16":
                problem = problem.with_data(cast_floating(self.data, "float32"))
                problem = problem.with_state(cast_floating(progress.model_state, "float32"))
                params = cast_floating(params, "float32")
            loss, gradient = jax.value_and_grad(problem.objective)(params)
        state = State(
            progress.step,
            params,
            progress.opt_state,
            loss,
            gradient,
            progress.loss,
            progress.gradient,
            progress.model_state,
            jnp.where(progress.epoch_count > 0, progress.epoch_sum / progress.epoch_count, jnp.nan),
        )
        # The record at the first bad step still shows what was there; later ones would show nothing but its ashes.
        worth = alive(progress) | (progress.first_bad_step == progress.step) | (not self.freeze)
        if self.noisy:
            first = jnp.where(progress.step == 0, loss, progress.first_loss)
            progress = _compare(progress._replace(first_loss=first), loss, worth)
            followed = self.follow(progress.memories, progress.step, loss.astype(first.dtype), worth)
            progress = progress._replace(memories=followed)
        values: dict[str, jax.Array] = {}
        memories = []
        for probe, memory in zip(self.probes, progress.memories, strict=True):
            measured, memory = probe(problem, self.optimizer, state, memory, self.any_lane)
            if twice := set(measured) & set(values):
                raise ValueError(f"probes: {probe.name} records {', '.join(sorted(twice))}, as another probe does")
            values.update(measured)
            memories.append(memory)
        kept = {name: _storable(jnp.where(worth, value, blank(value))) for name, value in values.items()}
        return kept, progress._replace(memories=tuple(memories))

    def _carried(self, progress: Progress) -> Progress:
        """Leave out what the loop over steps need not carry: of small problems, every array more is felt."""
        repeated = not self.noisy and progress.loss.dtype == progress.compared_loss.dtype
        return progress._replace(step=None, compared_loss=None if repeated else progress.compared_loss)

    def _whole(self, carried: Progress, step: jax.Array) -> Progress:
        """Put back what `_carried` left out."""
        compared = carried.loss if carried.compared_loss is None else carried.compared_loss
        return carried._replace(step=step, compared_loss=compared)

    def advance(self, now: jax.Array, index: jax.Array, until: jax.Array, progress: Progress, records: Any) -> Any:
        """Go on from step `now`, `index` records made, to step `until`, with the records due on the way."""
        num_records = -(-self.num_steps // self.every) + 1

        def due(index: jax.Array) -> jax.Array:
            return jnp.minimum(index * self.every, self.num_steps)

        def going(progress: Progress) -> jax.Array:
            return self.any_lane(alive(progress)) if self.freeze else jnp.bool_(True)

        def owed(progress: Progress, index: jax.Array) -> jax.Array:
            # A run that died exactly where a record is due still gets that record, whatever its neighbours do.
            return self.any_lane(progress.first_bad_step == due(index))

        def unfinished(carry: Any) -> jax.Array:
            now, index, progress, _ = carry
            left = (index < num_records) & ((now < until) | (due(index) <= until))
            return left & (going(progress) | owed(progress, index))

        def segment(carry: Any) -> Any:
            now, index, progress, records = carry
            last, began, step = jnp.minimum(due(index), until), now, progress.step

            def more(carry: tuple[jax.Array, Progress]) -> jax.Array:
                now, progress = carry
                return (now < last) & going(progress)

            def onward(carry: tuple[jax.Array, Progress]) -> tuple[jax.Array, Progress]:
                now, progress = carry
                return now + 1, self._carried(self.step(now, self._whole(progress, now)))

            # While any lane of a kernel goes on, all of them have taken `now` steps.
            now, progress = lax.while_loop(more, onward, (now, self._carried(progress)))
            progress = self._whole(progress, step + (now - began))
            here = (last == due(index)) & (going(progress) | owed(progress, index))

            def recorded(progress: Progress, records: Any) -> Any:
                values, progress = self.record(progress)
                return progress, {name: records[name].at[index].set(values[name]) for name in records}

            progress, records = lax.cond(
                here, recorded, lambda progress, records: (progress, records), progress, records
            )
            return jnp.maximum(now, last), index + here, progress, records

        _, _, progress, records = lax.while_loop(unfinished, segment, (now, index, progress, records))
        return progress, records


def is_noisy(problem: Problem, batches: Batches) -> bool:
    """Whether a step's loss is not the full-data objective: batches, random layers, or a state of the model."""
    return batches.batch_size is not None or problem.takes_key or problem.init_state is not None


def alive(progress: Progress) -> jax.Array:
    """Whether the loss has been finite so far."""
    return progress.first_bad_step < 0


def _compare(progress: Progress, loss: jax.Array, worth: jax.Array) -> Progress:
    """Count a rise of the loss since it was last compared."""
    before, eps = progress.compared_loss, jnp.finfo(loss.dtype).eps
    loss = loss.astype(before.dtype)
    # Before the first comparison there is nothing that could have risen: infinity is above every loss.
    size = jnp.where(jnp.isposinf(before), 0, jnp.abs(before)) + jnp.abs(progress.first_loss)
    # A non-finite loss is a rise too: that is how a divergence reads.
    rose = worth & ~(loss <= before + ROUNDING * eps * size)
    return progress._replace(
        first_rise_step=jnp.where(rose & (progress.first_rise_step < 0), progress.step, progress.first_rise_step),
        num_rises=progress.num_rises + rose,
        peak_loss=jnp.where(worth & jnp.isfinite(loss), jnp.maximum(progress.peak_loss, loss), progress.peak_loss),
        compared_loss=loss,
    )


def _like(new: Any, old: Any) -> Any:
    """Give a state the precision that it had."""
    return jax.tree.map(lambda n, o: n.astype(o.dtype) if jnp.issubdtype(o.dtype, jnp.floating) else n, new, old)


def _storable(value: jax.Array) -> jax.Array:
    return value.astype(jnp.float32) if value.dtype == jnp.bfloat16 else value


def blank(value: Any) -> jax.Array:
    """What a record holds where nothing was measured: NaN for floats, False for flags, 0 for counts (see `status`)."""
    return jnp.full((), np.nan if jnp.issubdtype(value.dtype, jnp.floating) else 0, value.dtype)
