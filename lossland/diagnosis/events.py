"""Where a loss rose: valley, rise, peak and recovery of every event, and which rises are of the record alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from lossland.stability.spikes import tabulate

FACTOR = 1.05
"""A record stands for a rise if it exceeds the lowest since the last event by this factor (of the first loss, where a
loss is not positive)."""

VARIABLES = {
    "valley_step": ("step", "record of the lowest loss before the rise"),
    "event_step": ("step", "first record above the valley by the factor"),
    "peak_step": ("step", "record of the largest loss of the event"),
    "recovery_step": ("step", "first record back at the valley; NaN where there is none"),
    "valley_loss": ("1", "loss at the valley"),
    "peak_loss": ("1", "loss at the peak; inf where it became non-finite"),
    "relative_sharpness_before": ("1", "relative sharpness at the valley, NaN where it was not recorded"),
    "relative_sharpness_after": ("1", "relative sharpness at the recovery or the last record"),
}


class _Event(NamedTuple):
    valley: int
    event: int
    peak: int
    recovery: int | None


def events(runs: xr.Dataset, name: str = "loss", *, factor: float = FACTOR) -> xr.Dataset:
    """Find every rise of a recorded loss, run by run.

    An event begins where the loss exceeds `factor` times its lowest value since the last event, and ends where it is
    back at that value; its peak lies between. Rises between records are not seen: `num_rises` counts those.

    Args:
        runs: what `ll.run` returned.
        name: the record, such as "loss" (full data), "batch_loss" or "epoch_mean_loss".
        factor: above 1; of a loss that is not positive, the rise is compared with (factor - 1) times |first loss|.

    Returns:
        Dataset over the axis "event": `VARIABLES`, and the coordinates of the run (hyperparameters, seed).

    Raises:
        ValueError: where the record is missing, or the factor is not above 1.
    """
    if name not in runs:
        raise ValueError(f"runs: expected a record of {name}; add the probe '{name}'")
    if not factor > 1:
        raise ValueError(f"factor: expected a number above 1, got {factor!r}")
    grid = tuple(str(dim) for dim in runs[name].dims if dim != "step")
    steps = runs["step"].values.astype(float)
    relative = runs.get("relative_sharpness")
    rows, places = [], []
    for place in np.ndindex(*(runs.sizes[dim] for dim in grid)):
        where = dict(zip(grid, place, strict=True))
        loss = runs[name].isel(where).values.astype(float)
        sharp = np.full(len(loss), np.nan) if relative is None else relative.isel(where).values.astype(float)
        for event in find(loss, factor):
            rows.append(_row(steps, loss, sharp, event))
            places.append(place)
    return tabulate("event", VARIABLES, rows, runs, grid, places).assign_attrs(record=name, factor=factor)


def find(loss: np.ndarray, factor: float = FACTOR) -> list[_Event]:
    """Find the events of one curve; a loss that ends in NaN or infinity peaks there."""
    finite = np.isfinite(loss)
    end = len(loss) if finite.all() else int(np.argmin(finite)) + 1
    curve = np.where(finite, loss, np.inf)[:end]
    found = []
    valley = 0
    place = 1
    while place < end:
        low = curve[valley]
        margin = (factor - 1) * (abs(low) if low > 0 else abs(curve[0]) if np.isfinite(curve[0]) else 1.0)
        if curve[place] < low:
            valley = place
        elif curve[place] > low + margin:
            back = np.flatnonzero(curve[place:] <= low)
            recovery = place + int(back[0]) if len(back) else None
            stop = recovery if recovery is not None else end
            found.append(_Event(valley, place, place + int(np.argmax(curve[place:stop])), recovery))
            if recovery is None:
                break
            valley = place = recovery
        place += 1
    return found


def _row(steps: np.ndarray, loss: np.ndarray, sharp: np.ndarray, event: _Event) -> dict[str, float]:
    known = np.flatnonzero(np.isfinite(sharp))
    last = event.recovery if event.recovery is not None else (int(known[-1]) if len(known) else event.peak)
    peak = loss[event.peak]
    return {
        "valley_step": steps[event.valley],
        "event_step": steps[event.event],
        "peak_step": steps[event.peak],
        "recovery_step": np.nan if event.recovery is None else steps[event.recovery],
        "valley_loss": loss[event.valley],
        "peak_loss": peak if np.isfinite(peak) else np.inf,
        "relative_sharpness_before": sharp[event.valley],
        "relative_sharpness_after": sharp[last],
    }
