"""The reported recurrent classifier: who counts as having got worse, what clips, and the claims of a tiny run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

from lossland.problems.sequences import rnn_sequences
from lossland.reproductions.claims import format_claims
from lossland.reproductions.rnn_claims import Results, claims, numbers_of
from lossland.reproductions.rnn_events import BEFORE, Anatomy, drops
from lossland.reproductions.rnn_runs import boundary, clipped_adam, reported_shape, share, train_arms


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


def results(moment_share=0.0, clipped=0, labels=0, valid=0):
    """Results as if twelve seeds had been run, of which so many get worse in an arm."""
    seeds = 12
    rates = [1e-3, 2e-3, 4e-3, 8e-3]
    some = np.arange(seeds) < np.array([0, 0, 6, 12])[:, None]
    arms = ["unchanged", "learning_rate_x_0.25", "learning_rate_x_0.1", "learning_rate_decays", "gradient_clipped"]
    arms += ["update_clipped", "eps_raised", "b1_0", "b1_0.95", "b2_0.99", "b2_0.9", "second_moment_frozen"]
    counts = np.array([12, 0, 0, 0, clipped] + [12] * 7)
    worse = shape_of(np.arange(seeds) < counts[:, None], "arm", arms)
    steps = np.arange(0, 2001, 10)
    bad = some[..., None] & (steps >= 300)
    runs = xr.Dataset(
        {
            "accuracy": (("learning_rate", "seed", "step"), np.where(bad, 0.5, 1.0)),
            "loss": (("learning_rate", "seed", "step"), np.where(bad, 1.0, 0.1)),
        },
        {"learning_rate": rates, "seed": np.arange(seeds), "step": steps},
    )
    few = np.arange(seeds) < np.array([valid, 0, labels])[:, None]
    one = {"last_loss": np.full((3, seeds), 1.1), "lowest_loss": np.ones((3, seeds)), "drift": np.ones((3, seeds))}
    of_labels = shape_of(few, "labels", ["valid", "autodiff", "fused"], **one)
    drift = xr.Dataset(
        {"mean_bias": (("setting", "step"), [[0.0, 2.0]]), "predicted": (("setting", "step"), [[0.0, 2.0]])},
        {"setting": ["gradient descent, fused"], "step": [0, 1]},
    )
    parts = Anatomy(
        **{name: np.full(seeds, 2.0) for name in Anatomy._fields} | {"moment_share": np.full(seeds, moment_share)}
    )
    return Results(
        8e-3, runs, shape_of(some, "learning_rate", rates), seeds, parts, worse, worse, of_labels, drift, None
    )


class TestClaims:
    def test_each_verdict_follows_its_number(self):
        settled = {claim.letter: claim for claim in claims(results())}
        verdicts = {letter: claim.verdict for letter, claim in settled.items()}
        assert verdicts == {
            "a": "supported", "b": "refuted", "c": "refuted", "d": "refuted", "e": "refuted", "f": "supported",
        }  # fmt: skip
        assert "0.0028, 0.0028, 0.0028" in settled["a"].condition
        assert settled["d"].quantity.endswith("learning rate, 0.001")
        text = format_claims(list(settled.values()))
        assert text.count("counterfactual") == 6

    @pytest.mark.parametrize(
        ("changed", "letter", "verdict"),
        [
            ({"moment_share": 0.9}, "b", "supported"),
            ({"clipped": 12}, "f", "depends"),
            ({"labels": 12}, "e", "supported"),
            ({"labels": 8, "valid": 4}, "e", "depends"),
        ],
    )
    def test_another_outcome_is_another_verdict(self, changed, letter, verdict):
        assert {claim.letter: claim.verdict for claim in claims(results(**changed))}[letter] == verdict

    def test_labels_that_nobody_learns_decide_nothing(self):
        found = results()
        none = found.labels.assign(learnt_step=found.labels["learnt_step"] * np.inf)
        settled = {claim.letter: claim for claim in claims(found._replace(labels=none))}
        assert settled["e"].verdict == "depends"
        assert "0 of 12" in settled["e"].condition

    def test_numbers_are_those_of_the_runs(self):
        numbers = numbers_of(results())
        assert numbers["boundary_full_batch"] == pytest.approx(np.sqrt(2e-3 * 4e-3))
        assert numbers["gets_worse_at_worst_rate"] == 1
        assert numbers["before_drop_gradient_clipped"] == 0
        assert numbers["drift_of_descent_over_law"] == 1


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
