"""How long the rounds of Adam last: onset, crossing, lag, period of the bursts, and where bursts end."""

from __future__ import annotations

from typing import Any

import numpy as np

from lossland.reproductions.one_parameter_runs import LEARNING_RATE, Pair, adam, columns, grid, joined, relative
from lossland.stability import adaptive
from lossland.stability.intervals import student_quantile
from lossland.stability.one_parameter import spike_events
from lossland.stability.spike_boundary import BEND, FACTOR


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


def spike_boundaries(fast: bool) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Where bursts end on a quadratic for half of the starts, bracketed twice; and the law fitted to it."""
    delta = np.array([0.1, 0.2] if fast else [0.05, 0.06, 0.07, 0.085, 0.1, 0.12, 0.14, 0.17, 0.2, 0.24, 0.28])
    low, high = np.empty_like(delta), np.empty_like(delta)
    for index, d in enumerate(delta):
        low[index], high[index] = 3 * d**3, 40 * d**3
        for _ in range(2):
            tried = np.geomspace(low[index], high[index], 10)
            last = np.flatnonzero(bursts(d, tried, fast) >= 0.5).max(initial=-1)
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


def bursts(delta: float, gamma: np.ndarray, fast: bool) -> np.ndarray:
    """Share of starts that still burst late at every 1 - b2: the envelope of |x| varies by more than 1.5.

    Shares, because near the boundary the start decides, and a single run may burst a third beyond it.
    """
    num_steps, starts = (16_000, 4) if fast else (40_000, 8)
    starts = np.geomspace(1.3, 19.0, starts) * LEARNING_RATE
    lanes, begin = np.repeat(gamma, len(starts)), np.tile(starts, len(gamma))
    path = adam(num_steps, b1=np.full(len(lanes), 1 - delta), b2=1 - lanes, start=begin)
    late = np.abs(path.x[:, num_steps // 2 :])
    width = int(np.ceil(8 / delta))  # longer than the oscillation, shorter than a burst
    count = late.shape[1] // width
    envelope = late[:, : count * width].reshape(len(lanes), count, width).max(2)
    low, high = np.quantile(envelope, [0.01, 0.99], axis=1)
    return np.mean((high > 1.5 * low).reshape(len(gamma), -1), axis=1)
