"""Minibatches as users have them, against plain Python loops; random layers and batch statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

import lossland as ll
from lossland.sweeps.batches import Batches
from lossland.sweeps.single_run import key_of
from tests.cases import problem_named
from tests.oracles import starting_point

LAYOUTS = {
    "shuffled, ragged": {"batch_size": 7},
    "shuffled, dropped": {"batch_size": 7, "last_batch": "drop"},
    "in order": {"batch_size": 7, "sampling": "in_order"},
    "with replacement": {"batch_size": 7, "sampling": "with_replacement"},
    "more than everything": {"batch_size": 100},
}
STEPS = 23


def indices_of(seed: int, num_examples: int, num_steps: int, batch_size: int, sampling="shuffled", last_batch="keep"):
    """Examples of every step, as a training loop written by hand has them; only the draws come from JAX."""
    key = key_of(jnp.uint32(seed), "batches")
    steps, epoch = [], 0
    while len(steps) < num_steps:
        if sampling == "with_replacement":
            draw = jax.random.randint(jax.random.fold_in(key, len(steps)), (batch_size,), 0, num_examples)
            steps.append(np.asarray(draw))
            continue
        order = np.arange(num_examples)
        if sampling == "shuffled":
            order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), num_examples))
        batches = [order[start : start + batch_size] for start in range(0, num_examples, batch_size)]
        steps += [batch for batch in batches if last_batch == "keep" or len(batch) == batch_size]
        epoch += 1
    return steps[:num_steps]


def by_hand(problem, seed, rate, steps, optimizer=optax.sgd):
    """Full loss before every step, batch losses, by a plain loop in float64."""
    params = starting_point(problem, seed)
    with jax.enable_x64(True):
        data = [np.asarray(leaf, np.float64) for leaf in problem.data]
        evaluate = jax.jit(jax.value_and_grad(problem.loss))
        transformation = optimizer(rate)
        state = transformation.init(params)
        full, losses = [], []
        for chosen in steps:
            full.append(float(evaluate(params, tuple(data))[0]))
            loss, gradient = evaluate(params, tuple(leaf[chosen] for leaf in data))
            losses.append(float(loss))
            updates, state = transformation.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        full.append(float(evaluate(params, tuple(data))[0]))
    return np.array(full), np.array(losses)


def epoch_means(losses, steps, per_epoch):
    """What Keras prints: the mean over the batches of the epoch so far, weighted by their size."""
    means = [np.nan]
    for now in range(1, len(losses) + 1):
        first = (now - 1) // per_epoch * per_epoch
        sizes = [len(chosen) for chosen in steps[first:now]]
        means.append(np.average(losses[first:now], weights=sizes))
    return np.array(means)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "width"), [(layout, 1 + 3 * (place % 2)) for place, layout in enumerate(LAYOUTS)])
def test_batches_equal_a_loop_by_hand(layout, width):
    options = LAYOUTS[layout]
    problem = problem_named("cubic")
    sweep = ll.Sweep(
        {"learning_rate": [0.01, 0.03]}, [0, 3], STEPS, every=1, dtype="float64", lane_width=width, **options
    )
    runs = ll.run(problem, optax.sgd, sweep, ["loss", "batch_loss", "epoch_mean_loss"])
    per_epoch = Batches(24, **options).per_epoch
    for rate in (0.01, 0.03):
        for seed in (0, 3):
            steps = indices_of(seed, 24, STEPS, **options)
            full, losses = by_hand(problem, seed, rate, steps)
            run = runs.sel(learning_rate=rate, seed=seed)
            np.testing.assert_allclose(run["loss"], full, rtol=1e-12)
            np.testing.assert_allclose(run["batch_loss"][:-1], losses, rtol=1e-12)
            np.testing.assert_allclose(run["epoch_mean_loss"], epoch_means(losses, steps, per_epoch), rtol=1e-12)


def test_every_epoch_sees_every_example_once():
    for seed in range(5):
        steps = indices_of(seed, 24, 8, 7)
        assert sorted(np.concatenate(steps[:4]).tolist()) == list(range(24))
        assert np.concatenate(steps[:4]).tolist() != np.concatenate(steps[4:]).tolist()


@pytest.mark.slow
def test_98_sequences_in_batches_of_32():
    batches = Batches(98, 32)
    assert [int(batches.size_at(step)) for step in range(8)] == [32, 32, 32, 2] * 2
    data = (np.arange(98.0)[:, None],)

    def sizes(problem, optimizer, state):
        return state.batch_loss

    problem = ll.Problem(
        lambda key: jnp.zeros(1), lambda params, batch: batch[0].shape[0] + 0 * params.sum(), data, name="count"
    )
    runs = ll.run(problem, optax.sgd, ll.Sweep({"learning_rate": [0.1]}, 1, 8, 1, batch_size=32), [sizes])
    assert runs["sizes"].values.ravel()[:8].tolist() == [32, 32, 32, 2] * 2


@pytest.mark.slow
def test_batch_size_is_an_axis_and_each_value_equals_its_own_sweep():
    problem = problem_named("cubic")
    fields = {"seeds": 3, "num_steps": 20, "every": 5}
    together = ll.run(problem, optax.sgd, ll.Sweep({"batch_size": [5, 24], "learning_rate": [0.01, 0.1]}, **fields))
    assert together["loss"].dims == ("batch_size", "learning_rate", "seed", "step")
    assert together["batch_size"].values.tolist() == [5, 24]
    for size in (5, 24):
        alone = ll.run(problem, optax.sgd, ll.Sweep({"learning_rate": [0.01, 0.1]}, **fields, batch_size=size))
        np.testing.assert_array_equal(together["loss"].sel(batch_size=size), alone["loss"])
    assert len(np.unique(together["loss"].isel(step=-1, learning_rate=0, seed=0))) == 2


def test_the_order_of_batches_belongs_to_the_seed_not_to_the_grid():
    problem = problem_named("cubic")
    fields = {"num_steps": 15, "every": 5, "batch_size": 6, "lane_width": 4}
    many = ll.run(problem, optax.sgd, ll.Sweep({"learning_rate": [0.3, 0.01, 5.0]}, range(5), **fields))
    one = ll.run(problem, optax.sgd, ll.Sweep({"learning_rate": [0.01]}, [4], **fields))
    np.testing.assert_array_equal(many["loss"].sel(learning_rate=[0.01], seed=[4]), one["loss"])


def test_rises_are_those_of_the_full_data_at_records():
    sweep = ll.Sweep({"learning_rate": [0.001, 0.1]}, 6, 60, 2, batch_size=2)
    runs = ll.run(problem_named("cubic"), optax.sgd, sweep)
    for index in np.ndindex(runs["status"].shape):
        losses = runs["loss"].values[index]
        rose = np.flatnonzero(np.diff(losses) > 1e-5)
        assert runs["num_rises"].values[index] == rose.size
        assert runs["first_rise_step"].values[index] == (runs["step"].values[rose[0] + 1] if rose.size else -1)
        assert runs["peak_loss"].values[index] == losses.max()
    assert "full-data" in runs["num_rises"].attrs["description"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"batch_size": 0}, ["batch_size", "at least 1"]),
        ({"batch_size": 2.5}, ["batch_size", "2.5"]),
        ({"sampling": "random"}, ["sampling", "shuffled", "with_replacement"]),
        ({"last_batch": True}, ["last_batch", "keep", "drop"]),
        ({"axes": {"batch_size": [4, 2.5]}}, ["batch_size", "positive integers"]),
        ({"axes": {"batch_size": [4, 8]}, "batch_size": 4}, ["both as an axis", "batch_size"]),
    ],
)
def test_bad_batches_are_named(fields, words):
    with pytest.raises(ValueError, match=r".") as error:
        ll.Sweep(**{"axes": {"learning_rate": [0.1]}, **fields})
    for word in words:
        assert word in str(error.value)


def test_a_batch_larger_than_the_data_that_is_dropped():
    sweep = ll.Sweep({"learning_rate": [0.1]}, 1, 2, 1, batch_size=100, last_batch="drop")
    with pytest.raises(ValueError, match=r"batch_size: 100 is more than the 24 examples"):
        ll.run(problem_named("cubic"), optax.sgd, sweep)


class Network(linen.Module):
    """With dropout and batch statistics, as many users have them."""

    dropout: bool = False
    norm: bool = False

    @linen.compact
    def __call__(self, x, train):
        x = linen.Dense(6)(x)
        if self.norm:
            x = linen.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        if self.dropout:
            x = linen.Dropout(0.5, deterministic=not train)(x)
        return linen.Dense(1)(jnp.tanh(x))


def squared(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


X = np.random.default_rng(0).normal(size=(20, 2))
DATA = (X, X[:, :1] * X[:, 1:])


class TestRandomLayers:
    problem = ll.Problem.from_flax(Network(dropout=True), squared, DATA)

    def run(self, **options):
        fields = {"seeds": 4, "num_steps": 10, "every": 1, "lane_width": 4, **options}
        return ll.run(self.problem, optax.sgd, ll.Sweep({"learning_rate": [0.1]}, **fields), ["loss", "batch_loss"])

    def test_training_is_random_and_evaluation_is_not(self):
        runs = self.run()
        assert (runs["loss"] != runs["batch_loss"]).all()
        again = self.run()
        np.testing.assert_array_equal(runs["batch_loss"], again["batch_loss"])
        network = Network(dropout=True)
        start = starting_params(self.problem, 2)
        loss = squared(network.apply({"params": start}, X.astype(np.float32), False), DATA[1].astype(np.float32))
        np.testing.assert_allclose(runs["loss"].sel(seed=2, step=0).item(), loss, rtol=1e-5)

    def test_every_step_and_seed_draws_anew(self):
        still = ll.run(self.problem, optax.sgd, ll.Sweep({"learning_rate": [0.0]}, 4, 10, 1), ["loss", "batch_loss"])
        assert len(np.unique(still["batch_loss"].sel(seed=0))) == 11
        assert (still["loss"] == still["loss"].isel(step=0)).all()

    def test_expected_dropout_loss(self):
        rate0 = ll.run(self.problem, optax.sgd, ll.Sweep({"learning_rate": [0.0]}, 1, 2000, 1), ["batch_loss"])
        draws = rate0["batch_loss"].values.ravel()
        params = starting_params(self.problem, 0)
        network = Network(dropout=True)

        @jax.jit
        def one(key):
            outputs = network.apply({"params": params}, X.astype(np.float32), True, rngs={"dropout": key})
            return squared(outputs, DATA[1])

        other = np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(9), 2000)))
        error = np.sqrt(draws.var() / draws.size + other.var() / other.size)
        assert abs(draws.mean() - other.mean()) < 4 * error


def starting_params(problem, seed):
    return problem.init(key_of(jnp.uint32(seed), "init"))


@pytest.mark.slow
def test_batch_statistics_equal_a_flax_loop():
    network = Network(norm=True)
    problem = ll.Problem.from_flax(network, squared, DATA)
    sweep = ll.Sweep({"learning_rate": [0.1]}, [3], 12, 1, batch_size=8)
    runs = ll.run(problem, optax.sgd, sweep, ["loss", "batch_loss", "sharpness"])
    variables = network.init(key_of(jnp.uint32(3), "init"), X[:1].astype(np.float32), False)
    params, statistics = variables["params"], variables["batch_stats"]
    inputs, targets = (leaf.astype(np.float32) for leaf in DATA)

    @jax.jit
    def evaluate(params, statistics):
        return squared(network.apply({"params": params, "batch_stats": statistics}, inputs, False), targets)

    def loss(params, statistics, chosen):
        everything = {"params": params, "batch_stats": statistics}
        outputs, after = network.apply(everything, inputs[chosen], True, mutable=["batch_stats"])
        return squared(outputs, targets[chosen]), after["batch_stats"]

    full, losses = [], []
    for chosen in indices_of(3, 20, 12, 8):
        full.append(float(evaluate(params, statistics)))
        (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(params, statistics, chosen)
        losses.append(float(value))
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    full.append(float(evaluate(params, statistics)))
    np.testing.assert_allclose(runs["loss"].values.ravel(), full, rtol=2e-5)
    np.testing.assert_allclose(runs["batch_loss"].values.ravel()[:-1], losses, rtol=2e-5)
    assert runs["sharpness_converged"].all()


@pytest.mark.slow
def test_batch_statistics_move_with_the_seed_bits_too():
    problem = ll.Problem.from_flax(Network(norm=True, dropout=True), squared, DATA)
    fields = {"num_steps": 9, "every": 3, "batch_size": 8, "lane_width": 4}
    many = ll.run(problem, optax.adam, ll.Sweep({"learning_rate": [0.01, 0.1]}, range(5), **fields))
    one = ll.run(problem, optax.adam, ll.Sweep({"learning_rate": [0.1]}, [4], **fields))
    np.testing.assert_array_equal(many["loss"].sel(learning_rate=[0.1], seed=[4]), one["loss"])


@pytest.mark.parametrize(
    ("loss", "init_state", "words"),
    [
        (lambda p, b, *, state=None: (jnp.sum(p), state), None, ["init_state", "takes `state`"]),
        (lambda p, b: jnp.sum(p), lambda key: jnp.zeros(1), ["keyword-only `state`"]),
        (lambda p, b, *, train=True: jnp.sum(p), None, ["'train'", "must be False"]),
        (lambda p, b, *, state=None: (jnp.sum(p), jnp.zeros(2)), lambda key: jnp.zeros(1), ["structure"]),
    ],
)
def test_bad_requests_are_named(loss, init_state, words):
    with pytest.raises(ValueError, match=r".") as error:
        ll.Problem(lambda key: jnp.zeros(1), loss, np.zeros((3, 1)), init_state=init_state)
    for word in words:
        assert word in str(error.value)
