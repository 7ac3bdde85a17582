"""Which (b1, b2) spike on their own: on a quadratic, and where the loss is flatter than one at its minimum."""

from __future__ import annotations

import numpy as np

from lossland.stability.arguments import Numbers, decay, momentum, positive

FACTOR, BEND = 14.2, 7.8
"""Fitted to simulation, 0.05 <= 1 - b1 <= 0.28; the exponent 3 is not."""


def spike_boundary(b1: Numbers) -> np.ndarray:
    """Return the 1 - b2 below which Adam bursts for ever on a quadratic, eps = 0 and no noise.

    Equation: 1 - b2 = 14.2 d^3 exp(-7.8 d^2), d = 1 - b1. The cube is a matter of scale: for small d a mode needs 1 / d
    steps to grow or die, and its growth changes where kappa moves by a share d^2, which at |ln b2| / 2 per step takes
    d^2 / (1 - b2) steps. Both numbers are fitted to where the envelope of |x|, late in training, ceases to vary.

    In practice: (0.9, 0.999) bursts, (0.9, 0.98) and (0.99, 0.99) do not. This is a statement on quadratics. In
    networks, whose loss is steeper than a quadratic far from its minimum and flatter near it, a smaller b2 makes spikes
    smaller but does not end them.

    Valid for 0.72 <= b1 <= 0.95, within 7 %. On the calm side the loss still oscillates; around the boundary the one or
    the other may come, depending on the start. Not for noise, which ends bursts (`noise_edge`).

    Raises ValueError unless 0 <= b1 < 1.

    Source: Ma, Wu and E 2022 (arXiv 2009.06125) for the regimes; form and numbers are measured here.
    """
    d = 1 - momentum("spike_boundary", b1)
    return FACTOR * d**3 * np.exp(-BEND * d**2)


def _superquadratic(power: Numbers) -> np.ndarray:
    """Check the power of a loss that is flatter than a quadratic at its minimum."""
    power = positive("superquadratic", "power", power)
    if np.any(power <= 2):
        raise ValueError(
            f"superquadratic: power: expected more than 2, got {np.min(power):g}; see spike_boundary for 2"
        )
    return power


def superquadratic_critical_decay(power: Numbers, b1: Numbers) -> np.ndarray:
    """Return the b2 above which Adam settles on f(x) = |x|^power without spikes.

    Equation: b2 > b1^(2 (n - 2) / n), n = `power`. Between a v that only decays, by b2, and a gradient x^(n - 1), x can
    shrink by r = b2^(1 / (2 (n - 2))) per step with kappa constant; perturbed, x / r^t returns iff b1 / (sqrt(b2) r^2),
    the product of the two roots of its recursion, is below 1.

    In practice: minima of networks that have fitted their data are flatter than quadratic. There b2 = 0.999 with
    b1 = 0.9 is on the safe side (n = 4: b2 > 0.9), and a *smaller* b2 is what starts spikes.

    Valid for eps = 0 and gradients far from underflow. Raises ValueError unless power > 2 and 0 <= b1 < 1.

    Source: Bai et al. 2026 (arXiv 2603.09581); derived as above.
    """
    power = _superquadratic(power)
    return momentum("superquadratic_critical_decay", b1) ** (2 * (power - 2) / power)


def superquadratic_rate(power: Numbers, b2: Numbers) -> np.ndarray:
    """Return the factor by which |x| shrinks per step on f(x) = |x|^power, where Adam does not spike.

    Equation: r = b2^(1 / (2 (power - 2))); the loss shrinks by r^power. Learning rate and curvature drop out.

    In practice: late in training the loss falls as fast as the second moment forgets: a larger b2 trains slower.

    Valid where `superquadratic_critical_decay` is exceeded. Raises ValueError unless power > 2 and 0 < b2 < 1.
    """
    power = _superquadratic(power)
    return decay("superquadratic_rate", b2) ** (1 / (2 * (power - 2)))
