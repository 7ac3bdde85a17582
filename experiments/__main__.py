"""Run experiments one after another, and go on after one that fails: `python -m experiments --profile fast`."""

from __future__ import annotations

import argparse
import sys
import traceback

from experiments.catalogue import STEMS, experiment, table
from experiments.experiment import add_options, executor_at, told_in_words


def main() -> int:
    """Run what is asked for; 1 if a target is not reproduced, or an experiment broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("stems", nargs="*", metavar="STEM", help=f"all by default: {', '.join(STEMS)}")
    parser.add_argument("--table", action="store_true", help="print the table of experiments and stop")
    options = parser.parse_args()
    if options.table:
        print(table())
        return 0
    if options.work and len(options.stems) != 1:
        parser.error("--work: expected one STEM with it")
    chosen = [experiment(stem) for stem in options.stems or STEMS]
    failures = 0
    with executor_at(options.executor) as executor:
        for one in chosen:
            try:
                found = one.run(
                    options.profile, results=options.results, work=options.work, executor=executor, again=options.again
                )
                failures |= told_in_words(found)
            except Exception:  # the others' results are worth having, and this one's reason is printed
                traceback.print_exc()
                print(f"{one.stem}: not measured", file=sys.stderr)
                failures = 1
    return failures


if __name__ == "__main__":
    raise SystemExit(main())
