"""A third list of planted causes: networks, data and optimizers that none of the earlier scenarios has.

Chosen, and kept under version control, before any of them was explained; of their rates only training alone was
looked at, so that the fault shows. From that look one limit was tightened beforehand (a later rise belongs to the
start only if no ratio below 1, rather than .97, lies between), and one rule, how long a start's own instability may
take, was bounded after three runs of `edge_chebyshev` had come out as catapults: that scenario is held out no longer.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lossland.diagnosis.causes import Cause
from lossland.optimizers import Optimizer, Schedule
from lossland.problems.datasets import breast_cancer
from lossland.problems.networks import mlp_classification
from lossland.problems.problem import Batch, Params, Problem
from lossland.problems.synthetic import chebyshev, gaussian_blobs, random_features
from lossland.reproductions.fault_scenarios import (
    ADAM,
    SGD,
    Scenario,
    by_hand,
    dropout_network,
    nesterov,
    soft_labels,
    waking_coordinate,
)


def ramp(low: float, high: float, begin: int, steps: int) -> optax.Schedule:
    """Schedule that rises in a straight line from `low` to `high` over `steps` steps from step `begin` on."""
    return optax.linear_schedule(low, high, steps, begin)


@jax.custom_vjp
def overscaled(bias: jax.Array) -> jax.Array:
    """Identity whose gradient is forty times too large: a sum in place of a mean."""
    return bias


overscaled.defvjp(lambda bias: (bias, None), lambda _, g: (40 * g,))


def naive_sigmoid() -> Problem:
    """Logistic regression by the logarithm of a rounded probability: in float32, 1 - sigmoid(z) is 0 from z = 17 on.

    Equation: -mean(y ln s + (1 - y) ln(1 - s)), s = 1 / (1 + exp(-z)); 0 x ln 0 is NaN.
    """
    x, labels = gaussian_blobs(40, ((-2.0, 1.0), (2.0, -1.0)), 0.4, 1)

    def init(key: jax.Array) -> Params:
        return 0.1 * jax.random.normal(key, (2,))

    def loss(params: Params, batch: Batch) -> jax.Array:
        x, y = batch
        probability = 1 / (1 + jnp.exp(-(x @ params)))
        return -jnp.mean(y * jnp.log(probability) + (1 - y) * jnp.log(1 - probability))

    return Problem(init, loss, (x, labels.astype(np.float32)), name="naive_sigmoid")


def cliff(height: float = 4.0, width: float = 0.002, position: float = 0.6) -> Problem:
    """A gentle slope down to a step up, much shorter than a step of training.

    Equation: 3 + p / 2 + height sigmoid(-(p + position) / width) + other^2 / 2.
    """

    def init(key: jax.Array) -> Params:
        draws = jax.random.normal(key, (2,))
        return {"p": 0.2 * draws[0], "other": draws[1]}

    def loss(params: Params, batch: Batch) -> jax.Array:
        above = jax.nn.sigmoid(-(params["p"] + position * jnp.mean(batch)) / width)
        return 3.0 + 0.5 * params["p"] + height * above + 0.5 * params["other"] ** 2

    return Problem(init, loss, np.ones(1, np.float32), name="cliff")


def mislabelled_three(count: int = 4, seed: int = 2) -> Problem:
    """Three well separated blobs in five dimensions, the labels of a few points moved on by one."""
    centres = 3.0 * np.eye(5)[:3]
    x, labels = gaussian_blobs(90, centres, 0.5, seed)
    labels = labels.copy()
    wrong = np.random.default_rng(seed).choice(90, count, replace=False)
    labels[wrong] = (labels[wrong] + 1) % 3
    return mlp_classification(x, labels, widths=(), name="mislabelled_three")


RMSPROP = Optimizer(optax.rmsprop, decay=0.99)

LATER = (
    Scenario("divergence_features", Cause.learning_rate_above_threshold, lambda: random_features(12, 64, 4), SGD,
             {"learning_rate": [0.85]}, 80, held_out=2),
    Scenario("edge_chebyshev", Cause.edge_of_stability, lambda: chebyshev(4, 20, (40,)), SGD,
             {"learning_rate": [0.25]}, 3000),
    Scenario("schedule_ramp", Cause.schedule_jump, lambda: chebyshev(3, 16, (24, 24), "gelu"),
             Optimizer(optax.sgd, learning_rate=Schedule(ramp, low=0.01, begin=200, steps=30)), {"high": [0.9]}, 400,
             held_out=2),
    Scenario("noise_cancer", Cause.minibatch_noise, lambda: breast_cancer((), num_examples=100),
             Optimizer(optax.sgd, momentum=0.5), {"learning_rate": [0.5]}, 300, {"batch_size": 2}, held_out=2),
    Scenario("overshoot_cancer", Cause.momentum_overshoot, lambda: breast_cancer((8,), loss="mse", num_examples=100),
             Optimizer(optax.sgd, momentum=0.98), {"learning_rate": [0.005]}, 400, held_out=2),
    Scenario("gradient_overscaled", Cause.wrong_gradient, lambda: by_hand(overscaled, "overscaled", 20, 4),
             Optimizer(nesterov, momentum=0.5), {"learning_rate": [0.6]}, 300, held_out=2),
    Scenario("labels_nesterov", Cause.invalid_labels, lambda: soft_labels(8.0, 1.0, 5, 10, 7),
             Optimizer(nesterov, momentum=0.5), {"learning_rate": [0.6]}, 200, held_out=2),
    Scenario("mislabelled_three", Cause.mislabelled_examples, mislabelled_three, SGD, {"learning_rate": [0.4]}, 300,
             {"batch_size": 3}, held_out=2),
    Scenario("dropout_adam", Cause.mode_noise, lambda: dropout_network(0.3), ADAM, {"learning_rate": [0.02]}, 300,
             held_out=2),
    Scenario("collapse_rmsprop", Cause.epsilon_collapse, waking_coordinate, RMSPROP, {"learning_rate": [0.02]}, 400,
             held_out=2),
    Scenario("overflow_sigmoid", Cause.floating_point, naive_sigmoid, Optimizer(optax.sgd, momentum=0.9),
             {"learning_rate": [1.0]}, 400, held_out=2),
    Scenario("cliff", Cause.beyond_quadratic, cliff, SGD, {"learning_rate": [0.1]}, 40, held_out=2),
)  # fmt: skip
