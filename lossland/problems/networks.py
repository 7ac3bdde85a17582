"""Small networks as `flax.linen` modules, and the problems that a multilayer perceptron poses on a table of data.

Inputs have a leading example axis; classifiers return logits. None keeps state besides its parameters or draws random
numbers when applied, so each can be handed to `Problem.from_flax`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from lossland.arguments import ARRAY, FLAG, TEXT, WIDTHS, a, expects
from lossland.problems.problem import Params, Problem

Activation = Callable[[jax.Array], jax.Array]
Loss = Literal["cross_entropy", "mse"]

ACTIVATIONS: dict[str, Activation] = {
    "tanh": jnp.tanh,
    "relu": nn.relu,
    "gelu": nn.gelu,
    "elu": nn.elu,
    "silu": nn.silu,
    "softplus": nn.softplus,
    "sigmoid": nn.sigmoid,
    "identity": lambda x: x,
}
"""Activations that have a name."""


class MLP(nn.Module):
    """Multilayer perceptron, `x <- activation(x W + b)` for every layer but the last, which is `x W + b`.

    Shapes: `Float[Array, "example feature"] -> Float[Array, "example output"]`. `features` are the widths of the
    layers in order, the last one the number of outputs. Weights: LeCun normal; biases: zero.
    """

    features: Sequence[int]
    activation: Activation = jnp.tanh
    use_bias: bool = True
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for index, features in enumerate(self.features):
            if index:
                x = self.activation(x)
            x = nn.Dense(features, use_bias=self.use_bias, kernel_init=self.kernel_init)(x)
        return x


class CNN(nn.Module):
    """Convolutional classifier: per entry of `features`, a 3 x 3 convolution, the activation and a 2 x 2 mean pool.

    Shapes: `Float[Array, "example height width channel"] -> Float[Array, "example output"]`. Mean rather than maximum
    pooling keeps the loss as smooth as the activation.
    """

    num_outputs: int
    features: Sequence[int] = (8, 16)
    activation: Activation = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features in self.features:
            x = nn.avg_pool(self.activation(nn.Conv(features, (3, 3))(x)), (2, 2), strides=(2, 2))
        return nn.Dense(self.num_outputs)(x.reshape(x.shape[0], -1))


class TanhRNN(nn.Module):
    """Recurrent classifier, `h <- tanh(x W + h U + b)`; logits are affine in the last state.

    Shapes: `Float[Array, "example time channel"] -> Float[Array, "example output"]`. U starts orthogonal, h at zero.
    """

    num_outputs: int
    hidden: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        states: Any = nn.RNN(nn.SimpleCell(self.hidden))(x)
        return nn.Dense(self.num_outputs)(states[:, -1])


class LSTM(nn.Module):
    """Recurrent classifier of long short-term memory cells; logits are affine in the last state.

    Shapes: `Float[Array, "example time channel"] -> Float[Array, "example output"]`. Biases start at zero, the forget
    gate's too, where Keras has one.
    """

    num_outputs: int
    hidden: int = 32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        states: Any = nn.RNN(nn.OptimizedLSTMCell(self.hidden))(x)
        return nn.Dense(self.num_outputs)(states[:, -1])


class Transformer(nn.Module):
    """Sequence classifier: affine embedding, learned positions, pre-norm attention blocks, mean over time.

    Shapes: `Float[Array, "example time channel"] -> Float[Array, "example output"]`.
    """

    num_outputs: int
    width: int = 32
    num_heads: int = 2
    num_layers: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        positions = self.param("positions", nn.initializers.normal(0.02), (x.shape[1], self.width))
        x = nn.Dense(self.width)(x) + positions
        for _ in range(self.num_layers):
            x = x + nn.MultiHeadDotProductAttention(self.num_heads)(nn.LayerNorm()(x))
            x = x + MLP((4 * self.width, self.width), nn.gelu)(nn.LayerNorm()(x))
        return nn.Dense(self.num_outputs)(nn.LayerNorm()(x).mean(axis=1))


@expects(problem=a("an ll.Problem", Problem))
def with_scale(problem: Problem) -> Problem:
    """Return the same problem with a hyperparameter `scale` that multiplies all initial weights, not the biases.

    Weights are the parameters with two axes or more.
    """
    if "scale" in problem.arguments:
        raise ValueError(f"problem {problem.name} has an argument 'scale' already")
    drawn = problem.init

    def init(key: jax.Array, *, scale: Any = 1.0) -> Params:
        return jax.tree.map(lambda leaf: leaf * scale if leaf.ndim > 1 else leaf, drawn(key))

    return replace(problem, init=init)


@expects(inputs=ARRAY, targets=ARRAY, widths=WIDTHS, use_bias=FLAG, name=TEXT, description=TEXT)
def mlp_regression(
    inputs: Any,
    targets: Any,
    *,
    widths: Sequence[int],
    activation: str | Activation = "tanh",
    use_bias: bool = True,
    name: str = "mlp_regression",
    description: str = "",
) -> Problem:
    """Build least squares by a multilayer perceptron f.

    Equation: `loss = mean over examples of 1/2 |f(x) - y|^2`: the *sum* over outputs, halved, the convention of Cohen
    et al. 2021. Sharpness with the mean over outputs and no half (Keras) is `2 / num_outputs` times as large.

    Args:
        inputs: `Float[Array, "example feature"]`.
        targets: `Float[Array, "example output"]`.
        widths: of the hidden layers.
        activation: a function, or a name in `ACTIVATIONS`.

    Hyperparameters: `scale` (1) multiplies the initial weights.
    """
    targets = _float32(targets)
    module = MLP((*_widths(widths), targets.shape[-1]), activation_of(activation), use_bias)
    data = (_float32(inputs), targets)
    return with_scale(Problem.from_flax(module, _half_squared_error, data, name=name, description=description))


@expects(inputs=ARRAY, labels=ARRAY, widths=WIDTHS, name=TEXT, description=TEXT)
def mlp_classification(
    inputs: Any,
    labels: Any,
    *,
    widths: Sequence[int],
    activation: str | Activation = "tanh",
    loss: Loss = "cross_entropy",
    name: str = "mlp_classification",
    description: str = "",
) -> Problem:
    """Build classification by a multilayer perceptron f with one output per class (two for two classes).

    Equation: `"cross_entropy"`: `loss = mean over examples of -log softmax(f(x))[label]`; `"mse"`: `loss = mean over
    examples of 1/2 |f(x) - onehot(label)|^2`, the *sum* over outputs, halved (Cohen et al. 2021).

    Args:
        inputs: `Float[Array, "example feature"]`.
        labels: `Int[Array, "example"]`, classes counted from 0.
        widths: of the hidden layers.
        activation: a function, or a name in `ACTIVATIONS`.

    Hyperparameters: `scale` (1) multiplies the initial weights.

    Raises:
        ValueError: for labels that are not integers from 0, or an unknown loss or activation.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or labels.min(initial=0) < 0:
        raise ValueError(
            f"labels: expected a vector of integers from 0, got dtype {labels.dtype} and shape {labels.shape}"
        )
    per_example = classification_loss(loss)
    module = MLP((*_widths(widths), int(labels.max()) + 1), activation_of(activation))
    data = (_float32(inputs), labels.astype(np.int32))
    return with_scale(Problem.from_flax(module, per_example, data, name=name, description=description))


def classification_loss(loss: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Look up the loss per example of `mlp_classification` by name: (outputs, integer labels) -> losses.

    Raises:
        ValueError: listing the names there are.
    """
    losses = {"cross_entropy": optax.softmax_cross_entropy_with_integer_labels, "mse": _half_squared_error_to_label}
    if not isinstance(loss, str) or loss not in losses:
        raise ValueError(f"loss: expected one of {', '.join(losses)}, got {loss!r}")
    return losses[loss]


def activation_of(activation: str | Activation) -> Activation:
    """Look an activation up by name; a function passes through.

    Raises:
        ValueError: listing the names there are.
    """
    if callable(activation):
        return activation
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected a function or one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    return ACTIVATIONS[activation]


def _half_squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return 0.5 * jnp.sum((outputs - targets) ** 2, axis=-1)


def _half_squared_error_to_label(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    return _half_squared_error(outputs, jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype))


def _widths(widths: Sequence[int] | int) -> tuple[int, ...]:
    widths = (widths,) if isinstance(widths, (int, np.integer)) else tuple(widths)
    if not all(isinstance(width, (int, np.integer)) and width > 0 for width in widths):
        raise ValueError(f"widths: expected positive integers, one per hidden layer, got {widths}")
    return tuple(int(width) for width in widths)


def _float32(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)
