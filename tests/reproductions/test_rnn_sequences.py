"""The reported recurrent classifier: who counts as having got worse, what clips, and the claims of a tiny run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

from lossland.problems.sequences import rnn_sequences
from lossland.reproductions.claims import format_claims
from lossland.reproductions.rnn_claims import Drops, Results, boundary_exponent, claims, numbers_of
from lossland.reproductions.rnn_events import BEFORE, Anatomy, drops
from lossland.reproductions.rnn_labels import label_floor, label_runs
from lossland.reproductions.rnn_runs import (
    at_equal_progress,
    boundary,
    clipped_adam,
    difference,
    reported_shape,
    share,
    train_arms,
)
from lossland.reproductions.rnn_shares import arms_of, labels_of, progress_of


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

    def test_the_boundary_is_where_half_of_the_seeds_get_worse(self):
        first = np.array([1, 2, 2, 3, 2, 1, 2, 3])  # index of the first rate with a drop, per seed
        found = boundary(shapes(np.arange(4)[:, None] >= first))
        assert found.value == pytest.approx(np.sqrt(2e-3 * 4e-3))  # a quarter at 2e-3, three quarters at 4e-3
        assert 1e-3 < found.low < found.value < found.high < 8e-3

    @pytest.mark.parametrize(("first", "value"), [(0, 0.0), (4, np.inf), (2, 2e-3 * 2**0.5)])
    def test_a_boundary_beyond_the_grid_is_0_or_infinite(self, first, value):
        assert boundary(shapes(np.arange(4)[:, None] >= np.full(6, first))).value == pytest.approx(value)

    def test_the_interval_of_the_boundary_holds_it_as_often_as_it_says(self):
        draws, rates = np.random.default_rng(3), np.geomspace(1e-3, 1.6e-2, 9)
        chances = 1 / (1 + (4e-3 / rates) ** 2)  # one half at the fifth rate
        held = 0
        for _ in range(200):
            found = boundary(shapes(draws.random((9, 32)) < chances[:, None], rates), num_resamples=200)
            held += found.low <= 4e-3 <= found.high
        assert 0.88 <= held / 200 <= 1

    def test_shares_have_wilson_intervals(self):
        value, low, high = share([True, True, False, False])
        assert value == 0.5
        assert low == pytest.approx(1 - high)
        assert 0.1 < low < 0.2

    def test_the_interval_of_a_difference_holds_it_as_often_as_it_says_and_needs_pairs(self):
        draws, held = np.random.default_rng(5), 0
        for _ in range(400):
            common = draws.random(24)  # the same seed is lucky in both
            first, second = (common < 0.3 + 0.2 * draws.random(24)), (common < 0.1 + 0.2 * draws.random(24))
            value, low, high = difference(first, second)
            assert low <= value <= high
            held += low <= 0.2 <= high
        assert held / 400 >= 0.92
        assert difference([True] * 8, [False] * 8).low > 0.4
        with pytest.raises(ValueError, match="one pair per seed, got 2 and 1"):
            difference([True, False], [True])

    def test_at_equal_progress_a_rate_is_read_until_it_has_got_as_far(self):
        accuracy, loss = np.full((2, 1, 6), 0.95), np.full((2, 1, 6), 0.1)
        accuracy[0, 0, 5], loss[0, 0, 5] = 0.5, 1.0  # at step 50 of rate 1
        accuracy[1, 0, 3], loss[1, 0, 3] = 0.5, 1.0  # at step 30 of rate 2
        runs = runs_of(accuracy, loss, rates=[1.0, 2.0])
        assert {rate: bool(flags) for rate, flags in at_equal_progress(runs, 50).items()} == {1.0: True, 2.0: False}
        assert {rate: bool(flags) for rate, flags in at_equal_progress(runs, 60).items()} == {2.0: True}


def shapes(flags, rates=(1e-3, 2e-3, 4e-3, 8e-3)):
    return xr.Dataset(
        {"shape": (("learning_rate", "seed"), flags)},
        {"learning_rate": np.asarray(rates), "seed": np.arange(flags.shape[1])},
    )


class TestOptimizer:
    @pytest.mark.parametrize("max_norm", [1e30, 0.5])
    def test_it_is_adam_after_clipping_by_the_global_norm(self, max_norm):
        mine = clipped_adam(0.01, max_norm=max_norm)
        theirs = optax.chain(optax.clip_by_global_norm(max_norm), optax.adam(0.01))
        params = {"a": jnp.ones(3), "b": jnp.zeros((2, 2))}
        draws = np.random.default_rng(0)
        states = [mine.init(params), theirs.init(params)]
        for scale in (0.1, 3.0, 0.01, 1.0):
            gradient = {key: jnp.float32(scale * draws.normal(size=leaf.shape)) for key, leaf in params.items()}
            updates = []
            for place, optimizer in enumerate((mine, theirs)):
                update, states[place] = optimizer.update(gradient, states[place], params)
                updates.append(update)
            for left, right in zip(*map(jax.tree.leaves, updates), strict=True):
                np.testing.assert_allclose(left, right, rtol=2e-5)


def shape_of(flags, axis, names, **more):
    flags = np.asarray(flags, bool)
    steps = np.where(flags, 300.0, np.inf)
    values = {"shape": flags, "stays_down": flags, "drop_step": steps, "learnt_step": np.full(flags.shape, 100.0)}
    coordinates = {axis: names, "seed": np.arange(flags.shape[-1])}
    return xr.Dataset({key: ((axis, "seed"), value) for key, value in (values | more).items()}, coordinates)


STEPS = np.arange(0, 2001, 10)
ARMS = ("unchanged", "learning_rate_x_0.25", "learning_rate_x_0.1", "learning_rate_decays", "gradient_clipped")
ARMS += ("update_clipped", "eps_raised", "b1_0", "b1_0.95", "b2_0.99", "b2_0.9", "second_moment_frozen")


def falling(at, rates, count):
    """Runs over (learning_rate, seed) that get worse at these steps, never for inf: (rate, seed)."""
    bad = np.broadcast_to(np.asarray(at, float), (len(rates), count))[..., None] <= STEPS
    dims = ("learning_rate", "seed", "step")
    return xr.Dataset(
        {"accuracy": (dims, np.where(bad, 0.5, 1.0)), "loss": (dims, np.where(bad, 1.0, 0.1))},
        {"learning_rate": np.asarray(rates, float), "seed": np.arange(count), "step": STEPS},
    )


def results(moment_share=0.0, labels=0, valid=0, at=None, slow_at=np.inf, seeds=12, **counts):
    """Results as if twelve seeds had been run, of which so many get worse in an arm; `at`, steps of drops by rate."""
    rates = [1e-3, 2e-3, 4e-3, 8e-3]
    some = np.arange(seeds) < np.array([0, 0, seeds // 2, seeds])[:, None]
    runs = falling(np.where(some, 300, np.inf) if at is None else np.asarray(at, float)[:, None], rates, seeds)
    usual = dict.fromkeys(ARMS, seeds // 2) | {"learning_rate_x_0.1": 0, "learning_rate_decays": 0}
    usual |= {"gradient_clipped": 0} | {name.replace("_dot_", "."): count for name, count in counts.items()}
    worse = shape_of(np.arange(seeds) < np.array(list(usual.values()))[:, None], "arm", list(usual))
    one = {name: np.full(seeds, 1.0) for name in ("loss_rise", "lowest_loss", "drift", "logit_drift")}
    worse_labels = {"valid": valid, "autodiff 1.1": 0, "fused 1.1": labels}
    of_labels = {
        name: shape_of([np.arange(seeds) < count], "labels", [name], **{key: value[None] for key, value in one.items()})
        .isel(labels=0, drop=True)
        for name, count in worse_labels.items()
    }  # fmt: skip
    drift = xr.Dataset(
        {"mean_bias": (("setting", "step"), [[0.0, 2.0]]), "predicted": (("setting", "step"), [[0.0, 2.0]])},
        {"setting": ["gradient descent, fused 1.1"], "step": [0, 1]},
        {"bias_over_law": 1.0, "logit_over_law": 1.1},
    )
    parts = Anatomy(
        **{name: np.full(seeds, 2.0) for name in Anatomy._fields} | {"moment_share": np.full(seeds, moment_share)}
    )
    slow = {5e-4: falling(slow_at, [5e-4], seeds).isel(learning_rate=0)}
    return Results(8e-3, 4e-3, runs, Drops(seeds, parts, worse), worse, of_labels, drift, slow)


def verdicts(found):
    return {claim.letter: claim.verdict for claim in claims(found)}


class TestClaims:
    def test_each_verdict_follows_its_number(self):
        settled = {claim.letter: claim for claim in claims(results())}
        assert list(settled) == ["a", "b", "c", "d", "e", "f"]
        assert "within 1000 steps from a learning rate of 0.004 [0.0032, 0.005] on" in settled["a"].condition
        assert format_claims(list(settled.values())).count("counterfactual") == 6

    @pytest.mark.parametrize(
        ("letter", "changed", "verdict"),
        [
            # Drops at 8e-3 by step 300, the quarter of that rate never, nor by four times the steps.
            ("a", {}, "supported"),
            # All rates drop when rate x steps is 6.4: a quarter of the rate is merely later.
            ("a", {"at": [6400, 3200, 1600, 800]}, "depends"),
            ("a", {"at": [300, 300, 300, 300]}, "refuted"),
            ("b", {"moment_share": 0.9}, "supported"),
            ("b", {"moment_share": 0.1}, "refuted"),
            ("c", {"b1_0": 12, "b2_0_dot_9": 12}, "supported"),
            ("c", {"b1_0": 12}, "depends"),
            ("c", {}, "refuted"),
            ("c", {"b1_0": 12, "b2_0_dot_9": 0}, "refuted"),
            # At rate x steps = 1 the lowest rate has dropped where others have, or has not.
            ("d", {"at": [800, 400, 200, 100], "slow_at": 1600}, "supported"),
            ("d", {"at": [800, 400, 200, 100]}, "refuted"),
            ("d", {"at": [800, 400, 200, 100], "slow_at": [[1600] * 3 + [np.inf]], "seeds": 4}, "depends"),
            ("e", {"labels": 12}, "supported"),
            ("e", {"labels": 6, "valid": 4}, "depends"),
            ("e", {}, "refuted"),
            ("f", {}, "supported"),
            ("f", {"gradient_clipped": 12}, "depends"),
            ("f", {"gradient_clipped": 12, "learning_rate_decays": 12}, "refuted"),
        ],
    )
    def test_another_outcome_is_another_verdict(self, letter, changed, verdict):
        assert verdicts(results(**changed))[letter] == verdict

    def test_labels_that_nobody_learns_decide_nothing(self):
        found = results()
        none = {name: one.assign(learnt_step=one["learnt_step"] * np.inf) for name, one in found.labels.items()}
        settled = {claim.letter: claim for claim in claims(found._replace(labels=none))}
        assert settled["e"].verdict == "depends"
        assert "0% at s = 1.1" in settled["e"].condition

    def test_what_was_not_run_settles_nothing(self):
        found = results()._replace(drops=None, from_start=None, slow={})
        assert list(verdicts(found)) == ["a", "e"]
        assert arms_of(found) is None
        assert "moment_share_median" not in numbers_of(found)

    def test_numbers_are_those_of_the_runs(self):
        numbers = numbers_of(results(labels=12))
        assert numbers["boundary_full_batch"] == pytest.approx(4e-3)
        assert numbers["gets_worse_at_steep_rate"] == 1
        assert numbers["before_drop_gradient_clipped"] == 0
        assert numbers["drift_of_descent_over_law"] == 1
        assert numbers["labels_fused_1_1_more"] == 1

    @pytest.mark.parametrize("power", [-1.0, -0.5, 0.0])
    def test_the_exponent_is_that_of_the_boundary_over_steps(self, power):
        edges = [(0.01 * steps**power, 0, 1) for steps in (200, 300, 400)]
        assert boundary_exponent(edges) == pytest.approx(power, abs=1e-9)
        assert boundary_exponent([(np.inf, 0, np.inf), *edges[1:]]) == pytest.approx(power, abs=1e-9)
        assert np.isnan(boundary_exponent([edges[0], (0.0, 0.0, 0.0), (np.inf, 0.0, np.inf)]))

    def test_curves_of_merely_delayed_runs_fall_on_each_other(self):
        found = results(at=[1000, 500, 250, 125], slow_at=2000)
        curves = progress_of(found)
        share_by_rate = curves["share"].where(curves["share"].notnull().all("learning_rate"), drop=True)
        assert share_by_rate.sizes["progress"] > 3
        assert (share_by_rate.max("learning_rate") - share_by_rate.min("learning_rate")).max() == 0
        assert labels_of(found)["share"].values.tolist() == [0, 0, 0]


class TestDrops:
    def test_states_lie_before_a_drop_that_comes_out_of_calm(self):
        steps = np.arange(0, 300, 10)
        accuracy, loss = np.full((1, 3, 30), 0.95), np.full((1, 3, 30), 0.1)
        accuracy[0, 0, 12:15], loss[0, 0, 12:15] = 0.4, 1.0  # calm before step 120
        accuracy[0, 1, 2], accuracy[0, 1, 5], loss[0, 1, 5] = 0.85, 0.4, 1.0  # below 90 % four records before
        accuracy[0, 1, 1] = 0.85
        runs = runs_of(accuracy, loss, rates=[1e-2]).assign_coords(step=steps)
        index = np.arange(30.0)[None, None, :, None] + 100 * np.arange(3)[None, :, None, None]
        for name in ("saved_params", "saved_opt_state"):
            runs[name] = (("learning_rate", "seed", "step", name + "_axis"), index)
        states = drops(runs, 5)
        assert states["seed"].values.tolist() == [0]
        assert states["step"].values.tolist() == [120 - BEFORE]
        assert states["saved_params"].values.tolist() == [[12.0 - BEFORE / 10]]


class TestSmallRun:
    @pytest.mark.slow
    def test_loss_and_accuracy_are_recorded_and_a_seed_starts_the_same_in_every_arm(self):
        problem = rnn_sequences(3, 8, 6)
        arms = {"unchanged": {"learning_rate": 0.05}, "gradient_clipped": {"learning_rate": 0.05, "max_norm": 0.01}}
        runs = train_arms(problem, arms, 2, 20, every=5)
        assert runs["loss"].dims == ("arm", "seed", "step")
        first = runs.isel(step=0)
        np.testing.assert_array_equal(first["loss"].sel(arm="unchanged"), first["loss"].sel(arm="gradient_clipped"))
        assert not np.allclose(runs["loss"].isel(arm=0, step=-1), runs["loss"].isel(arm=1, step=-1))
        assert set(np.unique(runs["accuracy"] * 8)) <= set(range(9))
        assert reported_shape(runs)["shape"].dims == ("arm", "seed")

    @pytest.mark.slow
    def test_only_the_fused_gradient_drifts_and_no_loss_lies_below_its_floor(self):
        parts, drift = label_runs((3, 8), 0.01, {1.5: 2}, 40)
        assert list(parts) == ["valid", "autodiff 1.5", "fused 1.5"]
        assert (parts["fused 1.5"]["drift"] > 0.5).all()
        assert all((abs(parts[name]["drift"]) < 0.3).all() for name in ("valid", "autodiff 1.5"))
        assert (parts["autodiff 1.5"]["lowest_loss"] > label_floor(1.5)).all()
        assert drift.attrs["bias_over_law"] == pytest.approx(1, abs=1e-3)
