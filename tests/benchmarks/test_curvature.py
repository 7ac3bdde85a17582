"""The benchmark of curvature runs, with tiny sizes."""

import pytest


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # of the other tools, where they are installed
def test_fast_report_has_its_rows():
    pytest.importorskip("sklearn")
    from benchmarks import curvature

    report = curvature.main(["--fast", "--only", "a", "c", "dense", "memory"])
    for name in ("ours cold", "ours top 5", "ours warm, 5 steps"):
        assert report["a"]["rows"][name]["converged"]
        assert report["a"]["rows"][name]["relative_error"] < 1e-5
    assert report["c"]["ours, mapped"]["largest_relative_error"] < 1e-5
    assert report["dense"]["float32"]["converged"]
    assert report["dense"]["float32"]["top_relative_error"] < 1e-5
    assert report["dense"]["float64"]["lowest_relative_error"] < 1e-7
    assert report["memory"]["converged"]
    assert report["memory"]["stated_megabytes"] > 0
