"""Measured critical learning rates on the curves of the mean-square law."""

from typing import Any

from lossland.figures.stability import minibatch_law_figure
from paper.sources import Results

SOURCES = ("minibatch_law",)


def whole(results: Results) -> Any:
    """Draw it as the experiment does."""
    return minibatch_law_figure(*results.arguments("minibatch_law", "minibatch_law_figure"))


PARTS = {"": whole}
