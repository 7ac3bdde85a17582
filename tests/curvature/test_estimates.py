"""Trace and spectral density against dense float64 references, over many keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossland import curvature
from tests.curvature.cases import case_named, dense_hessian_named, quick_jit, symmetric

NUM_KEYS = 50


def trace_over_keys(matrix, num_matvecs, num_keys):
    like = jnp.zeros(len(matrix), matrix.dtype)

    def estimate(key):
        return curvature.trace(lambda v: matrix @ v, like=like, key=key, num_matvecs=num_matvecs)

    return jax.tree.map(np.asarray, quick_jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), num_keys)))


def test_trace_is_unbiased_and_its_error_is_its_error(x64):
    """200 keys on the Hessian of a network: mean within 4 of its standard errors, four-sigma intervals cover 95 %."""
    matrix = dense_hessian_named("relu_cross_entropy")
    estimates = trace_over_keys(jnp.asarray(matrix), 24, 200)
    deviations = estimates.value - np.trace(matrix)
    assert abs(deviations.mean()) <= 4 * deviations.std() / np.sqrt(200)
    # The samples share vectors, so their spread is a little less than independent ones would have.
    assert np.mean(np.abs(deviations) <= 2 * estimates.standard_error) >= 0.75
    assert np.mean(np.abs(deviations) <= 4 * estimates.standard_error) >= 0.95
    # Better than the estimator of Hutchinson with as many products, whose deviation is 2 ||H off diagonal||_F^2 / n.
    hutchinson = np.sqrt(2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)) / 24)
    assert deviations.std() < 0.5 * hutchinson
    assert (estimates.num_matvecs == 24).all()


@pytest.mark.slow
def test_trace_is_exact_where_it_can_be(x64):
    """Zero, low rank, a multiple of the identity, and no more parameters than vectors."""
    for values in (np.zeros(30), np.r_[5.0, 3, 1, np.zeros(27)], -np.ones(30), [3.0], [1.0, -1.0, 2.0]):
        estimates = trace_over_keys(jnp.asarray(symmetric(values, 1)), 16, 5)
        allowed = 1e-12 * max(1, np.abs(values).sum())
        np.testing.assert_allclose(estimates.value, np.sum(values), atol=allowed)
        np.testing.assert_allclose(estimates.standard_error, 0, atol=allowed)


SPECTRA = {
    "network": lambda: dense_hessian_named("relu_cross_entropy"),
    "rank 3": lambda: symmetric(np.concatenate([[5, 3, 1], np.zeros(197)]), 2),
    "zero": lambda: np.zeros((200, 200)),
    "decaying": lambda: symmetric(2.0 ** -np.arange(200), 2),
}


@functools.cache
def density_of(name):
    """Matrix and densities over 50 keys."""
    matrix = SPECTRA[name]()
    with jax.enable_x64(True):
        estimate = density_program(len(matrix))
        densities = estimate(jnp.asarray(matrix), jax.random.split(jax.random.key(1), NUM_KEYS))
        return matrix, jax.tree.map(np.asarray, densities)


@functools.cache
def density_program(size):
    def estimate(matrix, key):
        return curvature.spectral_density(lambda v: matrix @ v, like=jnp.zeros(size), key=key)

    return quick_jit(jax.vmap(estimate, in_axes=(None, 0)))


@pytest.mark.parametrize("name", SPECTRA)
def test_density_is_normalised(name):
    _, densities = density_of(name)
    spacing = densities.grid[:, 1] - densities.grid[:, 0]
    np.testing.assert_allclose(densities.density.sum(axis=1) * spacing, 1, atol=1e-4)
    assert (np.asarray(densities.density) >= -1e-9).all()
    np.testing.assert_allclose(densities.weights.sum(axis=2), 1, atol=1e-10)


def test_density_reaches_both_ends_of_the_spectrum():
    matrix, densities = density_of("network")
    ends = np.linalg.eigvalsh(matrix)[[0, -1]]
    nodes = np.asarray(densities.nodes)
    np.testing.assert_allclose(nodes.min(axis=(1, 2)), ends[0], rtol=1e-6)
    np.testing.assert_allclose(nodes.max(axis=(1, 2)), ends[1], rtol=1e-6)
    assert (densities.grid[:, 0] < ends[0]).all()
    assert (densities.grid[:, -1] > ends[1]).all()


@pytest.mark.parametrize("order", [1, 2])
def test_first_two_moments_are_trace_and_frobenius_norm(x64, order):
    """50 keys, 8 probes: the mean within 4 standard errors, the stated error right to a third, intervals that cover."""
    matrix, densities = density_of("network")
    expected = np.trace(np.linalg.matrix_power(matrix, order)) / len(matrix)
    moments = jax.tree.map(np.asarray, jax.vmap(lambda density: density.moment(order))(densities))
    deviations = moments.value - expected
    assert abs(deviations.mean()) <= 4 * deviations.std() / np.sqrt(NUM_KEYS)
    root_mean_square = np.sqrt(np.mean(moments.standard_error**2))
    assert 0.75 <= root_mean_square / deviations.std() <= 1.33
    # 7 degrees of freedom and a skewed distribution: four standard errors, as `cross_check` uses.
    assert np.mean(np.abs(deviations) <= 4 * moments.standard_error) >= 0.9


def test_density_is_the_blurred_histogram_within_its_error():
    matrix, densities = density_of("network")
    eigenvalues = np.linalg.eigvalsh(matrix)
    first = jax.tree.map(lambda leaf: np.asarray(leaf[0]), densities)
    deviation = 0.01 * (first.nodes.max() - first.nodes.min())
    blur = np.exp(-(((first.grid[:, None] - eigenvalues) / deviation) ** 2) / 2) / (deviation * np.sqrt(2 * np.pi))
    exact = blur.mean(axis=1)
    distances = np.abs(np.asarray(densities.density) - exact).sum(axis=1) * (first.grid[1] - first.grid[0])
    assert distances[0] < 0.5
    # Errors fall as one over the root of the probes: pooling 50 keys leaves a seventh.
    same_grid = np.stack([np.interp(first.grid, g, d) for g, d in zip(densities.grid, densities.density, strict=True)])
    pooled = same_grid.mean(axis=0)
    error = same_grid.std(axis=0) / np.sqrt(NUM_KEYS)
    assert np.mean(np.abs(pooled - exact) <= 4 * error + 0.02 * exact.max()) > 0.95
    stated = np.sqrt(np.mean(np.asarray(densities.standard_error) ** 2, axis=0))
    peak = np.argmax(exact)
    assert 0.6 <= stated[peak] / same_grid.std(axis=0)[peak] <= 1.6


def test_cross_check_of_both():
    """Through a network's own products in float32."""
    case = case_named("tanh_mse")
    params = case.params_as("float32")

    def build(params):
        return curvature.hessian(case.objective, params)

    @quick_jit
    def measure(params, key):
        trace = curvature.trace(build(params), like=params, key=key)
        return trace, curvature.spectral_density(build(params), like=params, key=key, num_probes=16)

    trace, density = measure(params, jax.random.key(3))
    matrix = dense_hessian_named("tanh_mse")
    report = curvature.cross_check(trace, build, params)
    np.testing.assert_allclose(report.exact, np.trace(matrix), rtol=1e-6)
    assert report.error <= report.bound
    report = curvature.cross_check(density, build, params)
    np.testing.assert_allclose(report.exact * len(matrix), [np.trace(matrix), np.sum(matrix**2)], rtol=1e-6)
    assert (report.error <= report.bound).all()


def test_errors_name_what_is_wrong():
    like = jnp.zeros(5)
    with pytest.raises(ValueError, match=r"num_matvecs: expected an integer of at least 4, got 2"):
        curvature.trace(lambda v: v, like=like, key=jax.random.key(0), num_matvecs=2)
    with pytest.raises(ValueError, match=r"num_probes: expected an integer of at least 2, got 1"):
        curvature.spectral_density(lambda v: v, like=like, key=jax.random.key(0), num_probes=1)
    with pytest.raises(ValueError, match=r"width: expected a finite number above 0"):
        curvature.spectral_density(lambda v: v, like=like, key=jax.random.key(0), width=0)
