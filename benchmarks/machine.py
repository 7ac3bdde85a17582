"""What the numbers were measured on, written beside them."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

PACKAGES = ("lossland", "jax", "jaxlib", "optax", "flax", "numpy", "torch", "matfree", "scipy", "distributed")


def machine() -> dict[str, Any]:
    """Processor, cores, versions, and how busy the machine was when it was asked."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "versions": versions,
        "load": round(load, 1),
    }
