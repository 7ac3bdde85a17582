"""Multipliers of the full update map: closed forms on quadratics, dense Jacobians on a network, runs on the way."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import lossland as ll
from lossland.problems.synthetic import quadratic
from tests.cases import OPTIMIZERS, problem_named

FAST = {"xla_backend_optimization_level": 0}


def multiplier(problem, optimizer, params, opt_state=None, **options):
    """Compiled quickly: the programs are small and run once."""
    found = jax.jit(lambda p, s: ll.local_multiplier(problem, optimizer, p, s, **options), compiler_options=FAST)
    return found(params, opt_state)


def trained(problem, transformation, num_steps):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), problem.init(jax.random.key(0)))

    def step(_, carry):
        params, state = carry
        updates, state = transformation.update(jax.grad(problem.objective)(params), state, params)
        return optax.apply_updates(params, updates), state

    begin = (params, transformation.init(params))
    return jax.jit(lambda begin: jax.lax.fori_loop(0, num_steps, step, begin))(begin)


@pytest.mark.parametrize(
    ("arguments", "times"),
    [({}, 1.0), ({"momentum": 0.9}, 0.5), ({"momentum": 0.9}, 1.0), ({"momentum": 0.9, "nesterov": True}, 1.1)],
    ids=str,
)
def test_quadratic_at_the_threshold_has_multiplier_minus_one(arguments, times, x64):
    certificate = ll.threshold(optax.sgd, learning_rate=0.1, **arguments)
    top = times * certificate.critical_curvature
    problem = quadratic([0.3 * top, 0.2 * top, top])
    found = multiplier(problem, optax.sgd(0.1, **arguments), jnp.ones(3), target="oscillating")
    growth = certificate.growth(top)
    assert bool(found.converged)
    assert abs(complex(found.multiplier)) == pytest.approx(growth, rel=1e-6 if times == 1 else 1e-9)
    if times >= 1:
        # In float64 the two multipliers that meet near -1 are simple: this is exact.
        assert complex(found.multiplier) == pytest.approx(-growth, rel=1e-6)
        np.testing.assert_allclose(np.abs(found.direction), [0, 0, 1], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_network_agrees_with_the_dense_jacobian(name, x64):
    problem = problem_named("cubic")
    factory, arguments = OPTIMIZERS[name]
    transformation = factory(**arguments)
    params, state = trained(problem, transformation, 200)
    leaves, structure = jax.tree.flatten(state)
    floats = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    flat, unravel = ravel_pytree((params, [leaf for leaf, flag in zip(leaves, floats, strict=True) if flag]))

    def step(flat):
        params, moving = unravel(flat)
        moving = iter(moving)
        state = structure.unflatten([next(moving) if flag else leaf for leaf, flag in zip(leaves, floats, strict=True)])
        updates, after = transformation.update(jax.grad(problem.objective)(params), state, params)
        kept = [leaf for leaf, flag in zip(jax.tree.leaves(after), floats, strict=True) if flag]
        return ravel_pytree((optax.apply_updates(params, updates), kept))[0]

    dense = np.asarray(jax.jacfwd(step)(flat))
    values = np.linalg.eigvals(dense)
    found = multiplier(problem, transformation, params, state, target="oscillating", num_vectors=48, max_restarts=8)
    expected = values[np.argmin(values.real)]
    assert bool(found.converged)
    assert complex(found.multiplier) == pytest.approx(expected.real + 1j * abs(expected.imag), abs=1e-6)
    assert abs(complex(found.multiplier) - (expected.real + 1j * abs(expected.imag))) <= float(found.error_bound) + 1e-9


def test_direction_grows_by_the_multiplier(x64):
    """A nudge along the direction, followed through real steps, flips sign and grows as the multiplier says."""
    problem = quadratic([1.0, 30.0])
    found = multiplier(problem, optax.sgd(0.1), jnp.ones(2), target="oscillating")
    nudge = 1e-3 * jnp.real(found.direction)
    step = lambda params: params - 0.1 * jax.grad(problem.objective)(params)  # noqa: E731
    moved = step(jnp.ones(2) + nudge) - step(jnp.ones(2))
    np.testing.assert_allclose(moved, complex(found.multiplier).real * nudge, rtol=1e-9, atol=1e-15)
    assert complex(found.multiplier) == pytest.approx(-2.0)


def test_injected_hyperparameters_are_held(x64):
    """The state carries the learning rate: differentiated, it would add a multiplier of exactly 1."""
    problem = quadratic([4.0, 5.0])
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    found = multiplier(problem, optimizer, jnp.ones(2))
    assert complex(found.multiplier) == pytest.approx(0.6)


def test_second_moments_are_not_frozen(x64):
    """RMSprop on its two-cycle: frozen, the multiplier is exactly -1; the moment's response makes it smaller."""
    optimizer = optax.rmsprop(0.1, decay=0.9, eps=0.0)
    problem = quadratic([3.0])
    params, state = trained(problem, optimizer, 2000)
    found = multiplier(problem, optimizer, params, state, target="oscillating")
    # x <- x - rate h x / sqrt(nu'), nu' = d nu + (1 - d) h^2 x^2. On the cycle h^2 x^2 = nu and rate h = 2 sqrt(nu), so
    # J = [[-1 + 2 (1 - d), d], [2 (1 - d), d]] in units of x and nu, with the eigenvalues 1 and -d.
    assert complex(found.multiplier) == pytest.approx(-0.9, rel=1e-6)
    largest = multiplier(problem, optimizer, params, state)
    assert complex(largest.multiplier) == pytest.approx(1.0, rel=1e-6)


def test_probe_follows_a_run_and_agrees_with_the_sharpness():
    """Gradient descent has the multipliers 1 - learning_rate x eigenvalue, so the smallest belongs to the sharpness."""
    sweep = ll.Sweep({"learning_rate": [0.02, 0.05]}, 2, 200, 100)
    runs = ll.run(problem_named("cubic"), optax.sgd, sweep, ["sharpness", ll.multiplier_probe()], progress=False)
    assert bool(runs["oscillating_multiplier_converged"].all())
    expected = 1 - 2 * runs["relative_sharpness"]
    np.testing.assert_allclose(runs["oscillating_multiplier_real"], expected, atol=1e-4)
    assert runs["oscillating_multiplier_real"].attrs["units"] == "1"
    assert (runs["oscillating_multiplier_imag"] == 0).all()


def test_bad_input_is_refused_by_name():
    problem = quadratic([1.0])
    params = jnp.ones(1)
    complex_state = optax.GradientTransformation(lambda p: jnp.zeros(1, complex), lambda g, s, p=None: (-g, s))
    for message, arguments in {
        r"problem: expected an ll.Problem, got 3": (3, optax.sgd(0.1), params),
        r"optimizer sgd needs learning_rate": (problem, optax.sgd, params),
        r"params: expected the structure and shapes \(1,\), got \(2,\)": (problem, optax.sgd(0.1), jnp.ones(2)),
        r"opt_state: expected the structure": (problem, optax.adam(0.1), params, optax.sgd(0.1).init(params)),
        r"opt_state: expected real numbers, got complex": (problem, complex_state, params),
    }.items():
        with pytest.raises(ValueError, match=message):
            ll.local_multiplier(*arguments)
    with pytest.raises(ValueError, match="target: expected one of largest, oscillating"):
        ll.local_multiplier(problem, optax.sgd(0.1), params, target="smallest")


@pytest.mark.parametrize(
    "factory", [optax.adam, *(pytest.param(one, marks=pytest.mark.long) for one in (optax.amsgrad, optax.rmsprop))]
)
def test_a_parameter_without_gradient_changes_nothing(factory, x64):
    """The border of an image is always 0: its weights stand still, and so do their second moments."""
    images = np.random.default_rng(0).normal(size=(8, 3)) * [1.0, 2.0, 0.0]

    def multiplier(images):
        problem = ll.Problem(
            lambda key: jnp.ones(images.shape[1]), lambda params, batch: jnp.mean((batch @ params) ** 2), images
        )
        return ll.local_multiplier(problem, ll.Optimizer(factory, learning_rate=0.01), jnp.ones(images.shape[1]))

    dead, alive = multiplier(images), multiplier(images[:, :2])
    assert dead.converged
    assert dead.multiplier == pytest.approx(complex(alive.multiplier), rel=1e-6)
