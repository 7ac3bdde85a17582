"""Case 1: which runs diverge over examples and learning rate, and the printed losses."""

from typing import Any

from lossland.figures.reported import linear_regression_figure
from paper.sources import Results

SOURCES = ("linear_regression",)


def whole(results: Results) -> Any:
    """Draw it as the experiment does."""
    return linear_regression_figure(*results.arguments("linear_regression", "linear_regression_figure"))


PARTS = {"": whole}
