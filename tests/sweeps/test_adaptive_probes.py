"""Probes of adaptive optimizers against NumPy: dense float64 matrices, moments written out, every variant of optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import lossland as ll
from lossland.optimizers import Optimizer
from lossland.sweeps import adaptive_probes
from lossland.sweeps.preconditioners import SecondMoment, next_second_moment
from lossland.sweeps.probes import State, as_probes
from tests.cases import network_problem
from tests.curvature.cases import cross_entropy, quick_jit
from tests.sweeps.test_curvature_probes import clipped_adam, dense, trained

STEPS = 4
B2, EPS = 0.9, 1e-3
PROBLEM = network_problem(width=4, num_examples=9)


def exponential(gradients, decay, corrected):
    v = np.zeros_like(gradients[0])
    for g in gradients:
        v = decay * v + (1 - decay) * g**2
    return v / (1 - decay ** len(gradients)) if corrected else v


def adam(gradients, eps=EPS, eps_root=0.0):
    v = exponential(gradients, B2, True)
    return v, np.sqrt(v + eps_root) + eps, np.sqrt(eps_root) + eps


def amsgrad(gradients):
    v = np.max([exponential(gradients[: t + 1], B2, True) for t in range(len(gradients))], axis=0)
    return v, np.sqrt(v) + EPS, EPS


def inside(gradients):
    v = exponential(gradients, B2, False)
    return v, np.sqrt(v + EPS), np.sqrt(EPS)


def outside(gradients):
    v = exponential(gradients, B2, False)
    return v, np.sqrt(v) + EPS, EPS


def adagrad(gradients):
    v = 0.1 + np.sum(np.square(gradients), axis=0)
    return v, np.sqrt(v + EPS), np.sqrt(EPS)


def belief(gradients):
    """AdaBelief, which lossland does not know: the second moment of g - m."""
    m, v = np.zeros_like(gradients[0]), np.zeros_like(gradients[0])
    for g in gradients:
        m = 0.9 * m + 0.1 * g
        v = B2 * v + (1 - B2) * (g - m) ** 2 + 1e-16
    v = v / (1 - B2 ** len(gradients))
    return v, np.sqrt(v + 1e-16) + EPS, 1e-8 + EPS


def moment_of_belief(opt_state):
    belief = opt_state[0]
    v = jax.tree.map(lambda nu: nu / (1 - B2**belief.count), belief.nu)
    return SecondMoment(v, jax.tree.map(lambda leaf: jnp.sqrt(leaf + 1e-16) + EPS, v), 1e-8 + EPS)


FIXED = {"learning_rate": 1e-2, "eps": EPS}
CASES = {
    "adam": (Optimizer(optax.adam, b2=B2, **FIXED), adam, None),
    "adam_eps_root": (
        Optimizer(optax.adam, b2=B2, eps_root=0.01, **FIXED),
        lambda gradients: adam(gradients, eps_root=0.01),
        None,
    ),
    "adamw": (Optimizer(optax.adamw, b2=B2, weight_decay=0.1, **FIXED), adam, None),
    "nadam": (Optimizer(optax.nadam, b2=B2, **FIXED), adam, None),
    "amsgrad": (Optimizer(optax.amsgrad, b2=B2, **FIXED), amsgrad, None),
    "rmsprop_inside": (Optimizer(optax.rmsprop, decay=B2, momentum=0.5, **FIXED), inside, None),
    "rmsprop_outside": (Optimizer(optax.rmsprop, decay=B2, eps_in_sqrt=False, **FIXED), outside, None),
    "adagrad": (Optimizer(optax.adagrad, **FIXED), adagrad, None),
    "clipped_chain": (
        Optimizer(clipped_adam, b2=B2, **FIXED),
        lambda gradients: adam(gradients, eps_root=1e-6),
        None,
    ),
    "adabelief_supplied": (Optimizer(optax.adabelief, b2=B2, eps_root=1e-16, **FIXED), belief, moment_of_belief),
}


QUICK = ("adam", "rmsprop_inside", "adabelief_supplied")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_every_record_equals_the_dense_computation(x64, name):
    optimizer, reference, supplied = CASES[name]
    state, gradients = trained(PROBLEM, optimizer, STEPS)
    updates, _ = optimizer.update(state.gradient, state.opt_state, state.params)
    update, g = np.asarray(ravel_pytree(updates)[0]), gradients[-1]
    v, p, floor = reference(gradients)
    before = reference([*gradients[:-1], np.zeros_like(g)])[0]
    hessian = dense(PROBLEM, state.params)
    values, vectors = np.linalg.eigh(hessian / np.sqrt(np.outer(p, p)))
    top, w, h = values[-1], vectors[:, -1], g / np.sqrt(p)
    jumped = v > adaptive_probes.JUMP * before
    dead, below = jumped | (np.sqrt(v) < adaptive_probes.DEAD * floor), jumped | (np.sqrt(v) < floor)
    excess = g**2 / np.maximum(v, floor**2)
    expected = {
        "preconditioned_sharpness": top,
        "mode_energy": (w @ h) ** 2 / (2 * top),
        "mode_gradient_cosine": abs(w @ h) / np.linalg.norm(h),
        "mode_log_second_moment": w**2 @ np.log(v),
        "mode_dead_mass": w**2 @ dead,
        "mode_floor_mass": w**2 @ below,
        "mode_refill": w**4 @ (1 / p),
        "preconditioned_gradient_curvature": h @ (hessian / np.sqrt(np.outer(p, p))) @ h / (h @ h),
        "gradient_excess_rms": np.sqrt(excess.mean()),
        "gradient_excess_max": excess.max(),
        "damped": np.mean(np.sqrt(v) < floor),
        "update_rms": np.sqrt(np.mean(update**2)),
        "update_gradient_cosine": update @ g / np.linalg.norm(update) / np.linalg.norm(g),
    }
    mode = adaptive_probes.preconditioned_mode(1e-8, second_moment=supplied)
    probes = [
        mode,
        adaptive_probes.preconditioned_gradient_curvature(second_moment=supplied),
        adaptive_probes.update_statistics(second_moment=supplied),
    ]

    @quick_jit
    def measure(state, memory):
        found = {}
        for probe in probes:
            found |= probe(PROBLEM, optimizer, state, memory if probe is mode else (), lambda active: active)[0]
        return found

    start, _ = mode.start(PROBLEM, state.params)
    found = measure(state, (start, jnp.asarray(vectors[:, -2])))
    assert found.pop("preconditioned_sharpness_converged")
    assert found.pop("preconditioned_sharpness_residual") <= 1e-8 * top
    assert found.pop("mode_persistence") < 1e-5  # of two eigenvectors
    product = found.pop("mode_gradient") * found.pop("mode_update")  # each alone has the sign of w
    np.testing.assert_allclose(product, (w @ h) * (w @ (np.sqrt(p) * update)), rtol=1e-6)
    assert found.pop("preconditioned_sharpness_num_matvecs") <= len(g)
    assert set(found) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=2e-6, atol=1e-12, err_msg=key)
    assert found["preconditioned_gradient_curvature"] <= top


def test_unknown_states_are_refused_and_a_wrong_function_too():
    params = PROBLEM.init(jax.random.key(0))
    for optimizer, supplied, message in (
        (
            Optimizer(optax.lion, learning_rate=0.1),
            None,
            r"supply them: ll.adaptive_probes\(second_moment=function of the advanced",
        ),
        (Optimizer(optax.sgd, learning_rate=0.1), lambda opt_state: opt_state, "expected a function that returns a"),
        (
            Optimizer(optax.sgd, learning_rate=0.1),
            lambda opt_state: SecondMoment(jnp.ones(3), jnp.ones(3), 0.0),
            "a part of the parameters only",
        ),
    ):
        state = State(jnp.int32(0), params, optimizer.init(params), jnp.ones(()), params)
        with pytest.raises(ValueError, match=message):
            next_second_moment(optimizer, state, PROBLEM.objective, supplied)


def named(factory):
    """Adam in some wrapping that looks at the names or the axes of the parameters."""

    def build(learning_rate, b1=0.9, b2=B2, eps=EPS):
        return factory(optax.adam(learning_rate, b1, b2, eps))

    return Optimizer(build, learning_rate=1e-2)


PARTS = PROBLEM.init(jax.random.key(0))
MATRICES = jax.tree.map(lambda leaf: leaf.ndim > 1, PARTS)


@pytest.mark.parametrize(
    "factory",
    [
        lambda tx: optax.chain(optax.masked(optax.add_decayed_weights(1e-3), MATRICES), tx),
        lambda tx: optax.multi_transform({"all": tx}, jax.tree.map(lambda leaf: "all", PARTS)),
    ],
    ids=["mask", "labels"],
)
def test_masks_and_labels_by_name_are_read(factory):
    """They fit these parameters and no others; weight decay goes into the gradient, before the moments."""
    optimizer = named(factory)
    state = State(jnp.int32(0), PARTS, optimizer.init(PARTS), jnp.ones(()), jax.tree.map(jnp.ones_like, PARTS))
    found = next_second_moment(optimizer, state, PROBLEM.objective)
    _, advanced = optimizer.update(state.gradient, state.opt_state, PARTS)
    (adam,) = [
        node
        for node in jax.tree.leaves(advanced, is_leaf=lambda node: isinstance(node, optax.ScaleByAdamState))
        if isinstance(node, optax.ScaleByAdamState)
    ]
    expected = jax.tree.map(lambda nu: jnp.sqrt(nu / (1 - B2)) + EPS, adam.nu)
    for got, want in zip(jax.tree.leaves(found.preconditioner), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda tx: optax.masked(tx, MATRICES), "a part of the parameters only"),
        (lambda tx: optax.masked(tx, lambda params: MATRICES), "a part of the parameters only"),
        (optax.flatten, "or in another shape"),
        (
            lambda tx: optax.chain(tx, optax.masked(optax.scale(0.1), MATRICES)),
            "expected one factor for all parameters",
        ),
    ],
    ids=["masked", "masked_by_function", "flattened", "two_rates"],
)
def test_what_has_no_single_divisor_is_refused_in_words(factory, message):
    optimizer = named(factory)
    state = State(jnp.int32(0), PARTS, optimizer.init(PARTS), jnp.ones(()), jax.tree.map(jnp.ones_like, PARTS))
    with pytest.raises(ValueError, match=message):
        next_second_moment(optimizer, state, PROBLEM.objective)


@pytest.mark.slow
def test_a_sweep_records_them_in_lanes_of_several_runs():
    """eps above every gradient: all coordinates are damped; the threshold that the ratio takes is 2 (1+b1) / (1-b1)."""
    sweep = ll.Sweep({"learning_rate": [1e-3, 1e-2], "b1": [0.0, 0.9]}, 2, 6, 3, lane_width=4)
    names = ["preconditioned_mode", "preconditioned_gradient_curvature", "update_statistics"]
    runs = ll.run(PROBLEM, Optimizer(optax.adam, eps=10.0), sweep, names, progress=False)
    assert runs["preconditioned_sharpness_converged"].all()
    assert (runs["damped"] == 1).all()  # eps is above every gradient of this problem
    assert np.isnan(runs["mode_persistence"].isel(step=0)).all()
    assert (runs["mode_persistence"].isel(step=slice(1, None)) > 0.9).all()
    assert runs["mode_energy"].attrs["units"] == "loss"
    np.testing.assert_allclose(runs["mode_dead_mass"], 1, rtol=1e-5)
    ratio = runs["preconditioned_sharpness"] / runs["threshold"]
    b1, rate = runs["b1"], runs["learning_rate"]
    np.testing.assert_allclose(
        ratio,
        (runs["preconditioned_sharpness"] * rate * (1 - b1) / (2 * (1 + b1))).transpose(*ratio.dims),
        rtol=1e-6,
    )


@pytest.mark.parametrize("one_hot", [False, True])
def test_rounding_of_cross_entropy(one_hot):
    """float32: a margin of 17 leaves the correct class without a gradient, in the usual form; log1p of the rest not."""
    logits = jnp.asarray([[17.0, 0.0, 0.0], [0.0, 19.0, 1.0]])
    labels = np.asarray([0, 1])
    data = (np.eye(3, dtype=np.float32)[labels] if one_hot else labels, np.asarray(logits))

    def stable(z, data):
        own = jax.nn.one_hot(labels, 3)
        rest = jnp.where(own > 0, -jnp.inf, z - jnp.sum(own * z, -1, keepdims=True))
        return jnp.mean(jnp.log1p(jnp.sum(jnp.exp(rest), -1)))

    problem = ll.Problem(lambda key: {"z": jnp.zeros(())}, lambda params, batch: params["z"] ** 2, data)
    state = State(jnp.int32(0), {"z": jnp.zeros(())}, (), jnp.zeros(()), {"z": jnp.zeros(())})
    forms = {"usual": lambda z, data: cross_entropy(z, jnp.asarray(labels)), "stable": stable}
    found = {}
    for name, loss in forms.items():
        probe = adaptive_probes.cross_entropy_numerics(lambda params, data: data[1], loss, lambda data: data[0])
        found[name], _ = probe(problem, None, state, (), None)
        assert float(found[name]["smallest_margin"]) == 17.0
    assert float(found["usual"]["zero_sum_violation"]) == pytest.approx(1.0, abs=1e-6)
    assert float(found["stable"]["zero_sum_violation"]) < 1e-5
    wrong = adaptive_probes.cross_entropy_numerics(lambda params, data: data[1], stable, lambda data: data[1][0])
    with pytest.raises(ValueError, match="labels: expected whole numbers of shape"):
        wrong(problem, None, state, (), None)


def test_they_are_built_in_and_public():
    names = ["preconditioned_mode", "preconditioned_gradient_curvature", "update_statistics"]
    assert [probe.name for probe in as_probes(names)] == names
    supplied = ll.adaptive_probes(moment_of_belief)
    assert [probe.name for probe in supplied] == names
    optimizer = Optimizer(optax.adabelief, b2=B2, eps_root=1e-16, **FIXED)
    state = State(jnp.int32(0), PARTS, optimizer.init(PARTS), jnp.ones(()), jax.tree.map(jnp.ones_like, PARTS))
    found, _ = supplied[2](PROBLEM, optimizer, state, (), None)
    assert np.isfinite(found["update_rms"])
