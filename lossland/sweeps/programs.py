"""Compiled programs of a sweep: one group per batch size and precision, trained tile by tile in segments of steps."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lossland.curvature.factorisations import batched_factorisations, can_deadlock
from lossland.optimizers import Optimizer
from lossland.problems.problem import Problem, digest_program
from lossland.sweeps.batches import Batches
from lossland.sweeps.plan import Device
from lossland.sweeps.probes import Probe
from lossland.sweeps.single_run import is_noisy
from lossland.sweeps.sweep import Group
from lossland.sweeps.training import starting_points, summarise, tile_program, zeros

if TYPE_CHECKING:
    from lossland.sweeps.job import Job

MATMUL_PRECISION = "highest"
"""Accelerators multiply float32 matrices in fewer bits by default, which would measure the curvature of another
function."""
STATIC = ("batch_size", "dtype")
"""Axes that change the program itself."""
GROWTH = 8
"""A segment has at most this many times the steps of the one before."""

_COMPILED: weakref.WeakKeyDictionary[Any, set[Any]] = weakref.WeakKeyDictionary()
"""What was compiled in this process, by the program that trains: a second sweep of the same kind does not ask again."""


@contextlib.contextmanager
def numerics(dtype: str) -> Iterator[None]:
    """Hold precision fixed for this thread while tracing and running; global settings are left alone."""
    with (
        jax.enable_x64(dtype == "float64"),
        jax.default_matmul_precision(MATMUL_PRECISION),
        jax.default_prng_impl("threefry2x32"),  # these two decide what a seed draws
        jax.threefry_partitionable(True),
    ):
        yield


def product_error(dtype: str, size: int = 64) -> float:
    """Measure the relative error of a matrix product as sweeps compute it on this device, against NumPy in float64."""
    left, right = np.random.default_rng(0).normal(size=(2, size, size)).astype(dtype)
    with numerics(dtype):
        product = np.asarray(jnp.matmul(left, right), np.float64)
    exact = left.astype(np.float64) @ right.astype(np.float64)
    return float(np.linalg.norm(product - exact) / np.linalg.norm(exact))


class Snapshot(NamedTuple):
    """A tile under way, on the host: steps done, records made, and the arrays to go on from."""

    step: int
    arrays: dict[str, np.ndarray]


class GroupProgram:
    """The compiled programs of the runs that share a batch size and a precision."""

    def __init__(self, job: Job, group: Group):
        problem, sweep = job.problem, job.sweep
        self.job, self.group, self.dtype = job, group, group.dtype
        self.batches = Batches(problem.num_examples, group.batch_size, sweep.sampling, sweep.last_batch)
        if self.batches.per_epoch == 0:
            raise ValueError(
                f"batch_size: {group.batch_size} is more than the {problem.num_examples} examples, and the ragged "
                "batch is dropped; choose a smaller one, or last_batch='keep'"
            )
        self.noisy = is_noisy(problem, self.batches)
        self.data = in_precision(problem, group.dtype)
        self.start, self.begin, self.advance = cached(programs)(
            problem,
            job.optimizer.factory,
            tuple(sorted(job.optimizer.arguments.items(), key=lambda item: item[0])),
            job.probes,
            self.batches,
            sweep.num_steps,
            sweep.every,
            group.dtype,
            sweep.freeze,
            job.plan.lane_width,
        )
        self.lock = threading.Lock()
        self.placed: dict[Device, Any] = {}
        self.segment_steps = 1  # grows until a segment lasts as long as it should

    def arguments(self, runs: np.ndarray, num_chunks: int) -> tuple[Any, Any, np.ndarray]:
        """Padded inputs of the runs of one tile: all hyperparameters, those of the problem, seeds."""
        job = self.job
        index = np.pad(runs, (0, num_chunks * job.plan.lane_width - len(runs)), mode="edge")  # repeats the last run
        shape = (num_chunks, job.plan.lane_width)
        everything = {
            name: values[index].reshape(shape) for name, values in job.hyperparameters.items() if name not in STATIC
        }
        for_problem = {
            name: everything[name].astype(np.float32) for name in everything if name in job.problem.arguments
        }
        precision = "float64" if self.dtype == "float64" else "float32"
        for_training = {name: values.astype(precision) for name, values in everything.items()}
        return for_training, for_problem, job.seeds[index].reshape(shape).astype(np.uint32)

    @functools.cached_property
    def abstract(self) -> tuple[Any, Any, Any]:
        """Shapes of a tile: (arguments of `begin`, progress, records), found by tracing alone."""
        arguments = self.arguments(self.group.runs[:1], self.job.plan.chunks_per_tile)
        inputs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (*arguments, self.data))
        shapes, structure = jax.tree.flatten(inputs)
        return _shapes_of_tile(self.start, self.begin, self.dtype, structure, tuple(shapes))

    @functools.cached_property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every variable of one run."""
        _, progress, records = self.abstract
        one = progress._replace(peak_loss=np.zeros((1, 1), progress.peak_loss.dtype))
        blanks = {name: np.zeros((1, 1), np.int32) for name in ("first_bad_step", "first_rise_step", "num_rises")}
        summary = summarise(one._replace(**blanks), self.job.sweep.num_steps, self.job.sweep.freeze)
        if taken := set(records) & set(summary):
            raise ValueError(f"probes: a probe records {', '.join(sorted(taken))}, which every result has; rename it")
        everything = {**records, **summary}
        return {name: jax.ShapeDtypeStruct(value.shape[2:], value.dtype) for name, value in everything.items()}

    def digest(self) -> str:
        """Hash of the traced programs, probes included: an edited probe never passes for the old one."""
        inputs, progress, records = self.abstract
        number = np.int32(0)
        with numerics(self.dtype):
            begin = self.begin.trace(number, *inputs).jaxpr
            advance = self.advance.trace(
                number, number, number, number, inputs[0], inputs[1], progress, records, self.data
            ).jaxpr
        return digest_of(begin) + digest_of(advance)

    def compile(self, num_chunks: int, device: Device) -> None:
        """Trace and compile, once per device: the three programs at the same time, on tiles of no chunks."""
        known = _COMPILED.setdefault(self.advance, set())
        program = (num_chunks, device, tuple(self.job.hyperparameters))
        with self.lock:
            if program in known:
                return
            for_training, for_problem, seeds = self.arguments(self.group.runs[:1], num_chunks)
            with numerics(self.dtype):
                with jax.enable_x64(False):
                    start = jax.eval_shape(self.start, for_problem, seeds)
                progress, records = jax.eval_shape(self.begin, np.int32(0), for_training, seeds, start, self.data)
                self._refuse_deadlock(for_training, seeds, progress, records)
            zero, data = np.int32(0), self.data_on(device)
            on_host = functools.partial(zeros, arrays=np)

            def first() -> None:
                self._start(for_problem, seeds, device)

            def second() -> None:
                with numerics(self.dtype), jax.default_device(device):
                    self.begin(zero, for_training, seeds, jax.tree.map(on_host, start), data)

            def third() -> None:
                with numerics(self.dtype), jax.default_device(device):
                    tile = jax.device_put(jax.tree.map(on_host, (progress, records)), device)
                    self.advance(zero, zero, zero, zero, for_training, seeds, *tile, data)

            with ThreadPoolExecutor(3) as pool:
                for future in [pool.submit(call) for call in (third, second, first)]:
                    future.result()
            known.add(program)

    def _refuse_deadlock(self, for_training: Any, seeds: Any, progress: Any, records: Any) -> None:
        """Raise a ValueError where lanes would batch what must not be batched; see `curvature.factorisations`."""
        if self.job.plan.lane_width == 1 or not can_deadlock(self.job.place["platform"]):
            return
        zero = np.int32(0)
        traced = self.advance.trace(zero, zero, zero, zero, for_training, seeds, progress, records, self.data)
        if found := batched_factorisations(traced.jaxpr.jaxpr):
            raise ValueError(
                f"lane_width: the loss, the optimizer or a probe factorises matrices ({', '.join(sorted(found))}), and "
                f"those of {self.job.plan.lane_width} runs at a time can stop jaxlib {metadata.version('jaxlib')} on a "
                "CPU for good; use Sweep(..., lane_width=1), wrap the factorisation in "
                "jax.custom_batching.sequential_vmap, or install jaxlib 0.12"
            )

    def data_on(self, device: Device) -> Any:
        """The data on a device, carried there once."""
        if device not in self.placed:
            self.placed[device] = jax.device_put(self.data, device)
        return self.placed[device]

    def _start(self, for_problem: dict[str, np.ndarray], seeds: np.ndarray, device: Device) -> Any:
        with numerics("float32"), jax.default_device(device):  # a seed means the same start in every precision
            return self.start(for_problem, seeds)

    def trial(self, runs: np.ndarray, num_chunks: int, device: Device, steps: int) -> tuple[int, float]:
        """Take the first steps of a tile and throw them away: (run-steps done, seconds)."""
        with numerics(self.dtype), jax.default_device(device):
            for_training, for_problem, seeds = self.arguments(runs, num_chunks)
            start, data = self._start(for_problem, seeds, device), self.data_on(device)
            used, zero = np.int32(-(-len(runs) // self.job.plan.lane_width)), np.int32(0)
            tile = jax.block_until_ready(self.begin(used, for_training, seeds, start, data))
            began = time.perf_counter()
            progress, _, _ = self.advance(used, zero, zero, np.int32(steps), for_training, seeds, *tile, data)
            bad = np.asarray(progress.first_bad_step).reshape(-1)[: len(runs)]
            took = time.perf_counter() - began
        return int(np.where(bad < 0, steps, np.minimum(bad, steps)).sum()), took

    def memory(self, num_chunks: int) -> int:
        """Bytes of a tile under way: arguments, results and temporaries, by the compiled program's own account."""
        for_training, for_problem, seeds = self.arguments(self.group.runs[:1], num_chunks)
        with numerics(self.dtype):
            with jax.enable_x64(False):
                start = jax.eval_shape(self.start, for_problem, seeds)
            progress, records = jax.eval_shape(self.begin, np.int32(0), for_training, seeds, start, self.data)
            zero = np.int32(0)
            inputs = (zero, zero, zero, zero, for_training, seeds, progress, records, self.data)
            found = self.advance.lower(*inputs).compile().memory_analysis()
        return found.argument_size_in_bytes + found.temp_size_in_bytes + found.output_size_in_bytes

    def compute(
        self,
        runs: np.ndarray,
        num_chunks: int,
        device: Device,
        *,
        seconds: float = 10.0,
        snapshot: Snapshot | None = None,
        save: Callable[[Snapshot], None] | None = None,
        stopping: Callable[[], bool] = lambda: False,
        told: Callable[[int], None] = lambda run_steps: None,
    ) -> dict[str, np.ndarray] | None:
        """Train the runs of one tile on a device: {name: (run, ...)}, or None if it was asked to stop.

        Steps are taken in compiled segments of about `seconds`. After them, `save` gets a snapshot to go on from;
        without it the host reads only how many runs are alive, one segment late, so the device never waits. `told` gets
        the run-steps that were done since it was last called, as far as the host knows.
        """
        with numerics(self.dtype):
            self.compile(num_chunks, device)
            for_training, for_problem, seeds = self.arguments(runs, num_chunks)
            start, data = self._start(for_problem, seeds, device), self.data_on(device)
            used = np.int32(-(-len(runs) // self.job.plan.lane_width))
            with jax.default_device(device):
                tile = self.begin(used, for_training, seeds, start, data)
            now = 0
            if snapshot is not None:
                now, tile = snapshot.step, _restore(snapshot.arrays, tile, device)
            sweep = self.job.sweep
            living, clock = None, time.perf_counter()
            saved = clock
            if stopping():
                return None
            while now < sweep.num_steps:
                steps = segment_length(self.segment_steps)
                until = min(now + steps, sweep.num_steps)
                index = now // sweep.every + 1 if now else 0
                before = living
                with jax.default_device(device):
                    progress, records, living = self.advance(
                        used, np.int32(now), np.int32(index), np.int32(until), for_training, seeds, *tile, data
                    )
                tile, now = (progress, records), until
                if save is not None and now < sweep.num_steps:
                    jax.block_until_ready(tile)
                    before = living
                if before is not None and now < sweep.num_steps:
                    if int(before) == 0:
                        break
                    told(int(before) * steps)
                    took = time.perf_counter() - clock
                    self.segment_steps = max(1, int(steps * min(GROWTH, seconds / max(took, 1e-6))))
                    clock = time.perf_counter()
                if save is not None and now < sweep.num_steps and (stopping() or clock - saved >= seconds / 2):
                    save(Snapshot(now, _arrays(tile)))
                    saved = clock = time.perf_counter()
                if stopping() and now < sweep.num_steps:
                    return None
            progress, records = tile
            results = {**records, **summarise(progress, sweep.num_steps, sweep.freeze)}
            return {
                name: np.asarray(values).reshape(values.shape[0] * values.shape[1], *values.shape[2:])[: len(runs)]
                for name, values in results.items()
            }


def segment_length(steps: int) -> int:
    """Steps of the next segment. Bits do not depend on it: tests cut where they like."""
    return steps


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _arrays(tile: Any) -> dict[str, np.ndarray]:
    leaves = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in jax.tree.leaves(tile)]
    return {f"leaf_{place:04d}": np.asarray(leaf) for place, leaf in enumerate(leaves)}


def _restore(arrays: dict[str, np.ndarray], like: Any, device: Device) -> Any:
    leaves, structure = jax.tree.flatten(like)
    values = [
        jax.device_put(jax.random.wrap_key_data(jnp.asarray(array)) if _is_key(leaf) else array, device)
        for leaf, array in zip(leaves, (arrays[name] for name in sorted(arrays)), strict=True)
    ]
    return jax.tree.unflatten(structure, values)


def digest_of(program: Any) -> str:
    """Hash of a traced program, arrays that it has closed over included."""
    digest = hashlib.sha256()
    digest_program(digest, program)
    return digest.hexdigest()[:16]


def in_precision(problem: Problem, dtype: str) -> Any:
    """The problem's data in the precision of the sweep, refused where it does not fit."""

    def convert(path: Any, leaf: np.ndarray) -> np.ndarray:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            whole = leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype))
            if (whole != leaf).any():
                raise ValueError(
                    f"data{jax.tree_util.keystr(path)}: integers up to {np.abs(leaf).max()} do not fit into "
                    f"{whole.dtype}; give them as floats, or subtract what they have in common"
                )
            return whole
        with np.errstate(over="ignore"):
            converted = leaf.astype(jnp.dtype(dtype))
        if not np.isfinite(converted.astype(np.float64)).all():
            raise ValueError(
                f"data{jax.tree_util.keystr(path)}: values up to {np.abs(leaf).max():g} overflow {dtype}; rescale them "
                "or use dtype='float64'"
            )
        return converted

    return jax.tree_util.tree_map_with_path(convert, problem.data)


def cached(function: Any) -> Any:
    """Use a cache where the arguments can be its key; fixed arguments such as arrays or masks cannot."""

    def call(*arguments: Any) -> Any:
        try:
            hash(arguments)
        except TypeError:
            return function.__wrapped__(*arguments)
        return function(*arguments)

    return call


@functools.lru_cache(maxsize=32)
def _shapes_of_tile(
    start: Any, begin: Any, dtype: str, structure: Any, shapes: tuple[Any, ...]
) -> tuple[Any, Any, Any]:
    """See `GroupProgram.abstract`; kept, as tracing takes longer than a small sweep."""
    for_training, for_problem, seeds, data = jax.tree.unflatten(structure, shapes)
    with numerics(dtype):
        with jax.enable_x64(False):
            started = jax.eval_shape(start, for_problem, seeds)
        inputs = (for_training, seeds, started, data)
        progress, records = jax.eval_shape(begin, np.int32(0), *inputs)
    return inputs, progress, records


@functools.lru_cache(maxsize=16)
def programs(
    problem: Problem,
    factory: Callable[..., Any],
    arguments: tuple[tuple[str, Any], ...],
    probes: tuple[Probe, ...],
    batches: Batches,
    num_steps: int,
    every: int,
    dtype: str,
    freeze: bool,
    lane_width: int,
) -> tuple[Any, Any, Any]:
    """Jitted programs, kept so that a second sweep over the same problem and optimizer compiles nothing."""
    tile = tile_program(
        problem,
        Optimizer(factory, **dict(arguments)),
        probes,
        batches,
        num_steps=num_steps,
        every=every,
        dtype=dtype,
        freeze=freeze,
        lane_width=lane_width,
    )
    # What runs once per tile is slow to compile and quick to run.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    start = jax.jit(starting_points(problem), compiler_options=options)
    begin = jax.jit(tile.begin, compiler_options=options)
    return start, begin, jax.jit(tile.advance, donate_argnums=(6, 7))
