"""Rises of the printed loss: what is printed, what it is split into, the law of the noise, wrong labels in a batch."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

import lossland as ll
from lossland.optimizers import Optimizer
from lossland.problems.problem import Problem
from lossland.reproductions.epoch_rises import (
    STATE,
    climbs_by_position,
    epoch_noise,
    epochs_of,
    mislabelled_steps,
    rise_shares,
    rises,
    sizes_of,
    split_rises,
    states_of,
    summarised,
)
from lossland.reproductions.estimates import Estimate, is_cause, mean_share, median_of, share_of
from lossland.sweeps.batches import Batches
from lossland.sweeps.sweep import Sweep

CENTRES = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)


def bowl(spread=1.0):
    """loss = mean |w - x_i|^2 / 2: curvature 1, gradient noise by the spread of the x_i."""

    def init(key):
        return {"w": 3 + jax.random.normal(key, (2,))}

    def loss(params, batch):
        return 0.5 * jnp.mean(jnp.sum((params["w"] - batch) ** 2, axis=-1))

    return Problem(init, loss, spread * CENTRES, name=f"bowl_{spread}")


def every_step(problem, rate, epochs=20, batch_size=4, seeds=3):
    sweep = Sweep({}, seeds, 3 * epochs, 1, lane_width=1, batch_size=batch_size)
    optimizer = Optimizer(optax.sgd, learning_rate=rate)
    runs = ll.run(problem, optimizer, sweep, ["loss", "batch_loss", "epoch_mean_loss", STATE], progress=False)
    return optimizer, runs


BATCHES = Batches(10, 4)


class TestEpochs:
    def test_what_is_printed_is_the_engine_s_running_mean_and_the_full_loss_is_weighted_alike(self):
        _, runs = every_step(bowl(), 0.5)
        found = epochs_of(runs, BATCHES)
        ends = runs["epoch_mean_loss"].sel(step=slice(3, None, 3))
        np.testing.assert_allclose(found["printed"], ends.values, rtol=2e-6)
        np.testing.assert_array_equal(found["end_loss"], runs["loss"].sel(step=slice(3, None, 3)).values)
        by_hand = runs["loss"].sel(step=[3, 4, 5]).values @ np.array([0.4, 0.4, 0.2])
        np.testing.assert_allclose(found["full"].isel(epoch=1), by_hand, rtol=1e-6)
        np.testing.assert_array_equal(sizes_of(BATCHES), [4, 4, 2])

    def test_records_that_lie_apart_are_refused(self):
        _, runs = every_step(bowl(), 0.5)
        with pytest.raises(ValueError, match="expected a record before every step of at least one epoch of 3"):
            epochs_of(runs.isel(step=slice(None, None, 3)), BATCHES)

    def test_rises_count_records_above_the_one_before(self):
        curve = xr.DataArray([[3.0, 2, 2.5, 2.5, 1]], dims=("seed", "epoch"))
        assert rises(curve).values.tolist() == [[False, True, False, False]]
        np.testing.assert_allclose(rise_shares(curve), 0.25)


class TestSplit:
    def test_states_are_those_of_the_run(self):
        _, runs = every_step(bowl(), 0.5)
        states = states_of(runs, [0, 0, 2], [3, 9, 6])
        loss = jax.vmap(bowl().objective)({"w": jnp.asarray(states["saved_params"].values)})
        expected = [float(runs["loss"].sel(seed=seed, step=step)) for seed, step in ((0, 3), (0, 9), (2, 6))]
        np.testing.assert_allclose(loss, expected, rtol=1e-6)

    @pytest.mark.long
    def test_below_the_threshold_no_rise_is_left_with_the_full_batch(self):
        optimizer, runs = every_step(bowl(), 0.5, epochs=40)
        found = split_rises(bowl(), optimizer, runs, BATCHES, 4, 2)
        assert int(found["count"].min()) > 5
        np.testing.assert_array_equal(found["curvature"], 0)
        assert 0 < float(found["noise"].mean()) < 1
        np.testing.assert_allclose(found["record"] + found["noise"], 1)
        assert not found["first_step_rise"].any()
        ratio = found["ratio"].values
        assert np.isfinite(ratio).sum() == 2
        np.testing.assert_allclose(ratio[np.isfinite(ratio)], 0.5 / 2, rtol=1e-4)

    def test_above_it_every_rise_is_curvature(self):
        optimizer, runs = every_step(bowl(0.1), 2.2, epochs=6, batch_size=4)
        found = split_rises(bowl(0.1), optimizer, runs, BATCHES, 3)
        np.testing.assert_allclose(found["curvature"], 1)
        assert found["first_step_rise"].all()
        assert not found["short_step_rise"].any()

    def test_without_rises_there_is_nothing_to_split(self):
        problem = bowl(0.0)
        optimizer, runs = every_step(problem, 0.5, epochs=4)
        found = split_rises(problem, optimizer, runs, BATCHES, 3)
        assert found.sizes["state"] == 0
        assert np.isnan(found["noise"]).all()
        assert mean_share(found["noise"].values) == Estimate(0.5, 0.0, 1.0)


def test_the_noise_of_batches_follows_the_law():
    problem = bowl()
    states = xr.Dataset({"saved_params": (("state", "parameter"), np.float32([[0, 0], [2, -1]]))})
    found = epoch_noise(problem, states, (2, 5, 10), 400)
    # All batches of two, one by one: the law is their exact mean.
    pairs = np.array([CENTRES[list(pair)].mean(0) for pair in itertools.combinations(range(10), 2)], float)
    exact = ((pairs - CENTRES.mean(0)) ** 2).sum(1).mean()
    np.testing.assert_allclose(found["predicted"].sel(batch_size=2), exact, rtol=1e-5)
    measured = found["measured"].mean("draw")
    error = found["measured"].std("draw") / np.sqrt(400)
    assert (abs(measured - found["predicted"]).sel(batch_size=[2, 5]) < 4 * error.sel(batch_size=[2, 5])).all()
    np.testing.assert_allclose(found["measured"].sel(batch_size=10), 0, atol=1e-10)
    np.testing.assert_allclose(
        found["gradient_square"], ((np.array([[0, 0], [2, -1]]) - CENTRES.mean(0)) ** 2).sum(1), rtol=1e-5
    )


def test_a_wrong_label_pushes_the_full_loss_the_other_way():
    inputs = np.float32([[1, 0], [0, 1]] * 6)
    labels = np.int32([0, 1] * 6)

    def loss(params, batch):
        return optax.softmax_cross_entropy_with_integer_labels(batch[0] @ params["w"], batch[1]).mean()

    problem = Problem(lambda key: {"w": jax.random.normal(key, (2, 2))}, loss, (inputs, labels), name="lines")
    states = xr.Dataset(
        {
            "saved_params": (("state", "parameter"), np.float32([[2, -2, -2, 2]])),
            "saved_opt_state": (("state", "opt_state_element"), np.zeros((1, 0), np.float32)),
        }
    )
    found = mislabelled_steps(problem, Optimizer(optax.sgd, learning_rate=0.1), states, (2, 12), 6, 2)["change"]
    assert (found.sel(label="right") < 0).all()
    assert (found.sel(label="wrong", batch_size=2) > 0).all()
    # One of twelve weighs a sixth of one of two.
    assert (found.sel(label="wrong", batch_size=12) < found.sel(label="wrong", batch_size=2)).all()


def test_climbs_fall_to_the_place_whose_step_made_them():
    loss = xr.DataArray([np.exp([0, -1, -1, 1.0, 0, -1, 0, 0.0])], dims=("seed", "step"))
    np.testing.assert_allclose(climbs_by_position(loss, BATCHES), [[0, 0, 1]])
    loss[0, 2] = 1.0
    np.testing.assert_allclose(climbs_by_position(loss, BATCHES), [[0, 1 / 3, 2 / 3]], rtol=1e-6)


class TestEstimates:
    def test_a_cause_is_what_takes_half_of_the_effect_with_it(self):
        there = Estimate(0.4, 0.35, 0.45)
        assert is_cause(there, Estimate(0.1, 0.05, 0.15)) == "supported"
        assert is_cause(there, Estimate(0.4, 0.3, 0.5)) == "refuted"
        assert is_cause(there, Estimate(0.2, 0.1, 0.3)) == "depends"

    def test_intervals_stay_where_shares_are(self):
        assert share_of([True] * 8).high == 1
        assert mean_share([0.0, 0.0, 0.1]).low == 0
        assert mean_share([0.2, 0.3, 0.4]).high == pytest.approx(0.3 + 4.30265 * 0.1 / 3**0.5, rel=1e-4)

    def test_seeds_that_agree_still_leave_something_open(self):
        agreeing = mean_share([1.0] * 8)
        assert agreeing == share_of([True] * 8)
        assert agreeing.low < 0.7
        assert mean_share([0.0] * 8, 2000) == share_of([False] * 2000)
        assert mean_share([0.0] * 8, 2000).high < 0.01
        alone = mean_share([0.25])
        assert 0 <= alone.low < 0.25 < alone.high < 1
        assert median_of([3.0, 1, 2]).value == 2
        assert str(Estimate(0.25, 0.125, 0.5)) == "0.25 [0.125, 0.5]"

    def test_settings_are_summarised_by_mean_and_interval(self):
        found = summarised({"a": np.array([0.0, 1.0]), "b": np.array([0.5, 0.5])})
        assert found["mean"].values.tolist() == [0.5, 0.5]
        assert float(found["low"].sel(setting="b")) == 0.5
        assert float(found["low"].sel(setting="a")) < 0 < 1 < float(found["high"].sel(setting="a"))
