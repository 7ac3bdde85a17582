"""Tiles on other processes and machines, through any `concurrent.futures.Executor`: pure tasks that may be repeated."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import platform
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from lossland.sweeps.job import SOFTWARE, Job, here
from lossland.sweeps.plan import Device, make_plan
from lossland.sweeps.store import Store

IN_FLIGHT = 1024
"""Tasks handed to an executor at once."""
FIRST = 64
"""As many of one tile each until the first is back, and it is known how long a tile takes."""
TASK_SECONDS = 2.0
"""A task takes as many tiles as fill this time, by the tiles that came back: sending one costs milliseconds."""
ATTEMPTS = 10
"""How often a tile is sent before it is given up because workers died under it."""
PATIENCE = 10.0
"""Seconds without any worker until that is said."""

Tile = tuple[int, np.ndarray]


class ExecutorError(RuntimeError):
    """The executor broke, or a task failed on a worker: the message says what is saved and what to do."""


class DifferenceError(ValueError):
    """A worker has other software or devices than the sweep was begun with."""


@dataclass(frozen=True)
class Package:
    """A sweep on its way to workers; its digest stands for it."""

    digest: str
    place: dict[str, str] = field(compare=False)
    content: bytes = field(compare=False, repr=False)


def describe() -> dict[str, str]:
    """What decides bits where this is called, and the version of Python, whose functions other versions cannot read."""
    return {**here(), "python": ".".join(platform.python_version_tuple()[:2])}


def place_of(executor: Executor) -> dict[str, str]:
    """What decides bits on the executor's workers, as the first that answers has it.

    Raises:
        ExecutorError: if no worker can start.
        ValueError: if it has other software than this process, or would be a fork of it.
    """
    context = getattr(executor, "_mp_context", None)
    if context is not None and context.get_start_method() == "fork":
        raise ValueError(
            "executor: its processes are forks of this one, in which JAX hangs; use "
            "ProcessPoolExecutor(mp_context=multiprocessing.get_context('spawn'))"
        )
    try:
        future = executor.submit(describe, **_options(executor))
        try:
            there = future.result(timeout=PATIENCE)
        except TimeoutError:
            print("lossland: no worker of the executor has answered yet; waiting for one", file=sys.stderr, flush=True)
            there = future.result()
    except (BrokenExecutor, CancelledError, ImportError) as error:
        raise ExecutorError(
            f"executor: its workers cannot run lossland ({_said(error)}). They need the packages of this process, and "
            "a script that starts a pool of processes needs its calls under if __name__ == '__main__'"
        ) from error
    own = describe()
    _refuse_difference({name: own[name] for name in ("python", *SOFTWARE)}, there, "this process")
    return {name: there[name] for name in here()}


def compute(
    job: Job,
    todo: list[Tile],
    per_tile: int,
    store: Store | None,
    stop: Any,
    executor: Executor,
    waiting: Callable[[], None] = lambda: None,
) -> Generator[tuple[int, dict[str, np.ndarray]], None, None]:
    """Send tiles to an executor; yield them as they come back, each saved before it is yielded.

    `waiting` is called every second in which none does.

    Raises:
        ExecutorError: if a task fails, or the executor breaks; naming the cause, and what is saved.
        ValueError: if cloudpickle is missing (extra "cluster"), by which functions travel; or a worker has other
            devices or software than the sweep was begun with.
    """
    num_chunks, options = job.plan.chunks_for(per_tile), _options(executor)
    package = _sent_once(executor, pack(job))
    todo = list(reversed(todo))
    pending: dict[Future[Any], list[Tile]] = {}
    back: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
    given_up: Counter[int] = Counter()
    num_back, seconds = 0, 0.0
    try:
        while True:
            while todo and len(pending) < (IN_FLIGHT if num_back else min(FIRST, IN_FLIGHT)) and not stop.is_set():
                count = max(1, int(TASK_SECONDS * num_back / seconds)) if seconds else 1
                # The first tiles back may be those that diverged at once: never more than a small share in one task.
                count = min(count, max(1, len(todo) // FIRST))
                tiles = [todo.pop() for _ in range(min(count, len(todo)))]
                try:
                    task = executor.submit(compute_tiles, package, [runs for _, runs in tiles], num_chunks, **options)
                except RuntimeError as error:
                    raise _broken(error, store) from error
                pending[task] = tiles
                task.add_done_callback(back.put)
            if not pending:
                break
            try:
                task = back.get(timeout=0.0 if stop.is_set() else 1.0)  # a request to stop is heard
            except queue.Empty:
                if stop.is_set():
                    break
                waiting()
                continue
            tiles = pending.pop(task)
            try:
                found, took = task.result()
            except DifferenceError:
                raise
            except (BrokenExecutor, CancelledError) as error:
                raise _broken(error, store) from error
            except Exception as error:
                given_up.update(tile for tile, _ in tiles)
                # Dask's name for a task that lost several workers, all of which may have died of something else.
                if type(error).__name__ == "KilledWorker" and given_up[tiles[0][0]] < ATTEMPTS:
                    todo.extend(reversed(tiles))
                    continue
                where = f"tile {tiles[0][0]}" if len(tiles) == 1 else f"one of the tiles {tiles[0][0]}-{tiles[-1][0]}"
                raise ExecutorError(f"executor: {where} failed: {_said(error)}. {_safe(store)}") from error
            num_back, seconds = num_back + len(tiles), seconds + took
            for (tile, _), results in zip(tiles, found, strict=True):
                if store is not None:
                    store.write(tile, results)
                yield tile, results
    finally:
        for task in pending:
            task.cancel()


def pack(job: Job) -> Package:
    """Put a sweep into bytes, functions and data included.

    Raises:
        ValueError: if cloudpickle is missing, or something in the sweep cannot travel.
    """
    try:
        import cloudpickle
    except ImportError as error:
        raise ValueError('executor: needs cloudpickle; pip install "lossland[cluster]"') from error
    try:
        content = cloudpickle.dumps((job.problem, job.optimizer, job.probes, job.sweep, job.place))
    except Exception as error:  # whatever an object's own code raises
        raise ValueError(
            f"executor: the problem, the optimizer or a probe cannot be sent to workers ({_said(error)}); build files, "
            "locks and connections inside the functions that use them"
        ) from error
    place = {**job.place, "python": describe()["python"]}
    return Package(hashlib.sha256(content).hexdigest(), place, content)


def compute_tiles(package: Package, tiles: list[np.ndarray], num_chunks: int) -> tuple[list[Any], float]:
    """Train tiles in this process, one after another; returns their results, and seconds without compiling."""
    with _lock:
        job = _job(package)
    with _idle_device() as device:
        for program in {id(program): program for program in map(job.program_of, tiles)}.values():
            program.compile(num_chunks, device)
        began = time.perf_counter()
        found = [job.program_of(runs).compute(runs, num_chunks, device) for runs in tiles]
        return found, time.perf_counter() - began


_lock = threading.Lock()
_tasks_on: Counter[Device] = Counter()


@contextlib.contextmanager
def _idle_device() -> Iterator[Device]:
    """The local device with the fewest tasks: a worker with a thread per device uses all of them."""
    with _lock:
        device = min(jax.local_devices(), key=lambda device: _tasks_on[device])
        _tasks_on[device] += 1
    try:
        yield device
    finally:
        with _lock:
            _tasks_on[device] -= 1


@functools.lru_cache(maxsize=4)  # a worker unpacks and compiles a sweep once
def _job(package: Package) -> Job:
    # Compared first: another version may fail to read what was sent, and would say so in riddles.
    _refuse_difference(package.place, describe(), "where the sweep was begun")
    import cloudpickle

    problem, optimizer, probes, sweep, place = cloudpickle.loads(package.content)
    return Job(problem, optimizer, probes, sweep, make_plan(sweep, place["platform"]), place)


def _refuse_difference(expected: dict[str, str], there: dict[str, str], where: str) -> None:
    if different := [name for name in expected if there[name] != expected[name]]:
        listed = "; ".join(f"{name} {there[name]} there, {expected[name]} {where}" for name in different)
        raise DifferenceError(f"executor: a worker has other software or devices ({listed}); give all of them the same")


def _is_dask(executor: Executor) -> bool:
    return type(executor).__module__.partition(".")[0] == "distributed"


def _options(executor: Executor) -> dict[str, Any]:
    """Dask takes calls with equal arguments for one task, and a cancelled one would take the next with it."""
    return {"pure": False} if _is_dask(executor) else {}


def _sent_once(executor: Any, package: Package) -> Any:
    """On Dask, a task whose result is the package: workers pass it on, and it is made again when they are killed."""
    if not _is_dask(executor):
        return package
    import dask.config

    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"}):
        return executor._client.submit(_itself, package, pure=False)


def _itself(package: Package) -> Package:
    return package


def _broken(error: BaseException, store: Store | None) -> ExecutorError:
    return ExecutorError(
        f"executor: it broke ({_said(error)}): a worker was killed or ran out of memory, or the executor was shut down "
        f"or has lost its scheduler. {_safe(store)}"
    )


def _said(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _safe(store: Store | None) -> str:
    if store is None:
        return "Nothing was saved: give out=, and the same call goes on from the tiles that are finished"
    return f"{len(store.done())} of {store.num_tiles} tiles are saved in {store.directory}; the same call resumes"
