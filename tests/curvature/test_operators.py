"""Products with second-derivative matrices against dense float64 references."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
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


def dense_outputs(case):
    """Jacobian of the outputs and Hessian of the loss in them, float64: `(n classes, p)` and square."""
    params = case.params_as("float64")
    flat, unravel = ravel_pytree(params)
    inputs, targets = case.cast(case.data, params)
    outputs, restore = ravel_pytree(case.predict(params, inputs))
    jacobian = jax.jacrev(lambda flat: ravel_pytree(case.predict(unravel(flat), inputs))[0])(flat)
    curved = jax.jacrev(jax.grad(lambda outputs: case.loss(restore(outputs), targets)))(outputs)
    return np.asarray(jacobian), np.asarray(curved), np.asarray(restore(outputs))


@pytest.mark.parametrize("name", ["tanh_mse", "convolutional"])
def test_gauss_newton_is_jacobian_curvature_jacobian(x64, name):
    case = case_named(name)
    params = case.params_as("float64")
    inputs, targets = case.cast(case.data, params)
    jacobian, curved, _ = dense_outputs(case)
    matrix = quick_jit(
        lambda params: curvature.dense(
            curvature.gauss_newton(lambda p: case.predict(p, inputs), lambda out: case.loss(out, targets), params),
            params,
        )
    )(params)
    assert relative(matrix, jacobian.T @ curved @ jacobian) <= 1e-12


def test_gauss_newton_equals_hessian_where_the_model_is_linear(x64):
    case = case_named("least_squares")
    params = case.params_as("float64")
    inputs, targets = case.cast(case.data, params)
    product = curvature.gauss_newton(lambda p: case.predict(p, inputs), lambda out: case.loss(out, targets), params)
    assert relative(curvature.dense(product, params), dense_hessian_named("least_squares")) <= 1e-12


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
    product = curvature.fisher(lambda p: case.predict(p, inputs), curvature.categorical, params)
    assert relative(curvature.dense(product, params), expected) <= 1e-12


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
    fisher = curvature.fisher(lambda p: case.predict(p, inputs), output_fisher, params)
    gauss_newton = curvature.gauss_newton(lambda p: case.predict(p, inputs), loss, params)
    vector = jax.tree.map(jnp.cos, params)
    expected = ravel_pytree(gauss_newton(vector))[0]
    assert relative(ravel_pytree(fisher(vector))[0], np.asarray(expected)) <= 1e-12


def test_empirical_fisher_is_the_second_moment_of_the_examples_gradients(x64):
    case = case_named("tanh_mse")
    params = case.params_as("float64")
    inputs, targets = case.cast(case.data, params)

    def example_losses(params):
        return (case.predict(params, inputs) - targets)[:, 0] ** 2

    gradients = np.asarray(jax.vmap(lambda g: ravel_pytree(g)[0])(jax.jacrev(example_losses)(params)))
    product = curvature.empirical_fisher(example_losses, params)
    assert relative(curvature.dense(product, params), gradients.T @ gradients / len(gradients)) <= 1e-12
    with pytest.raises(ValueError, match=r"example_losses: expected one loss for each example.*before their mean"):
        curvature.empirical_fisher(case.objective, params)


def test_preconditioned_sharpness_of_adam_equals_dense(x64):
    """P^-1/2 H P^-1/2 after 30 steps of optax.adam, P of the next update: second moment advanced, bias corrected."""
    case = case_named("tanh_mse")
    params = case.params_as("float64")
    b2, eps = 0.99, 1e-6
    optimizer = optax.adam(1e-2, b2=b2, eps=eps)

    def step(_, state):
        params, opt_state = state
        updates, opt_state = optimizer.update(jax.grad(case.objective)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state = quick_jit(lambda params: jax.lax.fori_loop(0, 30, step, (params, optimizer.init(params))))(params)
    gradient = jax.grad(case.objective)(params)
    moment = jax.tree.map(lambda nu, g: b2 * nu + (1 - b2) * g**2, opt_state[0].nu, gradient)
    preconditioner = jax.tree.map(lambda nu: jnp.sqrt(nu / (1 - b2**31)) + eps, moment)

    pairs = quick_jit(
        lambda params, preconditioner: curvature.top_eigenpairs(
            curvature.preconditioned(curvature.hessian(case.objective, params), preconditioner), like=params
        )
    )(params, preconditioner)
    scale = np.asarray(ravel_pytree(preconditioner)[0]) ** -0.5
    dense = np.asarray(curvature.dense_hessian(case.objective, params)) * scale[:, None] * scale
    assert pairs.converged.all()
    np.testing.assert_allclose(pairs.values[0], np.linalg.eigvalsh(dense)[-1], rtol=1e-6)


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

    product = curvature.in_chunks(
        lambda batch: curvature.hessian(lambda p: loss(p, batch), params),
        data,
        chunk_size=chunk_size,
        reduction=reduction,
    )
    vector = jax.tree.map(jnp.sin, params)
    expected = np.asarray(ravel_pytree(curvature.hessian(lambda p: loss(p, data), params)(vector))[0])
    assert relative(ravel_pytree(quick_jit(product)(vector))[0], expected) <= 1e-12


def test_chunks_explain_what_is_wrong():
    def build(batch):
        return lambda vector: vector

    with pytest.raises(ValueError, match=r"reduction: expected 'mean' or 'sum'.*got 'average'"):
        curvature.in_chunks(build, np.ones(3), chunk_size=1, reduction="average")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"chunk_size: expected at least one example, got 0"):
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
    assert relative(curvature.dense_hessian(objective, part), expected[block, block]) <= 1e-12
    with pytest.raises(ValueError, match="selected: expected it to accept at least one of 0/b, 0/w, 1/b"):
        curvature.restrict(case.objective, params, lambda name: name == "Dense_0")


def test_gradient_curvature_and_alignment(x64):
    case, matrix = case_named("convolutional"), dense_hessian_named("convolutional")
    params = case.params_as("float64")
    gradient = jax.grad(case.objective)(params)
    flat = np.asarray(ravel_pytree(gradient)[0])
    np.testing.assert_allclose(
        curvature.gradient_curvature(case.objective, params), flat @ matrix @ flat / (flat @ flat), rtol=1e-10
    )
    other = jax.tree.map(lambda leaf: jnp.ones_like(leaf), params)
    cosine = abs(flat.sum()) / np.linalg.norm(flat) / np.sqrt(flat.size)
    np.testing.assert_allclose(curvature.alignment(gradient, other), cosine, rtol=1e-12)
    np.testing.assert_allclose(curvature.alignment(gradient, jax.tree.map(lambda g: -3 * g, gradient)), 1, rtol=1e-12)


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
    with pytest.raises(ValueError, match=r"like: expected at most 30000 parameters.*got 40000; use top_eigenpairs"):
        curvature.dense(lambda vector: vector, jnp.ones(40_000))
    with pytest.raises(ValueError, match=r"like: expected parameters of one real float dtype, got \['int32'\]"):
        curvature.top_eigenpairs(lambda vector: vector, like=jnp.ones(3, "int32"))
