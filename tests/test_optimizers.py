"""Optimizers: every optax factory by its own argument names, traced, checked before anything compiles."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lossland.optimizers import Optimizer, Schedule, as_optimizer

# Factory, and the arguments to sweep with two values each.
FACTORIES = {
    "adabelief": (optax.adabelief, {"learning_rate": (0.1, 0.2), "b1": (0.8, 0.9), "eps": (1e-3, 1e-2)}),
    "adadelta": (optax.adadelta, {"learning_rate": (0.1, 0.2), "rho": (0.8, 0.9)}),
    "adagrad": (optax.adagrad, {"learning_rate": (0.1, 0.2), "initial_accumulator_value": (0.1, 0.2)}),
    "adam": (optax.adam, {"learning_rate": (0.1, 0.2), "b1": (0.8, 0.9), "b2": (0.9, 0.99), "eps": (1e-3, 1e-2)}),
    "adamax": (optax.adamax, {"learning_rate": (0.1, 0.2), "b2": (0.9, 0.99)}),
    "adamw": (optax.adamw, {"learning_rate": (0.1, 0.2), "weight_decay": (0.1, 0.2)}),
    "adan": (optax.adan, {"learning_rate": (0.1, 0.2), "b3": (0.9, 0.99)}),
    "amsgrad": (optax.amsgrad, {"learning_rate": (0.1, 0.2), "b2": (0.9, 0.99)}),
    "fromage": (optax.fromage, {"learning_rate": (0.1, 0.2), "min_norm": (1e-3, 1e-2)}),
    "lamb": (optax.lamb, {"learning_rate": (0.1, 0.2), "weight_decay": (0.1, 0.2)}),
    "lars": (optax.lars, {"learning_rate": (0.1, 0.2), "momentum": (0.8, 0.9)}),
    "lion": (optax.lion, {"learning_rate": (0.1, 0.2), "b1": (0.8, 0.9)}),
    "nadam": (optax.nadam, {"learning_rate": (0.1, 0.2), "b1": (0.8, 0.9)}),
    "novograd": (optax.novograd, {"learning_rate": (0.1, 0.2), "b1": (0.8, 0.9)}),
    "optimistic": (optax.optimistic_gradient_descent, {"learning_rate": (0.1, 0.2), "alpha": (0.5, 1.0)}),
    "polyak": (optax.polyak_sgd, {"max_learning_rate": (0.1, 0.2), "f_min": (0.0, 0.1)}),
    "radam": (optax.radam, {"learning_rate": (0.1, 0.2), "threshold": (2.0, 5.0)}),
    "rmsprop": (optax.rmsprop, {"learning_rate": (0.1, 0.2), "decay": (0.8, 0.9), "momentum": (0.5, 0.9)}),
    "rprop": (optax.rprop, {"learning_rate": (0.1, 0.2), "eta_plus": (1.1, 1.2)}),
    "sgd": (optax.sgd, {"learning_rate": (0.1, 0.2), "momentum": (0.5, 0.9)}),
    "nesterov": (functools.partial(optax.sgd, nesterov=True), {"learning_rate": (0.1, 0.2), "momentum": (0.5, 0.9)}),
    "sign_sgd": (optax.sign_sgd, {"learning_rate": (0.1, 0.2)}),
    "sm3": (optax.sm3, {"learning_rate": (0.1, 0.2), "momentum": (0.5, 0.9)}),
    "yogi": (optax.yogi, {"learning_rate": (0.1, 0.2), "b1": (0.8, 0.9)}),
}
PARAMS = {"w": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32), "b": np.array([0.3, -0.7], np.float32)}


def objective(params):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)) + params["b"][0] * params["w"][1, 1]


def three_steps(optimizer, values):
    """Parameters after three updates."""
    transformation = optimizer.build(**values)
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = transformation.init(params)
    for _ in range(3):
        value, gradient = jax.value_and_grad(objective)(params)
        updates, state = transformation.update(gradient, state, params, value=value, grad=gradient, value_fn=objective)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("name", FACTORIES)
def test_arguments_carry_the_factorys_own_names(name):
    factory, values = FACTORIES[name]
    optimizer = Optimizer(factory)
    assert optimizer.argument_names == tuple(inspect.signature(factory).parameters)
    assert set(values) <= set(optimizer.argument_names)


@pytest.mark.parametrize("name", FACTORIES)
def test_traced_arguments_pass_the_check_without_compiling_anything(name, compilations):
    factory, values = FACTORIES[name]
    Optimizer(factory).check(values)
    Optimizer(factory).check(values, params=PARAMS)
    assert compilations == []


# One row per way in which optax uses its arguments: as factors, powers, bounds, and state that exists or not.
@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam", "adamw", "rmsprop", "amsgrad", "lion", "polyak"])
def test_one_trace_serves_every_value_and_each_run_is_the_one_optax_makes(name):
    factory, values = FACTORIES[name]
    traces = []

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def steps(values):
        traces.append(values)
        return three_steps(Optimizer(factory), values)

    for index in (0, 1):
        chosen = {argument: pair[index] for argument, pair in values.items()}
        found = steps({argument: np.float32(value) for argument, value in chosen.items()})
        with jax.disable_jit():  # optax as its users call it: Python numbers, no tracing
            expected = three_steps(Optimizer(factory, **chosen), {})
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    assert len(traces) == 1


PYTHON_VALUES = {
    "a flag": (Optimizer(optax.adam), {"learning_rate", "nesterov"}, "nesterov"),
    "a flag that matters beside another": (Optimizer(optax.sgd), {"learning_rate", "momentum", "nesterov"}, "nesterov"),
    "a flag beside a fixed argument": (Optimizer(optax.sgd, momentum=0.9), {"learning_rate", "nesterov"}, "nesterov"),
    "a dtype": (Optimizer(optax.adam), {"learning_rate", "mu_dtype"}, "mu_dtype"),
    "a mask": (Optimizer(optax.adamw), {"learning_rate", "mask"}, "mask"),
    "a length": (Optimizer(optax.lbfgs, learning_rate=0.1), {"memory_size"}, "memory_size"),
    "an object": (Optimizer(optax.lbfgs), {"linesearch"}, "linesearch"),
    "an enumeration": (Optimizer(optax.polyak_sgd), {"variant", "eps"}, "variant"),
}


@pytest.mark.parametrize("case", PYTHON_VALUES)
@pytest.mark.parametrize("backwards", [False, True])
def test_what_optax_needs_as_a_python_value_is_named(case, backwards, compilations):
    optimizer, names, culprit = PYTHON_VALUES[case]
    swept = dict.fromkeys(sorted(names, reverse=backwards))
    with pytest.raises(ValueError, match=rf"{optimizer.name}: '{culprit}' cannot be swept.*{culprit}=\.\.\."):
        optimizer.check(swept)
    assert compilations == []


def test_arguments_that_fail_only_together_are_named_together():
    def quarrelsome(learning_rate, one=None, other=None):
        if isinstance(one, jax.Array) and isinstance(other, jax.Array):
            raise ValueError("not both")
        return optax.sgd(learning_rate)

    Optimizer(quarrelsome).check({"learning_rate": None, "one": None})
    with pytest.raises(ValueError, match=r"learning_rate, one, other cannot be swept together: not both"):
        Optimizer(quarrelsome).check({"learning_rate": None, "one": None, "other": None})


def test_masks_by_parameter_are_checked_on_the_parameters():
    def decay_weights_only(learning_rate, weight_decay):
        return optax.adamw(learning_rate, weight_decay=weight_decay, mask={"w": True, "b": False})

    swept = dict.fromkeys(["learning_rate", "weight_decay"])
    Optimizer(decay_weights_only).check(swept, params=PARAMS)
    Optimizer(decay_weights_only).check(swept, params=jax.eval_shape(lambda: PARAMS))


def updating(update, *learning_rates):
    """An optimizer whose update is `update(gradient, state)`."""

    def built_by_hand(learning_rate):
        return optax.GradientTransformation(lambda params: (), lambda g, s, params=None: update(g, s))

    return Optimizer(built_by_hand, **dict(zip(["learning_rate"], learning_rates, strict=False)))


def fails(learning_rate):
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("refuse", "message"),
    [
        (lambda: Optimizer(3), r"expected an optax factory such as optax.sgd, got int"),
        (lambda: Optimizer(optax.sgd, lr=0.1), r"sgd has no argument 'lr'; it has learning_rate, momentum, nesterov"),
        (lambda: Optimizer(optax.sgd).with_arguments(b1=0.1), r"sgd has no argument 'b1'; it has learning_rate"),
        (lambda: Optimizer(optax.sgd).check({"learning_rate": 0, "b1": 0}), r"sgd has no argument 'b1'"),
        (lambda: Optimizer(optax.sgd).check({"momentum": 0}), r"sgd needs learning_rate: add an axis of that name"),
        (lambda: Optimizer(optax.sgd, learning_rate=1).check({"learning_rate": 0}), r"fixed to 1 and a sweep axis"),
        (lambda: Optimizer(dict), r"optimizer: .*got <class 'dict'>, whose arguments Python does not tell"),
        (
            lambda: updating(lambda g, s: (None, s)).check({"learning_rate": 0}),
            r"built_by_hand: .*updates like the",
        ),
        (lambda: updating(lambda g, s: (g, (1,))).check({"learning_rate": 0}), r"built_by_hand: .*a state like init's"),
        (lambda: updating(lambda g, s: (g[:0], s)).check({"learning_rate": 0}), r"updates like .*\(1,\), got \(0,\)"),
        (lambda: updating(lambda g, s: g["w"], 0.1).check({}), r"built_by_hand: one update cannot be traced"),
        (lambda: Optimizer(fails).check({"learning_rate": 0}), r"fails: 'learning_rate' cannot be swept.*zero"),
        (lambda: as_optimizer("sgd"), r"expected an optax factory such as optax.sgd, got str"),
        (lambda: as_optimizer(optax.sgd(0.1)).check({"learning_rate": 0}), r"no argument 'learning_rate'; it has none"),
    ],
)
def test_bad_arguments_are_refused_by_name(refuse, message, compilations):
    with pytest.raises(ValueError, match=message):
        refuse()
    assert compilations == []


def test_a_factory_of_ones_own():
    def clipped(learning_rate, *, max_norm=1.0):
        return optax.chain(optax.clip_by_global_norm(max_norm), optax.sgd(learning_rate))

    optimizer = Optimizer(clipped)
    assert optimizer.argument_names == ("learning_rate", "max_norm")
    assert optimizer.name == "clipped"
    optimizer.check({"learning_rate": None, "max_norm": None})
    gradient = jnp.array([3.0, 4.0])
    fixed = optimizer.with_arguments(learning_rate=0.5, max_norm=2.0)
    updates, _ = fixed.update(gradient, fixed.init(gradient), gradient)
    np.testing.assert_allclose(updates, -0.5 * 2.0 * gradient / 5.0, rtol=1e-6)


def test_a_factory_that_takes_any_name_is_left_to_judge():
    def anything(**arguments):
        return optax.sgd(arguments["learning_rate"])

    assert Optimizer(anything).argument_names == ()
    Optimizer(anything, colour=3).check({"learning_rate": None})


def test_optimizers_factories_and_built_transformations_are_all_accepted():
    optimizer = Optimizer(optax.adam, b1=0.8)
    assert as_optimizer(optimizer) is optimizer
    assert as_optimizer(optax.adam).factory is optax.adam
    built = as_optimizer(optax.sgd(0.25))
    assert built.argument_names == ()
    built.check({})
    updates, _ = built.update(jnp.ones(2), built.init(jnp.ones(2)), jnp.ones(2))
    np.testing.assert_array_equal(updates, [-0.25, -0.25])


def test_fixing_arguments_makes_a_new_optimizer():
    open_ = Optimizer(optax.sgd)
    fixed = open_.with_arguments(learning_rate=0.1).with_arguments(momentum=0.9)
    assert (open_.arguments, fixed.arguments) == ({}, {"learning_rate": 0.1, "momentum": 0.9})
    assert fixed.missing({}) == ()
    assert open_.missing({"momentum": None}) == ("learning_rate",)
    assert repr(fixed) == "Optimizer(sgd, learning_rate=0.1, momentum=0.9)"
    assert repr(Optimizer(functools.partial(optax.sgd, nesterov=True))) == "Optimizer(sgd)"


def test_an_argument_of_a_schedule_is_fixed_in_the_schedule():
    def jump(size):
        return optax.piecewise_constant_schedule(0.1, {10: size})

    with pytest.raises(ValueError, match=r"'size' cannot be swept.*fix it with Schedule\(jump, size=\.\.\.\)"):
        Optimizer(optax.sgd, learning_rate=Schedule(jump)).check({"size": 2.0})
