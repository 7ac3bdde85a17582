"""Case 1: which runs diverge over examples and learning rate, and the printed losses."""

from typing import Any

from lossland.figures.reported import linear_regression_figure
from paper.sources import Results

SOURCES = ("linear_regression",)


def draw(results: Results) -> dict[str, Any]:
    """Draw both panels."""
    return {"": linear_regression_figure(*results.arguments("linear_regression", "linear_regression_figure"))}
