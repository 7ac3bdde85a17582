"""How far a spike raises the loss: to where its mode has refilled the second moment."""

from __future__ import annotations

import numpy as np

from lossland.arguments import NUMERIC, expects
from lossland.stability.arguments import Numbers, decay
from lossland.stability.mode_growth import critical_ratio, dominant_root

_MOST = 3.0
"""ln ratio beyond which nothing is gained by a higher one."""


@expects(log_ratio=NUMERIC, refill=NUMERIC, loss=NUMERIC, learning_rate=NUMERIC, rate=NUMERIC)
def spike_rise(
    log_ratio: Numbers,
    refill: Numbers,
    loss: Numbers,
    learning_rate: Numbers,
    b1: Numbers,
    b2: Numbers,
    rate: Numbers = 0.0,
) -> np.ndarray:
    """Return the largest loss of a spike less the loss before it, over the loss before it.

    Equation: with r the ratio kappa / kappa* at the peak, rho the growth per step there and c = sum w^4 / P (`refill`,
    of the mode w and the divisor P), (1 - b2) c a^2 / (1 - 1 / rho^2) = 2 ln r gives the largest gradient a of the
    mode: squared gradients that grow by rho per step add up to the last one over 1 - 1 / rho^2. rise = a^2 / (2 lambda
    loss), lambda = r kappa* / learning_rate. `log_ratio` is ln r where the spike shows; it goes on rising by `rate` per
    step until that gradient is reached.

    In practice: whether a burst is seen at all. A small 1 - b2, a small loss and a long lag make it large; with b2 far
    from 1 the second moment is refilled before the loss has risen.

    Right within a factor of two at b2 >= 0.997; at 0.99 about two times too low at the median. Not for b2 < b1^2, where
    squared gradients fade faster than they were made. NaN where log_ratio is not above 0, or something is not finite.

    Raises ValueError unless 0 <= b1 < 1 and 0 < b2 < 1.
    """
    log_visible = np.minimum(np.asarray(log_ratio, float), _MOST)
    refill, loss, rate = np.asarray(refill, float), np.asarray(loss, float), np.asarray(rate, float)
    critical, b2 = critical_ratio(b1), decay("spike_rise", b2)
    log_ratio, rise = log_visible, np.full(np.broadcast(log_visible, refill, loss).shape, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(2):
            known = np.isfinite(log_ratio) & (log_ratio > 0)
            kappa = critical * np.exp(np.where(known, log_ratio, 0.0))
            growth = np.abs(dominant_root(kappa, b1))
            square = 2 * log_ratio * (1 - growth**-2) / ((1 - b2) * refill)
            rise = np.where(known, square * learning_rate / (2 * kappa * loss), np.nan)
            more = np.log(np.maximum(rise, 1.0)) / 2 / np.log(growth)
            log_ratio = np.minimum(log_visible + rate * np.where(known, more, 0.0), _MOST)
    return rise
