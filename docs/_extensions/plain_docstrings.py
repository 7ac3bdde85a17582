"""Docstrings as they are written here, plain text with code in backticks, made into what Sphinx reads."""

from __future__ import annotations

import inspect
import re
from typing import Any

SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes|Examples?):$")
ARGUMENT = re.compile(r"^(\s+)(\*{1,2}\w+)(:.*)$")


def escaped(line: str) -> str:
    """Take away the meaning that |, * and a last underscore have outside of code."""
    if line.lstrip().startswith(">>>"):
        return line
    head = ""
    if found := ARGUMENT.match(line):  # napoleon knows *args and **kwargs itself
        head, line = found[1] + found[2], found[3]
    parts = re.split(r"(``[^`]*``|`[^`]*`)", line)
    parts[::2] = [re.sub(r"(?<=\w)_(?!\w)", r"\\_", re.sub(r"([|*])", r"\\\1", part)) for part in parts[::2]]
    # Code that touches a letter or a bracket needs an invisible space, which is how reStructuredText sees its end.
    for place in range(1, len(parts), 2):
        if re.match(r"[\w(]", parts[place + 1]):
            parts[place] += "\\ "
        if re.search(r"\w$", parts[place - 1]):
            parts[place] = "\\ " + parts[place]
    return head + "".join(parts)


def displayed(lines: list[str]) -> list[str]:
    """Mark what stands indented after a sentence, an equation or lines of code, as a block of text."""
    out: list[str] = []
    inside, before = False, ""
    for number, line in enumerate(lines):
        indented = line.startswith("    ")
        starts = indented and number > 0 and not lines[number - 1].strip() and not before.startswith(" ")
        if starts and not SECTION.match(before):
            out += [".. code-block:: text", ""]
            inside = True
        elif line.strip() and not indented:
            inside = False
        out.append(line if inside else escaped(line))
        if line.strip():
            before = line
    return out


def process_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Join code that is broken over two lines, then escape."""
    text = re.sub(r"(?<!`)`[^`\n]+\n\s*[^`\n]+`(?!`)", lambda code: " ".join(code[0].split()), "\n".join(lines))
    lines[:] = displayed(text.split("\n"))


def process_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """Leave out private arguments, which dataclasses use for themselves, and write what they make anew as `...`."""
    if what != "class" or not signature:
        return None
    if " _" in signature:
        from sphinx.util.inspect import stringify_signature  # only here: tests of the rest need no Sphinx

        found = inspect.signature(obj)
        public = [parameter for parameter in found.parameters.values() if not parameter.name.startswith("_")]
        signature = stringify_signature(found.replace(parameters=public), unqualified_typehints=True)
    return signature.replace("<factory>", "..."), returns


def skip_member(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples: their class says what they are."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app: Any) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", process_docstring, priority=400)
    app.connect("autodoc-process-signature", process_signature)
    app.connect("autodoc-skip-member", skip_member)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
