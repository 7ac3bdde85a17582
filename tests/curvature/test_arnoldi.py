"""Outermost eigenvalues of matrices that are not symmetric, against dense eigensolvers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossland.curvature import balancing, outermost_eigenpair


def solve(matrix, **options):
    matrix = jnp.asarray(matrix)
    start = jnp.asarray(np.random.default_rng(1).normal(size=len(matrix)))
    program = jax.jit(lambda a: outermost_eigenpair(lambda v: a @ v, lambda v: v @ a, start, **options))
    return program(matrix)


def wanted(matrix, target):
    values = np.linalg.eigvals(matrix)
    value = values[np.argmax(np.abs(values)) if target == "largest" else np.argmin(values.real)]
    return value.real + 1j * abs(value.imag)


@pytest.mark.parametrize("target", ["largest", "oscillating"])
@pytest.mark.parametrize("size", [1, 2, 7, 40, 150])
def test_value_is_that_of_the_dense_matrix_and_the_bound_holds(size, target, x64):
    generator = np.random.default_rng(size)
    matrix = generator.normal(size=(size, size)) / np.sqrt(size)
    matrix[0, 0] += 3.0 if target == "largest" else -3.0  # an outlier, as a threshold's mode is
    pair = solve(matrix, target=target, num_vectors=40, max_restarts=20)
    error = abs(complex(pair.value) - wanted(matrix, target))
    assert bool(pair.converged)
    assert error <= float(pair.error_bound) + 1e-12
    image = matrix @ np.asarray(pair.vector)
    np.testing.assert_allclose(image, complex(pair.value) * np.asarray(pair.vector), atol=1e-5)
    left = np.asarray(pair.left_vector) @ matrix
    np.testing.assert_allclose(left, complex(pair.value) * np.asarray(pair.left_vector), atol=1e-5)


def test_complex_pair_is_reported_above_the_real_axis(x64):
    rotation = 1.1 * np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
    matrix = np.block([[rotation, np.ones((2, 3))], [np.zeros((3, 2)), 0.3 * np.eye(3)]])
    pair = solve(matrix)
    assert complex(pair.value) == pytest.approx(1.1 * np.exp(0.7j), rel=1e-12)


def test_residual_alone_does_not_certify_a_defective_value(x64):
    """A Jordan block perturbed by 1e-10 moves its eigenvalue by 1e-5: the condition number says so."""
    matrix = np.array([[1.0, 1.0], [1e-10, 1.0]])
    pair = solve(matrix)
    assert float(pair.condition) > 1e4
    assert complex(pair.value) == pytest.approx(1 + 1e-5, abs=1e-9)


def test_balancing_keeps_values_and_lowers_their_condition(x64):
    generator = np.random.default_rng(3)
    units = 10.0 ** generator.uniform(-6, 6, 30)
    plain = generator.normal(size=(30, 30)) / 6
    plain[4, 4] = 3.0
    matrix = plain * units[:, None] / units
    a = jnp.asarray(matrix)
    scale = np.asarray(balancing(lambda v: a @ v, lambda v: v @ a, 30, a.dtype))
    balanced = matrix * scale / scale[:, None]
    assert np.linalg.norm(balanced) < 10 * np.linalg.norm(plain)
    assert np.linalg.norm(matrix) > 1e6 * np.linalg.norm(plain)
    assert complex(solve(balanced).value) == pytest.approx(wanted(plain, "largest"), rel=1e-8)


def test_what_is_not_finite_is_not_converged(x64):
    pair = solve(np.full((4, 4), np.nan))
    assert np.isnan(complex(pair.value))
    assert not bool(pair.converged)


def test_bad_input_is_refused_by_name():
    start = jnp.ones(3)
    with pytest.raises(ValueError, match=r"target: expected one of largest, oscillating, got 'smallest'"):
        outermost_eigenpair(lambda v: v, lambda v: v, start, target="smallest")
    with pytest.raises(ValueError, match="num_vectors"):
        outermost_eigenpair(lambda v: v, lambda v: v, start, num_vectors=0)
    with pytest.raises(ValueError, match="start"):
        outermost_eigenpair(lambda v: v, lambda v: v, jnp.ones((3, 1)))
