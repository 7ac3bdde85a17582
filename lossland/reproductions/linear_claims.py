"""The six claims about the single Dense unit whose loss grows without bound, settled by runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from lossland.optimizers import Optimizer
from lossland.problems import reported
from lossland.problems.problem import Problem
from lossland.reproductions.claims import Claim, Verdict, side_of
from lossland.reproductions.estimates import exact, mean_of, median_of, share_of
from lossland.stability.maps import bracket, outcomes
from lossland.sweeps.execution import run
from lossland.sweeps.sweep import Outcome, Sweep

CASE = "linear_regression"
RATE, EXAMPLES, EPOCHS = 0.01, 20, 500
BELOW = 0.9
"""Of the critical learning rate, where gradient descent is compared with Adam."""
CONVERGED = 0.01
"""Of the first loss, below which a run counts as having learnt."""
ADAM = Optimizer(optax.adam, learning_rate=1e-3, b1=0.9, b2=0.999, eps=1e-7)
STEPS_OF_MODES = 20


class Results(NamedTuple):
    """What was run, one entry per seed where there are several.

    critical: learning rate above which n = 20 diverges; falls: which runs below and above it fall at every step;
    final: loss after 500 epochs over the first, by setting; diverges: flags by setting; exponent: of the critical rate
    against n; growth: factor per epoch of the error along each eigenvector, lowest first; above: eigenvalues above 2 /
    rate; without_top: loss after 20 epochs over the first of a start without error along the top eigenvector.
    """

    critical: float
    falls: tuple[np.ndarray, np.ndarray]
    final: dict[str, np.ndarray]
    diverges: dict[str, np.ndarray]
    exponent: np.ndarray
    growth: np.ndarray
    above: int
    without_top: float


def measured(diagram: xr.Dataset, critical: float, falls: tuple[np.ndarray, np.ndarray], seeds: int) -> Results:
    """Run what the claims need beside the phase diagram over (num_examples, learning_rate, seed)."""
    problem = reported.linear_regression(EXAMPLES)
    standard = reported.linear_regression(EXAMPLES, standardised=True)
    rms = EXAMPLES / 2
    runs = {
        "SGD 0.01": _train(problem, optax.sgd, RATE, seeds),
        "SGD 1e-4": _train(problem, optax.sgd, 1e-4, seeds),
        f"SGD {BELOW * critical:.3g}": _train(problem, optax.sgd, BELOW * critical, seeds),
        "SGD 0.01, standardised": _train(standard, optax.sgd, RATE, seeds),
        "Adam 0.001": _train(problem, ADAM, None, seeds),
        "Adam 0.001, scales of the first step kept": _train(
            problem, Optimizer(scaled_once, learning_rate=1e-3), None, seeds
        ),
        "20 examples on 0.5, 1, ..., 10": _train(_on_a_grid(20, 0.5), optax.sgd, RATE, seeds),
        "40 examples on 0.5, 1, ..., 20": _train(_on_a_grid(40, 0.5), optax.sgd, RATE, seeds),
        "10 examples on 1, 2, ..., 10": _train(reported.linear_regression(10), optax.sgd, RATE, seeds),
        f"{EXAMPLES} examples, x / {rms:g}": _train(_on_a_grid(EXAMPLES, 1 / rms), optax.sgd, RATE, seeds),
    }
    # A run that overflowed is frozen there, and has no loss at the end.
    final = {
        name: np.nan_to_num((one["loss"].isel(step=-1) / one["loss"].isel(step=0)).values.ravel(), nan=np.inf)
        for name, one in runs.items()
    }
    diverges = {name: outcomes(one)["diverges"].values.ravel() for name, one in runs.items()}
    growth, above, without = _modes()
    return Results(critical, falls, final, diverges, _exponent(diagram), growth, above, without)


def scaled_once(learning_rate: Any, b1: Any = 0.9, eps: Any = 1e-7) -> optax.GradientTransformation:
    """Build Adam that never adapts: update -learning_rate m / (|g_0| + eps), g_0 the first gradient it saw."""

    def init(params: Any) -> Any:
        zero = jax.tree.map(jnp.zeros_like, params)
        return zero, zero, jnp.zeros((), jnp.int32)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        mean, first, count = state
        first = jax.tree.map(lambda old, g: jnp.where(count == 0, jnp.abs(g), old), first, updates)
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, mean, updates)
        correction = 1 - b1 ** (count + 1)
        scaled = jax.tree.map(lambda m, scale: -learning_rate * m / correction / (scale + eps), mean, first)
        return scaled, (mean, first, count + 1)

    return optax.GradientTransformation(init, update)


def _train(problem: Problem, optimizer: Any, rate: float | None, seeds: int) -> xr.Dataset:
    axes = {} if rate is None else {"learning_rate": [rate]}
    return run(problem, optimizer, Sweep(axes, seeds, EPOCHS, EPOCHS // 10), progress=False)


def _on_a_grid(num_examples: int, spacing: float) -> Problem:
    """The same line, y = x / 2, on x = spacing, 2 spacing, ..."""
    x = (spacing * np.arange(1, num_examples + 1)).astype(np.float32)
    problem = reported.linear_regression(num_examples)
    return replace(problem, data=(x, x / 2), name=f"linear_regression_{num_examples}_by_{spacing:g}")


def _exponent(diagram: xr.Dataset) -> np.ndarray:
    """Slope of log critical learning rate against log n, n from 10 on, seed by seed."""
    kept = diagram.sel(num_examples=diagram["num_examples"] >= 10)
    found = bracket(outcomes(kept)["diverges"], kept["status"] != Outcome.not_run)["critical_learning_rate"]
    values = found.transpose("seed", "num_examples").values
    log_n = np.log(found["num_examples"].values.astype(float))
    return np.array([np.polyfit(log_n, np.log(row), 1)[0] for row in values])


def _modes() -> tuple[np.ndarray, int, float]:
    """Follow gradient descent at 0.01 along each eigenvector, from two starts, in double precision.

    Returns:
        Growth per epoch of the error along each eigenvector (lowest eigenvalue first), the number of eigenvalues above
        2 / rate, and the loss after `STEPS_OF_MODES` epochs over the first of a start without error along the top one.
    """
    problem = reported.linear_regression(EXAMPLES)
    with jax.enable_x64(True):
        data = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), problem.data)

        def loss(flat: jax.Array) -> jax.Array:
            return problem.loss({"weight": flat[0], "bias": flat[1]}, data)

        target = jnp.array([0.5, 0.0])
        values, vectors = np.linalg.eigh(np.asarray(jax.hessian(loss)(target)))

        def descend(start: jax.Array) -> tuple[jax.Array, float]:
            flat = start
            for _ in range(STEPS_OF_MODES):
                flat = flat - RATE * jax.grad(loss)(flat)
            return flat, float(loss(flat) / loss(start))

        start = target + jnp.asarray(vectors.sum(1))
        end, _ = descend(start)
        shares = np.abs(vectors.T @ np.asarray(end - target)) / np.abs(vectors.T @ np.asarray(start - target))
        _, without = descend(target + jnp.asarray(vectors[:, 0]))
    return shares ** (1 / STEPS_OF_MODES), int((values > 2 / RATE).sum()), without


def claims(found: Results) -> list[Claim]:
    """Settle all six."""
    return [_needs_adam(found), _slow(found), _more_data(found), _falls(found), _directions(found), _adapts(found)]


def _needs_adam(found: Results) -> Claim:
    below = next(name for name in found.final if name.startswith("SGD 0.00"))
    worse = share_of(found.final[below] > found.final["Adam 0.001"])
    sgd, adam, standard, plain = (
        median_of(found.final[name]) for name in (below, "Adam 0.001", "SGD 0.01, standardised", "SGD 0.01")
    )
    return Claim(
        CASE, "a", "SGD performs badly on this data, Adam is needed", side_of(worse.low, worse.high),
        f"share of seeds in which SGD at {BELOW:g} of its critical rate ends 500 epochs above Adam", **worse.numbers,
        counterfactual=f"loss after 500 epochs over the first, same seeds: SGD at {BELOW * found.critical:.3g} "
        f"{sgd}, Adam "
        f"{adam}, SGD at 0.01 on standardised inputs {standard}, SGD at 0.01 {plain}",
        condition="" if side_of(worse.low, worse.high) != "depends" else "on the initial weight: half of the seeds",
    )  # fmt: skip


def _slow(found: Results) -> Claim:
    final = found.final["SGD 1e-4"]
    good = share_of(~found.diverges["SGD 1e-4"] & (final < CONVERGED))
    verdict: Verdict = side_of(good.low, good.high)
    left = median_of(final)
    return Claim(
        CASE, "b", "a learning rate of 1e-4 converges", verdict,
        f"share of seeds whose loss ends 500 epochs below {CONVERGED:.0%} of the first", **good.numbers,
        counterfactual=f"loss left after 500 epochs {left}; share of the same seeds that diverge at 0.01: "
        f"{share_of(found.diverges['SGD 0.01'])}",
        condition="" if verdict != "depends" else f"on the initial weight: {left} of the first loss is left",
    )  # fmt: skip


def _more_data(found: Results) -> Claim:
    slope = mean_of(found.exponent)
    wide = share_of(found.diverges["40 examples on 0.5, 1, ..., 20"])
    narrow = share_of(found.diverges["20 examples on 0.5, 1, ..., 10"])
    few = share_of(found.diverges["10 examples on 1, 2, ..., 10"])
    scaled = share_of(found.diverges[f"20 examples, x / {EXAMPLES / 2:g}"])
    # Odd only if the critical rate did not fall as examples are added at a wider range.
    verdict: Verdict = "refuted" if slope.high < 0 else "supported" if slope.low >= 0 else "depends"
    return Claim(
        CASE, "c", "more data should make the model better, so the divergence is odd", verdict,
        "exponent of the critical learning rate against the number of examples, n = 10 to 40", **slope.numbers,
        counterfactual=f"seeds that diverge at 0.01: n = 10 on 1..10 {few.value:.0%}, twice as many on the same range "
        f"{narrow.value:.0%}; n = 40 on the range of n = 20 {wide.value:.0%}; n = 20 with x / 10 {scaled.value:.0%}: "
        "the range, "
        "not the number",
        condition="" if verdict != "depends" else "the interval of the exponent holds 0",
    )  # fmt: skip


def _falls(found: Results) -> Claim:
    below, above = (share_of(flags) for flags in found.falls)
    sides = side_of(below.low, below.high), side_of(above.low, above.high)
    verdict: Verdict = sides[0] if sides[0] == sides[1] else "depends"
    return Claim(
        CASE, "d", "with full-batch gradient descent the loss falls at every step", verdict,
        f"share of seeds whose loss falls at every one of 500 steps at {BELOW:g} of the critical rate", **below.numbers,
        counterfactual=f"same seeds at 1.5 times the critical rate: {above}",
        condition="" if verdict != "depends" else f"learning rate below 2 / sharpness = {found.critical:.4g}",
    )  # fmt: skip


def _directions(found: Results) -> Claim:
    low, top = found.growth
    verdict: Verdict = "supported" if found.above == 1 and low < 1 < top else "refuted"
    return Claim(
        CASE, "e", "divergence means overshooting along one direction, not along several or all", verdict,
        "eigenvalues of the Hessian above 2 / learning rate, of two", **exact(found.above).numbers,
        counterfactual=f"the error along the top eigenvector grows {top:.4g} times an epoch, along the other one "
        f"{low:.4g}; "
        f"a start without error along the top one has {found.without_top:.3g} of its loss after {STEPS_OF_MODES} "
        "epochs",
    )  # fmt: skip


def _adapts(found: Results) -> Claim:
    frozen, adam = "Adam 0.001, scales of the first step kept", "Adam 0.001"
    works = share_of(~found.diverges[frozen] & (found.final[frozen] < 1))
    # It adapts for nothing where runs that keep their first scales do as well.
    verdict: Verdict = {"supported": "refuted", "refuted": "supported"}.get(side_of(works.low, works.high), "depends")  # type: ignore[assignment]
    below = next(name for name in found.final if name.startswith("SGD 0.00"))
    plain = share_of(~found.diverges[below] & (found.final[below] < 1))
    return Claim(
        CASE, "f", "Adam works because its learning rate adapts", verdict,
        "share of seeds that Adam brings down with the scales of its first step kept for good", **works.numbers,
        counterfactual=f"loss after 500 epochs over the first: Adam {median_of(found.final[adam])}, with the first "
        "scales kept "
        f"{median_of(found.final[frozen])}; share of seeds that SGD below its critical rate brings down: {plain}: the "
        "steps are small, that they adapt is not needed",
        condition="" if verdict != "depends" else "on the initial weight",
    )  # fmt: skip
