"""Named arrays in one file: checksummed, without pickle, written whole or not at all.

A file is an uncompressed `.npz` that `numpy.load` opens. Its first member, `__mark__`, is JSON: what the file is, and
the dtype and SHA-256 of every array. The same arrays give the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import threading
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes  # comes with jax
import numpy as np

MARK = "__mark__"
TEMPORARY = ".tmp"


def pack(mark: dict[str, Any], arrays: Mapping[str, Any]) -> bytes:
    """Turn arrays into the content of a file.

    Args:
        mark: what the file is, JSON only.
        arrays: name -> array of numbers or booleans. Types that only ml_dtypes knows (bfloat16) are stored as bits.

    Raises:
        ValueError: for an array of objects, text or structures.
    """
    stored, about = {}, {}
    for name, values in arrays.items():
        values = np.asarray(values, order="C")
        stored[name] = bits = _bits(name, values)
        dtype, content = values.dtype.name, bits.reshape(-1).view(np.uint8).data
        about[name] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "sha256": _sha256(name, dtype, values.shape, content),
        }
    text = json.dumps({**mark, "arrays": about}, sort_keys=True)
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, values in {MARK: np.frombuffer(text.encode(), np.uint8), **stored}.items():
            # ZipInfo without a date: the same arrays give the same bytes.
            with file.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)
    return buffer.getvalue()


def unpack(file: BinaryIO, names: Iterable[str] | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the mark and the arrays called `names` (all of them for None), each checked against its SHA-256.

    Raises:
        ValueError: saying what is wrong with the file.
    """
    try:
        with zipfile.ZipFile(file) as members:
            mark = json.loads(bytes(_content(members, MARK)))
            about = mark.pop("arrays")
            if {*members.namelist()} != {f"{name}.npy" for name in (MARK, *about)}:
                raise ValueError("it does not hold the arrays it lists")
            arrays = {}
            for name in about if names is None else names:
                dtype, shape, content = about[name]["dtype"], about[name]["shape"], _content(members, name)
                if _sha256(name, dtype, shape, content) != about[name]["sha256"]:
                    raise ValueError(f"the SHA-256 of {name!r} is another one")
                arrays[name] = np.ndarray(shape, _dtype(dtype), content).copy()
    except MemoryError:  # which says nothing about the file
        raise
    except Exception as error:  # whatever a parser makes of damaged bytes, it means damage
        raise ValueError(str(error) or type(error).__name__) from error
    return mark, arrays


def write_whole(path: Path, content: bytes, exclusive: bool = False) -> None:
    """Write a file so that it is there whole or not at all: temporary name, fsync, rename, fsync of the folder.

    Raises:
        FileExistsError: if `exclusive` and the file exists.
    """
    writer = f"{threading.get_ident()}.{socket.gethostname()}.{os.getpid()}"
    temporary = path.with_name(f".{path.name}.{writer}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            _link(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    if os.name == "nt":  # a folder cannot be opened there, and renames need no fsync of it
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def is_temporary(path: Path) -> bool:
    """Whether this is a temporary file of `write_whole`."""
    return path.name.startswith(".") and path.suffix == TEMPORARY


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files of writers on this machine that were killed."""
    for path in filter(is_temporary, folder.iterdir()):
        rest, _, pid = path.stem.rpartition(".")
        if rest.endswith(f".{socket.gethostname()}") and pid.isdigit() and not _alive(int(pid)):
            with contextlib.suppress(OSError):
                path.unlink()


def _alive(pid: int) -> bool:
    if os.name == "nt":  # no way to ask about a process that does not end it
        return True
    with contextlib.suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True


def _link(temporary: Path, path: Path) -> None:
    """Give a file its name unless the name is taken. On file systems without links the last of two writers wins."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        os.replace(temporary, path)


def _content(members: zipfile.ZipFile, name: str) -> memoryview:
    """Numbers of one member, without the header that is there for `numpy.load`: the mark says dtype and shape."""
    content = memoryview(members.read(f"{name}.npy"))
    header = int.from_bytes(content[8:10], "little")
    return content[10 + header :]


def _sha256(name: str, dtype: str, shape: Sequence[int], content: memoryview) -> str:
    digest = hashlib.sha256(json.dumps([name, dtype, list(shape)]).encode())
    digest.update(content)
    return digest.hexdigest()


def _bits(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind in "biufc" and values.dtype.isnative:
        return values
    if values.dtype.kind == "V" and values.dtype == getattr(ml_dtypes, values.dtype.name, None):
        return values.view(f"u{values.dtype.itemsize}")
    raise ValueError(f"{name}: expected numbers or booleans, got dtype {values.dtype}")


def _dtype(name: str) -> np.dtype:
    try:
        return np.dtype(name)
    except TypeError:
        return np.dtype(getattr(ml_dtypes, name))
