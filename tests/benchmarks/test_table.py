"""The table is read from committed numbers, judged by them, and is what the documentation shows."""

import copy
import json
from pathlib import Path

import pytest

from benchmarks import table
from benchmarks.__main__ import PAGE, main


def test_every_row_of_the_committed_results_is_judged():
    found = {line.name: line for line in table.lines()}
    assert len(found) == len(table.ROWS), "names are distinct"
    assert found["T2: over `torch.func.vmap`"].verdict == "met"
    missed = [line for line in found.values() if line.verdict == "missed"]
    assert all(line.reason for line in missed), [line.name for line in missed if not line.reason]


def test_a_number_moves_its_verdict():
    results = copy.deepcopy(table.results())
    (row,) = (row for row in results["sweeps"]["rows"] if row["work"] == "T1")
    row["times_naive"]["lossland"] = 6.0
    name = table.ROWS[0].name
    assert next(line for line in table.lines(results) if line.name == name).verdict == "met"
    row["times_naive"]["lossland"] = 4.9
    line = next(line for line in table.lines(results) if line.name == name)
    assert (line.verdict, line.value, line.asked) == ("missed", "4.9 ×", "≥ 5 ×")
    results["imports"] = {}
    verdicts = {line.verdict for line in table.lines(results) if line.part == "imports"}
    assert verdicts == {"not measured"}


def test_reasons_are_read_from_what_was_measured():
    results = copy.deepcopy(table.results())
    (row,) = (row for row in results["sweeps"]["rows"] if row["work"] == "T3")
    row["times_naive"]["lossland"] = 1.0
    second = {"lossland": 1.23, "naive": 1.11}
    results["threads"] = {"rows": {"T3": {"second_core": second, "times_naive": {"1": 1.5}}}}
    one = {"work": "mlp, batch 128", "optimizer": "adam", "way": "loop", "ratio": 1.2, "same_bits": True}
    results["monitor"] = {"rows": [one | {"extra_microseconds": 41.0, "plain_microseconds": 205.0}]}
    found = {line.name: line for line in table.lines(results)}
    assert {"1.23", "1.11", "1.50"} <= set(found["T3: over the whole grid vmapped"].reason.replace(";", "").split())
    assert found["mlp, batch 128, adam, loop"].reason.startswith("41 µs on a step of 205 µs")
    assert found["share of these that end on the same bits with and without"].verdict == "met"
    results["threads"] = {}
    line = next(line for line in table.lines(results) if line.name == "T3: over the whole grid vmapped")
    assert line.reason.endswith("was not measured")


def test_the_page_is_the_one_that_the_numbers_give():
    assert PAGE.read_text() == table.markdown(), "run: python -m benchmarks --markdown"


def test_table_is_printed_without_running(capsys):
    assert main(["--table"]) == 0
    printed = capsys.readouterr().out
    for row in table.ROWS:
        assert row.name in printed


@pytest.mark.long
def test_imports_are_measured(tmp_path):
    from benchmarks import imports

    path = Path(tmp_path / "imports.json")
    assert imports.main(["--fast", "--json", str(path)]) == 0
    assert '"ratio"' in path.read_text()


@pytest.mark.long
def test_what_a_second_core_is_worth_is_measured(tmp_path):
    from benchmarks import threads

    path = Path(tmp_path / "threads.json")
    assert threads.main(["--fast", "--only", "8 wide", "top eigenvalues", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert rows["8 wide"]["second_core"]["lossland"] > 0
    assert rows["8 wide"]["times_naive"]["1"] > 0
    assert rows["top eigenvalues"]["second_core"]["lossland"] > 0
