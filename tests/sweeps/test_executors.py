"""Other processes and machines do the work: the bits of one process, whatever happens to the workers."""

import functools
import itertools
import multiprocessing
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

import lossland as ll
from lossland import mapping
from lossland.cli import main
from lossland.sweeps import remote
from lossland.sweeps.job import here

ROOT = Path(__file__).parents[2]


@functools.cache
def network_of_lambdas(num_examples: int = 24) -> ll.Problem:
    """Nothing of it can be imported by a worker: its functions travel by value."""
    x = np.linspace(-1, 1, num_examples)[:, None]
    activations = [lambda z: jnp.tanh(z), lambda z: z]

    def loss(params, batch):
        hidden, targets = batch
        for layer, activation in zip(params, activations, strict=True):
            hidden = activation(hidden @ layer)
        return jnp.mean((hidden - targets) ** 2)

    def init(key):
        return [jax.random.normal(k, shape) for k, shape in zip(jax.random.split(key), [(1, 8), (8, 1)], strict=True)]

    return ll.Problem(init, loss, (x, np.cos(2 * x)), name="lambdas")


SWEEP = ll.Sweep(
    {"learning_rate": np.geomspace(1e-2, 10, 8), "momentum": [0.0, 0.5]},
    seeds=20,
    num_steps=4000,
    every=800,
    lane_width=4,
)
"""20 tiles of some ten milliseconds each."""


def train(out: Path | None = None, sweep: ll.Sweep = SWEEP, **options) -> xr.Dataset:
    problem = options.pop("problem", network_of_lambdas())
    return ll.run(problem, optax.sgd, sweep, ["loss", "sharpness"], out, **{"progress": False, **options})


@functools.cache
def alone() -> xr.Dataset:
    """What one process finds by itself."""
    runs = train()
    assert {int(code) for code in np.unique(runs["status"])} == {ll.Outcome.finished, ll.Outcome.diverged}
    return runs


def started(script: str, *arguments: object) -> "subprocess.Popen[str]":
    """A process of its own that runs a script from the root of the repository."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: "subprocess.Popen[str]", timeout: float = 120) -> str:
    """What a process has printed, once it has ended well."""
    try:
        printed, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, printed
    return printed


def assert_same_bits(one: xr.Dataset, other: xr.Dataset) -> None:
    assert set(one.data_vars) == set(other.data_vars)
    for name in one.data_vars:
        assert one[name].dtype == other[name].dtype, name
        np.testing.assert_array_equal(one[name], other[name], err_msg=str(name))


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes of Dask."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


def spawned(workers: int = 1) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


class TestBits:
    @pytest.mark.slow
    def test_threads(self, tmp_path):
        with ThreadPoolExecutor(2) as executor:
            assert_same_bits(train(executor=executor), alone())
            assert_same_bits(train(tmp_path, executor=executor), alone())
        assert_same_bits(ll.load(tmp_path), alone())

    def test_processes_and_a_pool_that_breaks(self, tmp_path):
        with spawned() as executor:
            assert_same_bits(train(executor=executor), alone())

            def kill(done, diverged, total):
                for process in executor._processes.values():
                    process.kill()

            words = r"executor: it broke.*BrokenProcessPool.*of 20 tiles are saved in .*; the same call resumes"
            with pytest.raises(remote.ExecutorError, match=words):
                train(tmp_path, executor=executor, progress=kill)
            with pytest.raises(remote.ExecutorError, match="cannot run lossland"):
                train(tmp_path, executor=executor)
        saved = ll.load(tmp_path)["status"] != ll.Outcome.not_run
        assert 0 < saved.sum() < saved.size
        assert_same_bits(train(tmp_path), alone())

    @pytest.mark.slow
    def test_dask(self, cluster, tmp_path):
        executor = cluster.get_executor()
        assert_same_bits(train(executor=executor), alone())
        assert_same_bits(train(tmp_path, executor=executor), alone())
        (tmp_path / "tile-000001.npz").unlink()
        assert_same_bits(train(tmp_path, executor=executor), alone())
        assert_same_bits(ll.load(tmp_path), alone())

    @pytest.mark.slow
    def test_dask_workers_are_killed_and_others_come(self, tmp_path):
        distributed = pytest.importorskip("distributed")
        worker = "import sys; from distributed.cli.dask_worker import main; main(sys.argv[1:])"
        workers = []

        def add_workers(address):
            options = ["--no-nanny", "--nthreads", 1, "--no-dashboard", "--local-directory", tmp_path / "scratch"]
            workers.extend(started(worker, address, *options) for _ in range(2))

        def kill_and_replace(done, diverged, total):
            if done >= total // 4 and len(workers) == 2:
                for process in workers:
                    process.kill()
                add_workers(cluster.scheduler_address)

        with distributed.LocalCluster(n_workers=0, dashboard_address=":0") as cluster:
            try:
                with distributed.Client(cluster, set_as_default=False) as client:
                    add_workers(cluster.scheduler_address)
                    runs = train(tmp_path / "runs", executor=client.get_executor(), progress=kill_and_replace)
            finally:
                for process in workers:
                    process.kill()
                    process.communicate()
        assert [process.returncode for process in workers[:2]] == [-signal.SIGKILL] * 2
        assert len(workers) == 4
        assert_same_bits(runs, alone())
        assert_same_bits(ll.load(tmp_path / "runs"), alone())


class TestFailures:
    def test_a_task_that_raises_leaves_finished_tiles_and_names_the_cause(self, tmp_path, monkeypatch):
        numbers, compute_tiles = itertools.count(), remote.compute_tiles

        def failing(*arguments):
            if next(numbers) == 5:
                raise FloatingPointError("cosmic ray")
            return compute_tiles(*arguments)

        with ThreadPoolExecutor(1) as executor:
            monkeypatch.setattr(remote, "compute_tiles", failing)
            words = r"tile 5 failed: FloatingPointError: cosmic ray\. 5 of 20 tiles are saved in .*; the same call"
            with pytest.raises(remote.ExecutorError, match=words):
                train(tmp_path, executor=executor)
            monkeypatch.undo()
            assert (ll.load(tmp_path)["status"] != ll.Outcome.not_run).sum() == 5 * 16
            assert_same_bits(train(tmp_path, executor=executor), alone())

    @pytest.mark.parametrize("tasks_before", [0, 1])
    def test_a_worker_with_other_software_is_refused_by_name(self, tmp_path, monkeypatch, tasks_before):
        """The first that answers, or one that joins later."""
        numbers = itertools.count()

        def elsewhere():
            place = here()
            on_worker = threading.current_thread() is not threading.main_thread()
            return {**place, "jax": "0.0.1"} if on_worker and next(numbers) >= tasks_before else place

        monkeypatch.setattr(remote, "here", elsewhere)
        sweep = ll.Sweep({"learning_rate": [0.1]}, 1, 2, 1)
        with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match=r"jax 0\.0\.1 there, \d.*the same"):
            train(tmp_path / "runs", sweep, executor=executor)
        assert not list(tmp_path.rglob("tile-*"))

    def test_a_scheduler_gives_a_task_up_again_and_again(self, monkeypatch):
        class KilledWorker(Exception):
            pass

        numbers, compute_tiles = itertools.count(), remote.compute_tiles

        def dying(*arguments):
            if next(numbers) % 3:
                raise KilledWorker
            return compute_tiles(*arguments)

        def always(*arguments):
            raise KilledWorker

        monkeypatch.setattr(remote, "compute_tiles", dying)
        with ThreadPoolExecutor(2) as executor:
            assert_same_bits(train(executor=executor), alone())
            monkeypatch.setattr(remote, "compute_tiles", always)
            with pytest.raises(remote.ExecutorError, match="KilledWorker"):
                train(executor=executor)

    @pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="a signal of POSIX systems")
    def test_a_request_to_stop_is_heard(self, tmp_path, monkeypatch):
        monkeypatch.setattr(remote, "IN_FLIGHT", 2)  # the worker cannot be done with all before the first is back
        with ThreadPoolExecutor(1) as executor:
            with pytest.raises(SystemExit) as stopped:
                train(tmp_path, executor=executor, progress=lambda *counts: signal.raise_signal(signal.SIGUSR1))
            assert stopped.value.code == 75
            assert 0 < (ll.load(tmp_path)["status"] != ll.Outcome.not_run).sum() < 320
            assert_same_bits(train(tmp_path, executor=executor), alone())

    def test_forked_processes_are_refused(self):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as executor:
            with pytest.raises(ValueError, match="get_context\\('spawn'\\)"):
                train(executor=executor)
            assert not executor._processes

    def test_what_cannot_travel_is_said(self):
        lock = threading.Lock()

        def loss(params, batch):
            with lock:
                return jnp.mean((batch * params) ** 2)

        problem = ll.Problem(lambda key: jnp.ones(1), loss, np.ones(3), name="locked")
        with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match=r"cannot be sent to workers.*lock"):
            train(executor=executor, problem=problem, sweep=ll.Sweep({"learning_rate": [0.1]}, 1, 2, 1))


class TestTasks:
    def test_short_tiles_travel_together(self, monkeypatch):
        sizes, compute_tiles = [], remote.compute_tiles

        def counting(package, tiles, num_chunks):
            sizes.append(len(tiles))
            return compute_tiles(package, tiles, num_chunks)[0], 0.5 * len(tiles)

        monkeypatch.setattr(remote, "compute_tiles", counting)
        monkeypatch.setattr(remote, "IN_FLIGHT", 2)
        monkeypatch.setattr(remote, "FIRST", 2)
        with ThreadPoolExecutor(1) as executor:
            assert_same_bits(train(executor=executor), alone())
        # Tiles of half a second fill tasks of two seconds, and none takes more than half of what is left.
        assert sizes == [1, 1, 4, 4, 4, 3, 1, 1, 1]

    def test_large_data_travel_once(self, cluster):
        def loss(params, batch):
            return jnp.mean((batch * params) ** 2)

        data = np.random.default_rng(0).random(3_000_000).astype(np.float32)  # 12 MB: Dask warns from 10 MB on
        problem = ll.Problem(lambda key: jnp.ones(1), loss, data, name="large")
        sweep = ll.Sweep({"learning_rate": [0.1, 0.2]}, 16, 2, 1, lane_width=1)
        runs = ll.run(problem, optax.sgd, sweep, executor=cluster.get_executor(), progress=False)
        assert (runs["status"] == ll.Outcome.finished).all()


PARTS = """
import sys
import jax
count, own, out, port = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
if port:
    jax.distributed.initialize(f"localhost:{port}", num_processes=count, process_id=own)
import lossland as ll
from tests.sweeps.test_executors import train
runs = train(out, part=None if port else (own, count))
print(jax.process_count(), len(jax.local_devices()), int((runs["status"] == ll.Outcome.not_run).sum()))
"""


class TestParts:
    @pytest.mark.parametrize(
        "multi_controller", [pytest.param(False, marks=pytest.mark.long), pytest.param(True, marks=pytest.mark.slow)]
    )
    def test_two_processes_share_a_folder(self, tmp_path, multi_controller):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1] if multi_controller else 0
        pair = [started(PARTS, 2, own, tmp_path / "runs", port) for own in range(2)]
        words = [ended(process).split() for process in pair]
        assert [word[-3] for word in words] == ["2" if multi_controller else "1"] * 2
        assert max(int(word[-1]) for word in words) > 0, "each did its own part alone"
        assert_same_bits(ll.load(tmp_path / "runs"), alone())

    def test_parts_are_disjoint_and_complete(self, tmp_path):
        first = train(part=(0, 3))
        assert (first["status"] != ll.Outcome.not_run).sum() == 7 * 16
        for k in range(3):
            runs = train(tmp_path, part=(k, 3))
            assert (runs["status"] != ll.Outcome.not_run).sum() == [7, 14, 20][k] * 16
        assert_same_bits(runs, alone())

    @pytest.mark.parametrize("part", [(2, 2), (-1, 2), (0, 0), (0,), (0.5, 2)])
    def test_bad_parts(self, part):
        with pytest.raises(ValueError, match="part: expected"):
            train(part=part)


MAP = ["map", "linear_regression", "--learning-rate", "0.003:0.02:3", "--seeds", "400", "--steps", "20"]


class TestCommandLine:
    @pytest.mark.slow
    def test_one_part_here_and_one_on_dask(self, tmp_path, capsys, cluster):
        command = [*MAP, "--out", str(tmp_path)]
        assert main([*command, "--part", "0/2"]) == 0
        assert "left to other parts" in capsys.readouterr().out
        assert not list(tmp_path.glob("*.png"))
        assert main([*command, "--part", "1/2", "--dask", cluster.scheduler.address]) == 0
        assert "predicted critical learning rate" in capsys.readouterr().out
        assert list(tmp_path.glob("*.png"))
        runs = ll.load(tmp_path)
        first = runs["sharpness"].isel(step=0)
        assert (first == first.isel(learning_rate=0)).all(), "a seed has the same start in both parts"

    @pytest.mark.parametrize(
        ("option", "words"),
        [
            (["--part", "2/2"], "--part: expected K/N"),
            (["--part", "one"], "--part: expected K/N"),
            (["--dask", "somewhere"], "--dask: expected the address"),
            (["--dask", "tcp://127.0.0.1:1"], "--dask: no scheduler answers at tcp://127.0.0.1:1"),
        ],
    )
    def test_errors_are_one_line(self, tmp_path, capsys, monkeypatch, option, words):
        monkeypatch.setattr(mapping, "CONNECT_SECONDS", 0.5)
        assert main([*MAP, *option, "--out", str(tmp_path)]) == 2
        assert capsys.readouterr().err.startswith(f"lossland: {words}")

    def test_without_distributed(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "distributed", None)
        assert main([*MAP, "--dask", "tcp://127.0.0.1:1", "--out", str(tmp_path)]) == 2
        assert capsys.readouterr().err == 'lossland: --dask: needs distributed; pip install "lossland[cluster]"\n'
