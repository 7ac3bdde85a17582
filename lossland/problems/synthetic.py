"""Generated problems: quadratics, solvable linear models, and small tables of points for classification.

Everything is generated with NumPy from a seed. That seed fixes the data and is an option of the builder; the seeds of a
sweep draw starting points only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossland.arguments import MOST_EXAMPLES, MOST_UNITS, NUMBERS, WIDTHS, count, expects, number, several
from lossland.problems.networks import Activation, Loss, mlp_classification, mlp_regression
from lossland.problems.problem import Batch, Params, Problem

COURSE_CENTRES = ((-1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.0, -1.0), (-2.0, 1.0), (-2.0, -1.0))
"""Centres of the six blobs of the classification lab that case 5 trains on."""


@expects(eigenvalues=several(number()))
def quadratic(eigenvalues: Sequence[float] = (1.0, 10.0, 100.0)) -> Problem:
    """Build a quadratic with a diagonal Hessian.

    Equation: `loss = mean over examples of 1/2 sum_i eigenvalues_i (p_i - c_i)^2`, with a single example c = 0 as data.
    Negative eigenvalues make a saddle. Parameters: `Float[Array, "eigenvalue"]`, drawn from N(0, 1).

    Hyperparameters: `scale` (1) multiplies the starting point.

    Raises:
        ValueError: unless the eigenvalues are a non-empty vector of finite numbers.
    """
    curvatures = np.asarray(eigenvalues, dtype=np.float64)
    if curvatures.ndim != 1 or curvatures.size == 0 or not np.isfinite(curvatures).all():
        raise ValueError(f"eigenvalues: expected a non-empty list of finite numbers, got {eigenvalues!r}")

    def init(key: jax.Array, *, scale: Any = 1.0) -> Params:
        return scale * jax.random.normal(key, (curvatures.size,))

    def loss(params: Params, batch: Batch) -> jax.Array:
        # Stored in double precision, so that a float64 sweep sees the eigenvalues as they were given.
        return 0.5 * jnp.mean((params - batch) ** 2 @ jnp.asarray(curvatures, params.dtype))

    return Problem(
        init,
        loss,
        np.zeros((1, curvatures.size), np.float32),
        name="quadratic",
        description="Quadratic with a diagonal Hessian.",
    )


@expects(width=count(1, MOST_UNITS))
def uv_model(width: int = 512) -> Problem:
    """Build the solvable model of the catapult, one hidden linear layer without biases.

    Equation: f(x) = u.v x / sqrt(n); `loss = mean over examples of 1/2 (f(x) - y)^2` on the single example (1, 0).
    Parameters: `{"u", "v"}`, `Float[Array, "width"]` each, drawn from N(0, 1). With kappa = (|u|^2 + |v|^2) / n, a
    gradient-descent step of size eta gives exactly
    `f <- f (1 - eta kappa + eta^2 f^2 / n)`, `kappa <- kappa + eta f^2 / n (eta kappa - 4)`:
    the loss falls for eta kappa < 2, is catapulted up to 4, diverges beyond.

    Hyperparameters: `scale` (1) multiplies the initial weights.

    Source: Lewkowycz et al. 2020, section 2, eqs. (2)-(5).
    """
    if width < 1:
        raise ValueError(f"width: expected at least 1, got {width}")

    def init(key: jax.Array, *, scale: Any = 1.0) -> Params:
        u, v = scale * jax.random.normal(key, (2, width))
        return {"u": u, "v": v}

    def loss(params: Params, batch: Batch) -> jax.Array:
        x, y = batch
        return 0.5 * jnp.mean((params["u"] @ params["v"] / math.sqrt(width) * x - y) ** 2)

    return Problem(
        init,
        loss,
        (np.ones(1, np.float32), np.zeros(1, np.float32)),
        name="uv_model",
        description=f"u.v / sqrt({width}) fitted to zero.",
    )


@expects(
    num_features=count(1, MOST_UNITS),
    num_examples=count(1, MOST_EXAMPLES),
    dimension=count(1, MOST_UNITS),
    seed=count(0),
)
def random_features(num_features: int = 32, num_examples: int = 256, dimension: int = 8, seed: int = 0) -> Problem:
    """Build least squares on random Fourier features, fitted exactly at zero.

    Equation: `loss = mean over examples of 1/2 (phi(x).p)^2`, phi_j(x) = sqrt(2) cos(w_j.x + b_j), w_j ~ N(0, I), b_j
    uniform on the circle, x ~ N(0, I) in `dimension` dimensions. The target is 0 and so is the minimum, for every
    example: a target in the span of the features moves the minimum and nothing else. The examples' Hessians phi phi^T
    have rank one. Parameters: `Float[Array, "feature"]`, drawn from N(0, 1).

    Hyperparameters: `scale` (1) multiplies the starting point.

    Raises:
        ValueError: unless there is at least one of each.

    Source: Rahimi and Recht 2007 (the features).
    """
    if min(num_features, num_examples, dimension) < 1:
        raise ValueError(
            f"random_features: expected at least 1 feature, example and dimension, got {num_features}, {num_examples}, "
            f"{dimension}"
        )
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(num_examples, dimension))
    phase = generator.uniform(0, 2 * np.pi, num_features)
    features = np.sqrt(2) * np.cos(inputs @ generator.normal(size=(dimension, num_features)) + phase)

    def init(key: jax.Array, *, scale: Any = 1.0) -> Params:
        return scale * jax.random.normal(key, (num_features,))

    def loss(params: Params, batch: Batch) -> jax.Array:
        return 0.5 * jnp.mean((batch @ params) ** 2)

    return Problem(
        init,
        loss,
        features.astype(np.float32),
        name="random_features",
        description=f"Least squares on {num_features} random features, {num_examples} examples, fitted exactly.",
    )


@expects(dimension=count(1, MOST_UNITS), depth=count(1, 2**10), num_examples=count(1, MOST_EXAMPLES), seed=count(0))
def deep_linear(dimension: int = 8, depth: int = 3, num_examples: int = 32, seed: int = 0) -> Problem:
    """Build a deep linear network that learns a square matrix from whitened inputs.

    Equation: `loss = mean over examples of 1/2 |W_depth ... W_1 x - A x|^2`, A_ij ~ N(0, 1 / dimension). The inputs
    are cosines, `x_ij = sqrt(2) cos(pi (i + 1/2) j / num_examples)` for j = 1..dimension: their second moment is the
    identity, so the loss is `1/2 |W_depth ... W_1 - A|_F^2`. All layers are square and have no bias.

    Hyperparameters: `scale` (1) multiplies the initial weights.

    Raises:
        ValueError: if there are no more examples than dimensions, when they cannot be whitened so.
    """
    if depth < 1 or dimension < 1 or num_examples <= dimension:
        raise ValueError(
            f"deep_linear: expected depth and dimension of at least 1 and num_examples > dimension, got depth {depth}, "
            f"dimension {dimension}, num_examples {num_examples}"
        )
    phase = np.pi * (np.arange(num_examples)[:, None] + 0.5) * np.arange(1, dimension + 1) / num_examples
    inputs = np.sqrt(2) * np.cos(phase)
    teacher = np.random.default_rng(seed).normal(size=(dimension, dimension)) / np.sqrt(dimension)
    return mlp_regression(
        inputs,
        inputs @ teacher.T,
        widths=(dimension,) * (depth - 1),
        activation="identity",
        use_bias=False,
        name="deep_linear",
        description=f"Linear network of {depth} square layers on whitened inputs.",
    )


@expects(degree=count(0, 2**10), num_examples=count(1, MOST_EXAMPLES), widths=WIDTHS)
def chebyshev(
    degree: int = 5,
    num_examples: int = 20,
    widths: Sequence[int] = (50,),
    activation: str | Activation = "tanh",
) -> Problem:
    """Build the regression of a Chebyshev polynomial, T_k(cos a) = cos(k a), on evenly spaced points of [-1, 1].

    Loss: that of `networks.mlp_regression`, mean over examples of half the squared error.

    Source: the toy problem of Cohen et al. 2021, by the data; width and depth are chosen here.
    """
    if degree < 0 or num_examples < 1:
        raise ValueError(
            f"chebyshev: expected degree >= 0 and num_examples >= 1, got degree {degree}, num_examples {num_examples}"
        )
    x = np.linspace(-1.0, 1.0, num_examples)[:, None]
    return mlp_regression(
        x,
        np.cos(degree * np.arccos(x)),
        widths=widths,
        activation=activation,
        name="chebyshev",
        description=f"Regression of the Chebyshev polynomial of degree {degree} on {num_examples} points.",
    )


@expects(num_examples=count(1, MOST_EXAMPLES), noise=number(least=0), seed=count(0), widths=WIDTHS)
def moons(
    num_examples: int = 400,
    noise: float = 0.2,
    seed: int = 0,
    widths: Sequence[int] = (32,),
    activation: str | Activation = "tanh",
    loss: Loss = "cross_entropy",
) -> Problem:
    """Build the classification of two interleaving half-moons, see `half_moons` and `networks.mlp_classification`."""
    return mlp_classification(
        *half_moons(num_examples, noise, seed),
        widths=widths,
        activation=activation,
        loss=loss,
        name="moons",
        description=f"Two half-moons, {num_examples} points, noise {noise}.",
    )


@expects(
    num_examples=count(1, MOST_EXAMPLES),
    centres=NUMBERS,
    deviation=number(least=0),
    seed=count(0),
    widths=WIDTHS,
)
def blobs(
    num_examples: int = 400,
    centres: Any = COURSE_CENTRES,
    deviation: float = 0.4,
    seed: int = 0,
    widths: Sequence[int] = (32,),
    activation: str | Activation = "tanh",
    loss: Loss = "cross_entropy",
) -> Problem:
    """Build the classification of Gaussian blobs, see `gaussian_blobs` and `networks.mlp_classification`."""
    return mlp_classification(
        *gaussian_blobs(num_examples, centres, deviation, seed),
        widths=widths,
        activation=activation,
        loss=loss,
        name="blobs",
        description=f"Gaussian blobs, {num_examples} points.",
    )


@expects(
    num_examples=count(1, MOST_EXAMPLES),
    num_arms=count(),
    noise=number(least=0),
    seed=count(0),
    widths=WIDTHS,
)
def spirals(
    num_examples: int = 300,
    num_arms: int = 3,
    noise: float = 0.05,
    seed: int = 0,
    widths: Sequence[int] = (32, 32),
    activation: str | Activation = "tanh",
    loss: Loss = "cross_entropy",
) -> Problem:
    """Build the classification of interleaving spirals, see `spiral_arms` and `networks.mlp_classification`."""
    return mlp_classification(
        *spiral_arms(num_examples, num_arms, noise, seed),
        widths=widths,
        activation=activation,
        loss=loss,
        name="spirals",
        description=f"{num_arms} spirals, {num_examples} points, noise {noise}.",
    )


@expects(num_examples=count(1, MOST_EXAMPLES), noise=number(least=0), seed=count(0))
def half_moons(num_examples: int = 400, noise: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Generate two interleaving half circles: (points `Float32["example 2"]`, labels `Int32["example"]`).

    Equation: label 0: (cos t, sin t), label 1: (1 - cos t, 1/2 - sin t), t evenly spaced in [0, pi], plus N(0, noise^2)
    on each coordinate. Without noise these are the points of scikit-learn's `make_moons`. Ordered by label.

    Raises:
        ValueError: for fewer than one point per moon or negative noise.
    """
    labels = _balanced(num_examples, 2)
    position = np.concatenate([np.linspace(0.0, np.pi, np.sum(labels == label)) for label in (0, 1)])
    circle = np.stack([np.cos(position), np.sin(position)], axis=1)
    points = np.where(labels[:, None] == 0, circle, np.array([1.0, 0.5]) - circle)
    return _noisy(points, noise, seed), labels


@expects(num_examples=count(1, MOST_EXAMPLES), centres=NUMBERS, deviation=number(least=0), seed=count(0))
def gaussian_blobs(
    num_examples: int = 400, centres: Any = COURSE_CENTRES, deviation: float = 0.4, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Generate points around centres: (points `Float32["example feature"]`, labels `Int32["example"]`).

    Equation: x ~ N(centres[label], deviation^2 I). Classes as equal in size as can be, the first ones larger; ordered
    by label. The default is a stand-in for a classification lab with six blobs, by its published centres.

    Raises:
        ValueError: for centres that are not a table, fewer than one point per blob or a negative deviation.
    """
    centres = np.asarray(centres, dtype=np.float64)
    if centres.ndim != 2:
        raise ValueError(f"centres: expected a table, one row per blob, got shape {centres.shape}")
    labels = _balanced(num_examples, len(centres))
    return _noisy(centres[labels], deviation, seed), labels


@expects(num_examples=count(1, MOST_EXAMPLES), num_arms=count(), noise=number(least=0), seed=count(0))
def spiral_arms(
    num_examples: int = 300, num_arms: int = 3, noise: float = 0.05, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Generate spirals of one turn: (points `Float32["example 2"]`, labels `Int32["example"]`).

    Equation: r (cos a, sin a) with a = 2 pi (r + label / num_arms), r evenly spaced in [0.1, 1], plus N(0, noise^2) on
    each coordinate. Ordered by label.

    Raises:
        ValueError: for fewer than one point per arm or negative noise.
    """
    labels = _balanced(num_examples, num_arms)
    radius = np.concatenate([np.linspace(0.1, 1.0, np.sum(labels == arm)) for arm in range(num_arms)])
    angle = 2 * np.pi * (radius + labels / num_arms)
    return _noisy(radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1), noise, seed), labels


def _balanced(num_examples: int, num_classes: int) -> np.ndarray:
    if num_classes < 1 or num_examples < num_classes:
        raise ValueError(
            f"num_examples: expected at least one example for each of {num_classes} classes, got {num_examples}"
        )
    return np.sort(np.arange(num_examples) % num_classes).astype(np.int32)


def _noisy(points: np.ndarray, noise: float, seed: int) -> np.ndarray:
    if noise < 0:
        raise ValueError(f"noise: expected a standard deviation of at least 0, got {noise}")
    return (points + noise * np.random.default_rng(seed).normal(size=points.shape)).astype(np.float32)
