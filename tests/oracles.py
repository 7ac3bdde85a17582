"""Independent references: NumPy in float64, dense matrices, closed forms."""

import jax
import numpy as np

import lossland as ll
from lossland.sweeps.training import starting_points


def starting_point(problem: ll.Problem, seed: int) -> list[dict[str, np.ndarray]]:
    """The starting point of a seed: drawn in float32 by the library's own program, then in float64."""
    options = {"xla_backend_optimization_level": 1}
    params, _ = jax.jit(starting_points(problem), compiler_options=options)({}, np.full((1, 1), seed, np.uint32))
    return jax.tree.map(lambda leaf: np.asarray(leaf[0, 0], np.float64), params)


def network_loss_and_gradient(params, inputs, targets):
    """Mean squared error of a tanh network and its gradient, by hand."""
    activations = [inputs]
    for layer in params[:-1]:
        activations.append(np.tanh(activations[-1] @ layer["w"] + layer["b"]))
    error = activations[-1] @ params[-1]["w"] + params[-1]["b"] - targets
    signal = 2 * error / error.size
    gradient = []
    for index in reversed(range(len(params))):
        gradient.append({"w": activations[index].T @ signal, "b": signal.sum(0)})
        signal = (signal @ params[index]["w"].T) * (1 - activations[index] ** 2)
    return np.mean(error**2), gradient[::-1]


def numpy_trajectory(problem: ll.Problem, name: str, arguments: dict, seed: int, num_steps: int) -> np.ndarray:
    """Losses of `num_steps` steps of an optimizer written out in NumPy, from the loss before step 0 on."""
    params = starting_point(problem, seed)
    inputs, targets = problem.data
    first = [{k: np.zeros_like(v) for k, v in layer.items()} for layer in params]
    second = [{k: np.zeros_like(v) for k, v in layer.items()} for layer in params]
    largest = [{k: np.zeros_like(v) for k, v in layer.items()} for layer in params]
    losses = []
    for step in range(1, num_steps + 2):
        loss, gradient = network_loss_and_gradient(params, inputs, targets)
        losses.append(loss)
        for i, layer in enumerate(params):
            for k in layer:
                layer[k] = layer[k] + RULES[name](
                    gradient[i][k], layer[k], first[i], second[i], largest[i], k, step, **arguments
                )
    return np.array(losses)


def _sgd(g, x, m, v, top, k, t, learning_rate):
    return -learning_rate * g


def _momentum(g, x, m, v, top, k, t, learning_rate, momentum):
    m[k] = momentum * m[k] + g
    return -learning_rate * m[k]


def _nesterov(g, x, m, v, top, k, t, learning_rate, momentum):
    m[k] = momentum * m[k] + g
    return -learning_rate * (g + momentum * m[k])


def _rmsprop(g, x, m, v, top, k, t, learning_rate, decay, eps):
    v[k] = decay * v[k] + (1 - decay) * g**2
    return -learning_rate * g / np.sqrt(v[k] + eps)


def _adam(g, x, m, v, top, k, t, learning_rate, b1, b2, eps):
    m[k] = b1 * m[k] + (1 - b1) * g
    v[k] = b2 * v[k] + (1 - b2) * g**2
    return -learning_rate * (m[k] / (1 - b1**t)) / (np.sqrt(v[k] / (1 - b2**t)) + eps)


def _adamw(g, x, m, v, top, k, t, learning_rate, b1, b2, eps, weight_decay):
    return _adam(g, x, m, v, top, k, t, learning_rate, b1, b2, eps) - learning_rate * weight_decay * x


def _amsgrad(g, x, m, v, top, k, t, learning_rate, b1, b2, eps):
    m[k] = b1 * m[k] + (1 - b1) * g
    v[k] = b2 * v[k] + (1 - b2) * g**2
    top[k] = np.maximum(top[k], v[k] / (1 - b2**t))
    return -learning_rate * (m[k] / (1 - b1**t)) / (np.sqrt(top[k]) + eps)


RULES = {
    "sgd": _sgd,
    "momentum": _momentum,
    "nesterov": _nesterov,
    "rmsprop": _rmsprop,
    "adam": _adam,
    "adamw": _adamw,
    "amsgrad": _amsgrad,
}
