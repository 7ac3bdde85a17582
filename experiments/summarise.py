"""Keep the summary of a folder that `lossland reproduce` has left: `python -m experiments.summarise DIR [DIR ...]`.

Stored runs are read, not trained; what a reproduction does not store is computed again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.catalogue import STEMS, experiment
from experiments.experiment import RESULTS, told_in_words


def main() -> int:
    """Summarise every folder; 1 if a target is not reproduced."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="named as the reproduction, -fast if fast")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the summaries")
    options = parser.parse_args()
    failures = 0
    for folder in options.folders:
        stem = folder.name.removesuffix("-fast")
        if stem not in STEMS or not folder.is_dir():
            parser.error(f"{folder}: expected a folder named as one of {', '.join(STEMS)}, with -fast if it was fast")
        profile = "fast" if folder.name.endswith("-fast") else "full"
        failures |= told_in_words(experiment(stem).run(profile, results=options.results, work=folder, again=True))
    return failures


if __name__ == "__main__":
    raise SystemExit(main())
