"""What keeps kappa below its threshold for good: eps, and gradient noise."""

from __future__ import annotations

import numpy as np

from lossland.arguments import FLAG, expects
from lossland.stability.arguments import Numbers, momentum, not_negative, positive
from lossland.stability.mode_growth import critical_ratio


@expects(inside_root=FLAG)
def epsilon_floor(learning_rate: Numbers, curvature: Numbers, b1: Numbers, *, inside_root: bool = False) -> np.ndarray:
    """Return the eps above which a mode cannot turn unstable, however small the second moment gets.

    Equation: eps* = learning_rate x curvature / kappa*, the divisor being sqrt(v) + eps (Adam's `eps` in optax);
    `inside_root`: (learning_rate x curvature / kappa*)^2, for sqrt(v + eps) (Adam's `eps_root`, RMSprop's `eps` in
    optax and Keras). As v -> 0, kappa -> learning_rate x curvature / eps and no further. `curvature`: top eigenvalue of
    the Hessian.

    In practice: at learning rate 1e-3 a curvature of 20 needs eps = 5e-4. The default 1e-8 damps nothing above a
    curvature of 4e-4, so late instability is what to expect from it, not an accident. An eps this large also slows
    every parameter whose gradients are smaller than it, and where curvature still grows, learning_rate x curvature /
    eps reaches kappa* again.

    Valid for a curvature that stays what it is.

    Raises ValueError unless learning_rate > 0, curvature > 0 and 0 <= b1 < 1.
    """
    name = "epsilon_floor"
    critical = critical_ratio(momentum(name, b1))
    floor = positive(name, "learning_rate", learning_rate) * positive(name, "curvature", curvature) / critical
    return floor**2 if inside_root else floor


def noise_edge(signal: Numbers, b1: Numbers = 0.0) -> np.ndarray:
    """Return the kappa at which gradient noise of constant size holds a mode.

    Equation: the positive root of b1 kappa^3 + (1 + b1) kappa^2 + (1 - b1) S^2 kappa / 2 - (1 + b1) S^2 = 0, with
    S = `signal` = learning_rate x curvature / (standard deviation of the gradient noise). For RMSprop, b1 = 0:
    2 kappa^2 + S^2 kappa - 2 S^2 = 0. The second moment settles at the mean of the squared gradient, that of the noise
    plus that of the motion it drives,

        E g^2 = noise^2 (1 + b1)(1 + b1 kappa / (1 + b1)) / ((1 + b1) - (1 - b1) kappa / 2).

    Little noise (S >> 1) leaves kappa just below kappa*, much noise at S.

    In practice: small batches prevent late spikes. With noise above a tenth of learning_rate x curvature the second
    moment along the sharp direction never empties; larger batches, or noise that dies with the residuals, bring the
    spikes back.

    Valid for noise that is independent from step to step and for b2 so near 1 that the second moment is its mean:
    (1 - b2) kappa* << 1, and for b1 > 0 only where the edge it predicts is below 0.9 kappa*; nearer, Adam bursts.

    Raises ValueError unless signal >= 0 and 0 <= b1 < 1.

    Source: stationary variance of a noisy quadratic under momentum, closed with the mean of the second moment.
    """
    b1, signal = momentum("noise_edge", b1), not_negative("noise_edge", "signal", signal)
    b1, signal = np.broadcast_arrays(b1, signal)
    # Divided by S^2, so that no noise at all (S = inf) has its limit kappa*.
    inverse = 1 / np.maximum(signal, 1e-150) ** 2
    low, high = np.zeros(b1.shape), critical_ratio(b1)
    for _ in range(200):
        middle = (low + high) / 2
        value = inverse * middle**2 * (b1 * middle + 1 + b1) + (1 - b1) * middle / 2 - (1 + b1)
        low, high = np.where(value < 0, middle, low), np.where(value < 0, high, middle)
    return ((low + high) / 2)[()]
