"""The benchmark of sweeps runs, with tiny sizes; times are not judged."""

import json

import pytest


@pytest.mark.slow
def test_fast_report_has_its_rows(tmp_path):
    from benchmarks import sweeps

    assert sweeps.main(["--fast", "--only", "T1", "T4", "--json", str(tmp_path / "out.json")]) == 0
    rows = {row["work"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    assert set(rows) == {"T1", "T4"}
    for row in rows.values():
        assert {"naive", "lossland", "lossland, every step recorded"} <= set(row["seconds"])
        assert all(value > 0 for value in row["seconds"].values())
    assert sweeps.early_stop(True, 1)["share_of_run_steps_alive"] < 0.9
