"""Where Adam and RMSprop stay: two-cycle, floor of eps, the edge that noise holds, minima flatter than squares."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lossland.optimizers import Optimizer
from lossland.reproductions.one_parameter_runs import LEARNING_RATE, LONG_AGO, Pair, adam, columns, grid, relative
from lossland.stability import adaptive
from lossland.stability.one_parameter import simulate


def floors(fast: bool) -> tuple[dict[str, Any], dict[str, Pair]]:
    """The eps at which late motion ends, located on a grid of 0.25 % around the law and 20 % wide."""
    settings = [("eps", 0.9, 0.99, 1e-2, 3.0), ("eps_root", 0.9, 0.99, 1e-2, 3.0), ("in_root", 0.0, 0.99, 1e-2, 3.0)]
    if not fast:
        settings += [("eps", 0.9, 0.999, 1e-3, 20.0), ("eps", 0.5, 0.98, 0.1, 0.7), ("eps", 0.95, 0.99, 1e-2, 1.0)]
        settings += [
            ("eps_root", 0.8, 0.98, 3e-2, 5.0),
            ("outside", 0.0, 0.97, 1e-2, 3.0),
            ("eps", 0.0, 0.99, 1e-2, 3.0),
        ]
    predicted, measured = [], []
    ratio = np.arange(0.9, 1.1, 0.0025)
    for place, b1, b2, rate, curvature in settings:
        inside = place in ("eps_root", "in_root")
        law = float(adaptive.epsilon_floor(rate, curvature, b1, inside_root=inside))
        common: dict[str, Any] = {
            "learning_rate": rate,
            "curvature": curvature,
            "start": 10 * rate,
            "noise": 1e-14 * curvature,
        }
        # The second moment has to fall to a thousandth of eps.
        num_steps = round(40 / (1 - b2))
        if place in ("in_root", "outside"):
            optimizer = Optimizer(optax.rmsprop, eps_in_sqrt=inside)
            path = simulate(optimizer, num_steps, decay=b2, eps=law * ratio, **common)
        elif inside:
            path = simulate(optax.adam, num_steps, b1=b1, b2=b2, eps=0.0, eps_root=law * ratio, **common)
        else:
            path = simulate(optax.adam, num_steps, b1=b1, b2=b2, eps=law * ratio, **common)
        moving = np.abs(path.x[:, -num_steps // 5 :]).max(1) > 1e-6 * rate
        # Every eps below the boundary moves and none above it; what lies between is the uncertainty.
        last, first = np.flatnonzero(moving).max(initial=-1), np.flatnonzero(~moving).min(initial=len(ratio))
        sharp = last + 1 == first and 0 <= last < len(ratio) - 1
        predicted.append(law)
        measured.append(law * (ratio[last] + ratio[first]) / 2 if sharp else np.nan)
    pair = np.array(predicted), np.array(measured)
    return {"epsilon_floor_largest_error": relative(pair)}, {"epsilon floor": pair}


def cycle_deviations(b1: np.ndarray, b2: np.ndarray, num_steps: int) -> np.ndarray:
    """Follow small deviations from the two-cycle with Adam itself: |x| over the cycle's, minus 1, over its start."""
    offset = 1e-7

    def one(b1: jax.Array, b2: jax.Array, amplitude: jax.Array) -> jax.Array:
        optimizer = optax.adam(LEARNING_RATE, b1=b1, b2=b2, eps=0.0)
        x = amplitude * (1 + offset)
        opt_state: Any = optimizer.init(x)
        state, *rest = opt_state
        # The gradient is x. On the cycle m = x (1 - b1) / (1 + b1), and had the other sign before.
        mu = -amplitude * (1 - b1) / (1 + b1)
        state = state._replace(count=jnp.int32(LONG_AGO), mu=mu, nu=amplitude**2)

        def step(carry: Any, _: Any) -> Any:
            x, opt_state = carry
            update, opt_state = optimizer.update(x, opt_state, x)
            return (x + update, opt_state), x

        return jax.lax.scan(step, (x, (state, *rest)), length=num_steps)[1]

    amplitude = adaptive.two_cycle_amplitude(LEARNING_RATE, b1)
    with jax.enable_x64(True):
        path = np.asarray(jax.jit(jax.vmap(one))(b1, b2, amplitude))
    return (path * (-1.0) ** np.arange(num_steps) / amplitude[:, None] - 1) / offset


def recursion_roots(series: np.ndarray, order: int) -> np.ndarray:
    """Roots of the linear recursion that a series obeys, by least squares, largest first."""
    rows = np.array([series[i : i + order] for i in range(len(series) - order)])
    coefficients = np.linalg.lstsq(rows, series[order:], rcond=None)[0]
    roots = np.roots([1.0, *-coefficients[::-1]])
    return roots[np.argsort(-np.abs(roots))]


def cycle_grid(fast: bool) -> tuple[np.ndarray, np.ndarray]:
    """b1 and b2 of the two-cycles that are measured."""
    if fast:
        b1, b2 = grid([0.05, 0.15, 0.18, 0.5, 0.9], [0.9, 0.99, 0.999])
    else:
        momenta = [0.0, 0.05, 0.1, 0.15, 0.17, 0.18, 0.25, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
        b1, b2 = grid(momenta, [0.5, 0.8, 0.9, 0.97, 0.99, 0.999])
    return b1, b2


def multipliers(fast: bool) -> tuple[dict[str, Any], dict[str, Pair]]:
    """All three multipliers of the two-cycle, from a path of Adam beside it."""
    b1, b2 = cycle_grid(fast)
    law = adaptive.two_cycle_multipliers(b1, b2)
    # Few enough steps that the fastest deviation stays small.
    found = np.array([recursion_roots(path, 3) for path in cycle_deviations(b1, b2, 14)])
    largest = np.abs(law[:, 0]), np.abs(found[:, 0])
    stable = adaptive.two_cycle_is_stable(b1, b2)
    numbers = {
        "two_cycle_multiplier_largest_error": float(np.max(np.abs(largest[0] - largest[1]))),
        "two_cycle_stability_share_right": float(np.mean(stable == (largest[1] < 1))),
    }
    return numbers, {"two-cycle multiplier": largest}


def breathing(fast: bool) -> tuple[dict[str, Any], dict[str, Pair]]:
    """RMSprop settling at its edge: period, decay and floor."""
    decays = [0.9, 0.99] if fast else [0.5, 0.7, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999]
    periods, rates, losses = [], [], []
    for b2 in decays:
        for curvature, rate in ((1.0, 1e-2), (7.0, 3e-3)):
            num_steps = round(30 / (1 - b2)) + 200
            path = simulate(
                optax.rmsprop,
                num_steps,
                learning_rate=rate,
                decay=b2,
                eps=1e-30,
                curvature=curvature,
                start=3.3 * rate,
                noise=1e-12 * curvature * rate,
            )
            size = np.abs(path.x[0])
            losses.append((curvature * rate**2 / 8, curvature * size[-1] ** 2 / 2))
            # Where the swing is small enough to be linear and large enough to be seen.
            swing = size / size[-1] - 1
            small = np.flatnonzero(np.abs(swing) > 1e-3).max() + 1
            seen = np.flatnonzero(np.abs(swing) > 1e-7).max()
            root = recursion_roots(swing[small : seen + 1], 2)[0]
            periods.append((float(adaptive.breathing_period(b2)), 2 * np.pi / abs(np.angle(root))))
            rates.append((np.sqrt(b2), abs(root)))
    period, rate, loss = (columns(kind) for kind in (periods, rates, losses))
    numbers = {
        "breathing_period_largest_error": relative(period),
        "breathing_decay_largest_error": relative(rate),
        "rmsprop_loss_floor_largest_error": relative(loss),
    }
    return numbers, {"RMSprop period": period, "RMSprop loss floor": loss}


def noise_edges(fast: bool) -> tuple[dict[str, Any], dict[str, Pair]]:
    """kappa that gradient noise of constant size holds."""
    signal, b1 = grid([0.1, 0.5, 2.0, 5.0], [0.0, 0.5, 0.9] if fast else [0.0, 0.3, 0.5, 0.8, 0.9])
    b2 = 0.998 if fast else 0.9995
    law = adaptive.noise_edge(signal, b1)
    path = adam(round(30 / (1 - b2)), b1=b1, b2=b2, start=LEARNING_RATE, noise=LEARNING_RATE / signal)
    pair = law, np.median(path.kappa[:, round(10 / (1 - b2)) :], axis=1)
    return {"noise_edge_largest_error": relative(pair)}, {"noise edge": pair}


def flat_minima(fast: bool) -> tuple[dict[str, Any], dict[str, Pair]]:
    """|x|^n: on which side of the condition bursts occur, and the rate where they do not."""
    power, b1, side = grid([3.0, 4.0] if fast else [3.0, 4.0, 6.0, 8.0], [0.8, 0.9], [1.15, 0.85, 0.5])
    b2 = 1 - (1 - adaptive.superquadratic_critical_decay(power, b1)) * side
    path = adam(1500, b1=b1, b2=b2, power=power, start=0.1)
    size = np.abs(path.x)
    # A rate of 0.9 leaves float64 after some thousand steps: what is looked at ends where squares would.
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(size ** (2 * (power[:, None] - 1)) > 1e-280, np.log(size), np.nan)
    end = np.sum(np.isfinite(logs), axis=1) - 1
    lanes = np.arange(len(end))
    rate = np.exp((logs[lanes, end] - logs[lanes, end // 2]) / (end - end // 2))
    rises = np.array([np.any(np.diff(logs[i, end[i] // 2 : end[i]]) > 0) for i in lanes])
    calm = side < 1
    pair = adaptive.superquadratic_rate(power[calm], b2[calm]), rate[calm]
    numbers = {
        "superquadratic_share_on_the_right_side": float(np.mean(rises == ~calm)),
        "superquadratic_rate_largest_error": relative(pair),
    }
    return numbers, {"rate on |x|ⁿ": pair}
