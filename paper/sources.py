"""What the paper is made from: summaries of experiments, and benchmarks."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from experiments.experiment import RESULTS, load_drawn, load_summary

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "paper"
BUILD = PAPER / "build"
BENCHMARKS = ROOT / "benchmarks" / "results"


class MissingSummaryError(Exception):
    """An experiment has not been run: there is no summary of it, or not a whole one."""


class Results:
    """Summaries in a folder, read once."""

    def __init__(self, folder: Path = RESULTS) -> None:
        self.folder = folder
        self.summary = functools.cache(self._summary)
        self.drawn = functools.cache(self._drawn)

    def has(self, stem: str) -> bool:
        """Whether there is a whole summary."""
        return load_summary(self.folder / stem) is not None

    def stems(self) -> list[str]:
        """Experiments that have been run."""
        return sorted(path.name for path in self.folder.glob("*/") if self.has(path.name))

    def _summary(self, stem: str) -> dict[str, Any]:
        found = load_summary(self.folder / stem)
        if found is None:
            raise MissingSummaryError(f"not measured: python -m experiments {stem}")
        return found

    def _drawn(self, stem: str) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
        self.summary(stem)
        return load_drawn(self.folder / stem)

    def arguments(self, stem: str, function: str, place: int = 0) -> tuple[Any, ...]:
        """What the figure function was given that an experiment called: positional arguments of call `place`."""
        found = [arguments for name, arguments, _ in self.drawn(stem) if name == function]
        if place >= len(found):
            raise ValueError(f"{stem}: its summary holds no call {place} of {function}")
        return found[place]

    def targets(self, stem: str) -> dict[str, dict[str, Any]]:
        """Judged numbers by their name without the stem."""
        return {one["name"].removeprefix(f"{stem}."): one for one in self.summary(stem)["targets"]}


@functools.cache
def benchmark(name: str) -> dict[str, Any]:
    """Measured times, as `benchmarks/` wrote them."""
    return json.loads((BENCHMARKS / f"{name}.json").read_text(encoding="utf-8"))
