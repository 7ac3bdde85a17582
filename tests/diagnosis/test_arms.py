"""Adjusted optimizers: with nothing changed they are the optimizer, and each change is what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossland as ll
from lossland.diagnosis.arms import adjustable, differentiated_numerically, is_recurrent
from lossland.diagnosis.replays import momentum_of
from lossland.optimizers import Optimizer, Schedule
from lossland.reproductions.fault_scenarios import by_hand, curve, flipped, jump

GRADIENT = {"w": jnp.array([3.0, -4.0])}


def steps_of(optimizer, num_steps=3, **arguments):
    state = optimizer.build(**arguments).init(GRADIENT)
    made = []
    for step in range(num_steps):
        gradient = jax.tree.map(lambda g, step=step: g / (1 + step), GRADIENT)
        update, state = optimizer.build(**arguments).update(gradient, state, GRADIENT)
        made.append(np.asarray(update["w"]))
    return np.array(made), state


@pytest.mark.parametrize(
    "optimizer",
    [Optimizer(optax.sgd, learning_rate=0.1, momentum=0.9), Optimizer(optax.adam, learning_rate=0.1)],
    ids=["sgd", "adam"],
)
class TestAdjusted:
    def test_nothing_changed_is_the_optimizer(self, optimizer):
        np.testing.assert_array_equal(steps_of(adjustable(optimizer))[0], steps_of(optimizer)[0])

    def test_a_factor_is_a_learning_rate(self, optimizer):
        scaled = steps_of(adjustable(optimizer), factor=0.5)[0]
        np.testing.assert_allclose(scaled, steps_of(optimizer.with_arguments(learning_rate=0.05))[0], rtol=1e-6)

    def test_a_clipped_gradient_has_the_norm(self, optimizer):
        clipped = steps_of(adjustable(optimizer), 1, max_norm=1.0)[0]
        shorter = Optimizer(optimizer.factory, **optimizer.arguments)
        state = shorter.init(GRADIENT)
        unit = jax.tree.map(lambda g: g / 5, GRADIENT)
        np.testing.assert_allclose(clipped[0], shorter.update(unit, state, GRADIENT)[0]["w"], rtol=1e-6)


def test_a_frozen_second_moment_stays():
    adam = adjustable(Optimizer(optax.adam, learning_rate=0.1))
    _, state = steps_of(adam, 3, freeze=1.0)
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(state.inner[0].nu))
    assert int(state.inner[0].count) == 3


def test_a_held_schedule_keeps_the_rate_of_the_fork():
    optimizer = Optimizer(optax.sgd, learning_rate=Schedule(jump, before=0.1, after=5.0, at=1))
    held = steps_of(adjustable(optimizer), 3, held=1.0, forked_at=0.0)[0]
    np.testing.assert_allclose(held, steps_of(Optimizer(optax.sgd, learning_rate=0.1))[0], rtol=1e-6)


def test_numerical_gradients_are_those_of_the_loss_and_not_of_its_rule():
    problem = by_hand(flipped, "flipped", hidden=4)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), problem.init(jax.random.key(0)))
        wrong = jax.grad(problem.objective)(params)
        right = jax.grad(differentiated_numerically(problem).objective)(params)
        exact = jax.grad(by_hand(lambda bias: bias, "right", hidden=4).objective)(params)
    for name in params:
        np.testing.assert_allclose(right[name], exact[name], atol=1e-8)
    assert np.abs(np.asarray(wrong["b1"]) - np.asarray(exact["b1"])).max() > 1e-2


def test_recurrence_is_a_loop_in_the_program():
    def loss(params, batch):
        state, _ = jax.lax.scan(lambda h, x: (jnp.tanh(params["u"] * h + x), None), 0.0 * params["u"], batch)
        return state**2

    problem = ll.Problem(lambda key: {"u": jax.random.normal(key, ())}, loss, np.ones(5, np.float32))
    assert is_recurrent(problem)
    assert not is_recurrent(curve())


class TestChains:
    """Optimizers of a user's own, whose arguments do not say what they remember."""

    @staticmethod
    def heavy_ball(learning_rate, decay=0.9):
        return optax.chain(
            optax.add_decayed_weights(1e-3), optax.trace(decay), optax.scale_by_learning_rate(learning_rate)
        )

    @staticmethod
    def clipped_adam(learning_rate):
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate, b1=0.8))

    @staticmethod
    def clipped_sgd(learning_rate):
        return optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(learning_rate))

    @pytest.mark.parametrize(("name", "decay"), [("heavy_ball", 0.9), ("clipped_adam", 0.8), ("clipped_sgd", 0.0)])
    def test_the_decay_of_the_first_moment_is_measured(self, name, decay):
        assert momentum_of(Optimizer(getattr(self, name), learning_rate=0.1)) == pytest.approx(decay, rel=1e-6)

    def test_what_is_forgotten_is_the_momentum(self):
        without = steps_of(Optimizer(self.heavy_ball, learning_rate=0.1, decay=0.0))[0]
        forgetful = steps_of(adjustable(Optimizer(self.heavy_ball, learning_rate=0.1)), forget=1.0)[0]
        np.testing.assert_allclose(forgetful, without, rtol=1e-6)
