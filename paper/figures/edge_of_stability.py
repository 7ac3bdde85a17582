"""Sharpness over each optimizer's own threshold."""

from typing import Any

from lossland.figures.stability import edge_of_stability_figure
from paper.sources import Results

SOURCES = ("edge_of_stability",)


def whole(results: Results) -> Any:
    """Draw it as the experiment does."""
    return edge_of_stability_figure(*results.arguments("edge_of_stability", "edge_of_stability_figure"))


PARTS = {"": whole}
