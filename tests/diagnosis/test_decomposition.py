"""Parts of a change add up, and are what they are called on losses where each is known."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossland.diagnosis.decomposition import decompose_change
from lossland.problems.reported import numpy_mlp


def test_a_quadratic_has_no_rest():
    matrix = np.diag([1.0, 10.0, -2.0])
    before, after = np.array([1.0, -1.0, 0.5]), np.array([0.2, 0.7, 0.6])
    step, gradient = after - before, matrix @ before
    found = decompose_change(lambda x: x @ matrix @ x / 2, before, after)
    assert found.slope == pytest.approx(gradient @ step)
    assert found.curvature == pytest.approx(step @ matrix @ step / 2)
    assert found.rest == pytest.approx(0, abs=1e-14)
    assert found.curvature_along == pytest.approx(step @ matrix @ step / (step @ step))
    assert found.length == pytest.approx(np.linalg.norm(step))


def test_a_step_too_long_for_the_curvature_rises_by_it():
    found = decompose_change(lambda x: 5 * x**2, 1.0, 1.0 - 0.25 * 10)  # rate 0.25 above 2 / 10
    assert found.change > 0
    assert found.dominant == "curvature"
    assert found.curvature_along == pytest.approx(10)
    assert decompose_change(lambda x: 5 * x**2, 1.0, 0.5).dominant == ""
    assert decompose_change(lambda x: 5 * x**2, 1.0, 1.1).dominant == "slope"
    assert decompose_change(lambda x: jnp.where(x > 2, 100.0, 0.0) + 0.1 * x, 1.0, 3.0).dominant == "rest"


def test_many_steps_of_a_network_equal_each_alone():
    problem = numpy_mlp()
    starts = jax.vmap(problem.init)(jax.random.split(jax.random.key(0), 5))
    rate = 0.05
    ends = jax.vmap(lambda p: jax.tree.map(lambda x, g: x - rate * g, p, jax.grad(problem.objective)(p)))(starts)
    many = decompose_change(problem.objective, starts, ends)
    assert many.change.shape == (5,)
    np.testing.assert_allclose(many.slope + many.curvature + many.rest, many.change, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(many.slope, -(many.length**2) / rate, rtol=1e-5)
    for index in range(5):
        one = decompose_change(
            problem.objective, *(jax.tree.map(operator.itemgetter(index), points) for points in (starts, ends))
        )
        np.testing.assert_allclose([*one], [part[index] for part in many], rtol=1e-9, atol=1e-12)


def test_the_rest_shrinks_with_the_cube_of_the_step():
    problem = numpy_mlp()
    start = problem.init(jax.random.key(1))
    gradient = jax.grad(problem.objective)(start)
    rests = []
    for rate in (1e-3, 5e-4):
        end = jax.tree.map(lambda x, g, rate=rate: np.float64(x) - rate * np.float64(g), start, gradient)
        rests.append(decompose_change(problem.objective, start, end).rest)
    assert rests[0] / rests[1] == pytest.approx(8, rel=0.1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: decompose_change(lambda x: x["a"] ** 2, {"a": 1.0}, {"b": 1.0}), ["after", "structure"]),
        (lambda: decompose_change(lambda x: jnp.sum(x), np.ones(3), np.ones(4)), ["after", "shapes"]),
        (lambda: decompose_change(lambda x: x * jnp.ones((2, 2)), 1.0, 2.0), ["objective", "scalar"]),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=r".") as error:
        call()
    assert all(word in str(error.value) for word in words)
