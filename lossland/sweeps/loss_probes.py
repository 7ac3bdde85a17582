"""Spikes of the training loss late in training, followed step by step inside the compiled program: no curve is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lossland.optimizers import Optimizer
from lossland.problems.problem import Problem
from lossland.sweeps.probes import Lane, Probe, State

FACTOR = "visible"
"""Axis of the factors by which a loss must rise."""
PROGRESS = 0.1
"""Training is well under way once the loss has been below this share of the first one."""
FADE = 10.0
"""Steps in which the envelope of the loss falls by e: at b1 = 0.9 the energy of a ringing mode falls by b1 per step."""


class _Watch(NamedTuple):
    """What is remembered of a run's losses. With a factor axis: low, peak, rising, first, count; else scalars."""

    step: jax.Array
    first_loss: jax.Array
    smallest: jax.Array
    envelope: jax.Array
    late: jax.Array
    late_peak: jax.Array
    low: jax.Array
    peak: jax.Array
    rising: jax.Array
    first: jax.Array
    count: jax.Array


def late_spikes(after: int, visible: Sequence[float], *, progress: float = PROGRESS, fade: float = FADE) -> Probe:
    """Build the probe of spikes of the loss that begin late in training, every step counted, none stored.

    Training is late from the first step t >= `after` on at which the loss has been at or below `progress` times the
    first loss. The envelope of the loss, e_t = max(L_t, e_(t-1) exp(-1 / fade)), bridges the zeros of a loss that
    rings; with batches the losses are those of the records. A spike begins where e_t > factor x low, low the smallest e
    since the last spike was over, and is over once e has fallen by the factor from its peak. It is a late one if it
    begins late: a spike that is under way as late training begins is not. A loss that becomes non-finite spikes, and
    that spike is never over.

    Records `late_step`, the step at which late training began (-1 before); `first_late_spike`, the step of the first
    late spike (-1 for none so far), and `num_late_spikes`, both over the axis "visible", the factors; `late_peak_loss`,
    the largest loss since late training began (-inf before).

    Raises:
        ValueError: unless after >= 0, every factor is above 1, 0 < progress <= 1 and fade > 0.
    """
    factors = tuple(float(factor) for factor in visible)
    if not factors or not all(1 < factor < math.inf for factor in factors) or len(set(factors)) < len(factors):
        raise ValueError(f"visible: expected distinct factors above 1, got {visible!r}")
    if isinstance(after, bool) or int(after) != after or after < 0:
        raise ValueError(f"after: expected a step, a whole number of at least 0, got {after!r}")
    if not 0 < progress <= 1:
        raise ValueError(f"progress: expected a share of the first loss in (0, 1], got {progress!r}")
    if not fade > 0:
        raise ValueError(f"fade: expected a positive number of steps, got {fade!r}")

    def begin(problem: Problem, params: Any) -> _Watch:
        dtype = jnp.promote_types(jnp.result_type(*jax.tree.leaves(params)), jnp.float32)
        one, many = jnp.zeros((), dtype), jnp.zeros(len(factors), dtype)
        whole = jnp.zeros(len(factors), jnp.int32)
        return _Watch(
            step=jnp.int32(0),
            first_loss=one,
            smallest=one + jnp.inf,
            envelope=one,
            late=jnp.int32(-1),
            late_peak=one - jnp.inf,
            low=many + jnp.inf,
            peak=many,
            rising=jnp.zeros(len(factors), bool),
            first=whole - 1,
            count=whole,
        )

    def follow(old: _Watch, step: jax.Array, loss: jax.Array) -> _Watch:
        factor = jnp.asarray(factors, old.low.dtype)
        loss = jnp.where(jnp.isfinite(loss), loss, jnp.inf).astype(old.low.dtype)
        first_loss = jnp.where(step == 0, loss, old.first_loss)
        smallest = jnp.minimum(old.smallest, loss)
        begins = (old.late < 0) & (step >= after) & (smallest <= progress * first_loss)
        late = jnp.where(begins, step, old.late)
        # With batches only records are followed: they lie several steps apart.
        faded = jnp.power(jnp.asarray(math.exp(-1 / fade), loss.dtype), step - old.step)
        envelope = jnp.maximum(loss, old.envelope * faded)
        low = jnp.where(old.rising, old.low, jnp.minimum(old.low, envelope))
        starts = ~old.rising & (envelope > factor * low)
        rising = old.rising | starts
        peak = jnp.where(rising, jnp.maximum(jnp.where(old.rising, old.peak, 0), envelope), 0)
        over = rising & (envelope < peak / factor)
        counts = starts & (late >= 0)
        return _Watch(
            step=jnp.asarray(step, jnp.int32),
            first_loss=first_loss,
            smallest=smallest,
            envelope=envelope,
            late=late,
            late_peak=jnp.where(late >= 0, jnp.maximum(old.late_peak, loss), old.late_peak),
            low=jnp.where(over, envelope, low),
            peak=peak,
            rising=rising & ~over,
            first=jnp.where(counts & (old.first < 0), step, old.first).astype(jnp.int32),
            count=old.count + counts,
        )

    def measure(problem: Problem, optimizer: Optimizer, state: State, watch: _Watch, any_lane: Lane) -> Any:
        values = {
            "late_step": watch.late,
            "late_peak_loss": watch.late_peak,
            "first_late_spike": watch.first,
            "num_late_spikes": watch.count,
        }
        return values, watch

    return Probe(
        "late_spikes",
        measure,
        begin=begin,
        follow=follow,
        dims={"first_late_spike": (FACTOR,), "num_late_spikes": (FACTOR,)},
        units={"late_step": "step", "late_peak_loss": "loss", "first_late_spike": "step", "num_late_spikes": "1"},
        descriptions={
            "late_step": f"first step from {after} on with a loss once at {progress:g} of the first; -1 before",
            "late_peak_loss": "largest loss since late training began",
            "first_late_spike": "step at which the first late spike began; -1 for none so far",
            "num_late_spikes": "late spikes begun so far",
        },
    )
