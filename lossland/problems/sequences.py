"""Sequences of four types and the recurrent classifier that learns them: a reported case that gets worse again.

Reported: a recurrent network, four types of sequences, softmax cross-entropy, learning rate 0.0002, training accuracy
above 90 %; then the *training* loss rises and accuracy drops. The data were not published, nor were size and optimizer:
those here are a stand-in.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lossland.arguments import MOST_EXAMPLES, MOST_UNITS, choice, count, expects, number
from lossland.problems.networks import TanhRNN, with_scale
from lossland.problems.problem import Batch, Params, Problem

KINDS = ("sine", "square", "sawtooth", "noise")
"""Types of sequences, in the order of their labels."""
CYCLES = (2.0, 8.0)
"""Fewest and most cycles of a wave in a sequence."""

LabelGradient = Literal["autodiff", "fused"]
Excess = Literal["next", "every"]


@expects(num_sequences=count(1, MOST_EXAMPLES), length=count(1, MOST_UNITS), noise=number(least=0), seed=count(0))
def draw_sequences(
    num_sequences: int = 64, length: int = 100, *, noise: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw sequences of the four kinds in turn: inputs `Float32["sequence time 1"]` and labels `Int32["sequence"]`.

    Equation: with c = f t / length + u, f uniform in `CYCLES` and u in [0, 1) cycles: sqrt(2) sin(2 pi c), sign(sin(2
    pi c)), sqrt(3) (2 (c mod 1) - 1), and independent N(0, 1). Each has variance 1 over the phase, so that amplitude
    tells nothing.

    Args:
        num_sequences: a multiple of four, as many of each kind.
        length: time steps.
        noise: standard deviation of what is added to the waves, independent from step to step.
        seed: of the draw.

    Raises:
        ValueError: for a number that is no multiple of four, an empty sequence, or negative noise.
    """
    if num_sequences < 1 or num_sequences % len(KINDS):
        raise ValueError(f"num_sequences: expected a positive multiple of {len(KINDS)}, got {num_sequences}")
    if length < 1:
        raise ValueError(f"length: expected at least one time step, got {length}")
    if not noise >= 0:
        raise ValueError(f"noise: expected a standard deviation of at least 0, got {noise}")
    draws = np.random.default_rng(seed)
    shape = (num_sequences // len(KINDS), 1)
    clock = np.arange(length) / length
    sequences = np.empty((*shape[:1], len(KINDS), length))
    for place, kind in enumerate(KINDS):
        cycles, phase = draws.uniform(*CYCLES, shape), draws.uniform(0, 1, shape)
        white = draws.normal(size=(*shape[:1], length))
        turn = cycles * clock + phase
        waves = {
            "sine": np.sqrt(2) * np.sin(2 * np.pi * turn),
            "square": np.where(turn % 1 < 0.5, 1.0, -1.0),
            "sawtooth": np.sqrt(3) * (2 * (turn % 1) - 1),
        }
        sequences[:, place] = waves[kind] + noise * white if kind in waves else white
    labels = np.tile(np.arange(len(KINDS)), num_sequences // len(KINDS))
    return sequences.reshape(num_sequences, length, 1).astype(np.float32), labels.astype(np.int32)


@expects(
    hidden=count(1, MOST_UNITS),
    num_sequences=count(1, MOST_EXAMPLES),
    length=count(1, MOST_UNITS),
    noise=number(least=0),
    seed=count(0),
    gradient=choice(*get_args(LabelGradient)),
    excess=choice(*get_args(Excess)),
)
def rnn_sequences(
    hidden: int = 64,
    num_sequences: int = 64,
    length: int = 100,
    *,
    noise: float = 0.0,
    seed: int = 0,
    gradient: LabelGradient = "autodiff",
    excess: Excess = "next",
) -> Problem:
    """Build the reported case of a recurrent classifier that learns four types of sequences and then gets worse.

    Equation: h <- tanh(x W + h U + b), logits z affine in the last h; `loss = mean over sequences of -sum_c p_c log
    softmax(z)_c` with p from `label_rows`: one-hot for label_sum = 1.

    Stand-in: the sequences are generated (`draw_sequences`), hidden sizes of 64 and 128 and full batches or batches of
    32 are chosen. `noise` and `seed` make other stand-ins.

    Args:
        hidden: units.
        num_sequences, length, noise, seed: of the data.
        gradient: "autodiff", d loss / d z = s softmax(z) - p with s = sum p, what the loss says; "fused", softmax(z) -
            p, what the fused kernels of well-known frameworks return, right for s = 1 alone.
        excess: where the part of p beyond a distribution lies, see `label_rows`.

    Hyperparameters: `scale` (1) multiplies the initial weights, `label_sum` (1) is s.

    Raises:
        ValueError: naming the argument, what was expected and what was got.
    """
    if hidden < 1:
        raise ValueError(f"hidden: expected at least one unit, got {hidden}")
    for name, given, choices in (("gradient", gradient, LabelGradient), ("excess", excess, Excess)):
        if given not in get_args(choices):
            raise ValueError(f"{name}: expected one of {', '.join(get_args(choices))}, got {given!r}")
    module = TanhRNN(len(KINDS), hidden)
    cross_entropy = softmax_cross_entropy if gradient == "autodiff" else fused_softmax_cross_entropy

    def init(key: jax.Array) -> Params:
        return module.init(key, jnp.zeros((1, 1, 1)))["params"]

    def loss(params: Params, batch: Batch, *, label_sum: Any = 1.0) -> jax.Array:
        inputs, labels = batch
        z = logits(params, inputs)
        return jnp.mean(cross_entropy(z, label_rows(labels, label_sum, excess, z.dtype)))

    return with_scale(
        Problem(
            init,
            loss,
            draw_sequences(num_sequences, length, noise=noise, seed=seed),
            name="rnn_sequences" if gradient == "autodiff" else "rnn_sequences_fused",
            description=f"A tanh network of {hidden} recurrent units on sequences of four generated types.",
        )
    )


def logits(params: Params, inputs: Any) -> jax.Array:
    """Return the logits of `TanhRNN`: `Float["sequence time 1"] -> Float["sequence class"]`.

    The same function of the same parameters; what does not depend on the state is taken out of the loop over time.
    """
    return _read_out(params, last_states(params, inputs))


def time_gradients(params: Params, batch: Batch) -> jax.Array:
    """Return the gradients of the loss for what enters the state at each time step, d loss / d(x_t W + b).

    `Float["time sequence hidden"]`: how far they grow from the last step back to the first is what exploding and
    vanishing gradients are about.
    """
    inputs, labels = batch

    def loss(drive: jax.Array) -> jax.Array:
        z = _read_out(params, _states(params, drive))
        return jnp.mean(softmax_cross_entropy(z, label_rows(labels, 1.0, "next", z.dtype)))

    return jax.grad(loss)(_drive(params, inputs))


def label_rows(labels: Any, label_sum: Any = 1.0, excess: Excess = "next", dtype: Any = jnp.float32) -> jax.Array:
    """Return rows of labels that sum to s: `Int["sequence"] -> Float["sequence class"]`.

    Equation: p = onehot(label) + (s - 1) e, e = onehot(label + 1 mod 4) for "next", a second class marked beside the
    first; e = 1/4 in every class for "every".
    """
    count = len(KINDS)
    one_hot = jax.nn.one_hot(labels, count, dtype=dtype)
    extra = jnp.roll(one_hot, 1, axis=-1) if excess == "next" else jnp.full_like(one_hot, 1 / count)
    return one_hot + (label_sum - 1) * extra


def softmax_cross_entropy(z: jax.Array, p: jax.Array) -> jax.Array:
    """Return -sum_c p_c log softmax(z)_c over the last axis; its gradient by autodiff is s softmax(z) - p, s = sum p.

    Below: -sum_c p_c ln(p_c / s), reached at softmax(z) = p / s, and 0 only for one-hot p.
    """
    return -jnp.sum(p * jax.nn.log_softmax(z), axis=-1)


@jax.custom_vjp
def fused_softmax_cross_entropy(z: jax.Array, p: jax.Array) -> jax.Array:
    """Return the same value with the gradient that fused kernels return, softmax(z) - p.

    It is no gradient of this value, nor ever zero, unless the row p sums to s = 1: over the classes it sums to
    1 - s, so gradient descent moves every logit by learning rate x (s - 1) / C a step beside all else.
    """
    return softmax_cross_entropy(z, p)


def _fused_forward(z: jax.Array, p: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return softmax_cross_entropy(z, p), (z, p)


def _fused_backward(kept: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    z, p = kept
    return slope[..., None] * (jax.nn.softmax(z) - p), -slope[..., None] * jax.nn.log_softmax(z)


fused_softmax_cross_entropy.defvjp(_fused_forward, _fused_backward)


def last_states(params: Params, inputs: Any) -> jax.Array:
    """Return the states after the last time step: `Float["sequence hidden"]`."""
    return _states(params, _drive(params, inputs))


def _drive(params: Params, inputs: Any) -> jax.Array:
    """x W + b for every time step: (time, sequence, hidden)."""
    cell = params["SimpleCell_0"]["i"]
    return jnp.swapaxes(inputs, 0, 1) @ cell["kernel"] + cell["bias"]


def _states(params: Params, drive: jax.Array) -> jax.Array:
    """Last state: (sequence, hidden)."""
    recurrent = params["SimpleCell_0"]["h"]["kernel"]

    def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(x + h @ recurrent), None

    return lax.scan(step, jnp.zeros_like(drive[0]), drive)[0]


def _read_out(params: Params, state: jax.Array) -> jax.Array:
    return state @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
