"""The benchmark of the monitor runs, with tiny sizes; times are not judged, bits are."""

import json

import pytest


@pytest.mark.long
def test_fast_report_has_its_rows(tmp_path):
    pytest.importorskip("sklearn")
    from benchmarks import monitor

    assert monitor.main(["--fast", "--only", "mlp, batch 128", "--json", str(tmp_path / "out.json")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert {(row["optimizer"], row["way"]) for row in rows} == {
        (optimizer, way) for optimizer in monitor.OPTIMIZERS for way in ("loop", "scan")
    }
    assert all(row["same_bits"] and row["ratio"] > 0 for row in rows)
