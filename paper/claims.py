"""Audit the abstract: every claim stands in it, and its targets are reproduced. `python -m paper.claims`."""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path
from typing import Any

from experiments.experiment import RESULTS
from paper.numbers import asked
from paper.sources import PAPER, Results

SENTENCE_END = re.compile(r"(?<=\.)\s+(?=[A-Z])")


def claims() -> list[dict[str, Any]]:
    """Read `claims.toml`: words of the abstract, and the targets that prove them."""
    return tomllib.loads((PAPER / "claims.toml").read_text(encoding="utf-8"))["claim"]


def abstract(text: str) -> str:
    """Return the abstract of a TeX source in one line."""
    found = re.search(r"\\begin\{abstract\}(.*?)\\end\{abstract\}", text, re.DOTALL)
    if not found:
        raise ValueError("main.tex: expected an abstract")
    return " ".join(found[1].split())


def audit(results: Results, text: str, listed: list[dict[str, Any]]) -> list[str]:
    """Return what is wrong: claims that the abstract does not make, measured numbers in it that prove no claim of their
    sentence, and claims whose targets are missing or not reproduced."""
    words, proven = abstract(text), {name for claim in listed for name in claim["targets"]}
    wrong = [f"the abstract does not say: {claim['words']!r}" for claim in listed if claim["words"] not in words]
    for sentence in SENTENCE_END.split(words):
        here = {name for claim in listed if claim["words"] in sentence for name in claim["targets"]}
        wrong += [
            f"a number of the abstract proves no claim of its sentence: {key}"
            for macro, _, key in asked(sentence)
            if macro == "val" and key not in here
        ]
    for name in sorted(proven):
        stem, _, key = name.partition(".")
        target = results.targets(stem).get(key) if results.has(stem) else None
        if target is None:
            wrong.append(f"{name}: no summary holds it")
        elif target["verdict"] != "reproduced":
            wrong.append(f"{name}: {target['verdict']}: expected {target['expected']}, measured {target['measured']}")
    return wrong


def main() -> int:
    """Print what is wrong; 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    listed = claims()
    wrong = audit(Results(options.results), (PAPER / "main.tex").read_text(encoding="utf-8"), listed)
    print("\n".join(wrong) if wrong else f"{len(listed)} claims of the abstract, every target of theirs reproduced")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
