"""Laws of Adam and RMSprop late in training: when a mode turns unstable, when the loss shows it, how it goes on.

Written in two dimensionless numbers. kappa = learning_rate x top eigenvalue of P^-1/2 H P^-1/2, with the divisor P of
the next update (second moment already advanced, bias corrections included), and its threshold kappa* = 2 (1 + b1) / (1
- b1). With P frozen an optimizer m <- b1 m + (1 - b1) g, x <- x - learning_rate m / P moves a mode by

    (g, m) <- J (g, m),    det(r - J) = r^2 - [(1 + b1) - (1 - b1) kappa] r + b1.

What makes late training unstable is that P is not frozen. Once the gradient along the sharp direction has died, the
second moment forgets by b2 per step and kappa rises by sigma = |ln b2| / 2 per step with no help from the curvature. It
has to cross kappa*; from then on the mode grows out of whatever was left of it, unseen for a computable lag, until its
squared gradient refills the second moment and kappa falls again.

Everything is NumPy in float64; arguments are numbers or arrays and broadcast. Amplitudes grow by rho, losses by rho^2.
"""

from lossland.stability.crossing import (
    crossing_time,
    onset_time,
    onset_time_closed_form,
    onset_time_sign_descent,
    second_moment_residual,
)
from lossland.stability.damping import epsilon_floor, noise_edge
from lossland.stability.mode_growth import critical_ratio, growth_factor, ratio_rate
from lossland.stability.relaxation import Relaxation, relaxation_cycle, relaxation_period
from lossland.stability.spike_boundary import spike_boundary, superquadratic_critical_decay, superquadratic_rate
from lossland.stability.spike_lag import (
    lag,
    lag_closed_form,
    lag_from_state,
    lag_under_noise,
    mode_amplitude,
    overshoot,
)
from lossland.stability.spike_size import spike_rise
from lossland.stability.two_cycle import (
    breathing_period,
    two_cycle_amplitude,
    two_cycle_critical_momentum,
    two_cycle_is_stable,
    two_cycle_multipliers,
)
from lossland.stability.update_size import jump_response, periodic_drift, update_bound, update_rms

__all__ = [
    "Relaxation",
    "breathing_period",
    "critical_ratio",
    "crossing_time",
    "epsilon_floor",
    "growth_factor",
    "jump_response",
    "lag",
    "lag_closed_form",
    "lag_from_state",
    "lag_under_noise",
    "mode_amplitude",
    "noise_edge",
    "onset_time",
    "onset_time_closed_form",
    "onset_time_sign_descent",
    "overshoot",
    "periodic_drift",
    "ratio_rate",
    "relaxation_cycle",
    "relaxation_period",
    "second_moment_residual",
    "spike_boundary",
    "spike_rise",
    "superquadratic_critical_decay",
    "superquadratic_rate",
    "two_cycle_amplitude",
    "two_cycle_critical_momentum",
    "two_cycle_is_stable",
    "two_cycle_multipliers",
    "update_bound",
    "update_rms",
]
