"""The causes that a rise of the loss is explained by."""

from __future__ import annotations

import enum


class Cause(enum.Enum):
    """Why a training loss rose. The value is a short name for files and tables; `description` says what happens."""

    learning_rate_above_threshold = "learning_rate_above_threshold"
    catapult = "catapult"
    edge_of_stability = "edge_of_stability"
    schedule_jump = "schedule_jump"
    minibatch_noise = "minibatch_noise"
    trailing_small_batch = "trailing_small_batch"
    stale_second_moment = "stale_second_moment"
    epsilon_collapse = "epsilon_collapse"
    momentum_overshoot = "momentum_overshoot"
    exploding_recurrent_gradient = "exploding_recurrent_gradient"
    wrong_gradient = "wrong_gradient"
    invalid_labels = "invalid_labels"
    mislabelled_examples = "mislabelled_examples"
    mode_noise = "mode_noise"
    floating_point = "floating_point"
    beyond_quadratic = "beyond_quadratic"
    healthy = "healthy"
    unknown = "unknown"

    @property
    def description(self) -> str:
        """What happens, in a sentence."""
        return DESCRIPTIONS[self]


DESCRIPTIONS = {
    Cause.learning_rate_above_threshold: "the sharpness stays above the optimizer's threshold: every step overshoots",
    Cause.catapult: "the start is too sharp for the learning rate; the run is thrown to where it is flat enough",
    Cause.edge_of_stability: "the sharpness hovers at the threshold: the loss rises at some steps and falls over many",
    Cause.schedule_jump: "the learning rate rose past the threshold",
    Cause.minibatch_noise: "batches differ from the full data: the recorded loss, or the noise of their gradients",
    Cause.trailing_small_batch: "the last batch of an epoch is small, and its gradient noisy",
    Cause.stale_second_moment: "the second moment forgets faster than it is refilled: preconditioned sharpness grows",
    Cause.epsilon_collapse: "the denominator of the update shrank to epsilon, or lags a jump of the gradient",
    Cause.momentum_overshoot: "momentum carries the parameters uphill, below the threshold: a damped oscillation",
    Cause.exploding_recurrent_gradient: "the gradient grows along the sequence",
    Cause.wrong_gradient: "the gradient is not that of the loss",
    Cause.invalid_labels: "labels are no distributions, or outside the classes",
    Cause.mislabelled_examples: "a wrongly labelled example dominates a small batch",
    Cause.mode_noise: "dropout or batch statistics: what is recorded is not what is evaluated",
    Cause.floating_point: "overflow, underflow or absorption: the same run in higher precision does not rise",
    Cause.beyond_quadratic: "neither slope nor curvature explains the rise: a wall or kink of the loss",
    Cause.healthy: "the loss did not rise",
    Cause.unknown: "nothing that was recorded explains the rise",
}
