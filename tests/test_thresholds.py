"""The certificate against closed forms, brute force and simulation, in float64 and never with its own Jacobian."""

import dataclasses
import threading
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from optax import contrib

import lossland as ll
from lossland.thresholds import Certificate, critical_curvatures, rationals

BETAS = [0.0, 0.5, 0.9, 0.95, 0.99]
DECAY = 0.7


def chain(*parts):
    """A factory of learning_rate and b from functions of b, with the learning rate last."""

    def build(learning_rate, b):
        return optax.chain(*(part(b) for part in parts), optax.scale_by_learning_rate(learning_rate))

    return build


def factory(of, beta=None, **fixed):
    """An optax factory as a function of learning_rate and b, which sets the argument named `beta`."""

    def build(learning_rate, b):
        return of(learning_rate=learning_rate, **({beta: b} if beta else {}), **fixed)

    return build


def ema(b):
    return (1 + b) / (1 - b)


# name: build(learning_rate, b), threshold times learning rate, where the stable interval begins, preconditioned
CLOSED_FORMS = {
    "sgd": (factory(optax.sgd), lambda b, r: 2.0, 0.0, False),
    "heavy_ball": (factory(optax.sgd, "momentum"), lambda b, r: 2 * (1 + b), 0.0, False),
    "nesterov": (factory(optax.sgd, "momentum", nesterov=True), lambda b, r: 2 * (1 + b) / (1 + 2 * b), 0.0, False),
    "ema": (chain(optax.ema), lambda b, r: 2 * ema(b), 0.0, False),
    "ema_by_hand": (chain(lambda b: optax.scale(1 - b), optax.trace), lambda b, r: 2 * ema(b), 0.0, False),
    "coupled_decay": (
        chain(lambda b: optax.add_decayed_weights(DECAY), optax.trace),
        lambda b, r: 2 * (1 + b) - DECAY * r,
        -DECAY,
        False,
    ),
    "decoupled_decay": (
        chain(optax.trace, lambda b: optax.add_decayed_weights(DECAY)),
        lambda b, r: (2 - DECAY * r) * (1 + b),
        None,
        False,
    ),
    "optimistic": (factory(optax.optimistic_gradient_descent), lambda b, r: 2 / 3, 0.0, False),
    "schedule_free": (factory(contrib.schedule_free_sgd, b1=0.9), lambda b, r: 2 / (1 - 0.9), 0.0, False),
    "adam": (factory(optax.adam, "b1"), lambda b, r: 2 * ema(b), 0.0, True),
    "nadam": (factory(optax.nadam, "b1"), lambda b, r: 2 * ema(b) / (1 + 2 * b), 0.0, True),
    "adamw": (factory(optax.adamw, "b1", weight_decay=DECAY), lambda b, r: (2 - DECAY * r) * ema(b), -DECAY, True),
    "amsgrad": (factory(optax.amsgrad, "b1"), lambda b, r: 2 * ema(b), 0.0, True),
    # without momentum optax's AdaBelief compares the gradient with itself: it has no second moment
    "adabelief": (factory(optax.adabelief, "b1"), lambda b, r: 2 * ema(b) if b else np.nan, 0.0, True),
    "adamax": (factory(optax.adamax, "b1"), lambda b, r: 2 * ema(b), 0.0, True),
    "yogi": (factory(optax.yogi, "b1"), lambda b, r: 2 * ema(b), 0.0, True),
    "radam": (factory(optax.radam, "b1"), lambda b, r: 2 * ema(b), 0.0, True),
    "novograd": (factory(optax.novograd, "b1"), lambda b, r: 2 * (1 + b), 0.0, True),
    "adan": (
        factory(optax.adan, "b1", b2=0.92),
        lambda b, r: 2 / (1 / ema(b) + 0.08 * 2 / ema(0.92)),
        0.0,
        True,
    ),
    "ademamix": (
        factory(contrib.ademamix, "b1", b3=0.999, alpha=2.0),
        lambda b, r: 2 / (1 / ema(b) + 2.0 / ema(0.999)),
        0.0,
        True,
    ),
    "adagrad": (factory(optax.adagrad), lambda b, r: 2.0, 0.0, True),
    "rmsprop": (factory(optax.rmsprop), lambda b, r: 2.0, 0.0, True),
    "rmsprop_momentum": (factory(optax.rmsprop, "momentum", eps_in_sqrt=False), lambda b, r: 2 * (1 + b), 0.0, True),
    "rmsprop_centered": (factory(optax.rmsprop, centered=True), lambda b, r: 2.0, 0.0, True),
    # divides the gradient by the second moment of the step before, about a mean with decay b1
    "acprop": (factory(contrib.acprop, "b1", b2=0.6), lambda b, r: 2.0, 0.0, True),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_threshold_is_the_closed_form(name):
    build, closed_form, _, _ = CLOSED_FORMS[name]
    rate, b = (grid.ravel() for grid in np.meshgrid([1e-3, 0.1, 0.9], BETAS))
    critical = critical_curvatures(build, {"learning_rate": rate, "b": b})
    expected = np.array([closed_form(b_, rate_) / rate_ for rate_, b_ in zip(rate, b, strict=True)])
    np.testing.assert_allclose(critical, expected, rtol=1e-9)


@pytest.mark.parametrize(
    "name", ["heavy_ball", "ema", "coupled_decay", "decoupled_decay", "adamw", "nadam", "adan", "novograd"]
)
def test_onset_is_a_sign_flip_that_grows_only_beyond_the_threshold(name):
    build, closed_form, lower, preconditioned = CLOSED_FORMS[name]
    certificate = ll.threshold(build, learning_rate=0.1, b=0.9)
    critical = certificate.critical_curvature
    assert critical == pytest.approx(closed_form(0.9, 0.1) / 0.1, rel=1e-9)
    assert certificate.preconditioned is preconditioned
    assert certificate.multiplier == pytest.approx(-1, abs=1e-12)
    assert certificate.period == pytest.approx(2, abs=1e-12)
    if lower is not None:
        assert certificate.lower_curvature == pytest.approx(lower, abs=1e-9)
    below, above = certificate.growth(critical * np.array([0.999, 1.001]))
    assert below < 1 < above
    assert certificate.growth(certificate.lower_curvature - 1e-3) > 1
    assert certificate.growth(certificate.lower_curvature + 1e-3) < 1


def test_numbers_of_the_public_example():
    certificate = ll.threshold(optax.sgd, learning_rate=0.1, momentum=0.9)
    assert certificate.critical_curvature == pytest.approx(38, rel=1e-12)
    assert certificate.period == 2
    assert certificate.growth(certificate.critical_curvature / 2) == pytest.approx(np.sqrt(0.9), rel=1e-12)
    lines = str(certificate).splitlines()
    assert len(lines) == 4
    assert lines[0] == "stable for 0 < curvature < 38"
    with pytest.raises(dataclasses.FrozenInstanceError):
        certificate.period = 3.0


def frozen_adam_amplitudes(curvature, b1, learning_rate, num_steps):
    """|x| along optax.adam on a quadratic with its second moment put back to 1 after every step, eps = 0."""
    transformation = optax.adam(learning_rate, b1=b1, b2=0.999, eps=0.0)
    divisor = np.sqrt(0.999)  # the moment decays once before it divides; the gradient adds nothing at |x| = 1e-30
    state = transformation.init(jnp.zeros(1))
    state = (state[0]._replace(count=jnp.asarray(2**30, jnp.int32), nu=jnp.ones(1)), *state[1:])

    def step(carry, _):
        x, state = carry
        updates, state = transformation.update(curvature * divisor * x, state, x)
        state = (state[0]._replace(nu=jnp.ones(1)), *state[1:])
        x = optax.apply_updates(x, updates)
        return (x, state), jnp.abs(x[0])

    return np.asarray(jax.lax.scan(step, (jnp.full(1, 1e-100), state), length=num_steps)[1])


@pytest.mark.parametrize(("times", "published"), [(1.02, 1.2639), (1.2, 2.2621)])
def test_frozen_adam_grows_at_the_predicted_rate(times, published, x64):
    certificate = ll.threshold(optax.adam, learning_rate=0.01, b1=0.9)
    curvature = times * certificate.critical_curvature
    trace = 1.9 - 0.1 * curvature * 0.01
    root = max(abs(np.roots([1, -trace, 0.9])))
    assert certificate.growth(curvature) == pytest.approx(root, rel=1e-9)
    assert certificate.growth(curvature) == pytest.approx(published, abs=5e-5)
    amplitudes = frozen_adam_amplitudes(curvature, 0.9, 0.01, 120)
    assert (amplitudes[-1] / amplitudes[-21]) ** (1 / 20) == pytest.approx(root, rel=1e-6)


def test_frozen_moments_do_not_hide_decay(x64):
    certificate = ll.threshold(optax.adam, learning_rate=0.01, b1=0.5, b2=0.999)
    middle = certificate.critical_curvature / 2
    assert certificate.growth(middle) == pytest.approx(np.sqrt(0.5), rel=1e-9)  # 0.7, far below b2
    assert certificate.growth(np.full((2, 3), middle)).shape == (2, 3)


def test_rmsprop_settles_on_the_cycle_at_its_threshold(x64):
    """With a live second moment RMSprop ends on a two-cycle of amplitude learning_rate / 2, right at the threshold."""
    transformation = optax.rmsprop(0.1, decay=0.9, eps=0.0)

    def step(carry, _):
        x, state = carry
        updates, state = transformation.update(3.0 * x, state, x)
        return (optax.apply_updates(x, updates), state), None

    start = jnp.ones(1)
    (x, state), _ = jax.lax.scan(step, (start, transformation.init(start)), length=2000)
    ratio = 3.0 / np.sqrt(float(state[0].nu[0]))
    assert abs(float(x[0])) == pytest.approx(0.05, rel=1e-9)
    assert ratio == pytest.approx(ll.threshold(optax.rmsprop, learning_rate=0.1).critical_curvature, rel=1e-9)


def delayed(learning_rate, delay_weight):
    """An optimizer in no table: steps along a mean of this gradient, the one two steps ago, and a running product."""

    def init(params):
        return {"one": jnp.zeros_like(params), "two": jnp.zeros_like(params), "mean": jnp.zeros_like(params)}

    def update(gradient, state, params=None):
        mean = 0.8 * state["mean"] + 0.3 * gradient - 0.1 * state["one"]
        step = gradient + delay_weight * state["two"] + mean
        return -learning_rate * step, {"one": gradient, "two": state["one"], "mean": mean}

    return optax.GradientTransformation(init, update)


UNLISTED = {
    "two_means": lambda: optax.chain(optax.ema(0.9), optax.ema(0.95), optax.scale(-0.1)),
    "three_parts": lambda: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.trace(0.8, nesterov=True),
        optax.add_decayed_weights(0.3),
        optax.ema(0.6),
        optax.scale(-0.05),
    ),
    "own": lambda: delayed(0.1, 0.9),
    "wrapped": lambda: optax.apply_if_finite(
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.3, momentum=0.95, nesterov=True), 3
    ),
}


@pytest.mark.parametrize("name", UNLISTED)
@pytest.mark.parametrize("times", [0.97, 1.03])
def test_unlisted_optimizer_agrees_with_simulation(name, times, x64):
    transformation = UNLISTED[name]()
    certificate = ll.threshold(transformation)
    curvature = times * certificate.critical_curvature

    def step(carry, _):
        x, state = carry
        updates, state = transformation.update(curvature * x, state, x)
        x = optax.apply_updates(x, updates)
        return (x, state), x[0]

    start = jnp.full(1, 1e-60)
    _, path = jax.lax.scan(step, (start, transformation.init(start)), length=6000)
    path = np.asarray(path)
    amplitude = np.maximum.reduceat(np.abs(path), np.arange(0, 6000, 500))
    assert np.all(np.diff(np.log(amplitude)) > 0) if times > 1 else np.all(np.diff(np.log(amplitude)) < 0)
    peaks = np.flatnonzero((np.abs(path[1:-1]) >= np.abs(path[:-2])) & (np.abs(path[1:-1]) > np.abs(path[2:]))) + 1
    peaks = peaks[peaks > 1000] if len(peaks) > 100 else np.arange(1000, 6000)
    measured = np.polyfit(peaks, np.log(np.abs(path[peaks])), 1)[0]
    assert measured == pytest.approx(np.log(certificate.growth(curvature)), rel=0.01)


def test_complex_onset_oscillates_with_the_certified_period(x64):
    transformation = UNLISTED["two_means"]()
    certificate = ll.threshold(transformation)
    assert abs(certificate.multiplier) == pytest.approx(1, abs=1e-12)
    assert abs(certificate.multiplier.imag) > 0.01

    def step(carry, _):
        x, state = carry
        updates, state = transformation.update(certificate.critical_curvature * x, state, x)
        x = optax.apply_updates(x, updates)
        return (x, state), x[0]

    start = jnp.full(1, 1e-3)
    _, path = jax.lax.scan(step, (start, transformation.init(start)), length=9000)
    late = np.asarray(path)[1000:]
    crossings = np.flatnonzero(np.diff(np.sign(late)))
    measured = 2 * (crossings[-1] - crossings[0]) / (len(crossings) - 1)
    assert measured == pytest.approx(certificate.period, rel=1e-3)
    # neither grows nor decays
    assert np.abs(late[-1000:]).max() / np.abs(late[:1000]).max() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "decays",
    [(0.9, 0.95), (0.5, 0.6, 0.7), (0.99, 0.98, 0.97, 0.9, 0.8), (0.995, 0.995, 0.99, 0.0), (0.99,) * 8],
)
def test_cascade_of_means_obeys_its_phase_condition(decays):
    """h = -(w - 1) prod (w - b) / (rate prod (1 - b) w) is real and positive: one equation for the angle of w."""
    angle = scipy.optimize.brentq(
        lambda t: np.angle(np.exp(1j * t) - 1) + sum(np.angle(1 - b * np.exp(-1j * t)) for b in decays) - np.pi,
        *(1e-4, np.pi - 1e-4),
        xtol=1e-15,
    )
    w = np.exp(1j * angle)
    expected = abs(w - 1) * np.prod([abs(w - b) / (1 - b) for b in decays]) / 0.1
    certificate = ll.threshold(optax.chain(*(optax.ema(b) for b in decays), optax.scale(-0.1)))
    assert certificate.critical_curvature == pytest.approx(expected, rel=1e-9)
    assert certificate.period == pytest.approx(2 * np.pi / angle, rel=1e-9)


def test_rationals_decide_where_eigenvalues_cannot():
    """Roots inside a disc, exactly: a multiple root whose floats scatter by a per cent."""
    polynomial = [Fraction(1)]
    for _ in range(8):  # (w - 0.99)^8
        shifted = [*polynomial, Fraction(0)]
        polynomial = [x - Fraction(99, 100) * y for x, y in zip(shifted, [Fraction(0), *polynomial], strict=True)]
    assert max(abs(np.roots([float(x) for x in polynomial]))) > 1
    assert rationals.roots_inside(polynomial)
    assert rationals.roots_inside(polynomial, Fraction(991, 1000))
    assert not rationals.roots_inside(polynomial, Fraction(99, 100))
    generator = np.random.default_rng(0)
    for _ in range(50):
        a, b = generator.normal(size=(5, 5)), generator.normal(size=5)
        p, q = rationals.rational_characteristic(a, b)
        curvature = generator.normal()
        matrix = a + curvature * np.outer(b, np.eye(5)[0])
        mixed = [x - Fraction(curvature) * y for x, y in zip(p, q, strict=True)]
        np.testing.assert_allclose([float(x) for x in mixed], np.poly(matrix), rtol=1e-9, atol=1e-9)
        radius = Fraction(float(abs(np.linalg.eigvals(matrix)).max()))
        assert rationals.roots_inside(mixed, radius * Fraction(1001, 1000))
        assert not rationals.roots_inside(mixed, radius * Fraction(999, 1000))


def linear_system(**entries):
    """x <- x - c m - d g with m <- M m + k g, for any matrices, as an optax transformation."""

    def init(params):
        return jnp.zeros(2, params.dtype)

    def update(gradient, m, params=None):
        first = entries["m00"] * m[0] + entries["m01"] * m[1] + entries["k0"] * gradient[0]
        second = entries["m10"] * m[0] + entries["m11"] * m[1] + entries["k1"] * gradient[0]
        m = jnp.stack([first, second])
        return -(entries["c0"] * m[:1] + entries["c1"] * m[1:] + entries["d"] * gradient), m

    return optax.GradientTransformation(init, update)


def test_random_linear_systems_agree_with_brute_force():
    """The first curvature at which the spectral radius rises through 1, by scan and bisection of J written out here."""
    generator = np.random.default_rng(3)
    names = ["m00", "m01", "m10", "m11", "k0", "k1", "c0", "c1", "d"]
    values = dict(zip(names, generator.normal(size=(9, 80)), strict=True))
    matrices = np.stack([[values["m00"], values["m01"]], [values["m10"], values["m11"]]]).transpose(2, 0, 1)
    shrink = 0.95 / np.maximum(np.abs(np.linalg.eigvals(matrices)).max(1), 0.95)
    for key in names[:4]:
        values[key] = values[key] * shrink
    matrices = matrices * shrink[:, None, None]

    def radius(lane, curvature):
        k = np.array([values["k0"][lane], values["k1"][lane]])
        c = np.array([values["c0"][lane], values["c1"][lane]])
        j = np.zeros((*np.shape(curvature), 3, 3))
        j[..., 0, 0] = 1 - curvature * (c @ k + values["d"][lane])
        j[..., 0, 1:] = -c @ matrices[lane]
        j[..., 1:, 0] = np.multiply.outer(curvature, k)
        j[..., 1:, 1:] = matrices[lane]
        return np.abs(np.linalg.eigvals(j)).max(-1)

    grid = np.geomspace(1e-4, 1e3, 1500)
    expected = np.full(80, np.nan)
    for lane in range(80):
        stable = radius(lane, grid) <= 1
        leaves = np.flatnonzero(stable[:-1] & ~stable[1:])
        if len(leaves):
            low, high = grid[leaves[0]], grid[leaves[0] + 1]
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (middle, high) if radius(lane, middle) <= 1 else (low, middle)
            expected[lane] = low
    assert 20 < np.isfinite(expected).sum() < 80
    np.testing.assert_allclose(critical_curvatures(linear_system, values), expected, rtol=1e-9)


def test_grid_equals_single_certificates_and_is_compiled_once(compilations):
    def build(learning_rate, b1):
        return optax.adamw(learning_rate, b1=b1, weight_decay=0.1)

    generator = np.random.default_rng(0)
    rate, b1 = generator.uniform(0.001, 1, 1000), generator.uniform(0, 0.99, 1000)
    critical = critical_curvatures(build, {"learning_rate": rate, "b1": b1})
    assert critical.shape == (1000,)
    assert critical.dtype == np.float64
    np.testing.assert_allclose(critical, (2 - 0.1 * rate) * (1 + b1) / (1 - b1) / rate, rtol=1e-9)
    before = len(compilations)
    critical_curvatures(build, {"learning_rate": rate[::-1], "b1": b1})
    assert len(compilations) == before
    for i in (0, 999):
        single = ll.threshold(build, learning_rate=rate[i], b1=b1[i])
        assert single.critical_curvature == pytest.approx(critical[i], rel=1e-13)
    before = len(compilations)
    ll.threshold(build, learning_rate=0.3, b1=0.3)
    assert len(compilations) == before


def test_grid_marks_points_without_threshold():
    rate = np.array([0.1, 0.0, -0.1, 0.2])
    np.testing.assert_allclose(critical_curvatures(optax.sgd, {"learning_rate": rate}), [20, np.nan, np.nan, 10])
    b1 = np.array([0.9, 1.0])  # at 1 the bias correction divides by zero
    grid = {"learning_rate": np.full(2, 0.1), "b1": b1}
    np.testing.assert_allclose(critical_curvatures(optax.adam, grid), [380, np.nan])
    assert np.isnan(critical_curvatures(optax.sign_sgd, {"learning_rate": rate[:1]})).all()
    assert critical_curvatures(optax.sgd, {"learning_rate": rate[:0]}).shape == (0,)


def test_global_precision_is_left_alone_in_any_thread():
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(ll.threshold(optax.sgd, learning_rate=0.3).critical_curvature))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == pytest.approx([2 / 0.3] * 2, rel=1e-14)
    assert jnp.zeros(1).dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "amplitude", "period"),
    [("sign_sgd", (0.985, 1.0), (2, 2)), ("lion", (1.0, 2.0), (2, 3)), ("rprop", (0, 1e-4), (2, 20))],
)
def test_sign_like_updates_have_a_limit_cycle_instead(name, amplitude, period):
    rate = 0.01
    certificate = ll.threshold(getattr(optax, name), learning_rate=rate)
    assert certificate.critical_curvature is None
    assert amplitude[0] <= certificate.limit_cycle_amplitude / rate <= amplitude[1]
    assert period[0] <= certificate.period <= period[1]
    assert np.isnan(certificate.growth(3.0))
    assert np.isnan(certificate.growth([1.0, 2.0])).shape == (2,)
    assert str(certificate).startswith("no linear threshold\nlimit cycle of amplitude")


@pytest.mark.parametrize(("b2", "curvature"), [(0.99, 0.01), (0.99, 100.0), (0.9, 3.0)])
def test_cycle_of_lion_is_that_of_its_rule_at_any_curvature(b2, curvature):
    """x <- x - rate sign(b1 m + (1 - b1) g), m <- b2 m + (1 - b2) g, written out: no start ends on a wider cycle."""
    rate, b1 = 0.01, 0.9
    certificate = ll.threshold(optax.lion, learning_rate=rate, b1=b1, b2=b2)
    x, m, late = rate * (3 + (np.arange(64) + 0.5) / 64), np.zeros(64), []
    for step in range(4096):
        gradient = curvature * x
        x = x - rate * np.sign(b1 * m + (1 - b1) * gradient)
        m = b2 * m + (1 - b2) * gradient
        if step >= 2048:
            late.append(x)
    widest = np.abs(late).max()
    assert certificate.limit_cycle_amplitude == pytest.approx(widest, rel=0.02)
    assert rate < widest < 4 * rate


def test_limit_cycle_does_not_depend_on_curvature_and_scales_with_the_rate():
    small, large = (ll.threshold(optax.signum, learning_rate=rate, beta=0.9) for rate in (0.01, 0.16))
    assert large.limit_cycle_amplitude / small.limit_cycle_amplitude == pytest.approx(16, rel=1e-6)
    assert large.period == pytest.approx(small.period)


def test_nothing_to_certify():
    for transformation in (optax.set_to_zero(), optax.sgd(0.0), optax.sgd(0.1, momentum=1.1)):
        certificate = ll.threshold(transformation)
        assert certificate.critical_curvature is None
        assert certificate.limit_cycle_amplitude is None
        assert "no positive curvature" in certificate.condition or "does not answer" in certificate.condition
    assert ll.threshold(optax.sgd(0.1, momentum=1.1)).growth(1.0) > 1


@pytest.mark.parametrize(
    "factory_",
    [
        optax.scale_by_adam,
        optax.scale_by_lion,
        optax.scale_by_sign,
        optax.identity,
        optax.trace,
        lambda: optax.sgd(-0.1),
        lambda: optax.sign_sgd(-0.1),
    ],
)
def test_without_a_learning_rate_there_is_nothing_to_certify(factory_):
    arguments = {"decay": 0.9} if factory_ is optax.trace else {}
    with pytest.raises(ValueError, match=r"goes up the gradient.*scale_by_learning_rate"):
        ll.threshold(factory_, **arguments)


def is_matrix(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def groups(params):
    return jax.tree.map(lambda leaf: "matrix" if leaf.ndim > 1 else "vector", params)


@pytest.mark.parametrize(
    "transformation",
    [
        optax.adamw(0.1, weight_decay=0.7, mask=is_matrix),
        optax.partition({"matrix": optax.sgd(0.1, momentum=0.9), "vector": optax.sgd(0.01, momentum=0.9)}, groups),
    ],
)
def test_rules_that_depend_on_the_number_of_axes_are_refused(transformation):
    with pytest.raises(ValueError, match="matrices by another rule than vectors"):
        ll.threshold(transformation)


def test_schedules_stand_at_the_given_step():
    schedule = optax.linear_schedule(0.1, 0.05, 100)
    for factory_ in (optax.adam, optax.inject_hyperparams(optax.adam)):
        for step, rate in ((0, 0.1), (50, 0.075), (1000, 0.05)):
            certificate = ll.threshold(factory_, learning_rate=schedule, step=step)
            assert certificate.critical_curvature == pytest.approx(38 / rate, rel=1e-6)  # optax's schedules are float32
            assert certificate.condition.endswith(f"schedules at step {step}") == (step > 0)
    grid = critical_curvatures(lambda b1: optax.adam(schedule, b1=b1), {"b1": np.array([0.5, 0.9])}, step=50)
    np.testing.assert_allclose(grid, [6 / 0.075, 38 / 0.075], rtol=1e-6)
    with pytest.raises(ValueError, match="follows a schedule; pass step="):
        ll.threshold(optax.adam, learning_rate=schedule)
    with pytest.raises(ValueError, match="follows a schedule; pass step="):
        ll.threshold(optax.sign_sgd, learning_rate=schedule)


class Counted(NamedTuple):
    """State of an optimizer written by hand: a count beside the moments."""

    count: jax.Array
    mean: jax.Array
    square: jax.Array


def counted(rate_at, corrected, b1=0.9, b2=0.999):
    """Adam, or a mean of gradients (b2 = None), with one count for its corrections and its learning rate."""

    def init(params):
        return Counted(jnp.zeros((), jnp.int32), jnp.zeros_like(params), jnp.zeros_like(params))

    def update(gradient, state, params=None):
        count = state.count + 1
        mean = b1 * state.mean + (1 - b1) * gradient
        square = (b2 or 0) * state.square + (1 - (b2 or 0)) * gradient**2 if b2 else state.square
        now = count.astype(gradient.dtype)
        m = mean / (1 - b1**now) if corrected else mean
        root = jnp.sqrt(square / (1 - b2**now) if corrected else square) if b2 else 1.0
        return -rate_at(now) * m / root, Counted(count, mean, square)

    return optax.GradientTransformation(init, update)


def test_a_count_beside_moments_corrects_them_or_drives_a_schedule():
    """By what it does, where optax's conventions are not known: an optimizer written by hand."""
    by_hand = counted(lambda now: 0.1, corrected=True)
    assert ll.threshold(by_hand).critical_curvature == pytest.approx(380, rel=1e-9)
    assert ll.threshold(by_hand, step=3).critical_curvature == pytest.approx(380, rel=1e-9)
    assert ll.threshold(counted(lambda now: 0.1, corrected=False)).critical_curvature == pytest.approx(380, rel=1e-9)
    for b2 in (None, 0.999):
        halving = counted(lambda now: 0.1 * 0.5 ** (now / 100), corrected=False, b2=b2)
        at_step = ll.threshold(halving, step=99)  # the hundredth update
        assert at_step.critical_curvature == pytest.approx(38 / 0.05, rel=1e-9)
        assert "schedules at step 99" in at_step.condition
        with pytest.raises(ValueError, match="follows a schedule; pass step="):
            ll.threshold(halving)


@pytest.mark.parametrize(
    "clip",
    [optax.clip_by_global_norm(1e-3), optax.clip(1e-3), optax.clip_by_block_rms(1e-3), optax.adaptive_grad_clip(1e-2)],
    ids=["global_norm", "value", "block_rms", "adaptive"],
)
def test_clipping_is_inactive_at_the_minimum(clip):
    certificate = ll.threshold(optax.chain(clip, optax.sgd(0.1, momentum=0.5)))
    assert certificate.critical_curvature == pytest.approx(30, rel=1e-12)


def test_clipping_does_not_hide_a_second_moment():
    certificate = ll.threshold(optax.chain(optax.clip_by_global_norm(1e-3), optax.adam(0.1)))
    assert certificate.preconditioned
    assert certificate.critical_curvature == pytest.approx(380, rel=1e-9)


def test_single_precision_state_keeps_six_digits():
    certificate = ll.threshold(optax.adam, learning_rate=0.1, mu_dtype=jnp.float32)
    assert certificate.critical_curvature == pytest.approx(380, rel=1e-6)


def test_lossland_optimizer_is_accepted_with_open_arguments():
    optimizer = ll.Optimizer(optax.sgd, momentum=0.9)
    assert ll.threshold(optimizer, learning_rate=0.1) == ll.threshold(optax.sgd, learning_rate=0.1, momentum=0.9)
    assert isinstance(ll.threshold(optimizer.with_arguments(learning_rate=0.1)), Certificate)


def stateless(function):
    return optax.stateless(lambda gradient, params: function(gradient))


def on_the_host(gradient):
    return jnp.asarray(np.asarray(gradient) * 0.1)


def mean_of_two_moments():
    """Divides by the geometric mean of two second moments: neither of them is the preconditioner."""

    def update(gradient, moments, params=None):
        moments = [
            decay * moment + (1 - decay) * gradient**2 for decay, moment in zip((0.9, 0.99), moments, strict=True)
        ]
        return -0.1 * gradient / ((moments[0] * moments[1]) ** 0.25 + 1e-8), moments

    return optax.GradientTransformation(lambda params: [jnp.zeros(1), jnp.zeros(1)], update)


def complex_state():
    return optax.GradientTransformation(
        lambda params: jnp.zeros(1, jnp.complex128), lambda g, state, params=None: (-0.1 * state.real, state + 1j * g)
    )


REFUSED = {
    "no_rate": (optax.sgd, {}, r"sgd: needs the arguments learning_rate, got none; pass learning_rate="),
    "no_rate_wrapped": (ll.Optimizer(optax.sgd), {"momentum": 0.9}, r"learning_rate"),
    "unknown": (optax.sgd, {"learning_rate": 0.1, "beta": 1}, r"no argument beta; it has learning_rate, momentum, nes"),
    "built": (optax.sgd(0.1), {"momentum": 0.9}, r"got momentum for an optimizer that is built already"),
    "not_finite": (optax.sgd, {"learning_rate": np.nan}, r"learning_rate must be finite, got nan"),
    "infinite": (optax.sgd, {"learning_rate": 0.1, "momentum": np.inf}, r"momentum must be finite, got inf"),
    "no_optimizer": (3, {}, r"optimizer: expected an optax factory such as optax.sgd, .* got 3"),
    "no_transformation": (lambda: 3, {}, r"expected to return an optax.GradientTransformation, got 3"),
    "step": (
        optax.sgd,
        {"learning_rate": 0.1, "step": -1},
        r"step must be an integer from 0 to 2\^31 - 1 or None, got -1",
    ),
    "complex_state": (complex_state(), {}, r"state is complex \(complex128\), expected real"),
    "complex_update": (stateless(lambda g: -0.1j * g), {}, r"the update is complex"),
    "on_the_host": (stateless(on_the_host), {}, r"could not be traced and differentiated \(TracerArrayConversionError"),
    "square_root": (stateless(lambda g: -jnp.sign(g) * jnp.sqrt(jnp.abs(g))), {}, r"not differentiable at the minimum"),
    "one_sided": (stateless(lambda g: -0.1 * jnp.maximum(g, 0.0)), {}, r"not differentiable at the minimum"),
    "drift": (stateless(lambda g: -0.1 * g + 0.01), {}, r"moves the parameter at zero gradient"),
    "noise": (optax.chain(optax.sgd(0.1), optax.add_noise(0.1, 0.5, 0)), {}, r"rng_key is a random key"),
    "periodic": (optax.MultiSteps(optax.sgd(0.1), 4), {}, r"random or periodic update"),
    "alternating": (optax.chain(optax.apply_every(2), optax.sgd(0.1)), {}, r"random or periodic update"),
    "trust_ratio": (optax.lamb, {"learning_rate": 0.1}, r"scaled by the parameter itself"),
    "parameter_scale": (optax.adafactor, {"learning_rate": 0.1}, r"the step is scaled by the parameter"),
    "distance": (contrib.dowg, {}, r"the distance it has travelled"),
    "largest_gradient": (contrib.cocob, {}, r"the largest gradient seen"),
    "two_moments": (optax.adadelta, {"learning_rate": 0.1}, r"not inversely proportional to the root"),
    "mean_of_moments": (mean_of_two_moments(), {}, r"not inversely proportional to the root"),
    "growing_steps": (contrib.madgrad, {"learning_rate": 0.1}, r"follows a schedule"),
    "cube_root": (contrib.madgrad, {"learning_rate": 0.1, "step": 10}, r"not inversely proportional to the root"),
    "matrices": (contrib.muon, {"learning_rate": 0.1}, r"treats matrices by another rule than vectors"),
    "plateau": (
        optax.chain(optax.sgd(0.1), contrib.reduce_on_plateau()),
        {},
        r"missing 1 required .*value.*depends on the loss has no threshold of curvature alone",
    ),
    "names": (
        optax.partition({"a": optax.sgd(0.1), "b": optax.adam(0.1)}, {"w": "a", "v": "b"}),
        {},
        r"names of parameters certify each by itself",
    ),
    "line_search": (optax.lbfgs, {}, r"missing 3 required keyword-only arguments"),
    "half_precision": (optax.sgd(0.1, momentum=0.9, accumulator_dtype=jnp.bfloat16), {}, r"less than single precision"),
    "not_a_number": (optax.adam, {"learning_rate": 0.1, "b1": 1.0}, r"not finite at a vanishing gradient"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_certified_is_refused_by_name(name):
    optimizer, arguments, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        ll.threshold(optimizer, **arguments)


def halved_at_100(count):
    return jnp.where(count < 100, 0.1, 0.01)


def last_gradient(rate_at, dtype=jnp.int32):
    """Gradient descent whose state is (count, last gradient)."""

    def init(params):
        return jnp.zeros((), dtype), jnp.zeros_like(params)

    def update(gradient, state, params=None):
        return -rate_at(state[0]) * gradient, (state[0] + 1, gradient)

    return optax.GradientTransformation(init, update)


CLOCKED = {
    "late_drop": (counted(halved_at_100, corrected=True), 49, 380),
    "slow_cosine": (
        counted(optax.cosine_decay_schedule(0.1, 100_000), corrected=True, b2=None),
        50_000,
        38 / (0.05 * (1 + np.cos(np.pi * 0.50001))),
    ),
    "beside_a_gradient": (last_gradient(halved_at_100), 50, 20),
    "count_as_a_float": (last_gradient(lambda now: 0.1 / (1 + 0.01 * now), jnp.float64), 100, 40),
    "starts_and_ends_at_zero": (optax.sgd(optax.warmup_cosine_decay_schedule(0.0, 0.1, 100, 1000)), 100, 20),
    "period_64": (optax.sgd(lambda t: 0.1 * (1 + 0.5 * jnp.sin(2 * jnp.pi * (t % 64) / 64))), 64, 20),
}


@pytest.mark.parametrize("name", CLOCKED)
def test_schedules_are_seen_wherever_they_are_kept(name):
    transformation, step, expected = CLOCKED[name]
    with pytest.raises(ValueError, match="follows a schedule; pass step="):
        ll.threshold(transformation)
    certificate = ll.threshold(transformation, step=step)
    # Corrections at the step belong to P and to the momentum as the state holds them.
    count = step + 1
    factor = (1 - 0.9**count) / np.sqrt(1 - 0.999**count) if certificate.preconditioned else 1
    assert certificate.critical_curvature == pytest.approx(expected * factor, rel=1e-6)
    assert f"schedules at step {step}" in certificate.condition


def test_masks_by_the_step_are_periodic():
    decay = optax.conditionally_mask(optax.add_decayed_weights(1.0), lambda step, **_: step % 2 == 0)
    with pytest.raises(ValueError, match="periodic update"):
        ll.threshold(optax.chain(decay, optax.sgd(0.1)), step=10)


def test_an_update_that_does_not_answer_has_no_threshold():
    cubed = stateless(lambda g: -0.1 * g**3)
    certificate = ll.threshold(cubed)
    assert certificate.critical_curvature is None
    assert "does not answer" in certificate.condition
    with pytest.raises(ValueError, match="holds several values, expected one"):
        ll.threshold(optax.sgd, learning_rate=np.array([0.1, 0.2]))


def test_a_traced_rate_is_refused():
    with pytest.raises(ValueError, match="learning_rate is traced; call threshold outside jit"):
        jax.jit(lambda rate: ll.threshold(optax.sgd, learning_rate=rate).critical_curvature)(0.1)


def test_grid_refuses_bad_input_by_name():
    with pytest.raises(ValueError, match=r"arrays of one shape \(n,\), got \{'learning_rate': \(2,\), 'b1': \(3,\)\}"):
        critical_curvatures(optax.adam, {"learning_rate": np.ones(2), "b1": np.ones(3)})
    with pytest.raises(ValueError, match="arrays of one shape"):
        critical_curvatures(optax.adam, {})
    with pytest.raises(ValueError, match="built already; pass its factory"):
        critical_curvatures(optax.sgd(0.1), {"momentum": np.ones(2)})
    wrapped = critical_curvatures(ll.Optimizer(optax.sgd), {"learning_rate": np.array([0.1, 0.2])})
    np.testing.assert_allclose(wrapped, [20, 10])
    with pytest.raises(ValueError, match="learning_rate must be finite, got inf"):
        critical_curvatures(optax.adam, {"learning_rate": np.array([1.0, np.inf])})
    with pytest.raises(ValueError, match="has no argument beta"):
        critical_curvatures(optax.sgd, {"learning_rate": np.ones(2), "beta": np.ones(2)})
    with pytest.raises(ValueError, match=r"lamb\(learning_rate=1.0\): .* scaled by the parameter itself"):
        critical_curvatures(optax.lamb, {"learning_rate": np.ones(2)})

    def branching(learning_rate):
        return optax.sgd(learning_rate if learning_rate > 0 else 0.1)

    with pytest.raises(ValueError, match=r"branching: .* Python control flow on swept values"):
        critical_curvatures(branching, {"learning_rate": np.ones(2)})
