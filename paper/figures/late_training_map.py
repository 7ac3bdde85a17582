"""Late spikes of Adam over learning rate, b2 and eps."""

from typing import Any

from lossland.figures.late_training import late_training_figure
from paper.sources import Results

SOURCES = ("late_training_map",)


def whole(results: Results) -> Any:
    """Draw it as the experiment does."""
    return late_training_figure(*results.arguments("late_training_map", "late_training_figure"))


PARTS = {"": whole}
