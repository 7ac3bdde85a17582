"""Adam on larger networks: the numbers are those of hand-made runs, and the figure draws what there is."""

import numpy as np
import pytest
import xarray as xr

from lossland.figures.networks import networks_figure
from lossland.reproductions.adam_networks import _edge_numbers, _lag_numbers


def runs_at(ratio):
    """Runs over (seed, step) whose preconditioned sharpness over threshold is given."""
    coordinates = {"seed": np.arange(ratio.shape[0]), "step": np.arange(ratio.shape[1])}
    dims = ("seed", "step")
    variables = {
        "preconditioned_sharpness": (dims, 5.0 * ratio),
        "preconditioned_sharpness_residual": (dims, np.zeros_like(ratio)),
        "threshold": ((), 5.0, {"preconditioned": 1}),
        "loss": (dims, np.exp(-ratio)),
    }
    return xr.Dataset(variables, coordinates)


def test_the_edge_is_read_from_the_second_half():
    ratio = np.full((3, 40), 0.2)
    ratio[:, 20:] = [[1.0], [1.02], [0.6]]
    ratio[0, 36:] = 0.5
    found = _edge_numbers(runs_at(ratio))
    assert found["ratio_median"] == pytest.approx(1.0)
    assert found["records_at_the_edge"] == pytest.approx(36 / 60)
    assert found["last_ratio"] == pytest.approx((0.5 + 1.02 + 0.6) / 3)


def test_lags_that_no_law_predicts_are_left_out_of_the_quartiles():
    found = xr.Dataset(
        {
            "lag": ("spike", [10.0, 20.0, 30.0, 40.0]),
            "predicted_lag": ("spike", [10.0, 10.0, 10.0, np.nan]),
            "propagated_lag": ("spike", [np.nan] * 4),
        }
    )
    numbers = _lag_numbers(found)
    assert numbers["spikes"] == 4
    assert numbers["predicted_lag_ratio_median"] == 2
    assert np.isnan(numbers["propagated_lag_ratio_median"])


@pytest.mark.parametrize("spikes", [0, 3])
def test_the_figure_has_a_column_per_network_and_counts_the_spikes(spikes):
    runs = runs_at(np.full((2, 30), 0.9)).assign(ratio=(("seed", "step"), np.full((2, 30), 0.9)))
    found = xr.Dataset({name: ("spike", np.full(spikes, 20.0)) for name in ("lag", "predicted_lag")})
    figure = networks_figure({"mlp": runs, "mlp_batch_32": runs}, {"mlp": found, "mlp_batch_32": found})
    texts = [text.get_text() for ax in figure.axes for text in (ax.get_legend().get_texts() if ax.get_legend() else [])]
    assert len(figure.axes) == 5
    assert texts == (["tanh MLP, full batch: 3 spikes"] if spikes else [])
