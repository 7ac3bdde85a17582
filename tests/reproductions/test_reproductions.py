"""Reported results: the table is complete, verdicts can fail, and the numbers come out."""

import json
import re
import tomllib
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import lossland as ll
from lossland.cli import main
from lossland.problems import reported
from lossland.reproductions import COMPARISONS, NAMES, judge, reproduce, targets
from lossland.reproductions.linear_regression import (
    initial_weight_from,
    predicted_overflow,
    sharpness_of,
    trace_to_nan,
)

FOLDER = Path(__import__("lossland.reproductions", fromlist=["reproductions"]).__file__).parent


class TestTable:
    @pytest.mark.parametrize("name", NAMES)
    def test_every_number_has_a_source_and_one_way_to_be_judged(self, name):
        for key, entry in targets(name).items():
            assert len(entry["source"]) > 20, key
            assert entry["comparison"] in COMPARISONS, key
            assert ("expected" in entry) != ("formula" in entry), key
            assert entry.get("tolerance", 1) > 0, key

    def test_no_expected_number_is_typed_in_python(self):
        table = tomllib.loads((FOLDER / "targets.toml").read_text())
        reported_numbers = {
            repr(entry["expected"])
            for numbers in table.values()
            for entry in numbers.values()
            if isinstance(entry.get("expected"), float) and len(repr(entry["expected"]).strip("0.")) > 3
        }
        assert "12.487587" in reported_numbers
        code = "\n".join(path.read_text() for path in FOLDER.glob("*.py"))
        typed = set(re.findall(r"\d+\.\d+(?:e-?\d+)?", code))
        assert not typed & reported_numbers

    def test_unknown_names_are_listed(self):
        with pytest.raises(ValueError, match="linear_regression, numpy_mlp"):
            reproduce("nonsense")


class TestVerdicts:
    @pytest.mark.parametrize(
        ("comparison", "good", "bad"),
        [
            ("absolute", 1.09, 1.11),
            ("relative", 0.91, 0.89),
            ("equal", 1.0, 1.0000001),
            ("at_most", 1.1, 1.2),
            ("at_least", 0.9, 0.8),
            ("within", [0.5, 2.0], [1.5, 2.0]),
            ("between", 1.15, 1.25),
        ],
    )
    def test_each_comparison_can_fail(self, comparison, good, bad):
        expected = [0.9, 1.1] if comparison == "between" else 1.0
        table = {"x": {"expected": expected, "tolerance": 0.1000001, "comparison": comparison, "source": "s"}}
        assert judge("t", {"x": good}, table)[0].verdict == "reproduced"
        assert judge("t", {"x": bad}, table)[0].verdict == "failed"

    @pytest.mark.parametrize("comparison", ["absolute", "relative", "at_most", "at_least"])
    def test_nan_is_never_reproduced(self, comparison):
        table = {"x": {"expected": 1.0, "tolerance": 0.1, "comparison": comparison, "source": "s"}}
        assert judge("t", {"x": float("nan")}, table)[0].verdict == "failed"

    def test_numbers_missing_from_table_or_measurement_are_an_error(self):
        with pytest.raises(ValueError, match="differ"):
            judge("t", {"y": 1.0}, {"x": {"expected": 1.0, "comparison": "equal", "source": "s"}})


class TestFormulas:
    def test_sharpness_is_the_top_eigenvalue_for_every_n(self):
        for n in range(2, 41):
            x = np.arange(1, n + 1.0)
            hessian = 2 * np.array([[np.mean(x**2), x.mean()], [x.mean(), 1]])
            assert sharpness_of(n) == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-12)

    def test_recovered_weight_gives_the_first_printed_loss(self):
        weight = initial_weight_from(reported.printed_losses()[0])
        problem = reported.linear_regression()
        params = {"weight": np.float32(weight), "bias": np.float32(0)}
        assert float(problem.objective(params)) == pytest.approx(reported.printed_losses()[0], abs=1e-4)
        assert abs(weight) < reported.GLOROT_LIMIT

    def test_overflow_and_nan_are_those_of_the_engine(self):
        weight = -0.9
        sweep = ll.Sweep({"learning_rate": [0.01], "initial_weight": [weight]}, 1, 160, 1, freeze=False)
        losses = ll.run(reported.linear_regression(), optax.sgd, sweep)["loss"].values.ravel()
        assert predicted_overflow(weight) == np.flatnonzero(np.isinf(losses))[0] + 1
        assert trace_to_nan(weight)[0] == np.flatnonzero(np.isnan(losses))[0] + 1

    @pytest.mark.slow
    def test_curvature_along_a_step_predicts_the_loss_exactly(self):
        from lossland.reproductions.numpy_mlp import step_curvature

        sweep = ll.Sweep({"learning_rate": np.geomspace(0.03, 3, 5)}, 4, num_steps=1, every=1, dtype="float64")
        runs = ll.run(reported.numpy_mlp(), optax.sgd, sweep, ["loss", "gradient_norm", step_curvature])
        rate, start = runs["learning_rate"], runs.isel(step=0)
        step = rate * start["gradient_norm"]
        predicted = start["loss"] - step**2 / rate + start["step_curvature"] * step**2 / 2
        after = runs["loss"].isel(step=1)
        np.testing.assert_allclose(predicted, after.transpose(*predicted.dims), rtol=0.02, atol=0.02)


class TestCommand:
    @pytest.mark.long
    def test_linear_regression_is_reproduced(self, tmp_path, capsys):
        code = main(["reproduce", "linear_regression", "--json", "--fast", "--out", str(tmp_path)])
        found = json.loads(capsys.readouterr().out)
        assert [n for n in found if n["verdict"] != "reproduced"] == []
        assert code == 0
        assert all({"name", "expected", "tolerance", "measured", "verdict"} <= set(number) for number in found)
        assert (tmp_path / "linear_regression-fast" / "linear_regression.png").exists()

    def test_a_sabotaged_number_fails_the_command(self, monkeypatch, tmp_path, capsys):
        from lossland import reproductions

        table = targets("linear_regression")
        table["first_inf_epoch"]["expected"] = 65
        monkeypatch.setattr(reproductions, "targets", lambda name: table)
        module = __import__("lossland.reproductions.linear_regression", fromlist=["measure"])
        honest = {key: (1.0, 1.0) if "formula" in entry else entry["expected"] for key, entry in table.items()}
        honest = {k: [v, v] if table[k]["comparison"] == "within" else v for k, v in honest.items()}
        monkeypatch.setattr(module, "measure", lambda *arguments: ({**honest, "first_inf_epoch": 64}, []))
        assert main(["reproduce", "linear_regression", "--out", str(tmp_path)]) == 1
        assert "failed" in capsys.readouterr().out

    def test_the_next_free_folder_is_taken_where_none_was_asked_for(self, monkeypatch, tmp_path, capsys):
        module = __import__("lossland.reproductions.linear_regression", fromlist=["measure"])
        from lossland import reproductions

        def measure(place, fast, table):
            sweep = ll.Sweep({"learning_rate": [asked["rate"]]}, 1, 2, 1)
            ll.run(reported.linear_regression(5), optax.sgd, sweep, out=place / "runs")
            return {"x": float("inf")}, []

        entry = {"expected": 0.0, "comparison": "equal", "source": "s"}
        monkeypatch.setattr(reproductions, "targets", lambda name: {"x": entry})
        monkeypatch.setattr(module, "measure", measure)
        monkeypatch.chdir(tmp_path)
        asked = {}
        for asked["rate"] in (0.1, 0.2, 0.1):
            assert main(["reproduce", "linear_regression", "--json"]) == 1
            assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail)[0]["measured"] == "Infinity"
        folders = sorted(path.name for path in (tmp_path / "runs" / "reproduce").iterdir())
        assert folders == ["linear_regression", "linear_regression-2"]
        assert main(["reproduce", "linear_regression", "--out", "runs/reproduce"]) == 1
        asked["rate"] = 0.3
        assert main(["reproduce", "linear_regression", "--out", "runs/reproduce"]) == 2
        assert "another sweep" in capsys.readouterr().err

    @pytest.mark.long
    def test_numpy_mlp_is_reproduced(self, tmp_path, capsys):
        assert main(["reproduce", "numpy_mlp", "--json", "--fast", "--out", str(tmp_path)]) == 0, (
            capsys.readouterr().out
        )
        assert jax.numpy.zeros(1).dtype == np.float32

    @pytest.mark.slow
    def test_the_catapult_is_reproduced_and_every_number_has_its_run_time(self, tmp_path, capsys):
        assert main(["reproduce", "catapult", "--json", "--fast", "--out", str(tmp_path)]) == 0
        found = json.loads(capsys.readouterr().out)
        assert {number["name"].split(".")[0] for number in found} == {"catapult"}
        assert all(number["seconds"] > 0 for number in found)
        assert (tmp_path / "catapult-fast" / "catapult.png").exists()

    def test_a_fast_run_leaves_out_what_fewer_runs_cannot_tell(self, monkeypatch, tmp_path, capsys):
        from lossland import reproductions

        module = __import__("lossland.reproductions.linear_regression", fromlist=["measure"])
        entry = {"expected": 0.0, "comparison": "equal", "source": "s"}
        monkeypatch.setattr(reproductions, "targets", lambda name: {"x": entry, "y": {**entry, "full_only": True}})
        monkeypatch.setattr(module, "measure", lambda place, fast, table: (dict.fromkeys(table, 0.0), []))
        for arguments, names in ((["--fast"], ["x"]), ([], ["x", "y"])):
            main(["reproduce", "linear_regression", "--json", "--out", str(tmp_path), *arguments])
            found = json.loads(capsys.readouterr().out)
            assert [number["name"].split(".")[1] for number in found] == names

    def test_all_and_a_name_exclude_each_other(self, capsys):
        assert main(["reproduce", "catapult", "--all"]) == 2
        assert "--all" in capsys.readouterr().err


class TestTransition:
    def test_the_exponent_is_zero_for_points_and_the_dimension_for_a_cantor_set(self):
        from lossland.reproductions.cosine_quadratic import COARSENING, growth

        few = np.full((2, 8), 3.0)
        np.testing.assert_allclose(growth(few, few), 0)
        np.testing.assert_allclose(growth(few * COARSENING**0.63, few), 0.63)

    def test_it_is_where_the_exponent_crosses(self):
        from lossland.reproductions.cosine_quadratic import FRACTAL, ROUGHNESS, transition

        rising = np.clip(ROUGHNESS - 0.8, 0, None)
        assert transition(rising) == pytest.approx(0.8 + FRACTAL, abs=0.05)
        assert transition(np.zeros_like(ROUGHNESS)) == np.inf
        assert transition(np.ones_like(ROUGHNESS)) == ROUGHNESS[0]
