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
import xarray as xr

from lossland import strict_json
from lossland.arguments import FLAG, OPTIMIZER, calling, check, count, expects, number, optional
from lossland.diagnosis.causes import Cause
from lossland.diagnosis.events import FACTOR
from lossland.diagnosis.loss_curves import LEAST, OVERSHOT, SLOWER, TAIL, LossCurve
from lossland.diagnosis.observation import recorded_losses
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
STEADY = 0.01  # spread of the last growth factors below which the growth is that of one mode
RELATIVE = 0.05  # the same spread over the growth itself, as logarithms: what grows slowly agrees with anything
ROUGH = 0.25  # that share, beyond which no curvature is read from the growth
SMALL = 0.01  # rises that are no more, in few records, are none
FEW = 0.1  # share of records that is few
SMOOTH = 0.15  # correlation of neighbours about the trend above which a curve swings rather than jumps
FAR = 1000.0  # factor over the lowest loss that neither a score nor a loss on held-out data grows by, noisy or not
REVERSALS = 0.2  # share of records at which a noisy curve turns; independent draws turn at 2/3
ON_THE_WHOLE = (
    "it rises on the whole: a score that is maximised, a loss on held-out data (overfitting) or too high a learning "
    "rate; the curve cannot tell which"
)
LOOK_THERE = (
    "the parameters stayed finite: look at what was recorded there (one batch, the logarithm of 0, a skipped step)"
)
WITHOUT_A_FLOOR = "it falls below 0 and goes on: a loss without a lower bound, see ll.check_labels"
LARGEST = {"float32": float(np.finfo(np.float32).max), "float64": float(np.finfo(np.float64).max)}


@dataclass(frozen=True)
class HistoryExplanation:
    """What a loss curve says. Fields are None where it says nothing.

    `confidence` is between 0 and 1; `growth` is the factor of the loss per step, late; `sharpness` (units of curvature,
    preconditioned for adaptive optimizers) and `sharpness_times_learning_rate` follow from it; `critical_learning_rate`
    is the largest stable one at that sharpness; `overflow_epoch` counts records from 1: the first that is not finite,
    seen, or predicted where `overflow_is_predicted`; `period` (steps) of an oscillation; `evidence` maps what was
    measured to numbers; `untested` is what the curve cannot tell.
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
    overflow_is_predicted: bool = False

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
            if "records_finite_again" in self.evidence:
                lines.append(f"not finite at record {self.overflow_epoch}, finite again later")
            else:
                predicted = " (predicted)" if self.overflow_is_predicted else ""
                lines.append(f"not finite from record {self.overflow_epoch} on{predicted}")
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
@np.errstate(over="ignore", invalid="ignore")  # quotients of losses that span all that a double holds
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
        losses: one a record, oldest first; may end in inf or NaN. A record over "step", such as
            `ll.monitored(opt_state, "history")["loss"]`, brings its `steps_per_record` along.
        learning_rate: constant. Without it sharpness and critical rates are not computed.
        optimizer: "sgd", "momentum" (heavy ball, 0.9), "nesterov", "rmsprop", "adam", "adamw", or an optax factory.
        steps_per_record: optimizer steps between two losses (batches per epoch).
        full_batch: whether every step saw all data; None: not known.
        num_examples: examples the loss is a mean of; None counts the mean itself.
        dtype: precision of the run, "float32" or "float64".
        hyperparameters: of the optimizer, such as momentum=0.95.

    Raises:
        ValueError: for fewer than 4 losses, a first one that is not finite, negative infinity, unevenly spaced steps,
            or an unknown optimizer or precision.
    """
    losses = recorded_losses(losses)
    values = _checked(losses)
    if steps_per_record == 1:
        steps_per_record = _spacing(losses)
    if not isinstance(dtype, str) or dtype not in LARGEST:
        raise ValueError(f"dtype: expected {' or '.join(map(repr, LARGEST))}, got {dtype!r}")
    certificate = _certificate(optimizer, learning_rate, hyperparameters)
    finite = np.isfinite(values)
    count = len(values) if finite.all() else int(np.argmin(finite))
    curve = values[:count]
    overflow = None if finite.all() else count + 1
    again = int(np.isfinite(values[count:]).sum())
    untested = ["whether the gradient is that of the loss", "whether the labels are valid"]
    if not full_batch:
        untested.append("whether the loss over all data rose too")

    if count < LEAST:
        assert overflow is not None
        return _begun(curve, overflow, again, tuple(untested))
    curve_features = LossCurve(curve, steps_per_record)

    def explained(cause: Cause, confidence: float, remedies: Sequence[str] = (), **more: Any) -> HistoryExplanation:
        if overflow is not None:
            more |= {"overflow_epoch": overflow, "overflow_is_predicted": False}
        evidence = curve_features.evidence() | _again(again)
        return HistoryExplanation(cause, confidence, evidence, tuple(remedies), untested=tuple(untested), **more)

    if curve_features.grows:
        if curve_features.unsteadiness > ROUGH:
            untested.append("the curvature: the growth is not that of one mode")
        return _growing(curve, curve_features, certificate, learning_rate, num_examples, LARGEST[dtype], explained)
    if again:
        return explained(Cause.floating_point, 0.5, [LOOK_THERE])
    if overflow is not None and curve[-1] > OVERSHOT * abs(curve[0]):
        # One operation that fails leaves no rise before it; faster than exponential, the growth tells no curvature.
        return explained(Cause.learning_rate_above_threshold, 0.6, ["a smaller learning rate"])
    if overflow is not None:
        text = "the last finite loss was far from the largest number: find the operation that failed (in float64)"
        return explained(Cause.floating_point, 0.6, [text])
    return _recovering(curve_features, certificate, full_batch, explained)


def _again(count: int) -> dict[str, float]:
    return {"records_finite_again": float(count)} if count else {}


def _begun(curve: np.ndarray, overflow: int, again: int, untested: tuple[str, ...]) -> HistoryExplanation:
    """Explain a run whose loss is not finite within its first records: there is hardly a curve."""
    evidence = {"last_over_first": float(curve[-1] / curve[0])} if curve[0] else {}
    evidence |= _again(again)
    remedies = ["a smaller learning rate", "record every step until then", "ll.check_inputs, ll.check_labels"]
    cause, confidence = Cause.unknown, 0.3
    if again:
        cause, confidence, remedies = Cause.floating_point, 0.5, [LOOK_THERE]
    elif curve[-1] > OVERSHOT * abs(curve[0]):
        cause, confidence = Cause.learning_rate_above_threshold, 0.5
    return HistoryExplanation(cause, confidence, evidence, tuple(remedies), overflow_epoch=overflow, untested=untested)


def _growing(
    curve: np.ndarray,
    features: LossCurve,
    certificate: Certificate | None,
    learning_rate: float | None,
    num_examples: int | None,
    largest: float,
    explained: Any,
) -> HistoryExplanation:
    """Steady growth to the end: read the curvature from it and say when it overflows."""
    growth = float(features.ratios[-1] ** (1 / features.steps))
    more: dict[str, Any] = {"growth": growth}
    is_one_mode = features.unsteadiness <= ROUGH
    remedies = []
    if (
        is_one_mode
        and certificate is not None
        and certificate.critical_curvature is not None
        and learning_rate is not None
    ):
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
    if is_one_mode and left > 0:
        more["overflow_is_predicted"] = True
        more["overflow_epoch"] = len(curve) + int(np.floor(left / np.log(features.ratios[-1]))) + 1
    is_steady = features.spread < STEADY and features.unsteadiness < RELATIVE and len(features.ratios) == TAIL
    is_large = features.total >= OVERSHOT and not features.slows
    confidence = 0.95 if is_steady and is_large else 0.7 if is_steady or is_large else 0.5
    if certificate is not None and certificate.preconditioned:
        confidence = min(confidence, 0.7)  # steps as long as the learning rate let nothing grow so for long
    remedies = remedies or ["a smaller learning rate"]
    return explained(Cause.learning_rate_above_threshold, confidence, remedies, **more)


def _recovering(
    features: LossCurve, certificate: Certificate | None, full_batch: bool | None, explained: Any
) -> HistoryExplanation:
    """No growth to the end: did it rise at all, early, late, in turns, or at random?"""
    curve, rises = features.curve, features.rises
    places = np.flatnonzero(rises)
    if not len(places):
        is_flat = curve[0] - curve[-1] <= SMALL * abs(curve[0])
        if curve[-1] < -OVERSHOT * abs(curve[0]) and np.all(np.diff(curve)[-TAIL:] < 0):
            return explained(Cause.healthy, 0.5, [WITHOUT_A_FLOOR])
        return explained(Cause.healthy, 0.99, ["it hardly fell either: look for a gradient of zero"] if is_flat else ())
    if features.largest_rise < SMALL and features.share <= FEW and curve[-1] < curve[0]:
        return explained(Cause.healthy, 0.8)
    adaptive = certificate is not None and certificate.preconditioned
    early = max(3, len(curve) // 10)
    rose_first = np.all(places < early) and curve[: early + 1].max() > curve[0] + (FACTOR - 1) * abs(curve[0])
    if rose_first and curve[-1] < curve[0] and features.share < 0.3:
        remedies = ["a smaller learning rate, or a warm-up of it, removes the rise", "it recovers by itself"]
        return explained(Cause.catapult, 0.7 if full_batch else 0.5, remedies)
    if features.rises_on_the_whole and features.total >= FAR and not features.slows_down(SLOWER / 2):
        return explained(Cause.learning_rate_above_threshold, 0.5, ["a smaller learning rate"])
    if features.rises_on_the_whole:
        return explained(Cause.unknown, 0.3, [ON_THE_WHOLE])
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
    if not np.isfinite(values[0]):
        raise ValueError(
            f"losses: expected finite numbers at the start, got {values[0]} first; what comes before it is not in the "
            "curve: ll.check_inputs and ll.check_labels look at the data, a record of every step at the rest"
        )
    return values


def _spacing(losses: Any) -> int:
    """Steps between the records of a curve over "step", 1 for any other."""
    if not isinstance(losses, xr.DataArray) or losses.dims != ("step",) or "step" not in losses.coords:
        return 1
    gaps = np.diff(losses["step"].values)
    if np.any(gaps != gaps[0]) or gaps[0] < 1:
        raise ValueError(
            f"losses: expected evenly spaced steps, got {gaps.min()} to {gaps.max()} between records; take the part "
            '"history" or "recent" of ll.monitored'
        )
    return int(gaps[0])
