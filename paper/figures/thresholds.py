"""Measured against computed thresholds of every optimizer."""

from typing import Any

from lossland.figures.reproduced import thresholds_figure
from paper.sources import Results

SOURCES = ("thresholds",)


def whole(results: Results) -> Any:
    """Draw it as the experiment does."""
    return thresholds_figure(*results.arguments("thresholds", "thresholds_figure"))


PARTS = {"": whole}
