"""Laws of Adam late in training, against the certificate of the update and against optax itself in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossland as ll
from lossland.stability import adaptive
from lossland.stability.one_parameter import simulate, spike_events

BETAS = np.array([0.0, 0.5, 0.8, 0.9, 0.95])
RATE = 1e-2


def adam(num_steps, **arguments):
    """Adam without eps; every setting of a length shares one compilation."""
    return simulate(optax.adam, num_steps, **{"learning_rate": RATE, "start": 1.0, "eps": 0.0, **arguments})


@functools.cache
def rounds():
    """Settings, path and rounds of crossing, spike and trough that several laws are held against."""
    b1 = np.array([0.5, 0.5, 0.7, 0.9, 0.8, 0.9, 0.95])
    b2 = np.array([0.99, 0.995, 0.995, 0.99, 0.998, 0.998, 0.998])
    path = adam(10_000, b1=b1, b2=b2, learning_rate=np.array([0.01, 0.02, 0.1, 0.05, 0.1, 0.05, 0.3]))
    return b1, b2, path, spike_events(path, adaptive.critical_ratio(b1), settled=10 / (1 - b2))


class TestSimulation:
    def test_it_is_the_run_of_the_library(self):
        """The same optimizer on the same parabola through `ll.run`, in float64."""
        problem = ll.Problem(
            lambda key: jnp.ones(1), lambda p, batch: 1.5 * jnp.mean(batch) * p[0] ** 2, np.ones(1), name="parabola"
        )
        sweep = ll.Sweep({"learning_rate": [RATE], "b1": [0.9], "b2": [0.99]}, 1, 300, 1, dtype="float64")
        runs = ll.run(problem, optax.adam, sweep, [ll.Probe("x", lambda problem, optimizer, state: state.params[0])])
        path = simulate(optax.adam, 300, learning_rate=RATE, b1=0.9, b2=0.99, curvature=3.0)
        # Late steps differ: rounding grows where the run is unstable.
        np.testing.assert_allclose(path.x[0], runs["x"].values.ravel()[:300], rtol=1e-6, atol=1e-12)

    def test_settings_share_one_compilation(self, compilations):
        adam(50, b1=0.9, b2=0.99)
        first = len(compilations)
        adam(50, b1=0.8, b2=0.98, start=3.0)
        assert len(compilations) == first

    def test_bad_settings_are_named(self):
        with pytest.raises(ValueError, match="one length"):
            adam(10, b1=np.zeros(2), b2=np.full(3, 0.9))
        with pytest.raises(ValueError, match="no argument 'b3'"):
            adam(10, b3=0.9)


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


class TestOnset:
    def test_first_crossing_of_adam(self):
        distance, b1, b2 = (
            axis.ravel()
            for axis in np.meshgrid([100.0, 1000.0], [0.0, 0.5, 0.9, 0.95], [0.97, 0.98, 0.99], indexing="ij")
        )
        path = adam(4000, learning_rate=1 / distance, b1=b1, b2=b2)
        measured = np.argmax(path.kappa >= adaptive.critical_ratio(b1)[:, None], axis=1)
        assert np.all(measured > 0)
        np.testing.assert_allclose(measured, adaptive.onset_time(distance, b1, b2), rtol=0.04)
        np.testing.assert_allclose(measured, adaptive.onset_time_sign_descent(distance, b1, b2), rtol=0.12)

    def test_the_forms_agree_for_a_long_memory_up_to_the_slowing_of_the_descent(self):
        """The closed form has 1 / 3 where the descent that slows down has 0.4151."""
        n, b1, b2 = 1e5, 0.9, 1 - 1e-9
        slower = np.log(3 * 0.4151) / -np.log(b2)
        closed = adaptive.onset_time_closed_form(n, b1, b2)
        assert adaptive.onset_time(n, b1, b2) - closed == pytest.approx(slower, rel=2e-3)
        assert adaptive.onset_time_sign_descent(n, b1, b2) == pytest.approx(closed, rel=1e-5)

    @pytest.mark.parametrize(("distance", "b1", "b2"), [(1e4, 0.9, 0.9), (3e4, 0.9, 0.9), (3e4, 0.5, 0.7)])
    def test_a_descent_of_many_memories_is_followed_to_its_end(self, distance, b1, b2):
        path = adam(int(distance) + 1000, learning_rate=1 / distance, b1=b1, b2=b2)
        measured = int(np.argmax(path.kappa[0] >= adaptive.critical_ratio(b1)))
        assert measured > distance
        assert adaptive.onset_time(distance, b1, b2) == pytest.approx(measured, rel=0.005)

    @pytest.mark.parametrize(
        ("distance", "b1", "b2"), [(0.5, 0.9, 0.9), (100.3, 0.5, 0.9), (2e5, 0.9, 0.999), (2.5e6, 0.9, 1 - 1e-7)]
    )
    def test_sign_descent_is_the_sum_that_it_says(self, distance, b1, b2):
        """Term by term, and at a distance whose terms no memory could hold."""
        s = np.arange(int(distance) + 1)
        with np.errstate(divide="ignore"):
            total = np.logaddexp.reduce(2 * np.log(distance - s) - s * np.log(b2))
        expected = (np.log((1 - b2) * adaptive.critical_ratio(b1) ** 2) + total) / -np.log(b2)
        assert adaptive.onset_time_sign_descent(distance, b1, b2) == pytest.approx(expected, rel=1e-9)
        assert adaptive.onset_time_sign_descent(1e13, b1, b2) > 1e13


class TestCrossing:
    def test_from_the_trough_after_a_spike(self):
        b1, b2, path, e = rounds()
        at, lane = e.trough, e.lane
        state = path.gradient[lane, at], path.first_moment[lane, at + 1], path.second_moment[lane, at + 1]
        low = path.kappa[lane, at]
        residual = adaptive.second_moment_residual(*state, low, b1[lane], b2[lane])
        predicted = adaptive.crossing_time(low, b1[lane], b2[lane], residual=residual)
        valid = (predicted >= 150) & (-np.log(b1[lane]) / 2 * predicted > 8)
        assert valid.sum() >= 10
        np.testing.assert_allclose((e.next_crossing - at)[valid], predicted[valid], rtol=0.01)

    def test_residual_is_the_sum_that_it_says(self):
        b1, b2, kappa, (g, m) = 0.9, 0.99, 11.0, (0.3, -0.2)
        total, first = 0.0, (g, m)
        g, m = g - kappa * m, m
        for j in range(1, 2000):
            total += g**2 / b2**j
            m = b1 * m + (1 - b1) * g
            g = g - kappa * m
        expected = (1 - b2) * total / 2.5
        assert adaptive.second_moment_residual(*first, 2.5, kappa, b1, b2) == pytest.approx(expected, rel=1e-10)
        assert adaptive.second_moment_residual(*first, 2.5, 39.0, b1, b2) == np.inf

    def test_bias_corrections_bring_it_forward(self):
        """From the first quarter of a memory on, before corrections have settled."""
        b1, b2, n = 0.9, 0.9975, 4000
        path = adam(n, learning_rate=0.2, b1=b1, b2=b2)
        kappa, start = path.kappa[0], np.array([100, 400, 800])
        crossing = int(np.argmax(kappa >= adaptive.critical_ratio(b1)))
        predicted = adaptive.crossing_time(kappa[start], b1, b2, step=start + 1)
        np.testing.assert_allclose(crossing - start, predicted, atol=1.5)
        assert adaptive.crossing_time(kappa[start[0]], b1, b2) > 1.2 * predicted[0]


class TestLag:
    def test_from_a_state_every_spike_comes_within_two_steps(self):
        b1, b2, path, e = rounds()
        at, lane = e.crossing, e.lane
        g, m, kappa = (column[lane, at] for column in (path.gradient, path.first_moment, path.kappa))
        v = path.second_moment[lane, at + 1]
        gain = np.log(np.sqrt(v) / adaptive.mode_amplitude(g, m, kappa, b1[lane]))
        quiet = gain > 2
        assert quiet.sum() > 100
        args = b1[lane][quiet], b2[lane][quiet]
        exact = adaptive.lag_from_state(g[quiet], m[quiet], v[quiet], kappa[quiet], *args)
        measured = (e.spike - at)[quiet]
        assert np.max(np.abs(exact - measured)) <= 2
        assert np.median(np.abs(adaptive.lag(gain[quiet], *args, kappa0=kappa[quiet]) - measured)) <= 2
        peak = path.kappa[lane, e.peak][quiet] / adaptive.critical_ratio(args[0])
        np.testing.assert_allclose(peak, adaptive.overshoot(exact, args[1]), rtol=0.025)

    @pytest.mark.parametrize(("b1", "b2", "noise"), [(0.9, 0.99, 1e-8), (0.5, 0.985, 1e-6), (0.0, 0.98, 1e-7)])
    def test_under_noise_median_and_interval_over_seeds(self, b1, b2, noise):
        seeds, critical = 100, adaptive.critical_ratio(b1)
        path = adam(2000, b1=np.full(seeds, b1), b2=b2, noise=noise)
        crossing = np.argmax(path.kappa >= critical, axis=1)
        measured = np.array(
            [
                np.argmax(np.abs(g[c:]) >= np.sqrt(v[c + 1]))
                for g, v, c in zip(path.gradient, path.second_moment, crossing, strict=True)
            ]
        )
        size = noise * critical / RATE
        low, middle, high = (adaptive.lag_under_noise(size, b1, b2, probability=p) for p in (0.025, 0.5, 0.975))
        assert abs(np.median(measured) - middle) <= 2
        # Binomial: of 100 runs of probability 0.95, 89 or more with probability 0.996.
        assert np.sum((measured >= low) & (measured <= high)) >= 89

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

    def test_the_closed_form_holds_where_it_says(self):
        gain, b1, b2 = np.meshgrid([3.0, 8.0, 20.0, 60.0], [0.8, 0.9, 0.95], [0.99, 0.999, 0.9999])
        total, closed = adaptive.lag(gain, b1, b2), adaptive.lag_closed_form(gain, b1, b2)
        rise = adaptive.ratio_rate(b2) * total
        valid = (rise > 30 / adaptive.critical_ratio(b1) ** 2) & (rise < 0.3)
        assert valid.sum() > 10
        assert np.all(closed[valid] <= total[valid])
        assert np.all(total[valid] - closed[valid] <= 0.14 * total[valid] + 1)

    def test_arrays_broadcast(self):
        found = adaptive.lag(np.array([5.0, 10.0])[:, None], 0.9, np.array([0.99, 0.999, 0.9999]))
        assert found.shape == (2, 3)
        assert found[1, 1] == adaptive.lag(10.0, 0.9, 0.999)


class TestBursts:
    def test_period_from_b1_and_b2_alone(self):
        b1, b2 = np.array([0.7, 0.9]), 0.995
        start = np.tile([0.1, 0.13, 0.17, 0.22], 2) * 10
        path = adam(8000, learning_rate=0.3, b1=np.repeat(b1, 4), b2=b2, start=start)
        e = spike_events(path, np.repeat(adaptive.critical_ratio(b1), 4), settled=2500)
        measured = [np.mean((e.next_crossing - e.crossing)[e.lane // 4 == kind]) for kind in range(2)]
        cycle = adaptive.relaxation_cycle(b1, b2)
        np.testing.assert_allclose(measured[0], cycle.period[0], rtol=0.05)
        quiet = adaptive.relaxation_period(cycle.peak, cycle.trough, b2)
        np.testing.assert_allclose(quiet, cycle.period, rtol=1e-9)

    @pytest.mark.parametrize("b1", [0.8, 0.9])
    def test_they_occur_on_the_side_of_the_boundary_that_the_law_says(self, b1):
        boundary = adaptive.spike_boundary(b1)
        assert b1 != 0.9 or 0.01 < boundary < 0.02
        share = np.repeat([0.7, 1.4], 3)
        path = adam(12_000, b1=b1, b2=1 - boundary * share, start=np.tile([0.013, 0.031, 0.077], 2))
        late = np.abs(path.x[:, 6000:])[:, :5920].reshape(6, -1, 80).max(2)
        low, high = np.quantile(late, [0.01, 0.99], axis=1)
        assert list(high > 1.5 * low) == [True] * 3 + [False] * 3

    @pytest.mark.parametrize("power", [3.0, 4.0, 6.0])
    def test_flat_minima(self, power):
        b1 = 0.9
        critical = adaptive.superquadratic_critical_decay(power, b1)
        b2 = 1 - (1 - critical) * np.array([1.15, 0.85, 0.5])
        size = np.abs(adam(1000, b1=b1, b2=b2, power=power, start=0.1).x)
        rate = (size[:, 900] / size[:, 600]) ** (1 / 300)
        np.testing.assert_allclose(rate[1:], adaptive.superquadratic_rate(power, b2[1:]), rtol=2e-4)
        assert list(np.any(np.diff(size[:, 600:900]) > 0, axis=1)) == [True, False, False]


class TestTwoCycle:
    @pytest.mark.parametrize("b1", [0.0, 0.152, 0.192, 0.5, 0.9])
    @pytest.mark.parametrize("b2", [0.5, 0.99, 0.999])
    def test_multipliers_are_those_of_the_derivative_of_an_optax_step(self, b1, b2, x64):
        amplitude = adaptive.two_cycle_amplitude(RATE, b1)
        optimizer = optax.adam(RATE, b1=b1, b2=b2, eps=0.0)

        def step(z):
            state, *rest = optimizer.init(z[0])
            state = state._replace(count=jnp.int32(10**6), mu=z[1], nu=z[2])
            update, (after, *_) = optimizer.update(z[0], (state, *rest), z[0])
            return jnp.stack([z[0] + update, after.mu, after.nu])

        # The gradient is x; on the cycle it turns over, and with it the first moment.
        cycle = jnp.array([amplitude, -amplitude * (1 - b1) / (1 + b1), amplitude**2])
        turn = np.diag([-1.0, -1.0, 1.0])
        np.testing.assert_allclose(turn @ step(cycle), cycle, rtol=1e-12)
        found = np.linalg.eigvals(turn @ np.asarray(jax.jacobian(step)(cycle)))
        expected = adaptive.two_cycle_multipliers(b1, b2)
        np.testing.assert_allclose(np.sort_complex(found), np.sort_complex(expected), atol=1e-9)

    def test_stability_is_that_of_the_multipliers(self):
        b1, b2 = np.meshgrid(np.linspace(0, 0.95, 40), [0.01, 0.1, 0.5, 0.9, 0.99, 0.999])
        stable = np.abs(adaptive.two_cycle_multipliers(b1, b2)[..., 0]) < 1
        np.testing.assert_array_equal(adaptive.two_cycle_is_stable(b1, b2), stable)
        edge = adaptive.two_cycle_critical_momentum(b2)
        np.testing.assert_array_equal(stable, b1 < edge)
        assert adaptive.two_cycle_critical_momentum(1 - 1e-12) == pytest.approx(3 - 2 * np.sqrt(2), rel=1e-9)

    @pytest.mark.parametrize("b2", [0.9, 0.98])
    def test_rmsprop_breathes_and_settles(self, b2):
        path = simulate(optax.rmsprop, 1500, learning_rate=RATE, decay=b2, eps=1e-30, curvature=3.0, start=0.033)
        size = np.abs(path.x[0])
        assert 3.0 * size[-1] ** 2 / 2 == pytest.approx(3.0 * RATE**2 / 8, rel=1e-4)
        swing = size / adaptive.two_cycle_amplitude(RATE, 0.0) - 1
        small = np.flatnonzero(np.abs(swing) > 1e-3).max() + 1
        window = swing[small : small + round(5 / (1 - b2))]
        rows = np.stack([window[:-2], window[1:-1]], 1)
        (back, now), *_ = np.linalg.lstsq(rows, window[2:], rcond=None)
        root = np.roots([1, -now, -back])[0]
        assert 2 * np.pi / abs(np.angle(root)) == pytest.approx(adaptive.breathing_period(b2), rel=0.01)
        assert abs(root) == pytest.approx(np.sqrt(b2), rel=0.01)


class TestDamping:
    @pytest.mark.parametrize(
        ("factory", "decays", "eps", "b1", "inside"),
        [
            (optax.adam, {"b1": 0.9, "b2": 0.98}, "eps", 0.9, False),
            (functools.partial(optax.adam, eps=0.0), {"b1": 0.5, "b2": 0.98}, "eps_root", 0.5, True),
            (optax.rmsprop, {"decay": 0.98}, "eps", 0.0, True),
            (functools.partial(optax.rmsprop, eps_in_sqrt=False), {"decay": 0.98}, "eps", 0.0, False),
        ],
    )
    def test_motion_ends_at_the_floor(self, factory, decays, eps, b1, inside):
        floor = adaptive.epsilon_floor(RATE, 3.0, b1, inside_root=inside)
        values = {eps: floor * np.array([0.98, 1.02])}
        path = simulate(factory, 2500, learning_rate=RATE, curvature=3.0, start=0.1, noise=1e-14, **decays, **values)
        late = np.abs(path.x[:, -500:]).max(1) / RATE
        assert late[0] > 1e-4
        assert late[1] < 1e-9

    def test_noise_holds_the_edge(self):
        signal, b1 = (axis.ravel() for axis in np.meshgrid([0.5, 2.0, 5.0], [0.0, 0.5, 0.9]))
        path = adam(15_000, b1=b1, b2=0.998, start=RATE, noise=RATE / signal)
        measured = np.median(path.kappa[:, 5000:], axis=1)
        np.testing.assert_allclose(measured, adaptive.noise_edge(signal, b1), rtol=0.03)

    def test_limits_of_noise(self):
        assert adaptive.noise_edge(np.inf, 0.9) == pytest.approx(38, rel=1e-12)
        assert adaptive.noise_edge(1e-6, 0.9) == pytest.approx(1e-6, rel=1e-5)
        s = 2.0
        rmsprop = (-(s**2) + np.sqrt(s**4 + 16 * s**2)) / 4
        assert adaptive.noise_edge(s) == pytest.approx(rmsprop, rel=1e-12)


class TestUpdates:
    @staticmethod
    def updates_of(gradients, b1, b2):
        optimizer = optax.adam(1.0, b1=b1, b2=b2, eps=0.0)
        with jax.enable_x64(True):
            state, *rest = optimizer.init(jnp.zeros(()))
            state = state._replace(count=jnp.int32(10**6))

            def step(opt_state, gradient):
                update, opt_state = optimizer.update(gradient, opt_state, jnp.zeros(()))
                return opt_state, -update

            return np.asarray(jax.jit(lambda g: jax.lax.scan(step, (state, *rest), g))(jnp.asarray(gradients))[1])

    def test_after_a_silence(self):
        found = self.updates_of(np.ones(60), 0.9, 0.999)
        np.testing.assert_allclose(found, adaptive.jump_response(np.arange(1, 61), 0.9, 0.999), rtol=1e-10)
        assert np.argmax(found) + 1 == 12
        assert found.max() == pytest.approx(6.569, abs=5e-4)

    def test_the_bound_is_reached_and_never_passed(self):
        b1, b2 = 0.9, 0.99
        growing = self.updates_of((b2 / b1) ** np.arange(2000.0) * 1e-100, b1, b2)
        assert growing[-1] == pytest.approx(adaptive.update_bound(b1, b2), rel=1e-10)
        noise = self.updates_of(np.random.default_rng(0).standard_normal(20_000) ** 7, b1, b2)
        assert np.abs(noise[1000:]).max() < adaptive.update_bound(b1, b2)
        assert adaptive.update_bound(0.9, 0.8) == np.inf

    def test_under_noise(self):
        found = self.updates_of(np.random.default_rng(1).standard_normal(400_000), 0.9, 0.999)[5000:]
        assert np.sqrt(np.mean(found**2)) == pytest.approx(adaptive.update_rms(0.9), rel=0.02)

    def test_drift_of_the_counterexample(self):
        cycle = np.array([3.0, -1.0, -1.0])
        drift = adaptive.periodic_drift(cycle, 0.0, np.array([0.1, 0.9]))
        assert drift[0] < 0 < np.mean(cycle) / 3
        assert drift[1] > 0
        assert drift[0] == pytest.approx(-0.2270, abs=5e-5)
        for b1, b2 in ((0.0, 0.1), (0.5, 0.9)):
            found = self.updates_of(np.tile(cycle, 200), b1, b2)[-300:]
            assert found.mean() == pytest.approx(adaptive.periodic_drift(cycle, b1, b2), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: adaptive.critical_ratio(1.0), "critical_ratio: b1: expected 0 <= b1 < 1, got 1"),
        (lambda: adaptive.growth_factor(np.nan, 0.9), "growth_factor: kappa: expected a finite number"),
        (lambda: adaptive.crossing_time([1.0, -2.0], 0.9, 0.999), "kappa0: expected a positive number, got -2"),
        (lambda: adaptive.crossing_time(1.0, 0.9, 1.2), "b2: expected 0 < b2 <= 1, got 1.2"),
        (lambda: adaptive.crossing_time(1.0, 0.9, 0.999, step=0), "step: expected at least 1"),
        (lambda: adaptive.lag_closed_form(1.0, 0.0, 0.999), "use lag"),
        (lambda: adaptive.lag_under_noise(1e-6, 0.9, 0.999, probability=1.0), "probability"),
        (lambda: adaptive.overshoot(-1.0, 0.999), "overshoot: lag"),
        (lambda: adaptive.onset_time(0.0, 0.9, 0.999), "distance: expected a positive number"),
        (lambda: adaptive.relaxation_cycle(0.0, 0.999), "breathing_period"),
        (lambda: adaptive.breathing_period(0.1), "more than 1 / 9"),
        (lambda: adaptive.superquadratic_rate(2.0, 0.9), "power: expected more than 2"),
        (lambda: adaptive.epsilon_floor(-1.0, 1.0, 0.9), "learning_rate"),
        (lambda: adaptive.periodic_drift(np.zeros(3), 0.0, 0.9), "not all zero"),
        (lambda: adaptive.jump_response(0.5, 0.9, 0.999), "steps: expected at least 1"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_every_law_is_reached_from_the_package_and_says_where_it_holds():
    assert ll.adaptive is adaptive
    for name in adaptive.__all__:
        text = getattr(adaptive, name).__doc__
        if name != "Relaxation":
            assert "In practice" in text, name
            assert "Equation" in text, name
            assert "Raises ValueError" in text, name
