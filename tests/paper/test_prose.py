"""No number of the text is typed, every one it asks for exists, captions say how their figure was made."""

import re

import pytest

from experiments.catalogue import STEMS, experiment
from paper import draw, numbers, prose
from paper.claims import audit, claims
from paper.sources import BENCHMARKS, PAPER, Results

TEXT = (PAPER / "main.tex").read_text(encoding="utf-8")
DOCUMENT = r"\begin{document}" + "\n{}\n" + r"\end{document}"


@pytest.fixture(scope="module")
def results():
    return Results()


class TestBareNumbers:
    def test_the_text_holds_none(self):
        assert prose.bare_numbers(TEXT) == []

    @pytest.mark.parametrize(
        "words", ["in 12 runs", "a rate of 0.01", r"about 5\,\%", "(3)", r"a \emph{7}", "20,000 steps"]
    )
    def test_typed_ones_are_found(self, words):
        assert len(prose.bare_numbers(DOCUMENT.replace("{}", words))) == 1

    @pytest.mark.parametrize(
        "words",
        [
            r"$2/\eta$",
            r"\val[int]{thresholds.optimizers_in_table} rows",
            r"\set[one]{slice_near}",
            "% 12 of them",
            r"\citep{cohen2021edge}",
            r"\begin{minipage}[t]{0.49\textwidth}",
            r"\includegraphics[width=0.92\textwidth]{confusion}",
        ],
    )
    def test_others_are_not(self, words):
        assert prose.bare_numbers(DOCUMENT.replace("{}", words)) == []


class TestMacros:
    def test_what_is_written_is_what_is_asked_for(self, results):
        written = numbers.written(results, TEXT)
        defined = set(re.findall(r"\\csname (\w+:\w*:[^\\]+)\\endcsname", written))
        shown = prose.by_profile(TEXT, lambda stem: numbers.in_full(results, stem))
        assert defined == {f"{macro}:{style}:{key}" for macro, style, key in numbers.asked(shown)}
        assert numbers.NOT_MEASURED not in written
        assert "{}" not in written.replace("{{}", ""), "an empty number"

    @pytest.mark.parametrize("profile", ["fast", "full"])
    def test_each_profile_measures_the_numbers_of_its_text(self, profile):
        text = prose.by_profile(TEXT, lambda stem: profile == "full")
        asked = {key.partition(".")[::2] for macro, _, key in numbers.asked(text) if macro != "set"}
        assert {key for key in asked if key[1] not in experiment(key[0]).table(profile)} == set()

    def test_text_by_profile(self):
        text = DOCUMENT.replace(
            "{}", r"a \byprofile{one}{b \val{one.c}}{d {e}} f \byprofile{two}{g}{\byprofile{one}{}{h}}"
        )
        assert prose.body(prose.by_profile(text, lambda stem: True)).split() == ["a", "b", "f", "g"]
        assert prose.by_profile(text, lambda stem: False).split("\n")[1] == "a d {e} f h"
        assert r"\val{one.c}" in prose.by_profile(text, lambda stem: stem == "one")
        assert r"\csname full:one\endcsname{0}" in numbers.written(Results(PAPER / "none"), text)

    @pytest.mark.parametrize("key", ["thresholds.no_such_number", "no_such_setting"])
    def test_what_does_not_exist_is_an_error(self, results, key):
        with pytest.raises(KeyError, match="no_such"):
            numbers.value_of(results, "val" if "." in key else "set", key)

    def test_every_style_is_known(self):
        assert {style for _, style, _ in numbers.asked(TEXT)} <= set(numbers.STYLES)

    @pytest.mark.parametrize(
        ("value", "digits", "shown"),
        [
            (3.55470, 5, "3.5547"),
            (288.539, 5, "288.54"),
            (1.23e-7, 2, r"\ensuremath{1.2\times10^{-7}}"),
            (0.0123, 2, "0.012"),
            (-2.5, 2, r"\ensuremath{-}2.5"),
            (0, 2, "0"),
            (64, 3, "64.0"),
            (float("inf"), 3, r"\ensuremath{\infty}"),
        ],
    )
    def test_significant_digits(self, value, digits, shown):
        assert numbers.scientific(value, digits) == shown

    @pytest.mark.parametrize(
        ("style", "value", "shown"),
        [
            ("upto", 2.4692e-6, r"\ensuremath{2.5\times10^{-6}}"),
            ("upto", 0.00852, "0.0086"),
            ("upto", 0.0085, "0.0085"),
            ("upto", 9.91, "10"),
            ("upto", 0, "0"),
            ("uptopercent", 0.0011712, r"0.12\,\%"),
            ("uptopercent", 0.012, r"1.2\,\%"),
            ("percent", 0.9788, r"98\,\%"),
            ("percent", 1.0, r"100\,\%"),
            ("percent", 0.99879, r"99.9\,\%"),
            ("percent", 0.0004, r"0.04\,\%"),
            ("percent", 0, r"0\,\%"),
            ("percent", [0.5, 1.0], r"50\,\% to 100\,\%"),
            ("permille", 0.99996, r"99.996\,\%"),
        ],
    )
    def test_bounds_are_rounded_up_and_shares_not_to_none_or_all(self, style, value, shown):
        assert numbers.STYLES[style](value) == shown

    def test_what_is_called_a_bound_is_written_as_one(self):
        """After "at most", "within" and "to a relative" no number is rounded to the nearest."""
        text = " ".join(TEXT.split())
        found = re.findall(
            r"(?:by at most|at most|within(?: a relative)?|to a relative) \\val(?:\[(\w*)\])?\{([^}]+)\}", text
        )
        assert len(found) >= 5
        assert [key for style, key in found if style not in ("upto", "uptopercent")] == []

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("adam_b1_0_95_median", "adam b1 0.95 median"),
            ("rate_0_01_falls_smoothly", "rate 0.01 falls smoothly"),
            ("onset_width_64", "onset width 64"),
            ("claim_a", "claim a: the rate is too high"),
            ("claim_b", "claim b"),
        ],
    )
    def test_targets_are_named_in_words(self, name, words):
        assert numbers.described(name, [{"letter": "a", "text": "the rate is too high"}]) == words


class TestCaptions:
    @pytest.mark.parametrize("files", [files for files, _ in prose.figures(TEXT)], ids=lambda files: files[0])
    def test_every_caption_names_its_experiments(self, files):
        caption = next(caption for found, caption in prose.figures(TEXT) if found == files)
        made = set(re.findall(r"\\made\{([^}]+)\}", caption))
        assert made, "a caption says how its figure was made"
        stems = {stem for stem in draw.stems() if any(re.fullmatch(rf"{stem}(_[a-z]+)?", file) for file in files)}
        assert stems, f"{files} are drawn by no script"
        benchmarks = {f"benchmarks/{path.stem}" for path in BENCHMARKS.glob("*.json")}
        assert made <= {source for stem in stems for source in draw.script(stem).SOURCES} | benchmarks

    def test_every_source_of_a_figure_is_named(self):
        made = set(re.findall(r"\\made\{([^}]+)\}", " ".join(prose.captions(TEXT))))
        assert {source for stem in draw.stems() for source in draw.script(stem).SOURCES} <= made

    def test_every_figure_is_shown(self):
        shown = {file for files, _ in prose.figures(TEXT) for file in files}
        assert set(draw.stems()) <= shown

    @pytest.mark.parametrize("stem", STEMS)
    def test_the_catalogue_names_figure_and_section(self, stem):
        shown = [number for number, (_, caption) in enumerate(prose.figures(TEXT), 1) if f"\\made{{{stem}}}" in caption]
        assert experiment(stem).figures == tuple(shown)
        assert rf"\section{{{experiment(stem).section}}}" in TEXT


class TestBibliography:
    ENTRIES = (PAPER / "references.bib").read_text(encoding="utf-8").split("\n@")

    def test_what_is_cited_is_listed_and_the_other_way_round(self):
        cited = {key for keys in re.findall(r"\\cite[tp]?\{([^}]+)\}", TEXT) for key in keys.split(",")}
        assert cited == {re.search(r"\{(\w+),", entry)[1] for entry in self.ENTRIES}

    def test_every_entry_has_authors_a_title_a_place_and_a_year(self):
        place = ("journal", "booktitle", "howpublished")
        for entry in self.ENTRIES:
            fields = set(re.findall(r"^  (\w+) = \{", entry, re.MULTILINE))
            assert {"author", "title", "year"} < fields, entry
            assert fields.intersection(place), entry


class TestClaims:
    def test_every_claim_is_borne_out(self, results):
        assert audit(results, TEXT, claims()) == []

    @pytest.mark.parametrize(
        ("held", "wrong"),
        [
            ({"n": {"verdict": "reproduced"}}, []),
            ({"n": {"verdict": "failed", "expected": 1, "measured": 2}}, ["s.n: failed: expected 1, measured 2"]),
            ({}, ["s.n: no summary holds it"]),
        ],
    )
    def test_a_target_that_fails_or_is_missing_is_found(self, held, wrong):
        class Judged:
            def has(self, stem):
                return True

            def targets(self, stem):
                return held

        text = r"\begin{abstract}We claim \val[int]{s.n} things.\end{abstract}"
        assert audit(Judged(), text, [{"words": "We claim", "targets": ["s.n"]}]) == wrong

    def test_a_number_is_proven_in_its_own_sentence(self, results):
        text = r"\begin{abstract}We claim it. Others give \val{catapult.onset_width_64} of it.\end{abstract}"
        claim = {"words": "We claim", "targets": ["catapult.onset_width_64"]}
        assert audit(results, text, [claim | {"words": "Others give"}]) == []
        assert len(audit(results, text, [claim])) == 1

    def test_a_claim_that_is_not_made_and_a_number_that_proves_none(self, results):
        listed = [*claims()[1:], {"words": "it makes coffee", "targets": claims()[1]["targets"]}]
        wrong = audit(results, TEXT, listed)
        assert any("coffee" in one for one in wrong)
        assert any("thresholds.optimizers_in_table" in one for one in wrong)
