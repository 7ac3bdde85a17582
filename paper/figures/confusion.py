"""Planted and named causes."""

from typing import Any

from lossland.figures.confusion import confusion_figure
from paper.sources import Results

SOURCES = ("fault_injection",)


def matrix(results: Results) -> Any:
    """Draw the confusion matrix."""
    return confusion_figure(*results.arguments("fault_injection", "confusion_figure"))


PARTS = {"": matrix}
