"""When kappa reaches its threshold: from the start of training, and from the trough after a spike."""

from __future__ import annotations

import numpy as np

from lossland.stability.arguments import Numbers, decay, finite, momentum, not_negative, positive
from lossland.stability.mode_growth import critical_ratio, dominant_root, mode_step, ratio_rate

_DESCENT_STEPS = 4000
"""Steps of the integration of a descent."""
_LONGEST = 1000.0
"""Memories of the second moment in a descent that `_DESCENT_STEPS` still resolve."""
_MOST_TERMS = 1_000_000
"""Points at which a sum over steps is taken; with more steps than that it is an integral."""


def crossing_time(
    kappa0: Numbers,
    b1: Numbers,
    b2: Numbers,
    *,
    curvature_rate: Numbers = 0.0,
    residual: Numbers = 0.0,
    step: Numbers = np.inf,
) -> np.ndarray:
    """Return the number of steps until kappa, now kappa0, reaches the threshold.

    Equation: t = [ln(kappa* / kappa0) + ln(1 + residual) / 2] / sigma, sigma of `ratio_rate`; 0 where kappa0 >= kappa*,
    inf where sigma <= 0. `residual` is what the second moment still gains from the oscillation that is dying out, as a
    share of it (`second_moment_residual`): in the trough of kappa right after a spike it is about (1 - b2) / (1 - b1),
    some ten steps at b1 = 0.9; once the mode is quiet, 0.

    `step`: the number of updates done, where bias corrections still move (step < 10 / (1 - b2)): they raise kappa too,
    and t solves (ln[(b2^-t - b2^step) / (1 - b2^step)]) / 2 + curvature_rate t = ln(kappa* / kappa0) +
    ln(1 + residual) / 2.

    In practice: the earliest warning there is. With b2 = 0.999 a mode at half the threshold crosses it in 1386 steps.
    A learning rate times 0.9 buys ln(1 / 0.9) / sigma = 211 steps, not safety.

    Valid until the next spike, where the oscillation has time to die, t |ln b1| / 2 > 8: then within 1.5 steps of the
    crossing. With less time the error grows to 4 % of t. Without the residual it is early by
    ln(1 + residual) / |ln b2|.

    Raises ValueError unless kappa0 > 0, 0 <= b1 < 1, 0 < b2 <= 1, residual >= 0 and step >= 1.
    """
    kappa0 = positive("crossing_time", "kappa0", kappa0)
    residual = not_negative("crossing_time", "residual", residual)
    momentum("crossing_time", b1)
    decay("crossing_time", b2, frozen=True)
    step = not_negative("crossing_time", "step", step)
    if np.any(step < 1):
        raise ValueError(f"crossing_time: step: expected at least 1 update done, got {np.min(step):g}")
    sigma, distance = ratio_rate(b2, curvature_rate), np.log(critical_ratio(b1) / kappa0)
    distance = np.where(distance > 0, distance + np.log1p(residual) / 2, 0.0)
    distance, sigma, step, b2 = np.broadcast_arrays(distance, sigma, step, np.asarray(b2, np.float64))
    rises = sigma > 0
    settled = np.where(distance == 0, 0.0, np.where(rises, distance / np.where(rises, sigma, 1.0), np.inf))
    early = (step < np.inf) & (b2 < 1) & np.isfinite(settled)
    if not np.any(early):
        return settled[()]
    rate = np.where(early, -np.log(b2), 1.0)
    open_share = np.where(early, -np.expm1(-rate * np.where(early, step, 1.0)), 1.0)
    low, high = np.zeros_like(settled), np.where(early, settled, 0.0)
    for _ in range(100):  # corrections only speed up the rise
        middle = (low + high) / 2
        rise = sigma * middle + np.log1p(-np.expm1(-rate * middle) * (1 / open_share - 1)) / 2
        low, high = np.where(rise < distance, middle, low), np.where(rise < distance, high, middle)
    return np.where(early, (low + high) / 2, settled)[()]


def second_moment_residual(
    gradient: Numbers, first_moment: Numbers, second_moment: Numbers, kappa: Numbers, b1: Numbers, b2: Numbers
) -> np.ndarray:
    """Return what a dying oscillation still adds to the second moment, as a share of what is there.

    Equation: (1 - b2) sum_(j >= 1) g_j^2 / b2^j / v with (g_j, m_j) = J^j (g, m) at the present kappa: a Lyapunov
    equation, solved. `gradient` is the latest one, and both moments are those it has just entered (neither corrected
    for bias, or both at a time when corrections have settled). inf where the sum does not converge.

    In practice: the correction that dates the next crossing from the lowest kappa after a spike, rather than from some
    later, quiet step.

    Valid while the residual is small against 1, so that kappa hardly moves as it is added.

    Raises ValueError unless second_moment > 0, 0 <= b1 < 1, 0 < b2 < 1 and the rest is finite.
    """
    name = "second_moment_residual"
    v, b1, b2 = positive(name, "second_moment", second_moment), momentum(name, b1), decay(name, b2)
    g, m = finite(name, "gradient", gradient), finite(name, "first_moment", first_moment)
    g, m, v, kappa, b1, b2 = np.broadcast_arrays(g, m, v, finite(name, "kappa", kappa), b1, b2)
    root = np.sqrt(b2)
    jacobian = mode_step(kappa, b1) / root[..., None, None]
    # The moments hold this gradient already: the parameter moves next.
    after = np.stack([g - kappa * m, m], -1) / root[..., None]
    pairs = np.einsum("...ij,...kl->...ikjl", jacobian, jacobian).reshape(*b1.shape, 4, 4)
    start = np.einsum("...i,...j->...ij", after, after).reshape(*b1.shape, 4, 1)
    converges = np.abs(dominant_root(kappa, b1)) ** 2 < b2
    total = np.linalg.solve(np.eye(4) - np.where(converges[..., None, None], pairs, 0.0), start)[..., 0, 0]
    return np.where(converges, (1 - b2) * total / v, np.inf)[()]


def onset_time(distance: Numbers, b1: Numbers, b2: Numbers) -> np.ndarray:
    """Return the step at which kappa first reaches its threshold, from the start of training, eps = 0.

    Equation: T = ln(1 + W N^2 kappa*^2) / |ln b2|, N = `distance` = |x_0 - minimum| / learning_rate, and W the second
    moment that the descent leaves behind, in units of (1 - b2^t) x (first gradient)^2 and free of its own decay since:

        W = a integral y^2 e^(a s) ds,  dy/ds = -y / sqrt(V),  V = a integral y^2 e^(-a (s - r)) dr / (1 - e^(-a s)),

    y = gradient / first gradient, s = step / N, a = N |ln b2|. For a -> 0, W = 0.4151 a: T = 3 ln N / |ln b2| + ... The
    curvature does not enter: a steep and a flat direction that start equally far away cross together.

    In practice: the step number before which no late instability is to be expected, whatever the curvature. Each factor
    10 in (distance / learning rate) adds 3 ln 10 / |ln b2|: 6900 steps at b2 = 0.999. So a smaller learning rate delays
    the first spike, it does not remove it.

    Where a > 1000, W is that of `onset_time_sign_descent`: nearly all steps are of one size, T is N and some.

    Valid on a quadratic for N >= 100: 1.3 % for 1 / (1 - b1) <= N / 10, 4 % at b1 = 0.95, N = 100.
    Needs 1 - b2 < (1 - b1) / 2: a second moment that forgets as fast as the first may let kappa settle below its
    threshold. A direction whose curvature changes on the way has another N.

    Raises ValueError unless distance > 0, 0 <= b1 < 1 and 0 < b2 < 1.
    """
    name = "onset_time"
    distance, b2 = positive(name, "distance", distance), decay(name, b2)
    critical = critical_ratio(momentum(name, b1))
    rate = -np.log(b2)
    a = np.asarray(distance * rate)
    log_gain = _descent_gain(np.minimum(a, _LONGEST)) + 2 * np.log(distance * critical)
    found = np.logaddexp(0.0, log_gain) / rate
    if not np.any(a > _LONGEST):
        return found
    return np.where(a > _LONGEST, onset_time_sign_descent(distance, b1, b2), found)[()]


def _descent_gain(a: np.ndarray) -> np.ndarray:
    """Return ln W of `onset_time`: exponential midpoint steps, which cannot overshoot where y dies faster and
    faster."""
    end = np.minimum(8.0, 1.0 + 25 / a)
    step = end / _DESCENT_STEPS
    fade, half = np.exp(-a * step), np.exp(-a * step / 2)
    y, moment, s = np.ones_like(a), np.zeros_like(a), np.zeros_like(a)
    for index in range(_DESCENT_STEPS):
        slope = 1.0 if index == 0 else np.sqrt(-np.expm1(-a * s) / (a * moment))
        middle = y * np.exp(-slope * step / 2)
        moment_middle = (moment + (y**2 + middle**2) * step / 4) * half
        slope = np.sqrt(-np.expm1(-a * (s + step / 2)) / (a * moment_middle))
        after = y * np.exp(-slope * step)
        moment = moment * fade + (y**2 * fade + 4 * middle**2 * half + after**2) * step / 6
        y, s = after, s + step
    return np.log(a * moment) + a * s


def onset_time_sign_descent(distance: Numbers, b1: Numbers, b2: Numbers) -> np.ndarray:
    """Return the first onset as if the descent were N steps of unit length.

    Equation: T = ln((1 - b2) kappa*^2 sum_(s <= N) (N - s)^2 b2^-s) / |ln b2|, N = `distance` as in `onset_time`.

    In practice: a bound from below on the first late spike that needs no more than a sum.

    A descent that divides by an average of its own past gradients slows down as they shrink, which leaves more second
    moment behind: this form is early, by 1 % where N (1 - b2) < 0.3 and 3 to 8 % where it is 3 to 100.

    Raises ValueError unless distance > 0, 0 <= b1 < 1 and 0 < b2 < 1.
    """
    name = "onset_time_sign_descent"
    distance, b1, b2 = np.broadcast_arrays(positive(name, "distance", distance), momentum(name, b1), decay(name, b2))
    found = np.empty(distance.shape)
    for place in np.ndindex(found.shape):
        n, rate = distance[place], -np.log(b2[place])
        # Backwards: what lies more than 60 / rate before the end is forgotten. Many terms are few strides of them.
        last = np.floor(n)
        terms = min(last, np.ceil(60 / rate)) + 1
        points = int(min(terms, _MOST_TERMS))
        back = (np.arange(points) + 0.5) * (terms / points) - 0.5
        total = np.sum((n - last + back) ** 2 * np.exp(-rate * back)) * (terms / points)
        log_total = np.log(total) + rate * last
        found[place] = (np.log((1 - b2[place]) * critical_ratio(b1[place]) ** 2) + log_total) / rate
    return np.maximum(found, 0.0)[()]


def onset_time_closed_form(distance: Numbers, b1: Numbers, b2: Numbers) -> np.ndarray:
    """Return the first onset in closed form, for long memories.

    Equation: T = [3 ln N + ln((1 - b2) kappa*^2 / 3)] / |ln b2|, N = `distance`: `onset_time_sign_descent` for
    N (1 - b2) << 1.

    In practice: for a rough date by hand; a learning rate ten times smaller delays the first spike by 6900 steps at
    b2 = 0.999.

    Early by 1 to 2 % where N (1 - b2) < 0.3 and by 7 to 12 % at 3; wrong beyond.

    Raises ValueError unless distance > 0, 0 <= b1 < 1 and 0 < b2 < 1.
    """
    name = "onset_time_closed_form"
    distance, b1, b2 = positive(name, "distance", distance), momentum(name, b1), decay(name, b2)
    return np.maximum(3 * np.log(distance) + np.log((1 - b2) * critical_ratio(b1) ** 2 / 3), 0.0) / -np.log(b2)
