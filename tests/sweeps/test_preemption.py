"""Kills, signals and resumption: real processes, real signals, the same bits."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optax
import pytest
import xarray as xr

import lossland as ll
from lossland.sweeps.store import Store
from tests.cases import problem_named

ROOT = Path(__file__).parents[2]
FIELDS = {"seeds": 6, "num_steps": 20000, "every": 5000, "lane_width": 4}
RATES = [0.01, 0.03, 0.1, 30.0]
SCRIPT = f"""
import itertools, os, signal, sys, time
import optax, lossland as ll
from lossland.sweeps import programs
from tests.cases import problem_named

fatal = int(sys.argv[2])  # die inside the n-th write: odd numbers before the rename, even ones after it
writes = itertools.count(1)  # several threads write
replace = os.replace

def deadly(*paths):
    number = next(writes)
    if number == fatal and fatal % 2:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
    if number == fatal:
        os.kill(os.getpid(), signal.SIGKILL)

def paced(steps):  # a fast machine must not be done before it can be killed
    time.sleep(0.02)
    return int(sys.argv[3]) // 200

os.replace = deadly
programs.segment_length = paced
fields = {{**{FIELDS}, "num_steps": int(sys.argv[3])}}
sweep = ll.Sweep({{"learning_rate": {RATES}}}, **fields)
probes = ["loss", "gradient_norm"]
ll.run(problem_named("cubic"), optax.adam, sweep, probes, sys.argv[1], checkpoint_seconds=0.01)
"""


LONG, STOPPED = 20_000, 60_000
"""Steps of runs that are to be killed thirty times, and of those that are to be stopped once."""


def sweep_here(out=None, num_steps=FIELDS["num_steps"], **options):
    sweep = ll.Sweep({"learning_rate": RATES}, **{**FIELDS, "num_steps": num_steps})
    return ll.run(problem_named("cubic"), optax.adam, sweep, ["loss", "gradient_norm"], out, **options)


@pytest.fixture(scope="module")
def undisturbed():
    return sweep_here()


def child(out: Path, cache: Path, fatal: int = 0, num_steps: int = LONG) -> subprocess.Popen:
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    with open(cache.with_name("messages"), "w") as messages:
        command = [sys.executable, "-c", SCRIPT, str(out), str(fatal), str(num_steps)]
        return subprocess.Popen(command, env=environment, cwd=ROOT, stderr=messages)


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    """Wait until a condition holds or the process has ended."""
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def steps_saved(out: Path) -> int:
    """Run-steps that lie on disk, in finished tiles and in checkpoints."""
    if not (out / "manifest.json").exists():
        return 0
    store = Store.open(out)
    places = ll.Sweep.from_json(store.layout["sweep"]).tiles(store.runs_per_tile)
    num_steps = ll.Sweep.from_json(store.layout["sweep"]).num_steps
    total = sum(len(places[tile]) * num_steps for tile in store.done())
    for tile in set(store.checkpoints()) - set(store.done()):
        if saved := store.read_checkpoint(tile):
            total += len(places[tile]) * saved[0]
    return total


def test_segments_leave_every_bit_alone(undisturbed, tmp_path, monkeypatch):
    taken = []
    advance = Store.write_checkpoint
    monkeypatch.setattr(Store, "write_checkpoint", lambda *given: (taken.append(given[2]), advance(*given)))
    segmented = sweep_here(tmp_path / "runs", checkpoint_seconds=0.02)
    assert len(taken) > 10
    xr.testing.assert_equal(segmented.load(), undisturbed)
    assert not list((tmp_path / "runs").glob("checkpoint-*"))


@pytest.mark.parametrize("every", [7, 400])
def test_segments_between_records(every, tmp_path, monkeypatch):
    """Segments end where the clock says, not where a record is due."""
    sweep = ll.Sweep({"learning_rate": [0.01, 3.0]}, 3, 400, every, lane_width=1)
    whole = ll.run(problem_named("cubic"), optax.sgd, sweep, ["loss", "gradient_norm"])
    steps = iter(np.random.default_rng(every).integers(1, 40, 10_000))
    monkeypatch.setattr("lossland.sweeps.programs.segment_length", lambda *given: int(next(steps)))
    cut = ll.run(problem_named("cubic"), optax.sgd, sweep, ["loss", "gradient_norm"], tmp_path / "runs")
    xr.testing.assert_equal(cut.load(), whole)


@pytest.mark.parametrize("wanted", [pytest.param(9, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.long)])
def test_kills_lose_nothing(tmp_path, wanted):
    out, cache = tmp_path / "runs", tmp_path / "cache"
    chance = random.Random(0)
    kills, inside_writes, saved = 0, 0, 0
    while True:
        # The first third die inside a write or a rename, the others anywhere; then one is left alone to finish.
        fatal = chance.randint(1, 6) if kills < wanted // 3 else 0
        process = child(out, cache, fatal)
        if not fatal and kills < wanted:
            if chance.random() < 0.3:  # the rest die before they have begun
                wait_for(lambda: steps_saved(out) > saved, process)  # noqa: B023
            time.sleep(chance.random() * 0.05)
            process.kill()
        code = process.wait(120)
        if code == 0:
            break
        assert code == -signal.SIGKILL, (tmp_path / "messages").read_text()
        kills += 1
        inside_writes += bool(fatal)
        now = steps_saved(out)
        assert now >= saved, "what was saved stays saved"
        saved = now
    assert inside_writes >= wanted // 4
    assert kills >= wanted, "the sweep was done before it could be killed often enough"
    xr.testing.assert_equal(ll.load(out).load(), sweep_here(num_steps=LONG))
    print(f"{kills} kills, {inside_writes} inside a write or rename")


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), pytest.param(signal.SIGUSR1, marks=pytest.mark.long)],
)
def test_a_request_to_stop_saves_and_exits_with_75(tmp_path, number):
    out = tmp_path / "runs"
    process = child(out, tmp_path / "cache", num_steps=STOPPED)
    wait_for(lambda: steps_saved(out) > 0, process)
    process.send_signal(number)
    assert process.wait(60) == 75
    assert "the same call goes on" in (tmp_path / "messages").read_text()
    saved = steps_saved(out)
    assert 0 < saved < 6 * len(RATES) * STOPPED
    xr.testing.assert_equal(sweep_here(out, STOPPED).load(), sweep_here(num_steps=STOPPED))


@pytest.mark.slow
def test_signals_are_left_alone_afterwards(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    sweep = ll.Sweep({"learning_rate": [0.1]}, 1, 3, 1)
    ll.run(problem_named("cubic"), optax.sgd, sweep, out=tmp_path / "runs")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_damaged_checkpoint_costs_time_and_nothing_else(undisturbed, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    write = Store.write_checkpoint

    def once(store, tile, step, arrays):
        write(store, tile, step, arrays)
        raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(Store, "write_checkpoint", once)
        with pytest.raises(Stop):
            sweep_here(tmp_path, checkpoint_seconds=0.02)
    saved = sorted(tmp_path.glob("checkpoint-*.npz"))
    assert saved
    saved[0].write_bytes(saved[0].read_bytes()[:-100])
    with pytest.warns(UserWarning, match="checkpoint"):
        again = sweep_here(tmp_path)
    xr.testing.assert_equal(again.load(), undisturbed)


@pytest.mark.parametrize("damage", ["truncate", "flip", "swap"])
def test_bad_tiles_are_set_aside_and_computed_again(undisturbed, tmp_path, damage):
    sweep_here(tmp_path)
    tiles = sorted(tmp_path.glob("tile-*.npz"))
    content = bytearray(tiles[0].read_bytes())
    if damage == "truncate":
        tiles[0].write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 3] ^= 0x10
        tiles[0].write_bytes(content)
    else:
        tiles[0].write_bytes(tiles[1].read_bytes())
    untouched = tiles[1].stat().st_mtime_ns
    with pytest.warns(UserWarning, match=r"tile-000000\.npz.*damaged-1"):
        again = sweep_here(tmp_path)
    xr.testing.assert_equal(again.load(), undisturbed)
    assert tiles[1].stat().st_mtime_ns == untouched
    assert (tmp_path / "tile-000000.npz.damaged-1").exists()


def test_a_diverged_tile_ends_early(monkeypatch):
    taken = []
    monkeypatch.setattr("lossland.sweeps.programs.segment_length", lambda steps: (taken.append(steps), steps)[1])
    sweep = ll.Sweep({"learning_rate": [1e3]}, 4, num_steps=10**9, every=10**8, lane_width=4)
    runs = ll.run(problem_named("cubic"), optax.sgd, sweep)
    assert (runs["status"] == ll.Outcome.diverged).all()
    assert 1 <= len(taken) < 20
    assert sum(taken) < 10**9
