"""Runs trained again, bit for bit, with the states of every step, and what is known of how they were trained."""

from __future__ import annotations

import functools
import inspect
import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from lossland.diagnosis.arms import evaluated
from lossland.optimizers import Optimizer, Schedule, as_optimizer
from lossland.problems.problem import Problem
from lossland.sweeps.batches import Batches
from lossland.sweeps.execution import run
from lossland.sweeps.forks import PARAMS, state_probe
from lossland.sweeps.probes import as_probes
from lossland.sweeps.sweep import Sweep
from lossland.sweeps.trajectories import sweep_of
from lossland.thresholds import threshold

LARGEST_RECORD = 2**28
"""Bytes of saved states beyond which they are saved less often."""
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Where a function lies in memory, which is no part of what it does."""


@dataclass(frozen=True)
class Case:
    """Runs of one hyperparameter point, trained again with their states: dims (seed, step)."""

    problem: Problem  # with its own hyperparameters decided, in evaluation mode
    trained: Problem
    optimizer: Optimizer
    runs: xr.Dataset
    sweep: Sweep
    point: dict[str, Any]
    is_adaptive: bool
    same_bits: bool
    difference: float

    @property
    def batches(self) -> Batches:
        """Which examples a step saw."""
        size = self.point.get("batch_size", self.sweep.batch_size)
        number = None if size is None else int(size)
        return Batches(self.problem.num_examples, number, self.sweep.sampling, self.sweep.last_batch)

    @property
    def dtype(self) -> str:
        """Precision of the runs; that of replays where forks do not go lower."""
        own = str(self.point.get("dtype", self.sweep.dtype))
        return "float64" if own == "float64" else "float32"

    @functools.cached_property
    def tuned(self) -> Optimizer:
        """The optimizer with every hyperparameter of the point decided."""
        names = self.optimizer.argument_names
        return self.optimizer.with_arguments(**{k: float(v) for k, v in self.point.items() if k in names})

    def rates(self, steps: np.ndarray) -> np.ndarray | None:
        """Learning rate at every step, None where the optimizer has no argument of that name."""
        value = self.tuned.arguments.get("learning_rate")
        if isinstance(value, Schedule):
            value = value.build()
        if callable(value):
            schedule = value
            return np.asarray(jax.vmap(lambda step: jnp.asarray(schedule(step), jnp.float32))(jnp.asarray(steps)))
        return None if value is None else np.full(len(steps), float(value))

    @property
    def is_scheduled(self) -> bool:
        """Whether the learning rate is a function of the step."""
        value = self.tuned.arguments.get("learning_rate")
        return isinstance(value, Schedule) or callable(value)

    def thresholds(self, steps: np.ndarray) -> np.ndarray:
        """Sharpness at which the linearised optimizer turns unstable, at every step."""
        if not self.is_scheduled:
            return np.full(len(steps), self.runs["threshold"].item())
        clock = self.runs["step"].values
        rates, own = self.rates(clock), self.rates(steps)
        if rates is None or own is None:
            return np.full(len(steps), np.nan)
        place = 0 if rates[0] > 0 else int(np.argmax(rates))  # a warm-up from 0 has no threshold at its first step
        try:
            known = threshold(self.tuned, step=int(clock[place])).critical_curvature
        except ValueError:
            known = None
        if known is None:
            return np.full(len(steps), np.nan)
        with np.errstate(divide="ignore"):
            return known * rates[place] / own

    def states(self, seeds: np.ndarray, steps: np.ndarray) -> xr.Dataset:
        """Saved states of runs (places along "seed") at steps, over the axis "state", with their hyperparameters."""
        where = {
            "seed": xr.DataArray(seeds, dims="state"),
            "step": xr.DataArray(np.searchsorted(self.runs["step"].values, steps), dims="state"),
        }
        found = self.runs[["saved_params", "saved_opt_state"]].isel(where)
        found = found.drop_vars([name for name in found.coords if name not in ("seed", "step")])
        names = {*self.optimizer.argument_names, *self.problem.arguments}
        own = {name: ("state", np.full(len(seeds), float(v))) for name, v in self.point.items() if name in names}
        return found.assign_coords(own)


def checked(runs: xr.Dataset, problem: Problem, optimizer: Any) -> Optimizer:
    """Refuse another problem or optimizer than that of the runs; return the optimizer, what was swept left open.

    Raises:
        ValueError: naming what was trained and what was got.
    """
    given = as_optimizer(optimizer)
    if not isinstance(problem, Problem):
        raise ValueError(f"problem: expected an ll.Problem, got {type(problem).__name__}")
    expected = runs.attrs.get("problem_fingerprint")
    if expected and problem.fingerprint() != expected:
        raise ValueError(
            f"problem: expected the one that was trained, {runs.attrs.get('problem')} {expected}, got {problem.name} "
            f"{problem.fingerprint()}; build it with the same data and options"
        )
    swept = sweep_of(runs).hyperparameters
    for name in sorted(set(swept) & set(given.arguments)):
        value, own = given.arguments[name], runs[name].item()
        if not (isinstance(value, (int, float, np.number)) and np.isclose(value, own, rtol=1e-6)):
            raise ValueError(f"optimizer: expected {name} = {own:g}, which the run was trained by, got {value!r}")
    given = Optimizer(given.factory, **{name: value for name, value in given.arguments.items() if name not in swept})
    trained_by = runs.attrs.get("optimizer")
    if trained_by and _words(repr(given)) != _words(trained_by):
        raise ValueError(
            f"optimizer: expected the one that the run was trained by, {trained_by}, got "
            f"{ADDRESS.sub('', repr(given))}; give the same factory and the same fixed arguments"
        )
    return given


def _words(text: str) -> list[str]:
    """What an optimizer's description holds, in whatever order its arguments were given."""
    return sorted(re.split(r"[(),\s]+", ADDRESS.sub("", text)))


def retrained(runs: xr.Dataset, problem: Problem, optimizer: Any) -> Case:
    """Train the runs of one point again from their initial states, and keep the states of every step.

    Args:
        runs: dims (seed, step), scalar coordinates for the hyperparameters.
        problem, optimizer: what they were trained by.

    Raises:
        ValueError: where the problem or the optimizer is not that of the runs.
    """
    given = checked(runs, problem, optimizer)
    original = sweep_of(runs)
    point = {name: runs[name].values.item() for name in original.hyperparameters}
    num_params = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(problem.param_shapes))
    is_noisy = original.batch_size is not None or "batch_size" in point or problem.takes_key
    probes = (*as_probes(["loss", "batch_loss"] if is_noisy else ["loss"]), state_probe())
    size = 16 * num_params * runs.sizes["seed"] * original.num_steps
    # A divisor, so that every step of the original's records is one of these.
    divisors = [number for number in range(1, original.every + 1) if original.every % number == 0]
    every = next((number for number in divisors if size / number <= LARGEST_RECORD), original.every)
    fields: dict[str, Any] = {
        name: getattr(original, name)
        for name in ("dtype", "batch_size", "sampling", "last_batch", "freeze")
        if name not in point
    }
    sweep = Sweep(
        {name: [value] for name, value in point.items()},
        seeds=runs["seed"].values.astype(int).tolist(),
        num_steps=original.num_steps,
        every=every,
        lane_width=int(runs.attrs["lane_width"]),
        **fields,
    )
    found = runs
    saved = PARAMS in runs and original.every == every
    if not saved:
        found = run(problem, given, sweep, probes, progress=False).isel(dict.fromkeys(point, 0))
    again = found["loss"].sel(step=runs["step"]).values.astype(float)
    before = runs["loss"].values.astype(float)
    with np.errstate(invalid="ignore"):
        off = np.abs(again - before) / np.maximum(np.abs(before), np.finfo(float).tiny)
    mine = {name: value for name, value in point.items() if name in problem.arguments}
    return Case(
        evaluated(problem.with_arguments(**mine) if mine else problem),
        problem,
        given,
        found,
        original,
        point,
        bool(found["threshold"].attrs.get("preconditioned", 0)),
        bool(np.array_equal(again, before, equal_nan=True)),
        float(np.nanmax(off)) if np.isfinite(off).any() else 0.0,
    )


def tree_of(problem: Problem, flat: Any) -> Any:
    """Turn flat parameters (..., parameter), in the order of ravel_pytree, into pytrees."""
    leaves, structure = jax.tree.flatten(problem.param_shapes)
    ends = np.cumsum([leaf.size for leaf in leaves]).tolist()
    return structure.unflatten(
        flat[..., end - leaf.size : end].reshape((*flat.shape[:-1], *leaf.shape))
        for leaf, end in zip(leaves, ends, strict=True)
    )


def momentum_of(optimizer: Optimizer) -> float:
    """Decay of the first moment: `momentum` or `b1`, or in a chain what a step with gradient 0 leaves of it.

    0 where there is none, NaN where it is not a number.
    """
    parameters = inspect.signature(optimizer.factory).parameters
    for name in ("momentum", "b1"):
        if name in parameters:
            value = optimizer.arguments.get(name, parameters[name].default)
            if value is None or value is inspect.Parameter.empty:
                return 0.0
            return float(value) if isinstance(value, (int, float)) else np.nan
    return _probed_momentum(optimizer)


def _probed_momentum(optimizer: Optimizer) -> float:
    """Decay of the moving sum or mean of gradients in the state of a chain, 0 where it holds none or several."""
    params = {"probe": jnp.full((), 2.0**-40)}  # so small that weight decay is negligible
    try:
        made = optax.with_extra_args_support(optimizer.build())
        _, before = made.update({"probe": jnp.ones(())}, made.init(params), params)
        _, after = made.update({"probe": jnp.zeros(())}, before, params)
    except (TypeError, ValueError, KeyError, AttributeError):  # made for other parameters, or in need of more
        return 0.0
    first, second = _moments(before), _moments(after)
    return second[0] / first[0] if len(first) == len(second) == 1 and first[0] else 0.0


def _moments(opt_state: Any) -> list[float]:
    """First moments of the one parameter of a probe."""

    def holds(node: Any) -> bool:
        return any(isinstance(getattr(node, name, None), dict) for name in ("mu", "trace"))

    nodes = [node for node in jax.tree.leaves(opt_state, is_leaf=holds) if holds(node)]
    return [float((node.mu if hasattr(node, "mu") else node.trace)["probe"]) for node in nodes]


def decay_of(optimizer: Optimizer) -> float:
    """Decay of the second moment: `b2` or `decay`, NaN where there is none."""
    parameters = inspect.signature(optimizer.factory).parameters
    for name in ("b2", "decay"):
        if name in parameters:
            value = optimizer.arguments.get(name, parameters[name].default)
            return float(value) if isinstance(value, (int, float)) else np.nan
    return np.nan
