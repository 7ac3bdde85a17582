"""Case 2 over learning rate and initial scale, and the catapult window of the two-layer linear model."""

from typing import Any

from lossland.figures.maps import stability_map_figure
from lossland.figures.reproduced import catapult_figure
from paper.sources import Results

SOURCES = ("numpy_mlp", "catapult")


def draw(results: Results) -> dict[str, Any]:
    """Draw the stability map, and the window beside it."""
    return {
        "": stability_map_figure(*results.arguments("numpy_mlp", "stability_map_figure", 1)),
        "window": catapult_figure(*results.arguments("catapult", "catapult_figure")),
    }
