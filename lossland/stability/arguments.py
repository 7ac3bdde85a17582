"""Checks of the arguments that laws share: float64 arrays, or a ValueError that names what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

from lossland.arguments import NUMERIC, check

Numbers = Any
"""A number, or an array of them."""


def momentum(name: str, b1: Numbers) -> np.ndarray:
    """Return b1, 0 <= b1 < 1."""
    return _checked(name, "b1", b1, "0 <= b1 < 1", lambda x: (x >= 0) & (x < 1))


def decay(name: str, b2: Numbers, *, frozen: bool = False) -> np.ndarray:
    """Return b2, 0 < b2 < 1; `frozen` admits 1."""
    if frozen:
        return _checked(name, "b2", b2, "0 < b2 <= 1", lambda x: (x > 0) & (x <= 1))
    return _checked(name, "b2", b2, "0 < b2 < 1", lambda x: (x > 0) & (x < 1))


def finite(name: str, key: str, value: Numbers) -> np.ndarray:
    """Return a finite number."""
    return _checked(name, key, value, "a finite number", np.isfinite)


def positive(name: str, key: str, value: Numbers) -> np.ndarray:
    """Return a finite number above zero."""
    return _checked(name, key, value, "a positive number", lambda x: np.isfinite(x) & (x > 0))


def not_negative(name: str, key: str, value: Numbers) -> np.ndarray:
    """Return a number of at least zero; inf is one."""
    return _checked(name, key, value, "at least 0", lambda x: x >= 0)


def _checked(name: str, key: str, value: Numbers, expected: str, test: Any) -> np.ndarray:
    check(f"{name}: {key}", value, NUMERIC)
    array = np.asarray(value, np.float64)
    good = test(array)
    if not np.all(good):
        bad = np.ravel(array)[np.flatnonzero(~np.ravel(good))[0]]
        raise ValueError(f"{name}: {key}: expected {expected}, got {bad:g}")
    return array
