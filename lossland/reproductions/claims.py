"""Claims about a reported case, each settled by a number, its interval over seeds, and a counterfactual run."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from lossland import strict_json

Verdict = Literal["supported", "refuted", "depends"]
WIDTH = 112
"""Columns of the printed table."""


@dataclass(frozen=True)
class Claim:
    """One claim, and what became of it.

    Args:
        case: name of the reproduction.
        letter: of the claim within its case.
        text: what was claimed.
        verdict: "supported", "refuted" or "depends".
        quantity: what was measured, with units.
        value, low, high: its value and its interval over seeds.
        counterfactual: the run with one thing changed that decides it, and how that came out.
        condition: on what it depends, as a measured boundary; needed for "depends".

    Raises:
        ValueError: for another verdict, "depends" without a condition, or a value outside its interval.
    """

    case: str
    letter: str
    text: str
    verdict: Verdict
    quantity: str
    value: float
    low: float
    high: float
    counterfactual: str
    condition: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise ValueError(f"verdict: expected one of {', '.join(get_args(Verdict))}, got {self.verdict!r}")
        if self.verdict == "depends" and not self.condition:
            raise ValueError(f"condition: claim ({self.letter}) depends on something; say on what, as measured")
        if not self.low <= self.value <= self.high:
            raise ValueError(f"value: expected it in [{self.low}, {self.high}], got {self.value}")


def side_of(low: float, high: float, level: float = 0.5) -> Verdict:
    """Decide on which side of a level an interval lies: "supported" above, "refuted" below, "depends" across it."""
    return "supported" if low > level else "refuted" if high < level else "depends"


def format_claims(claims: Sequence[Claim]) -> str:
    """Lay claims out for a terminal: verdict and claim, then the number, what decides it, and the condition."""
    lines = []
    for claim in claims:
        lines.append(f"  ({claim.letter}) {claim.verdict:<10} {claim.text}")
        interval = f"[{_show(claim.low)}, {_show(claim.high)}]"
        details = [f"{claim.quantity}: {_show(claim.value)} {interval}", f"counterfactual: {claim.counterfactual}"]
        details += [f"condition: {claim.condition}"] if claim.condition else []
        for detail in details:
            lines += textwrap.wrap(detail, WIDTH, initial_indent=" " * 17, subsequent_indent=" " * 19)
    return "\n".join(lines)


def save_claims(claims: Iterable[Claim], path_stem: Path) -> Path:
    """Write claims as `<path_stem>.json`."""
    path = path_stem.with_name(f"{path_stem.name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(strict_json.dumps([asdict(claim) for claim in claims]) + "\n", encoding="utf-8")
    return path


def load_claims(path: Path) -> list[Claim]:
    """Read back what `save_claims` wrote."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    numbers = ("value", "low", "high")
    return [Claim(**{**row, **{name: float(row[name]) for name in numbers}}) for row in rows]


def _show(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else str(value)
