"""What the tests read of the documentation: its pages, their fenced blocks, the modules that build them."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
READABLE = [ROOT / "README.md", *PAGES]
FENCE = re.compile(r"^```\{?([\w-]*)\}?[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: `where` is file:line."""

    where: str
    language: str
    text: str


def blocks(path):
    text = path.read_text()
    return [
        Block(f"{path.relative_to(ROOT)}:{text[: found.start()].count(chr(10)) + 1}", found[1], found[2])
        for found in FENCE.finditer(text)
    ]


ALL_BLOCKS = [block for path in READABLE for block in blocks(path)]


def extension(name):
    """Load one of the modules that build the pages: they lie outside of the package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "_extensions" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
