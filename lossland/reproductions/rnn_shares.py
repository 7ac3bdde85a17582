"""Shares of the recurrent classifier's runs that get worse, with intervals, as its figure shows them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from lossland.reproductions.rnn_claims import ENDS, Results, arms_by_start
from lossland.reproductions.rnn_runs import reported_shape, share


def shares_of(settings: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Share of seeds with the shape over (setting, learning_rate), with intervals."""
    rates = sorted({float(rate) for shape in settings.values() for rate in shape["learning_rate"].values})
    shape = (len(settings), len(rates))
    values = {name: np.full(shape, np.nan) for name in ("share", "low", "high")}
    for row, found in enumerate(settings.values()):
        for rate in found["learning_rate"].values:
            place = (row, rates.index(float(rate)))
            values["share"][place], values["low"][place], values["high"][place] = share(
                found["shape"].sel(learning_rate=rate)
            )
    return xr.Dataset(
        {name: (("setting", "learning_rate"), array) for name, array in values.items()},
        {"setting": list(settings), "learning_rate": rates},
    )


def progress_of(found: Results, num_points: int = 24) -> xr.Dataset:
    """Share of seeds that have got worse over (learning_rate, progress), progress = learning rate x steps, with
    intervals; NaN where a rate did not get as far. Every octave of the map's rates, and the lower ones."""
    runs = {float(rate): found.runs.sel(learning_rate=rate) for rate in found.runs["learning_rate"].values[::4]}
    runs |= found.slow
    rates = sorted(runs)
    reached = [rate * float(runs[rate]["step"][-1]) for rate in rates]
    progress = np.geomspace(min(reached) / 4, max(reached), num_points)
    values = {name: np.full((len(rates), num_points), np.nan) for name in ("share", "low", "high")}
    for row, rate in enumerate(rates):
        fall = reported_shape(runs[rate])["drop_step"].values * rate
        for place, here in enumerate(progress):
            if here <= reached[row] * (1 + 1e-9):
                for name, value in zip(values, share(fall <= here), strict=True):
                    values[name][row, place] = value
    return xr.Dataset(
        {name: (("learning_rate", "progress"), array) for name, array in values.items()},
        {"learning_rate": rates, "progress": progress},
    )


def labels_of(found: Results) -> xr.Dataset:
    """Shares of seeds that learn and that get worse over "labels", with intervals."""
    names, values = list(found.labels), {}
    for key in ("learn", "share"):
        flags = [np.isfinite(one["learnt_step"]) if key == "learn" else one["shape"] for one in found.labels.values()]
        rows = np.array([share(one) for one in flags])
        values |= {f"{key}{end}": ("labels", rows[:, place]) for place, end in enumerate(ENDS)}
    return xr.Dataset(values, {"labels": names})


def arms_of(found: Results) -> xr.Dataset | None:
    """Share of runs that get worse over (when, arm), with intervals and counts; None where no arms were run."""
    words = {"from_start": "from the start", "before_drop": "before the drop"}
    arms = arms_by_start(found)
    parts = {text: arms[name]["shape"] for name, text in words.items() if name in arms}
    if not parts:
        return None
    names = list(dict.fromkeys(name for part in parts.values() for name in part["arm"].values.tolist()))
    values = {name: np.full((len(parts), len(names)), np.nan) for name in ("share", "low", "high", "count")}
    for row, part in enumerate(parts.values()):
        for name in part["arm"].values.tolist():
            flags, place = part.sel(arm=name), (row, names.index(name))
            values["share"][place], values["low"][place], values["high"][place] = share(flags)
            values["count"][place] = flags.size
    return xr.Dataset(
        {name: (("when", "arm"), array) for name, array in values.items()}, {"when": list(parts), "arm": names}
    )
