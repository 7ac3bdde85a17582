"""Networks: shapes, gradients over many runs at once, and the losses of the problems built on a perceptron."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import lossland as ll
from lossland.problems import networks
from lossland.problems.networks import CNN, LSTM, MLP, TanhRNN, Transformer
from tests.problems.quick import quick, starts_of

cross_entropy = optax.softmax_cross_entropy_with_integer_labels
RNG = np.random.default_rng(1)
TABLE = RNG.normal(size=(5, 3)).astype(np.float32)
IMAGES = RNG.normal(size=(5, 8, 8, 1)).astype(np.float32)
SEQUENCES = RNG.normal(size=(5, 6, 2)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 0])

NETWORKS = {
    "mlp": (MLP((7, 4)), TABLE, 3 * 7 + 7 + 7 * 4 + 4),
    "mlp without hidden layer": (MLP((4,)), TABLE, 3 * 4 + 4),
    "mlp without bias": (MLP((7, 4), use_bias=False), TABLE, 3 * 7 + 7 * 4),
    "cnn": (CNN(4, features=(2, 3)), IMAGES, (9 * 2 + 2) + (9 * 2 * 3 + 3) + (2 * 2 * 3 * 4 + 4)),
    "rnn": (TanhRNN(4, hidden=5), SEQUENCES, 2 * 5 + 5 * 5 + 5 + 5 * 4 + 4),
    "lstm": (LSTM(4, hidden=5), SEQUENCES, 4 * (2 * 5 + 5 * 5 + 5) + 5 * 4 + 4),
    "transformer": (
        Transformer(4, width=8, num_layers=1),
        SEQUENCES,
        (2 * 8 + 8) + 6 * 8 + 2 * 2 * 8 + 4 * (8 * 8 + 8) + (8 * 32 + 32 + 32 * 8 + 8) + 2 * 8 + (8 * 4 + 4),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_maps_examples_one_by_one_and_its_gradients_map_over_runs(name):
    module, inputs, num_params = NETWORKS[name]
    problem = ll.Problem.from_flax(module, cross_entropy, (inputs, LABELS))
    starts = starts_of(problem, 2)
    assert sum(leaf[0].size for leaf in jax.tree.leaves(starts)) == num_params
    gradient = jax.grad(problem.objective)

    @quick
    def everything(starts):
        alone = jax.tree.map(lambda leaf: leaf[1], starts)

        def apply(inputs):
            return module.apply({"params": alone}, inputs)

        return apply(inputs), apply(inputs[2:3]), gradient(alone), jax.vmap(gradient)(starts)

    outputs, third, alone, together = everything(starts)
    assert outputs.shape == (5, 4)
    np.testing.assert_allclose(third, outputs[2:3], rtol=1e-4, atol=1e-5)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(a, b[1], rtol=1e-3, atol=1e-5)
        assert np.isfinite(b).all()


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_hessian_vector_products_exist_and_are_symmetric(name):
    module, inputs, _ = NETWORKS[name]
    problem = ll.Problem.from_flax(module, cross_entropy, (inputs, LABELS))
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], starts_of(problem, 1)))
    vectors = np.random.default_rng(3).normal(size=(2, flat.size)).astype(np.float32)

    def product(vector):
        return jax.jvp(jax.grad(lambda p: problem.objective(unravel(p))), (flat,), (vector,))[1]

    products = np.asarray(quick(jax.vmap(product))(vectors))
    assert np.linalg.norm(products[0]) > 1e-2
    np.testing.assert_allclose(vectors[0] @ products[1], vectors[1] @ products[0], rtol=1e-3, atol=1e-4)


def numpy_mlp_outputs(params, inputs, activation):
    """The perceptron by NumPy in double precision."""
    x = np.asarray(inputs, np.float64)
    for index in range(len(params)):
        layer = params[f"Dense_{index}"]
        x = (activation(x) if index else x) @ np.asarray(layer["kernel"], np.float64)
        x = x + np.asarray(layer.get("bias", 0.0), np.float64)
    return x


NUMPY_ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "identity": lambda x: x,
    "gelu": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


@pytest.mark.parametrize("activation", networks.ACTIVATIONS)
def test_cross_entropy_and_squared_error_are_those_of_numpy(activation):
    problems = {
        loss: networks.mlp_classification(TABLE, LABELS, widths=(6, 5), activation=activation, loss=loss)
        for loss in ("cross_entropy", "mse")
    }
    params = jax.tree.map(lambda leaf: leaf[0], starts_of(problems["mse"], 1))
    losses = quick(lambda params: {loss: problem.objective(params) for loss, problem in problems.items()})(params)
    outputs = numpy_mlp_outputs(params, TABLE, NUMPY_ACTIVATIONS[activation])
    log_partition = np.log(np.exp(outputs).sum(axis=1))
    surprise = log_partition - outputs[np.arange(5), LABELS]
    np.testing.assert_allclose(losses["cross_entropy"], np.mean(surprise), rtol=1e-5)
    # The stated convention: mean over examples, half the sum over outputs.
    half_sum = 0.5 * np.sum((outputs - np.eye(4)[LABELS]) ** 2, axis=1)
    np.testing.assert_allclose(losses["mse"], np.mean(half_sum), rtol=1e-5)


def test_regression_halves_the_sum_over_outputs():
    targets = RNG.normal(size=(5, 2))
    problem = networks.mlp_regression(TABLE, targets, widths=(6,))
    params = jax.tree.map(lambda leaf: leaf[0], starts_of(problem, 1))
    outputs = numpy_mlp_outputs(params, TABLE, np.tanh)
    np.testing.assert_allclose(
        quick(problem.objective)(params), np.mean(0.5 * np.sum((outputs - targets) ** 2, axis=1)), rtol=1e-5
    )


def test_one_hidden_layer_needs_no_tuple():
    one, same = (networks.mlp_classification(TABLE, LABELS, widths=widths) for widths in (6, (6,)))
    assert one.fingerprint() == same.fingerprint()


def test_a_function_is_an_activation_too():
    by_name = networks.mlp_classification(TABLE, LABELS, widths=(6,), activation="relu")
    by_function = networks.mlp_classification(TABLE, LABELS, widths=(6,), activation=jax.nn.relu)
    assert by_name.fingerprint() == by_function.fingerprint()


def test_scale_multiplies_weights_and_leaves_biases_alone():
    def init(key):
        return {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}

    problem = ll.Problem(init, lambda params, batch: jnp.sum(params["bias"]) * jnp.mean(batch), np.ones(3))
    scaled = networks.with_scale(problem).init(jax.random.key(0), scale=3.0)
    np.testing.assert_array_equal(scaled["kernel"], 3 * np.ones((2, 2)))
    np.testing.assert_array_equal(scaled["bias"], np.ones(2))
    with pytest.raises(ValueError, match=r"has an argument 'scale' already"):
        networks.with_scale(networks.with_scale(problem))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "swish2"}, r"activation: .*tanh, relu.*'swish2'"),
        ({"loss": "hinge"}, r"loss: expected one of cross_entropy, mse, got 'hinge'"),
        ({"widths": (3, 0)}, r"widths: expected an integer of at least 1 .*\(3, 0\)"),
        ({"widths": (3, 2.5)}, r"widths: expected an integer of at least 1"),
        ({"labels": LABELS * 1.0}, r"labels: expected a vector of integers from 0, got dtype float64"),
        ({"labels": LABELS - 1}, r"labels: expected a vector of integers from 0"),
        ({"labels": LABELS[:, None]}, r"labels: .*shape \(5, 1\)"),
        ({"labels": LABELS[:3]}, r"data\[1\]: leading axis has 3"),
    ],
)
def test_bad_choices_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        networks.mlp_classification(**{"inputs": TABLE, "labels": LABELS, "widths": (3,), **changes})
