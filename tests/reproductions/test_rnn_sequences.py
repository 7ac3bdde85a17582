"""The reported recurrent classifier: who counts as having got worse, what clips, and the claims of a tiny run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

from lossland.reproductions.rnn_runs import boundary, clipped_adam, reported_shape, share


def runs_of(accuracy, loss, rates=None):
    steps = 10 * np.arange(np.shape(accuracy)[-1])
    axes = ("learning_rate", "seed", "step")
    accuracy, loss = (
        np.broadcast_to(value, (1,) * (3 - np.ndim(value)) + np.shape(value)) for value in (accuracy, loss)
    )
    coordinates = {
        "learning_rate": np.arange(1.0, 1 + accuracy.shape[0]) if rates is None else rates,
        "seed": np.arange(accuracy.shape[1]),
        "step": steps,
    }
    return xr.Dataset({"accuracy": (axes, accuracy), "loss": (axes, loss)}, coordinates)


LEARNS = [0.25, 0.5, 0.95, 1.0, 1.0, 1.0]
FALLS = [1.4, 1.0, 0.3, 0.1, 0.1, 0.1]


class TestShape:
    @pytest.mark.parametrize(
        ("accuracy", "loss", "drop"),
        [
            (LEARNS, FALLS, np.inf),
            ([0.25, 0.95, 0.95, 0.5, 0.95, 0.95], [1.4, 0.3, 0.3, 0.9, 0.3, 0.3], 30),
            ([0.25, 0.95, 0.95, 0.5, 0.5, 0.5], [1.4, 0.3, 0.3, 0.5, 0.9, 0.9], 40),  # the loss has to double
            ([0.25, 0.85, 0.85, 0.5, 0.5, 0.5], [1.4, 0.3, 0.3, 0.9, 0.9, 0.9], np.inf),  # had not learnt
            ([0.25, 0.95, 0.95, 0.85, 0.95, 0.95], [1.4, 0.3, 0.3, 0.9, 0.3, 0.3], np.inf),  # accuracy hardly falls
        ],
    )
    def test_it_takes_both_accuracy_and_loss_after_having_learnt(self, accuracy, loss, drop):
        found = reported_shape(runs_of(accuracy, loss)).isel(learning_rate=0, seed=0)
        assert float(found["drop_step"]) == drop
        assert bool(found["shape"]) == np.isfinite(drop)

    def test_who_comes_back_does_not_stay_down(self):
        right = [[0.95, 0.5, 0.95], [0.95, 0.5, 0.5]]
        found = reported_shape(runs_of(np.array([right]), np.array([[[0.1, 1, 0.1], [0.1, 1, 1]]])))
        assert found["stays_down"].values.tolist() == [[False, True]]
        assert found["worst_accuracy"].values.tolist() == [[0.5, 0.5]]
        np.testing.assert_allclose(found["rise"], 10)

    def test_a_drop_after_the_end_of_what_is_read_is_none(self):
        runs = runs_of([0.95, 0.95, 0.95, 0.5], [0.1, 0.1, 0.1, 1.0])
        assert reported_shape(runs)["shape"].all()
        assert not reported_shape(runs, until=20)["shape"].any()

    def test_the_boundary_is_the_median_over_seeds_of_the_first_rate(self):
        first = np.array([1, 2, 2, 3, 2, 1, 2, 3])  # index of the first rate with a drop, per seed
        flags = np.arange(4)[:, None] >= first
        runs = xr.Dataset(
            {"shape": (("learning_rate", "seed"), flags)},
            {"learning_rate": [1e-3, 2e-3, 4e-3, 8e-3], "seed": np.arange(8)},
        )
        found = boundary(runs)
        assert float(found["median"]) == pytest.approx(np.sqrt(2e-3 * 4e-3))
        assert float(found["low"]) == pytest.approx(1e-3)
        assert float(found["high"]) == pytest.approx(8e-3)

    def test_shares_have_wilson_intervals(self):
        value, low, high = share([True, True, False, False])
        assert value == 0.5
        assert low == pytest.approx(1 - high)
        assert 0.1 < low < 0.2


class TestOptimizer:
    @pytest.mark.parametrize("max_norm", [1e30, 0.5])
    def test_it_is_adam_after_clipping_by_the_global_norm(self, max_norm):
        mine = clipped_adam(0.01, max_norm=max_norm)
        theirs = optax.chain(optax.clip_by_global_norm(max_norm), optax.adam(0.01))
        params = {"a": jnp.ones(3), "b": jnp.zeros((2, 2))}
        draws = np.random.default_rng(0)
        states = [mine.init(params), theirs.init(params)]
        for scale in (0.1, 3.0, 0.01, 1.0):
            gradient = jax.tree.map(lambda leaf: jnp.asarray(scale * draws.normal(size=leaf.shape), leaf.dtype), params)
            updates = []
            for place, optimizer in enumerate((mine, theirs)):
                update, states[place] = optimizer.update(gradient, states[place], params)
                updates.append(update)
            for left, right in zip(*map(jax.tree.leaves, updates), strict=True):
                np.testing.assert_allclose(left, right, rtol=2e-5)
