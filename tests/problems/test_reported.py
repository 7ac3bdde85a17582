"""Cases 1 and 2: the numbers that were reported, and the mathematics they rest on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lossland.problems import reported
from lossland.problems.problem import cast_floating
from tests.problems.quick import quick


def dense_hessian(problem, params):
    flat, unravel = ravel_pytree(params)
    return np.asarray(quick(jax.hessian(lambda p: problem.objective(unravel(p))))(flat))


def line(weight=0.3, bias=-0.2, dtype=np.float64):
    return {"weight": jnp.asarray(weight, dtype), "bias": jnp.asarray(bias, dtype)}


# Case 1 ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("n", [1, 2, 10, 17, 18, 20])
def test_case_1_has_the_hessian_of_its_closed_form(n):
    x = np.arange(1, n + 1)
    bias_weight = dense_hessian(reported.linear_regression(n), line())  # leaves in the order of their names
    mean, mean_square = x.mean(), (x**2).mean()
    np.testing.assert_allclose(bias_weight, 2 * np.array([[1, mean], [mean, mean_square]]), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_case_1_sharpness_and_growth_are_the_reported_ones():
    sharpness = np.linalg.eigvalsh(dense_hessian(reported.linear_regression(), line()))[-1]
    np.testing.assert_allclose(sharpness, 288.539, atol=5e-4)
    np.testing.assert_allclose((1 - 0.01 * sharpness) ** 2, 3.5547, atol=5e-5)
    printed = reported.printed_losses()
    np.testing.assert_allclose(printed[1:] / printed[:-1], 3.5547, atol=1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("n", [2, 20, 40])
def test_standardised_inputs_have_sharpness_two_for_every_number_of_examples(n):
    hessian = dense_hessian(reported.linear_regression(n, standardised=True), line())
    # Twice the identity, but for the rounding of the data to float32.
    np.testing.assert_allclose(hessian, 2 * np.eye(2), atol=1e-6)


def test_printed_losses_are_all_there():
    printed = reported.printed_losses()
    assert printed.shape == (20,)
    assert printed[0] == 450.9794
    assert printed[-1] == 13164500484096.0
    assert (printed == printed.astype(np.float32).astype(np.float64).round(4)).all()


def test_all_printed_losses_follow_from_the_first():
    printed = reported.printed_losses()
    problem = reported.linear_regression()
    # loss = (weight - 1/2)^2 mean x^2 at zero bias; of the two roots one lies within Glorot's bounds.
    roots = 0.5 + np.array([1, -1]) * np.sqrt(printed[0] / np.mean(np.arange(1, 21) ** 2))
    (weight,) = roots[np.abs(roots) <= reported.GLOROT_LIMIT]

    @jax.jit
    def losses(params):
        def step(params, _):
            value, gradient = jax.value_and_grad(problem.objective)(params)
            return jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient), value

        return jax.lax.scan(step, params, length=20)[1]

    start = problem.init(jax.random.key(0), initial_weight=jnp.float32(weight))
    np.testing.assert_allclose(losses(start), printed, rtol=1e-5)


def test_initial_weight_replaces_the_draw_and_may_be_traced():
    problem = reported.linear_regression()
    key = jax.random.key(3)
    drawn = problem.init(key)
    assert problem.arguments == {"initial_weight": None}
    swept = jax.jit(jax.vmap(lambda w: problem.with_arguments(initial_weight=w).init(key)))(jnp.array([0.0, -1.5]))
    np.testing.assert_array_equal(swept["weight"], [0.0, -1.5])
    np.testing.assert_array_equal(swept["bias"], [0.0, 0.0])
    assert drawn["weight"].shape == drawn["bias"].shape == ()
    assert float(drawn["weight"]) not in (0.0, -1.5)


def test_drawn_weights_are_glorot_uniform():
    keys = jax.random.split(jax.random.key(0), 4000)
    weights = np.asarray(jax.vmap(reported.linear_regression().init)(keys)["weight"], np.float64)
    assert np.abs(weights).max() <= np.sqrt(3)
    # Four standard errors: variance 1 and kurtosis 9/5, so the mean square has variance 4/5.
    assert abs(weights.mean()) < 4 / np.sqrt(4000)
    assert abs(np.mean(weights**2) - 1) < 4 * np.sqrt(0.8 / 4000)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("standardised", [False, True])
def test_the_family_equals_the_single_problems_for_every_number_of_examples(standardised):
    family = reported.linear_regression_family(max_examples=12, standardised=standardised)
    params = line()
    flat, unravel = ravel_pytree(params)

    def loss(flat, n):
        return family.with_arguments(num_examples=n).objective(unravel(flat))

    sizes = np.arange(2.0, 13.0)  # an axis reaches the loss as a float
    everything = jax.vmap(lambda n: (loss(flat, n), jax.grad(loss)(flat, n), jax.hessian(loss)(flat, n)))
    values, gradients, hessians = quick(everything)(sizes)
    for index, n in enumerate(sizes):
        problem = reported.linear_regression(int(n), standardised=standardised)
        x, y = (np.asarray(leaf, np.float64) for leaf in problem.data)
        residual = 0.3 * x - 0.2 - y
        np.testing.assert_allclose(values[index], np.mean(residual**2), rtol=1e-6)
        gradient = [2 * np.mean(residual), 2 * np.mean(residual * x)]
        np.testing.assert_allclose(gradients[index], gradient, rtol=1e-6)
        hessian = 2 * np.array([[1, x.mean()], [x.mean(), np.mean(x**2)]])
        np.testing.assert_allclose(hessians[index], hessian, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(family.objective(params), values[-1], rtol=1e-12)


def test_examples_left_out_of_the_family_cannot_overflow_the_others():
    family = reported.linear_regression_family(max_examples=40).with_arguments(num_examples=2.0)
    huge = line(1e18, 0.0, np.float32)  # (40 weight)^2 overflows float32, (2 weight)^2 does not
    value, gradient = quick(jax.value_and_grad(family.objective))(huge)
    np.testing.assert_allclose(value, np.mean((np.array([1.0, 2.0]) * 1e18) ** 2), rtol=1e-6)
    np.testing.assert_allclose(gradient["weight"], 2 * 1e18 * 2.5, rtol=1e-6)
    assert np.isinf(reported.linear_regression_family(40).objective(huge))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: reported.linear_regression(0), r"num_examples: expected an integer of at least 1 .*got 0"),
        (lambda: reported.linear_regression(1, standardised=True), r"num_examples: expected at least 2, got 1"),
        (lambda: reported.linear_regression_family(1), r"max_examples: expected an integer of at least 2 .*got 1"),
        (lambda: reported.numpy_mlp("iris"), r"data: expected one of moons, breast_cancer, got 'iris'"),
    ],
)
def test_bad_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# Case 2 ------------------------------------------------------------------------------------------------------------


def posters_loss(initial, points, labels):
    """The poster's forward pass: weights (unit, input), one example per column."""
    w1, w2, w3 = initial
    a2 = np.tanh(w2 @ np.tanh(w1 @ points.T))
    a3 = 1 / (1 + np.exp(-(w3 @ a2)))
    return -np.mean(labels * np.log(a3) + (1 - labels) * np.log(1 - a3))


@pytest.fixture
def posters_draws():
    """What NumPy's global generator draws after seed(4), in the poster's order; its state is put back."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(4)  # noqa: NPY002
    draws = np.random.rand(128, 2), np.random.randn(64, 128), np.random.randn(1, 64)  # noqa: NPY002
    np.random.set_state(state)  # noqa: NPY002
    return draws


@pytest.mark.usefixtures("x64")
def test_seed_4_draws_what_numpy_draws_and_gives_the_posters_loss(posters_draws):
    params = reported.numpy_mlp_initial_params()
    for name, draw in zip(("W1", "W2", "W3"), posters_draws, strict=True):
        np.testing.assert_array_equal(params[name], draw.T)
    assert not any(params[name].any() for name in ("b1", "b2", "b3"))
    problem = reported.numpy_mlp()
    points, labels = (np.asarray(leaf, np.float64) for leaf in problem.data)
    loss = problem.objective(jax.tree.map(jnp.asarray, params))
    np.testing.assert_allclose(loss, posters_loss(posters_draws, points, labels), rtol=1e-10)


def test_drawing_leaves_the_global_generator_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = reported.numpy_mlp_initial_params(seed=4)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert np.abs(first["W2"] - reported.numpy_mlp_initial_params(seed=5)["W2"]).max() > 0.1


def test_a_numpy_seed_starts_every_run_from_the_posters_draw():
    problem = reported.numpy_mlp(numpy_seed=4)
    start = quick(jax.vmap(lambda key: problem.init(key, scale=2.0)))(jax.random.split(jax.random.key(0), 2))
    for name, leaf in reported.numpy_mlp_initial_params(4).items():
        np.testing.assert_array_equal(start[name], np.float32(2) * np.broadcast_to(leaf, (2, *leaf.shape)).astype("f4"))


def test_starting_points_have_the_reported_distributions():
    problem = reported.numpy_mlp()
    keys = jax.random.split(jax.random.key(1), 30)
    params, scaled = quick(lambda keys: (jax.vmap(problem.init)(keys), problem.init(keys[7], scale=3.0)))(keys)
    shapes = {"W1": (2, 128), "b1": (128,), "W2": (128, 64), "b2": (64,), "W3": (64, 1), "b3": (1,)}
    assert {name: leaf.shape[1:] for name, leaf in params.items()} == shapes
    assert not any(params[name].any() for name in ("b1", "b2", "b3"))
    assert 0 <= params["W1"].min() < params["W1"].max() < 1
    for name, mean, variance in (("W1", 1 / 2, 1 / 12), ("W2", 0, 1), ("W3", 0, 1)):
        draws = np.asarray(params[name], np.float64).ravel()
        # Four standard errors; a normal variable's squares have variance 2, the bound for both.
        assert abs(draws.mean() - mean) < 4 * np.sqrt(variance / draws.size)
        assert abs(draws.var() - variance) < 4 * np.sqrt(2 / draws.size) * variance
    for name in params:
        np.testing.assert_allclose(scaled[name], 3 * params[name][7], rtol=1e-6)


def test_case_2_data():
    points, labels = reported.numpy_mlp().data
    assert points.shape == (400, 2)
    assert labels.tolist() == [0.0] * 200 + [1.0] * 200
    table, benign = reported.numpy_mlp("breast_cancer").data
    assert (table.shape, benign.sum()) == ((569, 30), 357)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("data", ["moons", "breast_cancer"])
def test_the_gradient_by_hand_is_right_but_for_db1_which_is_wrong_as_reported(data):
    right, wrong = reported.numpy_mlp(data), reported.numpy_mlp(data, wrong_db1=True)
    num_inputs = right.data[0].shape[1]
    gradients = quick(lambda p: (jax.grad(right.objective)(p), jax.grad(wrong.objective)(p)))
    for seed in (4, 5):
        params = jax.tree.map(jnp.asarray, reported.numpy_mlp_initial_params(seed, num_inputs))
        by_rule, by_wrong_rule = gradients(params)
        by_hand = reported.numpy_mlp_gradient(params, right.data, wrong_db1=False)
        as_reported = reported.numpy_mlp_gradient(params, right.data)
        size = max(np.abs(leaf).max() for leaf in by_hand.values())
        for name in by_hand:
            np.testing.assert_allclose(by_rule[name], by_hand[name], rtol=1e-9, atol=1e-12 * size)
            np.testing.assert_allclose(by_wrong_rule[name], as_reported[name], rtol=1e-9, atol=1e-11 * size)
            assert as_reported[name].shape == by_hand[name].shape
            if name != "b1":
                np.testing.assert_array_equal(as_reported[name], by_hand[name])
        np.testing.assert_allclose(as_reported["b1"], by_hand["b1"].sum(), rtol=1e-9)
        assert np.abs(as_reported["b1"] - by_hand["b1"]).max() > 0.1 * np.abs(by_hand["b1"]).max()


@pytest.mark.usefixtures("x64")
def test_the_wrong_gradient_leaves_the_loss_and_its_curvature_as_they_are():
    right, wrong = reported.numpy_mlp(), reported.numpy_mlp(wrong_db1=True)
    params = jax.tree.map(jnp.asarray, reported.numpy_mlp_initial_params())
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)

    def loss_and_product(problem):
        gradient = jax.grad(problem.objective)
        return problem.objective(params), jax.jvp(gradient, (params,), (direction,))[1]

    (loss, product), (same_loss, same_product) = quick(lambda: (loss_and_product(right), loss_and_product(wrong)))()
    assert loss == same_loss
    for name in params:
        np.testing.assert_allclose(same_product[name], product[name], rtol=1e-9, atol=1e-12)
    assert right.fingerprint() != wrong.fingerprint()


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_cross_entropy_is_stable_in_single_precision(label):
    """With zero weights the logit is b3: loss, slope and curvature are those of log(1 + e^z) - y z."""
    problem = reported.numpy_mlp().with_data((np.zeros((1, 2), np.float32), np.full(1, label, np.float32)))
    zero = {name: np.zeros_like(leaf, np.float32) for name, leaf in reported.numpy_mlp_initial_params().items()}

    def along(z):
        return problem.objective({**zero, "b3": z[None]})

    slope = jax.grad(along)
    logits = np.array([-1e4, -30.0, 0.0, 30.0, 1e4])
    found = quick(jax.vmap(lambda z: (along(z), slope(z), jax.grad(slope)(z))))(logits.astype(np.float32))
    sigmoid = 0.5 * (1 + np.tanh(logits / 2))
    expected = np.logaddexp(0, logits) - label * logits, sigmoid - label, sigmoid * (1 - sigmoid)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_single_precision_follows_double_precision():
    problem = reported.numpy_mlp()
    params = reported.numpy_mlp_initial_params()
    single = quick(jax.grad(problem.objective))(cast_floating(params, jnp.float32))
    exact = reported.numpy_mlp_gradient(params, problem.data, wrong_db1=False)
    for name in exact:
        assert np.linalg.norm(single[name] - exact[name]) < 1e-4 * np.linalg.norm(exact[name])
