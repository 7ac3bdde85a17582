"""Other processes and machines do the work: the bits of one process, whatever happens to the workers."""

import contextlib
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

import lossland as ll
from lossland.sweeps import remote
from lossland.sweeps.job import here

ROOT = Path(__file__).parents[2]


def network_of_lambdas(num_examples: int = 24) -> ll.Problem:
    """Nothing of it can be imported by a worker: its functions travel by value."""
    x = np.linspace(-1, 1, num_examples)[:, None]
    activations = [lambda z: jnp.tanh(z), lambda z: z]

    def loss(params, batch):
        hidden, targets = batch
        for layer, activation in zip(params, activations, strict=True):
            hidden = activation(hidden @ layer)
        return jnp.mean((hidden - targets) ** 2)

    init = lambda key: [jax.random.normal(k, shape) for k, shape in zip(jax.random.split(key), [(1, 8), (8, 1)])]  # noqa: B905, E731
    return ll.Problem(init, loss, (x, np.cos(2 * x)), name="lambdas")


SWEEP = ll.Sweep(
    {"learning_rate": np.geomspace(1e-2, 10, 8), "momentum": [0.0, 0.5]}, seeds=6, num_steps=40, every=8, lane_width=4
)
LONG = ll.Sweep({"learning_rate": np.geomspace(1e-2, 10, 24)}, seeds=16, num_steps=20_000, every=4000, lane_width=4)


def train(sweep: ll.Sweep = SWEEP, out: Path | None = None, **options) -> xr.Dataset:
    return ll.run(network_of_lambdas(), optax.sgd, sweep, ["loss", "sharpness"], out, **{"progress": False, **options})


@functools.cache
def alone(sweep: ll.Sweep = SWEEP) -> xr.Dataset:
    """What one process finds by itself."""
    runs = train(sweep)
    assert {int(code) for code in np.unique(runs["status"])} == {ll.Outcome.finished, ll.Outcome.diverged}
    return runs


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
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


def spawned(workers: int = 1) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


class TestBits:
    def test_threads(self, tmp_path):
        with ThreadPoolExecutor(2) as executor:
            assert_same_bits(train(executor=executor), alone())
            assert_same_bits(train(out=tmp_path, executor=executor), alone())
        assert_same_bits(ll.load(tmp_path), alone())

    def test_processes_a_broken_pool_and_a_resumed_sweep(self, tmp_path):
        with spawned() as executor:
            assert_same_bits(train(executor=executor), alone())

            def kill(done, diverged, total):
                for process in executor._processes.values():
                    process.kill()

            words = r"executor: it broke.*BrokenProcessPool.*tiles are saved in .*; the same call resumes"
            with pytest.raises(remote.ExecutorError, match=words):
                train(LONG, tmp_path, executor=executor, progress=kill)
            with pytest.raises(remote.ExecutorError, match="cannot run lossland"):
                train(LONG, tmp_path, executor=executor)
        saved = ll.load(tmp_path)["status"] != ll.Outcome.not_run
        assert 0 < saved.sum() < saved.size
        assert_same_bits(train(LONG, tmp_path), alone(LONG))

    def test_dask(self, cluster, tmp_path):
        executor = cluster.get_executor()
        assert_same_bits(train(executor=executor), alone())
        assert_same_bits(train(out=tmp_path, executor=executor), alone())
        (tmp_path / "tile-000001.npz").unlink()
        assert_same_bits(train(out=tmp_path, executor=executor), alone())
        assert_same_bits(ll.load(tmp_path), alone())
