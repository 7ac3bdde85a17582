"""Adam on one parameter, and pairs of what was predicted and what was measured."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import optax

from lossland.stability.one_parameter import simulate

LEARNING_RATE = 1e-2
LONG_AGO = 10**6
"""A step count at which bias corrections have settled."""
Pair = tuple[np.ndarray, np.ndarray]
"""(predicted, measured)."""


def grid(*axes: Any) -> list[np.ndarray]:
    """All combinations of the axes, one array per axis."""
    return [np.array(column, float) for column in zip(*itertools.product(*axes), strict=True)]


def joined(parts: list[Pair]) -> Pair:
    """Put the pairs of several settings together."""
    return np.concatenate([predicted for predicted, _ in parts]), np.concatenate([measured for _, measured in parts])


def columns(rows: list[tuple[Any, Any]]) -> Pair:
    """Turn rows of (predicted, measured) into two arrays."""
    return np.array([predicted for predicted, _ in rows], float), np.array([measured for _, measured in rows], float)


def relative(pair: Pair) -> float:
    """Largest relative deviation of what was measured from what was predicted."""
    return float(np.max(np.abs(pair[1] / pair[0] - 1)))


def adam(num_steps: int, **arguments: Any) -> Any:
    """Simulate Adam without eps from x = 1, so that start / learning rate is 1 / learning rate."""
    return simulate(optax.adam, num_steps, **{"eps": 0.0, "start": 1.0, "learning_rate": LEARNING_RATE, **arguments})
