"""One sweep in one folder: a manifest, a file per tile, a checkpoint per unfinished tile. Bad files are set aside."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lossland import __version__
from lossland.sweeps.archive import is_temporary, pack, remove_abandoned, unpack, write_whole
from lossland.sweeps.sweep import Sweep

FORMAT = 2
FIRST_FORMAT = 1
"""Tiles with a mark of their own and the CRC-32 of a zip file, in folders that are read and never written to."""
FIRST_MARK = "__identity__"
MANIFEST = "manifest.json"
LIBRARIES = ("lossland", "jax", "jaxlib", "optax")
"""Entries of the identity that are versions of software."""
Result = TypeVar("Result")


class OccupiedError(ValueError):
    """The folder holds something else; nothing was written to it."""


class DamagedTileError(ValueError):
    """A tile's file is not what was written there."""


class StorageError(OSError):
    """The folder cannot be read or written now: full, read-only, forbidden or gone. What was saved is safe."""


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
    format: int = FORMAT

    @functools.cached_property
    def digest(self) -> str:
        """Hash of the identity, repeated inside every tile."""
        return _sha256(self.identity)

    @property
    def num_tiles(self) -> int:
        """Tiles of the whole sweep, on disk or not."""
        return len(Sweep.from_json(self.layout["sweep"]).tiles(self.runs_per_tile))

    @classmethod
    def create(cls, directory: Path, identity: dict[str, Any], layout: dict[str, Any], runs_per_tile: int) -> Store:
        """Open a folder for a sweep: a new one, or one that already holds part of the same sweep.

        Several processes may do so at once: one of them creates the sweep, the others open it.

        Raises:
            OccupiedError: if the folder holds another sweep (what differs is named), or something that is no sweep.
            ValueError: if its manifest cannot be read.
            StorageError: if the folder cannot be written.
        """
        store = cls(directory, identity, layout, runs_per_tile)
        content = store._manifest()
        with store._explained(directory, len(content)):
            # Listed before the manifest is looked for: another process may create the sweep in between.
            strangers = directory.exists() and any(not is_temporary(path) for path in directory.iterdir())
            if not (directory / MANIFEST).exists():
                if strangers:
                    raise OccupiedError(
                        f"out: {directory} is not empty and holds no lossland sweep; choose another folder"
                    )
                directory.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileExistsError):
                    write_whole(directory / MANIFEST, content, exclusive=True)
        there = cls.open(directory)
        if refusal := _refusal(directory, there.identity, identity):
            raise OccupiedError(refusal)
        if there.format != FORMAT:
            raise OccupiedError(
                f"out: {directory} has format {there.format}, which is read and no longer written; choose another "
                "folder, or load that one with ll.load"
            )
        there._tidy()
        return there

    @classmethod
    def open(cls, directory: Path) -> Store:
        """Open a folder that holds a sweep.

        Raises:
            ValueError: if there is no manifest, or one that this version cannot read.
            StorageError: if reading it is not permitted.
        """
        path = directory / MANIFEST
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(f"path: {directory} holds no lossland sweep (no {MANIFEST})") from error
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error
        try:
            manifest = json.loads(content)
            version = manifest["format"]
            if version == FORMAT and manifest.pop("sha256") != _sha256(manifest):
                raise ValueError("its SHA-256 is another one")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"path: {path} is damaged ({error}); nothing was changed there. Bring it back from a copy, or choose "
                "another folder to run the sweep again"
            ) from error
        if version not in (FIRST_FORMAT, FORMAT):
            raise ValueError(
                f"path: {path} has format {version}, written by {manifest.get('written_by', 'another lossland')}; this "
                f"is lossland {__version__}, which reads formats {FIRST_FORMAT} to {FORMAT}. Nothing was changed "
                "there: use that version, or choose another folder"
            )
        return cls(directory, manifest["identity"], manifest["layout"], manifest["runs_per_tile"], version)

    def path(self, tile: int) -> Path:
        """File of one tile."""
        return self.directory / f"tile-{tile:06d}.npz"

    def checkpoint_path(self, tile: int) -> Path:
        """File of the checkpoint of one unfinished tile."""
        return self.directory / f"checkpoint-{tile:06d}.npz"

    def write(self, tile: int, arrays: dict[str, np.ndarray]) -> None:
        """Save one tile, whole or not at all, and drop its checkpoint.

        Raises:
            StorageError: if the disk is full, or the folder is read-only, forbidden or gone.
        """
        self._write(self.path(tile), pack(self._mark("tile", tile), arrays))
        with contextlib.suppress(OSError):  # beside a finished tile a checkpoint is never read
            self.checkpoint_path(tile).unlink(missing_ok=True)

    def read(self, tile: int, names: Iterable[str] | None = None) -> dict[str, np.ndarray] | None:
        """Load one tile, or only the arrays called `names`; None if it was never written.

        Raises:
            DamagedTileError: if the file is damaged, or belongs to another sweep or place.
            StorageError: if reading it is not permitted.
        """
        path = self.path(tile)
        try:
            if self.format == FIRST_FORMAT:
                return self._read_first(path, tile, names)
            found = self._read(path, self._mark("tile", tile), names)
        except ValueError as error:
            raise DamagedTileError(
                f"{path} is damaged: {error}. When the sweep is run again with the same call, the file is set aside "
                "and the tile recomputed"
            ) from error
        return None if found is None else found[1]

    def set_aside(self, tile: int) -> Path:
        """Rename a bad tile to `tile-000003.npz.damaged-1` (the next free number). Nothing is deleted."""
        return self._set_aside(self.path(tile))

    def write_checkpoint(self, tile: int, step: int, arrays: dict[str, np.ndarray]) -> None:
        """Save the state of an unfinished tile in place of its previous one, whole or not at all.

        Raises:
            StorageError: as `write`.
        """
        self._write(self.checkpoint_path(tile), pack({**self._mark("checkpoint", tile), "step": int(step)}, arrays))

    def read_checkpoint(self, tile: int) -> tuple[int, dict[str, np.ndarray]] | None:
        """Load the state of an unfinished tile: (step, arrays); None if there is none.

        One that is damaged or foreign is set aside with a warning: nothing but time is lost.
        """
        path = self.checkpoint_path(tile)
        try:
            return self.check_checkpoint(tile)
        except ValueError as error:
            aside = self._set_aside(path)
            warnings.warn(f"{path} is damaged: {error}. It is now {aside.name}; the tile starts anew", stacklevel=2)
            return None

    def check_checkpoint(self, tile: int) -> tuple[int, dict[str, np.ndarray]] | None:
        """Do as `read_checkpoint`, but leave a bad file where it is.

        Raises:
            ValueError: saying what is wrong with the file.
        """
        return self._read(self.checkpoint_path(tile), self._mark("checkpoint", tile))

    def done(self) -> list[int]:
        """Tiles that are on disk."""
        return self._numbered("tile")

    def checkpoints(self) -> list[int]:
        """Tiles of which a checkpoint is on disk."""
        return self._numbered("checkpoint")

    def _numbered(self, kind: str) -> list[int]:
        matches = [re.fullmatch(rf"{kind}-(\d{{6,}})\.npz", name) for name in os.listdir(self.directory)]
        num_tiles = self.num_tiles
        return sorted(tile for match in matches if match and (tile := int(match[1])) < num_tiles)

    def _mark(self, kind: str, tile: int) -> dict[str, Any]:
        return {"kind": kind, "sweep": self.digest, "runs_per_tile": self.runs_per_tile, "tile": tile}

    def _manifest(self) -> bytes:
        manifest = {
            "format": FORMAT,
            "written_by": f"lossland {__version__}",
            "identity": self.identity,
            "layout": self.layout,
            "runs_per_tile": self.runs_per_tile,
        }
        return json.dumps({**manifest, "sha256": _sha256(manifest)}, indent=1).encode()

    def _read(self, path: Path, mark: dict[str, Any], names: Iterable[str] | None = None) -> Any:
        """Step (None for a tile) and arrays of a file with the right mark; None if there is no file."""
        try:
            file = open(path, "rb")  # noqa: SIM115 - only opening may fail for reasons that are no damage
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error
        with file:
            found, arrays = unpack(file, names)
        step = found.pop("step", None)
        if found != mark:
            raise ValueError("it belongs to another sweep, or to another place in this one")
        return step, arrays

    def _read_first(self, path: Path, tile: int, names: Iterable[str] | None) -> dict[str, np.ndarray] | None:
        """Arrays of a tile of the first format; None if there is no file."""
        if not path.exists():
            return None
        wanted = None if names is None else {*names, FIRST_MARK}
        try:
            with np.load(path, allow_pickle=False) as file:  # zip checks every member's CRC-32 on reading
                arrays = {name: file[name] for name in file.files if wanted is None or name in wanted}
            mark = bytes(arrays.pop(FIRST_MARK)).decode()
        except Exception as error:  # whatever a parser makes of damaged bytes, it means damage
            raise ValueError(str(error) or type(error).__name__) from error
        if mark != f"{self.digest} {tile}":
            raise ValueError("it belongs to another sweep, or to another place in this one")
        return arrays

    def _write(self, path: Path, content: bytes) -> None:
        with self._explained(path, len(content)):
            write_whole(path, content)

    def _set_aside(self, path: Path) -> Path:
        with self._explained(path, 0):
            for number in itertools.count(1):
                aside = path.with_name(f"{path.name}.damaged-{number}")
                if not aside.exists():
                    with contextlib.suppress(FileNotFoundError):  # another process was quicker
                        path.rename(aside)
                    return aside
        raise AssertionError("there is always a next number")

    def _tidy(self) -> None:
        """Remove what killed writers have left: temporary files, checkpoints of tiles that are finished."""
        with contextlib.suppress(OSError):
            remove_abandoned(self.directory)
            for tile in {*self.done()} & {*self.checkpoints()}:
                self.checkpoint_path(tile).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _explained(self, path: Path, size: int) -> Iterator[None]:
        """Turn an OSError into a StorageError that says what happened, what is safe, and what to do."""
        try:
            yield
        except OSError as error:
            raised = StorageError(f"{path}: {_reason(error, path, size)}. {self._safe()}")
            raised.errno = error.errno
            raise raised from error

    def _safe(self) -> str:
        try:
            return f"{len(self.done())} of {self.num_tiles} tiles are safe; the same call goes on from there"
        except OSError:
            return f"0 of {self.num_tiles} tiles are there; once that is mended, the same call runs them"


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


def _reason(error: OSError, path: Path, size: int) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        kind = "the disk is full" if error.errno == errno.ENOSPC else "the disk quota is used up"
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(path.parent).free
            kind += f" ({free / 1e6:.3g} MB free, {size / 1e6:.3g} MB needed for this file); make room"
        return kind
    if not path.parent.exists():
        return f"the folder {path.parent} is gone"
    return {
        errno.EROFS: "the folder is on a read-only file system",
        errno.EACCES: "there is no permission to write to the folder",
        errno.EPERM: "there is no permission to write to the folder",
        errno.EFBIG: f"a file of {size / 1e6:.3g} MB is larger than this process or file system may write",
    }.get(error.errno or 0, error.strerror or str(error))


def _refusal(directory: Path, there: dict[str, Any], here: dict[str, Any]) -> str:
    """Say why a folder cannot be gone on with; empty if the two identities are one."""
    different = [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]
    if different and set(different) <= set(LIBRARIES):
        begun, now = (", ".join(f"{name} {of.get(name)}" for name in different) for of in (there, here))
        return (
            f"out: {directory} was begun with {begun}; this is {now}, whose bits may differ. Install those versions to "
            "complete it, choose another folder, or load what is there with ll.load"
        )
    if different:
        listed = "; ".join(f"{n}: {_short(there.get(n))} there, {_short(here.get(n))} here" for n in different)
        return f"out: {directory} holds another sweep ({listed}); choose another folder, or load that one with ll.load"
    return ""


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
