"""The sweep: its grid, its canonical form, and the input it refuses."""

import json

import numpy as np
import pytest

import lossland as ll


def test_grid_order_is_axes_then_seeds():
    sweep = ll.Sweep({"learning_rate": [0.1, 0.2], "momentum": [0, 0.5, 0.9]}, seeds=[7, 3], num_steps=10)
    hyperparameters, seeds = sweep.runs()
    assert sweep.shape == (2, 3, 2)
    np.testing.assert_array_equal(hyperparameters["learning_rate"].reshape(sweep.shape)[:, 0, 0], [0.1, 0.2])
    np.testing.assert_array_equal(hyperparameters["momentum"].reshape(sweep.shape)[0, :, 0], [0, 0.5, 0.9])
    np.testing.assert_array_equal(seeds.reshape(sweep.shape)[1, 2], [7, 3])


@pytest.mark.parametrize(
    ("num_steps", "every", "steps"), [(10, 5, [0, 5, 10]), (10, 4, [0, 4, 8, 10]), (3, 1, [0, 1, 2, 3]), (4, 4, [0, 4])]
)
def test_recorded_steps_are_every_k_and_the_last(num_steps, every, steps):
    assert ll.Sweep({}, num_steps=num_steps, every=every).recorded_steps.tolist() == steps


def test_json_form_is_exact_and_canonical():
    sweep = ll.Sweep({"learning_rate": np.geomspace(1e-3, np.pi, 7), "b1": [0.1]}, seeds=[5, 2], num_steps=33, every=4)
    again = ll.Sweep.from_json(sweep.to_json())
    assert again.to_json() == sweep.to_json()
    assert again.fingerprint() == sweep.fingerprint()
    assert list(again.axes) == ["learning_rate", "b1"]
    np.testing.assert_array_equal(again.axes["learning_rate"], sweep.axes["learning_rate"])
    assert json.loads(sweep.to_json())["every"] == 4


@pytest.mark.parametrize(
    "change",
    [{"seeds": 3}, {"num_steps": 11}, {"every": 2}, {"dtype": "float64"}, {"lane_width": 4}, {"freeze": False}],
)
def test_fingerprint_changes_with_every_field(change):
    base = {"axes": {"learning_rate": [0.1]}, "seeds": 2, "num_steps": 10, "every": 5}
    assert ll.Sweep(**base).fingerprint() != ll.Sweep(**{**base, **change}).fingerprint()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"axes": [0.1]}, ["axes", "dict", "list"]),
        ({"axes": {"learning_rate": []}}, ["learning_rate", "non-empty"]),
        ({"axes": {"learning_rate": [[0.1]]}}, ["learning_rate", "one-dimensional", "(1, 1)"]),
        ({"axes": {"learning_rate": [0.1, np.nan]}}, ["learning_rate", "finite", "nan"]),
        ({"axes": {"learning_rate": [0.1, 0.1]}}, ["learning_rate", "distinct"]),
        ({"axes": {"learning_rate": ["0.1"]}}, ["learning_rate", "numbers"]),
        ({"axes": {"seed": [1]}}, ["'seed'", "seeds="]),
        ({"axes": {"learning rate": [1]}}, ["identifiers", "learning rate"]),
        ({"seeds": 0}, ["seeds", "at least 1", "0"]),
        ({"seeds": [1, 1]}, ["seeds", "distinct"]),
        ({"seeds": [-1]}, ["seeds", "[0, 2**32)"]),
        ({"seeds": [0.5]}, ["seeds", "integers"]),
        ({"num_steps": 0}, ["num_steps", "at least 1"]),
        ({"num_steps": 2.5}, ["num_steps", "integer", "2.5"]),
        ({"num_steps": True}, ["num_steps", "integer"]),
        ({"every": 0}, ["every", "at least 1"]),
        ({"every": 401}, ["every", "num_steps = 400", "401"]),
        ({"dtype": "float16"}, ["dtype", "float32", "float16"]),
        ({"lane_width": 0}, ["lane_width", "at least 1"]),
    ],
)
def test_bad_input_is_named(arguments, words):
    with pytest.raises(ValueError, match=r".") as error:
        ll.Sweep(**{"axes": {"learning_rate": [0.1]}, **arguments})
    for word in words:
        assert word in str(error.value)
