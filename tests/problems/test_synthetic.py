"""Generated problems: what is known about them in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
from jax.flatten_util import ravel_pytree

from lossland.problems import synthetic
from lossland.problems.problem import cast_floating
from tests.problems.quick import quick


def dense_hessian(problem, params):
    flat, unravel = ravel_pytree(params)
    return np.asarray(quick(jax.hessian(lambda p: problem.objective(unravel(p))))(flat))


@pytest.mark.usefixtures("x64")
def test_quadratic_has_the_hessian_it_was_asked_for():
    eigenvalues = [-1.0, 0.0, 0.1, 7.0]
    problem = synthetic.quadratic(eigenvalues)
    params = problem.init(jax.random.key(0)).astype(jnp.float64)
    np.testing.assert_array_equal(dense_hessian(problem, params), np.diag(eigenvalues))
    np.testing.assert_allclose(problem.objective(params), 0.5 * np.sum(eigenvalues * np.square(params)), rtol=1e-15)
    np.testing.assert_allclose(problem.init(jax.random.key(0), scale=2.0), 2 * problem.init(jax.random.key(0)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("learning_rate", [0.1, 1.2, 2.6])
def test_uv_model_steps_as_lewkowycz_et_al_say(learning_rate):
    width = 16
    problem = synthetic.uv_model(width)
    params = cast_floating(problem.init(jax.random.key(2), scale=1.3), jnp.float64)

    def function_and_kernel(params):
        u, v = params["u"], params["v"]
        return u @ v / np.sqrt(width), (u @ u + v @ v) / width

    gradient_of = quick(jax.grad(problem.objective))
    f, kappa = function_and_kernel(params)
    np.testing.assert_allclose(problem.objective(params), 0.5 * f**2, rtol=1e-14)
    for _ in range(5):
        gradient = gradient_of(params)
        params = jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient)
        predicted = (
            f * (1 - learning_rate * kappa + learning_rate**2 * f**2 / width),
            kappa + learning_rate * f**2 / width * (learning_rate * kappa - 4),
        )
        f, kappa = function_and_kernel(params)
        np.testing.assert_allclose((f, kappa), predicted, rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_sharpness_of_the_uv_model_at_its_minimum_is_the_kernel():
    problem = synthetic.uv_model(6)
    u = np.arange(1.0, 7.0)
    v = np.array([2.0, -1.0, 0, 0, 0, 0])
    params = {"u": jnp.asarray(u), "v": jnp.asarray(v)}
    top = np.linalg.eigvalsh(dense_hessian(problem, params))[-1]
    np.testing.assert_allclose(top, (u @ u + v @ v) / 6, rtol=1e-12)


def test_deep_linear_inputs_are_white_and_the_loss_is_a_distance_of_matrices():
    problem = synthetic.deep_linear(dimension=4, depth=3, num_examples=11)
    x, y = problem.data
    np.testing.assert_allclose(x.T @ x / 11, np.eye(4), atol=1e-6)
    teacher = (y.T @ x) / 11
    np.testing.assert_allclose(x @ teacher.T, y, atol=1e-5)
    params = quick(problem.init)(jax.random.key(0))
    weights = [np.asarray(params[f"Dense_{index}"]["kernel"], np.float64) for index in range(3)]
    distance = 0.5 * np.sum((weights[0] @ weights[1] @ weights[2] - teacher.T) ** 2)
    np.testing.assert_allclose(problem.objective(params), distance, rtol=1e-5)


def test_one_linear_layer_on_white_inputs_has_the_identity_as_hessian():
    problem = synthetic.deep_linear(dimension=3, depth=1, num_examples=8)
    np.testing.assert_allclose(dense_hessian(problem, quick(problem.init)(jax.random.key(0))), np.eye(9), atol=1e-5)


@pytest.mark.parametrize("degree", [0, 1, 4, 5])
def test_chebyshev_targets_are_the_polynomial(degree):
    x, y = synthetic.chebyshev(degree=degree, num_examples=13).data
    np.testing.assert_allclose(x[:, 0], np.linspace(-1, 1, 13), rtol=1e-6)
    np.testing.assert_allclose(y[:, 0], np.polynomial.Chebyshev.basis(degree)(np.linspace(-1, 1, 13)), atol=1e-6)


@pytest.mark.parametrize("num_examples", [2, 7, 400])
def test_moons_without_noise_are_those_of_scikit_learn(num_examples):
    points, labels = synthetic.half_moons(num_examples, noise=0.0)
    sizes = tuple(np.bincount(labels))  # scikit-learn gives an odd point to the second moon
    expected, expected_labels = sklearn.datasets.make_moons(sizes, shuffle=False, noise=None)
    np.testing.assert_allclose(points, expected, atol=1e-6)
    np.testing.assert_array_equal(labels, expected_labels)


def test_spiral_arms_are_one_arm_turned():
    points, labels = synthetic.spiral_arms(60, num_arms=3, noise=0.0)
    turn = 2 * np.pi / 3
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    for arm in (0, 1):
        np.testing.assert_allclose(points[labels == arm] @ rotation.T, points[labels == arm + 1], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(points[labels == 0], axis=1), np.linspace(0.1, 1, 20), rtol=1e-5)


def test_blobs_stand_at_their_centres():
    points, labels = synthetic.gaussian_blobs(6000, deviation=0.4, seed=3)
    for label, centre in enumerate(synthetic.COURSE_CENTRES):
        mine = points[labels == label]
        assert len(mine) == 1000
        # Four standard errors of a mean, and of a deviation, of 1000 draws.
        np.testing.assert_allclose(mine.mean(axis=0), centre, atol=4 * 0.4 / np.sqrt(1000))
        np.testing.assert_allclose(mine.std(axis=0), 0.4, atol=4 * 0.4 / np.sqrt(2000))


GENERATORS = {
    "moons": lambda **options: synthetic.half_moons(41, **options),
    "blobs": lambda **options: synthetic.gaussian_blobs(41, **options),
    "spirals": lambda **options: synthetic.spiral_arms(41, **options),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_generated_points_belong_to_their_seed(name):
    points, labels = GENERATORS[name](seed=1)
    assert (points.dtype, labels.dtype) == (np.float32, np.int32)
    assert points.shape == (41, 2)
    sizes = np.bincount(labels)
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(points, GENERATORS[name](seed=1)[0])
    assert np.abs(points - GENERATORS[name](seed=2)[0]).max() > 1e-3


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_noise_has_the_deviation_it_was_asked_for(noise):
    clean, _ = synthetic.half_moons(2000, noise=0.0)
    noisy, _ = synthetic.half_moons(2000, noise=noise)
    # Four standard errors of the deviation of 4000 normal numbers.
    np.testing.assert_allclose(np.std(noisy - clean), noise, rtol=4 / np.sqrt(2 * 4000))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: synthetic.quadratic([]), r"eigenvalues: expected a list of at least 1"),
        (lambda: synthetic.quadratic([1.0, np.nan]), r"eigenvalues: .*finite"),
        (lambda: synthetic.quadratic(3.0), r"eigenvalues: expected a list of at least 1"),
        (lambda: synthetic.uv_model(0), r"width: expected an integer of at least 1 .*got 0"),
        (lambda: synthetic.deep_linear(dimension=8, num_examples=8), r"num_examples > dimension.*num_examples 8"),
        (lambda: synthetic.deep_linear(depth=0), r"depth: .*got 0"),
        (lambda: synthetic.chebyshev(degree=-1), r"degree: expected an integer of at least 0 .*got -1"),
        (lambda: synthetic.moons(num_examples=1), r"num_examples: .*each of 2 classes, got 1"),
        (lambda: synthetic.moons(noise=-0.1), r"noise: .*got -0.1"),
        (lambda: synthetic.spirals(num_arms=0), r"num_arms: expected an integer of at least 1, got 0"),
        (lambda: synthetic.blobs(centres=[1.0, 2.0]), r"centres: expected a table.*\(2,\)"),
    ],
)
def test_bad_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
