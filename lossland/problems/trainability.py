"""Landscapes on which the boundary between convergence and divergence has been studied as a fractal."""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lossland.arguments import MOST_EXAMPLES, MOST_UNITS, choice, count, expects, optional
from lossland.problems.problem import Batch, Params, Problem

SCALED_ACTIVATIONS = {
    "identity": lambda z: z,
    "relu": lambda z: math.sqrt(2) * jax.nn.relu(z),
    "tanh": lambda z: jnp.tanh(math.sqrt(2) * z),
}
"""Activations with the factors that keep the size of a signal at initialisation."""


@expects(
    width=count(1, MOST_UNITS),
    activation=choice("identity", "relu", "tanh"),
    num_examples=optional(count(1, MOST_EXAMPLES)),
    data_seed=count(0),
)
def mean_field_network(
    width: int = 16,
    activation: Literal["identity", "relu", "tanh"] = "tanh",
    num_examples: int | None = None,
    data_seed: int = 0,
) -> Problem:
    """Build a network of one hidden layer in mean-field scaling, without biases, on Gaussian noise.

    Equation: `f(x) = a(x U / sqrt(n)) v / n`, `loss = mean over examples of (f(x) - y)^2`, with x, y, U, v ~ N(0, 1),
    as many inputs as hidden units (n), and a the activation, scaled by sqrt(2) where it is not linear. Parameters:
    `{"input": Float["n n"], "output": Float["n 1"]}`. By default there are as many examples as the function has free
    dimensions: n^2 + n, or n for the linear network.

    Hyperparameters: `offset` (0) is added to all initial weights of the input layer.

    Raises:
        ValueError: for an unknown activation, or a width or number of examples below 1.

    Source: Sohl-Dickstein 2024 (arXiv 2402.06184), sections 2 and 3.
    """
    if activation not in SCALED_ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(SCALED_ACTIVATIONS)}, got {activation!r}")
    if num_examples is None:
        num_examples = width if activation == "identity" else width**2 + width
    for name, value in (("width", width), ("num_examples", num_examples)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    act = SCALED_ACTIVATIONS[activation]
    generator = np.random.default_rng(data_seed)

    def init(key: jax.Array, *, offset: Any = 0.0) -> Params:
        first, second = jax.random.split(key)
        inner = jax.random.normal(first, (width, width)) + offset
        return {"input": inner, "output": jax.random.normal(second, (width, 1))}

    def loss(params: Params, batch: Batch) -> jax.Array:
        x, y = batch
        hidden = act(x @ params["input"] / math.sqrt(width))
        return jnp.mean((hidden @ params["output"] / width - y) ** 2)

    return Problem(
        init,
        loss,
        (generator.normal(size=(num_examples, width)), generator.normal(size=(num_examples, 1))),
        name=f"mean_field_{activation}",
        description=f"One hidden layer of {width} {activation} units in mean-field scaling, fitted to noise.",
    )


def cosine_quadratic() -> Problem:
    """Build a parabola with a cosine on it, convex where roughness <= 1.

    Equation: `loss = x^2 + eps cos(2 pi x / wavelength)`, `eps = roughness wavelength^2 / (2 pi^2)`, so that
    roughness = 1 is eps / wavelength^2 = 1 / (2 pi^2), where the second derivative 2 (1 - roughness cos) first touches
    zero. One parameter, x, drawn uniformly from [1/2, 3/2] times `start`.

    Hyperparameters: `roughness` (1), `wavelength` (0.1), `start` (1).

    Source: Liu 2024 (arXiv 2406.13971), additive perturbation.
    """

    def init(key: jax.Array, *, start: Any = 1.0) -> Params:
        return start * jax.random.uniform(key, (), minval=0.5, maxval=1.5)

    def loss(params: Params, batch: Batch, *, roughness: Any = 1.0, wavelength: Any = 0.1) -> jax.Array:
        size = roughness * wavelength**2 / (2 * math.pi**2)
        # A run that diverges goes far out, where the cosine of a large argument is slow: whole turns are taken off.
        turns = params / wavelength
        return params**2 + size * jnp.cos(2 * math.pi * (turns - jnp.round(turns))) + 0 * jnp.sum(batch)

    return Problem(
        init,
        loss,
        np.zeros(1),
        name="cosine_quadratic",
        description="A parabola with a cosine on it.",
    )
