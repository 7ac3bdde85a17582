"""Training sweeps, the same work in several ways: `python -m benchmarks.sweeps [--fast] [--json FILE] [--only T1 ...]`.

Every contestant trains the same runs from the same kind of start; a round times each of them once, in turn, so that a
machine that drifts drifts for all; PyTorch in rounds of its own. Reported are medians over rounds, and ratios to the
naive way, one `jit(vmap(scan))` over the whole grid.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax

import lossland as ll
from lossland.problems.networks import LSTM
from lossland.problems.reported import linear_regression, numpy_mlp
from lossland.problems.synthetic import half_moons

Contestant = Callable[[], Any]
LSTM_WIDTH = 32


class Tanh(nn.Module):
    """A plain flax network, as a user writes it: tanh layers and one logit."""

    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        for width in self.hidden:
            inputs = jnp.tanh(nn.Dense(width)(inputs))
        return nn.Dense(1)(inputs)[..., 0]


@dataclass(frozen=True)
class Work:
    """A sweep that every contestant trains: learning rates x seeds, `num_steps` each."""

    name: str
    problem: ll.Problem
    optimizer: Callable[..., Any]
    rates: np.ndarray
    seeds: int
    num_steps: int
    batch_size: int | None = None
    flops_per_step: float = 0.0
    """Of the matrix products, forward and backward."""

    @property
    def runs(self) -> int:
        """Runs in the grid."""
        return len(self.rates) * self.seeds


def works(fast: bool) -> list[Work]:
    """The works of the table, or tiny ones of the same kinds."""
    line = linear_regression()
    network = numpy_mlp().with_data(half_moons(200))
    # Three products per layer and example, 2 m n each: forward, weight gradient, input gradient (not for the first).

    def flops_of(*widths: int) -> float:
        pairs = itertools.pairwise(widths)
        return 200 * sum(2 * m * n * (3 if place else 2) for place, (m, n) in enumerate(pairs))

    def flax_network(*hidden: int) -> ll.Problem:
        name = "-".join(map(str, (2, *hidden, 1)))
        return ll.Problem.from_flax(Tanh(hidden), optax.sigmoid_binary_cross_entropy, network.data, name=name)

    flops = flops_of(2, 128, 64, 1)
    draws = np.random.default_rng(0)
    recurrent = ll.Problem.from_flax(
        LSTM(6, hidden=LSTM_WIDTH),
        optax.softmax_cross_entropy_with_integer_labels,
        (draws.normal(size=(98, 100, 1)).cumsum(1), draws.integers(0, 6, 98)),
        name="lstm",
    )
    shrink = 16 if fast else 1
    steps = 20 if fast else 500
    few = np.geomspace(1e-3, 1e-1, 16)
    rates = np.geomspace(1e-5, 1e-3, 64)
    return [
        Work("T1", line, optax.sgd, rates, 64 // shrink, steps),
        Work("T2", network, optax.sgd, few, 16 // shrink, steps, flops_per_step=flops),
        Work("T3", network, optax.adam, np.geomspace(1e-4, 1e-2, 16), 16 // shrink, steps, flops_per_step=flops),
        Work("T4", recurrent, optax.rmsprop, np.geomspace(1e-4, 1e-3, 4), 4 if not fast else 1, steps // 5, 32),
        Work("T1, 65,536 runs", line, optax.sgd, rates, 1024 // shrink**2, steps),
        Work("flax", flax_network(128, 64), optax.sgd, few, 16 // shrink, steps, flops_per_step=flops),
        Work("8 wide", flax_network(8, 8), optax.sgd, few, 256 // shrink, steps, flops_per_step=flops_of(2, 8, 8, 1)),
        Work(
            "512 wide",
            flax_network(512, 512),
            optax.sgd,
            few[:4],
            4 if not fast else 1,
            max(steps // 20, 2),
            flops_per_step=flops_of(2, 512, 512, 1),
        ),
    ]


def starts(work: Work) -> tuple[Any, jax.Array]:
    """Starting parameters and learning rates of all runs, flat."""
    keys = jax.vmap(jax.random.key)(np.tile(np.arange(work.seeds), len(work.rates)))
    rates = jnp.asarray(np.repeat(work.rates, work.seeds), jnp.float32)
    # One by one: batched orthogonal draws can deadlock on a CPU (jaxlib before 0.12).
    return jax.jit(lambda keys: lax.map(work.problem.init, keys))(keys), rates


def train(work: Work, params: Any, rate: Any, data: Any) -> Any:
    """One run as a user would write it: a scan over steps, the loss of every step returned."""
    tx = work.optimizer(rate)
    count = jax.tree.leaves(data)[0].shape[0]
    batch_size = work.batch_size

    def step(carry: Any, now: Any) -> Any:
        params, state = carry
        batch = data
        if batch_size:
            start = (now * batch_size) % (count - batch_size + 1)
            batch = jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, batch_size), data)
        loss, gradient = jax.value_and_grad(work.problem.loss)(params, batch)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), loss

    (params, _), losses = lax.scan(step, (params, tx.init(params)), jnp.arange(work.num_steps))
    return losses[-1]


def device_data(work: Work) -> Any:
    """The data in single precision."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float32 if np.issubdtype(leaf.dtype, np.floating) else None),
        work.problem.data,
    )


def naive(work: Work) -> Contestant:
    """`jit(vmap(scan))` over the whole grid."""
    params, rates = starts(work)
    data = device_data(work)
    program = jax.jit(jax.vmap(functools.partial(train, work), in_axes=(0, 0, None)))
    return lambda: jax.block_until_ready(program(params, rates, data))


def loop_of_jitted_runs(work: Work) -> Contestant:
    """A Python loop over one jitted run."""
    params, rates = starts(work)
    data = device_data(work)
    program = jax.jit(functools.partial(train, work))
    each = [jax.tree.map(lambda leaf, place=place: leaf[place], params) for place in range(work.runs)]
    return lambda: jax.block_until_ready([program(start, rate, data) for start, rate in zip(each, rates, strict=True)])


def sweep_of(work: Work, every: int | None = None) -> ll.Sweep:
    """The work as a sweep."""
    return ll.Sweep(
        {"learning_rate": work.rates},
        work.seeds,
        work.num_steps,
        every or work.num_steps,
        batch_size=work.batch_size,
    )


def lossland_run(work: Work, every: int | None = None) -> Contestant:
    """This library, as a user calls it."""
    sweep = sweep_of(work, every)
    return lambda: ll.run(work.problem, work.optimizer, sweep, progress=False)


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def eager_torch(work: Work) -> Contestant | None:
    """PyTorch without compilation, one run after another; a sample of the runs, scaled up."""
    if not has_torch() or work.name not in ("T1", "T2", "T3", "T4"):
        return None
    from benchmarks import torch_peers

    sample = min(work.runs, 4)
    rates = np.repeat(work.rates, work.seeds)
    inputs, targets = work.problem.data
    if work.batch_size:
        batches = torch_peers.tensor(np.float32(inputs)), torch_peers.tensor(targets)
        hidden = LSTM_WIDTH

        def one(place: int) -> float:
            return torch_peers.train_recurrent(
                rates[place], place, batches, hidden, work.num_steps, work.batch_size or len(inputs)
            )

    else:
        leaves = jax.tree.leaves(starts(work)[0])
        data = tuple(torch_peers.tensor(np.float32(leaf)) for leaf in (inputs, targets))

        def one(place: int) -> float:
            return torch_peers.train_eagerly(
                work.name, [leaf[place] for leaf in leaves], data, float(rates[place]), work.num_steps
            )

    def call() -> float:
        began = time.perf_counter()
        for place in range(sample):
            one(place * work.runs // sample)
        return (time.perf_counter() - began) * work.runs / sample

    call.scaled = True  # pyright: ignore
    return call


def vmapped_torch(work: Work) -> Contestant | None:
    """`torch.func.vmap` over all runs; not for the LSTM, whose layer it cannot batch."""
    if not has_torch() or work.name not in ("T1", "T2", "T3"):
        return None
    from benchmarks import torch_peers

    params, rates = starts(work)
    leaves = jax.tree.leaves(params)
    data = tuple(torch_peers.tensor(np.float32(leaf)) for leaf in work.problem.data)
    return lambda: torch_peers.train_all_by_vmap(work.name, leaves, data, rates, work.num_steps)


def peak_flops(rounds: int = 5, size: int = 1024) -> float:
    """Best rate of a float32 matrix product on all cores."""
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), jnp.float32)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(matrix, matrix))
    best = np.inf
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def seconds(contestant: Contestant) -> float:
    """Time one call."""
    began = time.perf_counter()
    told = contestant()
    return told if getattr(contestant, "scaled", False) else time.perf_counter() - began


def in_turn(contestants: dict[str, Contestant | None], rounds: int) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of each contestant that is present, one after another in every round, and the peak at each round."""
    present = {name: contestant for name, contestant in contestants.items() if contestant is not None}
    for contestant in present.values():
        contestant()  # compile
    times: dict[str, list[float]] = {name: [] for name in present}
    peaks = []
    for _ in range(rounds):
        peaks.append(peak_flops(2))
        for name, contestant in present.items():
            times[name].append(seconds(contestant))
    return times, peaks


def measure(work: Work, rounds: int) -> dict[str, Any]:
    """Time all contestants in turn, `rounds` times."""
    contestants: dict[str, Contestant | None] = {
        "naive": naive(work),
        "loop of jitted runs": loop_of_jitted_runs(work) if work.runs <= 256 else None,
        "lossland": lossland_run(work),
        "lossland, every step recorded": lossland_run(work, every=1),
    }
    times, peaks = in_turn(contestants, rounds)
    # By themselves: PyTorch's threads go on spinning for a while, and whoever comes next would pay.
    times |= in_turn({"eager PyTorch": eager_torch(work), "torch.func.vmap": vmapped_torch(work)}, rounds)[0]
    medians = {name: statistics.median(found) for name, found in times.items()}
    run_steps = work.runs * work.num_steps
    return {
        "work": work.name,
        "runs": work.runs,
        "num_steps": work.num_steps,
        "seconds": medians,
        "spread": {name: [min(found), max(found)] for name, found in times.items()},
        "times_naive": {name: medians["naive"] / value for name, value in medians.items()},
        "run_steps_per_second": run_steps / medians["lossland"],
        "fraction_of_peak": run_steps * work.flops_per_step / medians["lossland"] / statistics.median(peaks) or None,
    }


def scaling(fast: bool, rounds: int) -> list[dict[str, float]]:
    """Cost per run of case 1, from 64 runs to 65,536."""
    work = works(False)[0]
    found = []
    for count in (64, 512) if fast else (64, 512, 4096, 65536):
        seeds = min(count, 1024)
        sweep = ll.Sweep({"learning_rate": np.geomspace(1e-5, 1e-3, count // seeds)}, seeds, work.num_steps, 100)
        call = functools.partial(ll.run, work.problem, work.optimizer, sweep, progress=False)
        call()
        times = [seconds(call) for _ in range(rounds)]
        took = statistics.median(times)
        found.append({"runs": count, "seconds": took, "microseconds_per_run": 1e6 * took / count})
    return found


def early_stop(fast: bool, rounds: int) -> dict[str, float]:
    """Wall time on a grid sorted by learning rate where most runs die, over that where none does, and over the share of
    run-steps that were alive."""
    work = works(False)[0]
    steps = 2_000 if fast else 50_000
    critical = 2 / 288.5
    calm, wild = (
        ll.Sweep({"learning_rate": critical * np.linspace(*ends, 64)}, 64, steps, steps)
        for ends in ((0.5, 0.9), (0.5, 1.5))
    )
    call = functools.partial(ll.run, work.problem, work.optimizer, progress=False)
    times: dict[str, list[float]] = {"calm": [], "wild": []}
    alive = 1.0
    for _ in range(rounds + 1):
        times["calm"].append(seconds(functools.partial(call, calm)))
        began = time.perf_counter()
        runs = call(wild)
        times["wild"].append(time.perf_counter() - began)
        alive = float(runs["steps_done"].mean()) / steps
    ratio = statistics.median(times["wild"][1:]) / statistics.median(times["calm"][1:])
    return {"time_over_calm": ratio, "share_of_run_steps_alive": alive, "over_share": ratio / alive}


def tiny(rounds: int) -> float:
    """Seconds of a sweep of one run of ten steps, once compiled."""
    work = works(False)[0]
    call = functools.partial(
        ll.run, work.problem, work.optimizer, ll.Sweep({"learning_rate": [1e-3]}, 1, 10, 10), progress=False
    )
    call()
    return statistics.median([seconds(call) for _ in range(rounds)])


def main(arguments: list[str] | None = None) -> int:
    """Print the table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=None, help="names of works")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    more: dict[str, Any] = {}

    def save() -> None:
        if options.json:
            machine = {"cores": os.cpu_count(), "python": platform.python_version(), "jax": jax.__version__}
            options.json.write_text(json.dumps({"machine": machine, "rows": rows, **more}, indent=1) + "\n")

    for work in works(options.fast):
        if options.only and work.name not in options.only:
            continue
        row = measure(work, 1 if options.fast else options.rounds)
        rows.append(row)
        print(
            f"{row['work']}: {row['runs']} runs x {row['num_steps']} steps, "
            f"{row['run_steps_per_second']:.3g} run-steps/s"
        )
        for name, value in row["seconds"].items():
            print(f"  {name:<32}{value:>10.4f} s{row['times_naive'][name]:>8.2f} x naive")
        if row["fraction_of_peak"]:
            print(f"  {row['fraction_of_peak']:.0%} of the matrix-product peak")
        sys.stdout.flush()
        save()
    rounds = 1 if options.fast else options.rounds
    if not options.only:
        more = {"scaling": scaling(options.fast, rounds), "early_stop": early_stop(options.fast, rounds)}
        more["tiny_seconds"] = tiny(rounds)
        for row in more["scaling"]:
            print(f"{row['runs']:>6} runs of T1: {row['seconds']:.4f} s, {row['microseconds_per_run']:.2f} us per run")
        print("early stop: " + ", ".join(f"{name} {value:.3f}" for name, value in more["early_stop"].items()))
        print(f"one run of ten steps: {more['tiny_seconds']:.4f} s")
    save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
