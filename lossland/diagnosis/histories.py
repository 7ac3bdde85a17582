"""What a loss curve alone says: growth per step, curvature, period, overflow, and a cause with honest confidence.

For people who have the history of a run made elsewhere and nothing else. What needs the run itself (a gradient check,
the full-data loss, curvature along the way) is listed as untested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optax

from lossland import strict_json
from lossland.arguments import FLAG, OPTIMIZER, calling, check, count, expects, number, optional
from lossland.diagnosis.causes import Cause
from lossland.thresholds import threshold
from lossland.thresholds.certificate import Certificate

OPTIMIZERS = {
    "sgd": (optax.sgd, {}),
    "momentum": (optax.sgd, {"momentum": 0.9}),
    "nesterov": (optax.sgd, {"momentum": 0.9, "nesterov": True}),
    "rmsprop": (optax.rmsprop, {}),
    "adam": (optax.adam, {}),
    "adamw": (optax.adamw, {}),
}
LEAST = 4  # losses below which nothing can be said
ROUNDING = 1e-6  # relative rise that printed digits and float32 sums make by themselves
STEADY = 0.01  # spread of the last growth factors below which the growth is that of one mode
TAIL = 5  # growth factors that must agree
QUIET = 20  # records without a rise that make a spike a late one
SMOOTH = 0.15  # correlation of neighbours about the trend above which a curve swings rather than jumps
SPIKE = 1.5  # factor over the lowest loss before
BRIEF = 10  # records in which a spike rises: what takes longer drifts
OVERSHOT = 10.0  # last finite loss over the first from which a run diverged before it was not finite
REVERSALS = 0.2  # share of records at which a noisy curve turns; independent draws turn at 2/3
LARGEST = {"float32": float(np.finfo(np.float32).max), "float64": float(np.finfo(np.float64).max)}


@dataclass(frozen=True)
class HistoryExplanation:
    """What a loss curve says. Fields are None where it says nothing.

    `confidence` is between 0 and 1; `growth` is the factor of the loss per step, late; `sharpness` (units of curvature,
    preconditioned for adaptive optimizers) and `sharpness_times_learning_rate` follow from it; `critical_learning_rate`
    is the largest stable one at that sharpness; `overflow_epoch` counts records from 1: the first that is not finite,
    seen or predicted; `period` (steps) of an oscillation; `evidence` maps what was measured to numbers; `untested` is
    what the curve cannot tell.
    """

    cause: Cause
    confidence: float
    evidence: Mapping[str, float]
    remedies: tuple[str, ...] = ()
    growth: float | None = None
    sharpness: float | None = None
    sharpness_times_learning_rate: float | None = None
    critical_learning_rate: float | None = None
    overflow_epoch: int | None = None
    period: float | None = None
    untested: tuple[str, ...] = field(default=(), repr=False)

    def to_json(self) -> str:
        """One JSON object; numbers that are not finite as words."""
        return strict_json.dumps({**self.__dict__, "cause": self.cause.value, "evidence": dict(self.evidence)})

    def __str__(self) -> str:
        lines = [f"{self.cause.value.replace('_', ' ')} (confidence {self.confidence:.0%}): {self.cause.description}"]
        if self.growth is not None:
            lines.append(f"the loss multiplies by {self.growth:.6g} per step")
        if self.sharpness is not None and self.sharpness_times_learning_rate is not None:
            lines.append(
                f"sharpness {self.sharpness:.6g}, times learning rate {self.sharpness_times_learning_rate:.6g}"
            )
        if self.critical_learning_rate is not None:
            lines.append(f"critical learning rate {self.critical_learning_rate:.4g}")
        if self.period is not None:
            lines.append(f"oscillation of period {self.period:.3g} steps")
        if self.overflow_epoch is not None:
            lines.append(f"not finite from record {self.overflow_epoch} on")
        lines += [f"  {name.replace('_', ' ')}: {value:.4g}" for name, value in self.evidence.items()]
        lines += [f"remedy: {remedy}" for remedy in self.remedies]
        if self.untested:
            lines.append(f"the curve alone cannot tell: {'; '.join(self.untested)}")
        return "\n".join(lines)


@expects(
    learning_rate=optional(number(above=0)),
    steps_per_record=count(),
    full_batch=optional(FLAG),
    num_examples=optional(count()),
)
def explain_history(
    losses: Sequence[float] | np.ndarray,
    learning_rate: float | None = None,
    optimizer: Any = "sgd",
    *,
    steps_per_record: int = 1,
    full_batch: bool | None = None,
    num_examples: int | None = None,
    dtype: str = "float32",
    **hyperparameters: Any,
) -> HistoryExplanation:
    """Explain a loss curve from elsewhere: Keras or PyTorch history, a log, a CSV column.

    Equations: a run above its threshold ends up growing by rho per step along one mode, the loss by rho^2; rho gives
    the curvature through the optimizer's own linearised update, (1 - learning rate x sharpness)^2 for gradient descent.
    The loss is not finite once `num_examples` x loss exceeds the largest number of `dtype` (sums overflow before
    means).

    Args:
        losses: one a record, oldest first; may end in inf or NaN.
        learning_rate: constant. Without it sharpness and critical rates are not computed.
        optimizer: "sgd", "momentum" (heavy ball, 0.9), "nesterov", "rmsprop", "adam", "adamw", or an optax factory.
        steps_per_record: optimizer steps between two losses (batches per epoch).
        full_batch: whether every step saw all data; None: not known.
        num_examples: examples the loss is a mean of; None counts the mean itself.
        dtype: precision of the run, "float32" or "float64".
        hyperparameters: of the optimizer, such as momentum=0.95.

    Raises:
        ValueError: for fewer than 4 losses, negative infinity, or an unknown optimizer or precision.
    """
    values = _checked(losses)
    if steps_per_record < 1:
        raise ValueError(f"steps_per_record: expected at least 1, got {steps_per_record!r}")
    if not isinstance(dtype, str) or dtype not in LARGEST:
        raise ValueError(f"dtype: expected {' or '.join(map(repr, LARGEST))}, got {dtype!r}")
    if learning_rate is not None and not 0 < learning_rate < np.inf:
        raise ValueError(f"learning_rate: expected a number above 0, got {learning_rate!r}")
    certificate = _certificate(optimizer, learning_rate, hyperparameters)
    finite = np.isfinite(values)
    count = len(values) if finite.all() else int(np.argmin(finite))
    curve = values[:count]
    curve_features = _Features(curve, steps_per_record)
    overflow = None if finite.all() else count + 1
    untested = ["whether the gradient is that of the loss", "whether the labels are valid"]
    if not full_batch:
        untested.append("whether the loss over all data rose too")

    def explained(cause: Cause, confidence: float, remedies: Sequence[str] = (), **more: Any) -> HistoryExplanation:
        if overflow is not None:
            more["overflow_epoch"] = overflow
        evidence = curve_features.evidence()
        return HistoryExplanation(cause, confidence, evidence, tuple(remedies), untested=tuple(untested), **more)

    if curve_features.grows:
        return _growing(curve, curve_features, certificate, learning_rate, num_examples, LARGEST[dtype], explained)
    if overflow is not None and curve[-1] > OVERSHOT * abs(curve[0]):
        # One operation that fails leaves no rise before it; faster than exponential, the growth tells no curvature.
        return explained(Cause.learning_rate_above_threshold, 0.6, ["a smaller learning rate"])
    if overflow is not None:
        text = "the last finite loss was far from the largest number: find the operation that failed (in float64)"
        return explained(Cause.floating_point, 0.6, [text])
    return _recovering(curve_features, certificate, full_batch, explained)


class _Features:
    """Numbers read off a finite curve."""

    def __init__(self, curve: np.ndarray, steps_per_record: int):
        self.curve, self.steps = curve, steps_per_record
        size = np.maximum(np.abs(curve[:-1]), np.finfo(np.float64).tiny)
        self.rises = np.diff(curve) > ROUNDING * size
        self.share = float(self.rises.mean()) if len(curve) > 1 else 0.0
        self.reversals = float(np.mean(np.diff(curve)[1:] * np.diff(curve)[:-1] < 0))
        positive = len(curve) > TAIL and np.all(curve[-TAIL - 1 :] > 0)
        ratios = curve[-TAIL:] / curve[-TAIL - 1 : -1] if positive else np.array([0.0])
        self.ratios = ratios
        self.spread = float(np.ptp(ratios) / ratios[-1]) if ratios[-1] > 0 else np.inf
        # Exponential growth above where it began: each of the last factors above 1, and well above the lowest loss.
        self.grows = bool(np.all(ratios > 1 + ROUNDING) and curve[-1] >= max(curve[0], SPIKE * curve.min()))
        self.residual = self._detrended()
        self.alternation = _autocorrelation(self.residual, 1)
        self.period = self._period()

    def _detrended(self) -> np.ndarray:
        """Log of the curve (or the curve, where it is not positive) less a running median over 9 records."""
        y = np.log(self.curve) if np.all(self.curve > 0) else self.curve / np.max(np.abs(self.curve))
        if len(y) < 12:
            return y - np.polyval(np.polyfit(np.arange(len(y)), y, 1), np.arange(len(y)))
        padded = np.pad(y, 4, mode="edge")
        return (y - np.median(np.lib.stride_tricks.sliding_window_view(padded, 9), axis=1))[4:-4]

    def _period(self) -> float | None:
        """Mean distance between maxima, in steps, where these are regular."""
        curve = self.curve
        tops = np.flatnonzero((curve[1:-1] > curve[:-2]) & (curve[1:-1] >= curve[2:])) + 1
        gaps = np.diff(tops)
        if len(gaps) < 3 or gaps.std() > 0.35 * gaps.mean():
            return None
        return float(gaps.mean() * self.steps)

    def spikes(self) -> list[int]:
        """Records at which a loss that had fallen for at least QUIET records jumped by a factor SPIKE above its low,
        within BRIEF records of it."""
        found, low, since, lowest = [], self.curve[0], 0, 0
        for place in range(1, len(self.curve)):
            if self.curve[place] > SPIKE * low and since >= QUIET:
                if place - lowest <= BRIEF:
                    found.append(place)
                low, since, lowest = self.curve[place], 0, place
            elif self.curve[place] <= low:
                low, since, lowest = self.curve[place], since + 1, place
        return found

    def evidence(self) -> dict[str, float]:
        curve = self.curve
        found = {
            "share_of_records_that_rose": self.share,
            "last_over_first": float(curve[-1] / curve[0]) if curve[0] else np.nan,
            "largest_over_first": float(curve.max() / curve[0]) if curve[0] else np.nan,
        }
        if self.grows:
            found["spread_of_the_last_growth_factors"] = self.spread
        elif self.share > 0:
            found["correlation_of_neighbours_about_the_trend"] = self.alternation
        return {name: value for name, value in found.items() if np.isfinite(value)}


def _growing(
    curve: np.ndarray,
    features: _Features,
    certificate: Certificate | None,
    learning_rate: float | None,
    num_examples: int | None,
    largest: float,
    explained: Any,
) -> HistoryExplanation:
    """Steady growth to the end: read the curvature from it and say when it overflows."""
    growth = float(features.ratios[-1] ** (1 / features.steps))
    more: dict[str, Any] = {"growth": growth}
    remedies = []
    if certificate is not None and certificate.critical_curvature is not None and learning_rate is not None:
        sharpness = curvature_of_growth(certificate, float(np.sqrt(growth)))
        critical = learning_rate * certificate.critical_curvature / sharpness
        more |= {
            "sharpness": sharpness,
            "sharpness_times_learning_rate": sharpness * learning_rate,
            "critical_learning_rate": critical,
            "period": certificate.period,
        }
        remedies.append(f"learning rate below {critical:.4g}")
        remedies.append("standardise the inputs, or start from smaller weights: both lower the sharpness")
    left = np.log(largest / (num_examples or 1)) - np.log(curve[-1])
    if left > 0:
        more["overflow_epoch"] = len(curve) + int(np.floor(left / np.log(features.ratios[-1]))) + 1
    is_steady = features.spread < STEADY
    return explained(Cause.learning_rate_above_threshold, 0.95 if is_steady else 0.7, remedies, **more)


def _recovering(
    features: _Features, certificate: Certificate | None, full_batch: bool | None, explained: Any
) -> HistoryExplanation:
    """No growth to the end: did it rise at all, early, late, in turns, or at random?"""
    curve, rises = features.curve, features.rises
    places = np.flatnonzero(rises)
    if not len(places):
        return explained(Cause.healthy, 0.99)
    adaptive = certificate is not None and certificate.preconditioned
    early = max(3, len(curve) // 10)
    rose_first = np.all(places < early) and curve[: early + 1].max() > curve[0] * (1 + ROUNDING)
    if rose_first and curve[-1] < curve[0] and features.share < 0.3:
        remedies = ["a smaller learning rate, or a warm-up of it, removes the rise", "it recovers by itself"]
        return explained(Cause.catapult, 0.7 if full_batch else 0.5, remedies)
    if features.spikes():
        remedies = ["smaller learning rate (delays it)", "larger epsilon or AMSGrad (keeps the second moment up)"]
        if adaptive:
            return explained(Cause.stale_second_moment, 0.6 if full_batch else 0.45, remedies)
        cause = Cause.edge_of_stability if full_batch else Cause.unknown
        return explained(cause, 0.4, ["replay around the spike with a smaller learning rate"], period=features.period)
    is_smooth = features.alternation > SMOOTH and features.period is not None and features.period > 3
    if is_smooth and certificate is not None and _has_memory(certificate):
        remedies = ["less momentum damps the oscillation; the run is stable as it is"]
        return explained(Cause.momentum_overshoot, 0.6 if full_batch else 0.4, remedies, period=features.period)
    if full_batch:
        if features.alternation < -0.2 or features.period == 2:
            remedies = ["the trend still falls: leave it, or lower the learning rate for a smooth curve"]
            return explained(Cause.edge_of_stability, 0.7, remedies, period=features.period)
        return explained(Cause.unknown, 0.3, ["record the sharpness along the run"], period=features.period)
    if abs(features.alternation) <= 0.5 and features.share > 0.1 and features.reversals > REVERSALS:
        remedies = ["larger batches, or a lower learning rate at the end", "record the loss over all data beside it"]
        return explained(Cause.minibatch_noise, 0.55 if full_batch is None else 0.75, remedies)
    return explained(Cause.unknown, 0.3, ["record the loss over all data, and the sharpness"], period=features.period)


def curvature_of_growth(certificate: Certificate, growth: float) -> float:
    """Invert `certificate.growth` above the threshold, where it rises: the curvature at which runs grow so.

    Raises:
        ValueError: for a growth of at most 1, or an optimizer without a linear threshold.
    """
    low = certificate.critical_curvature
    if low is None or not growth > 1:
        raise ValueError(f"growth: expected a factor above 1 and a linear threshold, got {growth!r}")
    high = 2 * low
    while certificate.growth(high) < growth:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if certificate.growth(middle) < growth else (low, middle)
    return (low + high) / 2


def _has_memory(certificate: Certificate) -> bool:
    return certificate.transition is not None and len(certificate.transition) > 1


def _autocorrelation(values: np.ndarray, lag: int) -> float:
    """Correlation of a series with itself `lag` later; 0 for a constant one."""
    centred = values - values.mean()
    power = float(np.dot(centred, centred))
    return float(np.dot(centred[:-lag], centred[lag:]) / power) if power > 0 and len(values) > lag else 0.0


def _certificate(optimizer: Any, learning_rate: float | None, hyperparameters: dict[str, Any]) -> Certificate | None:
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer: expected one of {', '.join(OPTIMIZERS)} or an optax factory, got {optimizer!r}"
            )
        optimizer, defaults = OPTIMIZERS[optimizer]
        hyperparameters = {**defaults, **hyperparameters}
    else:
        check("optimizer", optimizer, OPTIMIZER)
    if learning_rate is None:
        return None
    return threshold(optimizer, learning_rate=float(learning_rate), **hyperparameters)


def _checked(losses: Any) -> np.ndarray:
    with calling("losses", "a list of numbers"):
        values = np.asarray(losses, np.float64)
    if values.ndim != 1 or len(values) < LEAST:
        raise ValueError(f"losses: expected a list of at least {LEAST} numbers, got shape {values.shape}")
    if np.any(values == -np.inf):
        raise ValueError("losses: hold -inf; a loss without a lower bound is wrong before it rises")
    if np.isfinite(values[:LEAST]).sum() < LEAST:
        raise ValueError(f"losses: expected at least {LEAST} finite numbers at the start, got {values[:LEAST]}")
    return values
