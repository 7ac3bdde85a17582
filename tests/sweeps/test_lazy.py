"""Lazy loading gives what eager labelling gives, whatever is asked for; exports come back as they went."""

import copy
import pickle
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import lossland as ll
from lossland.figures.reading import boundaries, curves
from lossland.sweeps.store import DamagedTileError, Store
from lossland.sweeps.sweep import Sweep
from lossland.sweeps.trajectories import assemble, blank_array
from tests.sweeps.synthetic import IDENTITY, PER_TILE, layout_of, results_of, sweep_of_size, tile_results

SWEEP = sweep_of_size()
MISSING = 2


def store_of(folder: Path, missing: tuple[int, ...] = ()) -> Store:
    store = Store.create(folder, IDENTITY, layout_of(SWEEP), PER_TILE)
    for tile in {*range(store.num_tiles)} - {*missing}:
        store.write(tile, tile_results(SWEEP, tile))
    return store


def eager(missing: tuple[int, ...] = ()) -> xr.Dataset:
    """What ll.run labels: no file, no laziness."""
    arrays, done = results_of(SWEEP), np.ones(SWEEP.num_runs, bool)
    for tile in missing:
        place = SWEEP.tiles(PER_TILE)[tile]
        done[place] = False
        for values in arrays.values():
            values[place] = blank_array(values[place].shape, values.dtype)
    return assemble(layout_of(SWEEP), arrays, done)


@pytest.fixture
def reads(monkeypatch):
    """(tile, names) of every file that is read."""
    seen = []
    read = Store.read

    def spy(self, tile, names=None):
        seen.append((tile, names))
        return read(self, tile, names)

    monkeypatch.setattr(Store, "read", spy)
    return seen


@pytest.fixture
def scattered(monkeypatch):
    """Tiles whose runs are not neighbours in the grid."""

    def tiles(self, runs_per_tile):
        order = np.random.default_rng(3).permutation(self.num_runs)
        return [order[start : start + runs_per_tile] for start in range(0, self.num_runs, runs_per_tile)]

    monkeypatch.setattr(Sweep, "tiles", tiles)


def random_indexer(rng: np.random.Generator, size: int):
    kind = rng.integers(6)
    if kind == 0:
        return int(rng.integers(-size, size))
    if kind == 1:
        start, stop = rng.integers(-size - 1, size + 2, 2)
        return slice(int(start), int(stop), int(rng.choice([-3, -2, -1, 1, 2])))
    if kind == 2:
        return [int(index) for index in rng.integers(-size, size, rng.integers(0, 5))]
    if kind == 3:
        return rng.integers(0, size, rng.integers(1, 7))
    if kind == 4:
        return rng.random(size) < 0.5
    return slice(None)


class TestIndexing:
    @pytest.mark.parametrize("missing", [(), (MISSING,)])
    def test_everything(self, tmp_path, missing):
        store_of(tmp_path, missing)
        xr.testing.assert_identical(ll.load(tmp_path), eager(missing))
        xr.testing.assert_identical(ll.load(tmp_path, lazy=False), eager(missing))

    def test_scattered_tiles(self, tmp_path, scattered):
        store_of(tmp_path, (MISSING,))
        xr.testing.assert_identical(ll.load(tmp_path), eager((MISSING,)))

    @pytest.mark.parametrize("seed", range(4))
    def test_random_indexers(self, tmp_path, seed, scattered):
        rng = np.random.default_rng(seed)
        store_of(tmp_path, (MISSING,))
        expected = eager((MISSING,))
        for _ in range(40):
            loaded = ll.load(tmp_path)
            first = {dim: random_indexer(rng, expected.sizes[dim]) for dim in expected.dims if rng.random() < 0.7}
            here, there = loaded.isel(first), expected.isel(first)
            second = {
                dim: random_indexer(rng, size) for dim, size in there.sizes.items() if size and rng.random() < 0.4
            }
            name = str(rng.choice(list(expected.data_vars)))
            xr.testing.assert_identical(here.isel(second)[name], there.isel(second)[name])
            xr.testing.assert_identical(here, there)

    def test_selection_by_value_and_by_points(self, tmp_path):
        store_of(tmp_path)
        loaded, expected = ll.load(tmp_path), eager()
        for select in (
            lambda runs: runs.sel(learning_rate=0.05, momentum=0.9, seed=1, method="nearest"),
            lambda runs: runs.sel(learning_rate=[0.011, 0.9], method="nearest").isel(step=-1),
            lambda runs: runs.sel(learning_rate=slice(0.02, 0.5), step=slice(4, None)),
            lambda runs: runs.isel(
                learning_rate=xr.DataArray([0, 3, 1], dims="run"), seed=xr.DataArray([2, 0, 0], dims="run")
            ),
            lambda runs: runs.sortby("learning_rate", ascending=False),
            lambda runs: runs.where(runs["status"] == ll.Outcome.finished),
            lambda runs: runs.stack(run=["learning_rate", "seed"]).reset_index("run"),
            lambda runs: runs["loss"].median("seed"),
            lambda runs: runs.to_dataframe().to_xarray(),
        ):
            xr.testing.assert_identical(select(loaded), select(expected))
            xr.testing.assert_identical(select(ll.load(tmp_path)), select(expected))

    def test_a_sweep_without_axes(self, tmp_path):
        sweep = Sweep({}, 3, num_steps=4, every=2, lane_width=1)
        layout = layout_of(SWEEP) | {
            "sweep": sweep.to_json(),
            "variables": {"first_bad_step": layout_of(SWEEP)["variables"]["first_bad_step"]},
            "threshold": {"values": [2.0], "attributes": {"preconditioned": 0}},
        }
        store = Store.create(tmp_path, IDENTITY, layout, 2)
        store.write(0, {"first_bad_step": np.array([-1, 4], np.int32)})
        assert ll.load(tmp_path)["status"].values.tolist() == [1, 2, 0]


class TestLaziness:
    def test_nothing_is_read_before_it_is_asked_for(self, tmp_path, reads):
        store_of(tmp_path)
        loaded = ll.load(tmp_path)
        repr(loaded)
        one = loaded.sel(learning_rate=0.01, momentum=0, seed=0, method="nearest")
        assert (loaded.sizes["step"], loaded["loss"].dtype, loaded["threshold"].shape) == (7, np.float32, (4, 2))
        assert reads == []
        one["loss"].values  # noqa: B018
        assert reads == [(0, ["loss"])]
        loaded["status"].values  # noqa: B018
        assert reads[1:] == [(tile, ["first_bad_step"]) for tile in range(5)]

    def test_the_same_tile_is_read_once(self, tmp_path, reads):
        store_of(tmp_path)
        loaded = ll.load(tmp_path)
        for seed in range(3):
            loaded["loss"].isel(learning_rate=0, momentum=0, seed=seed).values  # noqa: B018
        assert reads == [(0, ["loss"])]

    def test_writing_into_it_changes_no_other_dataset(self, tmp_path):
        store_of(tmp_path)
        loaded = ll.load(tmp_path)
        changed = loaded.copy(deep=True)
        changed["loss"][:] = 0
        part = loaded["loss"].isel(seed=0).copy()
        part[:] = 0
        xr.testing.assert_identical(loaded, eager())

    def test_copies_and_pickles(self, tmp_path):
        store_of(tmp_path)
        loaded = ll.load(tmp_path)
        for other in (loaded.copy(deep=True), copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
            xr.testing.assert_identical(other, eager())

    def test_what_has_happened_since_is_named(self, tmp_path):
        store = store_of(tmp_path)
        cases = {
            3: lambda path: path.write_bytes(path.read_bytes()[:-5]),
            1: lambda path: path.write_bytes(store.path(0).read_bytes()),
            4: lambda path: path.unlink(),
        }
        for tile, spoil in cases.items():
            loaded = ll.load(tmp_path)
            spoil(store.path(tile))
            with pytest.raises(DamagedTileError, match=rf"tile-00000{tile}\.npz"):
                loaded["loss"].isel(learning_rate=tile * PER_TILE // 6).values  # noqa: B018
            store.write(tile, tile_results(SWEEP, tile))
        xr.testing.assert_identical(ll.load(tmp_path), eager())

    def test_a_tile_written_again_is_the_same(self, tmp_path):
        store = store_of(tmp_path)
        loaded = ll.load(tmp_path)
        store.set_aside(1)
        store.write(1, tile_results(SWEEP, 1))
        xr.testing.assert_identical(loaded, eager())

    def test_maps_and_figures_read_it(self, tmp_path):
        store_of(tmp_path, (MISSING,))
        one = ll.load(tmp_path).isel(momentum=0)
        other = eager((MISSING,)).isel(momentum=0)
        for compute in (
            ll.stability_map,
            ll.critical_learning_rate,
            boundaries,
            lambda runs: curves(runs, "loss", runs["learning_rate"].values[:1]),
        ):
            xr.testing.assert_identical(compute(one), compute(other))

    def test_opening_costs_neither_time_nor_memory(self, tmp_path):
        """A sweep of 20 GB of which two tiles exist: read to its end, a run takes one tile's worth of memory."""
        sweep = sweep_of_size(rates=1024, momenta=1, seeds=64, num_steps=100_000)
        store = Store.create(tmp_path, IDENTITY, layout_of(sweep), 8)
        for tile in (0, 1000):
            place = sweep.tiles(8)[tile]
            store.write(
                tile,
                {
                    name: np.full((len(place), *spec["shape"]), tile + 0.5).astype(spec["dtype"])
                    for name, spec in store.layout["variables"].items()
                },
            )
        tracemalloc.start()
        start = time.perf_counter()
        loaded = ll.load(tmp_path)
        seconds = time.perf_counter() - start
        assert loaded.nbytes > 20e9
        run = loaded["loss"].isel(learning_rate=125, momentum=0, seed=0)
        assert (run == 1000.5).all()
        assert (loaded["status"] != ll.Outcome.not_run).sum() == 16
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert seconds < 5
        assert peak < 50e6


def assert_same_numbers(back: xr.Dataset, runs: xr.Dataset) -> None:
    xr.testing.assert_equal(back, runs)
    for name, values in {**runs.data_vars, **runs.coords}.items():
        assert back[name].dtype == values.dtype, name
        assert_same_attributes(back[name].attrs, values.attrs)
    assert_same_attributes(back.attrs, runs.attrs)


def assert_same_attributes(back: dict, attributes: dict) -> None:
    assert set(back) == set(attributes)
    for name, value in attributes.items():
        assert np.all(np.asarray(back[name]) == np.asarray(value)), name


class TestExport:
    @pytest.fixture(params=["run", "load", "large"])
    def runs(self, request, tmp_path):
        if request.param == "large":  # attributes past the 64 kB that HDF5 keeps in a header
            sweep = sweep_of_size(rates=8000, momenta=1, seeds=1, num_steps=2)
            return assemble(layout_of(sweep), results_of(sweep), np.ones(sweep.num_runs, bool))
        store_of(tmp_path / "runs", (MISSING,))
        return eager((MISSING,)) if request.param == "run" else ll.load(tmp_path / "runs")

    def test_netcdf(self, runs, tmp_path):
        runs.to_netcdf(tmp_path / "runs.nc")
        with xr.open_dataset(tmp_path / "runs.nc") as back:
            assert_same_numbers(back, runs)

    @pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
    def test_zarr(self, runs, tmp_path):
        runs.to_zarr(tmp_path / "runs.zarr")
        with xr.open_zarr(tmp_path / "runs.zarr", chunks=None) as back:
            assert_same_numbers(back, runs)
            ll.stability_map(back)
