"""Case 2 over learning rate and initial scale, and the catapult window of the two-layer linear model."""

from typing import Any

from lossland.figures.maps import stability_map_figure
from lossland.figures.reproduced import catapult_figure
from paper.sources import Results

SOURCES = ("numpy_mlp", "catapult")


def scales(results: Results) -> Any:
    """Draw the stability map."""
    (runs,) = results.arguments("numpy_mlp", "stability_map_figure", 1)
    return stability_map_figure(runs.assign_attrs(problem="network by hand"))


def window(results: Results) -> Any:
    """Draw the window against the width."""
    return catapult_figure(*results.arguments("catapult", "catapult_figure"))


PARTS = {"": scales, "window": window}
