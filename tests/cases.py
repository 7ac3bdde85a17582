"""Small problems and optimizers that many tests share: one row each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lossland as ll


def linear_problem(num_examples: int = 20) -> ll.Problem:
    """y = x / 2 on x = 1 ... n, one weight and one bias: two parameters, constant Hessian."""
    x = np.arange(1, num_examples + 1, dtype=float)[:, None]

    def init(key, *, scale=1.0):
        return {"w": scale * jax.random.uniform(key, (1, 1), minval=-1.7, maxval=1.7), "b": jnp.zeros(1)}

    def loss(params, batch):
        inputs, targets = batch
        return jnp.mean((inputs @ params["w"] + params["b"] - targets) ** 2)

    return ll.Problem(init, loss, (x, x / 2), name="line")


def network_problem(width: int = 12, num_examples: int = 24) -> ll.Problem:
    """tanh network 1-width-width-1 on a cubic, mean squared error."""
    x = np.linspace(-1, 1, num_examples)[:, None]
    # Neither odd nor even: where symmetry makes a gradient vanish, adaptive optimizers amplify its rounding errors.
    y = 4 * x**3 - 3 * x + np.cos(2 * x)

    def init(key, *, scale=1.0):
        keys = jax.random.split(key, 3)
        sizes = [(1, width), (width, width), (width, 1)]
        return [
            {"w": scale * jax.random.normal(k, (m, n)) / np.sqrt(m), "b": jnp.zeros(n)}
            for k, (m, n) in zip(keys, sizes, strict=True)
        ]

    def loss(params, batch):
        hidden, targets = batch
        for layer in params[:-1]:
            hidden = jnp.tanh(hidden @ layer["w"] + layer["b"])
        return jnp.mean((hidden @ params[-1]["w"] + params[-1]["b"] - targets) ** 2)

    return ll.Problem(init, loss, (x, y), name="cubic")


@functools.cache
def problem_named(name: str) -> ll.Problem:
    """One object per problem, so that tests share compiled programs."""
    return {"line": linear_problem, "cubic": network_problem}[name]()


OPTIMIZERS = {
    "sgd": (optax.sgd, {"learning_rate": 0.05}),
    "momentum": (optax.sgd, {"learning_rate": 0.02, "momentum": 0.9}),
    "nesterov": (functools.partial(optax.sgd, nesterov=True), {"learning_rate": 0.02, "momentum": 0.9}),
    "rmsprop": (optax.rmsprop, {"learning_rate": 1e-3, "decay": 0.9, "eps": 1e-7}),
    "adam": (optax.adam, {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.999, "eps": 1e-8}),
    "adamw": (optax.adamw, {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.1}),
    "amsgrad": (optax.amsgrad, {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.99, "eps": 1e-8}),
}
