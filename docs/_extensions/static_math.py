"""Equations drawn while the pages are built, as SVG in the colour of the text: nothing is loaded and no script runs."""

from __future__ import annotations

import functools
import html
from typing import TYPE_CHECKING, Any, NoReturn

from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from matplotlib.path import Path
from matplotlib.textpath import text_to_path

if TYPE_CHECKING:
    from docutils import nodes

EM = 10.0
"""Size of the letters that are drawn; lengths are given in em, so that equations grow with the text."""
LETTERS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}


@functools.cache
def svg(tex: str, size: float = 1.05) -> str:
    """Draw an equation in TeX's notation, as far as matplotlib's mathtext reads it.

    Raises:
        ValueError: where it does not.
    """
    source = f"${' '.join(tex.split())}$"
    font = FontProperties(size=EM, math_fontfamily="stix", family="STIXGeneral")
    box = MathTextParser("path").parse(source, 72, font)
    vertices, codes = text_to_path.get_text_path(font, source, ismath=True)
    # mathtext is drawn at the size of its own font units and scaled to EM.
    scale = EM / text_to_path.FONT_SCALE
    drawn = Path(vertices, codes).transformed(_scaling(scale))
    pieces = []
    for points, code in drawn.iter_segments(curves=True, simplify=False):
        numbers = "" if code == Path.CLOSEPOLY else " ".join(f"{value:.2f}" for value in points)
        pieces.append(LETTERS[code] + numbers)
    width, height, depth = box.width, box.height, box.depth
    margin = 0.3
    view = f"{-margin:.2f} {-(height - depth) - margin:.2f} {width + 2 * margin:.2f} {height + 2 * margin:.2f}"
    unit = size / EM
    style = (
        f"width:{(width + 2 * margin) * unit:.3f}em;height:{(height + 2 * margin) * unit:.3f}em;"
        f"vertical-align:{-(depth + margin) * unit:.3f}em"
    )
    label = html.escape(tex.strip(), quote=True)
    return (
        f'<svg class="equation" role="img" aria-label="{label}" viewBox="{view}" style="{style}">'
        f'<path transform="scale(1,-1)" d="{"".join(pieces)}"/></svg>'
    )


def _scaling(factor: float) -> Any:
    from matplotlib.transforms import Affine2D

    return Affine2D().scale(factor)


def visit_inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(svg(node.astext()))
    _skip()


def visit_block(translator: Any, node: nodes.math_block) -> None:
    lines = [svg(line, 1.15) for line in node.astext().strip().split(r"\\") if line.strip()]
    translator.body.append('<div class="equations">' + "".join(f"<div>{line}</div>" for line in lines) + "</div>")
    _skip()


def _skip() -> NoReturn:
    """What was drawn is not written a second time. Imported here: drawing needs no docutils."""
    from docutils.nodes import SkipNode

    raise SkipNode


def setup(app: Any) -> dict[str, Any]:
    app.add_html_math_renderer("static", (visit_inline, None), (visit_block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
