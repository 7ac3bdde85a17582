"""How large an update of Adam can be, and how large it usually is, in units of the learning rate."""

from __future__ import annotations

import numpy as np

from lossland.stability.arguments import Numbers, decay, finite, momentum, positive


def jump_response(steps: Numbers, b1: Numbers, b2: Numbers) -> np.ndarray:
    """Return the update of a coordinate whose gradient has just become constant, `steps` steps after long silence.

    Equation: (1 - b1^k) / sqrt(1 - b2^k), k = `steps` >= 1: the first moment wakes up faster than the second. At
    b1 = 0.9, b2 = 0.999 it reaches 6.57 at k = 12. The same numbers come out, at the start of training, of an Adam that
    lacks its bias corrections.

    In practice: after a long rest (a rare token, a dead unit, a frozen layer) the first updates are several learning
    rates long. Warm such parameters up, or lower b2.

    Valid once bias corrections have settled, for gradients far above eps.

    Raises ValueError unless steps >= 1, 0 <= b1 < 1 and 0 < b2 < 1.
    """
    name = "jump_response"
    k, b1, b2 = positive(name, "steps", steps), momentum(name, b1), decay(name, b2)
    if np.any(k < 1):
        raise ValueError(f"{name}: steps: expected at least 1, got {np.min(k):g}")
    return (1 - b1**k) / np.sqrt(-np.expm1(k * np.log(b2)))


def update_bound(b1: Numbers, b2: Numbers) -> np.ndarray:
    """Return the largest update that any sequence of gradients can cause.

    Equation: (1 - b1) / sqrt((1 - b2)(1 - b1^2 / b2)), by Cauchy and Schwarz; reached by gradients that grow by b2 / b1
    per step. inf where b1^2 >= b2: there the first moment remembers longer than the second, and nothing bounds it.

    In practice: keep b2 > b1^2. 7.27 learning rates at (0.9, 0.999), 2.35 at (0.9, 0.99).

    Valid once bias corrections have settled. Raises ValueError unless 0 <= b1 < 1 and 0 < b2 < 1.
    """
    b1, b2 = momentum("update_bound", b1), decay("update_bound", b2)
    room = 1 - b1**2 / b2
    return np.where(room > 0, (1 - b1) / np.sqrt((1 - b2) * np.where(room > 0, room, 1.0)), np.inf)[()]


def update_rms(b1: Numbers) -> np.ndarray:
    """Return the root mean square of the update where gradients are independent noise.

    Equation: sqrt((1 - b1) / (1 + b1)): 0.229 at b1 = 0.9, against 1 where gradients agree from step to step.

    In practice: an update RMS near 0.2 says that batches disagree and training has come to rest; near 1, that all steps
    point the same way. An update RMS that climbs while the loss is flat is a warning.

    Valid for b2 -> 1 and gradients without a mean.

    Raises ValueError unless 0 <= b1 < 1.
    """
    b1 = momentum("update_rms", b1)
    return np.sqrt((1 - b1) / (1 + b1))


def periodic_drift(gradients: Numbers, b1: Numbers, b2: Numbers) -> np.ndarray:
    """Return the mean update per step, without its minus sign, that gradients of a fixed cycle cause.

    Equation: mean over the cycle of m_i / sqrt(v_i), m and v the periodic solutions of their recursions: m_i = (1 - b1)
    sum_(j < p) b1^j g_(i - j) / (1 - b1^p), v likewise with g^2 and b2. `gradients`: `Float[ndarray, "... cycle"]`.

    In practice: where this has another sign than the mean gradient, Adam walks uphill. It takes rare large gradients
    and a b2 that has forgotten them before the next one comes; a larger b2, or AMSGrad, cures it, the opposite of what
    cures late spikes.

    Raises ValueError unless gradients are finite and not all zero in a cycle, 0 <= b1 < 1 and 0 < b2 < 1.

    Source: Reddi, Kale and Kumar 2018, section 3, for the counterexample (C, -1, -1).
    """
    name = "periodic_drift"
    g, b1, b2 = finite(name, "gradients", gradients), momentum(name, b1), decay(name, b2)
    if not g.ndim or np.any(np.all(g == 0, axis=-1)):
        raise ValueError(f"{name}: gradients: expected a cycle of numbers that are not all zero, got {gradients!r}")
    period = g.shape[-1]

    def settled(values: np.ndarray, b: np.ndarray) -> np.ndarray:
        ages = np.arange(period)
        weights = (1 - b)[..., None] * b[..., None] ** ages / (1 - b[..., None] ** period)
        past = values[..., (ages[:, None] - ages) % period]
        return np.einsum("...ij,...j->...i", past, weights)

    return np.mean(settled(g, b1) / np.sqrt(settled(g**2, b2)), axis=-1)
