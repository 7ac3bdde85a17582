"""What a sweep will cost, before it is run: lane widths timed, memory, tiles, disk, time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossland.arguments import OPTIMIZER, a, count, expects, optional, several
from lossland.problems.problem import Problem
from lossland.sweeps.execution import make_job
from lossland.sweeps.job import Job
from lossland.sweeps.plan import Device, Plan
from lossland.sweeps.probes import as_probes
from lossland.sweeps.programs import GroupProgram
from lossland.sweeps.sweep import Sweep

TRIAL_SECONDS = 0.5
"""Roughly how long one candidate is timed."""
FACTORS = (1 / 4, 1, 4)
"""Candidates, as multiples of the default lane width."""


@dataclass(frozen=True)
class Candidate:
    """One lane width, measured: `run_steps_per_second` on all workers, `bytes_per_worker` while a tile is computed."""

    lane_width: int
    run_steps_per_second: float
    bytes_per_worker: int
    compile_seconds: float


@dataclass(frozen=True)
class Forecast:
    """What a sweep will take on this machine.

    Args:
        sweep: with the lane width that was fastest.
        candidates: every lane width that was timed.
        num_tiles, runs_per_tile: how the runs are cut.
        bytes_on_disk: of all tiles.
        bytes_in_memory: programs' temporaries, state and records of all workers, and the results.
        seconds: if no run diverges; compilation included.
    """

    sweep: Sweep
    candidates: tuple[Candidate, ...]
    num_tiles: int
    runs_per_tile: int
    workers: int
    bytes_on_disk: int
    bytes_in_memory: int
    seconds: float

    def __str__(self) -> str:
        chosen = self.sweep.lane_width
        lines = [
            f"{self.sweep.num_runs} runs x {self.sweep.num_steps} steps: {self.num_tiles} tiles of up to "
            f"{self.runs_per_tile} runs on {self.workers} workers",
            "",
            f"  {'lane width':>10}{'run-steps/s':>14}{'memory/worker':>16}{'compilation':>14}",
        ]
        lines += [
            f"  {c.lane_width:>10}{c.run_steps_per_second:>14.3g}{_size(c.bytes_per_worker):>16}"
            f"{c.compile_seconds:>12.1f} s{'   fastest' if c.lane_width == chosen else ''}"
            for c in self.candidates
        ]
        programs = len(self.sweep.groups())
        lines += [
            "",
            f"time    {_duration(self.seconds)} if no run diverges"
            + (f", {programs} programs to compile (one per batch size and precision)" if programs > 1 else ""),
            f"memory  {_size(self.bytes_in_memory)}",
            f"disk    {_size(self.bytes_on_disk)}",
        ]
        return "\n".join(lines)


@expects(
    problem=a("an ll.Problem", Problem),
    optimizer=OPTIMIZER,
    sweep=a("an ll.Sweep", Sweep),
    lane_widths=optional(several(count())),
)
def plan(
    problem: Problem,
    optimizer: Any,
    sweep: Sweep,
    probes: Iterable[Any] = ("loss",),
    *,
    lane_widths: Iterable[int] | None = None,
) -> Forecast:
    """Time a few lane widths on the sweep's own first runs, and forecast memory, disk and time of the whole.

    Nothing is tuned silently: `run` uses the lane width of the sweep, or a fixed rule; to use the one found here, run
    `plan(...).sweep`. The lane width is part of a sweep's identity, as bits depend on it.

    Args:
        problem, optimizer, sweep, probes: as for `run`.
        lane_widths: candidates; default a quarter of the rule's, the rule's, and four times it. With a lane width in
            the sweep, that one alone.

    Raises:
        ValueError: as `run` does; also if no candidate fits into memory (which would is said).
    """
    probes = list(as_probes(probes))
    default = make_job(problem, optimizer, sweep, probes).plan.lane_width
    if lane_widths is None:
        found = {max(1, int(default * factor)) for factor in FACTORS}
        lane_widths = [default] if sweep.lane_width is not None else sorted(found)
    jobs = {width: make_job(problem, optimizer, sweep.with_lane_width(width), probes) for width in lane_widths}
    available = _available(next(iter(jobs.values())))
    candidates = [_timed(job) for job in jobs.values()]
    fitting = [candidate for candidate in candidates if candidate.bytes_per_worker <= available]
    if not fitting:
        least = min(candidates, key=lambda candidate: candidate.bytes_per_worker)
        raise ValueError(
            f"sweep: a tile of lane width {least.lane_width} needs {_size(least.bytes_per_worker)} per worker, there "
            f"are {_size(available)}; {_what_would_fit(least, available, jobs[least.lane_width])}"
        )
    best = max(fitting, key=lambda candidate: candidate.run_steps_per_second)
    job = jobs[best.lane_width]
    per_run = sum(
        int(np.prod(shape.shape, dtype=np.int64)) * np.dtype(shape.dtype).itemsize for shape in job.shapes().values()
    )
    workers = len(_workers(job.plan))
    results = per_run * sweep.num_runs
    return Forecast(
        sweep=job.sweep,
        candidates=tuple(candidates),
        num_tiles=len(sweep.tiles(job.plan.runs_per_tile)),
        runs_per_tile=job.plan.runs_per_tile,
        workers=workers,
        bytes_on_disk=results,
        bytes_in_memory=results + workers * best.bytes_per_worker,
        seconds=sweep.num_runs * sweep.num_steps / best.run_steps_per_second + best.compile_seconds,
    )


def _timed(job: Job) -> Candidate:
    """Compile one lane width and time it on the first tiles of every program, all workers busy as they will be."""
    compile_seconds, seconds, run_steps = 0.0, 0.0, 0
    for program in job.programs:
        began = time.perf_counter()
        for device in job.plan.devices:
            program.compile(job.plan.chunks_per_tile, device)
        compile_seconds += time.perf_counter() - began
        run_steps += len(program.group.runs) * job.sweep.num_steps
        seconds += len(program.group.runs) * job.sweep.num_steps / _rate(program, job.plan)
    return Candidate(job.plan.lane_width, run_steps / seconds, _memory(job), compile_seconds)


def _rate(program: GroupProgram, plan: Plan) -> float:
    """Run-steps per second of all workers together, the number of steps doubling until the clock can tell."""
    per_tile, num_steps = plan.runs_per_tile, program.job.sweep.num_steps
    runs = program.group.runs
    tiles = [runs[place : place + per_tile] for place in range(0, len(runs), per_tile)]
    devices = _workers(plan)[: len(program.job.sweep.tiles(per_tile))]  # a sweep of few tiles leaves some idle
    steps = 1
    with ThreadPoolExecutor(len(devices)) as pool:
        while True:
            taken = [
                pool.submit(program.trial, tile, plan.chunks_per_tile, device, steps)
                for tile, device in zip(itertools.cycle(tiles), devices, strict=False)
            ]
            trials = [future.result() for future in taken]
            took = max(seconds for _, seconds in trials)
            if took >= TRIAL_SECONDS / 2 or steps >= num_steps:
                return sum(max(done, 1) / seconds for done, seconds in trials)  # runs may have died at once
            steps = min(num_steps, max(2 * steps, int(steps * TRIAL_SECONDS / took)))


def _workers(plan: Plan) -> list[Device]:
    """The device of every worker."""
    return [device for device in plan.devices for _ in range(plan.workers_per_device)]


def _memory(job: Job) -> int:
    """Bytes per worker of the hungriest program: tiles of different programs are under way at the same time."""
    return max(program.memory(job.plan.chunks_per_tile) for program in job.programs)


def _what_would_fit(least: Candidate, available: float, job: Job) -> str:
    """Halve the lane width until the compiled programs fit."""
    width, needed = least.lane_width, least.bytes_per_worker
    while width > 1:
        width = max(1, min(width // 2, int(width * available / needed)))
        needed = _memory(make_job(job.problem, job.optimizer, job.sweep.with_lane_width(width), job.probes))
        if needed <= available:
            return f"a lane width of {width} would fit"
    return f"no lane width would fit (1 needs {_size(needed)}): record less often, or use a larger machine"


def _available(job: Job) -> float:
    """Bytes that one worker may use: of the device, where it says; else a share of what the machine has."""
    statistics = job.plan.devices[0].memory_stats() or {}
    if limit := statistics.get("bytes_limit"):
        return limit - statistics.get("bytes_in_use", 0)
    try:
        with open("/proc/meminfo") as lines:
            total = next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")
    return total / len(_workers(job.plan))


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
