"""A sweep on disk as a dataset that reads tiles when their numbers are asked for, and only those."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from lossland.arguments import FLAG, PATH, expects
from lossland.sweeps.store import DamagedTileError, Store
from lossland.sweeps.sweep import Sweep
from lossland.sweeps.trajectories import (
    blank_array,
    has_relative_sharpness,
    label,
    relative_sharpness,
    status_codes,
    threshold_of_runs,
)

CACHE = 2**26
"""Bytes of single tiles that are kept in memory for the next question, more if a few tiles take more."""
Rows = Callable[[np.ndarray, tuple[Any, ...]], np.ndarray]
"""(flat indices of runs, an indexer for each of a run's own axes) -> (run, ...)"""


@expects(path=PATH, lazy=FLAG)
def load(path: str | os.PathLike[str], lazy: bool = True) -> xr.Dataset:
    """Bring back the sweep saved in a folder, finished or not (`status` says which runs are not there).

    Args:
        path: folder that `ll.run(..., out=...)` wrote.
        lazy: read tiles when their numbers are asked for. False reads and checks all of them now.

    Raises:
        ValueError: if the folder holds no sweep. A damaged tile is named when it is read.
    """
    runs = xr.open_dataset(path, engine=_Backend)
    return runs if lazy else runs.load()


class _Backend(BackendEntrypoint):
    """How xarray opens a folder of tiles: it adds copy-on-write and keeps in memory what was read whole."""

    def open_dataset(self, filename_or_obj: Any, *, drop_variables: Any = None) -> xr.Dataset:
        return _open(Store.open(Path(filename_or_obj))).drop_vars(drop_variables or ())


def _open(store: Store) -> xr.Dataset:
    layout = store.layout
    tiles = _Tiles(store)
    shape = Sweep.from_json(layout["sweep"]).shape

    def lazy(own: list[int], dtype: Any, rows: Rows) -> Any:
        return indexing.LazilyIndexedArray(_GridArray(shape, tuple(own), np.dtype(dtype), rows))

    specs = layout["variables"]
    arrays = {
        name: lazy(spec["shape"], spec["dtype"], functools.partial(tiles.rows, name)) for name, spec in specs.items()
    }
    arrays["status"] = lazy([], np.int8, tiles.status)
    if has_relative_sharpness(layout):
        arrays["relative_sharpness"] = lazy(specs["sharpness"]["shape"], np.float64, tiles.relative_sharpness)
    return label(layout, arrays)


class _GridArray(BackendArray):
    """Array over (hyperparameters..., seed, a run's own axes...) whose runs are found by their flat index."""

    def __init__(self, grid: tuple[int, ...], own: tuple[int, ...], dtype: np.dtype, rows: Rows):
        self.grid, self.rows = grid, rows
        self.shape = (*grid, *own)
        self.dtype = dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        parts = zip(key.tuple, self.shape, strict=True)
        key = type(key)(tuple(_forward_if_empty(part, size) for part, size in parts))
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._outer)

    def _outer(self, key: tuple[Any, ...]) -> np.ndarray:
        chosen = [np.arange(size)[part] for size, part in zip(self.grid, key, strict=False)]
        points = np.ix_(*(np.atleast_1d(indices) for indices in chosen))
        runs = np.ravel_multi_index(points, self.grid)
        values = self.rows(runs.reshape(-1), key[len(self.grid) :])
        return values.reshape((*(len(indices) for indices in chosen if indices.ndim), *values.shape[1:]))


class _Tiles:
    """The tiles of a store, by run."""

    def __init__(self, store: Store):
        self.store = store
        places = Sweep.from_json(store.layout["sweep"]).tiles(store.runs_per_tile)
        sizes = [len(place) for place in places]
        order = np.concatenate(places)
        self.tile_of, self.place_of = np.empty_like(order), np.empty_like(order)
        self.tile_of[order] = np.repeat(np.arange(len(places)), sizes)
        self.place_of[order] = np.concatenate([np.arange(size) for size in sizes])
        self.there = np.isin(np.arange(len(places)), store.done())
        self.threshold = threshold_of_runs(store.layout)
        largest = max(_bytes_per_run(spec) for spec in store.layout["variables"].values()) * max(sizes)
        self.array = functools.lru_cache(max(8, CACHE // largest))(self._array)

    def __reduce__(self) -> Any:  # what was read stays behind
        return type(self), (self.store,)

    def rows(self, name: str, runs: np.ndarray, own: tuple[Any, ...]) -> np.ndarray:
        """One variable of some runs, read from the tiles that hold them; blank where there is no tile."""
        spec = self.store.layout["variables"][name]
        blank = _outer_indexed(blank_array((1, *spec["shape"]), spec["dtype"]), own)
        values = np.repeat(blank, len(runs), axis=0)
        tiles = self.tile_of[runs]
        order = np.argsort(tiles, kind="stable")
        for chosen in np.split(order, np.flatnonzero(np.diff(tiles[order])) + 1):
            if len(chosen) and self.there[tile := tiles[chosen[0]]]:
                values[chosen] = _outer_indexed(self.array(int(tile), name), own)[self.place_of[runs[chosen]]]
        return values

    def status(self, runs: np.ndarray, own: tuple[Any, ...]) -> np.ndarray:
        """`Outcome` codes of some runs."""
        return status_codes(self.rows("first_bad_step", runs, own), self.there[self.tile_of[runs]])

    def relative_sharpness(self, runs: np.ndarray, own: tuple[Any, ...]) -> np.ndarray:
        """Sharpness / threshold of some runs."""
        return relative_sharpness(self.rows("sharpness", runs, own), self.threshold[runs])

    def _array(self, tile: int, name: str) -> np.ndarray:
        arrays = self.store.read(tile, [name])
        if arrays is None:
            raise DamagedTileError(f"{self.store.path(tile)} was there when the sweep was loaded, and is gone")
        return arrays[name]


def _forward_if_empty(part: Any, size: int) -> Any:
    """Replace an empty slice: xarray turns slices with a negative step around, and fails at empty ones."""
    return slice(0, 0) if isinstance(part, slice) and not range(size)[part] else part


def _bytes_per_run(spec: dict[str, Any]) -> int:
    return math.prod(spec["shape"]) * np.dtype(spec["dtype"]).itemsize


def _outer_indexed(values: np.ndarray, own: tuple[Any, ...]) -> np.ndarray:
    """Index (run, ...) by one integer, slice or array for every axis after the first, each on its own."""
    for axis in reversed(range(len(own))):  # backwards, as integers drop their axis
        values = values[(slice(None),) * (axis + 1) + (own[axis],)]
    return values
