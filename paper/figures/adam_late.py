"""Adam late in training: the ratio to the threshold along a run, the lag law, forecasts, interventions, the laws."""

from typing import Any

from lossland.figures.adam import interventions_figure, spikes_figure
from lossland.figures.adaptive import adam_laws_figure
from lossland.figures.forecasts import forecast_figure
from paper.sources import Results

SOURCES = ("adam_spikes", "adam_forecast", "adam_laws")


def draw(results: Results) -> dict[str, Any]:
    """Draw four parts."""
    return {
        "": spikes_figure(*results.arguments("adam_spikes", "spikes_figure")),
        "interventions": interventions_figure(*results.arguments("adam_spikes", "interventions_figure")),
        "forecast": forecast_figure(*results.arguments("adam_forecast", "forecast_figure")),
        "laws": adam_laws_figure(*results.arguments("adam_laws", "adam_laws_figure")),
    }
