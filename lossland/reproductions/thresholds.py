"""Thresholds computed from an optimizer's update, beside closed forms and beside the growth of simulated runs.

The measured threshold is the curvature at which runs on f(x) = curvature x^2 / 2 neither grow nor decay: runs of the
optimizer itself, at amplitudes of 1e-100, bisected from 10 % on either side. Second moments are put back to 1 after
every step, as frozen as the certificate takes them; curvature is then in units of the divisor of the update.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lossland import figures
from lossland.figures.reproduced import thresholds_figure
from lossland.thresholds import Certificate, critical_curvatures, threshold

BETAS = (0.0, 0.5, 0.9, 0.95, 0.99)
DECAY = 0.7
TINY = 1e-100
LATE = 2**30  # a step count at which bias corrections are 1
BISECTIONS = 36

Build = Callable[..., optax.GradientTransformation]


class Row(NamedTuple):
    """An optimizer of learning_rate and b, its closed form times the learning rate, and its frozen second moment.

    second_moment: the name under which the state keeps it; divisor: what the update divides by when it was put to 1.
    """

    build: Build
    closed_form: Callable[[float, float], float]
    second_moment: str | None = None
    divisor: float = 1.0


def chained(*parts: Callable[[float], Any]) -> Build:
    """A factory of learning_rate and b from functions of b, with the learning rate last."""

    def build(learning_rate: float, b: float) -> optax.GradientTransformation:
        return optax.chain(*(part(b) for part in parts), optax.scale_by_learning_rate(learning_rate))

    return build


def factory(of: Callable[..., Any], beta: str | None = None, **fixed: Any) -> Build:
    """An optax factory as a function of learning_rate and b, which sets the argument `beta`."""

    def build(learning_rate: float, b: float) -> optax.GradientTransformation:
        return of(learning_rate=learning_rate, **({beta: b} if beta else {}), **fixed)

    return build


def averaged(b: float) -> float:
    """The factor by which an average of gradients with decay b raises the threshold."""
    return (1 + b) / (1 - b)


def decayed(b: float) -> Any:
    return optax.add_decayed_weights(DECAY)


ROOT = float(np.sqrt(0.999))  # a second moment of 1 decays once before it divides
TABLE = {
    "gradient descent": Row(factory(optax.sgd), lambda b, rate: 2.0),
    "heavy ball": Row(factory(optax.sgd, "momentum"), lambda b, rate: 2 * (1 + b)),
    "Nesterov": Row(factory(optax.sgd, "momentum", nesterov=True), lambda b, rate: 2 * (1 + b) / (1 + 2 * b)),
    "EMA": Row(chained(optax.ema), lambda b, rate: 2 * averaged(b)),
    "coupled decay": Row(chained(decayed, optax.trace), lambda b, rate: 2 * (1 + b) - DECAY * rate),
    "decoupled decay": Row(chained(optax.trace, decayed), lambda b, rate: (2 - DECAY * rate) * (1 + b)),
    "Adam": Row(factory(optax.adam, "b1", eps=0.0), lambda b, rate: 2 * averaged(b), "nu", ROOT),
    "NAdam": Row(factory(optax.nadam, "b1", eps=0.0), lambda b, rate: 2 * averaged(b) / (1 + 2 * b), "nu", ROOT),
    "AdamW": Row(
        factory(optax.adamw, "b1", eps=0.0, weight_decay=DECAY),
        lambda b, rate: (2 - DECAY * rate) * averaged(b),
        "nu",
        ROOT,
    ),
    "AMSGrad": Row(factory(optax.amsgrad, "b1", eps=0.0), lambda b, rate: 2 * averaged(b), "nu_max"),
    "RMSprop": Row(
        factory(optax.rmsprop, "momentum", decay=0.9), lambda b, rate: 2 * (1 + b), "nu", float(np.sqrt(0.9 + 1e-8))
    ),
    "Adagrad": Row(factory(optax.adagrad, eps=0.0), lambda b, rate: 2.0, "sum_of_squares"),
}
CHAINS = {  # in no table: thresholds between 0.02 and 50 / rate, at multipliers anywhere on the circle
    "two averages": chained(optax.ema, lambda b: optax.ema(0.95)),
    "eight equal averages": chained(*[optax.ema] * 8),
    "clipped Nesterov, decay, average": chained(
        lambda b: optax.clip_by_global_norm(1.0),
        lambda b: optax.trace(b, nesterov=True),
        decayed,
        lambda b: optax.ema(0.6),
    ),
    "momentum on momentum": chained(optax.trace, lambda b: optax.trace(-0.5)),
}


def measure(folder: Path, fast: bool, table: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the figures' paths."""
    rates = (1e-3, 0.1) if fast else (1e-4, 1e-3, 0.1, 0.9)
    rate, b = (grid.ravel() for grid in np.meshgrid(rates, BETAS))
    computed, closed, simulated = {}, {}, {}
    with jax.enable_x64(True):
        for name, row in TABLE.items():
            computed[name] = rate * critical_curvatures(row.build, {"learning_rate": rate, "b": b})
            closed[name] = np.array([row.closed_form(*pair) for pair in zip(b, rate, strict=True)])
            simulated[name] = rate * simulated_thresholds(row, rate, b, computed[name] / rate, 4_000)
        for name, build in CHAINS.items():
            slow, chosen = np.full(2, 0.1), np.array([0.5, 0.9])
            computed[name] = slow * critical_curvatures(build, {"learning_rate": slow, "b": chosen})
            own = Row(build, lambda b, rate: np.nan)
            simulated[name] = slow * simulated_thresholds(own, slow, chosen, computed[name] / slow, 20_000)
        adam = threshold(optax.adam, learning_rate=0.01, b1=0.9)
        grown = {times: growth_of(TABLE["Adam"], 0.01, 0.9, times * critical(adam)) for times in (1.02, 1.2)}

    def largest(left: dict[str, np.ndarray], right: dict[str, np.ndarray], names: Any) -> float:
        return max(float(np.max(np.abs(left[name] / right[name] - 1))) for name in names)

    numbers: dict[str, Any] = {
        "optimizers_in_table": len(TABLE),
        "closed_forms_largest_relative_error": largest(computed, closed, TABLE),
        "simulated_thresholds_largest_relative_error": largest(simulated, computed, TABLE),
        "chains_in_no_table_largest_relative_error": largest(simulated, computed, CHAINS),
        "ema_at_nine_tenths_times_rate": 0.1 * critical(threshold(optax.chain(optax.ema(0.9), optax.scale(-0.1)))),
        "heavy_ball_of_the_example": critical(threshold(optax.sgd, learning_rate=0.1, momentum=0.9)),
    }
    for times, measured in grown.items():
        percent = round(100 * (times - 1))
        numbers[f"adam_growth_{percent}_percent_above_predicted"] = adam.growth(times * critical(adam))
        numbers[f"adam_growth_{percent}_percent_above_measured"] = measured
    return numbers, figures.save(thresholds_figure(computed, simulated, list(CHAINS)), folder / "thresholds")


def critical(certificate: Certificate) -> float:
    """The threshold of an optimizer that has one."""
    assert certificate.critical_curvature is not None
    return certificate.critical_curvature


def simulated_thresholds(row: Row, rate: np.ndarray, b: np.ndarray, near: np.ndarray, num_steps: int) -> np.ndarray:
    """Bisect for the curvature at which runs neither grow nor decay, within 10 % of `near`: Float[ndarray, "n"].

    NaN where runs do not decay at 0.9 times it and grow at 1.1 times it.
    """
    grown = _log_growth(row.build, row.second_moment, num_steps)

    def slope(curvature: np.ndarray) -> np.ndarray:
        return np.asarray(grown(rate, b, curvature[:, None] * row.divisor))[:, 0]

    low, high = 0.9 * near, 1.1 * near
    is_bracket = (slope(low) < 0) & (slope(high) > 0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        rises = slope(middle) > 0
        low, high = np.where(rises, low, middle), np.where(rises, middle, high)
    return np.where(is_bracket, (low + high) / 2, np.nan)


def growth_of(row: Row, rate: float, b: float, curvature: float, num_steps: int = 120) -> float:
    """Factor by which a run grows per step at one curvature, in units of the divisor of the update."""
    arguments = np.array([rate]), np.array([b]), np.array([[curvature * row.divisor]])
    return float(np.exp(_log_growth(row.build, row.second_moment, num_steps)(*arguments)[0, 0]))


@functools.cache
def _log_growth(build: Build, second_moment: str | None, num_steps: int) -> Any:
    """Log of the amplitude's growth per step over the second half of simulated runs: (n,), (n,), (n, k) -> (n, k)."""

    def settle(state: Any) -> Any:
        """Step counts far ahead and the second moment at 1."""
        late = jax.tree.map(
            lambda leaf: jnp.full_like(leaf, LATE) if jnp.issubdtype(jnp.result_type(leaf), jnp.integer) else leaf,
            state,
        )
        return late if second_moment is None else optax.tree.set(late, **{second_moment: jnp.ones(1)})

    def run(rate: Any, b: Any, curvature: Any) -> Any:
        transformation = build(rate, b)

        def step(carry: Any, _: Any) -> Any:
            x, state, log_scale = carry
            updates, state = transformation.update(curvature * x, settle(state), x)
            x: Any = optax.apply_updates(x, updates)
            # The motion is linear: parameter and momenta are put back to their size, which is far below any clipping.
            floats = [leaf for leaf in jax.tree.leaves((x, state)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
            size = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in floats if leaf.ndim])) / TINY
            size = jnp.where(size > 0, size, 1.0) if second_moment is None else jnp.abs(x[0]) / TINY + 1e-6
            x, state = jax.tree.map(
                lambda leaf: leaf / size if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, (x, state)
            )
            log_scale = log_scale + jnp.log(size)
            return (x, state, log_scale), jnp.log(jnp.abs(x[0])) + log_scale

        start = jnp.full(1, TINY)
        _, path = jax.lax.scan(step, (start, transformation.init(start), 0.0), length=num_steps)
        # The envelope of an oscillation: the largest value over each of 20 windows of the second half.
        late = path[num_steps // 2 :].reshape(20, -1).max(1)
        times = jnp.arange(20) * (num_steps // 40)
        times = times - times.mean()
        return jnp.sum(times * late) / jnp.sum(times**2)

    return jax.jit(jax.vmap(jax.vmap(run, in_axes=(None, None, 0))))
