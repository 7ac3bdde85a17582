"""One object that says why a loss rose: cause, numbers, remedies with what was predicted and what a replay showed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lossland import strict_json
from lossland.diagnosis.causes import Cause
from lossland.diagnosis.events import FACTOR
from lossland.diagnosis.hygiene import SHOWN
from lossland.diagnosis.mechanisms import Measure
from lossland.diagnosis.observation import NEAR, Observation, Rise

TEXTS = {
    "learning_rate_below": "{below}",
    "schedule_held": "{raised}",
    "momentum_removed": "less momentum",
    "second_moment_frozen": "keep the second moment from falling (AMSGrad, a larger b2)",
    "eps_raised": "epsilon above {eps:.3g}",
    "full_batch": "{quieter}",
    "last_batch_dropped": "drop the last batch of {rest} examples, or choose a batch size that divides {total}",
    "outliers_dropped": "check the labels of examples {outliers}",
    "right_gradient": "mend the gradient of {leaves}",
    "valid_labels": "{labels}",
    "clipped": "clip the gradient norm at {norm:.3g}",
    "float64": "higher precision, or a form of the loss that does not overflow",
}
REPLAYED = {
    "momentum_removed": "without",
    "full_batch": "on the full data",
    "outliers_dropped": "without them",
}
"""What was replayed, where that is not the change itself."""


@dataclass(frozen=True)
class Remedy:
    """What to change, what that should do, and what a replay showed.

    `predicted` is the effect by the theory; `measured` the largest rise of the loss (a factor) in the arm, and
    `unchanged` without the change, over the same steps; `verified` whether the rise is gone (None: not replayed).
    """

    change: str
    predicted: str
    verified: bool | None = None
    measured: float = np.nan
    unchanged: float = np.nan

    def __str__(self) -> str:
        if self.verified is None:
            return f"{self.change}: {self.predicted} (not replayed)"
        word = "verified" if self.verified else "NOT verified"
        return (
            f"{self.change}: {self.predicted}; {word}, largest rise x {self.measured:.4g} instead of "
            f"x {self.unchanged:.4g}"
        )


@dataclass(frozen=True)
class Explanation:
    """Why the loss of one run rose. Prints a page; `.plot()` draws it, `.to_json()` saves it.

    `cause` is what the largest rise is put down to, `confidence` between 0 and 1; `evidence` maps what was measured to
    `(value, units)`; `remedies` are what would have changed it; `untested` is what could not be told, and why.
    """

    cause: Cause
    confidence: float
    evidence: Mapping[str, Measure]
    remedies: tuple[Remedy, ...] = ()
    untested: tuple[str, ...] = ()
    run: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[str, ...] = ()
    seen: Observation | None = field(default=None, repr=False, compare=False)
    curves: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def rise(self) -> Rise | None:
        """Steps of the rise that is explained, None where there is none."""
        return None if self.seen is None else self.seen.rise

    @property
    def story(self) -> str:
        """What the loss did, in a sentence."""
        return _story(self.seen)

    def __str__(self) -> str:
        named = ", ".join(f"{name} {_plain(value)}" for name, value in self.run.items())
        lines = [
            f"{self.cause.value.replace('_', ' ')} (confidence {self.confidence:.0%}): {self.cause.description}",
            f"run: {named}" if named else "",
            self.story,
        ]
        if self.evidence:
            lines.append("numbers:")
            width = max(len(name) for name in self.evidence)
            lines += [
                f"  {name.replace('_', ' '):<{width}}  {measure.value:.4g}{_units(measure.units)}"
                for name, measure in self.evidence.items()
            ]
        if self.remedies:
            lines += ["what would have changed it:", *(f"  - {remedy}" for remedy in self.remedies)]
        if self.findings:
            lines += ["found besides:", *(f"  - {finding}" for finding in self.findings)]
        if self.untested:
            lines += ["not tested:", *(f"  - {text}" for text in self.untested)]
        return "\n".join(line for line in lines if line)

    def to_json(self) -> str:
        """One JSON object that every parser reads; numbers that are not finite as words."""
        rise = self.rise
        return strict_json.dumps({
            "cause": self.cause.value,
            "description": self.cause.description,
            "confidence": self.confidence,
            "run": {name: _scalar(value) for name, value in self.run.items()},
            "rise": None if rise is None else rise._asdict(),
            "evidence": {name: measure._asdict() for name, measure in self.evidence.items()},
            "remedies": [dict(remedy.__dict__) for remedy in self.remedies],
            "findings": list(self.findings),
            "untested": list(self.untested),
        })  # fmt: skip

    def plot(self) -> Any:
        """Draw the loss around the rise, the arms that were replayed, and the sharpness over its threshold: a figure.

        Raises:
            ValueError: for an explanation without its run (read back from JSON).
        """
        if self.seen is None:
            raise ValueError("plot: expected an explanation that lossland.explain made, got one without its curves")
        return importlib.import_module("lossland.figures.explanations").explanation_figure(self)


def remedies_of(seen: Observation, arms: tuple[str, ...], facts: Mapping[str, Any]) -> tuple[Remedy, ...]:
    """Name the remedies that the arms of a cause stand for, with what was predicted and what these showed."""
    found = []
    for arm in arms:
        verified = seen.removed(arm)
        if verified is None and arm in ("eps_raised", "second_moment_frozen", "clipped"):
            continue
        text, predicted = _sentence(arm, seen, facts)
        if verified is not None and (replayed := _replayed(arm, seen)):
            text += f" (replayed {replayed})"
        measured, unchanged = (
            float(np.exp(seen.arms[name])) if verified is not None else np.nan for name in (arm, "unchanged")
        )
        found.append(Remedy(text, predicted, verified, measured, unchanged))
    return tuple(found)


def _replayed(arm: str, seen: Observation) -> str:
    if arm == "learning_rate_below" and not seen.worst_ratio >= NEAR:
        return "at half"
    if arm == "full_batch" and seen.has_random_layers:
        return "in evaluation mode" if seen.batch_size is None else "on the full data in evaluation mode"
    return REPLAYED.get(arm, "")


def _sentence(arm: str, seen: Observation, facts: Mapping[str, Any]) -> tuple[str, str]:
    """What to change, and what that is predicted to do."""
    rate = facts.get("rate", np.nan)
    worst = seen.worst_ratio
    # A rise below the threshold is not one that the threshold bounds.
    critical = rate / max(worst, 1.0) if worst >= NEAR else np.nan
    known = np.isfinite(critical)
    below = f"learning rate below {critical:.3g}" if known else "a smaller learning rate"
    before = facts.get("rate_before", np.nan)
    held = f"keep the learning rate at {before:.3g}, or raise it" if before > 0 else "raise the learning rate"
    if seen.batch_size is None and seen.has_random_layers:
        quieter = "judge the run by its loss in evaluation mode; less dropout or a smaller learning rate for less noise"
    else:
        least = facts.get("batch", 0)
        is_all = seen.num_examples is not None and least >= seen.num_examples
        batch = ", of all data" if least and is_all else f", of {least} or more" if least else ""
        quieter = f"larger batches{batch}, or a smaller learning rate"
    values = {
        "below": below,
        "raised": f"{held} to less than {critical:.3g}" if known else f"{held} by less",
        "eps": facts.get("eps", np.nan),
        "norm": facts.get("norm", np.nan),
        "quieter": quieter,
        "labels": f"mend the labels of rows {_listed(seen.wrong_rows)}"
        if seen.wrong_rows
        else "divide every row of labels by its sum, without negative entries",
        "rest": facts.get("rest", ""),
        "total": seen.num_examples,
        "outliers": ", ".join(map(str, seen.outliers)),
        "leaves": ", ".join(seen.wrong_leaves) or "the loss",
    }
    effects = {
        "learning_rate_below": "the sharpness of this rise stays below the threshold" if known else "smaller steps",
        "schedule_held": "the threshold stays above the sharpness",
        "momentum_removed": "nothing carries the parameters uphill",
        "second_moment_frozen": "the preconditioned sharpness stops growing",
        "eps_raised": "learning rate x sharpness / epsilon stays below the threshold",
        "full_batch": "no noise, no rise",
        "last_batch_dropped": "every batch is as large as the others",
        "outliers_dropped": "the examples that make most of the noise are gone",
        "right_gradient": "the loss falls along its own gradient",
        "valid_labels": "the loss is finite"
        if seen.wrong_rows
        else "sharpness and slope of the cross-entropy of distributions",
        "clipped": "no step is longer than before the rise",
        "float64": "the same steps without the rise",
    }
    return TEXTS[arm].format(**values), effects[arm]


def _listed(rows: tuple[int, ...]) -> str:
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return ", ".join(map(str, rows[:SHOWN])) + more


def _story(seen: Observation | None) -> str:
    """What happened, in a sentence."""
    if seen is None:
        return ""
    if seen.rise is None:
        first, last = seen.loss[0], seen.loss[-1]
        did = "fell" if last < first else "went"
        return f"the loss over the full data {did} from {first:.4g} to {last:.4g} without a rise of {FACTOR - 1:.0%}"
    if not np.isfinite(seen.loss[0]):
        return f"the loss was not finite at step {seen.step[0]} already"
    rise = seen.rise
    low = float(seen.loss[int(np.searchsorted(seen.step, rise.valley))])
    end = "and did not come back" if rise.recovery is None else f"and was back at step {rise.recovery}"
    peak = float(seen.loss[min(int(np.searchsorted(seen.step, rise.peak)), len(seen.loss) - 1)])
    if np.isfinite(rise.factor):
        high = f"peaked at step {rise.peak}, {rise.factor:.4g} times"
    else:  # also where a valley at or below 0 has no factor
        high = f"peaked at step {rise.peak} at {peak:.4g}" if np.isfinite(peak) and low <= 0 else "became infinite"
    more = f" (the largest of {seen.num_rises} rises)" if seen.num_rises > 1 else ""
    return f"the loss was {low:.4g} at step {rise.valley}, rose from step {rise.start}, {high}, {end}{more}"


def _units(units: str) -> str:
    return "" if units == "1" else f" {units}"


def _plain(value: Any) -> str:
    value = _scalar(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _scalar(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
