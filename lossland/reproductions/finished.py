"""Parts of a long reproduction that are finished, kept on disk: one that was stopped goes on where it was."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

import lossland
from lossland import strict_json


@functools.cache
def sources() -> str:
    """Digest of everything that an answer could depend on: the package's source files and JAX's version."""
    root = Path(lossland.__file__).parent
    digest = hashlib.sha256(jax.__version__.encode())
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def kept(path: Path, settings: Sequence[Any], compute: Callable[[], Any]) -> Any:
    """Return what `compute` returned with these settings and sources before, or compute and keep it (as JSON, whole).

    Settings: what was asked for, as JSON. A file of other settings or sources, or one that cannot be read, is replaced.
    """
    identity = {"settings": list(settings), "sources": sources()}
    try:
        stored = json.loads(path.read_text())
        if stored["identity"] == identity:
            return stored["value"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    value = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(strict_json.dumps({"identity": identity, "value": value}) + "\n")
    beside.replace(path)
    return value
