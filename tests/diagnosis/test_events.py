"""Rises of a record: found where they are, with their valley, peak and recovery."""

import numpy as np
import optax
import pytest

import lossland as ll
from lossland.diagnosis.events import events, find
from tests.cases import problem_named


def test_one_rise_with_its_places():
    curve = np.array([5.0, 3.0, 1.0, 1.02, 2.0, 4.0, 1.5, 0.9, 0.8])
    assert find(curve) == [(2, 4, 5, 7)]
    assert find(curve, factor=1.01) == [(2, 3, 5, 7)]
    assert find(np.array([3.0, 2.0, 1.0])) == []


def test_two_rises_and_one_without_recovery():
    curve = np.array([2.0, 1.0, 3.0, 0.5, 0.4, 0.8, 0.7])
    assert find(curve) == [(1, 2, 2, 3), (4, 5, 5, None)]


def test_divergence_peaks_where_it_is_not_finite():
    assert find(np.array([1.0, 2.0, 8.0, np.nan, np.nan])) == [(0, 1, 3, None)]
    assert find(np.array([1.0, 2.0, 8.0, np.inf])) == [(0, 1, 3, None)]


def test_a_negative_loss_is_compared_with_the_first():
    assert find(np.array([-10.0, -11.0, -10.9, -9.0, -12.0])) == [(1, 3, 3, 4)]


def test_events_of_a_sweep_are_those_of_each_run():
    sweep = ll.Sweep({"learning_rate": np.geomspace(0.01, 2, 12)}, 4, 60, 1)
    runs = ll.run(problem_named("cubic"), optax.sgd, sweep, ["loss", "sharpness"], progress=False)
    found = events(runs)
    assert found.sizes["event"] > 0
    total = 0
    for rate in runs["learning_rate"].values:
        for seed in runs["seed"].values:
            one = runs.sel(learning_rate=rate, seed=seed)
            alone = find(one["loss"].values.astype(float))
            here = found.isel(event=(found["learning_rate"] == rate).values & (found["seed"] == seed).values)
            assert here["event_step"].values.tolist() == [float(one["step"][event.event]) for event in alone]
            total += len(alone)
    assert found.sizes["event"] == total
    # A rise that is seen is a rise that was counted.
    risen = {(float(r), int(s)) for r, s in zip(found["learning_rate"], found["seed"], strict=True)}
    counted = runs["num_rises"] > 0
    assert all(bool(counted.sel(learning_rate=rate, seed=seed)) for rate, seed in risen)


def test_bad_input_is_named():
    runs = ll.run(problem_named("cubic"), optax.sgd, ll.Sweep({"learning_rate": [0.1]}, 1, 4, 1), progress=False)
    with pytest.raises(ValueError, match="batch_loss"):
        events(runs, "batch_loss")
    with pytest.raises(ValueError, match="factor"):
        events(runs, factor=1.0)
