"""The main job: train over a grid, compare where training turns unstable with what sharpness predicts, draw it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optax
import xarray as xr

from lossland import figures, problems, strict_json
from lossland.optimizers import Optimizer
from lossland.problems.problem import Problem
from lossland.stability.maps import OUTCOMES, critical_learning_rate, median_over_seeds, stability_map
from lossland.sweeps import verification
from lossland.sweeps.execution import run
from lossland.sweeps.lazy import load
from lossland.sweeps.planning import plan
from lossland.sweeps.store import in_free_folder
from lossland.sweeps.sweep import Outcome, Sweep
from lossland.sweeps.trajectories import sweep_of

NUM_RATES = 32
NUM_RECORDS = 40
BELOW, ABOVE = 10.0, 100.0
"""A default grid of learning rates runs from this many times below the predicted one to this many times above it: a
catapult survives rates far above 2 / sharpness."""
PROBES = ("loss", "gradient_norm", "sharpness")
COMMAND = "command"
"""Attribute that keeps what `lossland map` was asked for, so that its runs can be computed again."""
CONNECT_SECONDS = 10
"""Seconds to wait for a scheduler."""
MOST_VALUES = 2**20
"""Longer ranges are slips of the keyboard."""
ADAPTIVE_RATES = (1e-4, 1.0)
"""Default range for optimizers whose stability is not read from the plain Hessian."""


@dataclass(frozen=True)
class Asked:
    """What the command line asks for, made ready: `run(problem, optimizer, sweep, PROBES)`."""

    problem: Problem
    optimizer: Optimizer
    sweep: Sweep


def ask(
    name: str,
    *,
    learning_rate: Sequence[str] = (),
    axis: Sequence[str] = (),
    optimizer: str = "sgd",
    fix: Sequence[str] = (),
    option: Sequence[str] = (),
    seeds: int = 16,
    steps: int = 400,
    every: int | None = None,
    dtype: Any = "float32",
    batch_size: int | None = None,
    lane_width: int | None = None,
) -> Asked:
    """Build problem, optimizer and sweep from words; arguments as `lossland map --help` describes them.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    factory = optimizer_named(optimizer)
    fixed = {key: _number(f"--fix {key}", text) for key, text in _once("--fix", map(_assignment, fix)).items()}
    options = _once("--option", map(_option, option))
    problem, factory = _fix(problems.named(name, **options), Optimizer(factory), fixed)
    axes = {key: parse_values(key, [text]) for key, text in _once("--axis", map(_assignment, axis)).items()}
    if len(axes) > 1 or "learning_rate" in axes:
        raise ValueError(f"--axis: a map has the learning rate and at most one other axis, got {', '.join(axes)}")
    rates = parse_values("learning_rate", learning_rate) if learning_rate else np.ones(1)
    if (rates <= 0).any():
        raise ValueError(f"--learning-rate: expected numbers above 0, got {rates[rates <= 0][0]:g}")
    every = max(1, steps // NUM_RECORDS) if every is None else every
    sweep = Sweep(
        {"learning_rate": rates, **axes}, seeds, steps, every, dtype, lane_width=lane_width, batch_size=batch_size
    )
    if not learning_rate:  # what else is wrong was said before anything is trained
        sweep = replace(sweep, axes={"learning_rate": predicted_rates(problem, factory), **axes})
    return Asked(problem, factory, sweep)


def map_problem(
    name: str, *, out: Path | None = None, part: str | None = None, dask: str | None = None, **options: Any
) -> int:
    """Run the main job and print its summary; arguments as `lossland map --help` describes them. Returns the exit code.

    Raises:
        ValueError: naming the argument that is wrong, before anything is trained.
    """
    own_part = None if part is None else _part(part)
    asked = ask(name, **options)
    sweep = asked.sweep
    folder = Path("runs") / name if out is None else out
    print(
        f"{name}: {' × '.join(f'{len(v)} {k}' for k, v in sweep.axes.items())} × {len(sweep.seeds)} seeds × "
        f"{sweep.num_steps} steps",
        flush=True,
    )
    began = time.perf_counter()
    command = strict_json.dumps(
        {"name": name, **options, "learning_rate": [str(r) for r in sweep.axes["learning_rate"]]}
    )

    def train(place: Path) -> xr.Dataset:
        return run(
            asked.problem,
            asked.optimizer,
            sweep,
            PROBES,
            place,
            executor=executor,
            part=own_part,
            attributes={COMMAND: command},
        )

    with dask_executor(dask) as executor:
        runs, folder = in_free_folder(train, folder) if out is None else (train(folder), folder)
    seconds = time.perf_counter() - began
    if (runs["status"] == Outcome.not_run).any():  # of other parts, which may have finished in the meantime
        runs = load(folder, lazy=False)
    if missing := int((runs["status"] == Outcome.not_run).sum()):
        print(f"this part is done; {missing} of {sweep.num_runs} runs are left to other parts, in {folder}")
        return 0
    report = summary(runs)
    print(format_summary(runs, report, seconds))
    paths = draw(runs, folder)
    (folder / "summary.json").write_text(strict_json.dumps(report) + "\n")
    print("figures " + ", ".join(str(path) for path in paths))
    return 0


def plan_problem(name: str, **options: Any) -> int:
    """Print what `map_problem` would cost with the same options. Returns the exit code."""
    asked = ask(name, **options)
    print(plan(asked.problem, asked.optimizer, asked.sweep, PROBES))
    return 0


def verify_folder(folder: Path, num_tiles: int) -> int:
    """Check every file of a folder, compute some tiles again, and print what was found; 1 if something is damaged.

    Raises:
        ValueError: if the folder holds no sweep, or one to be computed again that `lossland map` did not make.
    """
    if num_tiles < 0:
        raise ValueError(f"--rerun: expected a number of tiles, 0 for none, got {num_tiles}")
    findings = verification.verify(folder)
    print(f"{folder}:\n{verification.describe(findings)}")
    if num_tiles:
        command = load(folder).attrs.get(COMMAND)
        if command is None:
            raise ValueError(
                f"--rerun: {folder} was not made by `lossland map`; call lossland.sweeps.verification.rerun with the "
                "problem, optimizer and probes it was made with"
            )
        options = json.loads(command)
        asked = ask(options.pop("name"), **options)
        again = verification.rerun(folder, asked.problem, asked.optimizer, PROBES, num_tiles)
        for finding in again:
            print(f"{finding.path.name}: {finding.detail}")
        findings += again
    return 0 if verification.is_sound(findings) else 1


@contextlib.contextmanager
def dask_executor(address: str | None) -> Iterator[Executor | None]:
    """Connect to a Dask scheduler, and disconnect afterwards; None without an address.

    Raises:
        ValueError: if there is no scheduler, or `distributed` is not installed.
    """
    if address is None:
        yield None
        return
    if not address.rpartition(":")[2].isdecimal():
        raise ValueError(f"--dask: expected the address of a scheduler, such as tcp://HOST:8786, got {address!r}")
    try:
        import distributed
    except ImportError as error:
        raise ValueError('--dask: needs distributed; pip install "lossland[cluster]"') from error
    try:
        client = distributed.Client(address, set_as_default=False, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--dask: no scheduler answers at {address}; start one with `dask scheduler` and give the address it prints"
        ) from error
    with client:
        yield client.get_executor()


def optimizer_named(name: str) -> Any:
    """Return optax's factory of that name.

    Raises:
        ValueError: if optax has none.
    """
    factory = getattr(optax, name, None)
    if name.startswith("_") or not callable(factory):
        raise ValueError(
            f"--optimizer: optax has no optimizer {name!r}; common ones are sgd, adam, adamw, rmsprop, nadam, lion"
        )
    return factory


def parse_values(name: str, texts: Sequence[str]) -> np.ndarray:
    """Read numbers (0.1 0.3, or 0.1,0.3) and log-spaced ranges LOW:HIGH:COUNT.

    >>> parse_values("learning_rate", ["0.01:1:3"])
    array([0.01, 0.1 , 1.  ])

    Raises:
        ValueError: naming the axis and the text that is no number or range.
    """
    values: list[float] = []
    for text in ",".join(texts).split(","):
        if not text:
            continue
        ends = text.split(":")
        if len(ends) == 1:
            values.append(_number(name, text))
            continue
        if len(ends) != 3 or not ends[2].isdecimal() or not 2 <= int(ends[2]) <= MOST_VALUES:
            raise ValueError(
                f"{name}: expected a number or LOW:HIGH:COUNT with a count of 2 to {MOST_VALUES}, got {text!r}"
            )
        low, high = _number(name, ends[0]), _number(name, ends[1])
        if not 0 < low < high:
            raise ValueError(f"{name}: a log-spaced range needs 0 < LOW < HIGH, got {text!r}")
        values.extend(np.geomspace(low, high, int(ends[2])))
    if not values:
        raise ValueError(f"{name}: expected at least one value")
    return np.asarray(values)


def predicted_rates(problem: Problem, optimizer: Optimizer, num_seeds: int = 4) -> np.ndarray:
    """Choose learning rates around the one predicted from the sharpness at initialisation, ends rounded to 1, 2 or 5.

    Equation: predicted = threshold x learning rate / sharpness, 2 / sharpness for gradient descent.
    """
    if "learning_rate" not in optimizer.argument_names:
        raise ValueError(f"--optimizer: {optimizer.name} has no argument learning_rate; name its axes with --axis")
    first = run(
        problem,
        optimizer,
        Sweep({"learning_rate": [1e-3]}, num_seeds, num_steps=1, every=1),
        ["loss", "sharpness"],
        progress=False,
        part=(0, 1),  # the whole of it, in each of several processes
    )
    if "relative_sharpness" not in first or not np.isfinite(first["threshold"]).all():
        low, high = ADAPTIVE_RATES
        return np.geomspace(low, high, NUM_RATES)
    predicted = float(np.median(1e-3 / first["relative_sharpness"].isel(step=0)))
    if not (np.isfinite(predicted) and predicted > 0):
        raise ValueError(
            "--learning-rate: the sharpness at initialisation is not positive, so it predicts no range; give one"
        )
    return np.geomspace(_round(predicted / BELOW), _round(predicted * ABOVE), NUM_RATES)


def summary(runs: xr.Dataset) -> dict[str, Any]:
    """Summarise a map in numbers, as JSON: predicted and measured critical learning rates, share of every outcome.

    Intervals are those of the median over seeds. With more axes than the learning rate, one entry per point of them.
    """
    fractions = stability_map(runs)
    rises, diverges = critical_learning_rate(runs, "rises"), critical_learning_rate(runs, "diverges")
    others = [dim for dim in rises["median"].dims]
    entries = []
    for index in np.ndindex(*(rises.sizes[dim] for dim in others)):
        place = dict(zip(map(str, others), index, strict=True))
        entry: dict[str, Any] = {dim: float(runs[dim][i]) for dim, i in place.items()}
        if "predicted" in rises:
            predicted = rises["predicted"].isel(place)
            sharpness = runs["sharpness"].isel(step=0, learning_rate=0, **place)
            entry["sharpness_at_initialisation"] = _interval(median_over_seeds(sharpness))
            entry["predicted_critical_learning_rate"] = _interval(median_over_seeds(predicted))
            constant = (runs["threshold"] * runs["learning_rate"]).isel(place, missing_dims="ignore")
            if np.allclose(constant, 2):  # the bound is one of plain gradient descent
                entry["catapult_bound"] = _interval(median_over_seeds(2 * predicted))
        entry["critical_learning_rate_rises"] = _interval(rises.isel(place))
        entry["critical_learning_rate_diverges"] = _interval(diverges.isel(place))
        entries.append(entry)
    return {
        "problem": runs.attrs["problem"],
        "optimizer": runs.attrs["optimizer"],
        "num_runs": int(runs["status"].size),
        "coverage": float(rises["coverage"].min()),
        "outcomes": {name: float(fractions[name].mean()) for name in OUTCOMES},
        "maps": entries,
    }


def format_summary(runs: xr.Dataset, report: dict[str, Any], seconds: float) -> str:
    """Lay the summary out for a terminal, 100 columns wide."""
    lines = [f"{report['num_runs']} runs of {runs.attrs['title']} in {seconds:.1f} s", ""]
    rows = (
        ("sharpness_at_initialisation", "sharpness at initialisation"),
        ("predicted_critical_learning_rate", "predicted critical learning rate (threshold)"),
        ("critical_learning_rate_rises", "measured: some step raises the loss"),
        ("catapult_bound", "catapult bound, 4 / sharpness"),
        ("critical_learning_rate_diverges", "measured: training diverges"),
    )
    lines.append(f"{'':<46}{'median':>10}   {report['coverage']:.0%} interval over {runs.sizes['seed']} seeds")
    for entry in report["maps"]:
        if place := ", ".join(f"{key} = {value:g}" for key, value in entry.items() if not isinstance(value, list)):
            lines.append(place)
        for key, label in rows:
            if key in entry:
                middle, low, high = (_edge(value, runs) for value in entry[key])
                lines.append(f"{label:<46}{middle:>10}   [{low}, {high}]")
    shares = ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in report["outcomes"].items())
    return "\n".join([*lines, "", f"outcomes: {shares}"])


def draw(runs: xr.Dataset, folder: Path) -> list[Path]:
    """Save the stability map and the curves of a sweep as PNG and PDF; returns the paths."""
    paths = figures.save(figures.stability_map_figure(runs), folder / "stability_map")
    return [*paths, *figures.save(figures.curves_figure(runs), folder / "curves")]


def _fix(problem: Problem, optimizer: Optimizer, fixed: dict[str, float]) -> tuple[Problem, Optimizer]:
    mine = {key: value for key, value in fixed.items() if key in problem.arguments}
    rest = {key: value for key, value in fixed.items() if key not in mine}
    return (problem.with_arguments(**mine) if mine else problem), optimizer.with_arguments(**rest)


def _once(flag: str, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{flag}: {name} is given twice; values of one name go together, NAME=A,B")
        found[name] = value
    return found


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and name and value):
        raise ValueError(f"expected NAME=VALUE, got {text!r}")
    return name.replace("-", "_"), value


def _option(text: str) -> tuple[str, Any]:
    """Read a builder's option: a number, a word, or several of them with commas."""
    name, value = _assignment(text)
    parts = [_word(part) for part in value.split(",") if part]
    return name, tuple(parts) if "," in value else parts[0]


def _word(text: str) -> Any:
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ValueError(f"--part: expected K/N with K from 0 to N - 1, such as 0/4, got {text!r}")
    return int(number), int(count)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name}: expected a number, got {text!r}") from None


def _round(value: float) -> float:
    """Nearest of 1, 2, 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(f"{min((1, 2, 5, 10), key=lambda digit: abs(np.log(value / (digit * power)))) * power:.1g}")


def _interval(found: Any) -> list[float]:
    return [float(found[name]) for name in ("median", "low", "high")]


def _edge(value: float, runs: xr.Dataset) -> str:
    rates = sweep_of(runs).axes["learning_rate"]
    if value == 0:
        return f"< {rates.min():.3g}"
    return f"> {rates.max():.3g}" if np.isinf(value) else f"{value:.4g}"
