"""The whole table: `python -m benchmarks [--table | --markdown | --fast]`.

Without an option everything is measured anew, which takes hours, and written to `benchmarks/results`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

from benchmarks import table

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def main(arguments: list[str] | None = None) -> int:
    """Measure everything and print the table, or print it from what is committed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--table", action="store_true", help="print the table from the committed numbers")
    chosen.add_argument("--markdown", action="store_true", help="write docs/benchmarks.md from the committed numbers")
    chosen.add_argument("--fast", action="store_true", help="tiny sizes, to see that it runs; nothing is kept")
    options = parser.parse_args(arguments)
    if options.markdown:
        PAGE.write_text(table.markdown())
        print(PAGE)
        return 0
    if not options.table:
        flags = ["--fast"] if options.fast else []
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) if options.fast else table.RESULTS
            for name in ("imports", "sweeps", "scaling", "monitor", "threads"):
                importlib.import_module(f"benchmarks.{name}").main([*flags, "--json", str(folder / f"{name}.json")])
            importlib.import_module("benchmarks.curvature").main(flags)  # writes its results itself
    print(table.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
