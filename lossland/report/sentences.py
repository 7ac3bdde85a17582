"""What the records of a run say by themselves, in sentences, for runs that nobody has explained."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lossland.diagnosis.causes import Cause

UNTESTED = "Read off the records alone: no cause was tested by replaying the run."


class Summary(NamedTuple):
    """Figures of every run of a sweep, each (run,). NaN, and -1 for steps, where there is none.

    outcome: name of the class; first, last: loss at the first record and the last finite one; peak: largest finite
    loss; first_rise, first_bad: steps; num_rises of `steps_done`; start, end: sharpness / threshold at the first record
    and the last finite one.
    """

    outcome: np.ndarray
    first: np.ndarray
    last: np.ndarray
    peak: np.ndarray
    first_rise: np.ndarray
    first_bad: np.ndarray
    num_rises: np.ndarray
    steps_done: np.ndarray
    start: np.ndarray
    end: np.ndarray


def describe(summary: Summary, run: int, seen: str = "step") -> str:
    """Tell one run in four or five sentences. `seen`: what `num_rises` counts, "step" or "record", "" for nothing."""
    one = {name: values[run].item() for name, values in summary._asdict().items()}
    if one["outcome"] == "not_run":
        return "This run was not computed."
    said = [_start(one), _rises(one, seen) if seen else "", _end(one)]
    cause = reading(one)
    if cause not in (None, Cause.healthy):
        assert cause is not None
        said.append(f"Consistent with {cause.value.replace('_', ' ')}: {cause.description}.")
    return " ".join(part for part in [*said, UNTESTED] if part)


def reading(one: dict[str, Any]) -> Cause | None:
    """The cause that these figures are consistent with, None where they point to none."""
    above = one["start"] > 1
    return {
        "never_rises": Cause.healthy,
        "edge_of_stability": Cause.edge_of_stability,
        "rises_and_recovers": Cause.catapult if above and one["end"] < one["start"] else None,
        "diverges": Cause.learning_rate_above_threshold if above else None,
        "non_finite": Cause.learning_rate_above_threshold if above else None,
    }.get(one["outcome"])


def _start(one: dict[str, Any]) -> str:
    text = "" if np.isnan(one["first"]) else f"The loss starts at {_number(one['first'])}."
    if np.isnan(one["start"]):
        return text
    above = "above it: steps overshoot along the sharpest direction" if one["start"] > 1 else "below it"
    return f"{text} The sharpness starts at {_number(one['start'])} times the threshold, {above}.".strip()


def _rises(one: dict[str, Any], seen: str) -> str:
    if one["first_rise"] < 0:
        return "No step raised the loss." if seen == "step" else "No record of the loss is above the one before."
    text = f"The loss first rises at step {one['first_rise']:.0f}"
    if one["num_rises"] > 1:
        among = f"in {one['steps_done']:.0f} steps" if seen == "step" else "from record to record"
        text += f" and rises {one['num_rises']:.0f} times {among}"
    if one["peak"] > one["first"] > 0:
        text += f"; its peak, {_number(one['peak'])}, is {_number(one['peak'] / one['first'])} times where it started"
    return f"{text}."


def _end(one: dict[str, Any]) -> str:
    if one["first_bad"] >= 0:
        return f"The loss is not finite from step {one['first_bad']:.0f} on."
    text = "" if np.isnan(one["last"]) else f"It ends at {_number(one['last'])}"
    if text and not np.isnan(one["end"]):
        text += f", the sharpness at {_number(one['end'])} times the threshold"
    return f"{text}." if text else ""


def _number(value: float) -> str:
    digits, e, power = f"{value:.3g}".partition("e")
    return f"{digits}e{int(power)}" if e else digits
