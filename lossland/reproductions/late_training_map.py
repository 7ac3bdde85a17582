"""Late spikes of Adam over learning rate, b2 and eps: how likely, when, at what price, and what theory says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optax
import xarray as xr

from lossland import figures
from lossland.figures.late_training import late_training_figure
from lossland.optimizers import Optimizer
from lossland.reproductions.adam_spikes import curve
from lossland.stability.late_prediction import late_training_scores, predict_late_spikes
from lossland.stability.late_training import late_training_map
from lossland.stability.spike_boundary import spike_boundary

ADAM = Optimizer(optax.adam, b1=0.9)
AXES = {
    "learning_rate": np.geomspace(5e-4, 3e-2, 8),
    "b2": 1 - np.geomspace(3e-1, 3e-4, 7),
    "eps": np.array([1e-8, 3e-4, 1e-3, 3e-3]),
}
FAST_AXES = {"learning_rate": np.array([5e-4, 1e-2]), "b2": np.array([0.97, 0.999]), "eps": np.array([1e-8, 3e-3])}
NUM_STEPS, FAST_STEPS = 8000, 4000
VISIBLE = (2.0, 5.0, 10.0)
"""The first is the one of the map, the others say what it owes to it."""
MARGIN = 1.5
"""Factor by which eps is above or below its floor where the floor is held against spikes."""
MEASURED, STATES = range(100, 112), range(10, 14)
"""Seeds that the map is measured on, and those whose states it is predicted from. Which form the prediction takes was
chosen on neither."""


def measure(folder: Path, fast: bool, table: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the figure's paths.

    A fast run has a grid of two values an axis and fewer steps.
    """
    axes, num_steps = (FAST_AXES, FAST_STEPS) if fast else (AXES, NUM_STEPS)
    seeds, known = (MEASURED[:6], STATES[:2]) if fast else (MEASURED, STATES)
    after = num_steps // 4
    whole = late_training_map(curve(), ADAM, axes, seeds, num_steps, after=after, visible=VISIBLE, out=folder / "runs")
    predicted = predict_late_spikes(
        curve(), ADAM, axes, known, num_steps, after=after, visible=VISIBLE, out=folder / "states"
    )
    scores = [
        late_training_scores(whole.isel(visible=place), predicted.isel(visible=place)) for place in range(len(VISIBLE))
    ]
    numbers = _numbers(whole, predicted, scores, fast)
    one, expected = whole.isel(visible=0), predicted.isel(visible=0)
    figures.save_numbers(one.drop_dims("seed").assign(scores[0][["right_side", "time_ratio"]]), folder / "map")
    figures.save_numbers(expected.drop_dims("seed"), folder / "predicted")
    paths = figures.save(late_training_figure(one, expected), folder / "late_training_map")
    return {name: numbers[name] for name in table}, paths


def _numbers(whole: xr.Dataset, predicted: xr.Dataset, scores: list[xr.Dataset], fast: bool) -> dict[str, Any]:
    best = scores[0]
    numbers = {
        "runs": float(whole["run_final_loss"].size),
        "settings_on_the_right_side": float(best["right"]),
        "advantage_over_saying_always": float(best["right"]) - float(best["always"]),
        "spiking_settings_predicted": float(best["found"]),
        "calm_settings_predicted_to_spike": float(best["false_alarms"]),
        "time_ratio_lower_quartile": float(best["time_ratio_lower"]),
        "time_ratio_median": float(best["time_ratio_median"]),
        "time_ratio_upper_quartile": float(best["time_ratio_upper"]),
        "right_side_at_factor_5": float(scores[1]["right"]),
        "right_side_at_factor_10": float(scores[2]["right"]),
    }
    one, expected = whole.isel(visible=0), predicted.isel(visible=0)
    spikes = one["probability"] > 0.5
    ratio = (expected["eps"] / expected["epsilon_floor"]).transpose(*spikes.dims).values
    numbers |= {
        "spiking_share_with_eps_above_its_floor": float(np.mean(spikes.values[ratio > MARGIN])),
        "spiking_share_with_eps_below_its_floor": float(np.mean(spikes.values[ratio < 1 / MARGIN])),
    }
    if fast:
        return numbers
    small = whole.isel(eps=0)
    beyond = (
        small["probability"]
        .isel(b2=1 - small["b2"] > spike_boundary(ADAM.arguments["b1"]))
        .sel(learning_rate=slice(3e-3, None))
    )
    usual = small["final_loss"].sel(learning_rate=1e-2, method="nearest")
    slow, fast_memory = (float(usual.sel(b2=b2, method="nearest")) for b2 in (0.999, 0.9))
    return numbers | {
        "spiking_share_beyond_the_quadratic_boundary": float((beyond.isel(visible=0) > 0.5).mean()),
        "spiking_share_beyond_it_at_factor_5": float((beyond.isel(visible=1) > 0.5).mean()),
        "probability_at_b2_0_7_factor_5": float(
            small["probability"].isel(visible=1, b2=0).sel(learning_rate=1e-2, method="nearest")
        ),
        "price_of_b2_0_9": fast_memory / slow,
    }
