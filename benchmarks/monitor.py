"""What `ll.monitor` adds to a training step: `python -m benchmarks.monitor [--fast] [--json FILE] [--only NAME ...]`.

The same steps with and without it, in turn within every round and in changing order, so that a machine that drifts
drifts for both; reported are medians over rounds of the ratio of the two, of wall time and of the time that all threads
of the process spent. Steps are taken in a Python loop of one jitted step, as users write it, and in one jitted scan.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import lossland as ll
from lossland.problems.networks import MLP, Transformer

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "adam": lambda: optax.adam(1e-3),
    "momentum": lambda: optax.sgd(0.05, momentum=0.9),
}


@dataclass(frozen=True)
class Work:
    """A network and the batch that every step sees."""

    name: str
    module: Any
    batch: tuple[Any, Any]
    num_steps: int


def works(fast: bool) -> list[Work]:
    """The works of the table: digits by an MLP (64-128-64-10), as sequences of rows by a small transformer."""
    images, labels = ll.problems.named("digits").data
    images = np.asarray(images, np.float32).reshape(len(labels), 64)
    # Multiples of the interval of the monitor, in blocks so short that a machine that drifts drifts for both.
    steps = 5 if fast else 48
    mlp, transformer = MLP((128, 64, 10)), Transformer(10)
    if fast:
        images, labels = images[:16], labels[:16]
    rows = images.reshape(-1, 8, 8)
    return [
        Work("mlp, batch 128", mlp, (images[:128], labels[:128]), steps),
        Work("mlp, full batch", mlp, (images, labels), max(5, steps // 3)),
        Work("transformer, batch 128", transformer, (rows[:128], labels[:128]), max(5, steps // 3)),
    ]


def trainers(work: Work, optimizer: Callable[[], Any]) -> dict[str, dict[str, Callable[[], Any]]]:
    """way -> {"plain", "monitored"} -> a call that trains and returns the last parameters."""
    inputs, labels = (jnp.asarray(part) for part in work.batch)
    params = work.module.init(jax.random.key(0), inputs)

    def loss(params: Any) -> jax.Array:
        logits = work.module.apply(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    found: dict[str, dict[str, Callable[[], Any]]] = {"loop": {}, "scan": {}}
    for name, tx in (
        ("plain", optax.with_extra_args_support(optimizer())),
        ("monitored", ll.monitor(optimizer())),
    ):

        def step(params: Any, state: Any, tx: Any = tx) -> Any:
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = tx.update(gradient, state, params, value=value)
            return optax.apply_updates(params, updates), state, value

        jitted = jax.jit(step)
        start = tx.init(params)

        def loop(jitted: Any = jitted, state: Any = start) -> Any:
            now = params
            for _ in range(work.num_steps):
                now, state, _ = jitted(now, state)
            return jax.block_until_ready(now)

        @jax.jit
        def scanned(params: Any, state: Any, step: Any = step) -> Any:
            def body(carry: Any, _: Any) -> Any:
                params, state, value = step(*carry)
                return (params, state), value

            return lax.scan(body, (params, state), length=work.num_steps)[0]  # all of it, or XLA leaves the rest out

        def scan(scanned: Any = scanned, state: Any = start) -> Any:
            return jax.block_until_ready(scanned(params, state))[0]

        found["loop"][name], found["scan"][name] = loop, scan
    return found


def measure(calls: dict[str, Callable[[], Any]], num_steps: int, rounds: int) -> dict[str, Any]:
    """Time both in every round, the first first in every other one; compare their bits."""
    ends = {name: call() for name, call in calls.items()}  # compiles
    leaves = [[np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(end)] for end in ends.values()]
    times: dict[str, list[float]] = {name: [] for name in calls}
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for place in range(rounds):
        for name in sorted(calls, reverse=bool(place % 2)):
            began, before = time.perf_counter(), time.process_time()
            calls[name]()
            spent[name].append((time.process_time() - before) / num_steps)
            times[name].append((time.perf_counter() - began) / num_steps)
    ratios = sorted(m / p for m, p in zip(times["monitored"], times["plain"], strict=True))
    work = [m / p for m, p in zip(spent["monitored"], spent["plain"], strict=True)]
    extra = statistics.median(m - p for m, p in zip(times["monitored"], times["plain"], strict=True))
    return {
        "plain_microseconds": 1e6 * statistics.median(times["plain"]),
        "extra_microseconds": 1e6 * extra,
        "ratio": statistics.median(ratios),
        "ratio_of_processor_time": statistics.median(work),
        "ratio_of_the_fastest": min(times["monitored"]) / min(times["plain"]),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
        "same_bits": leaves[0] == leaves[1],
    }


def main(arguments: list[str] | None = None) -> int:
    """Print the table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--rounds", type=int, default=61)
    parser.add_argument("--only", nargs="*", default=None, help="names of works")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    rows = []
    for work in works(options.fast):
        if options.only and work.name not in options.only:
            continue
        for optimizer, build in OPTIMIZERS.items():
            for way, calls in trainers(work, build).items():
                row = {"work": work.name, "optimizer": optimizer, "way": way}
                row |= measure(calls, work.num_steps, 1 if options.fast else options.rounds)
                rows.append(row)
                low, high = row["ratio_quartiles"]
                print(
                    f"{work.name:<24}{optimizer:<10}{way:<6}{row['plain_microseconds']:>9.1f} us a step, "
                    f"{row['extra_microseconds']:+7.1f} us, ratio {row['ratio']:.3f} [{low:.3f}, {high:.3f}], "
                    f"of processor time {row['ratio_of_processor_time']:.3f}, "
                    f"of the fastest {row['ratio_of_the_fastest']:.3f}, "
                    f"{'same bits' if row['same_bits'] else 'OTHER BITS'}"
                )
                sys.stdout.flush()
    if options.json:
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "jax": jax.__version__}
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
