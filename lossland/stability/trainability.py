"""The rule by which maps of trainability call a run convergent, and the optimizers that they sweep."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import xarray as xr

from lossland.optimizers import Optimizer
from lossland.problems.problem import Problem
from lossland.sweeps.probes import State
from lossland.sweeps.sweep import Outcome

CLIP = 1e6
"""Losses count as at most this multiple of the first one."""


class TailLossState(NamedTuple):
    """Steps taken, first loss, and the sum of the last normalised losses."""

    tail_step: jax.Array
    tail_first: jax.Array
    tail_total: jax.Array


def track_tail_loss(num_steps: int, last: int = 20) -> optax.GradientTransformationExtraArgs:
    """Build a transformation that leaves updates alone and averages the loss over the last steps of a run.

    Equation: tail = mean over the last `last` of `num_steps` steps of min(loss_t / loss_0, 1e6); a loss that is not
    finite counts as the most. `tail_loss` reads it, `not_converged` judges it.

    Raises:
        ValueError: unless 1 <= last <= num_steps.

    Source: Sohl-Dickstein 2024 (arXiv 2402.06184), appendix on the convergence measure.
    """
    if not 1 <= last <= num_steps:
        raise ValueError(f"last: expected 1 to num_steps = {num_steps}, got {last!r}")

    def init(params: Any) -> TailLossState:
        dtype = jnp.promote_types(jnp.result_type(*jax.tree.leaves(params)), jnp.float32)
        return TailLossState(jnp.int32(0), jnp.ones((), dtype), jnp.zeros((), dtype))

    def update(updates: Any, state: Any, params: Any = None, *, value: Any = None, **extra: Any) -> Any:
        first = jnp.where(state.tail_step == 0, value, state.tail_first).astype(state.tail_first.dtype)
        share = jnp.where(jnp.isfinite(value), jnp.minimum(value / first, CLIP), CLIP)
        counted = jnp.where(state.tail_step >= num_steps - last, share / last, 0)
        total = state.tail_total + counted.astype(state.tail_total.dtype)
        return updates, TailLossState(state.tail_step + 1, first, total)

    return optax.GradientTransformationExtraArgs(init, update)


def tail_loss(problem: Problem, optimizer: Optimizer, state: State) -> jax.Array:
    """Mean loss over the last steps of a run, over the first loss: what `track_tail_loss` has kept so far."""
    return optax.tree.get(state.opt_state, "tail_total")


def not_converged(runs: xr.Dataset, cutoff: float = 1.0) -> xr.DataArray:
    """Say which runs do not converge: non-finite, or `tail_loss` at the last step not below a cut-off.

    Raises:
        ValueError: if `tail_loss` was not recorded.
    """
    if "tail_loss" not in runs:
        raise ValueError(
            "runs: convergence is read from tail_loss; chain track_tail_loss and record the probe tail_loss"
        )
    return (runs["status"] == Outcome.diverged) | ~(runs["tail_loss"].isel(step=-1, drop=True) < cutoff)


def per_layer_sgd(input_rate: Any, output_rate: Any) -> optax.GradientTransformation:
    """Build gradient descent with a learning rate for each layer of a network of parameters "input" and "output"."""
    rates: Any = {"input": optax.sgd(input_rate), "output": optax.sgd(output_rate)}
    return optax.partition(rates, {"input": "input", "output": "output"})


def drift(amount: Any, name: str = "input") -> optax.GradientTransformation:
    """Build a transformation that adds a constant to every weight of one parameter at every step, whatever its
    gradient."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        moved = jax.tree.map(lambda leaf: leaf + jnp.asarray(amount, leaf.dtype), updates[name])
        return {**updates, name: moved}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
