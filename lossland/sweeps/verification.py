"""What a folder of runs really holds: every file read and checked, nothing changed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lossland.problems.problem import Problem
from lossland.sweeps.archive import is_temporary
from lossland.sweeps.execution import make_job
from lossland.sweeps.store import MANIFEST, DamagedTileError, StorageError, Store
from lossland.sweeps.sweep import Sweep

Kind = Literal["ok", "missing", "checkpoint", "damaged", "set aside", "left over", "unknown"]

MEANINGS: dict[Kind, str] = {
    "ok": "whole, with the checksums it was written with",
    "missing": "not computed yet; the same call computes it",
    "checkpoint": "state of an unfinished tile",
    "damaged": "set aside and computed again by the same call",
    "set aside": "was damaged, and kept",
    "left over": "of a writer that was killed, or is writing now",
    "unknown": "no tile or checkpoint (figures, summaries); left alone",
}


@dataclass(frozen=True)
class Finding:
    """What one file is.

    Args:
        path: the file (for a missing tile, where it would be).
        kind: a key of `MEANINGS`.
        detail: what is wrong with it, or the step of a checkpoint.
        tile: number of the tile, where it is one or the checkpoint of one.
    """

    path: Path
    kind: Kind
    detail: str = ""
    tile: int | None = None


def verify(path: str | os.PathLike[str]) -> list[Finding]:
    """Read every file of a folder and check it against its checksums: tiles, checkpoints, other files, in this order.

    Raises:
        ValueError: if the folder holds no sweep, or its manifest cannot be read.
    """
    store = Store.open(Path(path))
    tiles = [_tile(store, tile) for tile in range(store.num_tiles)]
    checkpoints = [_checkpoint(store, tile) for tile in store.checkpoints()]
    named = {finding.path for finding in (*tiles, *checkpoints)} | {store.directory / MANIFEST}
    others = [_other(other) for other in sorted(store.directory.iterdir()) if other not in named]
    return [*tiles, *checkpoints, *others]


def rerun(
    path: str | os.PathLike[str],
    problem: Problem,
    optimizer: Any,
    probes: Iterable[Any],
    num_tiles: int,
    draw: int = 0,
) -> list[Finding]:
    """Compute some finished tiles again, chosen at random, and compare them bit for bit with what is on disk.

    Args:
        path: the folder.
        problem, optimizer, probes: what `run` was called with.
        num_tiles: how many, at most all.
        draw: seed of the choice.

    Raises:
        ValueError: if these are not what the folder was made with (what differs is named), or versions or devices are
            others: bits are promised for the same software on the same kind of device.
    """
    store = Store.open(Path(path))
    sweep = Sweep.from_json(store.layout["sweep"])
    job = make_job(problem, optimizer, sweep, probes)
    own = job.identity()
    if different := sorted(name for name in store.identity if store.identity[name] != own.get(name)):
        words = "; ".join(f"{name}: {store.identity[name]} there, {own.get(name)} here" for name in different)
        raise ValueError(f"rerun: {store.directory} was made with something else ({words})")
    places = sweep.tiles(store.runs_per_tile)
    whole = [tile for tile in store.done() if _tile(store, tile).kind == "ok"]
    chosen = np.random.default_rng(draw).permutation(whole)[:num_tiles]
    findings = []
    for tile in sorted(int(tile) for tile in chosen):
        there, program = store.read(tile), job.program_of(places[tile])
        again = program.compute(places[tile], job.plan.chunks_for(store.runs_per_tile), job.plan.devices[0])
        assert there is not None
        assert again is not None
        other = [name for name in again if again[name].tobytes() != there[name].astype(again[name].dtype).tobytes()]
        detail = f"computed again, other bits in {', '.join(other)}" if other else "computed again, the same bits"
        findings.append(Finding(store.path(tile), "damaged" if other else "ok", detail, tile))
    return findings


def is_sound(findings: list[Finding]) -> bool:
    """Whether nothing is damaged. An unfinished sweep is sound."""
    return all(finding.kind != "damaged" for finding in findings)


def describe(findings: list[Finding]) -> str:
    """Write findings as text: one line per kind with its count, one line per file that is not as it should be."""
    counts = Counter(finding.kind for finding in findings)
    lines = [f"  {kind:<10} {counts[kind]:>8}  {meaning}" for kind, meaning in MEANINGS.items() if counts[kind]]
    for finding in findings:
        if finding.kind not in ("ok", "missing", "unknown"):
            lines.append(f"{finding.kind}: {finding.path.name}{finding.detail and f' ({finding.detail})'}")
    return "\n".join(lines)


def _tile(store: Store, tile: int) -> Finding:
    try:
        arrays = store.read(tile)
    except (DamagedTileError, StorageError) as error:
        return Finding(store.path(tile), "damaged", _cause(error), tile)
    return Finding(store.path(tile), "missing" if arrays is None else "ok", tile=tile)


def _checkpoint(store: Store, tile: int) -> Finding:
    path = store.checkpoint_path(tile)
    try:
        step, _ = store.check_checkpoint(tile) or (0, {})
    except (ValueError, StorageError) as error:
        return Finding(path, "damaged", str(error), tile)
    return Finding(path, "checkpoint", f"step {step}", tile)


def _other(path: Path) -> Finding:
    if is_temporary(path):
        return Finding(path, "left over")
    return Finding(path, "set aside" if ".npz.damaged-" in path.name else "unknown")


def _cause(error: Exception) -> str:
    return str(error.__cause__ or error)
