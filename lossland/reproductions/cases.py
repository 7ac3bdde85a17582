"""The five reported cases with all their claims: run or read back, printed as one table per case, told as stories."""

from __future__ import annotations

import importlib
import importlib.resources
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from lossland import strict_json
from lossland.reproductions.claims import Claim, format_claims, load_claims

CASES = ("linear_regression", "numpy_mlp", "keras_lstm", "rnn_sequences", "course_mlp")
CLAIMS, SIZE = "claims.json", "size.txt"
FIGURES = {name: name for name in CASES} | {"numpy_mlp": "curves"}
"""The figure of each story, by its name in the case's folder."""
PLACE = re.compile(r"\{\{(\w+)(?:\.(\w)\.(\w+))?\}\}")
"""{{case}} stands for the table of a case in the stories, {{case.letter.field}} for a field of one claim."""
CALL = re.compile(r"^\w+\((.*)\)$", re.DOTALL)
"""How a size is written: the name of its type, and its fields."""


def reproduce_cases(*, as_json: bool = False, fast: bool = False, out: Path | None = None) -> int:
    """Settle every claim of the five cases and print verdict, number with interval, and counterfactual; returns 0.

    Cases whose claims lie in the folder already are read; the others are run. Beside them come `cases.json`, all
    claims, `stories.md`, the stories with these numbers, and their figures.

    Args:
        as_json: print the JSON instead.
        fast: fewer runs, in folders of their own.
        out: folder of the cases. Default: runs/reproduce.
    """
    from lossland.figures.thumbnails import small_copy
    from lossland.reproductions import targets

    folder = Path("runs/reproduce") if out is None else out
    settled: dict[str, list[Claim]] = {}
    sizes: dict[str, str] = {}
    for name in CASES:
        place = folder / (f"{name}-fast" if fast else name)
        if not (place / CLAIMS).exists():
            print(f"{name}: {'fewer runs' if fast else 'full size'} ...", file=sys.stderr, flush=True)
            place.mkdir(parents=True, exist_ok=True)
            table = {key: entry for key, entry in targets(name).items() if not (fast and entry.get("full_only"))}
            importlib.import_module(f"lossland.reproductions.{name}").measure(place, fast, table)
        settled[name] = load_claims(place / CLAIMS)
        if (place / SIZE).exists():
            sizes[name] = (place / SIZE).read_text(encoding="utf-8").strip()
        if (figure := place / f"{FIGURES[name]}.png").exists():
            small_copy(figure, folder / "images" / f"story_{name}.png")
        if not as_json:
            print(f"{name}\n{format_claims(settled[name])}\n")
    everything = [claim for claims in settled.values() for claim in claims]
    text = strict_json.dumps([asdict(claim) for claim in everything])
    (folder / "cases.json").write_text(text + "\n", encoding="utf-8")
    (folder / "stories.md").write_text(stories(settled, sizes), encoding="utf-8")
    print(text if as_json else f"{counted(everything)}\n{folder / 'cases.json'}, {folder / 'stories.md'}")
    return 0


def counted(claims: Sequence[Claim]) -> str:
    """Write how many claims there are, and how many of each verdict."""
    counts = Counter(claim.verdict for claim in claims)
    parts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("supported", "refuted", "depends"))
    return f"{len(claims)} claims of {len({claim.case for claim in claims})} cases: {parts}"


def stories(settled: Mapping[str, Sequence[Claim]], sizes: Mapping[str, str] | None = None) -> str:
    """Fill the numbers of the claims into the stories of the five cases; `sizes` says how much was run, by case.

    Raises:
        ValueError: for a place of the text that no claim fills.
    """
    text = (importlib.resources.files("lossland.reproductions") / "stories.md").read_text(encoding="utf-8")

    def fill(place: re.Match[str]) -> str:
        case, letter, field = place.groups()
        if case == "count":
            return counted([claim for claims in settled.values() for claim in claims])
        found = [claim for claim in settled.get(case, []) if letter in (None, claim.letter)]
        if not found:
            raise ValueError(f"stories: no claim for {place.group()}")
        if letter is not None:
            return _field(found[0], field)
        size = CALL.sub(r"`\1`", (sizes or {}).get(case, ""))
        return table(found) + (f"\n\nThis run: {size}" if size else "")

    return PLACE.sub(fill, text)


def table(claims: Sequence[Claim]) -> str:
    """Lay claims out as a table in Markdown."""
    rows = ["| claim | verdict | measured | counterfactual |", "|---|---|---|---|"]
    for claim in claims:
        verdict = f"**{claim.verdict}**" + (f": {claim.condition}" if claim.condition else "")
        number = f"{claim.quantity}: {_field(claim, 'number')}"
        cells = [f"({claim.letter}) {claim.text}", verdict, number, claim.counterfactual]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _field(claim: Claim, field: str) -> str:
    if field == "number":
        return f"{claim.value:.3g} [{claim.low:.3g}, {claim.high:.3g}]"
    if field == "percent":
        return f"{100 * claim.value:.0f} % [{100 * claim.low:.0f}, {100 * claim.high:.0f}]"
    value = asdict(claim)[field]
    return f"{value:.3g}" if isinstance(value, float) else str(value)
