"""Import and `--help` in fresh processes: `python -m benchmarks.imports [--fast] [--json FILE]`.

`import lossland` against `import jax, optax`, and `lossland --help` against starting Python, in pairs: one of each,
then the other way round. Ratios of pairs, medians and quartiles. Time is that of the processor, user and system, which
other work on the machine hardly touches.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

PAIRS = {
    "import lossland": ("import lossland", "import jax, optax"),
    "import lossland, every public name": (
        "import lossland\nfor n in lossland.__all__: getattr(lossland, n)",
        "import jax, optax",
    ),
    "lossland --help": ("import sys; from lossland.cli import main; main(['--help'])", "pass"),
}
"""What is measured -> (ours, what it is compared with)."""


def processor_seconds(code: str) -> float:
    """Run code in a fresh interpreter; processor time of the process."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def measure(pairs: int) -> dict[str, dict[str, Any]]:
    """Time both of each pair, the first first in every other one; the first round warms the disk's cache."""
    found = {}
    for name, (ours, theirs) in PAIRS.items():
        times: dict[str, list[float]] = {ours: [], theirs: []}
        for place in range(-1, pairs):
            for code in (ours, theirs) if place % 2 else (theirs, ours):
                took = processor_seconds(code)
                if place >= 0:
                    times[code].append(took)
        ratios = sorted(a / b for a, b in zip(times[ours], times[theirs], strict=True))
        found[name] = {
            "seconds": statistics.median(times[ours]),
            "seconds_compared": statistics.median(times[theirs]),
            "ratio": statistics.median(ratios),
            "quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
            "pairs": pairs,
        }
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print the table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="one pair, to see that it runs")
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    found = measure(1 if options.fast else options.pairs)
    for name, row in found.items():
        low, high = row["quartiles"]
        print(f"{name:<36}{row['seconds']:7.3f} s, {row['ratio']:.3f} [{low:.3f}, {high:.3f}] x {PAIRS[name][1]!r}")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "imports": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
