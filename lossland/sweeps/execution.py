"""Tiles onto devices: compile once, train in parallel, save as they finish, resume where a run was stopped."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import lossland
from lossland import thresholds
from lossland.optimizers import Optimizer, as_optimizer
from lossland.problems.problem import Problem
from lossland.sweeps.plan import Device, Plan, default_lane_width, make_plan
from lossland.sweeps.probes import Probe, as_probes
from lossland.sweeps.store import Store
from lossland.sweeps.sweep import RESERVED, Sweep
from lossland.sweeps.training import SUMMARY, starting_points, tile_program
from lossland.sweeps.trajectories import assemble, blank_array

BLOCK = 256
"""Hyperparameter points whose thresholds are computed together."""
ProgressCallback = Callable[[int, int, int], None]
MATMUL_PRECISION = "highest"
"""Accelerators multiply float32 matrices in fewer bits by default, which would measure the curvature of another
function."""


def run(
    problem: Problem,
    optimizer: Any,
    sweep: Sweep,
    probes: Iterable[Any] = ("loss",),
    out: str | os.PathLike[str] | None = None,
    *,
    progress: bool | ProgressCallback = True,
) -> xr.Dataset:
    """Train every run of a sweep and record the probes along the way.

    Equation: `params_{t+1} = params_t + update(grad objective(params_t))`, full batch, for every hyperparameter x seed.

    Args:
        problem: what is trained.
        optimizer: an optax factory such as `optax.sgd`, an `ll.Optimizer` with some arguments fixed, or a finished
            optax transformation.
        sweep: the grid. Each axis is an argument of the optimizer or of the problem.
        probes: built-in names ("loss", "gradient_norm", "gradient_curvature", "sharpness"), functions
            `probe(problem, optimizer, state) -> array or dict`, or `ll.Probe` objects.
        out: folder to save tiles in as they finish. A folder that holds part of the same sweep is completed.
        progress: show a bar (only on a terminal), or call `progress(runs_done, runs_diverged, runs_total)`.

    Returns:
        Dataset with dims (hyperparameters..., seed, step): the probes' records, `status` (codes of `ll.Outcome`),
        `threshold` (sharpness at which the linearised optimizer turns unstable), figures over every step
        (`first_bad_step`, `first_rise_step`, `num_rises`, `peak_loss`), units and provenance in attributes.

    Raises:
        ValueError: before anything compiles, naming the argument, what was expected, what was got, and the fix.
    """
    if not isinstance(problem, Problem):
        raise ValueError(f"problem: expected an ll.Problem, got {type(problem).__name__}")
    if not isinstance(sweep, Sweep):
        raise ValueError(f"sweep: expected an ll.Sweep, got {type(sweep).__name__}")
    optimizer = as_optimizer(optimizer)
    made_probes = as_probes(probes)
    owners = axis_owners(problem, optimizer, sweep)
    swept = {name: None for name, owner in owners.items() if owner != "problem"}
    start = jax.eval_shape(problem.init, jax.eval_shape(lambda: jax.random.key(0)))
    optimizer.check(swept, start)
    if sweep.lane_width is None:
        sweep = sweep.with_lane_width(_lane_width_for(problem))
    assert sweep.lane_width is not None
    plan = make_plan(sweep.lane_width)
    with numerics(sweep.dtype):
        job = _Job(problem, optimizer, made_probes, sweep, plan, owners)
        layout = job.layout()
        store = None
        if out is not None:
            store = Store.create(Path(out), job.identity(), layout, plan.runs_per_tile)
        with contextlib.closing(_Bar(progress, sweep.num_runs)) as bar:
            return _execute(job, layout, store, bar)


def axis_owners(problem: Problem, optimizer: Optimizer, sweep: Sweep) -> dict[str, str]:
    """Say for every axis whether the problem or the optimizer takes it: name -> "problem" or the optimizer's name.

    Raises:
        ValueError: for a name that neither has (all that exist are listed), or that both have.
    """
    owners = {}
    for name in sweep.axes:
        in_problem, in_optimizer = name in problem.arguments, name in optimizer.argument_names
        if in_problem and in_optimizer:
            raise ValueError(
                f"axes: {name!r} is an argument of both problem {problem.name} and optimizer {optimizer.name}"
            )
        if not (in_problem or in_optimizer):
            raise ValueError(
                f"axes: {name!r} is no argument of optimizer {optimizer.name} (it has "
                f"{', '.join(optimizer.argument_names) or 'none'}) nor of problem {problem.name} (it has "
                f"{', '.join(problem.arguments) or 'none'})"
            )
        owners[name] = "problem" if in_problem else optimizer.name
    return owners


@contextlib.contextmanager
def numerics(dtype: str) -> Iterator[None]:
    """Hold precision fixed for this thread while tracing and running; global settings are left alone."""
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision(MATMUL_PRECISION):
        yield


class _Job:
    """One sweep made ready: arguments of every tile, compiled programs, labels."""

    def __init__(
        self,
        problem: Problem,
        optimizer: Optimizer,
        probes: tuple[Probe, ...],
        sweep: Sweep,
        plan: Plan,
        owners: dict[str, str],
    ):
        self.problem, self.optimizer, self.probes = problem, optimizer, probes
        self.sweep, self.plan, self.owners = sweep, plan, owners
        self.hyperparameters, self.seeds = sweep.runs()
        self.data = _in_precision(problem, sweep.dtype)
        self.start, self.tile = _cached(_programs)(
            problem,
            optimizer.factory,
            tuple(sorted(optimizer.arguments.items(), key=lambda item: item[0])),
            probes,
            sweep.num_steps,
            sweep.every,
            sweep.dtype,
            sweep.freeze,
            plan.lane_width,
        )

    def arguments(self, runs: np.ndarray, num_chunks: int) -> tuple[Any, Any, np.ndarray]:
        """Padded inputs of the runs of one tile: optimizer and problem arguments, problem arguments, seeds."""
        index = np.pad(runs, (0, num_chunks * self.plan.lane_width - len(runs)), mode="edge")  # repeats the last run
        shape = (num_chunks, self.plan.lane_width)
        everything = {name: values[index].reshape(shape) for name, values in self.hyperparameters.items()}
        for_problem = {
            name: everything[name].astype(np.float32) for name in everything if name in self.problem.arguments
        }
        for_training = {name: values.astype(self.sweep.dtype) for name, values in everything.items()}
        return for_training, for_problem, self.seeds[index].reshape(shape).astype(np.uint32)

    def compute(self, runs: np.ndarray, num_chunks: int, device: Device) -> dict[str, np.ndarray]:
        """Train the runs of one tile on a device: {name: (run, ...)}."""
        width = self.plan.lane_width
        for_training, for_problem, seeds = self.arguments(runs, num_chunks)
        with jax.default_device(device):
            with jax.enable_x64(False):  # a seed means the same start in every precision
                params = self.start(for_problem, seeds)
            used = np.int32(-(-len(runs) // width))
            records, summary = self.tile(used, for_training, params, self.data)
        return {
            name: np.asarray(values).reshape(num_chunks * width, *values.shape[2:])[: len(runs)]
            for name, values in {**records, **summary}.items()
        }

    def compile(self, num_chunks: int) -> None:
        """Trace and compile once per device, by running a tile of no chunks."""
        for device in self.plan.devices:
            for_training, for_problem, seeds = self.arguments(np.arange(1), num_chunks)
            with jax.default_device(device):
                with jax.enable_x64(False):
                    params = self.start(for_problem, seeds)
                jax.block_until_ready(self.tile(np.int32(0), for_training, params, self.data))

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every variable of one run, found by tracing alone."""
        # The shapes of a real tile, so that this trace is the one that is compiled later.
        for_training, for_problem, seeds = self.arguments(np.arange(1), self.plan.chunks_per_tile)
        with jax.enable_x64(False):
            params = jax.eval_shape(self.start, for_problem, seeds)
        records, summary = jax.eval_shape(self.tile, np.int32(0), for_training, params, self.data)
        if taken := set(records) & set(summary):
            raise ValueError(f"probes: a probe records {', '.join(sorted(taken))}, which every result has; rename it")
        return {
            name: jax.ShapeDtypeStruct(value.shape[2:], value.dtype) for name, value in {**records, **summary}.items()
        }

    def layout(self) -> dict[str, Any]:
        """All that labelling needs, as JSON."""
        described = {name: text for probe in self.probes for name, text in probe.descriptions.items()}
        units = {name: text for probe in self.probes for name, text in probe.units.items()}
        dims = {name: names for probe in self.probes for name, names in probe.dims.items()}
        variables = {}
        own_names = {*RESERVED, *self.sweep.axes, "status", "threshold", "relative_sharpness"}
        for name, shape in self.shapes().items():
            if name in own_names:
                raise ValueError(f"probes: a probe records {name!r}, a name that every result has; choose another")
            summary = name in SUMMARY
            own = shape.shape if summary else shape.shape[1:]
            named = dims.get(name) or tuple(f"{name}_axis_{axis}" for axis in range(len(own)))
            if len(named) != len(own):
                raise ValueError(f"probes: {name} has {len(own)} axes of its own, dims names {len(named)}: {named}")
            variables[name] = {
                "dims": [*([] if summary else ["step"]), *named],
                "shape": list(shape.shape),
                "dtype": str(shape.dtype),
                "units": SUMMARY[name][0] if summary else units.get(name, "1"),
                "description": SUMMARY[name][1] if summary else described.get(name, name.replace("_", " ")),
            }
        return {
            "sweep": self.sweep.to_json(),
            "num_runs": self.sweep.num_runs,
            "owners": self.owners,
            "variables": variables,
            "threshold": self.threshold(),
            "attributes": self.provenance(),
        }

    def threshold(self) -> dict[str, Any]:
        """Sharpness at which the linearised optimizer turns unstable, at every hyperparameter point of the grid."""
        points = {
            name: values.reshape(self.sweep.shape)[..., 0].reshape(-1)
            for name, values in self.hyperparameters.items()
            if self.owners[name] != "problem"
        }
        count = self.sweep.num_runs // len(self.sweep.seeds)
        return thresholds_of(self.optimizer, points, count)

    def identity(self) -> dict[str, Any]:
        """Everything that decides bits."""
        return {
            "sweep": self.sweep.to_json(),
            "problem": f"{self.problem.name} {self.problem.fingerprint()}",
            "optimizer": re.sub(r" at 0x[0-9a-f]+", "", repr(self.optimizer)),
            "optimizer_program": self.optimizer_program(),
            "variables": ",".join(sorted(self.shapes())),
            "probes_program": self.probes_program(),
            "platform": self.plan.devices[0].platform,
            "device": self.plan.devices[0].device_kind,
            **versions(),
        }

    def optimizer_program(self) -> str:
        """Hash of the optimizer's traced update: two functions of one name are two optimizers."""
        swept = [name for name, owner in self.owners.items() if owner != "problem"]
        start = jax.eval_shape(self.problem.init, jax.eval_shape(lambda: jax.random.key(0)))

        def update(params: Any, values: list[Any]) -> Any:
            optimizer = self.optimizer.with_arguments(**dict(zip(swept, values, strict=True)))
            extra = {"value": np.float32(1), "grad": params, "value_fn": self.problem.objective}
            return optimizer.update(params, optimizer.init(params), params, **extra)[0]

        with jax.enable_x64(False):
            program = jax.make_jaxpr(update)(start, [jax.ShapeDtypeStruct((), np.float32)] * len(swept))
        return hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(program)).encode()).hexdigest()[:16]

    def probes_program(self) -> str:
        """Hash of the traced programs of the tile, probes included: an edited probe never passes for the old one."""
        for_training, for_problem, seeds = self.arguments(np.arange(1), 1)
        with jax.enable_x64(False):
            params = jax.eval_shape(self.start, for_problem, seeds)
        program = jax.make_jaxpr(self.tile)(np.int32(0), for_training, params, self.data)
        return hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(program)).encode()).hexdigest()[:16]

    def provenance(self) -> dict[str, Any]:
        """Attributes of the dataset."""
        return {
            "title": f"{self.problem.name} trained by {self.optimizer.name}",
            "problem": self.problem.name,
            "problem_fingerprint": self.problem.fingerprint(),
            "loss_normalisation": f"{self.problem.normalisation} over {self.problem.num_examples} examples",
            "optimizer": re.sub(r" at 0x[0-9a-f]+", "", repr(self.optimizer)),
            "sweep": self.sweep.to_json(),
            "sweep_fingerprint": self.sweep.fingerprint(),
            "lane_width": self.plan.lane_width,
            "dtype": self.sweep.dtype,
            "matmul_precision": MATMUL_PRECISION,
            "platform": self.plan.devices[0].platform,
            "device": self.plan.devices[0].device_kind,
            **{f"{name}_version": version for name, version in versions().items()},
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }


def thresholds_of(optimizer: Optimizer, points: dict[str, np.ndarray], count: int) -> dict[str, Any]:
    """Compute the threshold at `count` hyperparameter points, with attributes that say what it is compared with.

    An optimizer that has no linear threshold, or whose update cannot be linearised, gets NaN and the reason: that is no
    obstacle to training it.
    """
    attributes: dict[str, Any] = {"units": "loss / parameter^2", "preconditioned": 0}
    try:
        build = _cached(_builder)(
            optimizer.factory, tuple(sorted(optimizer.arguments.items(), key=lambda item: item[0]))
        )
        first: dict[str, Any] = {name: float(values[0]) for name, values in points.items()}
        certificate = thresholds.threshold(build, **first)
        attributes["preconditioned"] = int(certificate.preconditioned)
        attributes["condition"] = certificate.condition
        if points:
            values = np.concatenate(
                [_block_of_thresholds(build, points, start, count) for start in range(0, count, BLOCK)]
            )
        else:
            critical = certificate.critical_curvature
            values = np.full(count, np.nan if critical is None else critical)
    except ValueError as error:
        values = np.full(count, np.nan)
        attributes["condition"] = f"not computed: {error}"
    measured = "preconditioned sharpness" if attributes["preconditioned"] else "sharpness"
    attributes["description"] = f"{measured} at which the linearised optimizer turns unstable"
    return {"values": values.tolist(), "attributes": attributes}


def _block_of_thresholds(build: Any, points: dict[str, np.ndarray], start: int, count: int) -> np.ndarray:
    index = np.minimum(np.arange(start, start + BLOCK), count - 1)  # always full, so that one program serves every grid
    block = thresholds.critical_curvatures(build, {name: values[index] for name, values in points.items()})
    return block[: count - start]


def versions() -> dict[str, str]:
    """Versions of the software that decides bits."""
    return {
        "lossland": lossland.__version__,
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "optax": optax.__version__,
    }


def _lane_width_for(problem: Problem) -> int:
    params = jax.eval_shape(problem.init, jax.eval_shape(lambda: jax.random.key(0)))
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    return default_lane_width(jax.local_devices()[0].platform, num_params, problem.num_examples)


def _in_precision(problem: Problem, dtype: str) -> Any:
    """The problem's data in the precision of the sweep, refused where it does not fit."""

    def convert(path: Any, leaf: np.ndarray) -> np.ndarray:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype))
        with np.errstate(over="ignore"):
            converted = leaf.astype(dtype)
        if not np.isfinite(converted).all():
            raise ValueError(
                f"data{jax.tree_util.keystr(path)}: values up to {np.abs(leaf).max():g} overflow {dtype}; rescale them "
                "or use dtype='float64'"
            )
        return converted

    return jax.tree_util.tree_map_with_path(convert, problem.data)


def _cached(function: Any) -> Any:
    """Use a cache where the arguments can be its key; fixed arguments such as arrays or masks cannot."""

    def call(*arguments: Any) -> Any:
        try:
            hash(arguments)
        except TypeError:
            return function.__wrapped__(*arguments)
        return function(*arguments)

    return call


@functools.lru_cache(maxsize=32)  # one object per optimizer, so that its threshold is compiled once
def _builder(factory: Callable[..., Any], arguments: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    optimizer = Optimizer(factory, **dict(arguments))

    def build(**swept: Any) -> optax.GradientTransformation:
        return optimizer.build(**swept)

    build.__name__ = optimizer.name
    return build


@functools.lru_cache(maxsize=8)
def _programs(
    problem: Problem,
    factory: Callable[..., Any],
    arguments: tuple[tuple[str, Any], ...],
    probes: tuple[Probe, ...],
    num_steps: int,
    every: int,
    dtype: str,
    freeze: bool,
    lane_width: int,
) -> tuple[Any, Any]:
    """Jitted programs, kept so that a second sweep over the same problem and optimizer compiles nothing."""
    tile = tile_program(
        problem,
        Optimizer(factory, **dict(arguments)),
        probes,
        num_steps=num_steps,
        every=every,
        dtype=dtype,
        freeze=freeze,
        lane_width=lane_width,
    )
    # Random numbers are slow to compile and quick to draw.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(starting_points(problem), compiler_options=options), jax.jit(tile)


def _execute(job: _Job, layout: dict[str, Any], store: Store | None, bar: _Bar) -> xr.Dataset:
    sweep, plan = job.sweep, job.plan
    # A folder keeps the tile size it was begun with; only the lane width decides bits.
    per_tile = store.runs_per_tile if store else plan.runs_per_tile
    num_chunks = per_tile // plan.lane_width
    places = sweep.tiles(per_tile)
    arrays = {
        name: blank_array((sweep.num_runs, *spec["shape"]), spec["dtype"]) for name, spec in layout["variables"].items()
    }

    def keep(tile: int, results: dict[str, np.ndarray]) -> None:
        for name, values in results.items():
            arrays[name][places[tile]] = values
        bar.advance(len(places[tile]), int((results["first_bad_step"] >= 0).sum()))

    todo = []
    for tile in range(len(places)):
        results = store.read(tile) if store else None
        if results is None:
            todo.append(tile)
        else:
            keep(tile, results)
    if todo:
        job.compile(num_chunks)
    stop = threading.Event()

    def work(tile: int, device: Device) -> tuple[int, dict[str, np.ndarray]] | None:
        if stop.is_set():
            return None
        with numerics(sweep.dtype):
            results = job.compute(places[tile], num_chunks, device)
        if store:
            store.write(tile, results)
        return tile, results

    workers = plan.workers_per_device * len(plan.devices)
    with ThreadPoolExecutor(workers, thread_name_prefix="lossland") as pool:
        queue = iter(todo)
        free = [device for device in plan.devices for _ in range(plan.workers_per_device)]
        pending: dict[Future[Any], Device] = {}
        try:
            while True:
                while free and (tile := next(queue, None)) is not None:
                    device = free.pop()
                    pending[pool.submit(work, tile, device)] = device
                if not pending:
                    break
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    free.append(pending.pop(future))
                    if (result := future.result()) is not None:
                        keep(*result)
        finally:
            stop.set()  # after an error or Ctrl-C, tiles under way are finished and saved, no new one is begun
    return assemble(layout, arrays, np.ones(sweep.num_runs, bool))


class _Bar:
    """A progress bar on a terminal, a callback, or nothing."""

    def __init__(self, progress: bool | ProgressCallback, total: int):
        from tqdm import tqdm

        self.callback = progress if callable(progress) else None
        self.total, self.done, self.diverged = total, 0, 0
        silent = None if progress is True else True  # None: silent unless standard error is a terminal
        self.bar = tqdm(total=total, unit="run", disable=silent, dynamic_ncols=True, smoothing=0.1)

    def advance(self, runs: int, diverged: int) -> None:
        self.done += runs
        self.diverged += diverged
        self.bar.update(runs)
        self.bar.set_postfix(diverged=self.diverged)
        if self.callback:
            self.callback(self.done, self.diverged, self.total)

    def close(self) -> None:
        self.bar.close()
