"""No number of the text is typed, every one it asks for exists, captions say how their figure was made."""

import re

import pytest

from paper import draw, numbers, prose
from paper.claims import audit, claims
from paper.sources import PAPER, Results

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
        assert defined == {f"{macro}:{style}:{key}" for macro, style, key in numbers.asked(TEXT)}
        assert "{}" not in written.replace("{{}", ""), "an empty number"

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


class TestCaptions:
    @pytest.mark.parametrize("files", [files for files, _ in prose.figures(TEXT)], ids=lambda files: files[0])
    def test_every_caption_names_its_experiments(self, files):
        caption = next(caption for found, caption in prose.figures(TEXT) if found == files)
        made = set(re.findall(r"\\made\{([^}]+)\}", caption))
        assert made, "a caption says how its figure was made"
        stems = {stem for stem in draw.stems() if any(re.fullmatch(rf"{stem}(_[a-z]+)?", file) for file in files)}
        assert stems, f"{files} are drawn by no script"
        assert made <= {source for stem in stems for source in (*draw.script(stem).SOURCES, "benchmarks/sweeps")}

    def test_every_source_of_a_figure_is_named(self):
        made = set(re.findall(r"\\made\{([^}]+)\}", " ".join(prose.captions(TEXT))))
        assert {source for stem in draw.stems() for source in draw.script(stem).SOURCES} <= made

    def test_every_figure_is_shown(self):
        shown = {file for files, _ in prose.figures(TEXT) for file in files}
        assert set(draw.stems()) <= shown


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

    def test_a_claim_that_is_not_made_and_a_number_that_proves_none(self, results):
        listed = [*claims()[1:], {"words": "it makes coffee", "targets": claims()[1]["targets"]}]
        wrong = audit(results, TEXT, listed)
        assert any("coffee" in one for one in wrong)
        assert any("thresholds.optimizers_in_table" in one for one in wrong)
