"""Tiles on other processes and machines, through any `concurrent.futures.Executor`: pure tasks that may be repeated."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any

import jax
import numpy as np

from lossland.sweeps.job import Job, here
from lossland.sweeps.plan import make_plan
from lossland.sweeps.store import Store

IN_FLIGHT = 256
"""Tiles handed to an executor at once."""


def describe() -> dict[str, str]:
    """What decides bits where this is called: platform, device, versions."""
    return here()


def compute(
    job: Job,
    todo: list[tuple[int, np.ndarray]],
    per_tile: int,
    store: Store | None,
    stop: threading.Event,
    executor: Executor,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Send tiles to an executor; yield them as they come back, each saved before it is yielded.

    Raises:
        ImportError: if cloudpickle is missing (extra "cluster"), by which functions travel.
        ValueError: if a worker has other devices or software than the sweep was begun with.
    """
    try:
        import cloudpickle
    except ImportError as error:
        raise ImportError('executor: needs cloudpickle; pip install "lossland[cluster]"') from error
    payload = cloudpickle.dumps((job.problem, job.optimizer, job.probes, job.sweep, job.place))
    num_chunks = per_tile // job.plan.lane_width
    todo = list(reversed(todo))
    pending: dict[Future[Any], int] = {}
    try:
        while True:
            while todo and len(pending) < IN_FLIGHT and not stop.is_set():
                tile, runs = todo.pop()
                pending[executor.submit(compute_tile, payload, runs, num_chunks)] = tile
            if not pending or stop.is_set():
                break
            finished, _ = wait(pending, timeout=1.0, return_when=FIRST_COMPLETED)  # a request to stop is heard
            for future in finished:
                tile, results = pending.pop(future), future.result()
                if store is not None:
                    store.write(tile, results)
                yield tile, results
    finally:
        for future in pending:
            future.cancel()


def compute_tile(payload: bytes, runs: np.ndarray, num_chunks: int) -> dict[str, np.ndarray]:
    """Train one tile in this process."""
    job = _job(payload)
    results = job.program_of(runs).compute(runs, num_chunks, jax.local_devices()[0])
    assert results is not None  # nobody asks a task to stop
    return results


@functools.lru_cache(maxsize=4)  # a worker unpacks and compiles a sweep once
def _job(payload: bytes) -> Job:
    import cloudpickle

    problem, optimizer, probes, sweep, place = cloudpickle.loads(payload)
    own = here()
    if different := [f"{name} {own[name]} here, {place[name]} there" for name in place if own[name] != place[name]]:
        raise ValueError(f"executor: a worker differs from where the sweep was begun ({'; '.join(different)})")
    return Job(problem, optimizer, probes, sweep, make_plan(sweep.lane_width, place["platform"]), place)
