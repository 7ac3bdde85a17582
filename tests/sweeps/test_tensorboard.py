"""Runs as TensorBoard reads them: every number of every record, at its step."""

import numpy as np
import pytest

import lossland as ll
from lossland.sweeps import tensorboard as export
from lossland.sweeps.sweep import Outcome
from tests.figures.synthetic import catapults

pytest.importorskip("tensorboard")
RUNS = catapults({"learning_rate": [0.1, 0.9, 3.0]}, num_seeds=2)


def read(folder):
    """Tag -> (steps, values), as TensorBoard's own reader has them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    log.Reload()
    return {
        tag: ([event.step for event in log.Scalars(tag)], [event.value for event in log.Scalars(tag)])
        for tag in log.Tags()["scalars"]
    }


@pytest.mark.filterwarnings("ignore")  # of tensorboard itself
def test_every_record_comes_back(tmp_path):
    runs = RUNS.copy()
    runs["status"] = runs["status"].copy()
    runs["status"][2, 1] = Outcome.not_run
    runs["layers"] = runs["loss"].expand_dims(layer=2, axis=-1) * np.array([1.0, 2.0])
    folders = ll.to_tensorboard(runs, tmp_path)
    assert len(folders) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in folders)
    for rate in (0.1, 3.0):
        found = read(tmp_path / f"learning_rate={rate:.6g},seed=0")
        one = runs.sel(learning_rate=rate, seed=0)
        assert set(found) == {"loss", "sharpness", "relative_sharpness", "layers/0", "layers/1"}
        for name in ("loss", "sharpness", "relative_sharpness"):
            steps, values = found[name]
            assert steps == one["step"].values.tolist()
            np.testing.assert_array_equal(np.float32(values), one[name].values.astype(np.float32))
        np.testing.assert_array_equal(np.float32(found["layers/1"][1]), (2 * one["loss"].values).astype(np.float32))
    assert np.isnan(found["loss"][1]).any(), "a run that blew up is shown as it is"


@pytest.mark.filterwarnings("ignore")
def test_one_run_and_what_is_refused(tmp_path, monkeypatch):
    (folder,) = ll.to_tensorboard(RUNS.isel(learning_rate=0, seed=1), tmp_path)
    assert folder.name == "learning_rate=0.1,seed=1"
    with pytest.raises(ValueError, match=r"folder: .* is not empty"):
        ll.to_tensorboard(RUNS.isel(learning_rate=0, seed=1), tmp_path)
    with pytest.raises(ValueError, match="runs: expected records over the axis step"):
        ll.to_tensorboard(RUNS.isel(step=0), tmp_path)
    monkeypatch.setattr(export, "MOST_RUNS", 3)
    with pytest.raises(ValueError, match="runs: expected at most 3 runs, got 6"):
        ll.to_tensorboard(RUNS, tmp_path)


def test_a_file_in_the_place_of_the_folder_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"folder: .* cannot be written \(Not a directory\)"):
        ll.to_tensorboard(RUNS, tmp_path / "file")


def test_a_missing_package_is_said_with_the_way_to_get_it(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(export.importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r'pip install "lossland\[tensorboard\]"'):
        ll.to_tensorboard(RUNS, tmp_path)
