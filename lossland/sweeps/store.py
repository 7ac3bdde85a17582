"""Tiles on disk: a manifest and one checksummed file per tile, written whole or not at all. No pickle anywhere."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from lossland.sweeps.sweep import Sweep
from lossland.sweeps.trajectories import assemble, blank_array

FORMAT = 1
MANIFEST = "manifest.json"
IDENTITY = "__identity__"
Result = TypeVar("Result")


class OccupiedError(ValueError):
    """The folder holds something else; nothing was written to it."""


@dataclass(frozen=True)
class Store:
    """A folder that holds one sweep.

    Args:
        directory: the folder.
        identity: everything that decides bits; a folder never mixes two identities.
        layout: what `trajectories.assemble` needs.
        runs_per_tile: runs in one file.
    """

    directory: Path
    identity: dict[str, Any]
    layout: dict[str, Any]
    runs_per_tile: int

    @property
    def digest(self) -> str:
        """Hash of the identity, repeated inside every tile."""
        text = json.dumps(self.identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def create(cls, directory: Path, identity: dict[str, Any], layout: dict[str, Any], runs_per_tile: int) -> Store:
        """Open a folder for a sweep: a new one, or one that already holds part of the same sweep.

        Raises:
            OccupiedError: if the folder holds another sweep (what differs is named), or something that is no sweep.
        """
        if (directory / MANIFEST).exists():
            there = cls.open(directory)
            if differences := _differences(there.identity, identity):
                raise OccupiedError(
                    f"out: {directory} holds another sweep ({'; '.join(differences)}); choose another folder, or load "
                    "that one with ll.load"
                )
            return there
        if directory.exists() and any(not _is_leftover(path) for path in directory.iterdir()):
            raise OccupiedError(f"out: {directory} is not empty and holds no lossland sweep; choose another folder")
        directory.mkdir(parents=True, exist_ok=True)
        store = cls(directory, identity, layout, runs_per_tile)
        manifest = {"format": FORMAT, "identity": identity, "layout": layout, "runs_per_tile": runs_per_tile}
        write_whole(directory / MANIFEST, json.dumps(manifest, indent=1).encode())
        return store

    @classmethod
    def open(cls, directory: Path) -> Store:
        """Open a folder that holds a sweep.

        Raises:
            ValueError: if there is no manifest, or one that this version cannot read.
        """
        path = directory / MANIFEST
        if not path.exists():
            raise ValueError(f"path: {directory} holds no lossland sweep (no {MANIFEST})")
        try:
            manifest = json.loads(path.read_text())
            version = manifest["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"path: {path} is damaged: {error}") from error
        if version != FORMAT:
            raise ValueError(f"path: {path} has format {version}, this version of lossland reads format {FORMAT}")
        return cls(directory, manifest["identity"], manifest["layout"], manifest["runs_per_tile"])

    def path(self, tile: int) -> Path:
        """File of one tile."""
        return self.directory / f"tile-{tile:06d}.npz"

    def write(self, tile: int, arrays: dict[str, np.ndarray]) -> None:
        """Save one tile, whole or not at all."""
        buffer = io.BytesIO()
        mark = np.frombuffer(f"{self.digest} {tile}".encode(), np.uint8)
        np.savez(buffer, **{IDENTITY: mark}, **arrays)  # pyright: ignore[reportArgumentType]
        write_whole(self.path(tile), buffer.getvalue())

    def read(self, tile: int) -> dict[str, np.ndarray] | None:
        """Load one tile; None if it was never written.

        Raises:
            ValueError: if the file is damaged, or belongs to another sweep or place.
        """
        path = self.path(tile)
        if not path.exists():
            return None
        try:
            with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}  # zip checks every member's CRC-32 on reading
            mark = arrays.pop(IDENTITY).tobytes().decode()
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); delete it and run the sweep again to recompute it"
            ) from error
        if mark != f"{self.digest} {tile}":
            raise ValueError(
                f"{path} belongs to another sweep or another place in it; delete it and run the sweep again"
            )
        return arrays

    def done(self) -> list[int]:
        """Tiles that are on disk."""
        return sorted(int(path.stem.removeprefix("tile-")) for path in self.directory.glob("tile-*.npz"))


def in_free_folder(work: Callable[[Path], Result], folder: Path) -> tuple[Result, Path]:
    """Do some work in a folder or, where that holds something else, in the next of FOLDER-2, FOLDER-3, ...

    Returns:
        What the work returned, and the folder it was done in.
    """
    for number in itertools.count(1):
        place = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        with contextlib.suppress(OccupiedError):
            return work(place), place
    raise AssertionError("there is always a next number")


def _is_leftover(path: Path) -> bool:
    """Whether this is what a writer that was killed has left: a temporary file of `write_whole`."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all: temporary name, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "nt":  # a folder cannot be opened there, and renames need no fsync of it
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: str | os.PathLike[str]) -> xr.Dataset:
    """Bring back the sweep saved in a folder, finished or not (`status` says which runs are not there).

    Raises:
        ValueError: if the folder holds no sweep, or a damaged one.
    """
    store = Store.open(Path(path))
    layout = store.layout
    num_runs = layout["num_runs"]
    arrays = {
        name: blank_array((num_runs, *spec["shape"]), spec["dtype"]) for name, spec in layout["variables"].items()
    }
    done = np.zeros(num_runs, bool)
    places = Sweep.from_json(layout["sweep"]).tiles(store.runs_per_tile)
    for tile in store.done():
        place = places[tile]
        for name, values in (store.read(tile) or {}).items():
            arrays[name][place] = values
        done[place] = True
    return assemble(layout, arrays, done)


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    return [
        f"{name}: {_short(there.get(name))} there, {_short(here.get(name))} here"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
