"""Causes planted, causes named: the confusion matrix of `explain` on seeds, and on scenarios, that set no limit."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lossland import figures, strict_json
from lossland.diagnosis.causes import Cause
from lossland.diagnosis.explain import explanations
from lossland.diagnosis.explanation import Explanation
from lossland.figures.confusion import confusion_figure
from lossland.problems.problem import Problem
from lossland.reproductions.fault_later import LATER
from lossland.reproductions.fault_scenarios import EARLIER, HELD_OUT_SEEDS, Scenario
from lossland.stability.intervals import binomial_interval
from lossland.sweeps.execution import run
from lossland.sweeps.forks import state_probe
from lossland.sweeps.probes import as_probes
from lossland.sweeps.sweep import Sweep

SCENARIOS = (*EARLIER, *LATER)
FAST = ("divergence_heavy_ball", "overshoot_quadratic", "wall_gd", "healthy_quadratic")
FAST_SEEDS = range(4)
HEALTHY_SEEDS = range(150)
"""Seeds of every healthy scenario in a full run: 5 x 150 runs."""


class Found(NamedTuple):
    """What became of one scenario: an explanation per seed."""

    scenario: Scenario
    explanations: list[Explanation]

    @property
    def manifest(self) -> np.ndarray:
        """Runs whose fault showed: the loss rose, of the full data or in what was recorded. Healthy ones all count."""
        if self.scenario.cause is Cause.healthy:
            return np.ones(len(self.explanations), bool)
        seen = [explanation.seen for explanation in self.explanations]
        return np.array([one is not None and bool(one.rise or one.recorded_rise) for one in seen])

    @property
    def causes(self) -> list[Cause]:
        """The causes named where the fault showed."""
        return [one.cause for one, shown in zip(self.explanations, self.manifest, strict=True) if shown]


def measure(folder: Path, fast: bool, table: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Train, explain and count; returns the numbers of the table and the figure's paths.

    The table of all explanations is written after every scenario, so that a run cut short leaves those it made.
    """
    chosen = [scenario for scenario in SCENARIOS if not fast or scenario.name in FAST]
    found: list[Found] = []
    for scenario in chosen:
        began = time.process_time()
        found.append(explained(scenario, FAST_SEEDS if fast else seeds_of(scenario)))
        figures.save_numbers(tabulated(found), folder / "explanations")
        spent = time.process_time() - began
        print(f"  {scenario.name}: {len(found[-1].causes)} runs, {spent:.0f} s of processor time", file=sys.stderr)
    numbers, figure = summarised(found)
    (folder / "counts.json").write_text(strict_json.dumps(counted(found)) + "\n")
    paths = figures.save(figure, folder / "fault_injection")
    return {name: numbers[name] for name in table}, paths


def counted(found: Sequence[Found]) -> dict[str, dict[str, Any]]:
    """Right, unknown and wrong runs by list of scenarios, with Wilson intervals of the shares (95 %)."""
    groups = {
        "held_out_seeds": [one for one in found if _is_fault(one) and one.scenario.held_out == 0],
        "held_out_scenarios": [one for one in found if _is_fault(one) and one.scenario.held_out == 1],
        "later_scenarios": [one for one in found if _is_fault(one) and one.scenario.held_out == 2],
        "healthy": [one for one in found if not _is_fault(one)],
    }
    table = {}
    for name, group in groups.items():
        right, total, wrong = _counts(group)
        entry: dict[str, Any] = {"scenarios": len(group), "runs": total, "right": right, "wrong": wrong}
        entry["unknown"] = total - right - wrong
        for word in ("right", "wrong"):
            entry[f"{word}_interval"] = [float(bound) for bound in binomial_interval(entry[word], total)]
        table[name] = entry
    return table


def summarised(found: Sequence[Found]) -> tuple[dict[str, Any], Any]:
    """Count what was right; returns the numbers and the confusion matrix as a figure."""
    faults = [one for one in found if _is_fault(one)]
    counts = counted(found)
    verified = [
        remedy.verified
        for one in faults
        for explanation in one.explanations
        for remedy in explanation.remedies
        if remedy.verified is not None
    ]
    healthy = counts["healthy"]
    numbers: dict[str, Any] = {
        "scenarios": float(len(faults)),
        "runs_with_their_fault": float(sum(len(one.causes) for one in faults)),
        "healthy_runs": float(healthy["runs"]),
        "false_alarms": 1 - _share(healthy, "right"),
        "remedies_verified": float(np.mean(verified)),
        "runs_with_a_verified_remedy": float(np.mean(_remedied(faults))),
    }
    for name in ("held_out_seeds", "held_out_scenarios", "later_scenarios"):
        if counts[name]["scenarios"]:
            numbers |= {f"{word}_on_{name}": _share(counts[name], word) for word in ("right", "wrong")}
    return numbers, _figure(found, _note(counts))


def _is_fault(one: Found) -> bool:
    return one.scenario.cause is not Cause.healthy


def _share(entry: dict[str, Any], word: str) -> float:
    return entry[word] / max(entry["runs"], 1)


def _note(counts: dict[str, dict[str, Any]]) -> str:
    """The counts in a sentence each."""
    words = {
        "held_out_seeds": "scenarios that set limits, on other seeds",
        "held_out_scenarios": "held-out scenarios",
        "later_scenarios": "held-out scenarios of a later list",
    }
    parts = []
    for name, text in words.items():
        entry = counts[name]
        if entry["runs"]:
            low, high = entry["right_interval"]
            parts.append(
                f"{entry['runs']} runs of {entry['scenarios']} {text}: {_share(entry, 'right'):.1%} right "
                f"({low:.1%} to {high:.1%}), {entry['wrong']} wrong"
            )
    return "; ".join(parts) + f". Healthy runs: {counts['healthy']['runs']}. Intervals of 95 %."


def seeds_of(scenario: Scenario) -> range:
    """Seeds of a full run."""
    return HEALTHY_SEEDS if scenario.cause is Cause.healthy else HELD_OUT_SEEDS


def explained(scenario: Scenario, seeds: Sequence[int]) -> Found:
    """Train a scenario on seeds and explain every run by its records, its problem and its optimizer."""
    runs, problem = trained(scenario, seeds)
    point = dict.fromkeys(scenario.axes, 0)
    return Found(scenario, explanations(runs.isel(point), problem, scenario.optimizer))


def trained(scenario: Scenario, seeds: Sequence[int]) -> tuple[xr.Dataset, Problem]:
    """Train a scenario, every step and state recorded."""
    problem = scenario.problem()
    noisy = "batch_size" in scenario.fields or problem.takes_key
    probes = (*as_probes(["loss", "batch_loss"] if noisy else ["loss"]), state_probe())
    sweep = Sweep(scenario.axes, seeds=list(seeds), num_steps=scenario.num_steps, every=1, **scenario.fields)
    return run(problem, scenario.optimizer, sweep, probes, progress=False), problem


def tabulated(found: Sequence[Found]) -> xr.Dataset:
    """Lay all explanations out along one axis: scenario, seed, planted and named cause, confidence, remedies."""
    rows = [
        (
            one.scenario.name,
            int(explanation.run["seed"]),
            one.scenario.cause.value,
            explanation.cause.value,
            explanation.confidence,
            bool(shown),
            int(one.scenario.held_out),
            sum(remedy.verified is True for remedy in explanation.remedies),
            sum(remedy.verified is False for remedy in explanation.remedies),
        )
        for one in found
        for explanation, shown in zip(one.explanations, one.manifest, strict=True)
    ]
    names = ("scenario", "seed", "planted", "named", "confidence", "manifest", "held_out", "verified", "not_verified")
    return xr.Dataset(
        {name: ("run", np.array(column)) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    )


def _counts(found: Sequence[Found]) -> tuple[int, int, int]:
    """Runs that are right, all with their fault, and runs that are wrong ("unknown" is neither)."""
    right = sum(cause is one.scenario.cause for one in found for cause in one.causes)
    total = sum(len(one.causes) for one in found)
    unknown = sum(cause is Cause.unknown for one in found for cause in one.causes)
    return right, total, total - right - unknown


def _remedied(found: Sequence[Found]) -> list[bool]:
    """Per run with its cause named and a rise of the full loss: whether a remedy was verified by replay.

    A cause that every replay refutes is "unknown", and such runs do not count here: they do as not right.
    """
    return [
        any(remedy.verified for remedy in explanation.remedies)
        for one in found
        for explanation in one.explanations
        if explanation.rise is not None and explanation.cause is not Cause.unknown
    ]


def _figure(found: Sequence[Found], note: str) -> Any:
    named = [cause for cause in Cause if any(cause in one.causes for one in found)]
    counts = np.array([[one.causes.count(cause) for cause in named] for one in found])
    return confusion_figure(
        counts,
        [one.scenario.name for one in found],
        [cause.value for cause in named],
        [bool(one.scenario.held_out) for one in found],
        note,
    )
