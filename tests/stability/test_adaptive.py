"""Laws of Adam late in training, against the certificate of the update and against optax itself in float64."""

import numpy as np
import optax
import pytest

import lossland as ll
from lossland.stability import adaptive

BETAS = np.array([0.0, 0.5, 0.8, 0.9, 0.95])


class TestGrowth:
    @pytest.mark.parametrize("b1", BETAS)
    def test_threshold_and_growth_are_those_of_the_certificate(self, b1):
        certificate = ll.threshold(optax.adam, learning_rate=1.0, b1=b1, b2=0.999)
        critical = adaptive.critical_ratio(b1)
        assert certificate.critical_curvature == pytest.approx(critical, rel=1e-12)
        # Away from the two points where the roots meet: there eigenvalues keep half their digits.
        kappa = critical * np.array([-0.1, 0.3, 0.9, 1.001, 1.02, 1.2, 2.0, 10.0])
        np.testing.assert_allclose(adaptive.growth_factor(kappa, b1), certificate.growth(kappa), rtol=1e-12)

    def test_both_forms_above_the_threshold_agree(self):
        b1 = BETAS[:, None]
        critical = adaptive.critical_ratio(b1)
        excess = np.geomspace(1e-6, 1e2, 20)
        expected = ((1 + b1) + (1 - b1) * (excess + np.sqrt(1 + critical * excess + excess**2))) / 2
        np.testing.assert_allclose(adaptive.growth_factor(critical + excess, b1), expected, rtol=1e-12)


class TestLag:
    def test_the_sum_reaches_the_gain_at_the_lag_and_not_before(self):
        gain, b1, b2 = 12.3, 0.9, 0.998
        steps = int(adaptive.lag(gain, b1, b2))
        kappa = adaptive.critical_ratio(b1) * np.exp(adaptive.ratio_rate(b2) * np.arange(steps))
        sums = np.cumsum(np.log(adaptive.growth_factor(kappa, b1)))
        assert sums[-2] < gain <= sums[-1]

    def test_counting_from_below_the_threshold_adds_the_crossing_time(self):
        waiting = adaptive.crossing_time(30.0, 0.9, 0.999)
        total = adaptive.lag(9.0, 0.9, 0.999, kappa0=30.0)
        assert total == pytest.approx(waiting + adaptive.lag(9.0, 0.9, 0.999), abs=1)

    def test_without_decay_the_growth_is_steady_or_absent(self):
        assert adaptive.lag(10.0, 0.9, 1.0, kappa0=40.0) == np.ceil(10 / np.log(adaptive.growth_factor(40.0, 0.9)))
        assert adaptive.lag(10.0, 0.9, 1.0, kappa0=30.0) == np.inf
        assert adaptive.lag(10.0, 0.9, 1.0, kappa0=40.0, curvature_rate=-0.05) == np.inf

    def test_arrays_broadcast(self):
        found = adaptive.lag(np.array([5.0, 10.0])[:, None], 0.9, np.array([0.99, 0.999, 0.9999]))
        assert found.shape == (2, 3)
        assert found[1, 1] == adaptive.lag(10.0, 0.9, 0.999)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: adaptive.critical_ratio(1.0), "critical_ratio: b1: expected 0 <= b1 < 1, got 1"),
        (lambda: adaptive.growth_factor(np.nan, 0.9), "growth_factor: kappa: expected a finite number"),
        (lambda: adaptive.crossing_time([1.0, -2.0], 0.9, 0.999), "kappa0: expected a positive number, got -2"),
        (lambda: adaptive.crossing_time(1.0, 0.9, 1.2), "b2: expected 0 < b2 <= 1, got 1.2"),
        (lambda: adaptive.lag_closed_form(1.0, 0.0, 0.999), "use lag"),
        (lambda: adaptive.overshoot(-1.0, 0.999), "overshoot: lag"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
