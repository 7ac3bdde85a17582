"""The report holds the sweep's own numbers, says them in words, and runs nothing but its own script."""

import base64
import hashlib
import html.parser
import importlib.resources
import re
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import lossland as ll
from lossland.cli import main
from lossland.diagnosis.explanation import Remedy
from lossland.diagnosis.mechanisms import Measure
from lossland.report.contents import contents
from lossland.report.curves import unpack_curves
from lossland.report.page import page
from lossland.report.stories import most_risen
from lossland.stability.phases import CLASSES, classes
from lossland.sweeps.store import Store
from tests.figures.synthetic import catapults, not_run
from tests.report.synthetic import data_of, floats, small
from tests.sweeps.synthetic import IDENTITY, PER_TILE, layout_of, sweep_of_size, tile_results

HOSTILE = (
    "</script><script>document.title='broken'</script><!--\" ' & \u2028 \u202e <img src=x onerror=alert(1)>"
    " \u640d %%data%%"
)


ODD = {"unknown": Measure(np.nan), "large": Measure(np.inf), "small": Measure(-np.inf, "step")}


class Elements(html.parser.HTMLParser):
    """Start tags with their attributes, and the text of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag in ("script", "style")
        if self.inside:
            self.texts.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            tag, attrs, text = self.texts[-1]
            self.texts[-1] = (tag, attrs, text + data)


def test_the_policy_allows_the_page_s_own_script_and_style_and_nothing_else(tmp_path):
    text = ll.write_report(small(), tmp_path / "report.html").read_text()
    found = Elements(text)
    (policy,) = [a["content"] for tag, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"

    def digest(text):
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    scripts = [t for tag, a, t in found.texts if tag == "script" and "type" not in a]
    styles = [t for tag, a, t in found.texts if tag == "style"]
    assert [digest(t) for t in scripts] == [rules["script-src"]]
    assert [digest(t) for t in styles] == [rules["style-src"]]
    for _, attributes in found.tags:
        assert not {"src", "href", "style", "srcset", "action"} & set(attributes), "nothing is loaded, nothing inlined"
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.findall(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[a-z]+\.", text), "no address of anything elsewhere"
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text)


def test_every_colour_of_an_outcome_is_in_the_style():
    style = importlib.resources.files("lossland.report").joinpath("page.css").read_text()
    light, dark = style.split('[data-theme="dark"]')[:2]
    for name in [*CLASSES, "not_run"]:
        assert f"--{name}:" in light
        assert f"--{name}:" in dark


def test_numbers_are_the_sweep_s():
    runs = small()
    runs = not_run(runs, xr.DataArray(np.arange(36).reshape(9, 4) == 35, dims=runs["status"].dims))
    given = data_of(page(contents(runs)))
    codes = np.frombuffer(base64.b64decode(given["outcome"]), np.uint8).reshape(9, 4)
    flags = classes(runs)
    for code, name in enumerate(CLASSES):
        np.testing.assert_array_equal(codes == code, flags[name].values)
        assert given["classes"][code]["count"] == int(flags[name].sum())
    assert codes[-1, -1] == len(CLASSES)
    assert len({*codes.flat}) > 3
    assert [axis["name"] for axis in given["axes"]] == ["learning_rate", "seed"]
    assert given["axes"][0]["log"]
    np.testing.assert_array_equal(given["axes"][0]["values"], runs["learning_rate"])
    np.testing.assert_allclose(floats(given["threshold"]).reshape(9, 4)[:, 0], runs["threshold"], rtol=1e-6)
    assert given["thresholdOf"] == "sharpness"
    (loss,) = [curve for curve in given["curves"] if curve["name"] == "loss"]
    values = unpack_curves(loss, 36).reshape(9, 4, -1)
    np.testing.assert_allclose(values, runs["loss"], rtol=2e-3)
    last = floats(given["figures"]["last"]).reshape(9, 4)
    finished = (runs["status"] == 1).values
    np.testing.assert_allclose(last[finished], runs["loss"].values[..., -1][finished], rtol=1e-6)


def test_axes_in_any_order_and_number():
    """Unsorted axes are sorted; one seed, one rate or a second axis make maps of other shapes."""
    both = catapults({"momentum": [0.9, 0.0], "learning_rate": [2.0, 0.5, 1.0]}, num_seeds=2)
    given = contents(both)
    assert [axis["values"] for axis in given["axes"]] == [[0.0, 0.9], [0.5, 1.0, 2.0], [0.0, 1.0]]
    place = np.ravel_multi_index((1, 2, 1), (2, 3, 2))
    (loss,) = [curve for curve in given["curves"] if curve["name"] == "loss"]
    expected = both["loss"].sel(momentum=0.9, learning_rate=2.0, seed=1)
    np.testing.assert_allclose(unpack_curves(loss, 12)[place], expected, rtol=2e-3)
    for part in (both.isel(seed=0), both.isel(momentum=0), both.isel(momentum=0, seed=[1])):
        assert "<canvas" in page(contents(part))


def test_a_run_is_told_in_words_with_its_own_numbers():
    runs = small()
    given = contents(runs)
    texts = [given["texts"][i] for i in np.frombuffer(base64.b64decode(given["textOf"]), "<u4")]
    run = int(np.ravel_multi_index((int(np.argmax(runs["learning_rate"].values > 1.2)), 1), (9, 4)))
    ratio = float(runs["relative_sharpness"].values.reshape(36, -1)[run, 0])
    assert 1 < ratio < 2
    assert f"starts at {ratio:.3g} times the threshold, above it" in texts[run]
    assert "first rises at step 1" in texts[run]
    assert "catapult" in texts[run]
    assert "no cause was tested" in texts[run]
    assert "not finite from step 19" in texts[-1]
    assert "No step raised the loss" in texts[0]
    assert "Consistent" not in texts[0]


def test_rises_of_minibatch_training_are_those_of_records():
    """With batches a step has no full-data loss: `num_rises` then counts records, and so do the words."""
    runs = small()
    runs["num_rises"] = (runs["num_rises"] * 7).assign_attrs(units="1")
    texts = contents(runs)["texts"]
    assert any("rises 7 times from record to record" in text for text in texts)
    assert any("No record of the loss is above the one before" in text for text in texts)
    assert not any("No step raised" in text or " times in " in text for text in texts)
    assert not any("rise" in text for text in contents(runs.drop_vars(["loss", "peak_loss"]))["texts"])


def test_a_record_of_some_axes_alone_is_passed_over():
    runs = small()
    runs["rate_schedule"] = ("step", np.linspace(1.0, 0.0, runs.sizes["step"]))
    assert {curve["name"] for curve in contents(runs)["curves"]} == {"loss", "sharpness"}


def test_numbers_of_an_explanation_that_are_not_finite_are_told_apart():
    made = ll.explain(small().isel(learning_rate=-1, seed=0))
    (told,) = contents(small(), lambda run: replace(made, evidence=ODD), num_explained=1)["explained"]
    assert told["evidence"] == [["unknown", "–", ""], ["large", "∞", ""], ["small", "−∞", "step"]]


def test_explanations_of_one_s_own_are_shown_for_runs_of_every_outcome_that_rose():
    asked = []

    def explain(run):
        assert run["loss"].dims == ("step",)
        asked.append(int(run["status"]))
        return f"rate {float(run['learning_rate']):.3g}, seed {int(run['seed'])}: mine"

    given = contents(small(), explain, num_explained=8)
    assert len(asked) == 8
    assert {1, 2} <= set(asked)
    texts = [entry["text"] for entry in given["explained"]]
    assert all(text.endswith("mine") for text in texts)
    codes = np.frombuffer(base64.b64decode(given["outcome"]), np.uint8)
    chosen = {given["classes"][codes[entry["run"]]]["name"] for entry in given["explained"]}
    present = {given["classes"][code]["name"] for code in set(codes)}
    assert chosen == present - {"never_rises"}


def test_runs_that_rose_most_are_explained_and_equals_are_spread():
    rises = np.array([0.0, 3.0, 1.0, 2.0, np.nan, *[700.0] * 9])
    outcomes = np.array(["never_rises", *["rises_and_recovers"] * 3, "not_run", *["non_finite"] * 9])
    assert most_risen(rises, outcomes, 5).tolist() == [1, 3, 6, 9, 12]
    assert most_risen(rises, outcomes, 100).tolist() == [1, 2, 3, *range(5, 14)]
    assert most_risen(rises, outcomes, 0).size == 0
    # What the three runs do not need is left to the nine.
    assert len(most_risen(rises, outcomes, 9)) == 9
    assert most_risen(np.zeros(2), np.array(["never_rises"] * 2), 3).size == 0


def test_an_explanation_is_laid_out_in_its_parts_and_hostile_words_stay_text():
    runs = small()
    run = runs.isel(learning_rate=-1, seed=0)
    made = ll.explain(run)
    made = replace(made, findings=(HOSTILE,), remedies=(Remedy(HOSTILE, "calm", True, np.inf, 3.0),))
    text = page(contents(runs, lambda run: made, num_explained=1))
    assert [tag for tag, _ in Elements(text).tags] == [tag for tag, _ in Elements(page(contents(runs))).tags]
    (told,) = data_of(text)["explained"]
    assert told["cause"] == made.cause.value.replace("_", " ")
    assert told["confidence"] == made.confidence
    assert {name: value for name, value, _ in told["evidence"]} == pytest.approx(
        {name.replace("_", " "): measure.value for name, measure in made.evidence.items()}
    )
    assert told["remedies"] == [
        {"change": HOSTILE, "predicted": "calm", "verified": True, "measured": None, "unchanged": 3.0}
    ]
    assert told["findings"] == [HOSTILE]
    assert told["untested"] == list(made.untested)


def test_hostile_names_stay_text():
    runs = small().assign_attrs(title=HOSTILE, problem=HOSTILE, **{HOSTILE: HOSTILE})
    runs["loss"].attrs |= {"units": HOSTILE, "description": HOSTILE}
    runs["learning_rate"].attrs["description"] = HOSTILE
    text = page(contents(runs, lambda run: HOSTILE))
    clean = page(contents(small()))
    hostile, harmless = Elements(text), Elements(clean)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags], "no element comes from a name"
    assert text.count("</script>") == clean.count("</script>")
    given = data_of(text)
    assert given["title"] == HOSTILE
    assert [HOSTILE, HOSTILE] in given["about"]
    assert {entry["text"] for entry in given["explained"]} == {HOSTILE}
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert data.isascii()
    assert not set("<>&") & set(data)


def test_without_scripts_a_table_counts_outcomes():
    runs = small()
    text = page(contents(runs))
    assert '<h1 id="title">quadratic trained by sgd</h1>' in text
    table = re.search(r"<noscript>(.*?)</noscript>", text, re.DOTALL)[1]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)[1:]]
    assert len(rows) == 9
    flags = classes(runs)
    for row, rate in zip(rows, runs["learning_rate"].values, strict=True):
        assert row[0] == f"{rate:.6g}"
        assert [int(count) for count in row[1:-1]] == [int(flags[k].sel(learning_rate=rate).sum()) for k in CLASSES]


def test_thousands_of_runs_stay_below_ten_megabytes():
    runs = catapults({"learning_rate": np.geomspace(0.1, 4, 64)}, num_seeds=8, num_steps=400, every=1)
    given = contents(runs)
    assert len(given["steps"]) == 128
    size = len(page(given))
    fixed = len(page(contents(runs.isel(learning_rate=[0], seed=[0]))))
    assert fixed + 8 * (size - fixed) < 10e6, "4,096 runs of two curves and a map"
    crowded = contents(runs, max_bytes=1e5)
    assert 16 <= len(crowded["steps"]) < 128
    assert contents(runs, max_bytes=1e3)["curves"] == []


def test_a_sweep_without_losses_or_sharpness_has_a_report():
    runs = small(sharpness=False)
    given = contents(runs)
    assert given["thresholdOf"] == ""
    assert {measure["figure"] for measure in given["measures"]} == {"last", "peak"}
    bare = contents(runs.drop_vars(["loss", "peak_loss"]))
    assert [entry["label"] for entry in bare["classes"]] == ["finished", "non finite", "not run"]


def test_the_command_writes_a_report(tmp_path, capsys):
    sweep = sweep_of_size()
    store = Store.create(tmp_path / "runs", IDENTITY, layout_of(sweep), PER_TILE)
    for tile in range(store.num_tiles - 1):
        store.write(tile, tile_results(sweep, tile))
    assert main(["report", str(tmp_path / "runs")]) == 0
    assert "report.html" in capsys.readouterr().out
    given = data_of((tmp_path / "runs" / "report.html").read_text())
    assert all(entry["cause"] and entry["untested"] for entry in given["explained"])
    assert given["title"] == "line trained by sgd"
    assert given["classes"][-1]["count"] == len(sweep.tiles(PER_TILE)[-1]), "what was not run yet is said to be so"
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "other.html"), "--explain", "0"]) == 0
    assert data_of((tmp_path / "other.html").read_text())["explained"] == []
    assert main(["report", str(tmp_path / "runs"), "--explain", "-1"]) == 2
    assert main(["report", str(tmp_path / "nowhere")]) == 2


def test_bad_input_is_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match=r"path: expected a file to write, got the folder"):
        ll.write_report(small(), tmp_path)
    with pytest.raises(ValueError, match=r"runs: expected the xarray\.Dataset"):
        ll.write_report(small()["loss"], tmp_path / "report.html")
