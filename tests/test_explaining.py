"""Which run `lossland explain` takes from a folder."""

import numpy as np
import pytest
import xarray as xr

from lossland.explaining import chosen_run, coordinates


def runs_over(**axes):
    shape = tuple(len(values) for values in axes.values())
    return xr.Dataset({"status": (tuple(axes), np.zeros(shape))}, {name: list(values) for name, values in axes.items()})


GRID = runs_over(learning_rate=[0.1, 0.2, 0.4], dtype=["float32", "float64"], seed=[0, 3, 5])


def test_the_nearest_number_the_named_word_and_the_seed_itself_are_taken():
    run = chosen_run(GRID, {"learning_rate": 0.29, "dtype": "float64", "seed": 3})
    assert [run[name].item() for name in ("learning_rate", "dtype", "seed")] == [0.2, "float64", 3]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"learning_rate": 0.1, "dtype": "float32"}, "seed: choose one of 3 values, 0 to 5"),
        ({"learning_rate": 0.1, "dtype": "float32", "seed": 4}, "seed: expected one of 3 values, 0 to 5, got 4"),
        ({"learning_rate": float("nan"), "dtype": "float32", "seed": 0}, "learning_rate: expected one of 3 values"),
        ({"learning_rate": 0.1, "dtype": "float16", "seed": 0}, "dtype: expected one of float32, float64, got float16"),
        ({"momentum": 0.9}, "momentum: the runs have no such coordinate; they have learning_rate, dtype, seed"),
    ],
)
def test_what_is_not_there_is_named(chosen, message):
    with pytest.raises(ValueError, match=message):
        chosen_run(GRID, chosen)


def test_points_are_chosen_by_what_varies_along_them():
    runs = xr.Dataset(
        {"status": (("point", "seed"), np.zeros((3, 1)))},
        {"learning_rate": ("point", [0.1, 0.1, 1.0]), "b2": ("point", [0.9, 0.99, 0.9]), "seed": [0]},
    )
    assert chosen_run(runs, {"learning_rate": 0.1, "b2": 0.99})["b2"].item() == 0.99
    assert chosen_run(runs, {"learning_rate": 0.9})["learning_rate"].item() == 1.0


def test_coordinates_are_read_from_the_command_line():
    assert coordinates(["weight-decay=0.1", "dtype=float64"]) == {"weight_decay": "0.1", "dtype": "float64"}
    for text in ("momentum", "=3", "momentum="):
        with pytest.raises(ValueError, match="expected NAME=VALUE"):
            coordinates([text])
