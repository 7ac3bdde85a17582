"""What decides a run's bits: named axes, seeds, number of steps, recording interval, precision, lane width."""

from __future__ import annotations

import enum
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

RESERVED = ("seed", "step", "run")


class Outcome(enum.IntEnum):
    """How a run ended. Kept apart from the numbers, so that NaN never means "not run"."""

    not_run = 0
    finished = 1
    diverged = 2

    @classmethod
    def attributes(cls) -> dict[str, Any]:
        """Codes and names by the CF conventions: `flag_values` and space-separated `flag_meanings`."""
        return {
            "flag_values": [int(outcome) for outcome in cls],
            "flag_meanings": " ".join(outcome.name for outcome in cls),
            "units": "1",
            "description": "how the run ended; diverged: its loss was not finite at first_bad_step",
        }


@dataclass(frozen=True, eq=False)
class Sweep:
    """Named hyperparameter axes x seeds, each trained for the same number of steps.

    Equation: runs = axis_1 x axis_2 x ... x seeds (the full grid, in this order).

    Args:
        axes: name -> values. A name is an argument of the optimizer's factory or of the problem.
        seeds: distinct non-negative integers, or how many. A seed fixes the starting point whatever the
        hyperparameters. num_steps: optimizer steps per run.
        every: record before step 0, every, 2 every, ... and after the last step.
        dtype: precision of parameters, data and hyperparameters. Starting points are drawn in float32 and converted, so
            a seed means the same start in both.
        lane_width: how many runs one kernel advances together. It is part of the sweep's identity, since bits depend on
            it; None takes the fixed rule of `lossland.sweeps.plan` for the platform and problem size.
        freeze: stop a run at its first non-finite loss. False goes on with the arithmetic, to see what it makes of it.

    Raises:
        ValueError: naming the argument, what was expected and what was got.

    >>> Sweep({"learning_rate": [0.1, 0.2]}, seeds=3, num_steps=10).shape
    (2, 3)
    """

    axes: Mapping[str, Any]
    seeds: Any = 16
    num_steps: int = 400
    every: int = 10
    dtype: Literal["float32", "float64"] = "float32"
    lane_width: int | None = None
    freeze: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.axes, Mapping):
            raise ValueError(f"axes: expected a dict of name -> values, got {type(self.axes).__name__}")
        object.__setattr__(self, "axes", {name: _axis(name, values) for name, values in self.axes.items()})
        object.__setattr__(self, "seeds", _seeds(self.seeds))
        for name, least in (("num_steps", 1), ("every", 1)):
            object.__setattr__(self, name, _count(name, getattr(self, name), least))
        if self.every > self.num_steps:
            raise ValueError(f"every: expected at most num_steps = {self.num_steps}, got {self.every}")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype: expected 'float32' or 'float64', got {self.dtype!r}")
        if self.lane_width is not None:
            object.__setattr__(self, "lane_width", _count("lane_width", self.lane_width, 1))

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of every axis, seeds last."""
        return (*(len(values) for values in self.axes.values()), len(self.seeds))

    @property
    def num_runs(self) -> int:
        """Number of runs in the grid."""
        return math.prod(self.shape)

    @property
    def recorded_steps(self) -> np.ndarray:
        """Steps at which probes record: 0, every, 2 every, ... and num_steps."""
        return np.append(np.arange(0, self.num_steps, self.every), self.num_steps)

    def runs(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Hyperparameters and seed of every run, flattened in grid order: ({name: (run,)}, (run,))."""
        grid = np.meshgrid(*self.axes.values(), self.seeds, indexing="ij")
        flat = [values.reshape(-1) for values in grid]
        return dict(zip(self.axes, flat[:-1], strict=True)), flat[-1]

    def tiles(self, runs_per_tile: int) -> list[np.ndarray]:
        """Runs of every tile, as indices in grid order: the one place that says which run lies in which file."""
        return [
            np.arange(start, min(start + runs_per_tile, self.num_runs))
            for start in range(0, self.num_runs, runs_per_tile)
        ]

    def with_lane_width(self, lane_width: int) -> Sweep:
        """Return the same sweep with its lane width decided."""
        return replace(self, lane_width=lane_width)

    def to_json(self) -> str:
        """Canonical JSON form: every number exactly, keys sorted."""
        fields = {
            "axes": [[name, [float(v) for v in values]] for name, values in self.axes.items()],
            "seeds": [int(seed) for seed in self.seeds],
            "num_steps": self.num_steps,
            "every": self.every,
            "dtype": self.dtype,
            "lane_width": self.lane_width,
            "freeze": self.freeze,
        }
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Sweep:
        """Read back what `to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "axes": {name: values for name, values in fields["axes"]}})

    def fingerprint(self) -> str:
        """Hash of the canonical JSON form."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def _axis(name: Any, values: Any) -> np.ndarray:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"axes: expected names that are Python identifiers, got {name!r}")
    if name in RESERVED:
        raise ValueError(f"axes: {name!r} is a name of lossland's own; seeds have their own argument, seeds=...")
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"axes[{name!r}]: expected numbers, got dtype {array.dtype}")
    array = array.astype(np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"axes[{name!r}]: expected a non-empty one-dimensional list of values, got shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"axes[{name!r}]: expected finite values, got {array[~np.isfinite(array)][0]}")
    if np.unique(array).size != array.size:
        raise ValueError(f"axes[{name!r}]: expected distinct values, got repeated ones")
    return array


def _seeds(seeds: Any) -> np.ndarray:
    if isinstance(seeds, (int, np.integer)) and not isinstance(seeds, bool):
        seeds = range(_count("seeds", seeds, 1))
    array = np.asarray(list(seeds) if isinstance(seeds, Iterable) else seeds)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(f"seeds: expected a number of seeds or a list of integers, got {seeds!r}")
    if array.min() < 0 or array.max() > 2**32 - 1:
        raise ValueError(f"seeds: expected integers in [0, 2**32), got {array.min()} to {array.max()}")
    if np.unique(array).size != array.size:
        raise ValueError("seeds: expected distinct seeds, got repeated ones")
    return array.astype(np.int64)


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
    return int(value)
