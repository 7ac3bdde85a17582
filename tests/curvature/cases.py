"""One table of small problems for all tests of curvature: parameters, model, loss, and dense references in float64."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree


class Case(NamedTuple):
    """objective(params) = loss(predict(params, inputs), targets); data = (inputs, targets), params in float64 NumPy."""

    params: Any
    predict: Callable[[Any, Any], Any]
    loss: Callable[[Any, Any], Any]
    data: tuple[Any, Any]

    def objective(self, params: Any) -> Any:
        inputs, targets = self.cast(self.data, params)
        return self.loss(self.predict(params, inputs), targets)

    def cast(self, tree: Any, params: Any) -> Any:
        dtype = jax.tree.leaves(params)[0].dtype
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype if leaf.dtype.kind == "f" else None), tree)

    def params_as(self, dtype: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), self.params)


def mean_squared_error(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


def cross_entropy(logits, labels):
    chosen = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)


def _layers(rng, sizes):
    return [
        {"w": rng.normal(size=(m, n)) / np.sqrt(m), "b": 0.1 * rng.normal(size=n)} for m, n in itertools.pairwise(sizes)
    ]


def _network(activation):
    def predict(params, inputs):
        for layer in params[:-1]:
            inputs = activation(inputs @ layer["w"] + layer["b"])
        return inputs @ params[-1]["w"] + params[-1]["b"]

    return predict


def tanh_mse():
    rng = np.random.default_rng(0)
    x = np.linspace(-1, 1, 24)[:, None]
    return Case(_layers(rng, (1, 12, 8, 1)), _network(jnp.tanh), mean_squared_error, (x, 4 * x**3 - 3 * x))


def relu_cross_entropy():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 40)
    x = rng.normal(size=(40, 4)) + labels[:, None]
    return Case(_layers(rng, (4, 10, 8, 3)), _network(jax.nn.relu), cross_entropy, (x, labels))


def tanh_cross_entropy():
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 4, 30)
    x = rng.normal(size=(30, 6)) + labels[:, None]
    return Case(_layers(rng, (6, 9, 4)), _network(jnp.tanh), cross_entropy, (x, labels))


def convolutional():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 20)
    x = rng.normal(size=(20, 6, 6, 1)) + 0.5 * labels[:, None, None, None]
    params = {"kernel": rng.normal(size=(3, 3, 1, 4)) / 3, "dense": _layers(rng, (16, 3))}

    def predict(params, images):
        dimensions = ("NHWC", "HWIO", "NHWC")
        hidden = lax.conv_general_dilated(images, params["kernel"], (1, 1), "VALID", dimension_numbers=dimensions)
        hidden = jax.nn.relu(hidden)
        pooled = hidden.reshape(-1, 2, 2, 2, 2, 4).mean(axis=(2, 4)).reshape(-1, 16)
        return pooled @ params["dense"][0]["w"] + params["dense"][0]["b"]

    return Case(params, predict, cross_entropy, (x, labels))


def recurrent():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 16)
    x = rng.normal(size=(16, 6, 2)) + 0.5 * labels[:, None, None]
    params = {"cell": _layers(rng, (2 + 7, 7))[0], "out": _layers(rng, (7, 2))[0]}

    def predict(params, sequences):
        def step(state, inputs):
            joined = jnp.concatenate([inputs, state], axis=-1)
            return jnp.tanh(joined @ params["cell"]["w"] + params["cell"]["b"]), None

        state, _ = lax.scan(step, jnp.zeros((sequences.shape[0], 7), sequences.dtype), sequences.swapaxes(0, 1))
        return state @ params["out"]["w"] + params["out"]["b"]

    return Case(params, predict, cross_entropy, (x, labels))


def deep_linear():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(30, 5))
    return Case(_layers(rng, (5, 6, 6, 3)), _network(lambda h: h), mean_squared_error, (x, x[:, :3] - x[:, 2:]))


def least_squares():
    """8 examples, 60 parameters: a Hessian of rank 8."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(8, 60)) / 3

    def loss(outputs, targets):
        return 0.5 * jnp.mean((outputs - targets) ** 2)

    return Case({"w": rng.normal(size=60)}, lambda params, inputs: inputs @ params["w"], loss, (x, rng.normal(size=8)))


def quadratic():
    """Eigenvalues 5, 5, 3, 1, then 0.4 ... -2, in a random basis; no data but the matrix."""
    values = np.concatenate([[5, 5, 3, 1], np.linspace(0.4, -2, 36)])
    matrix = symmetric(values, seed=6)
    return Case(
        {"a": np.linspace(-1, 1, 15), "b": np.ones((5, 5))},
        lambda params, inputs: inputs @ ravel_pytree(params)[0],
        lambda outputs, targets: jnp.zeros((), outputs.dtype) + 0.5 * jnp.sum(outputs**2 * targets),
        (np.linalg.eigh(matrix)[1].T, np.linalg.eigvalsh(matrix)),
    )


def symmetric(values: Any, seed: int = 0) -> np.ndarray:
    """A symmetric matrix with these eigenvalues in a random basis."""
    values = np.asarray(values, dtype=float)
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))
    matrix = (basis * values) @ basis.T
    return (matrix + matrix.T) / 2


CASES = {
    function.__name__: function
    for function in (
        tanh_mse,
        relu_cross_entropy,
        tanh_cross_entropy,
        convolutional,
        recurrent,
        deep_linear,
        least_squares,
        quadratic,
    )
}


@functools.cache
def case_named(name: str) -> Case:
    return CASES[name]()


@functools.cache
def dense_hessian_named(name: str) -> np.ndarray:
    """The Hessian by reverse over reverse in float64: another path than the library's."""
    case = case_named(name)
    with jax.enable_x64(True):
        flat, unravel = ravel_pytree(case.params_as("float64"))
        gradient = jax.grad(lambda flat: case.objective(unravel(flat)))
        rows = jax.jit(jax.jacrev(gradient), compiler_options=QUICK)(flat)
        return np.asarray(rows)


# The cheapest code generation: these tests compile many programs and run each once.
QUICK = {"xla_backend_optimization_level": 0}


def quick_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(function, compiler_options=QUICK)
