"""Tutorials are plain scripts in percent format: text after `# %% [markdown]`, code after `# %%`.

While the pages are built each script is run once, cell by cell; what it prints and the figures it saves stand below the
cell that made them. Run by hand, a script prints the same and saves the figures under `runs/`.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lossland

MARKER = "# %%"
KEPT = Path(__file__).parents[1] / "_build" / "tutorials"
"""Figures and pages of tutorials that were run."""


class Cell(NamedTuple):
    """One cell: text for readers or code, and the line of the script at which it begins."""

    kind: str
    text: str
    line: int


@dataclass(frozen=True)
class Output:
    """What a cell of code printed, and the PNG files that its last line returned (`ll.figures.save`)."""

    printed: str
    figures: list[Path]


def cells(script: str) -> list[Cell]:
    """Cut a script into cells.

    Raises:
        ValueError: where code stands before the first marker.
    """
    found: list[tuple[str, int, list[str]]] = []
    for number, line in enumerate(script.splitlines(), 1):
        if line.startswith(MARKER):
            found.append(("text" if "[markdown]" in line else "code", number + 1, []))
        elif found:
            found[-1][2].append(line)
        elif line.strip():
            raise ValueError(f"line {number}: expected a script that begins with '{MARKER}', got {line!r}")
    made = []
    for kind, number, lines in found:
        if kind == "text":
            lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
        made.append(Cell(kind, "\n".join(lines).strip("\n"), number))
    return made


def execute(script: str, name: str, folder: Path) -> Iterator[tuple[Cell, Output | None, dict[str, Any]]]:
    """Run a script cell by cell in a folder of its own: (cell, its output, the names so far)."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells(script):
        if cell.kind == "text":
            yield cell, None, names
            continue
        tree = ast.parse(cell.text)
        ast.increment_lineno(tree, cell.line - 1)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        printed = io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
            exec(compile(tree, name, "exec"), names)
            value = None
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), name, "eval"), names)
        paths = value if isinstance(value, list) else []
        figures = [folder / path for path in paths if isinstance(path, Path) and path.suffix == ".png"]
        yield cell, Output(printed.getvalue(), figures), names


class Page(NamedTuple):
    """A tutorial that was run: Markdown for readers; what it printed, drew and defined, for tests."""

    text: str
    printed: str
    figures: list[Path]
    names: dict[str, Any]


def page(script: str, name: str, images: Path, link: str) -> Page:
    """Run a script and lay it out as Markdown.

    Args:
        script: its text.
        name: file name, for readers and tracebacks.
        images: folder for its figures.
        link: that folder, as the page sees it.
    """
    images.mkdir(parents=True, exist_ok=True)
    parts, printed, figures, names = [], "", [], {}
    with tempfile.TemporaryDirectory() as place:
        for cell, output, now in execute(script, name, Path(place)):
            names = now
            if output is None:
                parts.append(cell.text)
                continue
            parts.append(f"```python\n{cell.text}\n```")
            if output.printed.strip():
                parts.append(f"```text\n{output.printed.rstrip()}\n```")
            for figure in output.figures:
                target = f"{Path(name).stem}_{figure.name}"
                shutil.copyfile(figure, images / target)
                alternative = f"figure {figure.stem.replace('_', ' ')}, drawn by the lines above"
                parts.append(f"![{alternative}]({link}/{target})")
                figures.append(images / target)
            printed += output.printed
    title, _, rest = "\n\n".join(parts).partition("\n")
    text = f"{title}\n\n*A script to download and change: {{download}}`{name}`.*\n{rest}\n"
    return Page(text, printed, figures, names)


def keep(path: Path) -> Page:
    """Run a tutorial and keep its page for the next build, which then need not run it again."""
    script = path.read_text()
    made = page(script, path.name, KEPT, os.path.relpath(KEPT, path.parent))
    place = kept_as(path.stem, script)
    place.with_suffix(".part").write_text(made.text)
    place.with_suffix(".part").replace(place)
    return made


def kept_as(stem: str, script: str) -> Path:
    """Where the page of a script is kept: another name for another script or another version of the library."""
    sources = sorted(Path(lossland.__file__).parent.rglob("*.py"))
    digest = hashlib.sha256(script.encode() + b"".join(path.read_bytes() for path in sources))
    return KEPT / f"{stem}-{digest.hexdigest()[:16]}.page"


def render(app: Any, document: str, source: list[str]) -> None:
    """Put the run tutorial in the place of its script."""
    path = Path(app.env.doc2path(document))
    if path.suffix == ".py":
        kept = kept_as(path.stem, path.read_text())
        source[0] = kept.read_text() if kept.exists() else keep(path).text


def setup(app: Any) -> dict[str, Any]:
    app.connect("source-read", render)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
