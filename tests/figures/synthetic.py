"""Results in closed form, shaped as `ll.run` returns them: nothing is trained, so every drawn number is known."""

import itertools

import numpy as np
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from lossland.sweeps.sweep import Outcome, Sweep

SHARPNESS = np.array([2.1, 1.7, 2.6, 2.0, 3.1, 1.4, 2.3, 1.9])
"""Sharpness at step 0 of every seed."""


def catapults(axes, num_seeds=8, num_steps=40, every=2, product=2.0, sharpness=True):
    """Gradient descent that falls below 2/s, rises and recovers up to 4/s, and blows up beyond, s the seed's sharpness.

    With an axis `scale` the sharpness is multiplied by it; other axes change nothing. Beyond 4/s the loss grows by 100
    a step and overflows at step 19. A run that recovers stays at its peak, 10, for five steps, then ends at relative
    sharpness 0.9.
    """
    sweep = Sweep(axes, seeds=num_seeds, num_steps=num_steps, every=every, lane_width=1)
    step = sweep.recorded_steps.astype(float)
    names = [*sweep.axes, "seed"]
    loss = np.full((*sweep.shape, len(step)), np.nan)
    relative, first_rise, first_bad = loss.copy(), np.full(sweep.shape, -1), np.full(sweep.shape, -1)
    threshold = np.full(sweep.shape[:-1], np.nan)
    for index in np.ndindex(*sweep.shape):
        point = {name: values[i] for (name, values), i in zip(sweep.axes.items(), index, strict=False)}
        rate = point.get("learning_rate", 0.5)
        threshold[index[:-1]] = product / rate
        ratio = rate * SHARPNESS[index[-1]] * point.get("scale", 1.0) / product
        loss[index] = 0.9 ** (step * min(ratio, 1.0)) * (1 + 0.1 * index[-1])
        relative[index] = ratio
        if 1 < ratio <= 2:
            first_rise[index] = 1
            loss[index][(step > 0) & (step <= 5)] = 10
            relative[index][step > 5] = 0.9
        elif ratio > 2:
            first_rise[index], first_bad[index] = 1, 19
            alive = step < 19
            loss[index] = np.where(alive, 100.0 ** np.minimum(step, 19), np.nan)
            relative[index][~alive] = np.nan
    variables = {
        "loss": ((*names, "step"), loss, {"units": "1"}),
        "status": (names, np.where(first_bad >= 0, 2, 1).astype(np.int8), Outcome.attributes()),
        "first_bad_step": (names, first_bad, {"units": "step"}),
        "first_rise_step": (names, first_rise, {"units": "step"}),
        "threshold": (names[:-1], threshold, {"units": "loss / parameter^2", "preconditioned": 0}),
    }
    coordinates = {name: (name, values, {"units": "1"}) for name, values in sweep.axes.items()}
    coordinates |= {"seed": sweep.seeds, "step": sweep.recorded_steps}
    attributes = {"problem": "quadratic", "title": "quadratic trained by sgd", "sweep": sweep.to_json()}
    runs = xr.Dataset(variables, coordinates, attributes)
    if sharpness:
        runs["relative_sharpness"] = ((*names, "step"), relative, {"units": "1"})
        runs["sharpness"] = runs["relative_sharpness"] * runs["threshold"]
        runs["sharpness"].attrs["units"] = "loss / parameter^2"
    return runs


def not_run(runs, where):
    """Blank the runs where a mask holds, as an unfinished sweep has them."""
    runs = runs.copy()
    for name in runs.data_vars:
        if "seed" in runs[name].dims:
            blank = np.nan if runs[name].dtype.kind == "f" else 0
            runs[name] = runs[name].where(~where, blank).transpose(*runs[name].dims).astype(runs[name].dtype)
    return runs


def combinations(values):
    """All pairs of different elements."""
    return list(itertools.combinations(values, 2))


def assert_texts_are_apart(figure):
    """Check on the drawn figure that no two texts overlap and none sticks out of it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = list(figure.texts)
    for ax in figure.axes:
        texts += [*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label]
        for axis in (ax.xaxis, ax.yaxis):
            texts += [label for tick in axis.get_major_ticks() for label in (tick.label1, tick.label2)]
    shown = [text for text in texts if text.get_visible() and text.get_text().strip()]
    assert len(shown) > 8
    # Boxes are a little larger than their letters: less than a pixel of overlap is none.
    boxes = [(text.get_text(), Text.get_window_extent(text, canvas.get_renderer()).padded(-0.5)) for text in shown]
    for (words, box), (others, other) in combinations(boxes):
        apart = box.x1 <= other.x0 or other.x1 <= box.x0 or box.y1 <= other.y0 or other.y1 <= box.y0
        assert apart, f"{words!r} overlaps {others!r}"
    for words, box in boxes:
        inside = min(box.x0, box.y0) >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert inside, f"{words!r} sticks out of the figure"
