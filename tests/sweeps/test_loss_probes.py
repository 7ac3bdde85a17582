"""Spikes of the loss followed inside the program: against built-in spikes, a plain recount, and recorded curves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossland as ll
from lossland.sweeps.loss_probes import late_spikes
from lossland.sweeps.probes import Probe
from lossland.sweeps.programs import GroupProgram
from tests.cases import linear_problem
from tests.curvature.cases import quick_jit

FACTORS = (2.0, 10.0)


def followed(losses, after=20, visible=FACTORS, **options):
    """What the probe remembers after a curve."""
    probe = late_spikes(after, visible, **options)

    def scan(losses):
        memory = probe.begin(None, {"w": losses})
        steps = jnp.arange(len(losses))
        return jax.lax.scan(lambda old, at: (probe.follow(old, *at), None), memory, (steps, losses))[0]

    return jax.tree.map(np.asarray, quick_jit(scan)(jnp.asarray(losses, jnp.float32)))


def recounted(losses, after, factor, share=0.1, fade=10.0):
    """Late spikes by the definition, in another way: the envelope as a maximum over all earlier losses."""
    losses = np.where(np.isfinite(losses), losses, np.inf)
    ages = np.arange(len(losses))[:, None] - np.arange(len(losses))
    with np.errstate(over="ignore"):
        envelope = np.where(ages >= 0, losses * np.exp(-np.maximum(ages, 0) / fade), 0).max(1)
    reached = np.flatnonzero(losses <= share * losses[0])
    late = max(after, reached[0]) if reached.size else len(losses)
    starts, since = [], 0
    while since < len(losses):
        low = np.minimum.accumulate(envelope[since:])
        up = np.flatnonzero(envelope[since:] > factor * low)
        if not up.size:
            break
        starts.append(since + int(up[0]))
        peak = np.maximum.accumulate(envelope[starts[-1] :])
        down = np.flatnonzero(envelope[starts[-1] :] < peak / factor)
        if not down.size:
            break
        since = starts[-1] + int(down[0])
    return [start for start in starts if start >= late], late


def falling(num_steps, level=1e-3):
    return level + np.exp(-np.arange(num_steps) / 3.0)


class TestLateSpikes:
    def test_the_step_of_a_spike_is_the_one_built_in_and_early_ones_do_not_count(self):
        losses = falling(200)
        losses[15:18] *= 40  # early
        losses[100:103] *= 5
        losses[150:153] *= 40
        found = followed(losses, after=60)
        assert found.late == 60
        np.testing.assert_array_equal(found.first, [100, 150])
        np.testing.assert_array_equal(found.count, [2, 1])
        np.testing.assert_allclose(found.late_peak, losses[60:].max(), rtol=1e-6)

    def test_a_spike_under_way_as_late_training_begins_is_not_late(self):
        losses = falling(200)
        losses[55:75] *= np.geomspace(100, 3, 20)
        np.testing.assert_array_equal(followed(losses, after=60).count, [0, 0])
        np.testing.assert_array_equal(followed(losses, after=54).first, [55, 55])

    def test_training_is_not_late_before_the_loss_has_fallen(self):
        losses = np.concatenate([np.ones(100), 0.5 * np.ones(50), 0.09 * np.ones(50), 0.01 * np.ones(50)])
        losses[120], losses[180], losses[220] = 5.0, 5.0, 5.0
        found = followed(losses)
        assert found.late == 150
        assert found.first[0] == 180
        assert followed(losses[:150]).late == -1

    def test_a_ringing_tail_is_one_spike(self):
        steps = np.arange(100)
        rings = np.exp(-steps / 10) * np.cos(0.45 * steps) ** 2
        losses = np.concatenate([falling(100), 1e-3 + 0.1 * rings])
        assert (np.diff(losses[100:]) > 0).sum() > 30
        np.testing.assert_array_equal(followed(losses).count, [1, 1])

    def test_a_slow_rise_of_the_factor_counts_once_and_a_smaller_one_never(self):
        losses = np.concatenate([falling(60), 1e-3 * np.linspace(1, 1.9, 200)])
        np.testing.assert_array_equal(followed(losses).count, [0, 0])
        losses = np.concatenate([falling(60), 1e-3 * np.linspace(1, 9, 200)])
        np.testing.assert_array_equal(followed(losses).count, [1, 0])

    def test_a_loss_that_is_not_finite_spikes_once(self):
        losses = np.concatenate([falling(80), [np.nan, 1e-3, np.inf, 1e-3]])
        found = followed(losses)
        np.testing.assert_array_equal(found.first, [80, 80])
        np.testing.assert_array_equal(found.count, [1, 1])

    @pytest.mark.parametrize("seed", range(5))
    def test_random_curves_against_a_recount(self, seed):
        random = np.random.default_rng(seed)
        losses = np.exp(-3.0 * np.arange(400) / 200 + np.cumsum(0.35 * random.normal(size=400))).astype(np.float32)
        found = followed(losses, after=50)
        for place, factor in enumerate(FACTORS):
            starts, late = recounted(losses.astype(float), 50, factor)
            assert len(starts) > 0 or factor > 2
            assert found.count[place] == len(starts)
            assert found.first[place] == (starts[0] if starts else -1)
            assert found.late == late

    def test_bad_input_is_refused(self):
        for message, after, visible, options in (
            ("visible: expected distinct factors above 1", 10, (), {}),
            ("visible: expected distinct factors above 1", 10, (1.0,), {}),
            ("visible: expected distinct factors above 1", 10, (2.0, 2.0), {}),
            ("after: expected a step", -1, (2.0,), {}),
            ("progress: expected a share", 10, (2.0,), {"progress": 0.0}),
            ("fade: expected a positive number", 10, (2.0,), {"fade": 0.0}),
        ):
            with pytest.raises(ValueError, match=message):
                late_spikes(after, visible, **options)


def summed():
    """Number and sum of all losses shown."""
    return Probe(
        "summed",
        lambda problem, optimizer, state, memory, any_lane: ({"shown": memory[0], "total": memory[1]}, memory),
        begin=lambda problem, params: (jnp.int32(0), jnp.float32(0)),
        follow=lambda memory, step, loss: (memory[0] + 1, memory[1] + loss),
    )


class TestFollow:
    def test_every_step_of_a_run_that_goes_on_is_shown_whatever_is_recorded_and_the_bits_stay(self):
        axes, seeds, steps = {"learning_rate": [1e-3, 0.03]}, 2, 56
        plain = ll.run(linear_problem(), optax.sgd, ll.Sweep(axes, seeds, steps, 1), ["loss"], progress=False)
        runs = ll.run(linear_problem(), optax.sgd, ll.Sweep(axes, seeds, steps, 7), ["loss", summed()], progress=False)
        at_records = plain["loss"].sel(step=runs["step"])
        np.testing.assert_array_equal(runs["loss"].isel(learning_rate=0), at_records.isel(learning_rate=0))
        whole = runs.isel(learning_rate=0)
        np.testing.assert_array_equal(whole["shown"], [1 + runs["step"].values] * 2)
        total = plain["loss"].isel(learning_rate=0).sum("step")
        np.testing.assert_allclose(whole["total"].isel(step=-1), total, rtol=1e-5)
        bad = int(plain["first_bad_step"].isel(learning_rate=1, seed=0))
        assert 7 < bad < steps
        # What was recorded before it diverged, and nothing of what its neighbours went on to do.
        np.testing.assert_array_equal(
            runs["shown"].isel(learning_rate=1, seed=0).sel(step=slice(None, bad - 1)),
            1 + np.arange(0, bad, 7),
        )

    def test_with_batches_the_full_loss_is_shown_at_records(self):
        sweep = ll.Sweep({"learning_rate": [1e-3]}, 1, 6, 2, batch_size=5)
        runs = ll.run(linear_problem(), optax.sgd, sweep, ["loss", summed()], progress=False)
        np.testing.assert_array_equal(runs["shown"].values.ravel(), [1, 2, 3, 4])
        np.testing.assert_allclose(runs["total"].values.ravel(), np.cumsum(runs["loss"].values.ravel()), rtol=1e-6)

    def test_a_probe_without_a_memory_cannot_follow(self):
        with pytest.raises(ValueError, match="follow needs a memory"):
            Probe("p", lambda *arguments: 0.0, follow=lambda memory, step, loss: memory)

    @pytest.mark.parametrize(
        ("functions", "words"),
        [
            ({"follow": 3}, r"p: follow: expected a function, or None, got 3"),
            ({"follow": lambda memory, loss: memory}, r"p: follow: expected a function of \(memory, step, loss\): too"),
            ({"begin": lambda params: params}, r"p: begin: expected a function of \(problem, params\): too many"),
            ({"measure": lambda problem, optimizer, state: 0.0}, r"p: measure: .*state, memory, any_lane\): too many"),
        ],
    )
    def test_functions_that_take_something_else_are_refused_when_it_is_built(self, functions, words):
        good = {
            "measure": lambda problem, optimizer, state, memory, any_lane: (0.0, memory),
            "begin": lambda problem, params: jnp.float32(0),
            "follow": lambda memory, step, loss: memory,
        }
        Probe("p", **good)
        with pytest.raises(ValueError, match=words):
            Probe("p", **good | functions)

    @pytest.mark.parametrize(
        ("follow", "words"),
        [
            (lambda memory, step, loss: (memory, loss), r"p: follow: .* begin, float32\[\], got \('float32\[\]"),
            (lambda memory, step, loss: step, r"got int32\[\]; convert it"),
            (lambda memory, step, loss: jnp.zeros(2), r"got float32\[2\]"),
        ],
    )
    def test_a_memory_that_changes_its_form_is_refused_before_anything_compiles(self, follow, words, monkeypatch):
        monkeypatch.setattr(GroupProgram, "compile", lambda *arguments: pytest.fail("compiled"))
        probe = Probe(
            "p",
            lambda problem, optimizer, state, memory, any_lane: (memory, memory),
            begin=lambda problem, params: jnp.float32(0),
            follow=follow,
        )
        with pytest.raises(ValueError, match=words):
            ll.run(linear_problem(), optax.sgd, ll.Sweep({"learning_rate": [1e-3]}, 1, 6, 2), [probe], progress=False)


def test_records_that_lie_apart_fade_by_the_steps_between_them():
    probe = late_spikes(0, [2.0], progress=1.0, fade=10.0)
    watch = probe.begin(None, {"w": jnp.zeros(2)})
    for step, loss in zip((0, 60, 120, 180, 240), (1.0, 1.0, 4.0, 1.0, 4.0), strict=True):
        watch = probe.follow(watch, jnp.int32(step), jnp.float32(loss))
    assert watch.count.tolist() == [2]
    assert watch.first.tolist() == [120]
