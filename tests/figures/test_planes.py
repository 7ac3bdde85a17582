"""Pictures of planes: phase diagrams, boundaries, frames of a zoom; what is drawn is what was measured."""

import itertools

import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from lossland.figures.phases import CLASS_COLORS, phase_diagram_figure, plot_phase_diagram
from lossland.figures.planes import boundary_figure, plot_boundary, save_frames
from lossland.stability.boundaries import Axis, Plane, boundary_cells
from lossland.stability.phases import CLASSES


def lightness(color):
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def disc(plane, resolution=24):
    x, y = plane.x.values(resolution), plane.y.values(resolution)
    flags = np.hypot(np.log10(x)[None, :], np.log10(y)[:, None]) > 1
    return xr.Dataset(
        {"diverges": (("seed", "learning_rate", "offset"), flags[None])},
        {"seed": [0], "learning_rate": y, "offset": x},
        {"log_x": 1, "log_y": 1},
    )


PLANE = Plane(Axis("offset", 1e-2, 1e2), Axis("learning_rate", 1e-2, 1e2))


@pytest.fixture
def phases():
    codes = np.array([[0, 1, 2], [3, 4, 5], [0, 5, -1]], np.int8)
    lost = np.isin(codes, [4, 5]).astype(float)
    return xr.Dataset(
        {
            "phase": (("scale", "learning_rate"), codes),
            "probability": (("scale", "learning_rate"), lost),
            "num_runs": (("scale", "learning_rate"), np.full((3, 3), 8)),
        },
        {"scale": [0.5, 1.0, 2.0], "learning_rate": [0.01, 0.1, 1.0]},
        {"problem": "toy", "pooled": "seed"},
    )


def test_colours_of_a_phase_diagram_are_the_classes(phases):
    ax = Figure().add_subplot()
    plot_phase_diagram(ax, phases)
    mesh = next(child for child in ax.get_children() if isinstance(child, QuadMesh))
    np.testing.assert_array_equal(mesh.get_array().filled(-1).ravel(), phases["phase"].values.ravel())
    assert len(CLASSES) == mesh.cmap.N
    assert ax.get_xscale() == "log"


def test_outcomes_darken_as_they_get_worse():
    order = ["never_rises", "rises_and_recovers", "edge_of_stability", "diverges", "non_finite"]
    shades = [lightness(CLASS_COLORS[name]) for name in order]
    assert all(a - b > 15 for a, b in itertools.pairwise(shades))


def test_a_phase_figure_says_what_it_counts_and_keys_what_occurs(phases):
    figure = phase_diagram_figure(phases)
    assert "8 runs" in figure.get_supxlabel().replace("\n", " ")
    keyed = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert keyed == [name.replace("_", " ") for name in CLASSES]


def test_a_boundary_is_drawn_where_it_is():
    found = disc(PLANE)
    ax = Figure().add_subplot()
    plot_boundary(ax, found)
    fills, marks = (child for child in ax.get_children() if isinstance(child, QuadMesh))
    np.testing.assert_array_equal(fills.get_array().reshape(24, 24), found["diverges"].values[0])
    marked = ~np.ma.getmaskarray(marks.get_array()).reshape(23, 23)
    np.testing.assert_array_equal(marked, boundary_cells(found["diverges"].values[0]))
    corners = np.asarray(marks.get_coordinates())[:-1, :-1][marked]
    assert np.abs(np.hypot(*np.log10(corners).T) - 1).max() < 0.25


def test_panels_and_frames(tmp_path):
    small = disc(PLANE.zoomed(10.0, 1.0, 64.0))
    figure = boundary_figure({"a": ([disc(PLANE), small], "1.0"), "b": ([disc(PLANE), small], "1.1")}, "t", "n")
    assert len(figure.axes) == 4
    frames = [(plane, disc(plane)) for plane in (PLANE, PLANE.zoomed(10.0, 1.0, 8.0))]
    paths = save_frames(iter(frames), tmp_path / "movie", "disc")
    assert [path.name for path in paths] == ["frame-0000.png", "frame-0001.png"]
    first = paths[0].read_bytes()
    assert first[:4] == b"\x89PNG"
    assert first != paths[1].read_bytes()
    assert save_frames(iter(frames), tmp_path / "again", "disc")[0].read_bytes() == first
