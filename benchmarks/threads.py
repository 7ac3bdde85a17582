"""What a second core is worth to each work: `python -m benchmarks.threads [--fast] [--json FILE] [--only NAME ...]`.

Every measurement is a fresh process that may use one core or two, in turn, so that a machine that drifts drifts for
both. Kernels that share their cores, or wait for memory, gain less than twice. What this library gains over one `vmap`
of the whole grid by keeping all cores busy can be no more than what the second core is worth to it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

CORES = (1, 2)
NAMES = ("T2", "T3", "T4", "8 wide", "512 wide", "top eigenvalues")

CHILD = """
import dataclasses, json, os, sys, time
cores, name, fast = json.loads(sys.argv[1])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])  # before JAX counts them
import jax
from jax import lax

def seconds(call, rounds):
    call()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)

if name == "top eigenvalues":
    from benchmarks import curvature
    sizes, count = ((64, 16, 10), 4) if fast else ((64, 128, 64, 10), 32)
    starts = jax.vmap(lambda key: curvature.initial(key, sizes))(jax.random.split(jax.random.key(0), count))
    solve = curvature.top(1)
    mapped = jax.jit(lambda starts: lax.map(solve, starts)[0])
    ways = {"lossland": lambda: jax.block_until_ready(mapped(starts))}
else:
    from benchmarks import sweeps
    work = next(work for work in sweeps.works(fast) if work.name == name)
    work = dataclasses.replace(work, num_steps=max(2, work.num_steps // (1 if fast else 5)))
    ways = {"lossland": sweeps.lossland_run(work), "naive": sweeps.naive(work)}
print(json.dumps({way: seconds(call, 1 if fast else 2) for way, call in ways.items()}))
"""


def measured(cores: int, name: str, fast: bool) -> dict[str, float]:
    """Seconds of each way of a work on so many cores."""
    asked = json.dumps([cores, name, fast])
    command = [sys.executable, "-c", CHILD, asked]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return json.loads(told.stdout.splitlines()[-1])


def measure(name: str, rounds: int, fast: bool) -> dict[str, Any]:
    """Medians over rounds: what the second core is worth to each way, and how they compare on one core and on two."""
    times = {cores: [] for cores in CORES}
    for place in range(rounds):
        for cores in CORES if place % 2 == 0 else reversed(CORES):
            times[cores].append(measured(cores, name, fast))
    ways = list(times[1][0])
    row: dict[str, Any] = {
        "work": name,
        "second_core": {
            way: statistics.median(one[way] / two[way] for one, two in zip(times[1], times[2], strict=True))
            for way in ways
        },
    }
    if "naive" in ways:
        row["times_naive"] = {
            str(cores): statistics.median(found["naive"] / found["lossland"] for found in times[cores])
            for cores in CORES
        }
    return row


def main(arguments: list[str] | None = None) -> int:
    """Print the table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    about, rows = machine(), {}
    for name in options.only:
        row = rows[name] = measure(name, 1 if options.fast else options.rounds, options.fast)
        shown = ", ".join(f"{way} {value:.2f}" for way, value in row["second_core"].items())
        ratio = ", ".join(f"{value:.2f} on {cores}" for cores, value in row.get("times_naive", {}).items())
        print(
            f"{name:<18}one core's time over two's: {shown}" + (f"; times naive {ratio}" if ratio else ""), flush=True
        )
        if options.json:
            options.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
