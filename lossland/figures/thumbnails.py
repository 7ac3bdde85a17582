"""Small copies of figures, for pages."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

PIXELS, COLOURS = 1400, 128
"""Width and number of colours: a figure of the house style stays below 200 kB."""


def small_copy(source: Path, target: Path) -> Path:
    """Write a PNG figure again, at most 1400 pixels wide and in 128 colours; returns the target."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as figure:
        share = min(1.0, PIXELS / figure.width)
        size = round(figure.width * share), round(figure.height * share)
        small = figure.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        small.quantize(COLOURS).save(target, format="PNG", optimize=True)
    return target
