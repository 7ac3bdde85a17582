"""The benchmark of sweeps runs, with tiny sizes; times are not judged."""

import json

import pytest


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # of the other tools, where they are installed
def test_fast_report_has_its_rows(tmp_path):
    from benchmarks import sweeps

    assert sweeps.main(["--fast", "--only", "T1", "--json", str(tmp_path / "out.json")]) == 0
    rows = {row["work"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    assert set(rows) == {"T1"}
    for row in rows.values():
        assert {"naive", "lossland", "lossland, every step recorded"} <= set(row["seconds"])
        assert all(value > 0 for value in row["seconds"].values())
    assert sweeps.early_stop(True, 1)["share_of_run_steps_alive"] < 0.9


@pytest.mark.filterwarnings("ignore")
def test_pytorch_trains_the_same_runs():
    """The contestants in PyTorch end at the losses of the naive way: the work is the same."""
    pytest.importorskip("torch")
    import numpy as np

    from benchmarks import sweeps, torch_peers

    for work in sweeps.works(True)[:3]:
        exact = np.asarray(sweeps.naive(work)())
        params, rates = sweeps.starts(work)
        leaves = [np.asarray(leaf) for leaf in sweeps.jax.tree.leaves(params)]
        data = tuple(torch_peers.tensor(np.float32(leaf)) for leaf in work.problem.data)
        # The naive way returns the loss before its last update.
        batched = torch_peers.train_all_by_vmap(work.name, leaves, data, rates, work.num_steps - 1)
        np.testing.assert_allclose(batched, exact, rtol=2e-4, atol=1e-6)
        eager = torch_peers.train_eagerly(
            work.name, [leaf[3] for leaf in leaves], data, float(rates[3]), work.num_steps
        )
        np.testing.assert_allclose(eager, exact[3], rtol=2e-4, atol=1e-6)
