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
from lossland.reproductions.finished import kept
from lossland.stability.intervals import binomial_interval
from lossland.sweeps.execution import run
from lossland.sweeps.forks import state_probe
from lossland.sweeps.probes import as_probes
from lossland.sweeps.sweep import Sweep

SCENARIOS = (*EARLIER, *LATER)
FAST = ("divergence_heavy_ball", "overshoot_quadratic", "wall_gd", "healthy_quadratic")
FAST_SEEDS = range(4)
TRIED = ("verified", "refuted")
HEALTHY_SEEDS = range(150)
"""Seeds of every healthy scenario in a full run: 5 x 150 runs."""


class Answer(NamedTuple):
    """What was said of one run.

    manifest: the fault showed; rose: the loss over all data did; verified, refuted: remedies, after their replays.
    """

    seed: int
    cause: Cause
    confidence: float
    manifest: bool
    rose: bool
    verified: int
    refuted: int


class Found(NamedTuple):
    """What became of one scenario: an answer per seed."""

    scenario: Scenario
    answers: list[Answer]

    @property
    def causes(self) -> list[Cause]:
        """The causes named where the fault showed."""
        return [one.cause for one in self.answers if one.manifest]


def measure(folder: Path, fast: bool, table: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Train, explain and count; returns the numbers of the table and the figure's paths.

    The answers of every finished scenario are kept, so that a run cut short goes on with the next.
    """
    chosen = [scenario for scenario in SCENARIOS if not fast or scenario.name in FAST]
    found: list[Found] = []
    for scenario in chosen:
        began = time.process_time()
        seeds = FAST_SEEDS if fast else seeds_of(scenario)
        found.append(remembered(scenario, seeds, folder / "scenarios" / f"{scenario.name}.json"))
        figures.save_numbers(tabulated(found), folder / "explanations")
        spent = time.process_time() - began
        print(f"  {scenario.name}: {len(found[-1].causes)} runs, {spent:.0f} s of processor time", file=sys.stderr)
    numbers, figure = summarised(found)
    (folder / "counts.json").write_text(strict_json.dumps(counted(found)) + "\n")
    paths = figures.save(figure, folder / "fault_injection")
    return {name: numbers[name] for name in table}, paths


def remembered(scenario: Scenario, seeds: Sequence[int], path: Path) -> Found:
    """Answers of a scenario that are kept in a file, or made now and kept there."""

    def rows() -> list[dict[str, Any]]:
        return [one._asdict() | {"cause": one.cause.value} for one in explained(scenario, seeds).answers]

    stored = kept(path, [scenario.name, *seeds], rows)
    return Found(scenario, [Answer(**row | {"cause": Cause(row["cause"])}) for row in stored])


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
    verified, refuted = (sum(getattr(one, word) for each in faults for one in each.answers) for word in TRIED)
    healthy = counts["healthy"]
    numbers: dict[str, Any] = {
        "scenarios": float(len(faults)),
        "runs_with_their_fault": float(sum(len(one.causes) for one in faults)),
        "healthy_runs": float(healthy["runs"]),
        "false_alarms": 1 - _share(healthy, "right"),
        "remedies_verified": verified / max(verified + refuted, 1),
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
    made = explanations(runs.isel(point), problem, scenario.optimizer)
    return Found(scenario, [answer(one, scenario.cause is Cause.healthy) for one in made])


def answer(explanation: Explanation, healthy: bool) -> Answer:
    """Take from an explanation what is counted.

    A fault showed where the loss rose, of the full data or in what was recorded; healthy runs all count.
    """
    seen = explanation.seen
    verdicts = [remedy.verified for remedy in explanation.remedies]
    return Answer(
        int(explanation.run["seed"]),
        explanation.cause,
        float(explanation.confidence),
        healthy or (seen is not None and bool(seen.rise or seen.recorded_rise)),
        explanation.rise is not None,
        sum(verdict is True for verdict in verdicts),
        sum(verdict is False for verdict in verdicts),
    )


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
            each.scenario.name,
            one.seed,
            each.scenario.cause.value,
            one.cause.value,
            one.confidence,
            one.manifest,
            int(each.scenario.held_out),
            one.verified,
            one.refuted,
        )
        for each in found
        for one in each.answers
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
        answer.verified > 0
        for one in found
        for answer in one.answers
        if answer.rose and answer.cause is not Cause.unknown
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
