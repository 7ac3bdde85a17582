"""What is kept is what was drawn; figures come out the same to the byte."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from experiments import catalogue, trees
from experiments.experiment import LARGEST, RESULTS, Experiment, figures_kept, load_drawn, load_summary
from lossland.reproductions.linear_regression import sharpness_of
from paper import draw
from paper.sources import Results

ROOT = Path(__file__).parents[2]


class TestTrees:
    def test_what_is_kept_comes_back(self, tmp_path):
        found = xr.Dataset(
            {
                "loss": (("seed", "step"), np.arange(6.0).reshape(2, 3), {"units": "1"}),
                "saved_params": ("p", np.ones(9)),
            },
            {"seed": [3, 4], "words": ("seed", ["a", "bc"])},
            {"created": "today", "title": "t", "flag": np.bool_(True), "none": None},
        )
        value = {64: (found, found["loss"]), 0.1: [float("inf"), None, "word"], "f": sharpness_of, "a": np.eye(2) * 1j}
        trees.save(value, tmp_path / "one.npz")
        back = trees.load(tmp_path / "one.npz")
        assert list(back) == [64, 0.1, "f", "a"]
        kept, array = back[64]
        assert dict(kept.attrs) == {"title": "t", "flag": True, "none": None}
        xr.testing.assert_identical(kept.assign_attrs(created="today"), found.drop_vars("saved_params"))
        xr.testing.assert_identical(array, found["loss"])
        assert back[0.1] == [float("inf"), None, "word"]
        assert back["f"] is sharpness_of
        np.testing.assert_array_equal(back["a"], value["a"])
        trees.save(value, tmp_path / "two.npz")
        assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()

    def test_the_same_array_is_written_once(self, tmp_path):
        noise = np.random.default_rng(0).normal(size=10_000)
        value = [
            xr.Dataset({"loss": ("step", noise)}),
            {"loss": noise.copy(), "negative": -noise, "square": noise.reshape(100, 100)},
        ]
        trees.save(value, tmp_path / "shared.npz")
        assert 2.5 < (tmp_path / "shared.npz").stat().st_size / noise.nbytes < 3.5, "three of the four differ"
        first, second = trees.load(tmp_path / "shared.npz")
        np.testing.assert_array_equal(first["loss"], noise)
        np.testing.assert_array_equal(second["loss"], noise)
        np.testing.assert_array_equal(second["negative"], -noise)
        np.testing.assert_array_equal(second["square"].ravel(), noise)

    def test_what_cannot_be_kept_is_named(self, tmp_path):
        with pytest.raises(TypeError, match=r"value\['here'\]\[1\].*Path"):
            trees.save({"here": [1, Path()]}, tmp_path / "none.npz")


def measure(folder, fast, table):
    """Stand in for an experiment: one target, one figure."""
    measure.calls += 1
    drawing_figure(np.arange(3.0), note="n")
    return {"one": 1.0}, []


def drawing_figure(values, note):
    return values.sum()


class TestSummaries:
    @pytest.fixture
    def one(self, monkeypatch):
        measure.calls = 0
        monkeypatch.setattr(
            Experiment, "table", lambda self, profile: {"one": {"expected": 1.0, "comparison": "equal", "source": "s"}}
        )
        return Experiment("stand_in", "nothing", (), "none", "0 s", "0 s", measure)

    def test_kept_and_not_measured_again(self, one, tmp_path):
        found = one.run("fast", results=tmp_path, work=tmp_path / "work")
        assert [target["verdict"] for target in found["targets"]] == ["reproduced"]
        ((name, arguments, named),) = load_drawn(tmp_path / "stand_in")
        assert (name, arguments[0].tolist(), named) == ("drawing_figure", [0, 1, 2], {"note": "n"})
        assert one.run("fast", results=tmp_path, work=tmp_path / "work") == found
        assert measure.calls == 1
        one.run("full", results=tmp_path, work=tmp_path / "work")
        one.run("fast", results=tmp_path, work=tmp_path / "work")
        assert measure.calls == 2, "the larger profile stands for the smaller one"
        one.run("fast", results=tmp_path, work=tmp_path / "work", again=True)
        assert measure.calls == 3

    def test_half_a_summary_is_none(self, one, tmp_path):
        one.run("fast", results=tmp_path, work=tmp_path / "work")
        drawn = tmp_path / "stand_in" / "drawn.npz"
        drawn.write_bytes(drawn.read_bytes()[:-1])
        assert load_summary(tmp_path / "stand_in") is None
        one.run("fast", results=tmp_path, work=tmp_path / "work")
        assert measure.calls == 2

    def test_figure_functions_are_put_back(self):
        import sys

        module = sys.modules[__name__]
        before = module.drawing_figure
        with figures_kept(module) as kept:
            module.drawing_figure(np.ones(2), note="")
        with pytest.raises(ZeroDivisionError), figures_kept(module):
            module.drawing_figure(1 / 0, note="")
        assert module.drawing_figure is before
        assert len(kept) == 1


class TestCommitted:
    def test_every_experiment_has_a_script_and_a_line_of_the_table(self):
        scripts = {path.stem for path in (ROOT / "experiments").glob("*.py")}
        assert set(catalogue.STEMS) == scripts - {
            "__init__",
            "__main__",
            "catalogue",
            "experiment",
            "summarise",
            "trees",
        }
        assert catalogue.table() in (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")

    def test_summaries_hold_the_targets_of_their_tables_and_are_small(self):
        results = Results()
        assert results.stems(), "no summary is committed"
        for stem in results.stems():
            profile = results.summary(stem)["profile"]
            assert set(results.targets(stem)) == set(catalogue.experiment(stem).table(profile)), stem
            assert all(path.stat().st_size < LARGEST for path in (RESULTS / stem).iterdir())


def test_a_figure_is_the_same_to_the_byte(tmp_path):
    results = Results()
    first = draw.draw("catapults", results, tmp_path / "a")
    second = draw.draw("catapults", Results(), tmp_path / "b")
    assert [path.name for path in first] == [path.name for path in second]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
        if one.suffix == ".pdf":
            content = one.read_bytes()
            assert b"/Subtype /Type3" not in content
            assert b"/FontFile2" in content, "TrueType fonts are embedded"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_trains_what_has_no_summary_and_nothing_else(tmp_path):
    def planned(results):
        command = ["make", "-n", "-C", ROOT / "paper", f"RESULTS={results}", f"BUILD={tmp_path / 'build'}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    shutil.copytree(RESULTS, tmp_path / "results")
    shutil.rmtree(tmp_path / "results" / "catapult")
    trained = re.findall(r"-m experiments\.(\w+) --profile fast", planned(tmp_path / "results"))
    assert trained == ["catapult"]
    assert sorted(re.findall(r"-m experiments\.(\w+)", planned(tmp_path / "nothing"))) == sorted(catalogue.STEMS)
    kept = planned(RESULTS)
    assert "paper.draw" in kept
    assert "experiments." not in kept
