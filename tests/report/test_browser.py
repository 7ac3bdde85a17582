"""The page in headless Chromium, where there is one: its script runs under its own policy, a link chooses a run."""

import re

import numpy as np
import optax
import pytest

import lossland as ll
from tests.report.synthetic import CHROMIUM, dumped, small
from tests.report.test_page import HOSTILE, Elements

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def text_of(page, name):
    return re.search(rf'id="{name}"[^>]*>(.*?)</', page, re.DOTALL)[1]


def test_names_that_are_markup_are_shown_as_they_are(tmp_path):
    runs = small().assign_attrs(title=HOSTILE, problem=HOSTILE)
    runs["loss"].attrs |= {"units": HOSTILE}
    path = ll.write_report(runs, tmp_path / "report.html", explain=lambda run: HOSTILE)
    page = dumped(path)
    assert "data-ready=" in page
    assert "<title>broken" not in page
    assert "img" not in {tag for tag, _ in Elements(page).tags}
    assert "&lt;img src=x" in text_of(page, "title")


@pytest.mark.slow
def test_four_thousand_runs_load_in_two_seconds_and_a_link_chooses_one(tmp_path):
    problem = ll.problems.reported.linear_regression()
    rates = np.geomspace(1e-3, 3e-2, 64)
    sweep = ll.Sweep({"learning_rate": rates}, seeds=64, num_steps=400, every=2)
    runs = ll.run(problem, optax.sgd, sweep, ["loss", "sharpness"], progress=False)
    path = ll.write_report(runs, tmp_path / "report.html")
    assert path.stat().st_size < 10e6
    page = dumped(path, f"#learning_rate={rates[20]!r},seed=3", tmp_path / "profile")
    assert float(re.search(r'data-ready="(\d+)"', page)[1]) < 2000
    assert f'data-run="{20 * 64 + 3}"' in page
    heading = text_of(page, "run-heading")
    assert heading == f"learning rate {float(f'{rates[20]:.3g}'):g}, seed 3"
    assert page.count("<path") >= 2, "loss and sharpness are drawn"
    other = dumped(path, "#seed=7,learning_rate=0.0299", tmp_path / "profile")
    assert f'data-run="{63 * 64 + 7}"' in other
    assert "loss not finite" in other
