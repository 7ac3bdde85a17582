"""What decides a run's bits: named axes, seeds, number of steps, recording interval, precision, lane width."""

from __future__ import annotations

import enum
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from lossland.arguments import FLAG, MAPPING, MOST, calling, check, count, number

MOST_SEEDS, MOST_RECORDS, MOST_RUNS = 2**24, 2**24, 2**28
"""More than these is a slip of the keyboard: no machine would hold them."""
RESERVED = ("seed", "step", "run")
DTYPES = ("float32", "float64", "bfloat16")
Sampling = Literal["shuffled", "in_order", "with_replacement"]
SAMPLINGS: tuple[Sampling, ...] = ("shuffled", "in_order", "with_replacement")
LastBatch = Literal["keep", "drop"]


class Group(NamedTuple):
    """Runs that share a compiled program: `runs` are indices in grid order."""

    batch_size: int | None
    dtype: str
    runs: np.ndarray


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

    Equation: runs = axis_1 x axis_2 x ... (x points) x seeds (the full grid, in this order).

    Args:
        axes: name -> values. A name is an argument of the optimizer's factory or of the problem, or one of
            "batch_size" and "dtype", for which every value gets its own compiled program.
        seeds: distinct non-negative integers, or how many. A seed fixes the starting point, the order of the batches
            and the random layers, each by a key stream of its own, whatever the hyperparameters.
        num_steps: optimizer steps per run.
        every: record before step 0, every, 2 every, ... and after the last step.
        points: name -> values of equal length, zipped: one axis "point" that takes them together. An explicit list of
            points, or those that `Sweep.random` drew.
        batch_size: examples per step; None trains on the full data.
        sampling: "shuffled" (a new order every epoch), "in_order", or "with_replacement" (independent draws).
        last_batch: "keep" trains on the ragged rest of an epoch too, as Keras does; "drop" leaves it out.
        dtype: precision of parameters and data. Starting points are drawn in float32 and converted, so a seed means the
            same start in all. Hyperparameters are float32, or float64 with "float64"; probes see "bfloat16" parameters
            through float32.
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
    dtype: str = "float32"
    lane_width: int | None = None
    freeze: bool = True
    points: Mapping[str, Any] | None = field(default=None, kw_only=True)
    batch_size: int | None = field(default=None, kw_only=True)
    sampling: Sampling = field(default="shuffled", kw_only=True)
    last_batch: LastBatch = field(default="keep", kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.axes, Mapping):
            raise ValueError(f"axes: expected a dict of name -> values, got {type(self.axes).__name__}")
        object.__setattr__(
            self, "axes", {name: _distinct(name, _axis(name, values)) for name, values in self.axes.items()}
        )
        object.__setattr__(self, "points", _points(self.points, self.axes))
        object.__setattr__(self, "seeds", _seeds(self.seeds))
        for name, least in (("num_steps", 1), ("every", 1)):
            object.__setattr__(self, name, _count(name, getattr(self, name), least))
        if self.every > self.num_steps:
            raise ValueError(f"every: expected at most num_steps = {self.num_steps}, got {self.every}")
        if self.num_steps // self.every > MOST_RECORDS:
            raise ValueError(
                f"every: {self.num_steps} steps recorded every {self.every} make more than {MOST_RECORDS} records; "
                "record less often"
            )
        check("freeze", self.freeze, FLAG)
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.batch_size is not None:
            object.__setattr__(self, "batch_size", _count("batch_size", self.batch_size, 1))
        for name, choices in (("sampling", SAMPLINGS), ("last_batch", ("keep", "drop"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("batch_size", "dtype"):
            if name in self.hyperparameters and getattr(self, name) != getattr(type(self), name, None):
                raise ValueError(f"{name}: given both as an axis and as {name}={getattr(self, name)!r}; keep one")
        if self.lane_width is not None:
            object.__setattr__(self, "lane_width", _count("lane_width", self.lane_width, 1))
        if self.num_runs > MOST_RUNS:
            raise ValueError(
                f"axes: {self.num_runs} runs are more than {MOST_RUNS}; take fewer values of an axis, or points"
            )

    @classmethod
    def random(cls, ranges: Mapping[str, Any], num_points: int, *, draw: int = 0, **fields: Any) -> Sweep:
        """Draw points at random: each value uniform in its range (low, high), or log-uniform in (low, high, "log").

        Args:
            ranges: name -> (low, high) or (low, high, "log").
            num_points: how many points; the first n of a longer list are those of a shorter one.
            draw: seed of the draw.
            **fields: the rest of the sweep.

        Raises:
            ValueError: for a range that is none.
        """
        num_points = _count("num_points", num_points, 1, MOST_SEEDS)
        _count("draw", draw, 0)
        check("ranges", ranges, MAPPING)
        points = {}
        for name, given in ranges.items():
            with calling(f"ranges[{name!r}]", '(low, high) or (low, high, "log")'):
                low, high, *scale = given
                check("low", low, number())
                check("high", high, number())
            if not low < high or scale not in ([], ["log"]) or (scale and low <= 0):
                raise ValueError(
                    f'ranges[{name!r}]: expected (low, high) or (low, high, "log") with low < high, got {given}'
                )
            # One generator per name, so that adding a name leaves the others' values alone.
            share = np.random.default_rng([draw, *name.encode()]).random(num_points)
            points[name] = low * (high / low) ** share if scale else low + (high - low) * share
        return cls(fields.pop("axes", {}), points=points, **fields)

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the grid's dimensions, seeds last."""
        return (*self.axes, *(["point"] if self.points else []), "seed")

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of every dimension, seeds last."""
        points = [len(next(iter(self.points.values())))] if self.points else []
        return (*(len(values) for values in self.axes.values()), *points, len(self.seeds))

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """Names of everything that varies, those of the axes first, then those of the points."""
        return (*self.axes, *(self.points or {}))

    @property
    def num_runs(self) -> int:
        """Number of runs in the grid."""
        return math.prod(self.shape)

    @property
    def recorded_steps(self) -> np.ndarray:
        """Steps at which probes record, 0, every, 2 every, ... and num_steps."""
        return np.append(np.arange(0, self.num_steps, self.every), self.num_steps)

    def runs(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Hyperparameters and seed of every run, flattened in grid order: ({name: (run,)}, (run,))."""
        places = np.unravel_index(np.arange(self.num_runs), self.shape)
        index = dict(zip(self.dims, places, strict=True))
        values = {name: axis[index[name]] for name, axis in self.axes.items()}
        values |= {name: axis[index["point"]] for name, axis in (self.points or {}).items()}
        return values, self.seeds[index["seed"]]

    def groups(self) -> list[Group]:
        """Runs that share a compiled program: one group per batch size and precision, in order of appearance."""
        values, _ = self.runs()
        batch_sizes = values.get("batch_size", np.full(self.num_runs, self.batch_size or 0))
        dtypes = values.get("dtype", np.full(self.num_runs, self.dtype))
        found: dict[tuple[int, str], list[int]] = {}
        if np.all(batch_sizes == batch_sizes[0]) and np.all(dtypes == dtypes[0]):
            return [Group(int(batch_sizes[0]) or None, str(dtypes[0]), np.arange(self.num_runs))]
        for run, key in enumerate(zip(batch_sizes.astype(int).tolist(), dtypes.tolist(), strict=True)):
            found.setdefault(key, []).append(run)
        return [Group(size or None, dtype, np.array(runs)) for (size, dtype), runs in found.items()]

    def tiles(self, runs_per_tile: int) -> list[np.ndarray]:
        """Runs of every tile, as indices in grid order: the one place that says which run lies in which file."""
        return [
            group.runs[start : start + runs_per_tile]
            for group in self.groups()
            for start in range(0, len(group.runs), runs_per_tile)
        ]

    def with_lane_width(self, lane_width: int) -> Sweep:
        """Return the same sweep with its lane width decided."""
        return replace(self, lane_width=lane_width)

    def to_json(self) -> str:
        """Canonical JSON form: every number exactly, keys sorted."""
        fields = {
            "axes": [[name, values.tolist()] for name, values in self.axes.items()],
            "points": [[name, values.tolist()] for name, values in self.points.items()] if self.points else None,
            "batch_size": self.batch_size,
            "sampling": self.sampling,
            "last_batch": self.last_batch,
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
        points = fields.get("points")
        return cls(**{**fields, "axes": dict(fields["axes"]), "points": dict(points) if points else None})

    def fingerprint(self) -> str:
        """Hash of the canonical JSON form."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def _axis(name: Any, values: Any) -> np.ndarray:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"axes: expected names that are Python identifiers, got {name!r}")
    if name in RESERVED:
        raise ValueError(f"axes: {name!r} is a name of lossland's own; seeds have their own argument, seeds=...")
    with calling(f"axes[{name!r}]", "a list of numbers"):
        array = np.asarray(values)
    if name == "dtype":
        array = array.astype(str)
        if array.ndim != 1 or not array.size or not set(array.tolist()) <= set(DTYPES):
            raise ValueError(f"axes['dtype']: expected a list of {', '.join(DTYPES)}, got {values!r}")
        return array
    if array.dtype.kind not in "fiu":
        raise ValueError(f"axes[{name!r}]: expected numbers, got dtype {array.dtype}")
    array = array.astype(np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"axes[{name!r}]: expected a non-empty one-dimensional list of values, got shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"axes[{name!r}]: expected finite values, got {array[~np.isfinite(array)][0]}")
    if name == "batch_size" and (np.any(array < 1) or np.any(array != np.floor(array))):
        raise ValueError(f"axes['batch_size']: expected positive integers, got {array.tolist()}")
    return array.astype(np.int64) if name == "batch_size" else array


def _distinct(name: str, array: np.ndarray) -> np.ndarray:
    if np.unique(array).size != array.size:
        raise ValueError(f"axes[{name!r}]: expected distinct values, got repeated ones")
    return array


def _points(points: Any, axes: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    if points is None:
        return None
    if not isinstance(points, Mapping) or not points:
        raise ValueError(f"points: expected a dict of name -> values, got {points!r}")
    if both := sorted(set(points) & set(axes)):
        raise ValueError(f"points: {', '.join(both)} is an axis as well; keep one")
    if "point" in axes:
        raise ValueError("axes: 'point' is the name of the axis that points make; call yours otherwise")
    arrays = {name: _axis(name, values) for name, values in points.items()}
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"points: expected values of equal length, one per point, got {lengths}")
    return arrays


def _seeds(seeds: Any) -> np.ndarray:
    if isinstance(seeds, (int, np.integer)) and not isinstance(seeds, bool):
        seeds = range(_count("seeds", seeds, 1, MOST_SEEDS))
    with calling("seeds", "a number of seeds or a list of integers"):
        array = np.asarray(list(seeds) if isinstance(seeds, Iterable) else seeds)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(f"seeds: expected a number of seeds or a list of integers, got {seeds!r}")
    if array.min() < 0 or array.max() > 2**32 - 1:
        raise ValueError(f"seeds: expected integers in [0, 2**32), got {array.min()} to {array.max()}")
    if np.unique(array).size != array.size:
        raise ValueError("seeds: expected distinct seeds, got repeated ones")
    return array.astype(np.int64)


def _count(name: str, value: Any, least: int, most: int = MOST) -> int:
    check(name, value, count(least, most))
    return int(value)
