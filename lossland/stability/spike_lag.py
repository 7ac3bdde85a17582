"""How long a mode grows unseen: from the crossing of the threshold to the spike in the loss."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from lossland.arguments import count, expects, number
from lossland.stability.arguments import Numbers, decay, finite, momentum, not_negative, positive
from lossland.stability.mode_growth import critical_ratio, dominant_root, mode_step, ratio_rate

_CHUNK = 4096
"""Steps that a sum over steps is cut into."""


def lag(
    log_gain: Numbers, b1: Numbers, b2: Numbers, *, curvature_rate: Numbers = 0.0, kappa0: Numbers | None = None
) -> np.ndarray:
    """Return the number of steps from the crossing of the threshold to the spike that is seen in the loss.

    Equation: the first s with sum_(i < s) ln rho(kappa_i) >= log_gain, kappa_i = kappa0 exp(sigma i). `kappa0` defaults
    to kappa*, the crossing; give the ratio of the present state to count from now. Steps below kappa* count as steps
    but not as decay: there noise, or what was left of the mode, holds the amplitude up. inf where the gain is never
    reached.

    `log_gain` is the natural logarithm of the factor by which the amplitude has to grow to be seen: ln(sqrt(v) /
    amplitude) of the mode's gradient at the crossing (`mode_amplitude`), or half the logarithm of the loss over the
    part of it that sits in the mode.

    In practice: the loss goes on falling for some 50 steps (b1 = 0.9, b2 = 0.999) after the optimizer has become
    unstable. Those steps are the time there is to act, and the reason why the step at which the loss jumps says nothing
    about the step at which it went wrong.

    Valid until the mode's squared gradient reaches the second moment. Where gradient and first moment of the mode are
    known, `lag_from_state` is exact; near the crossing both roots are close to the unit circle, and this sum, which
    follows one of them, is 1 to 5 steps early at b1 = 0.9.

    Raises ValueError unless log_gain is finite, kappa0 > 0, 0 <= b1 < 1 and 0 < b2 <= 1.
    """
    gain = finite("lag", "log_gain", log_gain)
    b1 = momentum("lag", b1)
    decay("lag", b2, frozen=True)
    sigma = ratio_rate(b2, curvature_rate)
    threshold = critical_ratio(b1)
    first = threshold if kappa0 is None else positive("lag", "kappa0", kappa0)
    columns = np.broadcast_arrays(gain, b1, sigma, threshold, first)
    shape = columns[0].shape
    gain, b1, sigma, threshold, first = (column.ravel() for column in columns)
    rises = sigma > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        waiting = np.ceil(np.maximum(np.log(threshold / first), 0.0) / np.where(rises, sigma, 1.0))
        steady = np.ceil(gain / np.log(np.abs(dominant_root(first, b1))))
    steps = np.where(gain <= 0, 0.0, np.where((sigma == 0) & (first > threshold), steady, np.inf))
    left = np.flatnonzero((gain > 0) & (sigma != 0) & (rises | (first > threshold)))
    begin, total = np.where(rises, waiting, 0.0), np.zeros_like(gain)
    while left.size:
        clock = begin[left, None] + np.arange(_CHUNK)
        # Far above the threshold one step is enough; the cap only keeps the exponential finite.
        kappa = first[left, None] * np.exp(np.minimum(sigma[left, None] * clock, 300.0))
        above = kappa >= threshold[left, None]
        growth = np.where(above, np.log(np.abs(dominant_root(kappa, b1[left, None]))), 0.0)
        sums = total[left, None] + np.cumsum(growth, axis=1)
        reached = sums >= gain[left, None]
        done = reached.any(1)
        steps[left[done]] = clock[done, reached[done].argmax(1)] + 1
        over = ~rises[left] & ~above[:, -1]
        total[left], begin[left] = sums[:, -1], begin[left] + _CHUNK
        left = left[~done & ~over]
    return steps.reshape(shape)[()]


def lag_closed_form(log_gain: Numbers, b1: Numbers, b2: Numbers, *, curvature_rate: Numbers = 0.0) -> np.ndarray:
    """Return the lag of `lag`, counted from the crossing, in closed form.

    Equation: s = [3 log_gain / (2 (1 + b1) sqrt(sigma))]^(2/3), from ln rho = (1 + b1) sqrt(sigma i), the square-root
    branch of `growth_factor`. Valid for 30 / kappa*^2 < sigma s < 0.3, where it is below the sum by at most 14 % and a
    step. Under that range rho still grows linearly in kappa - kappa* and the spike comes later. At b1 = 0 there is no
    such branch (rho = kappa - 1).

    In practice: a mode 1000 times smaller needs not 1000 times longer but some tens of steps.

    Raises ValueError unless log_gain is finite, 0 < b1 < 1 and sigma > 0.
    """
    name = "lag_closed_form"
    gain, b1 = np.maximum(finite(name, "log_gain", log_gain), 0.0), momentum(name, b1)
    decay(name, b2, frozen=True)
    sigma = ratio_rate(b2, curvature_rate)
    if np.any(b1 == 0):
        raise ValueError(f"{name}: b1: expected more than 0, got 0; use lag, which sums the steps")
    if np.any(sigma <= 0):
        raise ValueError(f"{name}: expected kappa to rise, b2 < 1 or curvature_rate > 0; use lag with kappa0")
    return (3 * gain / (2 * (1 + b1) * np.sqrt(sigma))) ** (2 / 3)


def mode_amplitude(gradient: Numbers, first_moment: Numbers, kappa: Numbers, b1: Numbers) -> np.ndarray:
    """Return how much of a mode's gradient belongs to the root that grows.

    Equation: |g + l m| / |1 + l (1 - b1) / (r - b1)|, l = -b1 kappa / (r - b1), r the outermost root of
    `growth_factor`: the projection on the left eigenvector of J, normalised so that a mode that is nothing but the
    growing solution has amplitude |g|. `first_moment` is the one before this gradient enters it.

    In practice: at the crossing the gradient alone may be near a zero of the oscillation; the amplitude is not.

    Valid for kappa >= kappa*, where the outermost root is real and alone.

    Raises ValueError unless 0 <= b1 < 1 and the rest is finite.
    """
    name = "mode_amplitude"
    b1, kappa = momentum(name, b1), finite(name, "kappa", kappa)
    g, m = finite(name, "gradient", gradient), finite(name, "first_moment", first_moment)
    root = dominant_root(kappa, b1)
    left = -b1 * kappa / (root - b1)
    return np.abs(g + left * m) / np.abs(1 + left * (1 - b1) / (root - b1))


@expects(max_steps=count())
def lag_from_state(
    gradient: Numbers,
    first_moment: Numbers,
    second_moment: Numbers,
    kappa0: Numbers,
    b1: Numbers,
    b2: Numbers,
    *,
    curvature_rate: Numbers = 0.0,
    max_steps: int = 100_000,
) -> np.ndarray:
    """Return the number of steps until a mode in a known state is seen: |gradient| >= sqrt(second_moment of now).

    Equation: (g, m) <- J(kappa_i) (g, m), kappa_i = kappa0 exp(sigma i), both roots followed. `gradient` and
    `first_moment` (before it enters) are components of the mode, `second_moment` and `kappa0` those of the next update.

    In practice: how long until this state spikes if nothing is done, from any moment at which kappa is above its
    threshold, or just below it with the mode still moving.

    Valid, to a step, while the mode's squared gradient is below the second moment and nothing else (minibatch noise)
    pushes it; `lag_under_noise` says what noise does. inf beyond `max_steps`.

    Raises ValueError unless kappa0 > 0, second_moment > 0, 0 <= b1 < 1, 0 < b2 <= 1 and the rest is finite.
    """
    name = "lag_from_state"
    b1, kappa = momentum(name, b1), positive(name, "kappa0", kappa0)
    g, m = finite(name, "gradient", gradient), finite(name, "first_moment", first_moment)
    level = np.sqrt(positive(name, "second_moment", second_moment))
    decay(name, b2, frozen=True)
    rise = np.exp(ratio_rate(b2, curvature_rate))
    g, m, level, kappa, b1, rise = (x.copy() for x in np.broadcast_arrays(g, m, level, kappa, b1, rise))
    steps = np.where(np.abs(g) >= level, 0.0, np.inf)
    step = 0
    while np.any(np.isinf(steps) & ((g != 0) | (m != 0))) and step < max_steps:
        going = np.isinf(steps)
        m = np.where(going, b1 * m + (1 - b1) * g, 0.0)
        g = np.where(going, g - kappa * m, 0.0)
        kappa = np.where(going, kappa * rise, kappa)
        step += 1
        steps = np.where(going & (np.abs(g) >= level), float(step), steps)
    return steps[()]


@expects(probability=number(above=0, below=1))
def lag_under_noise(
    noise: Numbers,
    b1: Numbers,
    b2: Numbers,
    *,
    curvature_rate: Numbers = 0.0,
    probability: float = 0.5,
) -> np.ndarray:
    """Return the lag that a share `probability` of runs stays below, where gradient noise alone feeds the mode.

    Equation: C <- J(kappa_i) C J(kappa_i)^T + q q^T, q = noise (-(1 - b1) kappa_i, 1 - b1), from long before the
    crossing on: the covariance of (g, m) under independent noise of standard deviation `noise`, in units of sqrt(v) at
    the crossing. The gradient is Gaussian, so the lag is the first s with z sqrt(C_gg) >= 1, where a normal number
    exceeds z in absolute value with that probability. `noise` = noise of the gradient x kappa* / (learning_rate x
    curvature).

    In practice: noise before *and after* the crossing counts alike, so the state at the crossing says little about when
    this run will spike, and an interval has to be given. Ten times less noise delays the spike by some ten steps only.

    Valid for noise < 0.05: more of it keeps the second moment up, and kappa below its threshold (`noise_edge`).

    Raises ValueError unless 0 < noise, 0 < probability < 1, 0 <= b1 < 1, 0 < b2 <= 1 and sigma > 0.
    """
    name = "lag_under_noise"
    noise, b1 = positive(name, "noise", noise), momentum(name, b1)
    if not 0 < probability < 1:
        raise ValueError(f"{name}: probability: expected a number between 0 and 1, got {probability!r}")
    decay(name, b2, frozen=True)
    sigma = ratio_rate(b2, curvature_rate)
    if np.any(sigma <= 0):
        raise ValueError(f"{name}: expected kappa to rise, b2 < 1 or curvature_rate > 0")
    noise, b1, sigma = np.broadcast_arrays(noise, b1, sigma)
    level = NormalDist().inv_cdf(1 - probability / 2)
    # Memory of the mode at kappa* exp(-u) is about 1 / (kappa* u) steps: 1/2 below the threshold little is left.
    before = int(np.clip(np.ceil(0.5 / np.min(sigma)), 50, 4000))
    covariance = np.zeros((*b1.shape, 2, 2))
    steps, step = np.full(b1.shape, np.inf), -before
    while np.any(np.isinf(steps)):
        kappa = critical_ratio(b1) * np.exp(sigma * (step + 0.5))  # a crossing falls between two steps
        jacobian = mode_step(kappa, b1)
        push = np.stack([-(1 - b1) * kappa, 1 - b1 + 0 * kappa], -1) * noise[..., None]
        covariance = jacobian @ covariance @ np.swapaxes(jacobian, -1, -2) + push[..., :, None] * push[..., None, :]
        covariance = np.where(np.isinf(steps)[..., None, None], covariance, 0.0)
        step += 1
        seen = level * np.sqrt(covariance[..., 0, 0]) >= 1
        steps = np.where(np.isinf(steps) & seen, float(max(step, 0)), steps)
    return steps[()]


def overshoot(lag: Numbers, b2: Numbers, *, curvature_rate: Numbers = 0.0) -> np.ndarray:
    """Return kappa at the spike over the threshold.

    Equation: kappa_peak / kappa* = exp(sigma lag). Valid where the lag is that of the law; within 1 % for b2 >= 0.999
    and 2 % at 0.99, where the last steps before the spike already count.

    In practice: 1.02 to 1.05 at the defaults, so that a record of sharpness over threshold every hundred steps shows
    "1" right up to the spike.

    Raises ValueError unless lag >= 0 and 0 < b2 <= 1.
    """
    return np.exp(ratio_rate(b2, curvature_rate) * not_negative("overshoot", "lag", lag))
