"""Claims: what they hold, when they are refused, how they are printed and kept."""

import math

import pytest

from lossland.reproductions.claims import Claim, format_claims, load_claims, save_claims, side_of

GOOD = {
    "case": "some_case",
    "letter": "a",
    "text": "it is the rate",
    "verdict": "supported",
    "quantity": "share of runs",
    "value": 0.75,
    "low": 0.5,
    "high": 0.875,
    "counterfactual": "half the rate: 0 of 16",
}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"verdict": "true"}, "verdict: expected one of supported, refuted, depends, got 'true'"),
        ({"verdict": "depends"}, r"condition: claim \(a\) depends"),
        ({"value": 0.9}, r"value: expected it in \[0.5, 0.875\], got 0.9"),
        ({"value": math.nan}, "value: expected"),
    ],
)
def test_claims_that_are_not_settled_are_refused(changed, words):
    with pytest.raises(ValueError, match=words):
        Claim(**{**GOOD, **changed})


def test_an_interval_decides_only_where_it_clears_the_level():
    assert side_of(0.51, 0.9) == "supported"
    assert side_of(0.1, 0.49) == "refuted"
    assert side_of(0.4, 0.6) == "depends"
    assert side_of(0.4, 0.6, 0.3) == "supported"


def test_they_come_back_as_they_were_written(tmp_path):
    claims = [
        Claim(**GOOD),
        Claim(**{**GOOD, "letter": "b", "verdict": "depends", "condition": "above 1e-3", "high": math.inf}),
    ]
    assert load_claims(save_claims(claims, tmp_path / "new" / "claims")) == claims


def test_the_table_shows_verdict_number_interval_counterfactual_and_condition():
    long = Claim(**{**GOOD, "verdict": "depends", "condition": "word " * 40})
    text = format_claims([long])
    for part in ("(a) depends", "it is the rate", "share of runs: 0.75 [0.5, 0.875]", "half the rate: 0 of 16"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 112
