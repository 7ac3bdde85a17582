"""Training set-ups of public questions "why does my training loss go up?", rebuilt: cases 1, 2 and 5 of five.

What the poster stated is called *reported* here; what had to be chosen in its place is called a *stand-in*.
"""

from __future__ import annotations

import importlib.resources
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lossland.arguments import FLAG, MOST_EXAMPLES, MOST_UNITS, TREE, Rule, choice, count, expects, number, optional
from lossland.problems.problem import Batch, Params, Problem

GLOROT_LIMIT = math.sqrt(6 / 2)
"""Bound of Keras' Glorot-uniform draw for one input and one output: sqrt(6 / (fan_in + fan_out))."""

HIDDEN = (128, 64)
"""Units of the two tanh layers of `numpy_mlp`."""


@expects(num_examples=count(1, MOST_EXAMPLES), standardised=FLAG)
def linear_regression(num_examples: int = 20, standardised: bool = False) -> Problem:
    """Build case 1, one Dense unit on x = 1..n, y = x/2, whose loss grows without bound under Keras' SGD at 0.01.

    Equation: `loss = mean over examples of (weight x + bias - y)^2`, without 1/2. Its Hessian in (weight, bias) is
    constant, `2 [[mean x^2, mean x], [mean x, 1]]`: sharpness 288.539 at n = 20; 2 with standardised inputs.

    Reported: data, loss, full batch, Glorot-uniform weight, zero bias, n = 20 (diverges) and n = 10 (converges).
    `standardised` replaces x by (x - mean x) / (deviation of x), the cure; y stays.

    Parameters: `{"weight", "bias"}`, scalars.
    Hyperparameters: `initial_weight` replaces the draw; left alone, the weight is drawn from U(-sqrt 3, sqrt 3).

    Raises:
        ValueError: for no examples, or fewer than two to standardise.
    """
    least = 2 if standardised else 1
    if num_examples < least:
        raise ValueError(f"num_examples: expected at least {least}, got {num_examples}")
    x, y = _line(num_examples)
    if standardised:
        x = (x - x.mean()) / x.std()

    def loss(params: Params, batch: Batch) -> jax.Array:
        x, y = batch
        return jnp.mean((params["weight"] * x + params["bias"] - y) ** 2)

    return Problem(
        _glorot_init,
        loss,
        (x.astype(np.float32), y.astype(np.float32)),
        name="linear_regression",
        description=f"y = x/2 on x = 1..{num_examples}{', standardised' if standardised else ''}.",
    )


@expects(max_examples=count(2, MOST_EXAMPLES), standardised=FLAG)
def linear_regression_family(max_examples: int = 40, standardised: bool = False) -> Problem:
    """Build case 1 for every number of examples at once, so that one sweep draws a phase diagram over it.

    Equation: `loss = sum over i <= n of (weight x_i + bias - y_i)^2 / n`, the loss of `linear_regression(n)`, on data
    x = 1..max_examples. Full batch only: the mask goes by position.

    Parameters: `{"weight", "bias"}`, scalars.
    Hyperparameters: `num_examples` n, from 1 (2 if standardised) to `max_examples`, its default. Not checked, as it may
    be traced: smaller ones make NaN, larger ones divide by too much. `initial_weight` as in `linear_regression`.

    Raises:
        ValueError: for fewer than two examples.
    """
    if max_examples < 2:
        raise ValueError(f"max_examples: expected at least 2, got {max_examples}")
    x, y = _line(max_examples)

    def loss(params: Params, batch: Batch, *, num_examples: Any = max_examples) -> jax.Array:
        x, y = batch
        if standardised:  # mean and variance of 1..n in closed form
            x = (x - (num_examples + 1) / 2) / jnp.sqrt((jnp.asarray(num_examples, x.dtype) ** 2 - 1) / 12)
        counted = jnp.arange(x.shape[0]) < num_examples
        # Masked before squaring: an overflow among the examples left out must not reach the gradient.
        residual = jnp.where(counted, params["weight"] * x + params["bias"] - y, 0)
        return jnp.sum(residual**2) / num_examples

    return Problem(
        _glorot_init,
        loss,
        (x.astype(np.float32), y.astype(np.float32)),
        name="linear_regression_family",
        description=f"y = x/2 on x = 1..n, n up to {max_examples}{', standardised' if standardised else ''}.",
    )


def printed_losses() -> np.ndarray:
    """Read the losses that Keras printed for epochs 1 to 20 of case 1: `Float64["20"]`, a float32 run's digits.

    Full batch, so an epoch is a step, and Keras prints the loss from before the step: the first one belongs to the
    initial weight.
    """
    table = importlib.resources.files("lossland.problems") / "keras_linear_regression_epochs.csv"
    return np.array([float(line.split(",")[1]) for line in table.read_text(encoding="utf-8").splitlines()[1:]])


@expects(data=choice("moons", "breast_cancer"), wrong_db1=FLAG, numpy_seed=optional(count(0, 2**32 - 1)))
def numpy_mlp(
    data: Literal["moons", "breast_cancer"] = "moons",
    wrong_db1: bool = False,
    numpy_seed: int | None = None,
) -> Problem:
    """Build case 2, two tanh layers written by hand in NumPy, whose full-batch loss spikes at the start.

    Equation: `z = tanh(tanh(x W1 + b1) W2 + b2) W3 + b3`, `loss = mean over examples of log(1 + e^z) - y z`, the binary
    cross-entropy of sigmoid(z), from logits.

    Reported: 128 and 64 units, W1 ~ U[0, 1), W2 and W3 ~ N(0, 1), zero biases, full batch; learning rate 0.01 falls, 1
    spikes; larger initial weights rise first at 0.01 too; the first layer's bias gradient is summed over all entries.
    Stand-ins: the data, 400 points of two half-moons with noise 0.2, or scikit-learn's standardised breast-cancer
    table; averaging over examples; JAX's draws from the reported distributions, except with `numpy_seed`.

    Args:
        data: `"moons"` or `"breast_cancer"`.
        wrong_db1: train with the poster's mistake: the gradient of b1 is, in every entry, the sum of all entries. Only
            the first derivative is wrong: the Hessian, as the derivative of `jax.grad`, is that of the loss, so
            sharpness stays what it is.
        numpy_seed: start every run from `numpy_mlp_initial_params(numpy_seed)`, whatever the sweep's seed; the
            poster's is 4.

    Parameters: `{"W1", "b1", "W2", "b2", "W3", "b3"}`, weights `Float[Array, "input unit"]`, the transpose of the
    poster's.
    Hyperparameters: `scale` (1) multiplies the initial weights.

    Raises:
        ValueError: for other data, or if scikit-learn is missing.
    """
    inputs, labels = _numpy_mlp_data(data)
    num_inputs = inputs.shape[1]

    def init(key: jax.Array, *, scale: Any = 1.0) -> Params:
        if numpy_seed is not None:
            params = numpy_mlp_initial_params(numpy_seed, num_inputs)
            return {name: jnp.float32(leaf) * (scale if name[0] == "W" else 1.0) for name, leaf in params.items()}
        keys = [jax.random.fold_in(key, layer) for layer in range(3)]
        return {
            "W1": scale * jax.random.uniform(keys[0], (num_inputs, HIDDEN[0])),
            "b1": jnp.zeros(HIDDEN[0]),
            "W2": scale * jax.random.normal(keys[1], HIDDEN),
            "b2": jnp.zeros(HIDDEN[1]),
            "W3": scale * jax.random.normal(keys[2], (HIDDEN[1], 1)),
            "b3": jnp.zeros(1),
        }

    def loss(params: Params, batch: Batch) -> jax.Array:
        x, y = batch
        b1 = _with_summed_gradient(params["b1"]) if wrong_db1 else params["b1"]
        first = jnp.tanh(x @ params["W1"] + b1)
        second = jnp.tanh(first @ params["W2"] + params["b2"])
        logits = (second @ params["W3"] + params["b3"])[:, 0]
        return jnp.mean(jax.nn.softplus(logits) - y * logits)

    return Problem(
        init,
        loss,
        (inputs, labels),
        name="numpy_mlp" + ("" if data == "moons" else f"_{data}") + ("_wrong_db1" if wrong_db1 else ""),
        description=f"{num_inputs}-128-64-1 tanh network by hand on {data}"
        + (", gradient of b1 summed over all entries." if wrong_db1 else "."),
    )


@expects(seed=count(0, 2**32 - 1), num_inputs=count(1, MOST_UNITS))
def numpy_mlp_initial_params(seed: int = 4, num_inputs: int = 2) -> dict[str, np.ndarray]:
    """Draw case 2's starting point as NumPy does after `np.random.seed(seed)`, in double precision.

    Draws in order W1 = rand(128, inputs), W2 = randn(64, 128), W3 = randn(1, 64), then transposed to
    `Float64["input unit"]`; biases are zero. Global random state is left alone.
    """
    legacy = np.random.RandomState(seed)
    w1 = legacy.rand(HIDDEN[0], num_inputs)
    w2 = legacy.randn(HIDDEN[1], HIDDEN[0])
    w3 = legacy.randn(1, HIDDEN[1])
    return {
        "W1": w1.T,
        "b1": np.zeros(HIDDEN[0]),
        "W2": w2.T,
        "b2": np.zeros(HIDDEN[1]),
        "W3": w3.T,
        "b3": np.zeros(1),
    }


@expects(
    params=Rule(
        "a dict of W1, b1, W2, b2, W3, b3", lambda params: {*params} == {*["W1", "b1", "W2", "b2", "W3", "b3"]}
    ),
    batch=TREE,
    wrong_db1=FLAG,
)
def numpy_mlp_gradient(params: Any, batch: Any, wrong_db1: bool = True) -> dict[str, np.ndarray]:
    """Return the gradient of case 2's loss by a backward pass written by hand in NumPy, in double precision.

    Equations: `dZ3 = (sigmoid(z) - y) / m`, `dW = A^T dZ`, `db = sum over examples of dZ`,
    `dZ_below = (dZ W^T) (1 - A^2)`. With `wrong_db1`, as reported, db1 is dZ1 summed over *all* entries, one number,
    which subtraction spreads over the whole vector; it comes in the shape of b1.
    """
    p = {name: np.asarray(leaf, dtype=np.float64) for name, leaf in params.items()}
    x, y = (np.asarray(leaf, dtype=np.float64) for leaf in batch)
    a1 = np.tanh(x @ p["W1"] + p["b1"])
    a2 = np.tanh(a1 @ p["W2"] + p["b2"])
    z3 = a2 @ p["W3"] + p["b3"]
    dz3 = (0.5 * (1 + np.tanh(z3 / 2)) - y[:, None]) / len(x)
    dz2 = (dz3 @ p["W3"].T) * (1 - a2**2)
    dz1 = (dz2 @ p["W2"].T) * (1 - a1**2)
    return {
        "W1": x.T @ dz1,
        "b1": np.full(HIDDEN[0], dz1.sum()) if wrong_db1 else dz1.sum(axis=0),
        "W2": a1.T @ dz2,
        "b2": dz2.sum(axis=0),
        "W3": a2.T @ dz3,
        "b3": dz3.sum(axis=0),
    }


@expects(deviation=number(least=0), seed=count(0))
def course_mlp(deviation: float = 0.4, seed: int = 0) -> Problem:
    """Build case 5, the "complex" classifier of a course's lab, whose epoch loss sometimes rises under Adam at 0.01.

    Equation: `loss = mean over examples of -log softmax(z)[label]`, z from a network 2 -> 120 relu -> 40 relu -> 6.

    Reported: Adam at 0.01, rises on some epochs. Stand-ins, as the lab is commonly taught: the layers; 400 points in
    six Gaussian blobs at the lab's centres with a deviation of 0.4, shuffled once; batches of 32 (an epoch ends with
    16); Glorot-uniform weights, zero biases.

    Args:
        deviation, seed: of the points.

    Hyperparameters: `scale` (1) multiplies the initial weights.

    Raises:
        ValueError: for a negative deviation.
    """
    from flax import linen as nn

    from lossland.problems.networks import MLP, classification_loss, with_scale
    from lossland.problems.synthetic import gaussian_blobs

    points, labels = gaussian_blobs(400, deviation=deviation, seed=seed)
    order = np.random.default_rng(seed).permutation(len(labels))  # blobs come sorted by label
    return with_scale(
        Problem.from_flax(
            MLP((120, 40, 6), nn.relu, kernel_init=nn.initializers.glorot_uniform()),
            classification_loss("cross_entropy"),
            (points[order], labels[order]),
            name="course_mlp",
            description="A 2-120-40-6 relu network on six blobs, 400 points.",
        )
    )


def course_mlp_logits(params: Params, inputs: Any) -> jax.Array:
    """Return the logits of `course_mlp`: `Float["example feature"] -> Float["example class"]`."""
    for layer in range(3):
        dense = params[f"Dense_{layer}"]
        inputs = (jax.nn.relu(inputs) if layer else inputs) @ dense["kernel"] + dense["bias"]
    return inputs


def _line(num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.arange(1, num_examples + 1, dtype=np.float64)
    return x, x / 2


def _glorot_init(key: jax.Array, *, initial_weight: Any = None) -> Params:
    # None is no value an axis can take: it only says that nothing replaces the draw.
    if initial_weight is None:
        initial_weight = jax.random.uniform(key, (), minval=-GLOROT_LIMIT, maxval=GLOROT_LIMIT)
    return {"weight": jnp.asarray(initial_weight), "bias": jnp.zeros_like(initial_weight)}


def _numpy_mlp_data(data: str) -> tuple[np.ndarray, np.ndarray]:
    if data == "moons":
        from lossland.problems.synthetic import half_moons

        inputs, labels = half_moons(400, noise=0.2, seed=0)
    elif data == "breast_cancer":
        from lossland.problems.datasets import breast_cancer_table

        inputs, labels = breast_cancer_table()
    else:
        raise ValueError(f"data: expected 'moons' or 'breast_cancer', got {data!r}")
    return inputs, labels.astype(np.float32)


@jax.custom_vjp
def _with_summed_gradient(bias: jax.Array) -> jax.Array:
    """Pass a vector through; in the backward pass every entry receives the sum of all."""
    return bias


@jax.custom_jvp
def _summed(cotangent: jax.Array) -> jax.Array:
    return jnp.full_like(cotangent, jnp.sum(cotangent))


# The mistake belongs to the gradient alone: differentiating it again gives the true Hessian's row.
_summed.defjvp(lambda primals, tangents: (_summed(*primals), *tangents))
_with_summed_gradient.defvjp(lambda bias: (bias, None), lambda _, cotangent: (_summed(cotangent),))
