"""JSON that every parser reads: numbers that are not finite become words, as JSON has none for them."""

from __future__ import annotations

import json
import math
from typing import Any


def dumps(value: Any) -> str:
    """Serialise with indentation; infinity and NaN become "Infinity", "-Infinity", "NaN" (`float()` reads them back).

    >>> dumps([1.5, float("inf")]).split()
    ['[', '1.5,', '"Infinity"', ']']
    """
    return json.dumps(_finite(value), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
