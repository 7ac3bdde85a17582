"""The command line, as a user meets it."""

import json

import numpy as np
import pytest

import lossland as ll
from lossland.cli import main
from lossland.mapping import optimizer_named, parse_values, predicted_rates
from lossland.optimizers import Optimizer
from lossland.problems import NAMES, named

SMALL = ["map", "linear_regression", "--learning-rate", "0.003:0.02:9", "--seeds", "6", "--steps", "100"]


@pytest.mark.slow
def test_map_draws_saves_and_states_predicted_and_measured(tmp_path, capsys):
    assert main([*SMALL, "--out", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr().out
    assert "predicted critical learning rate" in printed
    assert "measured: training diverges" in printed
    for name in ("stability_map.png", "stability_map.pdf", "curves.png", "curves.pdf"):
        assert (tmp_path / "runs" / name).stat().st_size > 1000
        assert name in printed
    summary = json.loads((tmp_path / "runs" / "summary.json").read_text())
    critical = 2 / 288.539
    median, low, high = summary["maps"][0]["critical_learning_rate_diverges"]
    assert low < critical < high
    assert low <= median <= high
    assert summary["maps"][0]["predicted_critical_learning_rate"][0] == pytest.approx(critical, rel=1e-4)
    assert summary["maps"][0]["catapult_bound"][0] == pytest.approx(2 * critical, rel=1e-4)
    assert f"{median:.4g}" in printed
    runs = ll.load(tmp_path / "runs")
    np.testing.assert_allclose(runs["learning_rate"], np.geomspace(0.003, 0.02, 9))
    assert runs.sizes["seed"] == 6

    assert main(["status", str(tmp_path / "runs")]) == 0
    assert "54" not in capsys.readouterr().err
    assert main([*SMALL, "--out", str(tmp_path / "runs")]) == 0, "the same command again finds everything done"


@pytest.mark.slow
def test_default_folder_is_kept_apart_from_other_sweeps(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(SMALL) == 0
    assert main([*SMALL, "--axis", "momentum=0.5"]) == 0
    assert main(SMALL) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["linear_regression", "linear_regression-2"]


@pytest.mark.slow
def test_a_second_axis_fixed_arguments_and_options(tmp_path, capsys):
    arguments = ["--axis", "momentum=0,0.9", "--fix", "initial_weight=0.1", "--option", "num_examples=10"]
    assert main([*SMALL, *arguments, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "momentum = 0.9" in printed
    assert "catapult" in printed.split("momentum = 0.9")[0]
    assert "catapult" not in printed.split("momentum = 0.9")[1], "a bound of plain gradient descent"
    runs = ll.load(tmp_path)
    assert runs["loss"].dims == ("learning_rate", "momentum", "seed", "step")
    assert len(np.unique(runs["loss"].isel(step=0))) == 1, "one initial weight for all seeds"
    assert "10 examples" in runs.attrs["loss_normalisation"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["map", "nonsense"], ["nonsense", "numpy_mlp"]),
        (["map", "moons", "--learning-rate", "fast"], ["learning_rate", "fast"]),
        (["map", "moons", "--learning-rate", "1:0.1:5"], ["LOW < HIGH", "1:0.1:5"]),
        (["map", "moons", "--optimizer", "magic"], ["magic", "sgd"]),
        (["map", "moons", "--axis", "momentum"], ["NAME=VALUE", "momentum"]),
        (["map", "moons", "--axis", "speed=1,2", "--learning-rate", "1"], ["speed", "momentum", "scale"]),
        (["map", "moons", "--axis", "momentum=0,1", "--axis", "scale=1,2"], ["at most one other axis", "scale"]),
        (["map", "moons", "--seeds", "0", "--learning-rate", "1"], ["seeds", "0"]),
        (["status", "nowhere"], ["nowhere", "no lossland sweep"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("lossland: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_version_doctor_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"lossland {ll.__version__}"
    assert main(["doctor"]) == 0
    assert "jax" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)


def test_values_are_numbers_lists_and_log_spaced_ranges():
    np.testing.assert_allclose(parse_values("x", ["1", "2,3"]), [1, 2, 3])
    np.testing.assert_allclose(parse_values("x", ["0.01:1:3", "5"]), [0.01, 0.1, 1, 5])


@pytest.mark.slow
def test_default_rates_surround_the_predicted_one():
    rates = predicted_rates(named("linear_regression"), Optimizer(optimizer_named("sgd")))
    assert rates[0] < 2 / 288.539 / 5
    assert rates[-1] > 2 / 288.539 * 50
    ratios = rates[1:] / rates[:-1]
    np.testing.assert_allclose(ratios, ratios[0])
    momentum = predicted_rates(named("linear_regression"), Optimizer(optimizer_named("sgd"), momentum=0.9))
    assert momentum[0] >= rates[0]


def test_an_axis_given_twice_is_refused(capsys):
    assert main(["map", "blobs", "--axis", "momentum=0", "--axis", "momentum=0.9"]) == 2
    assert "momentum is given twice" in capsys.readouterr().err
