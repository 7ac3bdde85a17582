"""How a mode of Adam or RMSprop grows while the second moment stands still, and how fast it lets kappa rise."""

from __future__ import annotations

import numpy as np

from lossland.stability.arguments import Numbers, decay, finite, momentum


def critical_ratio(b1: Numbers) -> np.ndarray:
    """Return kappa*, the learning rate x preconditioned sharpness at which Adam turns unstable.

    Equation: kappa* = 2 (1 + b1) / (1 - b1): 2 for RMSprop (b1 = 0), 38 at b1 = 0.9, 78 at 0.95. Momentum of the form
    m <- b1 m + (1 - b1) g; it is what `lossland.threshold(optax.adam, learning_rate=1.0)` certifies.

    In practice: a learning rate is safe while learning_rate x preconditioned sharpness stays below this number. A
    larger b1 raises it at once, which is why a change of b1 in the middle of training removes a spike that was coming.

    Raises ValueError unless 0 <= b1 < 1.

    Source: Cohen et al. 2022 (arXiv 2207.14484), section 2.
    """
    b1 = momentum("critical_ratio", b1)
    return 2 * (1 + b1) / (1 - b1)


def growth_factor(kappa: Numbers, b1: Numbers) -> np.ndarray:
    """Return rho, the factor by which the amplitude of a mode grows per step at a frozen second moment.

    Equation: the largest |r| of r^2 - t r + b1 = 0, t = (1 + b1) - (1 - b1) kappa: sqrt(b1) where the roots are
    complex, (1 - sqrt b1) / (1 + sqrt b1) < kappa < (1 + sqrt b1) / (1 - sqrt b1), else (|t| + sqrt(t^2 - 4 b1)) / 2.
    Above kappa*, with D = kappa - kappa*, rho = [(1 + b1) + (1 - b1) (D + sqrt(1 + kappa* D + D^2))] / 2, which rises
    like sqrt(D) once D > 1 / kappa*: at b1 = 0.9 a mode 2 % above the threshold already grows by 26 % per step.

    In practice: there is no safe distance beyond the threshold. A step of 2 % over it multiplies what is in the mode by
    ten every ten steps.

    Valid for changes of kappa that are slow against one step, and away from eps. `kappa` may be negative (a saddle).

    Raises ValueError unless kappa is finite and 0 <= b1 < 1.

    Source: roots of the characteristic polynomial; equal to `lossland.threshold(...).growth`, which takes them from the
    update itself.
    """
    b1 = momentum("growth_factor", b1)
    return np.abs(dominant_root(finite("growth_factor", "kappa", kappa), b1))


def dominant_root(kappa: np.ndarray, b1: np.ndarray) -> np.ndarray:
    """Return the outermost root of r^2 - [(1 + b1) - (1 - b1) kappa] r + b1, complex where both are."""
    trace = (1 + b1) - (1 - b1) * kappa
    root = np.sqrt((trace**2 - 4 * b1).astype(complex))
    return (trace + np.where(trace < 0, -1, 1) * root) / 2


def mode_step(kappa: np.ndarray, b1: np.ndarray) -> np.ndarray:
    """Return J with (g, m) <- J (g, m), m the first moment before g enters it: `Float[ndarray, "... 2 2"]`."""
    kappa, b1 = np.broadcast_arrays(kappa, b1)
    entries = [1 - (1 - b1) * kappa, -b1 * kappa, 1 - b1, b1]
    return np.stack(entries, -1).reshape(*b1.shape, 2, 2)


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
