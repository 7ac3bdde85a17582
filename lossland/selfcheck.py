"""Three textbook facts, measured here by training: is this installation one to trust?"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lossland.optimizers import Optimizer
from lossland.problems.problem import Batch, Params, Problem
from lossland.problems.synthetic import chebyshev
from lossland.stability.maps import critical_learning_rate
from lossland.sweeps.execution import run
from lossland.sweeps.sweep import Sweep

SPAN, NUM_RATES = 0.02, 80
"""Learning rates tried: within this share of the textbook's, so many of them; steps of 0.05 %, none at it."""
ALLOWED = 0.002
"""Relative error allowed to a threshold found by training on either side of it."""
RATE, NUM_STEPS, LATE = 0.2, 4000, 0.5
"""Training of the network: gradient descent, and the last share of its steps over which the median is taken."""
AT_EDGE, FROM_BELOW = 0.1, 0.8
"""How far from its threshold the median sharpness may end, and below what share of it it has to start."""


class Fact(NamedTuple):
    """One fact: what textbooks say, what was measured, and whether the two agree."""

    name: str
    expected: str
    measured: str
    holds: bool


def gradient_descent() -> Fact:
    """Measure the sharpness at which gradient descent on a quadratic turns unstable: 2 / learning_rate."""
    found = _threshold(Optimizer(optax.sgd), curvature=10.0, scale=1.0, textbook=2.0, num_steps=2000)
    return _compared("gradient descent on a quadratic turns unstable", found, 2.0)


def adam() -> Fact:
    """Measure the preconditioned sharpness at which Adam turns unstable: 38 / learning_rate for b1 = 0.9.

    Equation: 2 (1 + b1) / ((1 - b1) learning_rate). The divisor sqrt(v) + eps is held by an eps far above sqrt(v), so
    that the preconditioned sharpness is curvature / eps. The start is tiny, in float64, because Adam's first steps,
    whose bias corrections are not settled, multiply it by some 10^12.

    Source: Cohen et al. 2022, section 2.
    """
    optimizer = Optimizer(optax.adam, b1=0.9, eps=1.0)
    found = _threshold(optimizer, curvature=10.0, scale=1e-30, textbook=38.0, num_steps=2000)
    return _compared("Adam (b1 = 0.9) on a quadratic turns unstable", found, 38.0)


def progressive_sharpening() -> Fact:
    """Train a small network by gradient descent: its sharpness rises to 2 / learning_rate and stays there.

    Source: Cohen et al. 2021, section 3.1.
    """
    problem = chebyshev(degree=3, num_examples=64, widths=(24, 24))
    sweep = Sweep({"learning_rate": [RATE]}, seeds=4, num_steps=NUM_STEPS, every=NUM_STEPS // 40)
    runs = run(problem, optax.sgd, sweep, ["loss", "sharpness"], progress=False)
    ratio = runs["relative_sharpness"].isel(learning_rate=0).transpose("seed", "step").values
    started = float(np.median(ratio[:, 0]))
    ended = float(np.median(ratio[:, int(LATE * ratio.shape[1]) :]))
    learnt = runs["loss"].isel(learning_rate=0, step=-1) < runs["loss"].isel(learning_rate=0, step=0)
    return Fact(
        "sharpness of a network rises to its edge and stays",
        f"from below to 1 ± {AT_EDGE:g} of 2 / learning_rate",
        f"{started:.2f} to {ended:.3f}",
        started < FROM_BELOW and abs(ended - 1) <= AT_EDGE and bool(learnt.all()),
    )


FACTS: tuple[Callable[[], Fact], ...] = (gradient_descent, adam, progressive_sharpening)
"""What is checked, in order: one row for each."""


def selfcheck() -> int:
    """Measure every fact and print it with its verdict. Returns the exit code: 1 if one does not hold."""
    began, good = time.perf_counter(), True
    for fact in FACTS:
        name, expected, measured, holds = fact()
        good = good and holds
        print(f"{'holds ' if holds else 'FAILS '} {name}: expected {expected}, measured {measured}", flush=True)
    print(f"{'all facts hold' if good else 'a fact does not hold here'}, {time.perf_counter() - began:.0f} s")
    return 0 if good else 1


def _threshold(
    optimizer: Optimizer, *, curvature: float, scale: float, textbook: float, num_steps: int
) -> tuple[float, float]:
    """Train on curvature w^2 / 2 at rates around the textbook's: the two between which the loss first grows, times
    curvature."""

    def init(key: jax.Array) -> Params:
        return scale * (1 + jax.random.uniform(key, (1,)))

    def loss(params: Params, batch: Batch) -> jax.Array:
        return 0.5 * curvature * jnp.sum(params**2) + 0 * jnp.sum(batch)

    problem = Problem(init, loss, np.zeros(1, np.float32), name="parabola")
    rates = textbook / curvature * np.linspace(1 - SPAN, 1 + SPAN, NUM_RATES)
    sweep = Sweep({"learning_rate": rates}, 4, num_steps, num_steps // 20, "float64")
    runs = run(problem, optimizer, sweep, progress=False)
    found = critical_learning_rate(runs)
    return float(found["below"].min()) * curvature, float(found["above"].max()) * curvature


def _compared(name: str, found: tuple[float, float], textbook: float) -> Fact:
    low, high = found
    holds = textbook * (1 - ALLOWED) <= low < high <= textbook * (1 + ALLOWED)
    return Fact(name, f"{textbook:g} / learning_rate", f"between {low:.6g} and {high:.6g}", holds)
