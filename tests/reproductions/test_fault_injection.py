"""Counting what was planted and what was named: on explanations made by hand, no run trained."""

from dataclasses import replace

import numpy as np
import pytest

from lossland.diagnosis.causes import Cause
from lossland.diagnosis.explanation import Explanation, Remedy
from lossland.diagnosis.observation import Observation, largest_rise
from lossland.reproductions import fault_injection, finished
from lossland.reproductions.fault_injection import (
    FAST,
    SCENARIOS,
    Found,
    answer,
    counted,
    remembered,
    summarised,
    tabulated,
)
from lossland.reproductions.fault_later import LATER
from lossland.reproductions.fault_scenarios import HELD_OUT_SEEDS, TUNING

STEPS = np.arange(20)
RISEN = Observation(STEPS, 1.0 + STEPS, *largest_rise(STEPS, 1.0 + STEPS))
CALM = Observation(STEPS, np.exp(-STEPS / 5), None)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def found(name: str, *causes: Cause, seen: Observation = RISEN) -> Found:
    remedy = Remedy("less", "no rise", True, 1.0, 4.0)
    made = [Explanation(cause, 0.9, {}, (remedy,), run={"seed": seed}, seen=seen) for seed, cause in enumerate(causes)]
    return Found(BY_NAME[name], [answer(one, BY_NAME[name].cause is Cause.healthy) for one in made])


def test_runs_are_counted_by_list_unknown_is_neither_right_nor_wrong():
    edge, jump, none = Cause.edge_of_stability, Cause.schedule_jump, Cause.unknown
    groups = [
        found("edge_gd", edge, edge, none, jump),
        found("edge_surface", edge, none),
        found("schedule_ramp", edge, jump, jump),
        found("healthy_quadratic", Cause.healthy, Cause.healthy, seen=CALM),
    ]
    counts = counted(groups)
    assert [counts["held_out_seeds"][word] for word in ("runs", "right", "unknown", "wrong")] == [4, 2, 1, 1]
    assert [counts["held_out_scenarios"][word] for word in ("runs", "right", "unknown", "wrong")] == [2, 1, 1, 0]
    assert [counts["later_scenarios"][word] for word in ("runs", "right", "unknown", "wrong")] == [3, 2, 0, 1]
    low, high = counts["held_out_seeds"]["right_interval"]
    # Wilson: the p for which (1/2 - p)^2 = z^2 p (1 - p) / 4.
    for bound in (low, high):
        assert (0.5 - bound) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / 4, rel=1e-5)
    numbers, figure = summarised(groups)
    assert numbers["false_alarms"] == 0
    assert numbers["right_on_later_scenarios"] == pytest.approx(2 / 3)
    assert numbers["remedies_verified"] == 1
    assert "1 wrong" in "".join(text.get_text() for text in figure.texts)
    assert tabulated(groups)["held_out"].values.tolist() == [0] * 4 + [1] * 2 + [2] * 3 + [0] * 2


def test_a_fault_that_did_not_show_is_not_counted():
    healthy = found("edge_gd", Cause.healthy, seen=CALM)
    assert counted([healthy])["held_out_seeds"]["runs"] == 0
    recorded = replace(CALM, recorded_rise=RISEN.rise)
    assert counted([found("noise_line", Cause.minibatch_noise, seen=recorded)])["held_out_seeds"]["right"] == 1


def test_finished_scenarios_are_not_explained_again(tmp_path, monkeypatch):
    scenario, seeds, path = BY_NAME["divergence_heavy_ball"], range(2), tmp_path / "divergence_heavy_ball.json"
    first = remembered(scenario, seeds, path)
    assert first.causes == [Cause.learning_rate_above_threshold] * 2

    def must_not(scenario, seeds):
        raise RuntimeError("explained again")

    monkeypatch.setattr(fault_injection, "explained", must_not)
    assert remembered(scenario, seeds, path) == first
    with pytest.raises(RuntimeError, match="again"):  # other seeds
        remembered(scenario, range(3), path)
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(RuntimeError, match="again"):  # a torn file
        remembered(scenario, seeds, path)
    path.write_text(whole)
    monkeypatch.setattr(finished, "sources", lambda: "other code")
    with pytest.raises(RuntimeError, match="again"):
        remembered(scenario, seeds, path)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_lists_are_apart_and_tuning_seeds_are_not_reported():
    assert len(BY_NAME) == len(SCENARIOS)
    assert set(FAST) <= set(BY_NAME)
    assert sum(scenario.held_out == 2 for scenario in LATER) >= 6
    assert not set(TUNING) & set(HELD_OUT_SEEDS)
    assert sum(scenario.cause is not Cause.healthy for scenario in SCENARIOS) >= 16
