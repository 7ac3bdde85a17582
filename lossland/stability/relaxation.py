"""The bursts of Adam on a quadratic as a relaxation oscillation: period, peak and trough from b1 and b2 alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lossland.stability.arguments import Numbers, decay, momentum, positive
from lossland.stability.mode_growth import critical_ratio, dominant_root, ratio_rate
from lossland.stability.spike_lag import lag

_PHASES = 32
_REFILL_AMPLITUDE = 1e-4
"""Gradient over sqrt(v / (1 - b2)) from which a refill is followed: its square adds nothing yet."""
_REFILL_TOLERANCE = 1e-12


class Relaxation(NamedTuple):
    """One round of bursts: `Float[ndarray, "..."]` each.

    `period` and `lag` in steps; `peak` and `trough` are kappa / kappa*; `log_gain` is the factor (natural logarithm) by
    which the mode dies in the quiet part and grows again.
    """

    period: np.ndarray
    lag: np.ndarray
    peak: np.ndarray
    trough: np.ndarray
    log_gain: np.ndarray


def relaxation_period(peak: Numbers, trough: Numbers, b2: Numbers) -> np.ndarray:
    """Return the number of steps between two spikes whose extremes of kappa are known.

    Equation: T = 2 ln(peak / trough) / |ln b2|, the time the second moment needs to forget what the last spike filled
    in.

    In practice: two numbers of one spike date the next. The refill itself, some tens of steps, is not counted.

    Raises ValueError unless peak > 0, trough > 0 and 0 < b2 < 1.
    """
    name = "relaxation_period"
    ratio = positive(name, "peak", peak) / positive(name, "trough", trough)
    return 2 * np.log(ratio) / -np.log(decay(name, b2))


def relaxation_cycle(b1: Numbers, b2: Numbers) -> Relaxation:
    """Return the bursts that Adam settles into on a quadratic, eps = 0 and no noise; nothing is fitted.

    Equation: a round closes on itself. From the trough kappa rises for t = 2 ln(kappa* / trough) / |ln b2| steps, in
    which the mode dies by G = t |ln b1| / 2; it needs s = `lag`(G) steps to grow again, while kappa reaches the peak
    kappa* exp(|ln b2| s / 2). There it refills the second moment,

        m <- b1 m + (1 - b1) g,  v <- v + g^2,  g <- g - kappa(v) m,  kappa = peak / sqrt(v),

    from infinitesimal g to the next trough (the geometric mean over the phase at which it starts): the limit of small
    1 - b2, whose size drops out. Period t + s, which tends to c(b1) / (1 - b2): c = 1.15, 0.70, 0.48, 0.29 at b1 = 0.5,
    0.8, 0.9, 0.95. Learning rate and curvature do not enter.

    In practice: at (0.9, 0.999) a sharp direction spikes every 480 steps for ever, and neither a smaller learning rate
    nor a flatter minimum changes that; b2 does.

    Valid for b1 >= 0.5 and 1 - b2 at most a tenth of the boundary of `spike_boundary`: then within 5 % of the mean
    period. Rounds are irregular, +- 10 % at the defaults. Nearer to the boundary bursts are shorter than this says.

    Raises ValueError unless 0 < b1 < 1 and 0 < b2 < 1.
    """
    name = "relaxation_cycle"
    b1, b2 = np.broadcast_arrays(momentum(name, b1), decay(name, b2))
    if np.any(b1 == 0):
        raise ValueError(f"{name}: b1: expected more than 0, got 0: RMSprop rests at its edge (breathing_period)")
    shape = b1.shape
    b1, b2 = b1.ravel(), b2.ravel()
    sigma = ratio_rate(b2)
    gain = np.full(b1.shape, 10.0)
    steps, peak, trough, quiet = (np.zeros_like(gain) for _ in range(4))
    for _ in range(40):
        steps = np.atleast_1d(lag(gain, b1, b2))
        peak = np.exp(sigma * steps)
        trough = _refill(peak, b1)
        quiet = -np.log(trough) / sigma
        gain = (gain - quiet * np.log(b1) / 2) / 2
    found = quiet + steps, steps, peak, trough, gain
    return Relaxation(*(column.reshape(shape)[()] for column in found))


def _refill(peak: np.ndarray, b1: np.ndarray) -> np.ndarray:
    """Follow a spike from infinitesimal size until it has died: trough / kappa*."""
    first, b1 = (peak * critical_ratio(b1))[:, None], b1[:, None]
    root = np.real(dominant_root(first, b1))
    g = _REFILL_AMPLITUDE * np.abs(root) ** (np.arange(_PHASES) / _PHASES)
    m, v = (1 - b1) * g / (root - b1), np.ones_like(g)
    for _ in range(100_000):
        v = v + g**2
        m = b1 * m + (1 - b1) * g
        g = g - first / np.sqrt(v) * m
        if np.all(v > 1 + 1e3 * _REFILL_AMPLITUDE**2) and np.all(g**2 + m**2 * first**2 / v < _REFILL_TOLERANCE * v):
            break
    return np.exp(np.mean(-np.log(v) / 2, axis=1)) * peak
