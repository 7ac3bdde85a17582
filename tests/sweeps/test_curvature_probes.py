"""Probes of curvature against dense float64 matrices, and the preconditioner of the next update against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import lossland as ll
from lossland.optimizers import Optimizer
from lossland.sweeps import curvature_probes
from lossland.sweeps.probes import State, as_probes
from tests.cases import problem_named
from tests.curvature.cases import quick_jit

STEPS = 5
RATE = 1e-2


def adam(gradients, b1=0.9, b2=0.99, eps=1e-4, eps_root=0.0):
    nu = np.zeros_like(gradients[0])
    for g in gradients:
        nu = b2 * nu + (1 - b2) * g**2
    return np.sqrt(nu / (1 - b2 ** len(gradients)) + eps_root) + eps


def amsgrad(gradients, b2=0.9, eps=1e-4):
    nu, largest = np.zeros_like(gradients[0]), np.zeros_like(gradients[0])
    for t, g in enumerate(gradients, start=1):
        nu = b2 * nu + (1 - b2) * g**2
        largest = np.maximum(largest, nu / (1 - b2**t))
    return np.sqrt(largest) + eps


def rms(gradients, decay=0.9, eps=1e-3, eps_in_sqrt=True, centered=False, bias_correction=False):
    nu, mu = np.zeros_like(gradients[0]), np.zeros_like(gradients[0])
    for g in gradients:
        nu = decay * nu + (1 - decay) * g**2
        mu = decay * mu + (1 - decay) * g
    correction = 1 - decay ** len(gradients) if bias_correction else 1
    variance = nu / correction - (mu / correction) ** 2 * centered
    return np.sqrt(variance + eps) if eps_in_sqrt else np.sqrt(variance) + eps


def adagrad(gradients, initial=0.1, eps=1e-7):
    return np.sqrt(initial + sum(g**2 for g in gradients) + eps)


def clipped_adam(learning_rate, b2=0.99, eps=1e-4, eps_root=1e-6):
    chain = optax.chain(optax.scale_by_adam(b2=b2, eps=eps, eps_root=eps_root), optax.scale(-learning_rate))
    return optax.chain(optax.clip_by_global_norm(1e6), optax.apply_if_finite(chain, 3))


CASES = {
    "adam": (Optimizer(optax.adam, b2=0.99, eps=1e-4), adam),
    "eps_root": (Optimizer(optax.adam, b2=0.99, eps=1e-4, eps_root=1e-3), functools.partial(adam, eps_root=1e-3)),
    "adamw": (Optimizer(optax.adamw, b2=0.99, eps=1e-4, weight_decay=0.1), adam),
    "nadam": (Optimizer(optax.nadam, b2=0.99, eps=1e-4), adam),
    "amsgrad": (Optimizer(optax.amsgrad, b2=0.9, eps=1e-4), amsgrad),
    "rmsprop": (Optimizer(optax.rmsprop, eps=1e-3, momentum=0.5), rms),
    "eps_outside": (Optimizer(optax.rmsprop, eps=1e-3, eps_in_sqrt=False), functools.partial(rms, eps_in_sqrt=False)),
    "centered": (
        Optimizer(optax.rmsprop, eps=1e-3, centered=True, bias_correction=True),
        functools.partial(rms, centered=True, bias_correction=True),
    ),
    "adagrad": (Optimizer(optax.adagrad), adagrad),
    "chain": (Optimizer(clipped_adam), functools.partial(adam, eps_root=1e-6)),
}


def trained(problem, optimizer, num_steps):
    """State before the next step, and all gradients up to it, in float64."""
    params = jax.tree.map(lambda leaf: leaf.astype("float64"), problem.init(jax.random.key(0)))
    opt_state, gradients = optimizer.init(params), []
    step = quick_jit(optimizer.update)
    value_and_grad = quick_jit(jax.value_and_grad(problem.objective))
    for now in range(num_steps + 1):
        loss, gradient = value_and_grad(params)
        gradients.append(np.asarray(ravel_pytree(gradient)[0]))
        if now < num_steps:
            updates, opt_state = step(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
    return State(jnp.int32(num_steps), params, opt_state, loss, gradient), gradients


def dense(problem, params):
    flat, unravel = ravel_pytree(params)
    return np.asarray(quick_jit(jax.hessian(lambda flat: problem.objective(unravel(flat))))(flat))


def measured(probe, problem, optimizer, state, memory=None):
    memory = probe.start(problem, state.params) if memory is None else memory
    measure = quick_jit(lambda state, memory: probe(problem, optimizer, state, memory, lambda active: active))
    return measure(state, memory)


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("adam", "eps_outside", "adagrad") else pytest.param(name, marks=pytest.mark.slow)
        for name in CASES
    ],
)
def test_preconditioned_sharpness_is_of_the_next_update(x64, name):
    optimizer, reference = CASES[name]
    problem, optimizer = problem_named("cubic"), optimizer.with_arguments(learning_rate=RATE)
    state, gradients = trained(problem, optimizer, STEPS)
    root = np.sqrt(reference(gradients))
    expected = np.linalg.eigvalsh(dense(problem, state.params) / np.outer(root, root))[-1]
    values, _ = measured(curvature_probes.preconditioned_sharpness(), problem, optimizer, state)
    assert values["preconditioned_sharpness_converged"]
    np.testing.assert_allclose(values["preconditioned_sharpness"], expected, rtol=1e-6)
    assert values["preconditioned_sharpness_residual"] <= 1e-4 * expected


@pytest.mark.long
def test_preconditioned_sharpness_in_a_sweep_of_its_hyperparameters():
    """Swept b2 and learning rate; at step 0 the second moment is the squared gradient itself."""
    problem = problem_named("cubic")
    sweep = ll.Sweep(
        {"learning_rate": [1e-3, 1e-2], "b2": [0.9, 0.999]}, seeds=1, num_steps=4, every=4, dtype="float64"
    )
    probes = ["preconditioned_sharpness", curvature_probes.top_eigenvalues(2)]
    runs = ll.run(problem, Optimizer(optax.adam, eps=1e-4), sweep, probes=probes)
    assert runs["preconditioned_sharpness_converged"].all()
    assert runs["top_eigenvalues_converged"].all()
    assert runs["top_eigenvalues"].dims[-2:] == ("step", "rank")
    assert runs["preconditioned_sharpness"].attrs["units"] == "1 / learning rate"
    first = runs["preconditioned_sharpness"].sel(step=0)
    np.testing.assert_allclose(first, first.values.flat[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (optax.sgd, "got sgd with none; use the probe 'sharpness'"),
        (optax.adamax, "the update of adamax is not"),
        (optax.radam, "the update of radam is not"),
        (optax.lamb, "the update of lamb is not"),
        (lambda learning_rate: optax.adam(learning_rate), "needs the value of 'b2', which <lambda> does not take"),
    ],
)
def test_preconditioned_sharpness_refuses_what_it_does_not_know(factory, message):
    problem, optimizer = problem_named("cubic"), Optimizer(factory, learning_rate=RATE)
    params = problem.init(jax.random.key(0))
    state = State(jnp.int32(0), params, optimizer.init(params), jnp.ones(()), params)
    with pytest.raises(ValueError, match=message):
        curvature_probes.next_preconditioner(optimizer, state, problem.objective)


@pytest.mark.slow
def test_eigenvalues_equal_the_dense_matrix_and_warm_starts_spare_products(x64):
    problem, optimizer = problem_named("cubic"), Optimizer(optax.sgd, learning_rate=0.02)
    before, _ = trained(problem, optimizer, 20)
    after, _ = trained(problem, optimizer, 22)
    values = np.linalg.eigvalsh(dense(problem, after.params))

    def predict(params, data):
        hidden = data[0]
        for layer in params[:-1]:
            hidden = jnp.tanh(hidden @ layer["w"] + layer["b"])
        return hidden @ params[-1]["w"] + params[-1]["b"]

    def loss(outputs, data):
        return jnp.mean((outputs - data[1]) ** 2)

    flat, unravel = ravel_pytree(after.params)
    jacobian = np.asarray(quick_jit(jax.jacobian(lambda flat: predict(unravel(flat), problem.data).ravel()))(flat))
    gauss_newton = np.linalg.eigvalsh(2 / len(jacobian) * jacobian.T @ jacobian)[-1]
    for probe, expected in (
        (curvature_probes.top_eigenvalues(4), values[:-5:-1]),
        (curvature_probes.lowest_eigenvalue(), values[0]),
        (curvature_probes.gauss_newton_sharpness(predict, loss), gauss_newton),
    ):
        cold, _ = measured(probe, problem, optimizer, after)
        _, memory = measured(probe, problem, optimizer, before)
        warm, _ = measured(probe, problem, optimizer, after, memory)
        for found in (cold, warm):
            np.testing.assert_allclose(found[probe.name], expected, rtol=1e-6)
            assert found[f"{probe.name}_converged"].all()
        assert warm[f"{probe.name}_num_matvecs"] <= cold[f"{probe.name}_num_matvecs"]
    wrong = curvature_probes.gauss_newton_sharpness(predict, lambda outputs, data: 2 * loss(outputs, data))
    assert not measured(wrong, problem, optimizer, after)[0]["gauss_newton_sharpness_converged"]
    found, _ = measured(curvature_probes.trace(), problem, optimizer, after)
    assert abs(found["trace"] - values.sum()) <= 4 * found["trace_standard_error"] + 1e-10


def test_built_in_names_build_their_probes():
    names = ["lowest_eigenvalue", "preconditioned_sharpness", "trace"]
    assert [probe.name for probe in as_probes(names)] == names
    with pytest.raises(ValueError, match="k: expected at least 1 eigenvalue, got 0"):
        curvature_probes.top_eigenvalues(0)
