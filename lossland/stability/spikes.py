"""Spikes of the training loss under an adaptive optimizer: where they cross the threshold, when they show, what drove
them.

A spike counts where the preconditioned sharpness crossed its threshold from below since the previous spike: loss
that rings on the tail of a spike is no new one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lossland.arguments import count, dataset, expects, number
from lossland.stability.spike_lag import lag, lag_from_state

VISIBLE = 2.0
"""A spike shows at the first step whose loss is this many times the smallest since the crossing: by then the unstable
mode holds as much loss as everything else."""

VARIABLES = {
    "trough_step": ("step", "record of the smallest ratio between the previous spike's peak and the crossing"),
    "crossing_step": ("step", "where the ratio crosses 1 from below for the last time before the spike, interpolated"),
    "spike_step": ("step", "where the loss is `visible` times its smallest value since the crossing, interpolated"),
    "peak_step": ("step", "record of the largest loss of the spike"),
    "recovery_step": ("step", "first record after the peak whose loss is no longer visible; NaN if there is none"),
    "lag": ("step", "spike_step - crossing_step"),
    "valley_loss": ("loss", "smallest loss between the crossing and the spike"),
    "peak_loss": ("loss", "largest loss of the spike"),
    "trough_ratio": ("1", "ratio at the trough"),
    "peak_ratio": ("1", "largest ratio between the crossing and the peak of the loss"),
    "rate": ("1 / step", "slope of ln ratio over the records before the crossing"),
    "crossing_loss": ("loss", "loss at the crossing"),
    "crossing_energy": ("loss", "energy of the unstable mode at the crossing, largest of the neighbouring records"),
    "crossing_record": ("step", "first record with a ratio of at least 1, which the crossing_... values are of"),
    "crossing_sharpness": ("1 / learning rate", "preconditioned sharpness at the crossing"),
    "crossing_gradient": ("loss / parameter / P^1/2", "gradient along the mode at the crossing"),
    "crossing_update": ("parameter P^1/2", "next update along the mode at the crossing"),
    "moment_rise": ("1", "- 1/2 of the change of the second moment's logarithm along the mode, trough to crossing"),
    "ratio_rise": ("1", "change of ln ratio from trough to crossing"),
}


OPTIONAL = ("preconditioned_sharpness", "mode_energy", "mode_log_second_moment", "mode_gradient", "mode_update")
"""Records that are used where they are there."""


class _Event(NamedTuple):
    """Records (indices) of one spike."""

    trough: int
    crossing: int
    spike: int
    peak: int
    recovery: int | None


def relative_preconditioned_sharpness(runs: xr.Dataset) -> xr.Dataset:
    """Divide the preconditioned sharpness by its threshold: kappa / kappa*, unstable above 1.

    Equation: ratio = lambda_max(P^-1/2 H P^-1/2) / threshold; for Adam threshold = 2 (1 + b1) / ((1 - b1) learning
    rate). Returns `ratio` and `ratio_bound`, the Lanczos residual over the threshold: an eigenvalue lies within it.

    Raises:
        ValueError: where the probe was not recorded, or the threshold is not one of the preconditioned sharpness.
    """
    if "preconditioned_sharpness" not in runs:
        raise ValueError("runs: expected a record of preconditioned_sharpness; add the probe 'preconditioned_mode'")
    if not runs["threshold"].attrs.get("preconditioned", 1) or not np.isfinite(runs["threshold"]).all():
        reason = runs["threshold"].attrs.get("condition", "no condition recorded")
        raise ValueError(f"runs: their optimizer has no threshold of the preconditioned sharpness ({reason})")
    ratio = runs["preconditioned_sharpness"] / runs["threshold"]
    bound = runs["preconditioned_sharpness_residual"] / runs["threshold"]
    ratio.attrs = {"units": "1", "description": "preconditioned sharpness over its threshold; unstable above 1"}
    bound.attrs = {"units": "1", "description": "distance of the ratio to an eigenvalue's is at most this"}
    return xr.Dataset({"ratio": ratio, "ratio_bound": bound})


@expects(runs=dataset("step"), after=count(0), visible=number(above=1), rate_window=count())
def spikes(runs: xr.Dataset, *, after: int = 0, visible: float = VISIBLE, rate_window: int = 40) -> xr.Dataset:
    """Find the spikes of every run: where the ratio crossed 1, when the loss showed it, how far it rose.

    A spike is a crossing of `relative_preconditioned_sharpness` through 1 from below, followed before the next such
    crossing by a loss above `visible` times its smallest since. The crossing is interpolated linearly in ln ratio, the
    spike in ln loss.

    Args:
        runs: what `ll.run` returned, with the probes "loss" and "preconditioned_mode".
        after: only crossings from this step on.
        visible: factor by which the loss must rise.
        rate_window: steps before the crossing over which the slope of ln ratio is fitted (least squares).

    Returns:
        Dataset over the axis "spike": `VARIABLES`, and the coordinates of the run (hyperparameters, seed). Where the
        energy or the logarithm of the second moment was not recorded, what needs them is NaN.

    Raises:
        ValueError: where a record is missing, or `visible` is not above 1.
    """
    if not visible > 1:
        raise ValueError(f"visible: expected a factor above 1, got {visible!r}")
    if "loss" not in runs:
        raise ValueError("runs: expected a record of the loss; add the probe 'loss'")
    ratio = relative_preconditioned_sharpness(runs)["ratio"]
    grid = tuple(str(name) for name in runs["loss"].dims if name != "step")
    steps = runs["step"].values.astype(float)
    records = {name: runs[name] for name in ("loss", *OPTIONAL) if name in runs} | {"ratio": ratio}
    rows: list[dict[str, float]] = []
    places: list[tuple[int, ...]] = []
    for place in np.ndindex(*(runs.sizes[name] for name in grid)):
        where = dict(zip(grid, place, strict=True))
        one = {name: array.isel(where).values.astype(float) for name, array in records.items()}
        for event in _events(steps, one["loss"], one["ratio"], after, visible):
            rows.append(_row(steps, one, event, visible, rate_window))
            places.append(place)
    found = tabulate("spike", VARIABLES, rows, runs, grid, places)
    found.attrs = {"visible": visible, "rate_window": rate_window, "num_runs": int(ratio.isel(step=0).size)}
    return found


def tabulate(
    axis: str,
    variables: Mapping[str, tuple[str, str]],
    rows: Sequence[Mapping[str, float]],
    runs: xr.Dataset,
    grid: Sequence[str],
    places: Sequence[tuple[int, ...]],
) -> xr.Dataset:
    """Lay events out along one axis: their variables (name -> units, description) and the coordinates of their runs.

    rows: the values of each event; places: where on the dims `grid` of `runs` its run stands.
    """
    coordinates = {
        name: (axis, runs[name].values[[place[index] for place in places]] if places else runs[name].values[:0])
        for index, name in enumerate(grid)
        if name in runs.coords
    }
    found = xr.Dataset({name: (axis, np.array([row[name] for row in rows], float)) for name in variables}, coordinates)
    for name, (units, text) in variables.items():
        found[name].attrs = {"units": units, "description": text}
    return found


def predicted_lag(found: xr.Dataset, b1: Any, b2: Any) -> xr.DataArray:
    """Predict the lag of every spike by the law, from what was recorded up to its crossing.

    Equation: `adaptive.lag` with G = ln(crossing_loss / crossing_energy) / 2 and the measured `rate` of ln ratio. inf
    where ln ratio did not rise before the crossing, NaN where it could not be fitted.

    Args:
        found: what `spikes` returned.
        b1, b2: Adam's, numbers or one per spike.
    """
    if found["crossing_energy"].isnull().all() and found.sizes["spike"]:
        raise ValueError("found: has no mode energy; record the runs with the probe 'preconditioned_mode'")
    gain = 0.5 * np.log(found["crossing_loss"].values / found["crossing_energy"].values)
    b1, b2, rate, gain = np.broadcast_arrays(b1, b2, found["rate"].values, gain)
    known = np.isfinite(rate) & np.isfinite(gain)
    values = np.full(known.shape, np.nan)
    if known.any():
        curvature_rate = rate[known] + np.log(b2[known]) / 2
        values[known] = lag(gain[known], b1[known], b2[known], curvature_rate=curvature_rate)
    text = "steps from the crossing to the spike, from the rate and the mode energy at the crossing"
    return xr.DataArray(
        values, found["lag"].coords, ("spike",), "predicted_lag", {"units": "step", "description": text}
    )


def propagated_lag(found: xr.Dataset, b1: Any, b2: Any, learning_rate: Any) -> xr.DataArray:
    """Predict the lag of every spike by stepping its mode on from the crossing, kappa rising at the measured rate.

    Equation: `adaptive.lag_from_state` from gradient and first moment along the mode at the crossing, until the mode
    holds as much as the loss there: gradient^2 = 2 sharpness x loss. What `predicted_lag` leaves out is in it: at the
    threshold the roots, -1 and -b1, are close; as they part, the direction in which the mode grows turns, and that
    costs amplitude. Late in training, where the bias correction of the first moment is over.

    Args:
        found: what `spikes` returned.
        b1, b2, learning_rate: Adam's, numbers or one per spike.
    """
    gradient, update, sharpness, loss = (
        found[f"crossing_{name}"].values for name in ("gradient", "update", "sharpness", "loss")
    )
    rate, b1, b2, learning_rate = np.broadcast_arrays(found["rate"].values, b1, b2, np.asarray(learning_rate, float))
    remembers = np.where(b1 > 0, b1, 1.0)  # without memory the first moment does not matter
    moment = (-update / learning_rate - (1 - b1) * gradient) / remembers
    known = np.isfinite(rate) & np.isfinite(moment) & np.isfinite(sharpness) & np.isfinite(loss)
    steps = np.full(known.shape, np.nan)
    if known.any():
        steps[known] = lag_from_state(
            gradient[known],
            moment[known],
            (2 * sharpness * loss)[known],
            (learning_rate * sharpness)[known],
            b1[known],
            b2[known],
            curvature_rate=rate[known] + np.log(b2[known]) / 2,
            max_steps=10_000,
        )
    late = found["crossing_record"].values - found["crossing_step"].values
    text = "steps from the crossing to the spike, the mode stepped on from its state there"
    return xr.DataArray(
        steps + late, found["lag"].coords, ("spike",), "propagated_lag", {"units": "step", "description": text}
    )


def _events(steps: np.ndarray, loss: np.ndarray, ratio: np.ndarray, after: int, visible: float) -> Iterator[_Event]:
    crossings = 1 + np.flatnonzero((ratio[:-1] < 1) & (ratio[1:] >= 1))
    previous_peak = 0
    for crossing, end in itertools.pairwise([*crossings.tolist(), len(loss)]):
        if crossing < previous_peak:
            continue
        window = loss[crossing:end]
        valley = np.fmin.accumulate(window)
        shows = np.flatnonzero(window > visible * valley)
        if not shows.size:
            continue
        spike = crossing + int(shows[0])
        level = visible * valley[shows[0]]
        # The tail may ring; the spike is over where it first dips below what made it visible.
        over = np.flatnonzero(loss[spike:] <= level)
        recovery = spike + int(over[0]) if over.size else None
        peak = spike + int(np.nanargmax(loss[spike:recovery]))
        trough = previous_peak + int(np.nanargmin(ratio[previous_peak : crossing + 1]))
        previous_peak = peak
        if steps[crossing] >= after:
            yield _Event(trough, crossing, spike, peak, recovery)


def _row(
    steps: np.ndarray, records: dict[str, np.ndarray], event: _Event, visible: float, rate_window: int
) -> dict[str, float]:
    trough, crossing, spike, peak, recovery = event
    loss, ratio = records["loss"], records["ratio"]
    valley = float(np.nanmin(loss[crossing:spike]))
    crossing_step = _interpolate(steps, np.log(ratio), crossing, 0.0)
    spike_step = _interpolate(steps, np.log(loss), spike, float(np.log(visible * valley)))
    fitted = (steps[:crossing] >= steps[crossing] - rate_window) & (np.arange(crossing) >= trough)
    enough = np.count_nonzero(fitted) >= 2
    blank = np.full(len(loss), np.nan)
    sharpness, energy, moment, gradient, update = (records.get(name, blank) for name in OPTIONAL)
    return {
        "trough_step": steps[trough],
        "crossing_step": crossing_step,
        "spike_step": spike_step,
        "peak_step": steps[peak],
        "recovery_step": np.nan if recovery is None else steps[recovery],
        "lag": spike_step - crossing_step,
        "valley_loss": valley,
        "peak_loss": loss[peak],
        "trough_ratio": ratio[trough],
        "peak_ratio": np.nanmax(ratio[crossing : peak + 1]),
        "rate": np.polyfit(steps[:crossing][fitted], np.log(ratio[:crossing][fitted]), 1)[0] if enough else np.nan,
        "crossing_loss": loss[crossing],
        "crossing_energy": np.fmax.reduce(energy[max(crossing - 1, 0) : crossing + 2]),
        "crossing_record": steps[crossing],
        "crossing_sharpness": sharpness[crossing],
        "crossing_gradient": gradient[crossing],
        "crossing_update": update[crossing],
        "moment_rise": -0.5 * (moment[crossing] - moment[trough]),
        "ratio_rise": np.log(ratio[crossing] / ratio[trough]),
    }


def _interpolate(steps: np.ndarray, values: np.ndarray, index: int, level: float) -> float:
    """Step at which values reach the level between records index - 1 and index."""
    if index == 0 or not values[index] > values[index - 1]:
        return float(steps[index])
    share = np.clip((level - values[index - 1]) / (values[index] - values[index - 1]), 0, 1)
    return float(steps[index - 1] + share * (steps[index] - steps[index - 1]))
