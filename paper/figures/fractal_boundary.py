"""Boundaries of trainability with their dimensions, and where a perturbed parabola's boundary turns fractal."""

from typing import Any

from lossland.figures.planes import boundary_figure
from lossland.figures.reproduced import transition_figure
from paper.sources import Results

SOURCES = ("fractal_boundary", "cosine_quadratic")


def panels(results: Results) -> Any:
    """Draw the panels with their zooms."""
    return boundary_figure(*results.arguments("fractal_boundary", "boundary_figure"))


def transition(results: Results) -> Any:
    """Draw the exponent against the roughness."""
    return transition_figure(*results.arguments("cosine_quadratic", "transition_figure"))


PARTS = {"": panels, "transition": transition}
