"""Tiles onto devices: train in parallel, save as they finish, resume where a run was stopped."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from lossland.arguments import (
    FLAG,
    FUNCTION,
    MAPPING,
    OPTIMIZER,
    PATH,
    Rule,
    a,
    check,
    either,
    expects,
    number,
    optional,
)
from lossland.optimizers import as_optimizer
from lossland.problems.problem import Problem
from lossland.sweeps import remote
from lossland.sweeps.job import Job, axis_owners, here
from lossland.sweeps.plan import Device, default_lane_width, make_plan
from lossland.sweeps.probes import as_probes
from lossland.sweeps.programs import Snapshot
from lossland.sweeps.progress import Progress, ProgressCallback
from lossland.sweeps.store import DamagedTileError, Store
from lossland.sweeps.surroundings import current
from lossland.sweeps.sweep import Sweep
from lossland.sweeps.trajectories import assemble, blank_array

PREEMPTED = 75
"""Exit code after SIGTERM or SIGUSR1: "temporary failure, try again" (sysexits.h), by which schedulers know to
requeue."""
BACKLOG = 4
"""Finished tiles that may wait for the disk."""


class Stop:
    """A request to stop. Not a `threading.Event`: setting that takes a lock, which a signal handler may find held."""

    def __init__(self) -> None:
        self.requested = False

    def set(self) -> None:
        """Ask."""
        self.requested = True

    def is_set(self) -> bool:
        """Whether somebody asked."""
        return self.requested


class Preempted(SystemExit):
    """The process was asked to stop (SIGTERM, SIGUSR1): everything done is saved, the same call goes on from there."""


@expects(
    problem=a("an ll.Problem", Problem),
    optimizer=OPTIMIZER,
    sweep=a("an ll.Sweep", Sweep),
    out=optional(PATH),
    progress=either(FLAG, FUNCTION),
    executor=optional(a("a concurrent.futures.Executor", Executor)),
    checkpoint_seconds=number(above=0),
    attributes=optional(MAPPING),
)
def run(
    problem: Problem,
    optimizer: Any,
    sweep: Sweep,
    probes: Iterable[Any] = ("loss",),
    out: str | os.PathLike[str] | None = None,
    *,
    progress: bool | ProgressCallback = True,
    executor: Executor | None = None,
    part: tuple[int, int] | None = None,
    checkpoint_seconds: float = 10.0,
    attributes: Mapping[str, str] | None = None,
) -> xr.Dataset:
    """Train every run of a sweep and record the probes along the way.

    Equation: `params_{t+1} = params_t + update(grad loss(params_t, batch_t))` for every hyperparameter x seed; the
    batch is the full data unless the sweep has a batch size.

    Args:
        problem: what is trained.
        optimizer: an optax factory such as `optax.sgd`, an `ll.Optimizer` with some arguments fixed, or a finished
            optax transformation.
        sweep: the grid. Each axis is an argument of the optimizer or of the problem.
        probes: built-in names (`lossland.sweeps.probes.BUILT_IN`: "loss", "gradient_norm", "sharpness", ...), functions
            `probe(problem, optimizer, state) -> array or dict`, or `ll.Probe` objects.
        out: folder to save tiles in as they finish. A folder that holds part of the same sweep is completed. On SIGTERM
            or SIGUSR1 the segments under way are finished and saved, and the process exits with 75.
        progress: show a bar (a line every 30 s where there is no terminal), or call `progress(runs_done, runs_diverged,
            runs_total)`.
        executor: any `concurrent.futures.Executor`, such as Dask's `Client(...).get_executor()`; tiles are sent to it,
            results come back here. Workers need the same software, and one kind of device among them. Without one, this
            process's devices do the work.
        part: (k, n) computes every n-th tile from the k-th on, for n processes that share a folder; the others' runs
            have status "not_run". On a JAX multi-controller system it defaults to (process index, process count).
        checkpoint_seconds: seconds between checkpoints of tiles under way, where `out` is given: what a kill may cost.
        attributes: notes of your own, kept among the dataset's attributes.

    Returns:
        Dataset with dims (hyperparameters..., seed, step): the probes' records, `status` (codes of `ll.Outcome`),
        `threshold` (sharpness at which the linearised optimizer turns unstable), figures over every step
        (`first_bad_step`, `first_rise_step`, `num_rises`, `peak_loss`), units and provenance in attributes.

    Raises:
        ValueError: before anything compiles, naming the argument, what was expected, what was got, and the fix.
        StorageError: if a tile cannot be written; those that were stay.
        ExecutorError: if the executor breaks, or a task fails on it; what was finished is saved in `out`.
    """
    around = current()
    executor = executor or around.executor
    place = remote.place_of(executor) if executor else here()
    job = make_job(problem, optimizer, sweep, probes, place)
    if around.told:
        around.told(job.sweep)
    if part is None and jax.process_count() > 1:
        part = (jax.process_index(), jax.process_count())
    check("part", part, optional(Rule("whole numbers (k, n) with 0 <= k < n", lambda pair: pair[0] in range(pair[1]))))
    if not checkpoint_seconds > 0:
        raise ValueError(f"checkpoint_seconds: expected a positive number, got {checkpoint_seconds!r}")
    layout = job.layout()
    layout["attributes"] |= dict(attributes or {})
    store = None if out is None else Store.create(Path(out), job.identity(), layout, job.plan.runs_per_tile)
    with contextlib.closing(Progress(progress, job.sweep.num_runs, job.sweep.num_steps)) as shown:
        return _execute(job, layout, store, shown, executor, part or (0, 1), checkpoint_seconds)


def make_job(
    problem: Problem, optimizer: Any, sweep: Sweep, probes: Iterable[Any], place: dict[str, str] | None = None
) -> Job:
    """Check the input and make a sweep ready; nothing is compiled yet.

    Raises:
        ValueError: naming the argument, what was expected, what was got, and the fix.
    """
    if not isinstance(problem, Problem):
        raise ValueError(f"problem: expected an ll.Problem, got {type(problem).__name__}")
    if not isinstance(sweep, Sweep):
        raise ValueError(f"sweep: expected an ll.Sweep, got {type(sweep).__name__}")
    optimizer = as_optimizer(optimizer)
    made_probes = as_probes(probes)
    owners = axis_owners(problem, optimizer, sweep)
    swept = {name: None for name, owner in owners.items() if owner not in ("problem", "sweep")}
    optimizer.check(swept, problem.param_shapes)
    place = place or here()
    if sweep.lane_width is None:
        sweep = sweep.with_lane_width(_lane_width_for(problem, place["platform"]))
    assert sweep.lane_width is not None
    return Job(problem, optimizer, made_probes, sweep, make_plan(sweep, place["platform"]), place)


def _lane_width_for(problem: Problem, platform: str) -> int:
    # From the problem alone: a run's bits must not depend on which other batch sizes stand beside it.
    num_params = sum(leaf.size for leaf in jax.tree.leaves(problem.param_shapes))
    return default_lane_width(platform, num_params, problem.num_examples)


def _execute(
    job: Job,
    layout: dict[str, Any],
    store: Store | None,
    progress: Progress,
    executor: Executor | None,
    part: tuple[int, int],
    seconds: float,
) -> xr.Dataset:
    sweep, plan = job.sweep, job.plan
    # A folder keeps the tile size it was begun with; only the lane width decides bits.
    per_tile = store.runs_per_tile if store else plan.runs_per_tile
    places = sweep.tiles(per_tile)
    arrays = {
        name: blank_array((sweep.num_runs, *spec["shape"]), spec["dtype"]) for name, spec in layout["variables"].items()
    }
    done = np.zeros(sweep.num_runs, bool)

    def keep(tile: int, results: dict[str, np.ndarray], fresh: bool) -> None:
        for name, values in results.items():
            arrays[name][places[tile]] = values
        done[places[tile]] = True
        diverged = int((results["first_bad_step"] >= 0).sum())
        progress.advance(tile, len(places[tile]), diverged, int(results["steps_done"].sum()) if fresh else 0)

    todo = []
    for tile in range(len(places)):
        if (results := _stored(store, tile)) is not None:
            keep(tile, results, fresh=False)
        elif tile % part[1] == part[0]:
            todo.append(tile)
    if todo:
        stop = Stop()
        with _listening(stop, store) as asked:
            tasks = [(tile, places[tile]) for tile in todo]
            if executor is None:
                found = _compute_here(job, tasks, per_tile, store, stop, seconds, progress)
            else:
                found = remote.compute(job, tasks, per_tile, store, stop, executor, progress.say)
            with contextlib.closing(found):  # after an error in here too, nothing goes on unseen
                for tile, results in found:
                    keep(tile, results, fresh=True)
        if asked:
            print(f"lossland: {asked[0]}; what is done is saved, the same call goes on from there", file=sys.stderr)
            raise Preempted(PREEMPTED)
    return assemble(layout, arrays, done)


def _stored(store: Store | None, tile: int) -> dict[str, np.ndarray] | None:
    if store is None:
        return None
    try:
        return store.read(tile)
    except DamagedTileError as error:
        warnings.warn(f"{error}; kept as {store.set_aside(tile).name}", stacklevel=4)
        return None


@contextlib.contextmanager
def _listening(stop: Stop, store: Store | None) -> Iterator[list[str]]:
    """Turn SIGTERM and SIGUSR1 into a request to stop, where there is somewhere to save to; yields what was heard."""
    asked: list[str] = []
    if store is None or threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def heard(number: int, frame: Any) -> None:
        asked.append(signal.Signals(number).name)
        stop.set()

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    before = {number: signal.signal(number, heard) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _compute_here(
    job: Job,
    todo: list[tuple[int, np.ndarray]],
    per_tile: int,
    store: Store | None,
    stop: Stop,
    seconds: float,
    progress: Progress,
) -> Generator[tuple[int, dict[str, np.ndarray]], None, None]:
    """Compute tiles on this process's devices, several threads pulling from one queue; yields them as they finish."""
    plan = job.plan
    num_chunks = plan.chunks_for(per_tile)
    writes: list[Future[None]] = []

    def work(tile: int, runs: np.ndarray, device: Device) -> dict[str, np.ndarray] | None:
        if stop.is_set():
            return None
        program = job.program_of(runs)
        told = functools.partial(progress.working, tile)
        if store is None:
            return program.compute(runs, num_chunks, device, seconds=seconds, stopping=stop.is_set, told=told)
        write_checkpoint = store.write_checkpoint
        saved = store.read_checkpoint(tile)
        results = program.compute(
            runs,
            num_chunks,
            device,
            seconds=seconds,
            snapshot=Snapshot(*saved) if saved else None,
            save=lambda snapshot: write_checkpoint(tile, snapshot.step, snapshot.arrays),
            stopping=stop.is_set,
            told=told,
        )
        if results is not None:
            # One writer for all, so that the cores go on computing while a disk syncs; never far behind.
            writes.append(writer.submit(store.write, tile, results))
            if len(writes) > BACKLOG:
                writes.pop(0).result()
        return results

    todo = list(reversed(todo))
    free = [device for device in plan.devices for _ in range(plan.workers_per_device)]
    # Left in the reverse order: tiles under way end first, then their writes.
    with (
        ThreadPoolExecutor(1, thread_name_prefix="lossland-writer") as writer,
        ThreadPoolExecutor(len(free), thread_name_prefix="lossland") as pool,
    ):
        pending: dict[Future[Any], tuple[int, Device]] = {}
        try:
            while True:
                while free and todo and not stop.is_set():
                    (tile, runs), device = todo.pop(), free.pop()
                    pending[pool.submit(work, tile, runs, device)] = tile, device
                if not pending:
                    break
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    tile, device = pending.pop(future)
                    free.append(device)
                    if (results := future.result()) is not None:
                        yield tile, results
        finally:
            stop.set()  # after an error or Ctrl-C, segments under way are finished and saved, no new one is begun
    for write in writes:
        write.result()
