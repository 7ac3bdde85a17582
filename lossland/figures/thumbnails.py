"""Small copies of figures, for pages."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

PIXELS, COLOURS, BYTES = 1400, (128, 64, 32), 200_000
"""Width, numbers of colours in the order in which they are tried, and the size at which the next is tried."""


def small_copy(source: Path, target: Path) -> Path:
    """Write a PNG figure again, at most 1400 pixels wide and in few enough colours to stay small; return the target."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as figure:
        share = min(1.0, PIXELS / figure.width)
        size = round(figure.width * share), round(figure.height * share)
        small = figure.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        for colours in COLOURS:
            small.quantize(colours).save(target, format="PNG", optimize=True)
            if target.stat().st_size < BYTES:
                break
    return target
