"""The page in headless Chromium, where there is one: its script runs under its own policy, a link chooses a run."""

import re
from dataclasses import replace

import numpy as np
import optax
import pytest

import lossland as ll
from lossland.diagnosis.explanation import Remedy
from lossland.report.page import _part
from tests.report.synthetic import CHROMIUM, dumped, small
from tests.report.test_page import HOSTILE, Elements

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def text_of(page, name):
    return re.search(rf'id="{name}"[^>]*>(.*?)</', page, re.DOTALL)[1]


def test_names_that_are_markup_are_shown_as_they_are(tmp_path):
    runs = small().assign_attrs(title=HOSTILE, problem=HOSTILE)
    runs["loss"].attrs |= {"units": HOSTILE}
    made = ll.explain(runs.isel(learning_rate=-1, seed=0))
    made = replace(
        made, findings=(HOSTILE,), untested=(HOSTILE,), remedies=(Remedy(HOSTILE, HOSTILE, False, 2.0, 3.0),)
    )
    path = ll.write_report(runs, tmp_path / "report.html", explain=lambda run: made if int(run["seed"]) else HOSTILE)
    page = dumped(path, "#learning_rate=4,seed=1")
    assert "refuted by replay" in page
    assert page.count("&lt;img src=x") >= 5, "each is shown, as text"
    assert "data-ready=" in page
    assert "<title>broken" not in page
    assert "img" not in {tag for tag, _ in Elements(page).tags}
    assert "&lt;img src=x" in text_of(page, "title")


def test_keys_choose_runs_and_the_table_sorts_and_filters(tmp_path, monkeypatch):
    """What a reader does, done by the page's own script: keys on the map, a sorted table without one outcome."""
    acts = """
      for (const key of ["End", "ArrowLeft", "ArrowLeft", "ArrowUp"]) {
        map.dispatchEvent(new KeyboardEvent("keydown", { key }));
      }
      byId("table-toggle").click();
      const boxes = byId("filter").querySelectorAll("input");
      boxes[boxes.length - 1].click();
      const heads = byId("rows").querySelectorAll("th button");
      heads[2 + 1].click();
      byId("rows").querySelectorAll("th button")[2 + 1].click();
      root.dataset.address = location.hash;
      root.dataset.ready ="""
    part = _part
    monkeypatch.setattr(
        "lossland.report.page._part",
        lambda name: part(name).replace("root.dataset.ready =", acts) if name == "page.js" else part(name),
    )
    runs = small()
    page = dumped(ll.write_report(runs, tmp_path / "report.html"), "#learning_rate=0.1,seed=0")
    assert f'data-run="{6 * 4 + 1}"' in page, "two to the left of the last rate, one up"
    assert 'data-address="#learning_rate=1.5' in page
    rows = re.findall(r'<tr data-run="(\d+)"', page)
    finished = np.flatnonzero((runs["status"] == 1).values.reshape(-1))
    last = runs["loss"].values[..., -1].reshape(-1)
    assert [int(run) for run in rows] == sorted(finished, key=lambda run: (-np.float32(last[run]), run))


def test_whole_numbers_are_shown_in_full_and_a_link_may_leave_names_out(tmp_path):
    runs = small().isel(learning_rate=[3, 8]).assign_coords(seed=[1230, 1231, 1232, 1233])
    path = ll.write_report(runs, tmp_path / "report.html")
    page = dumped(path, "#4,1232", size="1280,900")
    assert text_of(page, "run-heading") == "learning rate 4, seed 1232"
    close = runs.assign_coords(learning_rate=[0.12345, 0.12346])
    page = dumped(ll.write_report(close, path), "#seed=1231,learning_rate=0.12346")
    assert text_of(page, "run-heading") == "learning rate 0.12346, seed 1231"


def test_one_record_and_no_record_are_drawn(tmp_path):
    one = dumped(ll.write_report(small().isel(step=[0]), tmp_path / "one.html"))
    assert "data-ready" in one
    drawings = re.findall(r"<svg.*?</svg>", one, re.DOTALL)
    assert len(drawings) == 2
    assert not any("NaN" in drawing for drawing in drawings)
    none = small().drop_vars(["loss", "sharpness", "relative_sharpness"])
    bare = dumped(ll.write_report(none, tmp_path / "none.html"))
    assert "No record of these runs is a curve" in re.sub(r"<script.*?</script>", "", bare, flags=re.DOTALL)


@pytest.mark.slow
def test_four_thousand_runs_load_in_two_seconds_and_a_link_chooses_one(tmp_path):
    problem = ll.problems.reported.linear_regression()
    rates = np.geomspace(1e-3, 3e-2, 64)
    sweep = ll.Sweep({"learning_rate": rates}, seeds=64, num_steps=400, every=2)
    runs = ll.run(problem, optax.sgd, sweep, ["loss", "sharpness"], progress=False)
    path = ll.write_report(runs, tmp_path / "report.html")
    assert path.stat().st_size < 10e6
    page = dumped(path, f"#learning_rate={float(rates[20])!r},seed=3", tmp_path / "profile")
    assert float(re.search(r'data-ready="(\d+)"', page)[1]) < 2000
    assert f'data-run="{20 * 64 + 3}"' in page
    heading = text_of(page, "run-heading")
    assert heading == f"learning rate {float(f'{rates[20]:.3g}'):g}, seed 3"
    assert page.count("<path") >= 2, "loss and sharpness are drawn"
    other = dumped(path, "#seed=7,learning_rate=0.0299", tmp_path / "profile")
    assert f'data-run="{63 * 64 + 7}"' in other
    assert "loss not finite" in other
