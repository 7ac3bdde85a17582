"""The five cases: claims are read where they lie, counted, printed, and told."""

import json

import numpy as np
import pytest
from PIL import Image

from lossland.cli import main
from lossland.reproductions import NAMES
from lossland.reproductions.cases import CASES, FIGURES, counted, stories, table
from lossland.reproductions.claims import Claim, save_claims
from lossland.reproductions.estimates import Estimate

LETTERS = dict(zip(CASES, ("abcdef", "abcde", "abcdef", "abcdef", "abcde"), strict=True))


def claims_of(case):
    return [
        Claim(
            case,
            letter,
            f"claim {letter} | of it",
            ("supported", "refuted")[place % 2],
            "share of seeds",
            0.5,
            0.25,
            0.75,
            "the other run",
        )
        for place, letter in enumerate(LETTERS[case])
    ]


@pytest.fixture
def folder(tmp_path):
    for case in CASES:
        save_claims(claims_of(case), tmp_path / f"{case}-fast" / "claims")
    figure = np.random.default_rng(0).integers(0, 255, (300, 2100, 3), dtype=np.uint8)
    Image.fromarray(figure).save(tmp_path / f"course_mlp-fast/{FIGURES['course_mlp']}.png")
    (tmp_path / "course_mlp-fast/size.txt").write_text("8 seeds\n")
    (tmp_path / "keras_lstm-fast/size.txt").write_text("Size(seeds=8, small=((4, 2), 12))\n")
    return tmp_path


def test_finished_cases_are_read_and_counted(folder, capsys):
    assert main(["reproduce", "--cases", "--fast", "--out", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "28 claims of 5 cases: 15 supported, 13 refuted, 0 depends" in out
    assert out.count("counterfactual: the other run") == 28
    assert [line for line in out.splitlines() if line in CASES] == list(CASES)
    saved = json.loads((folder / "cases.json").read_text())
    assert [claim["letter"] for claim in saved if claim["case"] == "keras_lstm"] == list("abcdef")
    with Image.open(folder / "images/story_course_mlp.png") as small:
        assert small.size == (1400, 200)
    assert (folder / "stories.md").read_text().count("This run: 8 seeds") == 1
    assert "\nThis run: `seeds=8, small=((4, 2), 12)`\n" in (folder / "stories.md").read_text()


def test_json_is_all_that_is_printed(folder, capsys):
    assert main(["reproduce", "--cases", "--fast", "--json", "--out", str(folder)]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 28


def test_the_stories_hold_every_claim_and_leave_no_place_unfilled():
    text = stories({case: claims_of(case) for case in CASES})
    assert "{{" not in text
    assert text.count("claim a \\| of it") == 5
    assert "50 % [25, 75]" in text
    assert all(f"images/story_{case}.png" in text for case in CASES)


def test_a_story_without_its_claims_is_refused():
    with pytest.raises(ValueError, match=r"no claim for \{\{keras_lstm\.a\.percent\}\}"):
        stories({case: claims_of(case) for case in CASES if case != "keras_lstm"})


def test_a_condition_stands_beside_its_verdict():
    claim = Claim("some", "a", "it is so", "depends", "share", 0.5, 0.0, 1.0, "the other", "above 1e-3")
    assert "| **depends**: above 1e-3 |" in table([claim])
    assert counted([claim]) == "1 claims of 1 cases: 0 supported, 0 refuted, 1 depends"


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((225.0, 150.0, 400.0), "225 [150, 400]"),
        ((225.0, 150.0, np.inf), "225 [150, beyond 800]"),
        ((np.inf, 150.0, np.inf), "none up to 800 (interval from 150 on)"),
        ((np.inf, np.inf, np.inf), "none up to 800"),
    ],
)
def test_what_lies_beyond_a_run_is_said_in_words(numbers, words):
    assert Estimate(*numbers).within(800) == words


def test_losses_that_all_overflowed_have_no_interval():
    assert str(Estimate(np.inf, np.inf, np.inf)) == "inf"


def test_names_exclude_each_other(capsys):
    assert main(["reproduce", "thresholds", "--cases"]) == 2
    assert "--cases takes no name" in capsys.readouterr().err
    assert set(CASES) <= set(NAMES)
