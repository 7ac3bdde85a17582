"""Mean-square stability: closed forms, dense Kronecker operators, and the optimizer itself simulated."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import lossland as ll
from lossland.problems.synthetic import quadratic, random_features
from lossland.stability.minibatch import mean_square_closed_form, noise_factor
from lossland.stability.second_moment import (
    T_QUANTILE,
    MeasuredGrowth,
    measured_critical_learning_rate,
    second_moment_growth,
    student_interval,
)

BETAS = [0.0, 0.5, 0.9, 0.99]


def ema(learning_rate, b):
    return optax.chain(optax.ema(b, debias=False), optax.scale_by_learning_rate(learning_rate))


def weighted(curvatures):
    """One parameter, examples of given curvatures."""
    data = np.asarray(curvatures, np.float64)
    return ll.Problem(lambda key: jnp.ones(1), lambda p, batch: 0.5 * jnp.mean(batch) * p[0] ** 2, data)


@functools.cache
def features():
    return random_features(5, 24, dimension=3)


@functools.cache
def curvatures():
    return ll.example_curvatures(features(), jnp.zeros(5))


def kronecker_radius(rate, step, factor):
    """Spectral radius of E[J (x) J], written out: `step(rate, hessian)` is the dense step of one batch."""
    data = np.asarray(features().data, np.float64)
    hessians = [np.outer(row, row) for row in data]
    mean = step(rate, sum(hessians) / len(hessians))
    total = (1 - factor) * np.kron(mean, mean)
    for hessian in hessians:
        one = step(rate, hessian)
        total += factor / len(hessians) * np.kron(one, one)
    return np.abs(np.linalg.eigvals(total)).max()


def heavy_ball_step(b, scale=1.0):
    def step(rate, hessian):
        eye = np.eye(len(hessian))
        return np.block([[eye - rate * scale * hessian, -rate * b * eye], [scale * hessian, b * eye]])

    return step


def decoupled_step(rate, hessian):
    eye = np.eye(len(hessian))
    return np.block([[(1 - 0.3 * rate) * eye - rate * hessian, -rate * 0.5 * eye], [hessian, 0.5 * eye]])


def decoupled(learning_rate):
    parts = optax.trace(0.5), optax.add_decayed_weights(0.3), optax.scale_by_learning_rate(learning_rate)
    return optax.chain(*parts)


ROWS = {
    "sgd": (optax.sgd, {}, heavy_ball_step(0.0)),
    "heavy_ball": (optax.sgd, {"momentum": 0.9}, heavy_ball_step(0.9)),
    "ema": (ema, {"b": 0.9}, heavy_ball_step(0.9, 0.1)),
    "decoupled": (decoupled, {}, decoupled_step),
}


class TestClosedForms:
    @pytest.mark.parametrize("variance", [0.0, 0.1, 1.0, 10.0, 1000.0, 1e6])
    @pytest.mark.parametrize("kind", ["heavy_ball", "ema"])
    def test_one_dimension_equals_the_noise_kernel(self, kind, variance):
        h = 1.7
        # A batch of one without replacement keeps all the spread of the two examples.
        problem = weighted([h - np.sqrt(variance), h + np.sqrt(variance)])
        found = ll.example_curvatures(problem, jnp.ones(1))
        for b in BETAS:
            factory, arguments = (optax.sgd, {"momentum": b}) if kind == "heavy_ball" else (ema, {"b": b})
            certificate = ll.mean_square_threshold(found, factory, batch_size=1, **arguments)
            expected = mean_square_closed_form(h, variance, b, ema=kind == "ema")
            assert certificate.critical_learning_rate == pytest.approx(expected, rel=1e-7)

    def test_decay_that_is_unstable_alone_ends_the_search_where_it_is_not(self):
        """EMA with decoupled decay d: learning rate = 2 (1 + b) / (h (1 - b) + d (1 + b)) for curvature h, no noise."""

        def decayed(learning_rate, b=0.9, decay=0.1):
            parts = optax.ema(b, debias=False), optax.add_decayed_weights(decay)
            return optax.chain(*parts, optax.scale_by_learning_rate(learning_rate))

        found = ll.example_curvatures(weighted([0.005, 0.015]), jnp.ones(1))
        certificate = ll.mean_square_threshold(found, decayed, batch_size=2)
        assert certificate.critical_learning_rate == pytest.approx(3.8 / (0.01 * 0.1 + 0.1 * 1.9), rel=1e-7)
        assert ll.mean_square_threshold(found, decayed, batch_size=1).critical_learning_rate < 3.8 / 0.191

    @pytest.mark.parametrize(("variance", "ema_limit", "heavy_ball_limit"), [(0.0, 38, 3.8), (1e9, 2e-9, 0.2e-9)])
    def test_limits(self, variance, ema_limit, heavy_ball_limit):
        """Without noise 2 (1 + b) / (1 - b) and 2 (1 + b); dominated by it 2, whatever b, and 2 (1 - b), over s^2."""
        assert mean_square_closed_form(1.0, variance, 0.9, ema=True) == pytest.approx(ema_limit, rel=1e-6)
        assert mean_square_closed_form(1.0, variance, 0.9) == pytest.approx(heavy_ball_limit, rel=1e-6)


class TestNoiseKernel:
    @pytest.mark.parametrize(
        ("name", "sampling"), [*((name, "without_replacement") for name in ROWS), ("heavy_ball", "with_replacement")]
    )
    def test_threshold_and_growth_are_those_of_the_dense_operator(self, name, sampling):
        factory, arguments, step = ROWS[name]
        for batch_size in (1, 6):
            factor = noise_factor(24, batch_size, sampling)
            certificate = ll.mean_square_threshold(
                curvatures(), factory, batch_size=batch_size, sampling=sampling, **arguments
            )
            rate = certificate.critical_learning_rate
            assert kronecker_radius(rate, step, factor) == pytest.approx(1, abs=1e-7)
            assert kronecker_radius(0.97 * rate, step, factor) < 1 < kronecker_radius(1.03 * rate, step, factor)
            assert certificate.noise_kernel_norm(rate) == pytest.approx(1, abs=1e-7)
            grown = certificate.growth(1.1 * rate)
            assert grown == pytest.approx(kronecker_radius(1.1 * rate, step, factor), rel=1e-7)

    def test_factor_is_the_variance_of_a_batch_mean(self):
        values = np.array([1.0, 4.0, 5.0, 9.0, 11.0])
        for size in range(1, 6):
            subsets = [np.mean(subset) for subset in itertools.combinations(values, size)]
            assert noise_factor(5, size, "without_replacement") == pytest.approx(np.var(subsets) / np.var(values))
            draws = [np.mean(draw) for draw in itertools.product(values, repeat=size)]
            assert noise_factor(5, size, "with_replacement") == pytest.approx(np.var(draws) / np.var(values))

    def test_threshold_rises_with_the_batch_to_that_of_the_mean(self):
        found = [ll.mean_square_threshold(curvatures(), optax.sgd, batch_size=size) for size in (1, 2, 5, 12, 24)]
        rates = [certificate.critical_learning_rate for certificate in found]
        assert np.all(np.diff(rates) > 0)
        assert rates[-1] == pytest.approx(2 / curvatures().eigenvalues[-1], rel=1e-12)
        assert found[0].mean_critical_learning_rate == rates[-1]

    def test_epochs_are_another_process(self):
        """A mean over all 24 orders of four examples: stabler than independent draws, or with momentum less stable."""
        values = [0.1, 0.2, 0.3, 4.0]

        def epoch_radius(rate, b):
            steps = [np.array([[1 - rate * h, -rate * b], [h, b]]) for h in values]
            orders = [
                functools.reduce(lambda total, one: one @ total, order) for order in itertools.permutations(steps)
            ]
            return np.abs(np.linalg.eigvals(np.mean([np.kron(order, order) for order in orders], axis=0))).max()

        found = ll.example_curvatures(weighted(values), jnp.ones(1))
        for b, stable in ((0.0, True), (0.5, False), (0.9, True)):
            rate = ll.mean_square_threshold(found, optax.sgd, batch_size=1, momentum=b).critical_learning_rate
            assert epoch_radius(rate, b) < 0.9 if stable else epoch_radius(rate, b) > 1.4

    def test_sum_over_examples_is_a_larger_step(self):
        data = features().data
        problem = ll.Problem(
            features().init, lambda p, batch: 0.5 * jnp.sum((batch @ p) ** 2), data, normalisation="sum"
        )
        summed = ll.mean_square_threshold(ll.example_curvatures(problem, jnp.zeros(5)), optax.sgd, batch_size=3)
        mean = ll.mean_square_threshold(curvatures(), optax.sgd, batch_size=3)
        assert summed.critical_learning_rate == pytest.approx(mean.critical_learning_rate / 3, rel=1e-9)

    def test_frozen_adam_is_ema_in_preconditioned_coordinates(self):
        diagonal = jnp.array([1.0, 2.0, 0.5, 4.0, 3.0])
        scaled = ll.Problem(
            features().init, lambda p, batch: 0.5 * jnp.mean((batch / jnp.sqrt(diagonal) @ p) ** 2), features().data
        )
        plain = ll.mean_square_threshold(ll.example_curvatures(scaled, jnp.zeros(5)), ema, batch_size=2, b=0.9)
        found = ll.example_curvatures(features(), jnp.zeros(5), preconditioner=diagonal)
        adam = ll.mean_square_threshold(found, optax.adam, batch_size=2, b1=0.9)
        assert adam.critical_learning_rate == pytest.approx(plain.critical_learning_rate, rel=1e-6)


class TestSimulation:
    @pytest.mark.parametrize("sampling", ["with_replacement", "without_replacement"])
    def test_growth_of_the_second_moment_is_predicted(self, sampling):
        certificate = ll.mean_square_threshold(curvatures(), optax.sgd, batch_size=2, sampling=sampling)
        rates = certificate.critical_learning_rate * np.array([1.0, 1.1])
        measured = second_moment_growth(
            features(), optax.sgd, jnp.zeros(5), rates, batch_size=2, sampling=sampling, num_runs=512, num_steps=200
        )
        for rate, values in zip(rates, measured.log_growth, strict=True):
            spread = 4 * values.std(ddof=1) / np.sqrt(len(values)) + 2e-3  # four errors, and the end of the burn-in
            assert values.mean() == pytest.approx(np.log(certificate.growth(rate)), abs=spread)

    @pytest.mark.long
    def test_typical_runs_decay_where_the_second_moment_grows(self):
        """A mean over independent runs misses the rare ones that carry it: what the selection is for."""
        problem, rate = weighted([0.5] * 9 + [10.0]), 0.312
        squares = np.mean((1 - rate * np.asarray(problem.data)) ** 2)
        found = ll.example_curvatures(problem, jnp.ones(1))
        certificate = ll.mean_square_threshold(found, optax.sgd, batch_size=1, sampling="with_replacement")
        assert certificate.growth(rate) == pytest.approx(squares, rel=1e-8)
        assert squares > 1.05
        measured = second_moment_growth(
            problem, optax.sgd, jnp.zeros(1), [rate], batch_size=1, sampling="with_replacement", num_runs=1024
        )
        assert measured.log_growth.mean() == pytest.approx(np.log(squares), abs=0.01)
        sweep = ll.Sweep({"learning_rate": [rate]}, 64, 300, 300, batch_size=1, sampling="with_replacement")
        losses = ll.run(problem, optax.sgd, sweep, progress=False)["loss"].values[0]
        assert np.median(losses[:, -1]) < 1e-6 * np.median(losses[:, 0])

    def test_search_finds_the_rate_without_being_told(self):
        certificate = ll.mean_square_threshold(curvatures(), optax.sgd, batch_size=4, momentum=0.9)
        bracket = (1e-3, 10.0)
        optimizer = ll.Optimizer(optax.sgd, momentum=0.9)
        found = measured_critical_learning_rate(
            features(), optimizer, jnp.zeros(5), bracket, batch_size=4, num_runs=256, num_steps=240
        )
        value, low, high = found.critical_learning_rate()
        assert value == pytest.approx(certificate.critical_learning_rate, rel=0.02)
        assert high / low < 1.04

    def test_quantiles_are_student_s(self):
        for count, quantile in T_QUANTILE.items():
            assert quantile == pytest.approx(scipy.stats.t.ppf(0.975, count - 1), rel=1e-3)
        mean, half = student_interval(np.array([1.0, 2.0, 4.0]))
        assert mean == pytest.approx(7 / 3)
        assert half == pytest.approx(4.303 * np.std([1, 2, 4], ddof=1) / np.sqrt(3))

    def test_crossing_is_interpolated_and_nan_off_the_grid(self):
        rates = np.array([1.0, np.e, np.e**2])
        growth = np.array([[-1.0, -1.0], [-0.5, -0.5], [0.5, 0.5]])
        assert MeasuredGrowth(rates, growth).critical_learning_rate()[0] == pytest.approx(np.exp(1.5))
        assert np.isnan(MeasuredGrowth(rates, np.abs(growth)).critical_learning_rate()[0])


class TestBatchSharpness:
    def test_full_batch_is_the_curvature_along_the_gradient(self):
        params = jnp.arange(1.0, 6.0)
        found = ll.batch_sharpness(features(), params, jax.random.key(0), batch_size=24, num_batches=2)
        data = np.asarray(features().data, np.float64)
        hessian = data.T @ data / 24
        gradient = hessian @ np.arange(1.0, 6.0)
        expected = gradient @ hessian @ gradient / (gradient @ gradient)
        assert float(found.ratio_of_means) == pytest.approx(expected, rel=1e-5)
        assert float(found.mean_of_ratios) == pytest.approx(expected, rel=1e-5)

    def test_a_batch_without_gradient_has_no_ratio(self):
        """f = h x^2 / 2 of one example in two: the ratio of every batch that has a gradient is h."""
        found = ll.batch_sharpness(weighted([0.0, 3.0]), jnp.ones(1), jax.random.key(0), batch_size=1, num_batches=64)
        assert found.mean_of_ratios == pytest.approx(3)
        assert found.mean_of_ratios_error == pytest.approx(0, abs=1e-6)

    def test_intervals_cover_the_exact_values(self):
        """Single examples: g.Hg / g.g = |phi|^2 for each, weighted by r^2 |phi|^2 in the ratio of means."""
        params = jnp.arange(1.0, 6.0)
        data = np.asarray(features().data, np.float64)
        squares, residuals = np.sum(data**2, 1), (data @ np.arange(1.0, 6.0)) ** 2
        exact = {
            "ratio_of_means": np.sum(residuals * squares**2) / np.sum(residuals * squares),
            "mean_of_ratios": squares.mean(),
        }
        assert exact["ratio_of_means"] != pytest.approx(exact["mean_of_ratios"], rel=0.02)
        keys = jax.random.split(jax.random.key(7), 400)
        estimate = jax.jit(jax.vmap(lambda key: ll.batch_sharpness(features(), params, key, batch_size=1)[:4]))
        columns = [np.asarray(column) for column in estimate(keys)]
        for name, (value, error) in zip(exact, (columns[:2], columns[2:]), strict=True):
            covered = np.mean(np.abs(value - exact[name]) <= 1.96 * error)
            # 95 % nominal; a binomial over 400 repetitions is within 3 errors of that.
            assert 0.95 - 3 * np.sqrt(0.95 * 0.05 / 400) - 0.01 <= covered <= 1, name

    def test_probe_records_both(self):
        sweep = ll.Sweep({"learning_rate": [0.01]}, 2, 4, 2, batch_size=4)
        runs = ll.run(features(), optax.sgd, sweep, ["loss", ll.batch_sharpness_probe(4, 16)], progress=False)
        assert runs["batch_sharpness_ratio_of_means"].shape == runs["loss"].shape
        assert bool((runs["batch_sharpness_mean_of_ratios_error"] > 0).all())


REFUSED = {
    "epochs": (r"sampling: expected .* independent draws at every step, got 'shuffled'", {"sampling": "shuffled"}),
    "too_large": (r"batch_size: expected at most the 24 examples there are, got 25", {"batch_size": 25}),
    "fraction": (r"batch_size: expected an integer of at least 1, got 0.5", {"batch_size": 0.5}),
    "rate": (r"learning_rate is what is sought", {"learning_rate": 0.1}),
    "unknown": (r"sgd: has no argument beta", {"beta": 0.1}),
    "adaptive": (r"divides by second moments, so example_curvatures needs", {"optimizer": optax.adam}),
    "sign": (r"has no linear threshold", {"optimizer": optax.sign_sgd}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_mean_square_threshold_is_refused_by_name(name):
    message, change = REFUSED[name]
    arguments = {"optimizer": optax.sgd, "batch_size": 4, **change}
    with pytest.raises(ValueError, match=message):
        ll.mean_square_threshold(curvatures(), arguments.pop("optimizer"), **arguments)


def test_other_bad_input_is_refused_by_name():
    coupled = ll.Problem(features().init, lambda p, batch: jnp.mean(batch @ p) ** 2, features().data)
    with pytest.raises(ValueError, match=r"expected a loss that is the mean over examples of losses of their own"):
        ll.example_curvatures(coupled, jnp.ones(5))
    with pytest.raises(ValueError, match="no direction of positive curvature"):
        ll.example_curvatures(quadratic([-1.0, -2.0]), jnp.ones(2))
    with pytest.raises(ValueError, match="preconditioner: expected positive"):
        ll.example_curvatures(features(), jnp.zeros(5), preconditioner=-jnp.ones(5))
    with pytest.raises(ValueError, match="minimum: expected parameters that fit every example"):
        second_moment_growth(features(), optax.sgd, jnp.ones(5), [0.1], batch_size=2)
    with pytest.raises(ValueError, match="linear in the distance to"):
        second_moment_growth(features(), optax.adam, jnp.zeros(5), [0.1], batch_size=2)
    with pytest.raises(ValueError, match="bracket: the second moment does not change from decay to growth"):
        measured_critical_learning_rate(
            features(), optax.sgd, jnp.zeros(5), (1e-3, 2e-3), batch_size=2, num_runs=64, num_steps=120
        )
    with pytest.raises(ValueError, match="repetitions: expected one of"):
        second_moment_growth(features(), optax.sgd, jnp.zeros(5), [0.1], batch_size=2, repetitions=7)
    with pytest.raises(ValueError, match="num_batches: expected an integer of at least 2"):
        ll.batch_sharpness(features(), jnp.ones(5), jax.random.key(0), batch_size=2, num_batches=1)
