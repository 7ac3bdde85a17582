"""Places of a landscape in rows of four panels."""

import numpy as np
import xarray as xr

from lossland.figures.scenes import FLOOR, landscapes_figure


def plane():
    axis = np.linspace(-1, 1, 9)
    loss = 1 + axis[:, None] ** 2 + 10 * axis**2
    return xr.Dataset({"loss": (("first", "second"), loss)}, {"first": axis, "second": axis}, {"cosine": 0.0})


def scene():
    distance = np.linspace(-1, 1, 11)
    line = xr.Dataset({"loss": ("distance", 1 + distance**2)}, {"distance": distance})
    path = np.array([[0.9, 0.9], [0.2, -0.5], [0.0, 0.0]])
    eigenvalue = np.linspace(-1, 50, 200)
    density = xr.Dataset({"density": ("eigenvalue", np.exp(-(eigenvalue**2)))}, {"eigenvalue": eigenvalue})
    return {
        "lines": {"first": line},
        "curvatures": {"first": 2.0},
        "trajectory": plane().assign(path=(("point", "direction"), path)),
        "axes": ("drift", "sharpest"),
        "plane": plane(),
        "densities": {"before": density, "after": density},
    }


def test_every_scene_is_a_row_and_nothing_leaves_the_figure():
    figure = landscapes_figure({"one": scene(), "two": scene()})
    panels = [ax for ax in figure.axes if ax.get_xlabel()]
    assert [ax.get_xlabel() for ax in panels[:4]] == ["distance", "drift", "first random direction", "eigenvalue"]
    assert len(panels) == 8
    figure.draw_without_rendering()
    width = figure.bbox.width
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    assert all(box.x0 >= -1 and box.x1 <= width + 1 for box in boxes)


def test_densities_below_the_floor_are_not_drawn():
    figure = landscapes_figure({"one": scene()})
    ax = next(ax for ax in figure.axes if ax.get_xlabel() == "eigenvalue")
    shown = ax.lines[0].get_ydata()
    assert np.isnan(shown[-1])
    assert np.nanmin(shown) > FLOOR
