"""Adam late in training: the ratio to the threshold along a run, the lag law, forecasts, interventions, the laws."""

from typing import Any

from lossland.figures.adam import interventions_figure, spikes_figure
from lossland.figures.adaptive import adam_laws_figure
from lossland.figures.forecasts import forecast_figure
from paper.sources import Results

SOURCES = ("adam_spikes", "adam_forecast", "adam_laws")


def spikes(results: Results) -> Any:
    """Draw a run and the lag of every spike."""
    return spikes_figure(*results.arguments("adam_spikes", "spikes_figure"))


def interventions(results: Results) -> Any:
    """Draw what delays the next spike."""
    return interventions_figure(*results.arguments("adam_spikes", "interventions_figure"))


def forecast(results: Results) -> Any:
    """Draw the forecasts' scores."""
    return forecast_figure(*results.arguments("adam_forecast", "forecast_figure"))


def laws(results: Results) -> Any:
    """Draw the laws on one parameter."""
    return adam_laws_figure(*results.arguments("adam_laws", "adam_laws_figure"))


PARTS = {"": spikes, "interventions": interventions, "forecast": forecast, "laws": laws}
