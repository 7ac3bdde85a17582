"""Which runs of a report are explained, and an explanation as the page holds it: words and numbers, no markup."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from lossland.diagnosis.counterfactuals import LOG_LIMIT
from lossland.diagnosis.explanation import Explanation
from lossland.sweeps.sweep import Outcome

Explain = Callable[[xr.Dataset], Any]
"""One run of a sweep -> its `Explanation`, or anything else, of which `str` is shown."""
CALM = ("never_rises", "not_run")
"""Outcomes that leave nothing to explain."""


def explained(
    runs: xr.Dataset, dims: tuple[str, ...], outcomes: np.ndarray, explain: Explain, most: int
) -> list[dict[str, Any]]:
    """Explain the runs that rose most, as many of each outcome as of the others: their places and what is told of each.

    Args:
        runs: the sweep.
        dims: axes of the grid, in the order in which runs are counted.
        outcomes: `Str["run"]`, the class of every run.
        explain: called with one run.
        most: at most so many runs.
    """
    found = []
    for run in most_risen(_rises(runs, dims), outcomes, most):
        place = np.unravel_index(run, tuple(runs.sizes[dim] for dim in dims))
        where = {dim: int(index) for dim, index in zip(dims, place, strict=True)}
        found.append({"run": int(run), **told(explain(runs.isel(where)))})
    return found


def told(found: Any) -> dict[str, Any]:
    """An explanation in the parts that the page lays out; of anything else its text."""
    if not isinstance(found, Explanation):
        return {"text": str(found)}
    return {
        "cause": found.cause.value.replace("_", " "),
        "confidence": found.confidence,
        "text": " ".join(f"{part[:1].upper()}{part[1:]}." for part in (found.cause.description, found.story) if part),
        "evidence": [
            [name.replace("_", " "), _number(measure.value), "" if measure.units == "1" else measure.units]
            for name, measure in found.evidence.items()
        ],
        "remedies": [dict(remedy.__dict__) for remedy in found.remedies],
        "findings": list(found.findings),
        "untested": list(found.untested),
    }


def _number(value: float) -> float | str:
    """A number, or what stands for one that JSON does not have."""
    return float(value) if np.isfinite(value) else "–" if np.isnan(value) else "∞" if value > 0 else "−∞"


def most_risen(rises: np.ndarray, outcomes: np.ndarray, most: int) -> np.ndarray:
    """Places of at most `most` runs: of each outcome those of the largest rise, evenly spread where rises are equal.

    Args:
        rises: `Float["run"]`, logarithm of the largest rise; NaN for a run that was not computed.
        outcomes: `Str["run"]`.
        most: how many; what one outcome does not need is left to the others.
    """
    kinds = {kind: np.flatnonzero((outcomes == kind) & (rises > 0)) for kind in np.unique(outcomes) if kind not in CALM}
    left, chosen = max(most, 0), []
    for waiting, (_, places) in enumerate(sorted(kinds.items(), key=lambda item: len(item[1]))):
        share = min(len(places), left // (len(kinds) - waiting))
        chosen.append(_largest(places, rises[places], share))
        left -= share
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, int)


def _largest(places: np.ndarray, rises: np.ndarray, count: int) -> np.ndarray:
    if count == 0:
        return places[:0]
    limit = np.sort(rises)[-count]
    above, tied = places[rises > limit], places[rises == limit]
    # In the middle of as many equal parts, so that a single one is not the first.
    parts = (np.arange(count - len(above)) + 0.5) / (count - len(above)) * len(tied)
    return np.concatenate([above, tied[parts.astype(int)]])


def _rises(runs: xr.Dataset, dims: tuple[str, ...]) -> np.ndarray:
    """Logarithm of the largest rise of every run's recorded loss over its lowest value before."""
    computed = runs["status"].transpose(*dims).values.reshape(-1) != Outcome.not_run
    if "loss" not in runs:
        return np.where(computed, 0.0, np.nan)
    loss = runs["loss"].transpose(*dims, "step").values.reshape(computed.size, -1).astype(float)
    low = np.minimum.accumulate(np.where(np.isfinite(loss), loss, np.inf), axis=1)
    size = np.where(low > 0, low, np.maximum(np.abs(loss[:, :1]), np.finfo(float).tiny))
    with np.errstate(invalid="ignore", over="ignore"):
        rises = np.log1p((loss - low) / size)
    rises = np.nan_to_num(rises, nan=LOG_LIMIT, posinf=LOG_LIMIT).max(axis=1)
    return np.where(computed, rises, np.nan)
