"""A monitored optimizer trains the same bits, and its state says of every step what NumPy says of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossland as ll
from lossland.diagnosis.built_moments import moment_reader
from lossland.diagnosis.monitor import _history_steps, _row_of
from lossland.sweeps.sweep import Outcome

OPTIMIZERS = {
    "sgd": lambda rate=0.05: optax.sgd(rate),
    "momentum": lambda rate=0.05: optax.sgd(rate, momentum=0.9, nesterov=True),
    "adam": lambda rate=0.01: optax.adam(rate),
    "adamw_clipped": lambda rate=0.01: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate)),
}


def network():
    """A small network on made-up data: (params, loss of params and batch, batch)."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(96, 12)).astype(np.float32), rng.normal(size=(96, 4)).astype(np.float32)
    first, second = (rng.normal(size=shape).astype(np.float32) / 4 for shape in ((12, 33), (33, 4)))
    params = {"first": jnp.asarray(first), "bias": jnp.zeros(33), "second": jnp.asarray(second)}

    def loss(params, batch):
        hidden = jnp.tanh(batch[0] @ params["first"] + params["bias"])
        return jnp.mean((hidden @ params["second"] - batch[1]) ** 2)

    return params, loss, (jnp.asarray(x), jnp.asarray(y))


def step_of(tx, loss):
    """One step as a user writes it: params, state, batch -> params, state, loss."""

    def step(params, state, batch):
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(gradient, state, params, value=value)
        return optax.apply_updates(params, updates), state, value

    return step


def plain(tx):
    return optax.with_extra_args_support(tx)


def same_bits(left, right):
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


@pytest.mark.parametrize(
    ("name", "every"), [("sgd", 8), ("adam", 1), pytest.param("adamw_clipped", 8, marks=pytest.mark.slow)]
)
def test_a_jitted_loop_trains_the_same_bits(name, every):
    params, loss, batch = network()
    ends = []
    for tx in (plain(OPTIMIZERS[name]()), ll.monitor(OPTIMIZERS[name](), window=8, every=every)):
        now, state, step = params, tx.init(params), jax.jit(step_of(tx, loss))
        for _ in range(40):
            now, state, value = step(now, state, batch)
        ends.append((now, value))
    assert same_bits(*ends)


@pytest.mark.parametrize("name", ["adam", pytest.param("momentum", marks=pytest.mark.slow)])
def test_scanned_and_vmapped_runs_train_the_same_bits(name):
    params, loss, batch = network()
    ends = []
    for wrap in (plain, functools.partial(ll.monitor, window=40, every=4)):

        def train(scale, wrap=wrap):
            tx = wrap(OPTIMIZERS[name]())
            step = step_of(tx, loss)
            start = jax.tree.map(lambda leaf: scale * leaf, params)

            def body(carry, _):
                *carry, value = step(*carry, batch)
                return tuple(carry), value

            (end, state), values = jax.lax.scan(body, (start, tx.init(start)), length=40)
            return (end, values), state

        trained, state = jax.jit(jax.vmap(train))(jnp.asarray([0.1, 1.0, 20.0]))
        ends.append(trained)
    assert same_bits(*ends)
    found = ll.monitored(state)
    assert found["loss"].dims == ("run", "step")
    np.testing.assert_array_equal(found["loss"], np.asarray(ends[0][1]))
    assert ll.monitored(state, dims=("scale",))["status"].dims == ("scale",)
    with pytest.raises(ValueError, match=r"dims: expected 1 names"):
        ll.monitored(state, dims=("a", "b"))


def test_records_are_those_of_numpy():
    """Every record of Adam's steps, from gradients and moments kept aside in float64."""
    params, loss, batch = network()
    b1, b2, eps, rate = 0.9, 0.97, 1e-2, 0.02
    tx = ll.monitor(optax.adam(rate, b1=b1, b2=b2, eps=eps), every=1)
    step, state, slope = jax.jit(step_of(tx, loss)), tx.init(params), jax.jit(jax.value_and_grad(loss))
    m = v = 0.0
    for t in range(1, 13):
        value, gradient = slope(params, batch)
        g = np.asarray(jax.flatten_util.ravel_pytree(gradient)[0], np.float64)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        vhat = v / (1 - b2**t)
        u = -rate * (m / (1 - b1**t)) / (np.sqrt(vhat) + eps)
        params, state, _ = step(params, state, batch)
        expected = {
            "loss": float(value),
            "gradient_norm": np.linalg.norm(g),
            "update_norm": np.linalg.norm(u),
            "slope": g @ u,
            "update_gradient_cosine": g @ u / np.linalg.norm(g) / np.linalg.norm(u),
            "gradient_excess_rms": np.sqrt(np.mean(g**2 / np.maximum(vhat, eps**2))),
            "gradient_excess_max": np.max(g**2 / np.maximum(vhat, eps**2)),
            "num_nonfinite": 0,
        }
        found = ll.monitored(state).isel(step=-1)
        for name, number in expected.items():
            assert float(found[name]) == pytest.approx(number, rel=2e-3, abs=1e-12), (t, name)
        near = np.abs(np.sqrt(vhat) / eps - 1) < 1e-3
        assert abs(float(found["damped"]) - np.mean(np.sqrt(vhat) < eps)) <= near.mean() + 1e-6
    assert 0 < float(ll.monitored(state)["damped"].max()) < 1, "the choice of eps puts coordinates on both sides"
    assert int(found["steps_done"]) == 12


@pytest.mark.parametrize(
    ("make", "decay", "floor"),
    [
        (lambda: optax.adam(1e-3), 0.999, 1e-8),
        (lambda: optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 1e-2, 10, 100), b2=0.95, eps=1e-5), 0.95, 1e-5),
        (lambda: optax.adam(1e-3, eps_root=1e-6, eps=0.0), 0.999, 1e-3),
        (lambda: optax.nadam(1e-3, b2=0.9), 0.9, 1e-8),
        (lambda: optax.amsgrad(1e-3), 0.999, 1e-8),
        (lambda: optax.rmsprop(1e-3), 0.9, 1e-4),
        (lambda: optax.rmsprop(1e-3, eps_in_sqrt=False, eps=1e-6, momentum=0.9), 0.9, 1e-6),
        (lambda: optax.adagrad(1e-2, initial_accumulator_value=0.0), None, np.sqrt(1e-7)),
        (lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-3, b2=0.99)), 0.99, 1e-8),
        (lambda: optax.inject_hyperparams(optax.adam)(1e-3, b2=0.98, eps=1e-6), 0.98, 1e-6),
    ],
)
def test_decay_and_floor_are_found_by_probing(make, decay, floor):
    """After steps of one gradient g, Adam's bias-corrected v is g^2; the floor is eps, or its root."""
    transformation = optax.with_extra_args_support(make())
    read = moment_reader(transformation)
    assert read is not None
    params = {"w": jnp.zeros(3)}
    gradient = {"w": jnp.asarray([1e-3, 2e-3, 5e-3])}
    state = transformation.init(params)
    for _ in range(3):
        _, state = transformation.update(gradient, state, params)
    value, found = read(state)
    assert found == pytest.approx(floor, rel=1e-3)
    seen = {"rmsprop": 1 - 0.9**3, "adagrad": 3.0}
    name = "rmsprop" if decay == 0.9 and floor != 1e-8 else "adagrad" if decay is None else "adam"
    clip = min(1.0, 0.1 / np.linalg.norm(gradient["w"])) if decay == 0.99 else 1.0
    np.testing.assert_allclose(value["w"], seen.get(name, 1.0) * (clip * gradient["w"]) ** 2, rtol=1e-3)


@pytest.mark.parametrize("make", [lambda: optax.sgd(0.1), lambda: optax.lion(1e-3), lambda: optax.adamax(1e-3)])
def test_optimizers_without_that_second_moment_leave_its_records_out(make):
    tx = ll.monitor(make())
    params = {"w": jnp.ones(4)}
    _, state = tx.update(params, tx.init(params), params, value=1.0)
    found = ll.monitored(state)
    assert "gradient_excess_rms" not in found
    assert float(found["gradient_norm"][0]) == pytest.approx(2.0)


def test_gradients_are_measured_at_every_so_many_steps():
    tx = ll.monitor(optax.adam(1e-3), every=4, window=10, history=16)
    params = {"w": jnp.ones(3)}
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(90):
        _, state = update(params, state, params, value=float(step))
    found = ll.monitored(state)
    measured = np.isfinite(found["gradient_norm"].values)
    np.testing.assert_array_equal(measured, found["step"] % 4 == 0)
    np.testing.assert_array_equal(np.isfinite(found["gradient_excess_rms"]), measured)
    np.testing.assert_array_equal(found["loss"], found["step"])
    assert ll.monitored(state, "history").attrs["every"] == 8
    assert np.isfinite(ll.monitored(state, "history")["gradient_norm"]).all()


def test_the_history_keeps_evenly_spaced_steps_and_moves_none():
    """Oracle: a plain Python dictionary of what each row holds, step by step."""
    rows, num_steps = 16, 5000
    places = np.asarray(jax.jit(lambda steps: _row_of(steps, rows))(jnp.arange(num_steps)))
    np.testing.assert_array_equal(places, _row_of(np.arange(num_steps), rows, np))
    assert places.min() >= 0
    assert places.max() <= rows
    checked = {1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 100, 255, 256, 1000, 4095, 4096, 4097, 5000}
    held = {}
    for step in range(num_steps):
        held[int(places[step])] = step
        if step + 1 in checked:
            steps, where = _history_steps(step + 1, rows)
            assert len(steps) > min(step, rows // 2 - 1), step
            assert [held[int(row)] for row in where] == steps.tolist(), step


def test_window_and_history_of_a_long_run():
    """The loss of step t is t: what comes back is known."""
    tx = ll.monitor(optax.sgd(0.0), window=20, history=16)
    params = {"w": jnp.ones(2)}

    def body(state, now):
        return tx.update(params, state, params, value=now.astype(jnp.float32))[1], None

    state, _ = jax.jit(lambda state: jax.lax.scan(body, state, jnp.arange(1000)))(tx.init(params))
    recent, history, both = (ll.monitored(state, part) for part in ("recent", "history", "all"))
    np.testing.assert_array_equal(recent["step"], np.arange(980, 1000))
    np.testing.assert_array_equal(history["step"], np.arange(0, 1000, history.attrs["every"]))
    assert 8 <= history.sizes["step"] <= 16
    for found in (recent, history, both):
        np.testing.assert_array_equal(found["loss"], found["step"])
    assert np.all(np.diff(both["step"]) > 0)
    assert int(both["num_rises"]) == 999
    assert int(both["first_rise_step"]) == 1
    assert float(both["peak_loss"]) == 999
    assert ll.explain_history(history["loss"].values, steps_per_record=history.attrs["every"]).cause


def test_a_run_that_blows_up_is_said_to():
    problem = ll.problems.reported.linear_regression()
    batch = jax.tree.map(jnp.asarray, problem.data)
    tx = ll.monitor(optax.sgd(0.01))
    params = problem.init(jax.random.key(0))
    state, step = tx.init(params), jax.jit(step_of(tx, problem.loss))
    losses = []
    for _ in range(160):
        params, state, value = step(params, state, batch)
        losses.append(float(value))
    found = ll.monitored(state)
    bad = int(np.argmin(np.isfinite(losses)))
    assert int(found["status"]) == Outcome.diverged
    assert int(found["first_bad_step"]) == bad
    assert float(found["num_nonfinite"].sel(step=bad // 16 * 16)) == 0, "the square overflows first"
    assert float(found["num_nonfinite"].sel(step=144)) == 2
    assert float(found["peak_loss"]) == np.float32(losses[bad - 1])
    explained = ll.explain_history(found["loss"].values, learning_rate=0.01, optimizer="sgd", full_batch=True)
    assert explained.cause is ll.Cause.learning_rate_above_threshold
    assert explained.sharpness == pytest.approx(288.539, rel=1e-3)


def test_a_loss_that_is_passed_now_and_then_is_explained_by_what_was_passed():
    tx = ll.monitor(optax.sgd(0.05))
    params, loss, batch = network()
    state, step = tx.init(params), jax.jit(jax.value_and_grad(loss))
    for place in range(40):
        value, gradient = step(params, batch)
        updates, state = tx.update(gradient, state, params, **({"value": value} if place % 5 == 2 else {}))
        params = optax.apply_updates(params, updates)
    found = ll.monitored(state)
    assert np.isfinite(found["loss"]).sum() == 8
    assert ll.explain_history(found["loss"], 0.05).cause is ll.Cause.healthy
    explained = ll.explain(found)
    assert explained.cause is ll.Cause.healthy
    assert "whether the loss that was passed is that of all data" in str(explained)
    # One that was passed and is not finite is another matter.
    _, state = tx.update(gradient, state, params, value=jnp.nan)
    assert ll.explain(ll.monitored(state)).cause is not ll.Cause.healthy


def test_several_steps_at_once_are_watched_as_they_are_written():
    params, loss, batch = network()
    ends = []
    many = optax.MultiSteps(optax.adam(0.01), 4)
    for tx in (many, ll.monitor(many, every=1)):
        now, state, step = params, tx.init(params), jax.jit(step_of(tx, loss))
        for _ in range(12):
            now, state, value = step(now, state, batch)
        ends.append((now, value))
    assert same_bits(*ends)
    found = ll.monitored(state)
    assert found.sizes["step"] == 12
    np.testing.assert_array_equal(found["update_norm"] > 0, found["step"] % 4 == 3)


def test_states_inside_others_are_found():
    flax_training = pytest.importorskip("flax.training.train_state")
    params, loss, batch = network()
    tx = optax.chain(optax.clip(1.0), ll.monitor(ll.Optimizer(optax.adam, learning_rate=1e-3)))
    state = flax_training.TrainState.create(apply_fn=None, params=params, tx=tx)
    state = state.apply_gradients(grads=jax.grad(loss)(params, batch))
    found = ll.monitored(state)
    assert "loss" not in found, "flax passes none"
    assert found.sizes["step"] == 1
    assert {"gradient_norm", "gradient_excess_rms"} <= set(found)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ll.monitor(optax.adam), r"optax\.adam\(1e-3\).*learning_rate"),
        (lambda: ll.monitor(3), r"optimizer: expected an optax factory"),
        (lambda: ll.monitor(optax.sgd(1.0), window=1), r"window: expected an integer of at least 2 .*got 1"),
        (lambda: ll.monitor(optax.sgd(1.0), every=0), r"every: expected an integer of at least 1 .*got 0"),
        (lambda: ll.monitor(optax.sgd(1.0), every=3), r"every: expected a power of two, got 3; the next is 4"),
        (
            lambda: ll.monitor(optax.sgd(1.0), history=100),
            r"history: expected a power of two, got 100; the next is 128",
        ),
        (lambda: ll.monitored(optax.sgd(1.0).init({"w": jnp.ones(2)})), r"opt_state: .*ll\.monitor.*found none"),
        (lambda: ll.monitored(ll.monitor(optax.sgd(1.0)).init({"w": jnp.ones(2)}), "late"), r"part: .*got 'late'"),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_loss_per_example_is_refused():
    tx = ll.monitor(optax.sgd(0.1))
    params = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"value: expected the scalar loss of this step, got shape \(5,\)"):
        tx.update(params, tx.init(params), params, value=jnp.ones(5))
