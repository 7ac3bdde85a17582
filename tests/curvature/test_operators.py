"""Products with second-derivative matrices against dense float64 references."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lossland import curvature
from tests.curvature.cases import CASES, case_named, dense_hessian_named, quick_jit

TOLERANCE = {"float32": 3e-6, "float64": 1e-12}


def relative(actual, expected):
    return np.linalg.norm(np.asarray(actual, float) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_hessian_equals_reverse_over_reverse(name, dtype):
    case, expected = case_named(name), dense_hessian_named(name)
    with jax.enable_x64(dtype == "float64"):
        params = case.params_as(dtype)
        matrix = quick_jit(lambda params: curvature.dense_hessian(case.objective, params))(params)
        assert matrix.dtype == dtype
        assert relative(matrix, expected) <= TOLERANCE[dtype]


def dense_of(build, params):
    """The matrix of the product that `build(params)` returns."""
    return quick_jit(lambda params: curvature.dense(build(params), params))(params)


def dense_outputs(case):
    """Jacobian of the outputs `(n, p)`, Hessian of the loss in them `(n, n)`, and the outputs, in float64."""
    params = case.params_as("float64")
    inputs, targets = case.cast(case.data, params)

    def parts(params):
        flat, unravel = ravel_pytree(params)
        outputs = case.predict(params, inputs)
        flat_outputs, restore = ravel_pytree(outputs)
        jacobian = jax.jacrev(lambda flat: case.predict(unravel(flat), inputs).ravel())(flat)
        curved = jax.jacrev(jax.grad(lambda outputs: case.loss(restore(outputs), targets)))(flat_outputs)
        return jacobian, curved, outputs

    return [np.asarray(part) for part in quick_jit(parts)(params)]


@pytest.mark.parametrize("name", ["tanh_mse", "convolutional", "least_squares"])
def test_gauss_newton_is_jacobian_curvature_jacobian(x64, name):
    case = case_named(name)
    params = case.params_as("float64")
    inputs, targets = case.cast(case.data, params)
    jacobian, curved, _ = dense_outputs(case)
    matrix = dense_of(
        lambda params: curvature.gauss_newton(
            lambda p: case.predict(p, inputs), lambda outputs: case.loss(outputs, targets), params
        ),
        params,
    )
    assert relative(matrix, jacobian.T @ curved @ jacobian) <= 1e-12
    # Where the model is linear in its parameters, the Hessian is nothing else.
    assert (relative(matrix, dense_hessian_named(name)) <= 1e-12) == (name == "least_squares")


def test_categorical_fisher_is_the_expectation_over_the_models_own_labels(x64):
    case = case_named("relu_cross_entropy")
    params = case.params_as("float64")
    inputs, _ = case.cast(case.data, params)
    jacobian, _, logits = dense_outputs(case)
    num_examples, num_classes = logits.shape
    jacobian = jacobian.reshape(num_examples, num_classes, -1)
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.zeros((jacobian.shape[2],) * 2)
    for example in range(num_examples):
        for label in range(num_classes):
            gradient = jacobian[example].T @ (probability[example] - np.eye(num_classes)[label])
            expected += probability[example, label] * np.outer(gradient, gradient) / num_examples
    matrix = dense_of(
        lambda params: curvature.fisher(lambda p: case.predict(p, inputs), curvature.categorical, params), params
    )
    assert relative(matrix, expected) <= 1e-12


@pytest.mark.parametrize(
    ("output_fisher", "loss"),
    [
        (curvature.bernoulli, lambda z: jnp.sum(jax.nn.softplus(z) - z) / z.shape[0]),
        (curvature.gaussian, lambda z: 0.5 * jnp.sum((z - 1) ** 2) / z.shape[0]),
    ],
)
def test_fisher_of_a_canonical_likelihood_is_gauss_newton_of_its_loss(x64, output_fisher, loss):
    case = case_named("deep_linear")
    params = case.params_as("float64")
    inputs, _ = case.cast(case.data, params)

    @quick_jit
    def products(params):
        fisher = curvature.fisher(lambda p: case.predict(p, inputs), output_fisher, params)
        gauss_newton = curvature.gauss_newton(lambda p: case.predict(p, inputs), loss, params)
        vector = jax.tree.map(jnp.cos, params)
        return ravel_pytree(fisher(vector))[0], ravel_pytree(gauss_newton(vector))[0]

    fisher, gauss_newton = products(params)
    assert relative(fisher, np.asarray(gauss_newton)) <= 1e-12


def test_empirical_fisher_is_the_second_moment_of_the_examples_gradients(x64):
    case = case_named("tanh_mse")
    params = case.params_as("float64")
    inputs, targets = case.cast(case.data, params)

    def example_losses(params):
        return (case.predict(params, inputs) - targets)[:, 0] ** 2

    flat, unravel = ravel_pytree(params)
    gradients = np.asarray(quick_jit(jax.jacrev(lambda flat: example_losses(unravel(flat))))(flat))
    matrix = dense_of(lambda params: curvature.empirical_fisher(example_losses, params), params)
    assert relative(matrix, gradients.T @ gradients / len(gradients)) <= 1e-12
    with pytest.raises(ValueError, match=r"example_losses: expected one loss for each example.*before their mean"):
        curvature.empirical_fisher(case.objective, params)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("chunk_size", [7, 8, 40, 100])
def test_chunks_add_up_to_the_full_data(x64, reduction, chunk_size):
    """40 examples: ragged, even, whole; a mean that is summed over batches is off by their number."""
    case = case_named("relu_cross_entropy")
    params = case.params_as("float64")
    data = case.cast(case.data, params)

    def loss(params, batch):
        inputs, labels = batch
        mean = case.loss(case.predict(params, inputs), labels)
        return mean if reduction == "mean" else mean * inputs.shape[0]

    @quick_jit
    def products(params):
        in_chunks = curvature.in_chunks(
            lambda batch: curvature.hessian(lambda p: loss(p, batch), params),
            data,
            chunk_size=chunk_size,
            reduction=reduction,
        )
        at_once = curvature.hessian(lambda p: loss(p, data), params)
        vector = jax.tree.map(jnp.sin, params)
        return ravel_pytree(in_chunks(vector))[0], ravel_pytree(at_once(vector))[0]

    in_chunks, at_once = products(params)
    assert relative(in_chunks, np.asarray(at_once)) <= 1e-12


def test_chunks_explain_what_is_wrong():
    def build(batch):
        return lambda vector: vector

    with pytest.raises(ValueError, match=r"reduction: expected 'mean' or 'sum'.*got 'average'"):
        curvature.in_chunks(build, np.ones(3), chunk_size=1, reduction="average")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"chunk_size: expected an integer of at least 1, got 0"):
        curvature.in_chunks(build, np.ones(3), chunk_size=0, reduction="mean")
    with pytest.raises(ValueError, match=r"data: .*got first axes \[\(3,\), \(4,\)\]"):
        curvature.in_chunks(build, (np.ones(3), np.ones(4)), chunk_size=1, reduction="mean")
    with pytest.raises(TypeError, match="reduction"):
        curvature.in_chunks(build, np.ones(3), chunk_size=1)  # type: ignore[call-arg]


def test_restricted_hessian_is_a_diagonal_block(x64):
    case, expected = case_named("relu_cross_entropy"), dense_hessian_named("relu_cross_entropy")
    params = case.params_as("float64")
    names = curvature.parameter_names(params)
    assert names == ["0/b", "0/w", "1/b", "1/w", "2/b", "2/w"]
    objective, part = curvature.restrict(case.objective, params, lambda name: name.startswith("1/"))
    sizes = np.cumsum([0] + [leaf.size for leaf in jax.tree.leaves(params)])
    block = slice(sizes[2], sizes[4])
    assert relative(dense_of(lambda part: curvature.hessian(objective, part), part), expected[block, block]) <= 1e-12
    with pytest.raises(ValueError, match="selected: expected it to accept at least one of 0/b, 0/w, 1/b"):
        curvature.restrict(case.objective, params, lambda name: name == "Dense_0")


def test_products_are_in_full_precision_unless_the_user_has_chosen():
    def objective(params):
        return jnp.sum(jnp.tanh(jnp.ones((4, 3)) @ params) ** 2)

    def precisions():
        point = jnp.ones((3, 2))
        program = str(jax.make_jaxpr(lambda p, v: curvature.hessian(objective, p)(v))(point, point))
        assert program.count("dot_general") == program.count("precision=") > 0
        return set(re.findall(r"precision=\(?(?:Precision\.)?(\w+)", program))

    assert precisions() == {"HIGHEST"}
    with jax.default_matmul_precision("default"):
        assert precisions() == {"DEFAULT"}


def test_dense_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"like: expected at most 30000 parameters.*got 40000"):
        curvature.dense(lambda vector: vector, jnp.ones(40_000))


def test_an_objective_without_a_forward_mode_has_a_hessian():
    """A custom_vjp whose forward rule calls the function itself, which JAX cannot push tangents through."""

    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (cube(x), x), lambda x, g: (3 * x**2 * g,))
    x, v = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 1.0, -1.0])
    product = jax.jit(lambda x, v: curvature.hessian(lambda x: jnp.sum(cube(x)), x)(v))
    np.testing.assert_allclose(product(x, v), 6 * x * v, rtol=1e-6)
