"""Curves of thousands of runs in a few megabytes: few points that keep every rise, few bits that keep the shape."""

from __future__ import annotations

import base64
import itertools
from typing import Any, NamedTuple

import numpy as np

MISSING, ZERO, INFINITE, LEVELS = 0, 65534, 65535, 65533
"""Codes of NaN, of zero on a logarithmic scale, and of infinity; other values take the codes 1 to LEVELS."""


class Thinned(NamedTuple):
    """Curves with fewer points. values: (run, point); steps: (point,); exact: whether every record is there."""

    values: np.ndarray
    steps: np.ndarray
    exact: bool


def thin(values: np.ndarray, steps: np.ndarray, num_points: int) -> Thinned:
    """Keep the lowest and the highest record of each stretch of steps, in the order they came, and both ends.

    values: (run, record); steps: (record,). A run's points stand at the ends of their stretch, so a point may be drawn
    up to half a stretch beside its record. What is not finite is passed over, and kept where a
    stretch has nothing else.
    """
    count = values.shape[1]
    if count <= num_points:
        return Thinned(values, np.asarray(steps), True)
    num_stretches = max(1, (num_points - 2) // 2)
    edges = np.linspace(1, count - 1, num_stretches + 1).round().astype(int)
    columns, places = [values[:, 0]], [steps[0]]
    for start, stop in itertools.pairwise(edges):
        part = values[:, start:stop]
        finite = np.isfinite(part)
        known = np.where(finite.any(1, keepdims=True), finite, ~np.isnan(part))
        low = np.argmin(np.where(known, part, np.inf), axis=1)
        high = np.argmax(np.where(known, part, -np.inf), axis=1)
        first, last = np.minimum(low, high), np.maximum(low, high)
        for chosen, place in ((first, steps[start]), (last, steps[stop - 1])):
            found = np.take_along_axis(part, chosen[:, None], 1)[:, 0]
            columns.append(np.where(known.any(1), found, np.nan))
            places.append(place)
    columns.append(values[:, -1])
    places.append(steps[-1])
    return Thinned(np.stack(columns, axis=1), np.asarray(places), False)


def pack_curves(values: np.ndarray) -> dict[str, Any]:
    """Write curves with 16 bits a point, each run on a scale of its own, logarithmic where no value is negative.

    Equation: value = low + (code - 1) / (LEVELS - 1) (high - low), of the logarithm where `log` is 1.

    Returns:
        JSON: `codes` (run, point) uint16, `ranges` (run, 2) float32, `log` (run,) uint8, all base64, little-endian.
    """
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    log = np.all(~finite | (values >= 0), axis=1)
    is_zero = (values == 0) & log[:, None]
    finite &= ~is_zero
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = np.where(log[:, None], np.log(values), values)
    some = finite.any(1)
    low = _single(np.where(some, np.min(np.where(finite, levels, np.inf), axis=1, initial=np.inf), 0))
    high = _single(np.where(some, np.max(np.where(finite, levels, -np.inf), axis=1, initial=-np.inf), 0))
    size = np.where(high > low, high.astype(np.float64) - low, 1)
    share = np.where(finite, (levels - low[:, None]) / size[:, None], 0)
    codes = 1 + np.clip(np.round(share * (LEVELS - 1)), 0, LEVELS - 1)
    codes = np.select([finite, is_zero, np.isposinf(values)], [codes, ZERO, INFINITE], MISSING)
    return {
        "codes": encode(codes, "<u2"),
        "ranges": encode(np.stack([low, high], axis=1), "<f4"),
        "log": encode(log, "u1"),
    }


def unpack_curves(packed: dict[str, Any], num_runs: int) -> np.ndarray:
    """Read back what `pack_curves` wrote, as the page does: (run, point)."""
    codes = decode(packed["codes"], "<u2").reshape(num_runs, -1).astype(np.float64)
    ranges = decode(packed["ranges"], "<f4").reshape(num_runs, 2).astype(np.float64)
    levels = ranges[:, :1] + (codes - 1) / (LEVELS - 1) * (ranges[:, 1:] - ranges[:, :1])
    with np.errstate(over="ignore"):
        values = np.where(decode(packed["log"], "u1")[:, None] > 0, np.exp(levels), levels)
    return np.select([codes == MISSING, codes == ZERO, codes == INFINITE], [np.nan, 0.0, np.inf], values)


def encode(values: Any, dtype: str) -> str:
    """Numbers as base64."""
    with np.errstate(over="ignore"):  # beyond float32 is infinity
        return base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode()


def decode(text: str, dtype: str) -> np.ndarray:
    """Numbers from base64."""
    return np.frombuffer(base64.b64decode(text), dtype)


def _single(values: np.ndarray) -> np.ndarray:
    largest = float(np.finfo(np.float32).max)
    return np.clip(values, -largest, largest).astype(np.float32)
