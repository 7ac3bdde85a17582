"""The page: template, style and script of our own, the contents as data, and a policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lossland.arguments import FUNCTION, PATH, count, expects, number, optional, trajectories
from lossland.report.contents import contents
from lossland.report.stories import Explain
from lossland.sweeps.archive import write_whole

MOST_ROWS = 512
"""Rows of the table for browsers without scripts."""


@expects(
    runs=trajectories("step"), path=PATH, explain=optional(FUNCTION), num_explained=count(0), max_bytes=number(above=0)
)
def write_report(
    runs: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    explain: Explain | None = None,
    num_explained: int = 64,
    max_bytes: float = 9e6,
) -> Path:
    """Write one HTML file with the stability map of a sweep and, run by run, its curves and what they say.

    The file holds everything it needs, opens without a network, and forbids itself to load or run anything else
    (Content-Security-Policy with the hashes of its own script and style). A run is chosen by pointer or arrow keys, and
    by the address: report.html#learning_rate=0.1,seed=3, or #0.1,3 with the axes in their order.

    Args:
        runs: what `ll.run` or `ll.load` returns, or a selection with at least one axis.
        path: the file to write.
        explain: a function of one run that tells its story, such as `ll.explain`: its `Explanation` is laid out, of
            anything else the text is shown. Called for at most `num_explained` runs, of each outcome those whose loss
            rose most; the others are described from their records.
        num_explained: see `explain`.
        max_bytes: about how large the file's curves may be; with many runs each gets fewer points.

    Returns:
        The path.

    Raises:
        ValueError: if the dataset was not made by `ll.run`, or the file cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"path: expected a file to write, got the folder {path}; name one, such as {path / 'report.html'}"
        )
    text = page(contents(runs, explain, num_explained, max_bytes)).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise ValueError(f"path: {path} cannot be written ({error.strerror or error}); name another") from error
    return path


def page(given: dict[str, Any]) -> str:
    """Put the page together."""
    style, script, template = (_part(name) for name in ("page.css", "page.js", "page.html"))
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": html.escape(policy),
        "title": html.escape(given["title"]),
        "style": style,
        "plain": plain_table(given),
        "data": embedded(given),
        "script": script,
    }
    # One pass over the template alone: what is put in is never read again, whatever it holds.
    pieces = template.split("%%")
    return "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))


def embedded(value: Any) -> str:
    """JSON that may stand inside a script element: no <, no > and no & in it, numbers that are not finite as null."""
    text = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def plain_table(given: dict[str, Any]) -> str:
    """How many runs of each outcome there are at every point of the grid, for browsers without scripts."""
    axes = [axis for axis in given["axes"] if axis["name"] != "seed"]
    kinds = given["classes"]
    codes = np.frombuffer(base64.b64decode(given["outcome"]), np.uint8).reshape(
        *(len(axis["values"]) for axis in given["axes"])
    )
    codes = np.moveaxis(codes, [axis["name"] for axis in given["axes"]].index("seed"), -1)
    head = "".join(f'<th scope="col">{html.escape(entry["label"])}</th>' for entry in [*axes, *kinds])
    rows = []
    for place in list(np.ndindex(codes.shape[:-1]))[:MOST_ROWS]:
        values = [_cell(axis["values"][index]) for axis, index in zip(axes, place, strict=True)]
        counts = [str(int((codes[place] == code).sum())) for code in range(len(kinds))]
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in [*values, *counts])
        rows.append(f"<tr>{cells}</tr>")
    left = math.prod(codes.shape[:-1]) - len(rows)
    more = f"<p>{left} more points are not listed here.</p>" if left else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>{more}"


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _part(name: str) -> str:
    return importlib.resources.files("lossland.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
