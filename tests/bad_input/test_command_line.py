"""Bad input to every command: exit code 2, a line that names it, no traceback, nothing written."""

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from lossland.cli import main
from lossland.problems import NAMES
from tests.bad_input.test_functions import no_hang

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="=,:\0", exclude_categories=("Cs", "Cc")), min_size=1)
WORDS = WORDS.filter(lambda text: not text.startswith("-") and text not in NAMES and text.strip() == text)
NO_NUMBER = WORDS.filter(lambda text: not _is_number(text))
SMALL = ["map", "quadratic", "--learning-rate", "0.1"]


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


BAD = {
    "command": st.tuples(NO_NUMBER).map(list),
    "problem": NO_NUMBER.map(lambda word: ["map", word]),
    "plan": NO_NUMBER.map(lambda word: ["plan", word]),
    "learning rate": NO_NUMBER.map(lambda word: ["map", "quadratic", "--learning-rate", word]),
    "range": st.sampled_from(
        ["1:0.1:5", "0:1:3", "1:2", "1:2:3:4", "1:2:1", "a:b:3", "1:2:²", "1:2:99999999999", "nan", "inf", ":", ","]
    ).map(lambda text: ["map", "quadratic", "--learning-rate", text]),
    "axis": NO_NUMBER.map(lambda word: [*SMALL, "--axis", f"{word}=1"]),
    "axis without value": WORDS.map(lambda word: [*SMALL, "--axis", word]),
    "optimizer": NO_NUMBER.map(lambda word: [*SMALL, "--optimizer", f"no {word}"]),
    "fix": NO_NUMBER.map(lambda word: [*SMALL, "--fix", f"momentum={word}"]),
    "option": NO_NUMBER.map(lambda word: [*SMALL, "--option", f"x{word}=1"]),
    "option value": st.sampled_from(["a", "nan,1", "-", "1;2"]).map(
        lambda text: [*SMALL, "--option", f"eigenvalues={text}"]
    ),
    "seeds": st.integers(max_value=0).map(lambda value: [*SMALL, f"--seeds={value}"]),
    "many seeds": st.integers(min_value=10**9).map(lambda value: [*SMALL, f"--seeds={value}"]),
    "steps": st.integers(max_value=0).map(lambda value: [*SMALL, f"--steps={value}"]),
    "many steps": st.integers(min_value=10**11).map(lambda value: [*SMALL, f"--steps={value}"]),
    "learning rates below 0": st.floats(max_value=0, allow_nan=False, allow_infinity=False).map(
        lambda value: ["map", "quadratic", f"--learning-rate={value}"]
    ),
    "every": st.integers(max_value=0).map(lambda value: [*SMALL, f"--every={value}"]),
    "batch size": st.integers(max_value=0).map(lambda value: [*SMALL, f"--batch-size={value}"]),
    "lane width": st.integers(max_value=0).map(lambda value: [*SMALL, f"--lane-width={value}"]),
    "no integer": NO_NUMBER.map(lambda word: [*SMALL, f"--seeds={word}"]),
    "dtype": NO_NUMBER.map(lambda word: [*SMALL, f"--dtype={word}"]),
    "part": st.sampled_from(["1", "2/2", "-1/2", "a/b", "1/0", "0.5/2"]).map(lambda text: [*SMALL, f"--part={text}"]),
    "dask": NO_NUMBER.map(lambda word: [*SMALL, f"--dask={word}"]),
    "reproduce": NO_NUMBER.map(lambda word: ["reproduce", word]),
    "explain": WORDS.map(lambda word: ["explain", f"nowhere {word}"]),
    "explain at": WORDS.map(lambda word: ["explain", "nowhere", "--at", word]),
    "status": WORDS.map(lambda word: ["status", f"nowhere {word}"]),
    "report": WORDS.map(lambda word: ["report", f"nowhere {word}"]),
    "rerun": st.integers(max_value=-1).map(lambda value: ["verify", "nowhere", f"--rerun={value}"]),
    "verify": WORDS.map(lambda word: ["verify", f"nowhere {word}"]),
    "flag": WORDS.map(lambda word: [*SMALL, f"--no-such-{word}"]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(BAD))
def test_bad_input_is_said_in_a_line(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    @seed(0)
    @settings(max_examples=5, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False)
    @given(BAD[kind])
    def property_(arguments):
        with no_hang():
            try:
                code = main(arguments)
            except SystemExit as stop:  # of the parser, which prints a box
                code = stop.code
        said = capsys.readouterr().err
        assert code == 2, f"{arguments}: exit code {code}"
        assert said.strip()
        assert "Traceback" not in said
        assert not list(tmp_path.iterdir()), "nothing is written"

    property_()


def test_a_file_that_cannot_be_written_is_said_in_a_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["reproduce", "linear_regression", "--fast", "--out", str(tmp_path / "file")]) == 1
    assert (
        capsys.readouterr().err.splitlines()[-1] == f"lossland: {tmp_path}/file/linear_regression-fast: Not a directory"
    )


def test_what_is_wrong_is_said_before_a_range_is_predicted(monkeypatch, capsys):
    """Rates that are not given are predicted from the sharpness, which trains."""
    monkeypatch.setattr("lossland.mapping.predicted_rates", lambda *given: pytest.fail("trained"))
    for option, word in (("--part=3", "part"), ("--batch-size=0", "batch_size"), ("--every=0", "every")):
        assert main(["map", "quadratic", option]) == 2
        assert word in capsys.readouterr().err


def test_a_count_too_large_is_told_its_limit(capsys):
    assert main([*SMALL, "--steps=100000000000"]) == 2
    assert "at most 2147483647" in capsys.readouterr().err


def test_help_points_to_where_the_problems_are_listed(capsys):
    with pytest.raises(SystemExit):
        main(["map", "--help"])
    assert "lossland --help" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out
    assert all(f"{name}:" in listed for name in NAMES)
