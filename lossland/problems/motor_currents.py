"""Traces of a motor's current and the LSTM that classifies them: a reported case whose loss fluctuates.

Reported: Keras LSTMs of more than 200,000 parameters; 98 sequences of 100 steps of one signal, a motor's current; six
balanced classes, the floor that a robot drives on; softmax cross-entropy; RMSprop at 0.001 (rho 0.9, Keras' epsilon
1e-7) or SGD at 0.001; batches of 32, also 4 and 2; 1500 epochs, 100 % accuracy after about 800; the loss fluctuates,
without dropout and batch normalisation too, and on an artificial set of two classes, cosine against arccosine. The data
were not published, nor were the layers: those here are stand-ins.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax

from lossland.arguments import FLAG, MOST_EXAMPLES, MOST_UNITS, choice, count, expects, number
from lossland.problems.networks import with_scale
from lossland.problems.problem import Params, Problem

NUM_SEQUENCES, LENGTH = 98, 100
"""As reported. In batches of 32 an epoch ends with a batch of two."""
SLOW, FAST = (2.0, 0.5), (7.0, 0.75)
"""Cycles per sequence of a class's two sinusoids: (of the first class, more in each next one)."""
AMPLITUDES = (1.0, 0.6)
PERSISTENCE = 0.8
"""Correlation of the noise from one step to the next."""

Traces = Literal["motor_currents", "cosines"]


@expects(num_sequences=count(1, MOST_EXAMPLES), num_classes=count(2), noise=number(least=0), seed=count(0))
def draw_motor_currents(
    num_sequences: int = NUM_SEQUENCES, num_classes: int = 6, *, noise: float = 0.2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw current traces: inputs `Float32["sequence time 1"]` and labels `Int32["sequence"]`.

    Equation: x_t = sin(2 pi (f_c t / 100 + u)) + 0.6 sin(2 pi (g_c t / 100 + v)) + noise e_t, with f_c = 2 + c / 2 and
    g_c = 7 + 3 c / 4 cycles in class c, phases u, v uniform in [0, 1), and e_t = 0.8 e_(t-1) + 0.6 w_t of variance 1.

    Args:
        num_sequences: dealt to the classes in turn.
        num_classes: at least two.
        noise: standard deviation of the noise.
        seed: of the draw.

    Raises:
        ValueError: for fewer sequences than classes, fewer than two classes, or negative noise.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes: expected at least two, got {num_classes}")
    labels, draws = _dealt(num_sequences, num_classes, seed)
    if not noise >= 0:
        raise ValueError(f"noise: expected a standard deviation of at least 0, got {noise}")
    clock = np.arange(LENGTH) / LENGTH
    phases = draws.uniform(size=(2, num_sequences, 1))
    traces = np.zeros((num_sequences, LENGTH))
    for (first, step), amplitude, phase in zip((SLOW, FAST), AMPLITUDES, phases, strict=True):
        cycles = (first + step * labels)[:, None]
        traces += amplitude * np.sin(2 * np.pi * (cycles * clock + phase))
    coloured = draws.normal(size=(num_sequences, LENGTH))
    for time in range(1, LENGTH):
        coloured[:, time] = PERSISTENCE * coloured[:, time - 1] + np.sqrt(1 - PERSISTENCE**2) * coloured[:, time]
    return (traces + noise * coloured)[..., None].astype(np.float32), labels


@expects(num_sequences=count(2, MOST_EXAMPLES), seed=count(0))
def draw_cosines(num_sequences: int = NUM_SEQUENCES, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw the artificial set of two classes: inputs `Float32["sequence time 1"]` and labels `Int32["sequence"]`.

    Equation: cos(x_t) in class 0, arccos(x_t) in class 1, x_t from a to b in equal steps, a and b uniform in [-1, 1].

    Raises:
        ValueError: for fewer than two sequences.
    """
    labels, draws = _dealt(num_sequences, 2, seed)
    ends = draws.uniform(-1, 1, size=(2, num_sequences, 1))
    x = ends[0] + (ends[1] - ends[0]) * np.linspace(0, 1, LENGTH)
    traces = np.where(labels[:, None] == 0, np.cos(x), np.arccos(x))
    return traces[..., None].astype(np.float32), labels


class KerasLSTM(nn.Module):
    """Classifier of sequences with Keras' LSTM cell and its initial values; logits are affine in the last state.

    Equation: gates i, f, o = sigmoid, candidate g = tanh of slices of x K + h R + b; c <- f c + i g; h <- o tanh(c).
    K and the read-out are Glorot uniform, R orthogonal, b zero but one for the forget gate. The last state goes through
    batch normalisation and dropout where they are asked for.

    Shapes: `Float[Array, "example time channel"] -> Float[Array, "example output"]`. `train` switches dropout on and
    takes the batch's own statistics.
    """

    num_outputs: int
    hidden: int = 32
    dropout: float = 0.0
    batch_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        width = 4 * self.hidden
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), (x.shape[-1], width))
        recurrent = self.param("recurrent", nn.initializers.orthogonal(), (self.hidden, width))
        bias = self.param("bias", _forget_gate_open, (width,))
        drive = jnp.swapaxes(x, 0, 1) @ kernel + bias  # what does not depend on the state stays out of the loop

        def step(carry: tuple[jax.Array, jax.Array], entering: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            h, c = carry
            i, f, g, o = jnp.split(entering + h @ recurrent, 4, axis=-1)
            c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
            return (nn.sigmoid(o) * jnp.tanh(c), c), None

        rest = jnp.zeros((x.shape[0], self.hidden), drive.dtype)
        (h, _), _ = lax.scan(step, (rest, rest), drive)
        if self.batch_norm:
            h = nn.BatchNorm(use_running_average=not train, momentum=0.99, epsilon=1e-3)(h)
        if self.dropout:
            h = nn.Dropout(self.dropout, deterministic=not train)(h)
        return nn.Dense(self.num_outputs, kernel_init=nn.initializers.glorot_uniform())(h)


@expects(
    hidden=count(1, MOST_UNITS),
    traces=choice(*get_args(Traces)),
    dropout=number(least=0, below=1),
    batch_norm=FLAG,
    num_mislabelled=count(0),
    noise=number(least=0),
    seed=count(0),
)
def keras_lstm(
    hidden: int = 32,
    traces: Traces = "motor_currents",
    *,
    dropout: float = 0.0,
    batch_norm: bool = False,
    num_mislabelled: int = 0,
    noise: float = 0.2,
    seed: int = 0,
) -> Problem:
    """Build case 3, an LSTM on 98 sequences of a motor's current, whose loss fluctuates.

    Equation: `loss = mean over sequences of -log softmax(z)[label]`, z from `KerasLSTM`.

    Reported: number, length and classes of the sequences, the cell, the loss. Stand-ins: generated traces
    (`draw_motor_currents`, or the two classes of `draw_cosines`), one layer; 32 hidden units, or 222 for the reported
    200,000 parameters (200,250 here).

    Args:
        hidden: units.
        traces: "motor_currents" (six classes) or "cosines" (two).
        dropout: share of the last state's units that a training step leaves out.
        batch_norm: normalise the last state over the batch.
        num_mislabelled: so many of the first sequences get the next class as their label.
        noise: of the motor currents.
        seed: of the traces.

    Hyperparameters: `scale` (1) multiplies the initial weights.

    Raises:
        ValueError: for other traces, fewer than one unit, a dropout outside [0, 1), or more mislabelled sequences than
            there are.
    """
    if hidden < 1:
        raise ValueError(f"hidden: expected at least one unit, got {hidden}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected a share of at least 0 and below 1, got {dropout}")
    if traces == "motor_currents":
        inputs, labels = draw_motor_currents(noise=noise, seed=seed)
    elif traces == "cosines":
        inputs, labels = draw_cosines(seed=seed)
    else:
        raise ValueError(f"traces: expected 'motor_currents' or 'cosines', got {traces!r}")
    if not 0 <= num_mislabelled <= len(labels):
        raise ValueError(f"num_mislabelled: expected 0 to {len(labels)}, got {num_mislabelled}")
    num_classes = int(labels.max()) + 1
    wrong = np.arange(len(labels)) < num_mislabelled
    labels = np.where(wrong, (labels + 1) % num_classes, labels).astype(np.int32)
    extras = [f"dropout {dropout:g}"] * bool(dropout) + ["batch normalisation"] * batch_norm
    return with_scale(
        Problem.from_flax(
            KerasLSTM(num_classes, hidden, dropout, batch_norm),
            optax.softmax_cross_entropy_with_integer_labels,
            (inputs, labels),
            name="keras_lstm" if traces == "motor_currents" else f"keras_lstm_{traces}",
            description=f"An LSTM of {hidden} units{''.join(f', {extra}' for extra in extras)} on 98 sequences of "
            f"{'current traces of six classes' if traces == 'motor_currents' else 'cosines and arccosines'}.",
        )
    )


def keras_lstm_logits(params: Params, inputs: Any) -> jax.Array:
    """Return the logits of `keras_lstm`, without dropout and batch normalisation: `Float["sequence class"]`."""
    module = KerasLSTM(params["Dense_0"]["bias"].shape[-1], params["recurrent"].shape[0])
    return jnp.asarray(module.apply({"params": params}, inputs))


def _forget_gate_open(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    quarter = shape[0] // 4
    return jnp.zeros(shape, dtype).at[quarter : 2 * quarter].set(1)


def _dealt(num_sequences: int, num_classes: int, seed: int) -> tuple[np.ndarray, np.random.Generator]:
    if num_sequences < num_classes:
        raise ValueError(f"num_sequences: expected at least one per class, {num_classes}, got {num_sequences}")
    return (np.arange(num_sequences) % num_classes).astype(np.int32), np.random.default_rng(seed)
