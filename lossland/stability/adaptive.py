"""Laws of Adam and RMSprop late in training: when a mode turns unstable, when the loss shows it, how it goes on.

Written in two dimensionless numbers. kappa = learning_rate x top eigenvalue of P^-1/2 H P^-1/2, with the divisor P of the
next update (second moment already advanced, bias corrections included), and its threshold kappa* = 2 (1 + b1) / (1 - b1).
With P frozen an optimizer m <- b1 m + (1 - b1) g, x <- x - learning_rate m / P moves a mode by

    (g, m) <- J (g, m),    det(r - J) = r^2 - [(1 + b1) - (1 - b1) kappa] r + b1.

What makes late training unstable is that P is not frozen. Once the gradient along the sharp direction has died, the
second moment forgets by b2 per step and kappa rises by sigma = |ln b2| / 2 per step with no help from the curvature. It
has to cross kappa*; from then on the mode grows out of whatever was left of it, unseen for a computable lag, until its
squared gradient refills the second moment and kappa falls again.

Everything is NumPy in float64; arguments are numbers or arrays and broadcast. Amplitudes grow by rho, losses by rho^2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Numbers = Any
"""A number, or an array of them."""

_CHUNK = 4096
"""Steps that a sum over steps is cut into."""


def critical_ratio(b1: Numbers) -> np.ndarray:
    """Return kappa*, the learning rate x preconditioned sharpness at which Adam turns unstable.

    Equation: kappa* = 2 (1 + b1) / (1 - b1): 2 for RMSprop (b1 = 0), 38 at b1 = 0.9, 78 at 0.95. Momentum of the form
    m <- b1 m + (1 - b1) g; it is what `lossland.threshold(optax.adam, learning_rate=1.0)` certifies.

    In practice: a learning rate is safe while learning_rate x preconditioned sharpness stays below this number. A larger
    b1 raises it at once, which is why a change of b1 in the middle of training removes a spike that was coming.

    Raises ValueError unless 0 <= b1 < 1.

    Source: Cohen et al. 2022 (arXiv 2207.14484), section 2.
    """
    b1 = momentum("critical_ratio", b1)
    return 2 * (1 + b1) / (1 - b1)


def growth_factor(kappa: Numbers, b1: Numbers) -> np.ndarray:
    """Return rho, the factor by which the amplitude of a mode grows per step at a frozen second moment.

    Equation: the largest |r| of r^2 - t r + b1 = 0, t = (1 + b1) - (1 - b1) kappa: sqrt(b1) where the roots are complex,
    (1 - sqrt b1) / (1 + sqrt b1) < kappa < (1 + sqrt b1) / (1 - sqrt b1), else (|t| + sqrt(t^2 - 4 b1)) / 2. Above
    kappa*, with D = kappa - kappa*, rho = [(1 + b1) + (1 - b1) (D + sqrt(1 + kappa* D + D^2))] / 2, which rises like
    sqrt(D) once D > 1 / kappa*: a mode 5 % above the threshold of Adam already grows by a quarter per step.

    Valid for changes of kappa that are slow against one step, and away from eps. `kappa` may be negative (a saddle).

    Raises ValueError unless kappa is finite and 0 <= b1 < 1.

    Source: roots of the characteristic polynomial; equal to `lossland.threshold(...).growth`, which takes them from the
    update itself.
    """
    b1 = momentum("growth_factor", b1)
    kappa = finite("growth_factor", "kappa", kappa)
    return np.abs(dominant_root(kappa, b1))


def dominant_root(kappa: np.ndarray, b1: np.ndarray) -> np.ndarray:
    """Return the outermost root of r^2 - t r + b1, complex where both are."""
    trace = (1 + b1) - (1 - b1) * kappa
    root = np.sqrt((trace**2 - 4 * b1).astype(complex))
    return (trace + np.where(trace < 0, -1, 1) * root) / 2


def ratio_rate(b2: Numbers, curvature_rate: Numbers = 0.0) -> np.ndarray:
    """Return sigma = d ln kappa / step while the second moment decays freely.

    Equation: sigma = |ln b2| / 2 + curvature_rate, with curvature_rate = d ln(top eigenvalue of the Hessian) / step.
    b2 = 1 stands for a second moment that no longer decays (frozen, or AMSGrad): then only the curvature counts.

    In practice: with b2 = 0.999 kappa doubles every 1386 quiet steps although nothing in the landscape changes.

    Valid while squared gradients along the sharp direction are far below the second moment and its root far above eps.

    Raises ValueError unless 0 < b2 <= 1 and curvature_rate is finite.
    """
    b2 = decay("ratio_rate", b2, frozen=True)
    return -np.log(b2) / 2 + finite("ratio_rate", "curvature_rate", curvature_rate)


def crossing_time(
    kappa0: Numbers, b1: Numbers, b2: Numbers, *, curvature_rate: Numbers = 0.0, residual: Numbers = 0.0
) -> np.ndarray:
    """Return the number of steps until kappa, now kappa0, reaches the threshold.

    Equation: t = [ln(kappa* / kappa0) + ln(1 + residual) / 2] / sigma, sigma of `ratio_rate`; 0 where kappa0 >= kappa*,
    inf where sigma <= 0. `residual` is what the second moment still gains from the oscillation that is dying out, as a
    share of it (`second_moment_residual`): in the trough of kappa right after a spike it is about (1 - b2) / (1 - b1),
    some ten steps at the defaults; once the mode is quiet, 0.

    In practice: the earliest warning there is. With b2 = 0.999 a mode at half the threshold crosses it in 1386 steps.
    A learning rate times 0.9 buys ln(1 / 0.9) / sigma = 211 steps, not safety.

    Valid until the next spike; 1 % with the residual, and without it for b2 >= 0.999 and troughs deeper than kappa* / 2.

    Raises ValueError unless kappa0 > 0, 0 <= b1 < 1, 0 < b2 <= 1 and residual >= 0.
    """
    kappa0 = positive("crossing_time", "kappa0", kappa0)
    residual = finite("crossing_time", "residual", residual)
    if np.any(residual < 0):
        raise ValueError(f"crossing_time: residual: expected at least 0, got {np.min(residual):g}")
    sigma = ratio_rate(b2, curvature_rate)
    distance = np.log(critical_ratio(b1) / kappa0)
    distance, sigma = np.broadcast_arrays(np.where(distance > 0, distance + np.log1p(residual) / 2, 0.0), sigma)
    with np.errstate(divide="ignore"):
        return np.where(distance == 0, 0.0, np.where(sigma > 0, distance / np.where(sigma > 0, sigma, 1.0), np.inf))[()]


def second_moment_residual(
    gradient: Numbers, first_moment: Numbers, second_moment: Numbers, kappa: Numbers, b1: Numbers, b2: Numbers
) -> np.ndarray:
    """Return what a dying oscillation still adds to the second moment, as a share of what is there.

    Equation: (1 - b2) sum_(j >= 1) g_j^2 / b2^j / v with (g_j, m_j) = J^j (g, m) at the present kappa: the quadratic form
    of a Lyapunov equation, solved in closed form. `gradient` is the one that `first_moment` and `second_moment` (not
    bias-corrected, or all of them) have just been advanced with. inf where the sum does not converge.

    Valid while the residual is small against 1, so that kappa hardly moves as it is added.

    Raises ValueError unless second_moment > 0, kappa is finite, 0 <= b1 < 1 and 0 < b2 < 1.
    """
    name = "second_moment_residual"
    v = positive(name, "second_moment", second_moment)
    b1, b2 = momentum(name, b1), decay(name, b2)
    g, m, kappa = (
        finite(name, key, x) for key, x in (("gradient", gradient), ("first_moment", first_moment), ("kappa", kappa))
    )
    g, m, v, kappa, b1, b2 = np.broadcast_arrays(g, m, v, kappa, b1, b2)
    # The moments are already advanced: the next gradient is g - kappa m, after which (g, m) <- J (g, m).
    jacobian = (
        np.stack([1 - (1 - b1) * kappa, -b1 * kappa, 1 - b1, b1], -1).reshape(*b1.shape, 2, 2)
        / np.sqrt(b2)[..., None, None]
    )
    after = np.stack([g - kappa * m, m], -1) / np.sqrt(b2)[..., None]
    pairs = np.einsum("...ij,...kl->...ikjl", jacobian, jacobian).reshape(*b1.shape, 4, 4)
    start = np.einsum("...i,...j->...ij", after, after).reshape(*b1.shape, 4, 1)
    converges = np.abs(dominant_root(kappa, b1)) ** 2 < b2
    system = np.eye(4) - np.where(converges[..., None, None], pairs, 0.0)
    return np.where(converges, (1 - b2) * np.linalg.solve(system, start)[..., 0, 0] / v, np.inf)[()]


def mode_amplitude(gradient: Numbers, first_moment: Numbers, kappa: Numbers, b1: Numbers) -> np.ndarray:
    """Return how much of a mode's gradient belongs to the root that grows.

    Equation: |g + l m| / |1 + l (1 - b1) / (r - b1)|, l = -b1 kappa / (r - b1), r the outermost root of `growth_factor`:
    the projection on the left eigenvector of J, normalised so that a mode that is nothing but the growing solution has
    amplitude |g|. `first_moment` is the one before this gradient enters it.

    In practice: at the crossing the gradient alone may be near a zero of the oscillation; the amplitude is not.

    Valid for kappa >= kappa*, where the outermost root is real and alone. Raises ValueError for b1 outside [0, 1).
    """
    name = "mode_amplitude"
    b1, g, m = momentum(name, b1), finite(name, "gradient", gradient), finite(name, "first_moment", first_moment)
    kappa = finite(name, "kappa", kappa)
    root = dominant_root(kappa, b1)
    left = -b1 * kappa / (root - b1)
    return np.abs(g + left * m) / np.abs(1 + left * (1 - b1) / (root - b1))


def lag(
    log_gain: Numbers, b1: Numbers, b2: Numbers, *, curvature_rate: Numbers = 0.0, kappa0: Numbers | None = None
) -> np.ndarray:
    """Return the number of steps from the crossing of the threshold to the spike that is seen in the loss.

    Equation: the first s with sum_(i < s) ln rho(kappa_i) >= log_gain, kappa_i = kappa0 exp(sigma i). `kappa0` defaults to
    kappa*, the crossing; give the ratio of the present state to count from now. Steps below kappa* count as steps but
    not as decay: there noise, or what was left of the mode, holds the amplitude up. inf where the gain is never reached.

    `log_gain` is the natural logarithm of the factor by which the amplitude has to grow to be seen: ln(sqrt(v) /
    amplitude) of the mode's gradient at the crossing (`mode_amplitude`), or half the logarithm of the loss over the part
    of it that sits in the mode.

    In practice: the loss goes on falling for some 50 steps (b1 = 0.9, b2 = 0.999) after the optimizer has become
    unstable. Those steps are the time there is to act, and the reason why the step at which the loss jumps says nothing
    about the step at which it went wrong.

    Valid until the mode's squared gradient reaches the second moment. Whole steps, as floats.

    Raises ValueError unless log_gain is finite, kappa0 > 0, 0 <= b1 < 1 and 0 < b2 <= 1.
    """
    gain = finite("lag", "log_gain", log_gain)
    b1 = momentum("lag", b1)
    sigma = ratio_rate(b2, curvature_rate)
    threshold = critical_ratio(b1)
    first = threshold if kappa0 is None else positive("lag", "kappa0", kappa0)
    gain, b1, sigma, threshold, first = np.broadcast_arrays(gain, b1, sigma, threshold, first)
    shape = gain.shape
    gain, b1, sigma, threshold, first = (x.astype(np.float64).ravel() for x in (gain, b1, sigma, threshold, first))
    steps = np.where(gain <= 0, 0.0, np.inf)
    rises = sigma > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        # Steps below the threshold are counted, not summed.
        waiting = np.ceil(np.maximum(np.log(threshold / first), 0.0) / np.where(rises, sigma, 1.0))
        steady = gain / np.log(np.abs(dominant_root(first, b1)))
    steps = np.where((sigma == 0) & (first > threshold) & (gain > 0), np.ceil(steady), steps)
    left = np.flatnonzero((gain > 0) & (sigma != 0) & (rises | (first > threshold)))
    begin, total = np.where(rises, waiting, 0.0), np.zeros_like(gain)
    while left.size:
        clock = begin[left, None] + np.arange(_CHUNK)
        # Far above the threshold one step is enough; the cap only keeps the exponential finite.
        kappa = first[left, None] * np.exp(np.minimum(sigma[left, None] * clock, 300.0))
        growth = np.where(kappa >= threshold[left, None], np.log(np.abs(dominant_root(kappa, b1[left, None]))), 0.0)
        sums = total[left, None] + np.cumsum(growth, axis=1)
        reached = sums >= gain[left, None]
        done = reached.any(1)
        steps[left[done]] = clock[done, reached[done].argmax(1)] + 1
        over = ~rises[left] & (kappa[:, -1] < threshold[left])
        total[left], begin[left] = sums[:, -1], begin[left] + _CHUNK
        left = left[~done & ~over]
    return steps.reshape(shape)[()]


def lag_closed_form(log_gain: Numbers, b1: Numbers, b2: Numbers, *, curvature_rate: Numbers = 0.0) -> np.ndarray:
    """Return the lag of `lag` counted from the crossing, in closed form.

    Equation: s = [3 log_gain / (2 (1 + b1) sqrt(sigma))]^(2/3), from ln rho = (1 + b1) sqrt(sigma i) + ..., the square-root
    branch of `growth_factor`. Within 10 % of the sum for 20 / kappa*^2 < sigma s < 0.1; below that range rho still grows
    linearly in kappa - kappa* and the spike comes later, above it ln rho saturates. At b1 = 0 there is no square-root
    branch (rho = kappa - 1): the form is that of b1 near 1 and does not hold.

    In practice: a mode 1000 times smaller needs not 1000 times longer but some tens of steps.

    Raises ValueError unless log_gain is finite, 0 < b1 < 1 and sigma > 0.
    """
    gain = np.maximum(finite("lag_closed_form", "log_gain", log_gain), 0.0)
    b1, sigma = momentum("lag_closed_form", b1), ratio_rate(b2, curvature_rate)
    if np.any(b1 == 0):
        raise ValueError("lag_closed_form: b1: expected more than 0, got 0; use lag, which sums the steps")
    if np.any(sigma <= 0):
        raise ValueError("lag_closed_form: expected kappa to rise, b2 < 1 or curvature_rate > 0; use lag with kappa0")
    return (3 * gain / (2 * (1 + b1) * np.sqrt(sigma))) ** (2 / 3)


def overshoot(lag: Numbers, b2: Numbers, *, curvature_rate: Numbers = 0.0) -> np.ndarray:
    """Return kappa at the spike over the threshold.

    Equation: kappa_peak / kappa* = exp(sigma lag).

    In practice: 1.02 to 1.05 at the defaults, so a map of sharpness against the threshold that is recorded every hundred
    steps shows "1" right up to the spike.

    Raises ValueError unless lag >= 0 and 0 < b2 <= 1.
    """
    lag = np.asarray(lag, np.float64)
    if np.any(~(lag >= 0)):
        raise ValueError(f"overshoot: lag: expected at least 0 steps, got {np.min(lag):g}")
    return np.exp(ratio_rate(b2, curvature_rate) * lag)


def momentum(name: str, b1: Numbers) -> np.ndarray:
    """Check b1."""
    b1 = np.asarray(b1, np.float64)
    if np.any(~((b1 >= 0) & (b1 < 1))):
        raise ValueError(f"{name}: b1: expected 0 <= b1 < 1, got {_first(b1, (b1 >= 0) & (b1 < 1))}")
    return b1


def decay(name: str, b2: Numbers, *, frozen: bool = False) -> np.ndarray:
    """Check b2; `frozen` admits 1."""
    b2 = np.asarray(b2, np.float64)
    good = (b2 > 0) & ((b2 <= 1) if frozen else (b2 < 1))
    if np.any(~good):
        raise ValueError(f"{name}: b2: expected 0 < b2 {'<=' if frozen else '<'} 1, got {_first(b2, good)}")
    return b2


def positive(name: str, key: str, value: Numbers) -> np.ndarray:
    """Check a positive finite number."""
    value = np.asarray(value, np.float64)
    good = np.isfinite(value) & (value > 0)
    if np.any(~good):
        raise ValueError(f"{name}: {key}: expected a positive number, got {_first(value, good)}")
    return value


def finite(name: str, key: str, value: Numbers) -> np.ndarray:
    """Check a finite number."""
    value = np.asarray(value, np.float64)
    if not np.all(np.isfinite(value)):
        raise ValueError(f"{name}: {key}: expected a finite number, got {_first(value, np.isfinite(value))}")
    return value


def _first(value: np.ndarray, good: np.ndarray) -> str:
    return f"{np.ravel(value)[np.flatnonzero(~np.ravel(good))[0]]:g}"
