"""Rules of the diagnosis on runs described by hand: what each cause is named by, and what turns it into another."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.text import Text

from lossland.diagnosis.causes import Cause
from lossland.diagnosis.explanation import Explanation, remedies_of
from lossland.diagnosis.hygiene import check_labels
from lossland.diagnosis.mechanisms import decide
from lossland.diagnosis.observation import Observation, largest_rise, observe

STEPS = np.arange(200)


def bumped(at: int = 100, height: float = 4.0) -> np.ndarray:
    """A loss that falls but for a bump over ten steps."""
    loss = np.exp(-STEPS / 100)
    loss[at : at + 10] *= height
    return loss


def observation(loss: np.ndarray, **fields) -> Observation:
    rise, count = largest_rise(STEPS[: len(loss)], loss)
    return Observation(STEPS[: len(loss)], loss, rise, count, **fields)


def with_ratio(loss: np.ndarray, before: float, start: float = 0.3, end: float = 0.9, **fields) -> Observation:
    seen = observation(loss, **fields)
    assert seen.rise is not None
    steps = np.array([0, seen.rise.valley, len(loss) - 1])
    return seen.changed(ratio_step=steps.astype(float), ratio=np.array([start, before, end]))


class TestRises:
    def test_the_largest_rise_in_logarithms_is_explained(self):
        loss = np.exp(-STEPS / 20)
        loss[20:25] += 0.5  # the larger one in units of the loss
        loss[150:155] *= 40
        rise, count = largest_rise(STEPS, loss)
        assert rise is not None
        assert rise.start == 150
        assert count == 2

    def test_rounding_is_no_rise(self):
        loss = np.where(STEPS < 100, np.exp(-STEPS / 5), 1e-9)
        loss[150] = 5e-8
        assert largest_rise(STEPS, loss) == (None, 0)

    def test_a_rise_without_an_end_comes_before_a_larger_one_that_recovered(self):
        loss = bumped(50, 30.0)
        loss[180:] = np.geomspace(2, 20, 20)
        rise, _ = largest_rise(STEPS, loss)
        assert rise is not None
        assert rise.recovery is None


class TestDecisions:
    def test_no_rise_is_healthy(self):
        assert decide(observation(np.exp(-STEPS / 50))).cause is Cause.healthy

    def test_a_rise_of_the_record_alone_is_noise_of_batches_or_of_layers(self):
        seen = observation(np.exp(-STEPS / 50))
        recorded, _ = largest_rise(STEPS, bumped())
        seen = seen.changed(recorded_rise=recorded, num_examples=64)
        assert decide(seen.changed(batch_size=4)).cause is Cause.minibatch_noise
        assert decide(seen.changed(has_random_layers=True)).cause is Cause.mode_noise

    def test_crossing_from_below_that_recovers_is_the_edge(self):
        assert decide(with_ratio(bumped(), 1.05)).cause is Cause.edge_of_stability

    def test_below_the_threshold_it_is_not_the_edge(self):
        assert decide(with_ratio(bumped(), 0.6)).cause is Cause.unknown

    def test_growth_above_the_threshold_from_the_start_is_divergence_and_a_catapult_if_it_recovers(self):
        grows = 1.1**STEPS
        assert decide(with_ratio(grows, 1.2, 1.2, 1.2)).cause is Cause.learning_rate_above_threshold
        recovers = np.where(STEPS < 10, 1.5**STEPS, 40 * np.exp(-STEPS / 10))
        assert decide(with_ratio(recovers, 1.2, 1.2, 0.7)).cause is Cause.catapult

    def test_a_rise_of_the_learning_rate_makes_it_the_schedule(self):
        rates = np.where(STEPS < 95, 0.1, 0.5)
        assert decide(with_ratio(bumped(), 1.5, rates=rates)).cause is Cause.schedule_jump
        assert decide(with_ratio(bumped(), 1.5, rates=rates[::-1])).cause is Cause.edge_of_stability

    @pytest.mark.parametrize(("share", "cause"), [(0.9, "stale_second_moment"), (0.2, "edge_of_stability")])
    def test_who_drove_the_crossing_tells_stale_moments_from_sharpening(self, share, cause):
        seen = with_ratio(bumped(), 1.05, is_adaptive=True, moment_share=share, b2=0.999)
        assert decide(seen).cause is Cause[cause]

    def test_dead_coordinates_are_a_collapse(self):
        seen = with_ratio(bumped(), 50.0, is_adaptive=True, moment_share=0.9, floor_mass=0.95, b2=0.999)
        assert decide(seen).cause is Cause.epsilon_collapse

    def test_uphill_below_the_threshold_is_momentum(self):
        parts = {"slope": 0.9, "curvature": 0.1, "rest": 0.0, "change": 1.0}
        assert decide(with_ratio(bumped(), 0.1, momentum=0.9, **parts)).cause is Cause.momentum_overshoot
        assert decide(with_ratio(bumped(), 0.1, momentum=0.0, **parts)).cause is Cause.unknown

    def test_what_neither_slope_nor_curvature_explains(self):
        parts = {"slope": -0.1, "curvature": 0.1, "rest": 1.0, "change": 1.0}
        assert decide(with_ratio(bumped(), 0.1, **parts)).cause is Cause.beyond_quadratic
        seen = with_ratio(bumped(), 0.1, is_recurrent=True, gradient_jump=50.0, **parts)
        assert decide(seen).cause is Cause.exploding_recurrent_gradient

    def test_a_wall_is_told_from_the_edge_by_what_the_curvature_explains(self):
        parts = {"slope": -0.3, "curvature": 0.4, "change": 1.0}
        assert decide(with_ratio(bumped(), 3.0, rest=0.9, **parts)).cause is Cause.beyond_quadratic
        assert decide(with_ratio(bumped(), 3.0, rest=0.1, **parts)).cause is Cause.edge_of_stability

    def test_inside_a_wall_the_curvature_promises_more_than_the_rise(self):
        parts = {"change": 1.0, "slope": -0.5, "curvature": 2.2, "rest": -0.7}
        seen = observation(bumped(), **parts)
        steps = np.array([0.0, 97, 98, 99, 199])
        met = seen.changed(ratio_step=steps, ratio=np.array([0.1, 0.1, 0.1, 2.5, 0.1]))
        assert decide(met).cause is Cause.beyond_quadratic
        chaotic = seen.changed(ratio_step=steps, ratio=np.array([0.4, 1.6, 1.1, 5.7, 4.5]))
        assert decide(chaotic).cause is Cause.beyond_quadratic
        sharpened = seen.changed(ratio_step=steps, ratio=np.array([0.1, 0.9, 1.0, 1.1, 0.9]))
        assert decide(sharpened).cause is Cause.edge_of_stability

    def test_a_second_rise_of_a_start_that_was_too_sharp_is_still_the_catapult(self):
        loss = np.where(STEPS < 3, 2.0**STEPS, 0.01 * 3.0 ** np.minimum(STEPS - 3, 5))
        loss[20:] = 0.001 * np.exp(-STEPS[20:] / 50)
        seen = observation(loss)
        assert seen.rise is not None
        assert seen.rise.valley == 3
        steps = np.array([0.0, 1, 2, 3, 8, 20, 199])
        never_below = seen.changed(ratio_step=steps, ratio=np.array([1.9, 1.9, 1.8, 1.8, 1.9, 0.3, 0.2]))
        assert decide(never_below).cause is Cause.catapult
        between = seen.changed(ratio_step=steps, ratio=np.array([1.9, 1.9, 0.5, 1.1, 1.2, 0.3, 0.2]))
        assert decide(between).cause is Cause.edge_of_stability

    def test_a_rise_long_after_a_start_at_the_threshold_is_the_edge(self):
        """bumped() rises after 99 steps; rounding grows to 1 twice within 32 / ln(2 ratio - 1) steps of the start."""
        seen = observation(bumped())
        steps = np.array([0.0, 50, 98, 99, 199])
        soon = seen.changed(ratio_step=steps, ratio=np.array([1.05, 1.02, 1.02, 1.05, 0.9]))
        assert decide(soon).cause is Cause.catapult
        late = seen.changed(ratio_step=steps, ratio=np.array([1.5, 1.02, 1.02, 1.05, 0.9]))
        assert decide(late).cause is Cause.edge_of_stability

    def test_noise_is_told_apart_by_who_makes_it(self):
        seen = with_ratio(bumped(), 0.1, batch_size=2, num_examples=60, noise_ratio=5.0)
        assert decide(seen).cause is Cause.minibatch_noise
        ragged = seen.changed(ragged_share=0.9, ragged_expected=0.2)
        assert decide(ragged).cause is Cause.trailing_small_batch
        assert decide(seen.changed(outlier_share=0.9)).cause is Cause.mislabelled_examples

    def test_wrong_gradients_and_labels_come_first(self):
        labels = check_labels(np.full((4, 2), 1.0))
        seen = with_ratio(bumped(), 1.2, labels=labels)
        assert decide(seen).cause is Cause.edge_of_stability  # only a replay tells labels from other targets
        seen = seen.changed(arms={"unchanged": np.log(4), "valid_labels": 0.0})
        assert decide(seen).cause is Cause.invalid_labels
        assert decide(seen.changed(wrong_leaves=("b",))).cause is Cause.wrong_gradient
        assert decide(seen.changed(wrong_leaves=("b",))).confidence <= 0.5
        proved = seen.changed(wrong_leaves=("b",), arms=seen.arms | {"right_gradient": 0.0})
        assert decide(proved).confidence >= 0.95

    def test_infinity_from_a_small_loss_is_arithmetic_and_from_a_large_one_growth(self):
        sudden = np.append(np.exp(-np.arange(50) / 20), np.inf)
        assert decide(observation(sudden, overflow=50)).cause is Cause.floating_point
        grown = np.append(10.0 ** np.arange(38), np.inf)
        assert decide(observation(grown, overflow=38)).cause is Cause.learning_rate_above_threshold

    def test_between_records_growth_looks_like_arithmetic(self):
        coarse = observation(np.array([1.0, 0.9, np.inf]), overflow=17, resolution=10)
        assert decide(coarse).cause is Cause.floating_point
        assert decide(coarse.changed(peak_loss=1e30)).cause is Cause.learning_rate_above_threshold
        assert decide(coarse.changed(batch_size=4)).cause is Cause.learning_rate_above_threshold
        above = coarse.changed(ratio_step=np.array([0.0]), ratio=np.array([1.2]))
        assert decide(above).cause is not Cause.floating_point

    def test_divergence_without_curvature_is_no_noise(self):
        grown = observation(1.1**STEPS, batch_size=4)
        assert decide(grown).cause is Cause.learning_rate_above_threshold
        assert decide(observation(bumped(), has_random_layers=True)).confidence <= 0.5

    def test_a_loss_that_is_not_finite_at_the_first_step_did_not_rise(self):
        records = {"loss": ("step", [np.nan, np.nan]), "batch_loss": ("step", [np.inf, np.inf])}
        seen = observe(xr.Dataset(records | {"first_bad_step": 0}, {"step": [0, 5]}))
        assert seen.recorded_rise is None
        assert decide(seen).cause is Cause.unknown


class TestSchedules:
    """The rate rises at step 55, the loss at step 99: ratio and replay say whether the one brought the other."""

    @staticmethod
    def seen(after: float, ratios: tuple[float, ...], held: float = 0.0) -> Observation:
        seen = observation(bumped()).changed(rates=np.where(STEPS < 55, 0.1, after))
        ratio_step, ratio = np.array([0.0, 54, 56, 80, 99, 199]), np.array(ratios)
        arms = {"unchanged": np.log(4), "learning_rate_below": 0.0, "schedule_held": held}
        return seen.changed(ratio_step=ratio_step, ratio=ratio, arms=arms)

    def test_a_rate_that_crossed_the_threshold_long_before_is_the_cause(self):
        seen = self.seen(1.0, (0.2, 0.2, 1.6, 0.9, 1.3, 1.0))
        assert seen.rate_rise == (54, 0.1, 1.0)
        assert decide(seen).cause is Cause.schedule_jump
        assert decide(seen).evidence["learning_rate_rose_after"].value == 54

    def test_sharpness_that_grew_to_the_threshold_afterwards_is_not(self):
        assert decide(self.seen(0.2, (0.1, 0.1, 0.2, 0.6, 1.05, 1.0))).cause is Cause.edge_of_stability

    def test_nor_is_a_rate_without_which_the_loss_rises_all_the_same(self):
        seen = self.seen(1.0, (0.2, 0.2, 1.6, 0.9, 1.3, 1.0), held=np.log(4))
        assert decide(seen).cause is Cause.edge_of_stability

    def test_below_the_threshold_the_rate_has_to_have_doubled(self):
        below = (0.01, 0.01, 0.1, 0.1, 0.1, 0.1)
        assert decide(self.seen(1.0, below)).cause is Cause.schedule_jump
        assert decide(self.seen(0.15, below)).cause is Cause.unknown

    def test_a_rate_that_only_falls_has_no_rise(self):
        seen = observation(bumped()).changed(rates=1.0 / (1 + STEPS))
        assert seen.rate_rise is None
        warm = observation(bumped()).changed(rates=np.minimum(STEPS / 100, 1.0))
        assert warm.rate_rise is not None
        assert warm.rate_rise.step == 0


class TestProof:
    """A replay that does not remove the rise takes the name away."""

    def test_a_refuted_remedy_leaves_it_unknown(self):
        seen = with_ratio(bumped(), 1.05)
        kept = seen.changed(arms={"unchanged": np.log(4), "learning_rate_below": np.log(3.5)})
        assert decide(kept).cause is Cause.unknown
        gone = seen.changed(arms={"unchanged": np.log(4), "learning_rate_below": 0.0})
        assert decide(gone).cause is Cause.edge_of_stability
        assert decide(gone).confidence > decide(seen).confidence

    def test_a_replay_in_which_nothing_rises_proves_nothing(self):
        seen = with_ratio(bumped(), 1.05).changed(arms={"unchanged": 0.0, "learning_rate_below": 0.0})
        assert seen.removed("learning_rate_below") is None

    def test_labels_whose_correction_changes_nothing_are_not_the_cause(self):
        labels = check_labels(np.full((4, 2), 1.0))
        arms = {"unchanged": np.log(4), "valid_labels": np.log(4), "learning_rate_below": 0.0}
        assert decide(with_ratio(bumped(), 1.05, labels=labels, arms=arms)).cause is Cause.edge_of_stability

    def test_noise_that_the_full_data_keep_is_none(self):
        arms = {"unchanged": np.log(4), "full_batch": np.log(4), "learning_rate_below": 0.0}
        seen = with_ratio(bumped(), 1.05, batch_size=2, noise_ratio=5.0, arms=arms)
        assert decide(seen).cause is Cause.edge_of_stability


def test_a_remedy_says_what_was_replayed_only_where_something_was():
    seen = with_ratio(bumped(), 0.6, batch_size=2)
    (remedy,) = remedies_of(seen, ("full_batch",), {})
    assert "replayed" not in remedy.change
    (remedy,) = remedies_of(seen.changed(arms={"unchanged": 1.0, "full_batch": 0.0}), ("full_batch",), {})
    assert "replayed on the full data" in remedy.change


@pytest.mark.parametrize(
    ("arm", "fields", "words"),
    [
        ("learning_rate_below", {}, "a smaller learning rate (replayed at half)"),
        ("schedule_held", {}, "keep the learning rate at 0.1, or raise it by less"),
        ("full_batch", {"has_random_layers": True}, "evaluation mode"),
        ("full_batch", {"batch_size": 4}, "larger batches"),
    ],
)
def test_below_the_threshold_no_rate_above_the_own_is_recommended(arm, fields, words):
    """0.6 of the threshold: "learning rate below rate / 0.6" would be larger than the one that rose."""
    seen = with_ratio(bumped(), 0.6, arms={"unchanged": 1.0, arm: 0.0}, **fields)
    (remedy,) = remedies_of(seen, (arm,), {"rate": 0.1, "rate_before": 0.1})
    assert words in remedy.change
    assert "0.167" not in remedy.change


def test_a_warm_up_from_0_is_not_kept_at_0():
    seen = with_ratio(bumped(), 2.0)
    (remedy,) = remedies_of(seen, ("schedule_held",), {"rate": 0.1, "rate_before": 0.0})
    assert remedy.change == "raise the learning rate to less than 0.05"


class TestLaggingMoments:
    """g^2 / v of 8 at b2 = 0.9, where 10 is the most: a growing mode has it too, and then it is no cause."""

    def test_beyond_the_threshold_the_mode_grows_by_itself(self):
        seen = with_ratio(bumped(), 1.5, is_adaptive=True, moment_share=1.0, excess=8.0, b2=0.9, momentum=0.0)
        assert decide(seen).cause is Cause.stale_second_moment

    def test_below_it_a_jump_of_the_gradient_makes_long_steps_unless_momentum_spreads_them(self):
        seen = with_ratio(bumped(), 0.3, is_adaptive=True, excess=8.0, b2=0.9, momentum=0.0)
        assert decide(seen).cause is Cause.epsilon_collapse
        assert decide(seen.changed(momentum=0.9)).cause is Cause.unknown  # no update beyond 1.17 rates
        assert decide(seen.changed(momentum=0.9, b2=0.999, excess=400.0)).cause is Cause.epsilon_collapse


class TestStories:
    def test_a_loss_that_goes_below_0_does_not_become_infinite(self):
        loss = np.where(STEPS < 100, 1 - STEPS / 50, 3.0)
        story = Explanation(Cause.unknown, 0.3, {}, seen=observation(loss)).story
        assert "peaked at step 100 at 3" in story
        assert "infinite" not in story

    def test_a_loss_that_crept_up_did_not_fall(self):
        story = Explanation(Cause.healthy, 0.9, {}, seen=observation(1 + STEPS / 10_000)).story
        assert story == "the loss over the full data went from 1 to 1.02 without a rise of 5%"


def test_a_figure_names_settings_that_are_no_numbers_and_draws_what_proves_the_cause():
    seen = with_ratio(bumped(), 0.3, batch_size=4)
    curves = {"step": STEPS[90:120], **{name: np.ones(30) for name in ("learning_rate_below", "momentum_removed")}}
    curves |= {name: np.ones(30) for name in ("second_moment_frozen", "eps_raised", "full_batch")}
    made = Explanation(Cause.minibatch_noise, 0.9, {}, run={"dtype": "bfloat16", "seed": 1}, seen=seen, curves=curves)
    figure = made.plot()
    assert "full data" in {line.get_label() for line in figure.axes[0].lines}
    assert any("dtype bfloat16" in text.get_text() for text in figure.findobj(Text))
