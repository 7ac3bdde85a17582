"""Spikes in constructed records, forks against plain training, interventions against NumPy and an exact quadratic."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

import lossland as ll
from lossland.optimizers import Optimizer
from lossland.problems.synthetic import quadratic
from lossland.stability.interventions import adopt_adam, intervene, intervened_adam
from lossland.stability.shares import second_moment_share
from lossland.stability.spikes import predicted_lag, relative_preconditioned_sharpness, spikes
from lossland.sweeps.forks import fork, restore, state_probe
from tests.cases import network_problem
from tests.sweeps.test_curvature_probes import dense

B1, B2, RATE = 0.9, 0.99, 1e-2
PROBLEM = network_problem(width=4, num_examples=9)
ADAM = Optimizer(optax.adam, b2=B2)


def recorded(loss, ratio, every=1.0, **others):
    """A dataset as `ll.run` returns it, of one run: threshold 10."""
    steps = every * np.arange(len(loss))
    values = {"loss": loss, "preconditioned_sharpness": 10 * np.asarray(ratio), **others}
    values["preconditioned_sharpness_residual"] = 0.01 * np.ones(len(loss))
    variables = {name: (("seed", "step"), np.asarray(value)[None]) for name, value in values.items()}
    return xr.Dataset({**variables, "threshold": 10.0}, {"seed": [7], "step": steps})


def spiky(period=200, at=(60, 260)):
    """ln ratio rises by 0.001 per step through 1 at the given steps; 40 later the loss jumps, rings and dies away."""
    steps = np.arange(2 * period)
    phase = steps % period
    ratio = np.exp(0.001 * (phase - at[0] + 0.5))
    ratio = np.where(phase > 110, 0.9, ratio)
    loss = 1e-3 * np.ones(2 * period)
    rings = np.exp(-0.05 * np.maximum(phase - 100, 0)) * (1 + 0.9 * np.cos(0.7 * phase))
    loss = np.where(phase >= 100, loss * (1 + 50 * rings), loss)
    return loss, ratio


class TestSpikes:
    def test_a_ringing_tail_is_one_spike_and_the_steps_are_those_built_in(self):
        loss, ratio = spiky()
        found = spikes(recorded(loss, ratio, mode_energy=1e-9 * np.ones(len(loss))))
        assert found.sizes["spike"] == 2
        np.testing.assert_allclose(found["crossing_step"], [59.5, 259.5], atol=1e-6)
        np.testing.assert_array_equal(np.ceil(found["spike_step"]), [100, 300])
        np.testing.assert_allclose(found["rate"], 0.001, rtol=1e-6)
        np.testing.assert_allclose(found["peak_ratio"].values[0], ratio[100:111].max(), rtol=0.02)
        np.testing.assert_array_equal(found["seed"], 7)
        # ln(1e-3 / 1e-9) / 2 with sigma 0.001: summed here step by step.
        kappa, grown, steps = 38.0, 0.0, 0
        while grown < 0.5 * np.log(1e6):
            grown += np.log(np.abs(np.roots([1, -(1.9 - 0.1 * kappa), 0.9])).max())
            kappa, steps = kappa * np.exp(0.001), steps + 1
        np.testing.assert_array_equal(predicted_lag(found, 0.9, 0.999), steps)

    def test_no_crossing_no_spike_and_no_rise_no_spike(self):
        loss, ratio = spiky()
        assert spikes(recorded(loss, 0.5 * ratio)).sizes["spike"] == 0
        assert spikes(recorded(np.ones(len(loss)), ratio)).sizes["spike"] == 0
        assert spikes(recorded(loss, ratio), after=150).sizes["spike"] == 1
        assert spikes(recorded(loss, ratio), visible=60.0).sizes["spike"] in (0, 2)
        assert spikes(recorded(loss, ratio), visible=200.0).sizes["spike"] == 0

    def test_a_second_crossing_on_the_way_up_moves_the_crossing(self):
        loss, ratio = spiky()
        ratio = np.where(np.arange(len(ratio)) == 80, 0.999, ratio)
        np.testing.assert_allclose(spikes(recorded(loss, ratio))["crossing_step"].values[0], 80, atol=1)

    def test_missing_records_are_named(self):
        loss, ratio = spiky()
        whole = recorded(loss, ratio)
        for name in ("loss", "preconditioned_sharpness"):
            with pytest.raises(ValueError, match=f"expected a record of (the )?{name}"):
                spikes(whole.drop_vars(name))
        with pytest.raises(ValueError, match="visible: expected a finite number above 1"):
            spikes(whole, visible=1.0)
        with pytest.raises(ValueError, match="has no mode energy"):
            predicted_lag(spikes(whole), 0.9, 0.999)
        bounds = relative_preconditioned_sharpness(whole)
        np.testing.assert_allclose(bounds["ratio_bound"].values, 0.001)


@functools.cache
def trained():
    """Two seeds at two rates in double precision, states at every second step."""
    sweep = ll.Sweep({"learning_rate": [1e-3, RATE]}, 2, 24, 2, dtype="float64")
    return ll.run(PROBLEM, ADAM, sweep, ["loss", state_probe()], progress=False)


def at(step):
    return trained().sel(step=step).stack(state=("learning_rate", "seed")).reset_index("state").transpose("state", ...)


class TestFork:
    def test_an_arm_that_changes_nothing_goes_on_as_the_run_did(self):
        arms = {"same": {"dtype": "float64"}, "slower": {"learning_rate": 1e-4, "dtype": "float64"}}
        found = fork(PROBLEM, ADAM, at(10), arms, num_steps=14, every=2)
        expected = trained()["loss"].sel(step=slice(10, None)).stack(state=("learning_rate", "seed"))
        same = found["loss"].sel(arm="same").transpose("step", "state")
        np.testing.assert_allclose(same, expected.transpose("step", "state"), rtol=1e-9)
        assert (np.abs(found["loss"].sel(arm="slower") / same - 1).isel(step=-1) > 1e-3).all()
        np.testing.assert_array_equal(found["learning_rate"], [1e-3, 1e-3, RATE, RATE])
        assert found["loss"].dims == ("arm", "state", "step")
        assert (found["first_bad_step"] == -1).all()

    def test_bad_input_is_refused_before_anything_compiles(self):
        states = at(10)
        for message, changed, arms, others in (
            ("arms: expected at least one", states, {}, {}),
            ("states: expected saved_params", states.drop_vars("saved_params"), {"a": {}}, {}),
            ("states: expected 33 parameters|got 3", states.isel(parameter=slice(3)), {"a": {}}, {}),
            ("every: expected 1 to", states, {"a": {}}, {"every": 99}),
            ("adopt: needed with branch", states, {"a": {}}, {"branch": intervened_adam}),
            ("has no argument 'nonsense'", states, {"a": {"nonsense": 1.0}}, {}),
            ("expected dtype float32 or float64", states, {"a": {"dtype": "float16"}}, {}),
        ):
            with pytest.raises(ValueError, match=message):
                fork(PROBLEM, ADAM, changed, arms, num_steps=4, **others)


def steps_of(arguments, gradients, opt_state=None):
    transformation = intervened_adam(RATE, B1, B2, 1e-3, **arguments)
    state = transformation.init({"x": jnp.zeros(3)}) if opt_state is None else opt_state
    found = []
    for g in gradients:
        updates, state = transformation.update({"x": jnp.asarray(g)}, state)
        found.append(np.asarray(updates["x"]))
    return np.asarray(found), state


class TestIntervenedAdam:
    gradients = np.random.default_rng(0).normal(size=(6, 3)) * np.array([1, 0.1, 0.01])

    def test_without_an_intervention_it_is_adam_also_from_a_saved_state(self, x64):
        adam = optax.adam(RATE, B1, B2, 1e-3)
        state, expected = adam.init({"x": jnp.zeros(3)}), []
        for index, g in enumerate(self.gradients):
            if index == 3:
                adopted = adopt_adam(state, {"b1": B1, "b2": B2})
            updates, state = adam.update({"x": jnp.asarray(g)}, state)
            expected.append(np.asarray(updates["x"]))
        np.testing.assert_allclose(steps_of({}, self.gradients)[0], expected, rtol=1e-12)
        np.testing.assert_allclose(steps_of({}, self.gradients[3:], adopted)[0], expected[3:], rtol=1e-12)
        with pytest.raises(ValueError, match="one set of Adam's moments"):
            adopt_adam(optax.sgd(0.1).init({"x": jnp.zeros(3)}), {})

    @pytest.mark.parametrize("name", ["freeze", "amsgrad", "clip", "stable", "decay"])
    def test_each_intervention_is_what_it_says(self, x64, name):
        _, start = steps_of({}, self.gradients[:3])
        start = start._replace(nu_max=jax.tree.map(lambda v: v / start.nu_weight, start.nu))
        value = {"clip": 0.1, "decay": 0.5}.get(name, 1.0)
        found, _ = steps_of({name: value}, self.gradients[3:], start._replace(count=jnp.int32(0)))
        m, v, t, expected = np.zeros(3), np.zeros(3), 0, []
        for g in self.gradients[:3]:
            m, v, t = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g**2, t + 1
        held = most = v / (1 - B2**t)
        for after, g in enumerate(self.gradients[3:]):
            m, v, t = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g**2, t + 1
            most = np.maximum(most, v / (1 - B2**t))
            second = {"freeze": held, "amsgrad": most}.get(name, v / (1 - B2**t))
            step = m / (1 - B1**t) / (np.sqrt(second) + 1e-3)
            if name == "clip":
                step /= max(1, np.sqrt(np.mean(step**2)) / 0.1)
            if name == "stable":
                step /= max(1, np.sqrt(np.mean(g**2 / np.maximum(second, 1e-6))))
            expected.append(-RATE * (0.5**after if name == "decay" else 1) * step)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        assert not np.allclose(expected, steps_of({}, self.gradients)[0][3:], rtol=1e-3)

    def test_a_change_of_b2_leaves_the_second_moment_where_it_was(self, x64):
        """optax divides by 1 - b2^t with the new b2: v would jump by the ratio of the corrections."""
        _, start = steps_of({}, self.gradients)
        mean = start.nu["x"] / start.nu_weight
        changed = intervened_adam(RATE, B1, 0.9999, 1e-3).update({"x": jnp.sqrt(mean)}, start)[1]
        np.testing.assert_allclose(changed.moment.value["x"], mean, rtol=1e-12)


def test_shares_equal_the_dense_computation_and_add_up(x64):
    before, after = at(6), at(20)
    found = second_moment_share(PROBLEM, ADAM, before, after, dtype="float64")
    assert found["converged"].all()
    for place in (0, 3):
        logs = np.zeros((2, 2))
        hessians, diagonals = [], []
        for states in (before, after):
            whole = restore(PROBLEM, ADAM, states, dtype="float64")
            params, opt_state = jax.tree.map(lambda leaf, place=place: jnp.asarray(leaf[place]), whole)
            gradient = jax.grad(PROBLEM.objective)(params)
            nu = jax.tree.map(lambda v, g: B2 * v + (1 - B2) * g**2, opt_state[0].nu, gradient)
            v = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(nu)]) / (1 - B2 ** (opt_state[0].count + 1))
            hessians.append(dense(PROBLEM, params))
            diagonals.append(np.sqrt(v) + 1e-8)
        for x in (0, 1):
            for p in (0, 1):
                scaled = hessians[x] / np.sqrt(np.outer(diagonals[p], diagonals[p]))
                logs[x, p] = np.log(np.linalg.eigvalsh(scaled)[-1])
        moment = 0.5 * (logs[1, 1] - logs[1, 0] + logs[0, 1] - logs[0, 0])
        np.testing.assert_allclose(found["moment_rise"].values[place], moment, rtol=1e-6)
        total = found["moment_rise"] + found["hessian_rise"]
        np.testing.assert_allclose(total.values[place], logs[1, 1] - logs[0, 0], rtol=1e-6)
    with pytest.raises(ValueError, match="one state for each of before"):
        second_moment_share(PROBLEM, ADAM, before, after.isel(state=slice(2)))


@pytest.mark.long
def test_predicted_and_measured_delays_on_a_quadratic():
    """A flat coordinate carries the loss, a sharp one with a decaying second moment turns unstable: the law is exact.

    Crossings of every arm; spikes of those that do not first let the mode die away further, as no noise holds it here.
    """
    sharp, flat, ratio = 100.0, 1e-4, 0.99
    optimizer = Optimizer(optax.adam, learning_rate=RATE, b1=B1, b2=0.999)
    v = np.array([1.0, (RATE * sharp / (38 * ratio)) ** 2])
    counts = np.array([2.0**20, 1000.0])  # bias correction over, and in force
    states = xr.Dataset(
        {
            "saved_params": (("state", "parameter"), [[1.0, 1e-6], [1.0, 1e-7]]),
            "saved_opt_state": (
                ("state", "opt_state_element"),
                [[count, 0, 0, *(v * (1 - 0.999**count))] for count in counts],
            ),
        }
    )
    found = intervene(quadratic((flat, sharp)), optimizer, states, num_steps=400, every=1)
    sigma = -np.log(0.999) / 2 / (1 - 0.999**counts)
    np.testing.assert_allclose(found["rate"], sigma, rtol=0.03)
    gap = found["crossing"] - found["predicted_crossing"]
    assert (np.isinf(found["crossing"]) == np.isinf(found["predicted_crossing"])).all()
    assert (np.abs(gap.where(np.isfinite(found["crossing"]), 0)) <= 3).all()
    expected = np.log(1 / 0.97 / ratio) / sigma[0]
    np.testing.assert_allclose(found["crossing"].sel(arm="learning_rate_x_0.97")[0], expected, atol=3)
    for arm in ("second_moment_frozen", "amsgrad", "b1_0.95"):
        assert np.isinf(found["spike"].sel(arm=arm)).all(), arm
        assert np.isinf(found["predicted_spike"].sel(arm=arm)).all(), arm
    assert np.isinf(found["crossing"].sel(arm="learning_rate_decays")[0])  # as fast as sqrt(v)
    for arm in ("unchanged", "update_clipped", "float64", "b1_0.8", "b2_0.99"):
        measured, predicted = found["spike"].sel(arm=arm), found["predicted_spike"].sel(arm=arm)
        np.testing.assert_allclose(measured, predicted, atol=4, err_msg=arm)
    with pytest.raises(ValueError, match="an arm 'unchanged'"):
        intervene(quadratic(), optimizer, states, arms={"a": {}})


def saved(optimizer, count=100.0):
    """One state of an optimizer with Adam's moments, on two parameters."""
    params = jnp.array([1.0, 1e-3])
    leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(optimizer.init(params))]
    flat = np.concatenate([[count], [1e-3, -1e-4], [1e-2, 1e-4], *leaves[3:]])
    return xr.Dataset(
        {
            "saved_params": (("state", "parameter"), [params]),
            "saved_opt_state": (("state", "opt_state_element"), [flat]),
        }
    )


@pytest.mark.parametrize(
    "optimizer",
    [
        Optimizer(optax.adamw, learning_rate=RATE, weight_decay=0.1),
        Optimizer(optax.nadam, learning_rate=RATE),
        Optimizer(optax.adam, learning_rate=RATE, eps_root=1e-3),
    ],
    ids=["adamw", "nadam", "eps_root"],
)
def test_what_the_arms_would_leave_out_is_refused(optimizer):
    """Their update is another than that of the arm called unchanged."""
    with pytest.raises(ValueError, match=r"expected the update of optax.adam, got another of"):
        intervene(quadratic((1.0, 100.0)), optimizer, saved(optimizer), num_steps=4)


@pytest.mark.parametrize(
    ("optimizer", "change", "arms", "message"),
    [
        (None, lambda states: states.isel(state=0), None, r"expected saved_params over \(one axis of states"),
        (None, lambda states: states.drop_vars("saved_params"), None, r"expected saved_params over .* got none"),
        (
            Optimizer(optax.amsgrad, learning_rate=RATE),
            None,
            None,
            "expected 7 elements of the state of amsgrad, got 5",
        ),
        (optax.adam, None, None, "adam needs learning_rate"),
        (None, None, {"unchanged": {}, "wild": {"b1": 1.2}}, r"arms\['wild'\]: b1: expected 0 <= b1 < 1, got 1.2"),
        (None, None, {"unchanged": {}, "wild": {"eps": "large"}}, r"arms\['wild'\]: eps: expected a number"),
    ],
    ids=["no_axis", "no_states", "another_optimizer", "no_rate", "momentum", "no_number"],
)
def test_states_and_arms_are_looked_at_before_anything_is_trained(optimizer, change, arms, message):
    adam = Optimizer(optax.adam, learning_rate=RATE)
    states = saved(adam) if change is None else change(saved(adam))
    with pytest.raises(ValueError, match=message):
        intervene(quadratic((1.0, 100.0)), adam if optimizer is None else optimizer, states, num_steps=4, arms=arms)
