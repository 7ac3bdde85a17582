"""Reported results, rebuilt: every number with what was expected, its tolerance, what was measured, and the verdict.

Importing this package imports no JAX, so that the command line can list the names at once.
"""

from __future__ import annotations

import importlib
import importlib.resources
import math
import sys
import time
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lossland import strict_json
from lossland.reproductions.claims import format_claims, load_claims

NAMES = (
    "linear_regression",
    "numpy_mlp",
    "thresholds",
    "edge_of_stability",
    "minibatch_law",
    "catapult",
    "cosine_quadratic",
    "critical_constants",
    "fractal_boundary",
    "adam_laws",
    "adam_spikes",
    "adam_forecast",
    "adam_networks",
    "late_training_map",
    "keras_lstm",
    "rnn_sequences",
    "course_mlp",
    "fault_injection",
)

COMPARISONS = {
    "absolute": lambda measured, expected, tolerance: abs(measured - expected) <= tolerance,
    "relative": lambda measured, expected, tolerance: abs(measured - expected) <= tolerance * abs(expected),
    "equal": lambda measured, expected, tolerance: measured == expected,
    "within": lambda measured, expected, tolerance: measured[0] - tolerance <= expected <= measured[1] + tolerance,
    "between": lambda measured, expected, tolerance: expected[0] - tolerance <= measured <= expected[1] + tolerance,
    "at_most": lambda measured, expected, tolerance: measured <= expected + tolerance,
    "at_least": lambda measured, expected, tolerance: measured >= expected - tolerance,
}


@dataclass(frozen=True)
class Number:
    """One reproduced number. `verdict` is "reproduced" or "failed"; `expected` is reported or computed by a formula;
    `seconds` is the run time of all numbers of its target together."""

    name: str
    expected: Any
    tolerance: float
    measured: Any
    verdict: str
    comparison: str
    source: str
    seconds: float = math.nan


def targets(name: str) -> dict[str, dict[str, Any]]:
    """Read what a target expects, from the table that comes with the package: number -> expected, tolerance, source.

    Raises:
        ValueError: if there is no target of that name; those that exist are listed.
    """
    if name not in NAMES:
        raise ValueError(f"reproduce: no target {name!r}; there are {', '.join(NAMES)}")
    table = importlib.resources.files("lossland.reproductions") / "targets.toml"
    return tomllib.loads(table.read_text(encoding="utf-8"))[name]


def judge(
    name: str, measured: dict[str, Any], table: dict[str, dict[str, Any]], seconds: float = math.nan
) -> list[Number]:
    """Compare what was measured with the table.

    A measured value is a number or a word, or a pair (measured, expected) where the table says that the expected value
    is computed. Numbers that were measured but are not in the table, or the other way round, are an error.

    Raises:
        ValueError: if table and measurement do not hold the same numbers.
    """
    if set(measured) != set(table):
        raise ValueError(f"{name}: measured and expected numbers differ: {sorted(set(measured) ^ set(table))}")
    numbers = []
    for key, entry in table.items():
        value, expected = measured[key] if "formula" in entry else (measured[key], entry["expected"])
        tolerance = float(entry.get("tolerance", 0.0))
        good = bool(COMPARISONS[entry["comparison"]](value, expected, tolerance))
        verdict = "reproduced" if good else "failed"
        source = entry["source"] + (f"; {entry['formula']}" if "formula" in entry else "")
        numbers.append(
            Number(f"{name}.{key}", expected, tolerance, value, verdict, entry["comparison"], source, seconds)
        )
    return numbers


def reproduce(name: str | None = None, *, as_json: bool = False, fast: bool = False, out: Path | None = None) -> int:
    """Reproduce one target, or all, and print every number; returns 1 if one fails, else 0.

    A fast run leaves out the numbers that the table marks `full_only`: those that fewer runs cannot tell.

    Raises:
        ValueError: if there is no target of that name.
    """
    chosen = NAMES if name is None else (name,)
    tables = {target: targets(target) for target in chosen}
    if fast:
        tables = {
            target: {key: entry for key, entry in table.items() if not entry.get("full_only")}
            for target, table in tables.items()
        }
    folder = Path("runs/reproduce") if out is None else out
    numbers: list[Number] = []
    for target, table in tables.items():
        module = importlib.import_module(f"lossland.reproductions.{target}")
        began = time.perf_counter()
        print(f"{target}: {'fewer runs' if fast else 'full size'} ...", file=sys.stderr, flush=True)
        place = folder / (f"{target}-fast" if fast else target)

        def measure(place: Path, module: Any = module, table: Any = table) -> Any:
            place.mkdir(parents=True, exist_ok=True)
            return module.measure(place, fast, table)

        if out is None:
            from lossland.sweeps.store import in_free_folder

            (measured, paths), place = in_free_folder(measure, place)
        else:
            measured, paths = measure(place)
        seconds = time.perf_counter() - began
        found = judge(target, measured, table, seconds)
        numbers += found
        if not as_json:
            print(format_numbers(target, found, seconds))
            if (settled := place / "claims.json").exists():
                print("  claims\n" + format_claims(load_claims(settled)))
            print("figures " + ", ".join(map(str, paths)) + "\n")
    if as_json:
        print(strict_json.dumps([asdict(number) for number in numbers]))
    return 0 if all(number.verdict == "reproduced" for number in numbers) else 1


def format_numbers(target: str, numbers: list[Number], seconds: float) -> str:
    """Lay the numbers of a target out for a terminal; words that do not fit a column stand on a line of their own."""
    signs = {
        "absolute": "±",
        "relative": "± rel.",
        "equal": "=",
        "within": "in range",
        "between": "in range",
        "at_most": "at most",
    }
    heading = f"  {'number':<50}{'expected':>12}  {'tolerance':<14}{'measured':>24}  verdict"
    lines = [f"{target} ({seconds:.0f} s)", heading]
    for number in numbers:
        allowed = signs.get(number.comparison, "at least") + (f" {number.tolerance:g}" if number.tolerance else "")
        short = number.name.removeprefix(target + ".").replace("_", " ")
        expected, measured = _show(number.expected), _show(number.measured)
        if len(measured) > 24 or len(expected) > 12:
            lines.append(f"  {short:<50}{'':>12}  {allowed:<14}{'':>24}  {number.verdict}")
            lines += [f"    expected {expected}", f"    measured {measured}"]
        else:
            lines.append(f"  {short:<50}{expected:>12}  {allowed:<14}{measured:>24}  {number.verdict}")
    return "\n".join(lines)


def _show(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_show(part) for part in value) + "]"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.7g}" if math.isfinite(value) else str(value)
