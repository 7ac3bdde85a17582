"""How far a sweep is: lines where there is no terminal, a callback, nothing."""

import numpy as np
import optax
import pytest

import lossland as ll
from lossland.sweeps import progress
from tests.cases import problem_named

SWEEP = {"axes": {"learning_rate": np.geomspace(1e-3, 3, 12)}, "seeds": 5, "num_steps": 20, "every": 5, "lane_width": 4}


@pytest.mark.parametrize("show", [True, False])
def test_lines_where_there_is_no_terminal(show, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    runs = ll.run(problem_named("cubic"), optax.sgd, ll.Sweep(**SWEEP), progress=show)
    lines = capsys.readouterr().err.splitlines()
    if not show:
        assert lines == []
        return
    diverged = int((runs["status"] == ll.Outcome.diverged).sum())
    assert lines[-1].startswith(f"lossland: 60 of 60 runs, {diverged} diverged, ")
    assert "run-steps/s" in lines[-1]
    assert lines[-1].endswith("0 s left")


def test_lines_tell_of_tiles_under_way(monkeypatch, capsys):
    """A single tile of long runs is not silent until it ends."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    sweep = ll.Sweep({"learning_rate": [1e-3, 30.0]}, 2, 4000, 4000, lane_width=4)
    ll.run(problem_named("cubic"), optax.sgd, sweep, checkpoint_seconds=1e-4)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 5
    assert lines[-2].startswith("lossland: 0 of 4 runs, 0 diverged, ")
    assert int(lines[-2].split(", ")[-1].split()[0]) >= 0


def test_lines_are_not_more_often_than_every_thirty_seconds(capsys):
    ll.run(problem_named("cubic"), optax.sgd, ll.Sweep(**SWEEP))
    assert capsys.readouterr().err == ""


def test_runs_on_disk_do_not_count_as_speed(tmp_path):
    shown = progress.Progress(False, 100, 10)
    shown.advance(0, 50, 0)
    assert (shown.done, shown.run_steps) == (50, 0)
    shown.advance(1, 50, 3, 450)
    assert (shown.done, shown.diverged, shown.run_steps) == (100, 3, 450)
    shown.close()


def test_a_callback_sees_every_run_and_leaves_the_bits_alone():
    seen = []
    shown = ll.run(problem_named("cubic"), optax.sgd, ll.Sweep(**SWEEP), progress=lambda *told: seen.append(told))
    silent = ll.run(problem_named("cubic"), optax.sgd, ll.Sweep(**SWEEP), progress=False)
    assert seen[-1] == (60, int((silent["status"] == ll.Outcome.diverged).sum()), 60)
    np.testing.assert_array_equal(shown["loss"], silent["loss"])
