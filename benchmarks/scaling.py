"""Scaling over parameters, devices and processes, memory against the plan, and compile time:
`python -m benchmarks.scaling [--fast] [--json FILE] [--only NAME ...]`.

Each measurement is a fresh process, so that memory and compilation are its own and XLA can be told how many devices to
force. Scaling over runs is part of `benchmarks.sweeps`. On a machine of C cores, N devices or processes can be at most
min(N, C) times as fast as one that uses a single core: `of_ideal` is relative to that.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

PARTS = ("parameters", "devices", "processes", "memory", "compile")

CHILD = """
import json, os, resource, sys, time
asked = json.loads(sys.argv[1])
if asked.get("cores"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: asked["cores"]])
import jax, numpy as np, optax, lossland as ll
from lossland.problems.networks import mlp_classification
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: compiled.append((time.perf_counter(), seconds)) if "backend_compile" in event else None)
def compiling():  # wall time during which something was compiled: programs are compiled side by side
    total, reached = 0.0, 0.0
    for begin, end in sorted((end - seconds, end) for end, seconds in compiled):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
draws = np.random.default_rng(0)
width, inputs = asked.get("width", 16), 16
if asked.get("kind") == "lstm":
    from lossland.problems.networks import LSTM
    problem = ll.Problem.from_flax(LSTM(6, hidden=32), optax.softmax_cross_entropy_with_integer_labels,
                                   (draws.normal(size=(98, 100, 1)), draws.integers(0, 6, 98)))
else:
    problem = mlp_classification(draws.normal(size=(asked.get("examples", 128), inputs)),
                                 np.arange(asked.get("examples", 128)) % 4, widths=(width, width))
optimizer = {"sgd": optax.sgd, "adam": optax.adam, "rmsprop": optax.rmsprop}[asked.get("optimizer", "sgd")]
def sweep(seeds, steps, lane_width=None):
    return ll.Sweep({"learning_rate": [0.01, 0.02]}, max(1, seeds // 2), steps, steps, lane_width=lane_width,
                    batch_size=asked.get("batch_size"))
def call(asked_sweep):
    return ll.run(problem, optimizer, asked_sweep, progress=False)
shapes = jax.tree.leaves(problem.param_shapes)
found = {"parameters": int(sum(np.prod(leaf.shape) for leaf in shapes)), "devices": jax.device_count()}
whole = sweep(asked["runs"], asked["steps"], asked.get("lane_width"))
began = time.perf_counter()
call(whole)
found["first_call_seconds"] = time.perf_counter() - began
found["compile_seconds"] = compiling()
found["largest_compilation_seconds"] = max(seconds for _, seconds in compiled)
found["compilations"] = len([seconds for _, seconds in compiled if seconds > 0.5])
times = []
for _ in range(asked["rounds"]):
    began = time.perf_counter()
    call(whole)
    times.append(time.perf_counter() - began)
found["seconds"] = sorted(times)[len(times) // 2]
found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
if asked.get("plan"):
    found["planned_bytes"] = ll.plan(problem, optimizer, whole, lane_widths=[whole.lane_width or 1]).bytes_in_memory
print("FOUND " + json.dumps(found))
"""


def child(**asked: Any) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    flags = os.environ.get("XLA_FLAGS", "")
    if asked.get("devices"):
        flags += f" --xla_force_host_platform_device_count={asked['devices']}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(asked)], env=environment, capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    if done.returncode or not lines:
        raise RuntimeError(f"{asked}: {done.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix("FOUND "))


def parameters(fast: bool) -> list[dict[str, Any]]:
    """Cost of a run-step per parameter and example, from hundreds of parameters to a million."""
    found = []
    for width in (8, 16) if fast else (8, 32, 128, 512, 960):
        runs, steps = (4, 4) if fast else (16, max(4, 20_000 // width**2 * 8))
        row = child(width=width, runs=runs, steps=steps, rounds=1 if fast else 3)
        per = row["seconds"] / runs / steps
        found.append({**row, "nanoseconds_per_run_step_and_parameter": 1e9 * per / row["parameters"]})
    return found


def devices(fast: bool) -> list[dict[str, Any]]:
    """The same sweep on 1, 2 and 4 forced host devices of one process, each pass beside one on a single core."""
    asked = {"runs": 8, "steps": 8, "rounds": 1} if fast else {"runs": 64, "steps": 1000, "rounds": 3, "width": 64}
    cores, found = len(os.sched_getaffinity(0)), []
    for count in (1, 2) if fast else (1, 2, 4):
        alone, many = [], []
        for _ in range(1 if fast else 3):
            alone.append(child(**asked, cores=1)["seconds"])
            many.append(child(**asked, devices=count)["seconds"])
        speedup = statistics.median(a / b for a, b in zip(alone, many, strict=True))
        found.append({"devices": count, "cores": cores, "speedup": speedup, "of_ideal": speedup / cores})
    return found


def keep_to(core: int) -> None:
    """Let all threads of this process, and those that they start, run on one core only."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def processes(fast: bool) -> list[dict[str, Any]]:
    """The same sweep on 1 and 2 Dask workers, processes of their own with a core each."""
    import optax
    from distributed import Client, LocalCluster

    import lossland as ll

    problem = ll.problems.named("moons")
    runs, steps = (8, 8) if fast else (128, 2000)
    sweep = ll.Sweep({"learning_rate": [0.01, 0.02]}, runs // 2, steps, steps, lane_width=1)
    found, first = [], 0.0
    for workers in (1, 2):
        with (
            LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            for core, worker in zip(sorted(os.sched_getaffinity(0)), cluster.workers.values(), strict=False):
                client.run(keep_to, core, workers=[worker.worker_address])  # XLA would take all of them
            executor = client.get_executor()
            took = []
            for _ in range(2 if fast else 4):
                began = time.perf_counter()
                ll.run(problem, optax.sgd, sweep, progress=False, executor=executor)
                took.append(time.perf_counter() - began)
        seconds = statistics.median(took[1:])  # the first pass compiles
        first = first or seconds
        ideal = min(workers, len(os.sched_getaffinity(0)))
        found.append({"processes": workers, "seconds": seconds, "speedup": first / seconds,
                      "of_ideal": first / seconds / ideal})  # fmt: skip
    return found


def memory(fast: bool) -> dict[str, Any]:
    """Peak memory of a sweep beyond a tiny one's, against what the plan says, and per run as runs grow."""
    base = {"width": 16 if fast else 512, "steps": 2, "rounds": 1, "lane_width": 1}
    few, many = (2, 8) if fast else (64, 1024)
    tiny = child(**base, runs=2)
    small = child(**base, runs=few, plan=True)
    large = child(**base, runs=many, plan=True)
    return {
        "runs": [few, many],
        "parameters": large["parameters"],
        "peak_bytes": [row["peak_bytes"] for row in (small, large)],
        "bytes_per_run": (large["peak_bytes"] - small["peak_bytes"]) / (many - few),
        "bytes_of_parameters_per_run": 4 * large["parameters"],
        "beyond_a_tiny_sweep": [max(row["peak_bytes"] - tiny["peak_bytes"], 0) for row in (small, large)],
        "planned_bytes": [row["planned_bytes"] for row in (small, large)],
        "measured_over_planned": (large["peak_bytes"] - tiny["peak_bytes"]) / large["planned_bytes"],
    }


def compile_time(fast: bool) -> dict[str, dict[str, Any]]:
    """Wall time in which XLA compiles for a first sweep: a perceptron and a recurrent network; nothing for a second.

    Compilations are counted from half a second on.
    """
    asked = {
        "perceptron": {"width": 16 if fast else 64, "optimizer": "sgd"},
        "perceptron, Adam": {"width": 16 if fast else 64, "optimizer": "adam"},
        "recurrent": {"kind": "lstm", "optimizer": "rmsprop", "batch_size": 32},
    }
    keys = ("compile_seconds", "largest_compilation_seconds", "compilations", "first_call_seconds")
    rows = {}
    for name, options in list(asked.items())[: 1 if fast else None]:
        rounds = [child(**options, runs=2, steps=2, rounds=1) for _ in range(1 if fast else 3)]
        rows[name] = {key: statistics.median(row[key] for row in rounds) for key in keys}
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Print what is found, write JSON if asked; parts that are not measured stay as the file has them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    measures = {"parameters": parameters, "devices": devices, "processes": processes, "memory": memory,
                "compile": compile_time}  # fmt: skip
    kept = options.json is not None and options.json.exists()
    report: dict[str, Any] = json.loads(options.json.read_text()) if kept else {}
    for name in options.only:
        report[name] = measures[name](options.fast)
        report["machine"] = machine()
        print(json.dumps({name: report[name]}, indent=1), flush=True)
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
