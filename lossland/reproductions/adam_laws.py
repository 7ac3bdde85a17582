"""Adam late in training, on one parameter: every law against the optimizer itself in float64, over many settings."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lossland import figures
from lossland.figures.adaptive import adam_laws_figure
from lossland.optimizers import Optimizer
from lossland.stability import adaptive
from lossland.stability.intervals import student_quantile
from lossland.stability.one_parameter import simulate, spike_events
from lossland.stability.spike_boundary import BEND, FACTOR

LEARNING_RATE = 1e-2
LONG_AGO = 10**6
"""A step count at which bias corrections have settled."""
Pair = tuple[np.ndarray, np.ndarray]
"""(predicted, measured)."""


def measure(folder: Path, fast: bool, table: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the figure's paths."""
    numbers: dict[str, Any] = {}
    pairs: dict[str, Pair] = {}
    parts = (onsets, rounds, noisy_lags, relaxations, floors, multipliers, breathing, noise_edges, flat_minima, updates)
    for part in parts:
        found, more = part(fast)
        numbers |= found
        pairs |= more
    boundary, found = spike_boundaries(fast)
    numbers |= found
    everything = ((law, *pair) for law, both in pairs.items() for pair in zip(*both, strict=True))
    lines = [f'"{law}",{predicted:.9g},{measured:.9g}' for law, predicted, measured in everything]
    (folder / "adam_laws.csv").write_text("\n".join(["law,predicted,measured", *lines]) + "\n", encoding="utf-8")
    paths = figures.save(adam_laws_figure(pairs, boundary, cycle_grid(fast)), folder / "adam_laws")
    return {name: value for name, value in numbers.items() if name in table}, paths


def grid(*axes: Any) -> list[np.ndarray]:
    """All combinations of the axes, one array per axis."""
    return [np.array(column, float) for column in zip(*itertools.product(*axes), strict=True)]


def joined(parts: list[Pair]) -> Pair:
    """Put the pairs of several settings together."""
    return np.concatenate([predicted for predicted, _ in parts]), np.concatenate([measured for _, measured in parts])


def columns(rows: list[tuple[Any, Any]]) -> Pair:
    """Turn rows of (predicted, measured) into two arrays."""
    return np.array([predicted for predicted, _ in rows], float), np.array([measured for _, measured in rows], float)


def relative(pair: Pair) -> float:
    """Largest relative deviation of what was measured from what was predicted."""
    return float(np.max(np.abs(pair[1] / pair[0] - 1)))


def adam(num_steps: int, **arguments: Any) -> Any:
    """Simulate Adam without eps from x = 1, so that start / learning rate is 1 / learning rate."""
    return simulate(optax.adam, num_steps, **{"eps": 0.0, "start": 1.0, "learning_rate": LEARNING_RATE, **arguments})


def onsets(fast: bool) -> tuple[dict[str, Any], dict[str, Pair]]:
    """First crossing from the start of training."""
    settings = [(np.array([100, 300, 1000]), [0.0, 0.7, 0.9, 0.95], [0.97, 0.99])]
    if not fast:
        settings += [(np.array([100, 300, 1000, 3000, 10000]), [0.0, 0.5, 0.8, 0.9, 0.95], [0.98, 0.99, 0.997, 0.999])]
        settings += [(np.array([100, 1000]), [0.8, 0.95], [0.9997])]
    predicted, early, closed, measured = [], [], [], []
    for axes in settings:
        distance, b1, b2 = grid(*axes)
        law = adaptive.onset_time(distance, b1, b2)
        path = adam(int(1.1 * law.max()) + 500, learning_rate=1 / distance, b1=b1, b2=b2)
        above = path.kappa >= adaptive.critical_ratio(b1)[:, None]
        measured += list(np.where(above.any(1), above.argmax(1), np.nan))
        predicted += list(law)
        early += list(adaptive.onset_time_sign_descent(distance, b1, b2))
        short = distance * (1 - b2) <= 0.3
        closed += list(np.where(short, adaptive.onset_time_closed_form(distance, b1, b2), np.nan))
    pair, closed = (np.array(predicted), np.array(measured)), np.array(closed)
    known = np.isfinite(closed)
    numbers = {
        "onset_largest_error": relative(pair),
        "onset_as_sign_descent_largest_error": relative((np.array(early), pair[1])),
        "onset_settings": len(pair[0]),
    }
    if known.any():
        numbers["onset_closed_form_largest_error"] = relative((closed[known], pair[1][known]))
    return numbers, {"first onset": pair}


def rounds(fast: bool) -> tuple[dict[str, Any], dict[str, Pair]]:
    """Deterministic rounds: crossing time from the trough, lag, overshoot."""
    settings = [([1e-1, 1e-2, 3e-3], [0.3, 0.5, 0.7, 0.8, 0.9], [0.99, 0.995], 8_000 if fast else 40_000)]
    if fast:
        settings += [([0.3, 0.1, 0.15], [0.8, 0.9, 0.95], [0.998], 25_000)]
    else:
        settings += [([0.3, 1e-1, 1e-2], [0.8, 0.9, 0.95], [0.998, 0.999, 0.9995], 60_000)]
    lags, sums, peaks, times, plain, gains = [], [], [], [], [], []
    for rates, b1s, b2s, num_steps in settings:
        rate, b1, b2 = grid(rates, b1s, b2s)
        path = adam(num_steps, learning_rate=rate, b1=b1, b2=b2)
        # Bias corrections have settled to 5e-5.
        e = spike_events(path, adaptive.critical_ratio(b1), settled=10 / (1 - b2))
        at, lane = e.crossing, e.lane
        g, m, kappa = (column[lane, at] for column in (path.gradient, path.first_moment, path.kappa))
        v = path.second_moment[lane, at + 1]
        # Deep in the quiet, 1e-300 is reached: where the mode has left float64 there is nothing to follow.
        amplitude = adaptive.mode_amplitude(g, m, kappa, b1[lane])
        usable = np.minimum(np.abs(g), amplitude) > 1e-250
        gain = np.log(np.sqrt(v) / np.where(usable, amplitude, 1.0))
        quiet = usable & (gain > 2)
        exact = adaptive.lag_from_state(g[quiet], m[quiet], v[quiet], kappa[quiet], b1[lane][quiet], b2[lane][quiet])
        lags.append((exact, (e.spike - at)[quiet]))
        sums.append((adaptive.lag(gain[quiet], b1[lane][quiet], b2[lane][quiet], kappa0=kappa[quiet]), lags[-1][1]))
        gains.append(gain[quiet])
        critical = adaptive.critical_ratio(b1)[lane]
        peaks.append((adaptive.overshoot(exact, b2[lane][quiet]), (path.kappa[lane, e.peak] / critical)[quiet]))
        low = path.kappa[lane, e.trough]
        residual = adaptive.second_moment_residual(
            path.gradient[lane, e.trough],
            path.first_moment[lane, e.trough + 1],
            path.second_moment[lane, e.trough + 1],
            low,
            b1[lane],
            b2[lane],
        )
        until = e.next_crossing - e.trough
        law = adaptive.crossing_time(low, b1[lane], b2[lane], residual=residual)
        # Whole steps are 1 % of 100, and the oscillation has to end before the next one begins.
        deep = (law >= 150) & (-np.log(b1[lane]) / 2 * law > 8)
        times.append((law[deep], until[deep]))
        # The plain form from where the oscillation has died, 10 memories of the momentum after the trough.
        rest = e.trough + np.ceil(10 / (1 - b1[lane])).astype(int)
        still = e.next_crossing - rest >= 150
        law = adaptive.crossing_time(path.kappa[lane[still], rest[still]], b1[lane][still], b2[lane][still])
        plain.append((law, (e.next_crossing - rest)[still]))
    lag, sums_, peak, time, plain_ = (joined(kind) for kind in (lags, sums, peaks, times, plain))
    numbers = {
        "lag_from_state_largest_error_steps": float(np.max(np.abs(lag[0] - lag[1]))),
        "lag_rounds": len(lag[0]),
        "lag_sum_median_error_steps": float(np.median(np.abs(sums_[0] - sums_[1]))),
        "overshoot_largest_error": relative(peak),
        "crossing_from_trough_largest_error": relative(time),
        "crossing_rounds": len(time[0]),
        "crossing_plain_largest_error": relative(plain_),
    }
    return numbers, {"crossing from trough": time, "lag from state (whole steps)": lag, "overshoot": peak}


def noisy_lags(fast: bool) -> tuple[dict[str, Any], dict[str, Pair]]:
    """First lag where gradient noise alone feeds the mode: its median, and how often 95 % intervals hold it."""
    settings = [(1e-2, 0.9, 0.99, 1e-8), (1e-2, 0.0, 0.99, 1e-7), (3e-2, 0.8, 0.985, 1e-6)]
    if not fast:
        settings += [
            (0.1, 0.9, 0.999, 1e-8),
            (0.1, 0.9, 0.999, 1e-6),
            (1e-2, 0.95, 0.995, 1e-9),
            (1e-2, 0.5, 0.99, 1e-12),
        ]
        settings += [(1e-2, 0.9, 0.999, 1e-12), (3e-3, 0.9, 0.995, 1e-8)]
    seeds, inside, medians = 64 if fast else 200, [], []
    for rate, b1, b2, noise in settings:
        num_steps = int(1.1 * adaptive.onset_time(1 / rate, b1, b2)) + 400
        path = adam(num_steps, learning_rate=np.full(seeds, rate), b1=b1, b2=b2, noise=noise)
        critical = adaptive.critical_ratio(b1)
        found = []
        for lane in range(seeds):
            crossing = int(np.argmax(path.kappa[lane] >= critical))
            loud = np.abs(path.gradient[lane, crossing:]) >= np.sqrt(path.second_moment[lane, crossing + 1])
            found.append(np.argmax(loud) if loud.any() else np.inf)
        found = np.array(found)
        low, middle, high = (
            adaptive.lag_under_noise(noise * critical / rate, b1, b2, probability=p) for p in (0.025, 0.5, 0.975)
        )
        medians.append((float(middle), float(np.median(found))))
        inside += list((found >= low) & (found <= high))
    pair = columns(medians)
    numbers = {
        "lag_under_noise_largest_median_error_steps": float(np.max(np.abs(pair[0] - pair[1]))),
        "lag_under_noise_coverage": float(np.mean(inside)),
    }
    return numbers, {"lag under noise (median)": pair}


def relaxations(fast: bool) -> tuple[dict[str, Any], dict[str, Pair]]:
    """Mean period of the bursts that Adam settles into."""
    settings = [(0.9, 0.999), (0.8, 0.997), (0.5, 0.997)]
    if not fast:
        settings += [(0.9, 0.9995), (0.95, 0.9998), (0.7, 0.995), (0.8, 0.999), (0.6, 0.998)]
    measured = []
    for b1, b2 in settings:
        num_steps = round((60 if fast else 120) / (1 - b2))
        path = adam(num_steps, learning_rate=np.array([0.3, 0.25, 0.37, 0.2, 0.15, 0.45]), b1=b1, b2=b2)
        e = spike_events(path, adaptive.critical_ratio(b1), settled=num_steps // 3)
        measured.append(np.mean(e.next_crossing - e.crossing))
    b1, b2 = np.array(settings).T
    pair = adaptive.relaxation_cycle(b1, b2).period, np.array(measured)
    return {"relaxation_period_largest_error": relative(pair)}, {"period of the bursts": pair}


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


def updates_of(gradients: np.ndarray, b1: float, b2: float, factory: Any = optax.adam) -> np.ndarray:
    """Updates that gradients cause, per learning rate and without the minus sign, bias corrections settled."""
    optimizer = factory(1.0, b1=b1, b2=b2, eps=0.0)
    with jax.enable_x64(True):
        opt_state: Any = optimizer.init(jnp.zeros(()))
        state, *rest = opt_state
        state = state._replace(count=jnp.int32(LONG_AGO))

        def step(opt_state: Any, gradient: jax.Array) -> Any:
            update, opt_state = optimizer.update(gradient, opt_state, jnp.zeros(()))
            return opt_state, -update

        return np.asarray(jax.jit(lambda s, g: jax.lax.scan(step, s, g))((state, *rest), jnp.asarray(gradients))[1])


def updates(fast: bool) -> tuple[dict[str, Any], dict[str, Pair]]:
    """Sizes of updates: after a silence, at most, under noise, and in a cycle of gradients."""
    jumps, bounds, spreads, drifts = [], [], [], []
    steps = np.arange(1, 101)
    for b1, b2 in ((0.9, 0.999), (0.9, 0.99), (0.95, 0.99), (0.5, 0.9), (0.0, 0.99)):
        jumps.append((adaptive.jump_response(steps, b1, b2), updates_of(np.ones(100), b1, b2)))
        if b1:
            length = int(300 / np.log(b2 / b1))  # grows by e^300
            growing = (b2 / b1) ** np.arange(min(length, 4000)) * 1e-140
            bounds.append((float(adaptive.update_bound(b1, b2)), float(updates_of(growing, b1, b2)[-1])))
    generator = np.random.default_rng(0)
    for b1 in (0.5, 0.9, 0.95):
        sizes = updates_of(generator.standard_normal(50_000 if fast else 400_000), b1, 0.9995)[10_000:]
        spreads.append((float(adaptive.update_rms(b1)), float(np.sqrt(np.mean(sizes**2)))))
    for size, b2 in ((3.0, 0.1), (3.0, 0.9), (3.0, 0.999), (10.0, 1 / 101), (5.0, 0.5)):
        for b1 in (0.0, 0.5):
            cycle = np.array([size, -1.0, -1.0])
            path = updates_of(np.tile(cycle, 7000), b1, b2)
            drifts.append((float(adaptive.periodic_drift(cycle, b1, b2)), float(path[-3000:].mean())))
    jump = joined(jumps)
    bound, spread, drift = (columns(kind) for kind in (bounds, spreads, drifts))
    peak = updates_of(np.ones(100), 0.9, 0.999)
    numbers = {
        "jump_response_largest_error": relative(jump),
        "jump_response_peak": float(peak.max()),
        "jump_response_peak_step": int(peak.argmax()) + 1,
        "update_bound_largest_error": relative(bound),
        "noise_update_rms_largest_error": relative(spread),
        "periodic_drift_largest_error": float(np.max(np.abs(drift[0] - drift[1]))),
        "periodic_drift_of_the_counterexample": float(drift[1][0]),
    }
    return numbers, {"jump response": (jump[0][::9], jump[1][::9]), "largest update": bound}


def spike_boundaries(fast: bool) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Where bursts end in (1 - b1, 1 - b2) on a quadratic: bracketed twice, and the power law through it."""
    delta = np.array([0.1, 0.2] if fast else [0.05, 0.06, 0.07, 0.085, 0.1, 0.12, 0.14, 0.17, 0.2, 0.24, 0.28])
    low, high = np.empty_like(delta), np.empty_like(delta)
    for index, d in enumerate(delta):
        low[index], high[index] = 3 * d**3, 40 * d**3
        for _ in range(2):
            tried = np.geomspace(low[index], high[index], 10)
            calm = ~bursts(d, tried, 16_000 if fast else 40_000)
            last = np.flatnonzero(~calm).max(initial=-1)  # bursts may come back once: the last of them counts
            low[index] = tried[last] if last >= 0 else 0.0
            high[index] = tried[last + 1] if last + 1 < len(tried) else np.inf
    middle = np.sqrt(low * high)
    more: dict[str, Any] = {}
    if not fast:
        # ln(boundary / d^3) = ln factor - bend d^2, and the 95 % interval of the factor.
        rows = np.stack([np.ones_like(delta), -(delta**2)], 1)
        heights = np.log(middle / delta**3)
        fitted = np.linalg.lstsq(rows, heights, rcond=None)[0]
        degrees = len(delta) - 2
        spread = np.sum((heights - rows @ fitted) ** 2) / degrees * np.linalg.inv(rows.T @ rows)
        half = student_quantile(0.975, degrees) * np.sqrt(np.diag(spread))
        factor, bend = np.exp([fitted[0] - half[0], fitted[0] + half[0]]), [fitted[1] - half[1], fitted[1] + half[1]]
        more["spike_boundary_factor"] = [float(value) for value in factor], FACTOR
        more["spike_boundary_bend"] = [float(value) for value in bend], BEND
    numbers = {
        **more,
        "spike_boundary_at_momentum_09": [float(low[delta == 0.1][0]), float(high[delta == 0.1][0])],
        "spike_boundary_largest_error": relative((adaptive.spike_boundary(1 - delta), middle)),
    }
    return {"delta": delta, "low": low, "high": high}, numbers


def bursts(delta: float, gamma: np.ndarray, num_steps: int) -> np.ndarray:
    """Say at which 1 - b2 any of four starts still bursts late: the envelope of |x| varies by more than 1.5."""
    starts = np.array([1.3, 3.1, 7.7, 19.0]) * LEARNING_RATE
    lanes, begin = np.repeat(gamma, len(starts)), np.tile(starts, len(gamma))
    path = adam(num_steps, b1=np.full(len(lanes), 1 - delta), b2=1 - lanes, start=begin)
    late = np.abs(path.x[:, num_steps // 2 :])
    width = int(np.ceil(8 / delta))  # longer than the oscillation, shorter than a burst
    count = late.shape[1] // width
    envelope = late[:, : count * width].reshape(len(lanes), count, width).max(2)
    low, high = np.quantile(envelope, [0.01, 0.99], axis=1)
    return np.any((high > 1.5 * low).reshape(len(gamma), -1), axis=1)
