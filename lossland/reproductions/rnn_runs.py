"""Runs of the reported recurrent classifier: who learns and then gets worse, at which rates, under which changes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from lossland.optimizers import Optimizer
from lossland.problems import sequences
from lossland.problems.problem import Problem
from lossland.stability.intervals import binomial_interval
from lossland.stability.interventions import intervened_adam
from lossland.sweeps.execution import run
from lossland.sweeps.forks import state_probe
from lossland.sweeps.probes import Probe, State, accuracy_probe
from lossland.sweeps.sweep import Sweep

REPORTED_RATE = 2e-4
B1, B2 = 0.9, 0.999
ADAM = Optimizer(optax.adam, b1=B1, b2=B2)
STATE = state_probe()
LEARNT, LOST, RISE = 0.9, 0.8, 2.0
"""The reported shape: accuracy above the first, later below the second while the loss is so many times its smallest."""
UNLIMITED = 1e30
"""A bound that nothing reaches; axes of sweeps have to be finite."""
LANES = 1
"""Runs per kernel: the products of a recurrent network gain nothing from being batched over runs on a CPU."""


@functools.cache
def accuracy() -> Probe:
    """Build the probe of the training accuracy of `rnn_sequences`; one object, so that programs are shared."""
    return accuracy_probe(lambda params, data: sequences.logits(params, data[0]))


def growth_through_time(problem: Problem, optimizer: Optimizer, state: State) -> jax.Array:
    """Ratio of the gradients for what enters the state at the first and at the last time step, root mean squares."""
    gradients = sequences.time_gradients(state.params, problem.data)
    sizes = jnp.sqrt(jnp.mean(gradients**2, axis=(1, 2)))
    return sizes[0] / sizes[-1]


def label_drift(problem: Problem, optimizer: Optimizer, state: State) -> dict[str, jax.Array]:
    """Mean over classes of the output bias, of the logits (mean over examples), and 1 + mean |h|^2 of the last
    states h."""
    read_out = state.params["Dense_0"]
    z = sequences.logits(state.params, problem.data[0])
    last = sequences.last_states(state.params, problem.data[0])
    return {
        "mean_bias": jnp.mean(read_out["bias"]),
        "mean_logit": jnp.mean(z),
        "state_square": 1 + jnp.sum(jnp.mean(last, axis=0) ** 2),
    }


def clipped_adam(
    learning_rate: Any,
    b1: Any = B1,
    b2: Any = B2,
    eps: Any = 1e-8,
    freeze: Any = 0.0,
    amsgrad: Any = 0.0,
    clip: Any = UNLIMITED,
    decay: Any = 1.0,
    max_norm: Any = UNLIMITED,
) -> optax.GradientTransformation:
    """Build `intervened_adam` on gradients whose norm over all parameters is clipped at `max_norm`."""
    inner = intervened_adam(learning_rate, b1, b2, eps, freeze, amsgrad, clip, 0.0, decay)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        norm = optax.global_norm(updates)
        share = jnp.where(norm > max_norm, max_norm / norm, 1.0)
        return inner.update(jax.tree.map(lambda leaf: leaf * share, updates), state, params)

    return optax.GradientTransformation(inner.init, update)


def train(
    problem: Problem,
    rates: Sequence[float],
    seeds: Any,
    num_steps: int,
    *,
    every: int = 10,
    probes: Sequence[Any] = (),
    lane_width: int | None = LANES,
    batch_size: int | None = None,
    out: Path | None = None,
) -> xr.Dataset:
    """Train with Adam at each rate from each seed; loss and accuracy are recorded, tiles saved in `out` if given."""
    sweep = Sweep({"learning_rate": rates}, seeds, num_steps, every, lane_width=lane_width, batch_size=batch_size)
    return run(problem, ADAM, sweep, ["loss", accuracy(), *probes], out, progress=False)


def train_arms(
    problem: Problem,
    arms: Mapping[str, Mapping[str, float]],
    seeds: Any,
    num_steps: int,
    *,
    every: int = 10,
    out: Path | None = None,
) -> xr.Dataset:
    """Train from the start with `clipped_adam`, every arm from every seed: axes (arm, seed, step)."""
    names = sorted({name for arm in arms.values() for name in arm})
    usual = {"b1": B1, "b2": B2, "eps": 1e-8, "clip": UNLIMITED, "max_norm": UNLIMITED, "decay": 1.0}
    points = {name: [arm.get(name, usual.get(name, 0.0)) for arm in arms.values()] for name in names}
    sweep = Sweep({}, seeds, num_steps, every, lane_width=LANES, points=points)
    runs = run(problem, clipped_adam, sweep, ["loss", accuracy()], out, progress=False)
    return runs.drop_vars(names).assign_coords(point=list(arms)).rename(point="arm")


def reported_shape(runs: xr.Dataset, *, until: int | None = None, learnt: bool = False) -> xr.Dataset:
    """Say of every run whether it learnt and then got worse, and when.

    Equation: learnt at the first record with accuracy > 0.9; the drop is the first record after it with accuracy < 0.8
    and loss > 2 x the smallest loss so far.

    Args:
        runs: with `loss` and `accuracy` over "step".
        until: records after this step are not read.
        learnt: the runs go on from states that had learnt.

    Returns:
        Dataset over the runs' axes: `learnt_step`, `drop_step` (inf where there is none), `shape` (whether there is a
        drop), `stays_down` (a drop, and mean accuracy over the last tenth of the records below 0.9),
        `worst_accuracy` after having learnt, `rise` (largest loss after having learnt over the smallest before it),
        `final_accuracy`, `final_loss` (median over the last tenth).
    """
    known = runs if until is None else runs.sel(step=slice(None, until))
    steps = known["step"].values.astype(float)
    right, loss = _numbers(known)
    after = np.maximum.accumulate(right > LEARNT, axis=-1) | learnt
    valley = np.fmin.accumulate(loss, axis=-1)
    dropped = falls(known, learnt=learnt)

    def first(flags: np.ndarray) -> np.ndarray:
        return np.where(flags.any(-1), steps[flags.argmax(-1)], np.inf)

    tail = slice(-max(1, len(steps) // 10), None)
    final = right[..., tail].mean(-1)
    axes = [name for name in known["loss"].dims if name != "step"]
    found = {
        "learnt_step": first(after),
        "drop_step": first(dropped),
        "shape": dropped.any(-1),
        "stays_down": dropped.any(-1) & (final < LEARNT),
        "worst_accuracy": np.where(after, right, np.inf).min(-1),
        "rise": np.where(after, loss / valley, 1.0).max(-1),
        "final_accuracy": final,
        "final_loss": np.median(loss[..., tail], axis=-1),
    }
    coordinates = {name: known[name] for name in axes if name in known.coords}
    return xr.Dataset({name: (axes, values) for name, values in found.items()}, coordinates)


def falls(runs: xr.Dataset, *, learnt: bool = False) -> np.ndarray:
    """Mark the records that make a drop, see `reported_shape`: (..., step)."""
    right, loss = _numbers(runs)
    after = np.maximum.accumulate(right > LEARNT, axis=-1) | learnt
    return after & (right < LOST) & (loss > RISE * np.fmin.accumulate(loss, axis=-1))


def _numbers(runs: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and loss, (..., step); a run that died gets nothing right, at an infinite loss."""
    right, loss = (runs[name].transpose(..., "step").values.astype(float) for name in ("accuracy", "loss"))
    return np.nan_to_num(right, nan=0.0), np.nan_to_num(loss, nan=np.inf, posinf=np.inf)


class Estimate(NamedTuple):
    """A number with its 95 % interval over seeds."""

    value: float
    low: float
    high: float


def boundary(shape: xr.Dataset, *, num_resamples: int = 1000) -> Estimate:
    """Find the lowest learning rate at which half of the seeds show the shape.

    Equation: the first rate of the grid with a share of at least 1/2, interpolated in the logarithm of the rate between
    it and the one before; 0 where that is the lowest rate of the grid, inf where there is none. The interval holds the
    middle 95 % of the values that seeds drawn again with replacement give, a seed with all its rates.
    """
    flags = shape["shape"].transpose("learning_rate", "seed").values.astype(float)
    rates, count = shape["learning_rate"].values, flags.shape[1]
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=num_resamples)
    low, high = np.sort(_half(rates, drawn @ flags.T / count))[[int(0.025 * num_resamples), -1 - num_resamples // 40]]
    value = float(_half(rates, flags.mean(1)[None])[0])
    return Estimate(value, min(value, float(low)), max(value, float(high)))


def _half(rates: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Rates at which rows of shares, (row, rate), first reach one half."""
    above = shares >= 0.5
    first, rows = above.argmax(1), np.arange(len(shares))
    before = np.maximum(first - 1, 0)
    left, right = shares[rows, before], shares[rows, first]
    part = (0.5 - left) / np.where(right > left, right - left, 1.0)
    places = rates[before] * (rates[first] / rates[before]) ** part
    return np.where(above.any(1), np.where(first > 0, places, 0.0), np.inf)


def share(flags: Any) -> Estimate:
    """Share of true flags with its Wilson interval."""
    flags = np.asarray(flags, bool).ravel()
    low, high = binomial_interval(int(flags.sum()), flags.size)
    return Estimate(float(flags.mean()), float(low), float(high))


def difference(flags: Any, others: Any) -> Estimate:
    """Difference of two shares over the same seeds, mean(flags) - mean(others), with its interval for matched pairs.

    Equation: of n seeds b have the first flag alone and c the second alone; with one half added to each of the four
    counts the interval is (b - c) / (n + 2) -/+ 1.96 sqrt(b + c + 1 - (b - c)^2 / (n + 2)) / (n + 2), within [-1, 1].

    Raises:
        ValueError: for flags of different numbers of seeds.

    Source: Agresti and Min 2005.
    """
    first, second = (np.asarray(values, bool).ravel() for values in (flags, others))
    if first.shape != second.shape or not first.size:
        raise ValueError(f"flags: expected one pair per seed, got {first.size} and {second.size}")
    b, c, n = int(np.sum(first & ~second)), int(np.sum(second & ~first)), first.size + 2
    half = 1.96 * np.sqrt(b + c + 1 - (b - c) ** 2 / n) / n
    return Estimate((b - c) / first.size, max(-1.0, (b - c) / n - half), min(1.0, (b - c) / n + half))


def at_equal_progress(runs: xr.Dataset, progress: float) -> dict[float, xr.DataArray]:
    """Who shows the shape by the step at which learning rate x steps is `progress`: {learning rate: (seed,)}, for the
    rates that were run so far."""
    found = {}
    for rate in runs["learning_rate"].values.tolist():
        until = progress / rate
        if until <= float(runs["step"][-1]) + 1e-6:
            found[rate] = reported_shape(runs.sel(learning_rate=rate), until=int(np.ceil(until - 1e-6)))["shape"]
    return found
