"""What the text may not hold: numbers that are typed."""

from __future__ import annotations

import re
from collections.abc import Callable

_DROPPED = (
    r"(?<!\\)%.*",  # comments
    r"\$[^$]*\$",  # formulas
    r"\\begin\{(equation|align)\*?\}.*?\\end\{\1\*?\}",
    r"\\begin\{(?:minipage|longtable|figure|table)\*?\}(?:\[[^\]]*\])?(?:\{(?:[^{}]|\{[^{}]*\})*\})?",
    r"\\(?:val|want|set|verdict)(?:\[\w*\])?\{[^}]*\}",
    r"\\(?:made|byprofile|cite[tp]?|label|ref|includegraphics|input|bibliography(?:style)?|end|begin|setlength|vspace|hspace)"
    r"(?:\[[^\]]*\])?\{[^}]*\}",
    r"\\multicolumn\{\d\}",
)
NUMBER = re.compile(r"(?<![A-Za-z])[-+]?\d[\d.,]*")


def body(text: str) -> str:
    """Return the text between the begin and the end of the document, formulas, macros and comments blanked."""
    text = text.partition(r"\begin{document}")[2].partition(r"\end{document}")[0]
    for pattern in _DROPPED:
        text = re.sub(
            pattern, lambda found: re.sub(r"[^\n]", " ", found[0]), text, flags=re.DOTALL if "begin" in pattern else 0
        )
    return text


def bare_numbers(text: str) -> list[str]:
    """Find numbers that are typed in the prose: "line: number in its words" of each."""
    start = text[: text.find(r"\begin{document}")].count("\n")
    return [
        f"{start + number}: {line.strip()[:90]}"
        for number, line in enumerate(body(text).split("\n"), 1)
        if NUMBER.search(line)
    ]


def captions(text: str) -> list[str]:
    """Return every caption, balanced braces and all."""
    return [text[match.end() : _closed(text, match.end())] for match in re.finditer(r"\\caption\{", text)]


def by_profile(text: str, chosen: Callable[[str], bool]) -> str:
    r"""Return the text with each `\byprofile{STEM}{FULL}{FAST}` of the document replaced by FULL where `chosen(STEM)`,
    by FAST elsewhere."""
    start = text.find(r"\begin{document}")
    while (place := text.find(r"\byprofile{", max(start, 0))) >= 0:
        parts, end = [], place + len(r"\byprofile")
        for _ in range(3):
            close = _closed(text, end + 1)
            parts.append(text[end + 1 : close])
            end = close + 1
        stem, full, fast = parts
        text = text[:place] + (full if chosen(stem) else fast) + text[end:]
    return text


def _closed(text: str, place: int) -> int:
    """Return where the brace closes that opened before this place."""
    depth = 1
    while depth:
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        place += 1
    return place - 1


def figures(text: str) -> list[tuple[list[str], str]]:
    """Return the figures: names of the files that each includes, and its caption."""
    parts = re.findall(r"\\begin\{figure\*?\}.*?\\end\{figure\*?\}", text, re.DOTALL)
    return [(re.findall(r"\\includegraphics(?:\[[^\]]*\])?\{([^}]+)\}", part), captions(part)[0]) for part in parts]
