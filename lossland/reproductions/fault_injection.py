"""Causes planted, causes named: the confusion matrix of `explain` on seeds, and on scenarios, that set no limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lossland import figures
from lossland.diagnosis.causes import Cause
from lossland.diagnosis.explain import explanations
from lossland.diagnosis.explanation import Explanation
from lossland.figures.confusion import confusion_figure
from lossland.problems.problem import Problem
from lossland.reproductions.fault_scenarios import HELD_OUT_SEEDS, SCENARIOS, Scenario
from lossland.stability.intervals import binomial_interval
from lossland.sweeps.execution import run
from lossland.sweeps.forks import state_probe
from lossland.sweeps.probes import as_probes
from lossland.sweeps.sweep import Sweep

FAST = ("divergence_line", "catapult_uv", "overshoot_quadratic", "noise_line", "healthy_quadratic")
FAST_SEEDS = range(3)
HEALTHY_SEEDS = range(150)
"""Seeds of every healthy scenario in a full run: 4 x 150 runs."""


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
    """Train, explain and count; returns the numbers of the table and the figure's paths."""
    chosen = [scenario for scenario in SCENARIOS if not fast or scenario.name in FAST]
    found = [explained(scenario, FAST_SEEDS if fast else seeds_of(scenario)) for scenario in chosen]
    numbers, figure = summarised(found)
    figures.save_numbers(tabulated(found), folder / "explanations")
    paths = figures.save(figure, folder / "fault_injection")
    return {name: numbers[name] for name in table}, paths


def summarised(found: Sequence[Found]) -> tuple[dict[str, Any], Any]:
    """Count what was right; returns the numbers and the confusion matrix as a figure."""
    faults = [one for one in found if one.scenario.cause is not Cause.healthy]
    tuned = [one for one in faults if not one.scenario.held_out]
    held = [one for one in faults if one.scenario.held_out]
    healthy = [cause for one in found if one.scenario.cause is Cause.healthy for cause in one.causes]
    right, total, wrong = _counts(tuned)
    verified = [
        remedy.verified
        for one in faults
        for explanation in one.explanations
        for remedy in explanation.remedies
        if remedy.verified is not None
    ]
    remedied = _remedied(faults)
    numbers: dict[str, Any] = {
        "scenarios": float(len(faults)),
        "runs_with_their_fault": float(sum(len(one.causes) for one in faults)),
        "right_on_held_out_seeds": right / total,
        "wrong_on_held_out_seeds": wrong / total,
        "healthy_runs": float(len(healthy)),
        "false_alarms": float(np.mean([cause is not Cause.healthy for cause in healthy])),
        "remedies_verified": float(np.mean(verified)),
        "runs_with_a_verified_remedy": float(np.mean(remedied)),
    }
    right_held, total_held, wrong_held = _counts(held)
    if held:
        numbers |= {
            "right_on_held_out_scenarios": right_held / total_held,
            "wrong_on_held_out_scenarios": wrong_held / total_held,
        }
    low, high = (float(bound) for bound in binomial_interval(int(right), int(total)))
    note = (
        f"{int(total)} runs of {len(tuned)} scenarios that set limits, on other seeds: {right / total:.1%} right "
        f"(95 % interval {low:.1%} to {high:.1%})"
    )
    if held:
        note += f"; {int(total_held)} runs of {len(held)} later scenarios: {right_held / total_held:.1%} right"
    note += f". Healthy runs: {len(healthy)}."
    return numbers, _figure(found, note)


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


def _counts(found: Sequence[Found]) -> tuple[float, float, float]:
    """Runs that are right, all with their fault, and runs that are wrong ("unknown" is neither)."""
    right = sum(cause is one.scenario.cause for one in found for cause in one.causes)
    total = sum(len(one.causes) for one in found)
    unknown = sum(cause is Cause.unknown for one in found for cause in one.causes)
    return float(right), float(max(total, 1)), float(total - right - unknown)


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
        [one.scenario.held_out for one in found],
        note,
    )
