"""From what was measured around a rise to its cause: rules in a fixed order, each with the numbers that it went by."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lossland.diagnosis.causes import Cause
from lossland.diagnosis.observation import BEFORE, NEAR, OVERFLOWS, Observation, RateRise, Rise
from lossland.stability.update_size import update_bound

CLIMB = 1.01
"""Growth of the loss in a record that belongs to an earlier rise."""
MAJORITY = 0.5
"""Share of a rise (of ln sharpness, of the mode's weight, of the loss) that makes one part its cause."""
CONCENTRATED = 2.5
"""Rises after the ragged batch over their number if every batch were alike."""
OUTLYING = 0.6
"""Share of the gradient noise from the worst twentieth of the examples."""
STALE = 0.3
"""g^2 / v, in units of its largest possible value 1 / (1 - b2), beyond which v lags a jump of the gradient."""
LONG = 1.5
"""Update over the learning rate that is longer than that of a steady gradient."""
LAGS = 40.0
"""g^2 / v from which, below the threshold, a step is put down to a second moment that lags its gradient."""
EXPLODES = 30.0
"""Gradient norm in the rise over its median before."""
STEEPENS = 4.0
"""Growth of the sharpness within a step that a mode at its threshold does not have."""
ROUNDING = -float(np.log(np.finfo(np.float32).eps))
"""Growth, as a logarithm, that takes the rounding of float32 to 1."""
UNPROVED = 0.5
"""Confidence in a cause that only a replay can tell from others, without one."""

PROOF: dict[Cause, tuple[str, ...]] = {
    Cause.learning_rate_above_threshold: ("learning_rate_below",),
    Cause.catapult: ("learning_rate_below",),
    Cause.edge_of_stability: ("learning_rate_below",),
    Cause.schedule_jump: ("schedule_held",),
    Cause.minibatch_noise: ("full_batch",),
    Cause.trailing_small_batch: ("last_batch_dropped",),
    Cause.mislabelled_examples: ("outliers_dropped",),
    Cause.mode_noise: ("full_batch",),
    Cause.stale_second_moment: ("second_moment_frozen", "eps_raised"),
    Cause.epsilon_collapse: ("eps_raised", "learning_rate_below"),
    Cause.momentum_overshoot: ("momentum_removed",),
    Cause.exploding_recurrent_gradient: ("clipped",),
    Cause.wrong_gradient: ("right_gradient",),
    Cause.invalid_labels: ("valid_labels",),
    Cause.floating_point: ("float64",),
    Cause.beyond_quadratic: ("learning_rate_below", "clipped"),
}
"""Arms of which one has to remove the rise, where they were replayed."""


class Measure(NamedTuple):
    """A number with its units ("1" where it has none)."""

    value: float
    units: str = "1"


class Verdict(NamedTuple):
    """A cause, how sure it is (0 to 1), and what it was decided by."""

    cause: Cause
    confidence: float
    evidence: dict[str, Measure]


Rule = Callable[[Observation, Rise], Verdict | None]


def decide(seen: Observation) -> Verdict:
    """Name the cause of a run's largest rise.

    The first rule that fits decides, from what is wrong before training to what needs curvature. Where replays were
    made, one of the arms in `PROOF` must remove the rise; if none does, the answer is `unknown`.
    """
    if seen.rise is None:
        return _without_rise(seen)
    if not np.isfinite(seen.loss[0]):  # nothing rose: the first step already has no loss
        evidence = {"first_step_not_finite": Measure(float(seen.step[0]), "step")}
        if seen.wrong_rows:
            rows = {"wrong_rows": Measure(float(len(seen.wrong_rows)), "row")}
            return Verdict(Cause.invalid_labels, 0.95, evidence | rows)
        return Verdict(Cause.unknown, 0.3, evidence)
    for rule in RULES:
        if (verdict := rule(seen, seen.rise)) is not None:
            return _proved(seen, verdict)
    return Verdict(Cause.unknown, 0.3, _basic(seen, seen.rise))


def _proved(seen: Observation, verdict: Verdict) -> Verdict:
    outcomes = [seen.removed(arm) for arm in PROOF.get(verdict.cause, ())]
    known = [outcome for outcome in outcomes if outcome is not None]
    if not known:
        return verdict
    if any(known):
        return verdict._replace(confidence=max(verdict.confidence, 0.95))
    return Verdict(Cause.unknown, 0.4, verdict.evidence)


def _without_rise(seen: Observation) -> Verdict:
    evidence = {"loss_first": Measure(float(seen.loss[0])), "loss_last": Measure(float(seen.loss[-1]))}
    if seen.recorded_rise is not None:
        evidence["recorded_loss_peak_over_valley"] = Measure(seen.recorded_rise.factor)
        evidence["full_loss_peak_over_valley"] = Measure(1.0)
        if seen.has_random_layers and (seen.batch_size is None or seen.batch_size == seen.num_examples):
            return Verdict(Cause.mode_noise, 0.95, evidence)
        if seen.batch_size is not None:
            evidence["batch_size"] = Measure(float(seen.batch_size), "example")
        return Verdict(Cause.minibatch_noise, 0.9 if seen.batch_size is not None else 0.7, evidence)
    # Between records nothing was seen.
    sure = 0.99 if seen.resolution == 1 else 0.9
    return Verdict(Cause.healthy, sure if len(seen.loss) > 1 else 0.3, evidence)


def _basic(seen: Observation, rise: Rise) -> dict[str, Measure]:
    """What every rise is described by."""
    found = {
        "valley_step": Measure(float(rise.valley), "step"),
        "rise_step": Measure(float(rise.start), "step"),
        "peak_step": Measure(float(rise.peak), "step"),
        "peak_over_valley": Measure(rise.factor),
        "ratio_to_threshold_at_the_start": Measure(seen.first_ratio),
        "ratio_to_threshold_before_the_rise": Measure(_crossed(seen, rise)),
        "ratio_to_threshold_at_the_end": Measure(seen.last_ratio),
        "slope_part_of_the_rise": Measure(seen.slope / seen.change if seen.change > 0 else np.nan),
        "curvature_part_of_the_rise": Measure(seen.curvature / seen.change if seen.change > 0 else np.nan),
        "rest_of_the_rise": Measure(seen.rest / seen.change if seen.change > 0 else np.nan),
    }
    if seen.is_adaptive:
        found["second_moment_share"] = Measure(seen.moment_share)
        found["mode_floor_mass"] = Measure(seen.floor_mass)
    if seen.batch_size is not None:
        found["gradient_noise_over_gradient_squared"] = Measure(seen.noise_ratio)
    return {name: measure for name, measure in found.items() if np.isfinite(measure.value)}


def _crossed(seen: Observation, rise: Rise) -> float:
    """Largest ratio to the threshold from shortly before the valley to the valley, or the next record where these are
    apart: an instability crosses the threshold while the loss still falls. What lies before an earlier rise is its own.
    """
    last = rise.valley if seen.resolution == 1 else max(rise.start, rise.valley + 1)
    place = int(np.searchsorted(seen.step, rise.valley))
    with np.errstate(divide="ignore", invalid="ignore"):
        climbs = np.flatnonzero(seen.loss[1 : place + 1] > CLIMB * seen.loss[:place])
    since = int(seen.step[climbs[-1] + 1]) if len(climbs) else 0
    return seen.ratio_between(min(max(rise.valley - BEFORE, since), rise.valley - 1), last)


def _gradient(seen: Observation, rise: Rise) -> Verdict | None:
    if not seen.wrong_leaves or seen.removed("right_gradient") is False:
        return None
    evidence = _basic(seen, rise) | {"wrong_parameters": Measure(float(len(seen.wrong_leaves)), "leaf")}
    return Verdict(Cause.wrong_gradient, 0.85 if seen.removed("right_gradient") else UNPROVED, evidence)


def _labels(seen: Observation, rise: Rise) -> Verdict | None:
    # What is no distribution may still be a target that its loss takes: only the replay tells.
    if seen.labels is None or seen.labels.ok or not seen.removed("valid_labels"):
        return None
    wrong = sum(len(finding.places) for finding in seen.labels.findings)
    return Verdict(Cause.invalid_labels, 0.8, _basic(seen, rise) | {"wrong_rows": Measure(float(wrong), "row")})


def _precision(seen: Observation, rise: Rise) -> Verdict | None:
    if seen.overflow is None:
        return None
    finite = seen.loss[np.isfinite(seen.loss)]
    last = float(finite[-1])
    largest = max(last, seen.peak_loss) if np.isfinite(seen.peak_loss) else last
    is_proved = seen.removed("float64")
    if largest > OVERFLOWS * max(1.0, abs(float(seen.loss[0]))) or is_proved is False:
        return None
    # Between records a loss can grow beyond every bound; that of batches is not kept for every step.
    if is_proved is None and seen.resolution > 1 and (seen.first_ratio >= 1 or seen.batch_size is not None):
        return None
    evidence = _basic(seen, rise) | {
        "last_finite_loss": Measure(last),
        "first_step_not_finite": Measure(float(seen.overflow), "step"),
    }
    return Verdict(Cause.floating_point, 0.7, evidence)


def _noise(seen: Observation, rise: Rise) -> Verdict | None:
    if seen.batch_size is None and not seen.has_random_layers:
        return None
    removed = seen.removed("full_batch")
    if removed is False or (removed is None and (_crossed(seen, rise) >= 1 or _growth(seen, rise) is not None)):
        return None
    evidence = _basic(seen, rise)
    if seen.batch_size is None:
        return Verdict(Cause.mode_noise, 0.8 if removed else UNPROVED, evidence)
    is_ragged = seen.ragged_share > max(MAJORITY, CONCENTRATED * seen.ragged_expected)
    if is_ragged and seen.removed("last_batch_dropped") is not False:
        evidence["share_of_rises_after_the_last_batch"] = Measure(seen.ragged_share)
        evidence["share_of_steps_with_the_last_batch"] = Measure(seen.ragged_expected)
        return Verdict(Cause.trailing_small_batch, 0.8, evidence)
    if seen.outlier_share > OUTLYING and seen.removed("outliers_dropped") is not False:
        evidence["noise_from_the_worst_examples"] = Measure(seen.outlier_share)
        return Verdict(Cause.mislabelled_examples, 0.7, evidence)
    if removed is None and not seen.noise_ratio > 1:
        # The records do not tell noise from instability.
        return Verdict(Cause.minibatch_noise, UNPROVED, evidence)
    return Verdict(Cause.minibatch_noise, 0.8, evidence)


def _schedule(seen: Observation, rise: Rise) -> Verdict | None:
    grown = seen.rate_rise
    if grown is None:
        return None
    held = seen.removed("schedule_held")
    if grown.step >= rise.valley - BEFORE // 2:
        # Below the threshold the steps may still be too long for what the optimizer remembers: the replay decides.
        if not (held or _crossed(seen, rise) >= NEAR):
            return None
    elif not held or not (_crossed_with_the_rate(seen, grown) or _too_long_below(seen, rise, grown)):
        return None
    evidence = _basic(seen, rise) | {
        "learning_rate_before": Measure(grown.before),
        "learning_rate_after": Measure(grown.after),
        "learning_rate_rose_after": Measure(float(grown.step), "step"),
    }
    return Verdict(Cause.schedule_jump, 0.85, evidence)


def _crossed_with_the_rate(seen: Observation, grown: RateRise) -> bool:
    """Whether the ratio to the threshold crossed 1 because the learning rate grew, rather than the sharpness.

    Equation: of ln(ratio after / ratio before) the rate's part is ln(rate after / rate before), at the first crossing.
    """
    known = np.isfinite(seen.ratio) & (seen.ratio > 0)
    before = np.flatnonzero(known & (seen.ratio_step <= grown.step))
    after = np.flatnonzero(known & (seen.ratio_step > grown.step) & (seen.ratio >= NEAR))
    if seen.rates is None or not (len(before) and len(after)):
        return False
    first, crossing = int(before[-1]), int(after[0])
    rates = np.interp(seen.ratio_step[[first, crossing]], seen.step, seen.rates)
    whole = np.log(seen.ratio[crossing] / seen.ratio[first])
    return bool(rates[0] > 0 and np.log(rates[1] / rates[0]) > MAJORITY * whole)


def _too_long_below(seen: Observation, rise: Rise, grown: RateRise) -> bool:
    """Whether the learning rate at least doubled and the ratio stayed below 1: slow swings, which sharpness did not
    bring about."""
    return grown.after >= 2 * grown.before and _crossed(seen, rise) < NEAR


def _collapse(seen: Observation, rise: Rise) -> Verdict | None:
    if not seen.is_adaptive:
        return None
    # Beyond the threshold the mode grows, and g^2 / v with it: then the excess is no cause.
    lags = not _crossed(seen, rise) >= 1 and seen.excess > _lagging(seen)
    if not (seen.floor_mass > MAJORITY or lags):
        return None
    evidence = _basic(seen, rise) | {"largest_squared_gradient_over_second_moment": Measure(seen.excess)}
    return Verdict(Cause.epsilon_collapse, 0.75, evidence)


def _lagging(seen: Observation) -> float:
    """g^2 / v that a second moment has which lags a jump of the gradient; infinity where no jump makes long updates."""
    if not 0 < seen.b2 < 1:
        return np.inf
    return (
        STALE / (1 - seen.b2) if update_bound(seen.momentum if seen.momentum > 0 else 0.0, seen.b2) > LONG else np.inf
    )


def _threshold(seen: Observation, rise: Rise) -> Verdict | None:
    """Rises with a ratio to the threshold of 1: catapult, divergence, edge of stability, stale second moment."""
    if not _crossed(seen, rise) >= NEAR:
        return None
    evidence = _basic(seen, rise)
    if seen.first_ratio >= NEAR and (rise.valley <= 2 * seen.resolution or _above_until(seen, rise.start)):
        if rise.recovery is None and not seen.loss[-1] < seen.loss[0]:
            return Verdict(Cause.learning_rate_above_threshold, 0.9, evidence)
        return Verdict(Cause.catapult, 0.85 if seen.last_ratio < 1 else 0.6, evidence)
    if seen.is_adaptive and seen.moment_share > MAJORITY:
        return Verdict(Cause.stale_second_moment, 0.85, evidence)
    if rise.recovery is None and seen.loss[-1] > 2 * seen.loss[0]:
        return Verdict(Cause.learning_rate_above_threshold, 0.8, evidence)
    if seen.is_adaptive and not np.isfinite(seen.moment_share):
        return Verdict(Cause.edge_of_stability, 0.5, evidence)
    return Verdict(Cause.edge_of_stability, 0.8, evidence)


def _above_until(seen: Observation, step: int) -> bool:
    """Whether the start's own instability may still be at work: no ratio below 1 was measured up to a step, and a mode
    that grows by |1 - 2 ratio| a step, as under gradient descent, has had no time to grow from rounding to 1 twice."""
    early = (seen.ratio_step <= step) & np.isfinite(seen.ratio)
    growth = np.log(max(2 * seen.first_ratio - 1, 1 + 1e-3))
    return bool(np.all(seen.ratio[early] >= 1)) and step <= max(BEFORE, 2 * ROUNDING / growth)


def _below(seen: Observation, rise: Rise) -> Verdict | None:
    """Rises below the threshold: a second moment that lags, momentum."""
    evidence = _basic(seen, rise)
    if seen.is_adaptive and seen.excess > LAGS:
        evidence["largest_squared_gradient_over_second_moment"] = Measure(seen.excess)
        return Verdict(Cause.epsilon_collapse, 0.6, evidence)
    is_uphill = seen.slope > MAJORITY * seen.change > 0
    if seen.momentum > 0 and (is_uphill or seen.removed("momentum_removed")):
        evidence["momentum"] = Measure(seen.momentum)
        return Verdict(Cause.momentum_overshoot, 0.85, evidence)
    return None


def _wall(seen: Observation, rise: Rise) -> Verdict | None:
    """Rises that neither slope nor curvature explains: a wall or a kink, in a recurrent network its gradient."""
    share = seen.rest / seen.change if seen.change > 0 else np.nan
    # Inside a wall the curvature promises more than the rise: then one step has to have met it.
    if not (share > MAJORITY or (share < -MAJORITY and _met_in_one_step(seen, rise))):
        return None
    evidence = _basic(seen, rise)
    if seen.is_recurrent and seen.gradient_jump > EXPLODES:
        evidence["gradient_norm_over_median_before"] = Measure(seen.gradient_jump)
        return Verdict(Cause.exploding_recurrent_gradient, 0.75, evidence)
    return Verdict(Cause.beyond_quadratic, 0.75, evidence)


def _met_in_one_step(seen: Observation, rise: Rise) -> bool:
    """Whether the ratio to the threshold went beyond 1 between two records, up to the rise, from below a half or by a
    factor that no quadratic model survives."""
    near = (seen.ratio_step >= rise.valley - 2 * seen.resolution) & (seen.ratio_step <= rise.start)
    steps, ratios = seen.ratio_step[near], seen.ratio[near]
    neighbours = np.diff(steps) <= seen.resolution
    met = (ratios[:-1] < MAJORITY) | (ratios[1:] > STEEPENS * ratios[:-1])
    return bool(np.any(neighbours & met & (ratios[1:] >= 1)))


def _growth(seen: Observation, rise: Rise) -> Verdict | None:
    """Without any curvature: growth to infinity is that of an unstable mode."""
    if np.isfinite(_crossed(seen, rise)) or rise.recovery is not None:
        return None
    finite = seen.loss[np.isfinite(seen.loss)]
    if seen.overflow is None and not finite[-1] > 10 * max(abs(seen.loss[0]), 1e-300):
        return None
    factors = finite[-4:] / finite[-5:-1] if len(finite) > 5 else np.array([np.nan])
    evidence = _basic(seen, rise) | {"growth_of_the_loss_per_record": Measure(float(factors[-1]))}
    return Verdict(Cause.learning_rate_above_threshold, 0.6, evidence)


RULES: tuple[Rule, ...] = (
    _gradient, _labels, _precision, _noise, _schedule, _collapse, _wall, _threshold, _below, _growth,
)  # fmt: skip
