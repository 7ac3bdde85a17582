"""Lane width, tile size and workers: fixed before anything runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import jax

from lossland.sweeps.sweep import Sweep

Device = Any  # jax.Device, which type checkers take for a variable

TILES_PER_WORKER = 2
"""Tiles that every worker should get, so that none idles at the end: small sweeps are cut into smaller tiles."""
TINY_RUNS_WIDTH = 128
"""Lanes of problems of a few parameters on a CPU."""
FEW_RECORDS = 256
"""Records up to which tiles of many lanes are made large: what a tile holds stays small."""
ACCELERATOR_BUDGET = 2**32
"""Bytes of parameters, gradients and optimizer state that one wide chunk may take on an accelerator."""


@dataclass(frozen=True)
class Plan:
    """How a sweep is laid out on this machine.

    Only `lane_width` decides bits; it is part of the sweep's identity. `chunks_per_tile` is how many kernels a program
    is compiled to advance one after another in one job, `chunks_filled` how many of them this sweep gives it (one
    compiled program serves sweeps of every size), `workers` how many jobs run at once.
    """

    lane_width: int
    chunks_per_tile: int
    chunks_filled: int
    devices: tuple[Device, ...]
    workers_per_device: int

    @property
    def runs_per_tile(self) -> int:
        """Runs that are computed and saved together."""
        return self.lane_width * self.chunks_filled

    def chunks_for(self, runs_per_tile: int) -> int:
        """Chunks of the program that computes tiles of so many runs: those of a folder may have been cut elsewhere."""
        return max(self.chunks_per_tile, -(-runs_per_tile // self.lane_width))


def default_lane_width(platform: str, num_params: int, num_examples: int) -> int:
    """Choose how many runs one kernel advances, from the platform and the problem's size alone.

    On a CPU a chunk should stay in the second-level cache, and networks fill the vector units alone: one run per kernel
    is fastest for widths of 32 and more; problems of a few parameters need many lanes to amortise a kernel's dispatch.
    On accelerators one wide chunk wins, as wide as memory allows. Never depends on the number of runs, so a sweep of
    one has the bits it has in a sweep of thousands.
    """
    work = num_params * num_examples
    if platform == "cpu":
        return TINY_RUNS_WIDTH if work <= 1_000 else 16 if work <= 50_000 else 1
    per_run = 4 * (8 * num_params + 64 * num_examples)
    return max(1, min(4096, 2 ** max(0, (ACCELERATOR_BUDGET // per_run).bit_length() - 1)))


def make_plan(sweep: Sweep, platform: str) -> Plan:
    """Lay the tiles of a sweep, its lane width decided, onto the local devices, for runs on a platform (this one, or
    that of workers)."""
    assert sweep.lane_width is not None
    lane_width, devices = sweep.lane_width, tuple(jax.local_devices())
    if platform != "cpu":
        return Plan(lane_width, chunks_per_tile=1, chunks_filled=1, devices=devices, workers_per_device=1)
    # One Python thread per core on a single CPU device is as fast as forced host devices, and needs no flags.
    workers_per_device = max(1, _num_cores() // len(devices))
    wanted = TILES_PER_WORKER * workers_per_device * len(devices)
    # The smallest runs: their tiles cost as much on the host as in the kernel unless they are large.
    tiny = lane_width == TINY_RUNS_WIDTH and len(sweep.recorded_steps) <= FEW_RECORDS
    chunks = filled = 16 if tiny else max(4, 16 // lane_width)
    while filled > 1 and len(sweep.tiles(filled * lane_width)) < wanted:
        filled //= 2
    return Plan(lane_width, chunks, filled, devices, workers_per_device)


def _num_cores() -> int:
    """Cores that this process may use; not every system can say that it has fewer than all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
