"""Every promise of the guarantees page names tests, and each of them exists."""

import ast
import re

from tests.docs.pages import DOCS, ROOT

TEXT = (DOCS / "guarantees.md").read_text()
NAMED = re.findall(r"`([\w/]+\.py)::([\w:]+)`", TEXT)


def names_of(path):
    """Names of tests as pytest writes them: `test_a`, `TestB::test_c`."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return found


def test_each_named_test_exists():
    missing = [f"{file}::{name}" for file, name in NAMED if name not in names_of(ROOT / "tests" / file)]
    assert not missing
    assert len(NAMED) > 50


def test_every_promise_names_a_test():
    """In the page's definition lists a promise is a line, and what holds it stands below, after a colon."""
    lines = TEXT.splitlines()
    held = "\n".join(lines).split("\n: ")[1:]
    for definition in held:
        assert "::test_" in definition, f"no test is named in: {definition[:80]}"
