"""Folders of other formats: the first one is read, a later one is refused in words. And what runs are exported to."""

import json
import shutil
from pathlib import Path

import numpy as np
import optax
import pytest

import lossland as ll
from lossland.sweeps.store import FORMAT, DamagedTileError
from tests.figures.synthetic import catapults

FIRST = Path(__file__).parent / "format_1"
"""Written by the library when its format was 1: gradient descent on w^2 / 2 from w = 1, three rates, two seeds."""
RATES = np.array([0.5, 1.5, 3.0])


@pytest.mark.parametrize("lazy", [True, False])
def test_the_first_format_is_read(lazy):
    runs = ll.load(FIRST, lazy=lazy)
    assert runs["loss"].dims == ("learning_rate", "seed", "step")
    np.testing.assert_array_equal(runs["learning_rate"], RATES)
    np.testing.assert_array_equal(runs["step"], [0, 2, 4])
    exact = 0.5 * (1 - RATES[:, None, None]) ** (2 * np.array([0, 2, 4]))
    np.testing.assert_allclose(runs["loss"], np.broadcast_to(exact, (3, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(runs["relative_sharpness"].isel(step=0), np.repeat(RATES[:, None] / 2, 2, 1), rtol=1e-5)
    assert (runs["status"] == ll.Outcome.finished).all()
    assert ll.stability_map(runs)["diverges"].values.tolist() == [0.0, 0.0, 1.0]


def test_damage_is_seen_in_the_first_format_too(tmp_path):
    shutil.copytree(FIRST, tmp_path / "runs")
    tile = sorted((tmp_path / "runs").glob("tile-*.npz"))[0]
    content = bytearray(tile.read_bytes())
    content[len(content) // 2] ^= 0xFF
    tile.write_bytes(content)
    with pytest.raises(DamagedTileError, match=tile.name):
        ll.load(tmp_path / "runs", lazy=False)


def test_the_first_format_is_not_written_to(tmp_path):
    shutil.copytree(FIRST, tmp_path / "runs")
    before = {path.name: path.read_bytes() for path in (tmp_path / "runs").iterdir()}
    problem = ll.problems.named("quadratic")
    sweep = ll.Sweep({"learning_rate": RATES}, 2, 4, 2)
    with pytest.raises(ValueError, match="choose another folder"):
        ll.run(problem, optax.sgd, sweep, out=tmp_path / "runs", progress=False)
    assert {path.name: path.read_bytes() for path in (tmp_path / "runs").iterdir()} == before


def test_a_later_format_is_refused_by_its_number(tmp_path):
    manifest = json.loads((FIRST / "manifest.json").read_text())
    later = {**manifest, "format": FORMAT + 1, "written_by": "lossland 9.9.9"}
    (tmp_path / "manifest.json").write_text(json.dumps(later))
    with pytest.raises(ValueError, match=rf"format {FORMAT + 1}, written by lossland 9\.9\.9; .* reads formats 1 to"):
        ll.load(tmp_path)


def test_a_table_of_pandas_has_every_number():
    runs = catapults({"learning_rate": RATES}, num_seeds=2)
    table = runs[["loss", "sharpness", "status"]].to_dataframe()
    assert len(table) == runs["loss"].size
    assert table.loc[(1.5, 1, 4), "loss"] == float(runs["loss"].sel(learning_rate=1.5, seed=1, step=4))
    back = table.to_xarray()
    np.testing.assert_array_equal(back["loss"].transpose(*runs["loss"].dims), runs["loss"])
