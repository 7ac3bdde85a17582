"""Slices and spectra around a catapult and a late spike."""

from typing import Any

from lossland.figures.scenes import landscapes_figure
from paper.sources import Results

SOURCES = ("landscapes",)


def whole(results: Results) -> Any:
    """Draw it as the experiment does."""
    return landscapes_figure(*results.arguments("landscapes", "landscapes_figure"))


PARTS = {"": whole}
