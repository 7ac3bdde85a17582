"""The cycle of period two on which Adam and RMSprop sit exactly at their threshold, and whether they stay on it."""

from __future__ import annotations

import numpy as np

from lossland.stability.arguments import Numbers, decay, momentum, not_negative, positive
from lossland.stability.mode_growth import critical_ratio


def two_cycle_amplitude(
    learning_rate: Numbers, b1: Numbers, *, curvature: Numbers = 1.0, eps: Numbers = 0.0
) -> np.ndarray:
    """Return |x| of the cycle x, -x, x, ... on f(x) = curvature x^2 / 2.

    Equation: |x| = learning_rate / kappa* - eps / curvature: there the second moment is the gradient squared, and kappa
    is kappa* exactly. It exists for every b1 and b2 while that is positive; 0 where eps is above its floor.

    In practice: the smallest loss that Adam can hold in a sharp direction is curvature |x|^2 / 2; for RMSprop
    curvature learning_rate^2 / 8. A lower loss needs a lower learning rate.

    Raises ValueError unless learning_rate > 0, curvature > 0, eps >= 0 and 0 <= b1 < 1.

    Source: Bock and Weiss 2019 for its existence.
    """
    name = "two_cycle_amplitude"
    rate, curvature = positive(name, "learning_rate", learning_rate), positive(name, "curvature", curvature)
    critical = critical_ratio(momentum(name, b1))
    return np.maximum(rate / critical - not_negative(name, "eps", eps) / curvature, 0.0)


def two_cycle_multipliers(b1: Numbers, b2: Numbers) -> np.ndarray:
    """Return the Floquet multipliers of the two-cycle per step, up to its sign: `Complex[ndarray, "... 3"]`, largest
    first.

    Equation: the roots of r^3 + (1 - b1 - 3 b2) r^2 + (3 b1 + b2 - b1 b2) r - b1 b2, the characteristic polynomial of
    minus the step, linearised in (x, first moment, second moment) at the cycle. Learning rate and curvature drop out.

    In practice: the largest one says by what factor a deviation from the edge of stability grows per step. Above 1 the
    optimizer cannot rest at the edge: it leaves it, and comes back in bursts.

    Valid for eps far below the cycle's gradient; small deviations.

    Raises ValueError unless 0 <= b1 < 1 and 0 < b2 < 1.
    """
    name = "two_cycle_multipliers"
    b1, b2 = np.broadcast_arrays(momentum(name, b1), decay(name, b2))
    companion = np.zeros((*b1.shape, 3, 3))
    companion[..., 1, 0] = companion[..., 2, 1] = 1.0
    companion[..., 0, :] = np.stack([-(1 - b1 - 3 * b2), -(3 * b1 + b2 - b1 * b2), b1 * b2], -1)
    roots = np.linalg.eigvals(companion)
    return np.take_along_axis(roots, np.argsort(-np.abs(roots), axis=-1), -1)


def two_cycle_is_stable(b1: Numbers, b2: Numbers) -> np.ndarray:
    """Return whether the two-cycle attracts: whether the optimizer can rest at the edge of stability.

    Equation: 1 + b1^2 b2 > 3 b1 (1 + b2), the last of Jury's conditions on `two_cycle_multipliers` to fail.

    In practice: RMSprop can, Adam with b1 = 0.9 never can. Its spikes are no accident of the landscape.

    Raises ValueError unless 0 <= b1 < 1 and 0 < b2 < 1.
    """
    b1, b2 = momentum("two_cycle_is_stable", b1), decay("two_cycle_is_stable", b2)
    return 1 + b1**2 * b2 > 3 * b1 * (1 + b2)


def two_cycle_critical_momentum(b2: Numbers) -> np.ndarray:
    """Return the b1 above which the two-cycle no longer attracts.

    Equation: b1 = [3 (1 + b2) - sqrt(9 (1 + b2)^2 - 4 b2)] / (2 b2), 3 - 2 sqrt 2 = 0.1716 for b2 -> 1, 1 / 3 for b2 ->
    0.

    In practice: the little momentum that RMSprop bears before its rest at the edge turns into bursts.

    Raises ValueError unless 0 < b2 < 1.
    """
    b2 = decay("two_cycle_critical_momentum", b2)
    total = 3 * (1 + b2)
    return 2 / (total + np.sqrt(total**2 - 4 * b2))


def breathing_period(b2: Numbers) -> np.ndarray:
    """Return the number of steps in which RMSprop's amplitude at the edge swings once around its floor.

    Equation: 2 pi / arccos((3 b2 - 1) / (2 sqrt b2)), the argument of the complex multipliers of the two-cycle at b1 =
    0; 2 pi / sqrt(2 (1 - b2)) for b2 -> 1. The swing dies by sqrt(b2) per step, and what stays is the two-cycle, with
    the loss curvature learning_rate^2 / 8.

    In practice: a loss that breathes with a period of 44 steps at b2 = 0.99, or 140 at 0.999, and slowly comes to rest
    is RMSprop settling at its edge, not a sign of trouble.

    Valid for small swings; b2 > 1 / 9, below which the multipliers are real. Raises ValueError otherwise.
    """
    b2 = decay("breathing_period", b2)
    if np.any(b2 <= 1 / 9):
        raise ValueError(f"breathing_period: b2: expected more than 1 / 9 (below, nothing swings), got {np.min(b2):g}")
    return 2 * np.pi / np.arccos((3 * b2 - 1) / (2 * np.sqrt(b2)))
