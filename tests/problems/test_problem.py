"""Problem: refusals before anything compiles, hyperparameters, fingerprints."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossland as ll
from lossland.problems.problem import cast_floating

X = np.linspace(-1, 1, 6)[:, None]
Y = X[:, 0] ** 2


def init(key, *, scale=1.0):
    return {"w": scale * jax.random.normal(key, (1,)), "b": jnp.zeros(())}


def loss(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def problem(**changes):
    return ll.Problem(**{"init": init, "loss": loss, "data": (X, Y), **changes})


def with_hole(array, value):
    array = np.array(array)
    array[3] = value
    return array


def needs_scale(key, *, scale):
    return {"w": scale * jnp.ones(1), "b": jnp.zeros(())}


REFUSED = {
    "no data": ({"data": ()}, r"data: .*no arrays"),
    "lengths differ": ({"data": (X, Y[:5])}, r"data\[1\]: leading axis has 5 examples where data\[0\] has 6"),
    "named in a dict": ({"data": {"x": X, "y": Y[:2]}}, r"data\['y'\]: leading axis has 2"),
    "scalar leaf": ({"data": (X, np.float32(1.0))}, r"data\[1\]: expected a leading axis.*shape \(\)"),
    "lists": ({"data": ([1.0, 2.0], [1.0, 2.0])}, r"data\[0\]\[0\]: .*a list of numbers has to become an array"),
    "no examples": ({"data": (X[:0], Y[:0])}, r"data\[0\]: .*shape \(0, 1\)"),
    "nan": ({"data": (with_hole(X, np.nan), Y)}, r"data\[0\]: 1 of 6 values are not finite.*\(3, 0\)"),
    "infinity": ({"data": (X, with_hole(Y, np.inf))}, r"data\[1\]: 1 of 6 values are not finite.*\(3,\)"),
    "complex": ({"data": (X * 1j, Y)}, r"data\[0\]: expected real numbers, got dtype complex128"),
    "text": ({"data": (X, np.array(list("abcdef")))}, r"data\[1\]: expected real numbers"),
    "objects": ({"data": (X, np.array([None] * 6))}, r"data\[1\]: expected real numbers, got dtype object"),
    "normalisation": ({"normalisation": "median"}, r"normalisation: expected 'mean' or 'sum'.*'median'"),
    "init not callable": ({"init": {"w": X}}, r"init: expected a function, got dict"),
    "loss not callable": ({"loss": 3.0}, r"loss: expected a function, got float"),
    "argument without default": ({"init": needs_scale}, r"init: .*'scale' needs a default"),
    "init without key": ({"init": lambda: jnp.zeros(1)}, r"init: expected a function of one JAX key"),
    "no parameters": ({"init": lambda key: {}}, r"init: expected a pytree of floating-point arrays, got no arrays"),
    "integer parameters": (
        {"init": lambda key: {"w": jnp.zeros(1), "b": jnp.zeros((), int)}},
        r"init: params\['b'\] has dtype int32, expected floating point",
    ),
    "complex parameters": ({"init": lambda key: jnp.zeros(2, complex)}, r"init: params has dtype complex64"),
    "vector loss": ({"loss": lambda params, batch: batch[1] * params["b"]}, r"loss: .*shape \(6,\).*take the mean"),
    "loss with more": ({"loss": lambda params, batch: (params["b"], batch)}, r"loss: .*scalar, got tuple"),
    "a number as loss": ({"loss": lambda params, batch: 1.0}, r"loss: .*got the plain number 1.0"),
    "integer loss": ({"loss": lambda params, batch: jnp.argmin(batch[1])}, r"loss: .*dtype int32"),
    "loss of one argument": ({"loss": lambda params: params["b"]}, r"loss: expected a function \(params, batch\)"),
    "loss of other shapes": (
        {"loss": lambda params, batch: jnp.sum(params["w"] * jnp.ones(3) + batch[1])},
        r"loss: .*gave (TypeError|ValueError): .*shape",
    ),
    "loss of other matrices": ({"loss": lambda params, batch: batch[1] @ batch[0].T}, r"loss: .*gave TypeError"),
    "loss of other names": ({"loss": lambda params, batch: params["v"]}, r"loss: .*gave KeyError: 'v'"),
    "loss of a missing leaf": ({"loss": lambda params, batch: batch[2]}, r"loss: .*gave IndexError"),
    "loss that branches": (
        {"loss": lambda params, batch: params["b"] if params["b"] > 0 else 0.0},
        r"loss: .*gave TracerBoolConversionError",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_by_name_before_anything_compiles(case, compilations):
    changes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        problem(**changes)
    assert compilations == []


def test_a_good_problem_compiles_nothing_either(compilations):
    problem().fingerprint()
    assert compilations == []


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint8", "int64", "bool"])
def test_real_data_of_any_dtype_is_taken(dtype):
    built = problem(data=(X.astype(dtype), Y.astype(dtype)), loss=lambda p, batch: p["b"] * jnp.mean(batch[1]))
    assert built.num_examples == 6
    assert built.objective(init(jax.random.key(0))).dtype == jnp.float32


def test_objective_is_the_loss_of_all_data():
    params = {"w": jnp.array([0.5]), "b": jnp.array(-0.25)}
    expected = np.mean((X[:, 0] * 0.5 - 0.25 - Y) ** 2)
    np.testing.assert_allclose(problem().objective(params), expected, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_objective_has_the_precision_of_the_parameters():
    params = {"w": jnp.array([1 / 3]), "b": jnp.array(0.0)}
    assert problem().objective(params).dtype == jnp.float64
    np.testing.assert_allclose(problem().objective(params), np.mean((X[:, 0] / 3 - Y) ** 2), rtol=1e-15)
    assert problem().objective(cast_floating(params, jnp.float32)).dtype == jnp.float32


def test_casting_leaves_integers_and_booleans_alone():
    tree = {"x": np.ones(2), "label": np.arange(2, dtype=np.int32), "mask": np.array([True, False])}
    cast = cast_floating(tree, jnp.float16)
    assert {name: str(leaf.dtype) for name, leaf in cast.items()} == {"x": "float16", "label": "int32", "mask": "bool"}


def loss_with_power(params, batch, *, power=2.0):
    return jnp.mean(jnp.abs(batch[1] - params["b"]) ** power)


def test_arguments_are_the_keyword_only_ones_of_init_and_loss():
    built = problem(loss=loss_with_power)
    assert built.arguments == {"scale": 1.0, "power": 2.0}
    decided = built.with_arguments(scale=3.0)
    assert decided.arguments == {"power": 2.0}
    np.testing.assert_allclose(decided.init(jax.random.key(0))["w"], 3 * built.init(jax.random.key(0))["w"], rtol=1e-6)
    params = {"w": jnp.zeros(1), "b": jnp.zeros(())}
    np.testing.assert_allclose(built.with_arguments(power=1.0).objective(params), np.mean(Y), rtol=1e-6)


def test_arguments_may_be_traced(compilations):
    built = problem(loss=loss_with_power)
    params = {"w": jnp.zeros(1), "b": jnp.zeros(())}
    values = jax.jit(jax.vmap(lambda power: built.with_arguments(power=power).objective(params)))
    powers = np.arange(1, 6, dtype=np.float32)
    before = len(compilations)
    found = values(powers)
    values(powers + 1)
    assert len(compilations) == before + 1
    np.testing.assert_allclose(found, [np.mean(Y**power) for power in powers], rtol=1e-5)


def test_unknown_arguments_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"no argument 'width'; it has scale"):
        problem().with_arguments(width=3)
    with pytest.raises(ValueError, match=r"no argument 'scale'; it has none"):
        problem().with_arguments(scale=1.0).with_arguments(scale=1.0)


def test_data_can_be_exchanged():
    half = problem().with_data((X[:3], Y[:3]))
    assert half.num_examples == 3
    params = init(jax.random.key(1))
    np.testing.assert_allclose(half.objective(params), loss(params, (X[:3], Y[:3])), rtol=1e-6)


def test_fingerprint_does_not_depend_on_the_process_or_its_settings():
    names = ["linear_regression", "numpy_mlp", "chebyshev"]
    code = f"import lossland as ll\nfor name in {names}: print(ll.problems.named(name).fingerprint())"
    here = [ll.problems.named(name).fingerprint() for name in names]
    settings = {
        "PYTHONHASHSEED": "7",
        "COLUMNS": "40",
        "JAX_ENABLE_X64": "1",
        "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    there = subprocess.check_output([sys.executable, "-c", code], text=True, env={**os.environ, **settings})
    assert there.split() == here


@pytest.mark.usefixtures("x64")
def test_fingerprint_ignores_the_ambient_precision():
    with jax.enable_x64(False):
        single = problem().fingerprint()
    assert problem().fingerprint() == single


def in_jit(constant):
    return lambda params, batch: jnp.sum(jax.jit(lambda b: b * constant)(params["b"]))


def in_scan(constant):
    return lambda params, batch: jax.lax.scan(lambda carry, c: (carry + c * params["b"], None), 0.0, constant)[0]


def by_hand(factor):
    @jax.custom_vjp
    def identity(x):
        return x

    identity.defvjp(lambda x: (x, None), lambda _, g: (factor * g,))
    return lambda params, batch: identity(params["b"]) ** 2


def scaled(power):
    def drawn(key, *, scale=1.0):
        return {"w": jnp.ones(1), "b": scale**power * jnp.ones(())}

    return drawn


def tempered(power):
    def tempered_loss(params, batch, *, temperature=1.0):
        return params["b"] * jnp.asarray(temperature) ** power

    return tempered_loss


def either(constant):
    def drawn(key, *, start=None):
        return {"w": jnp.ones(1), "b": jnp.ones(()) if start is None else constant * jnp.asarray(start)}

    return drawn


def start_in_jit(constant):
    return lambda key: {"w": jnp.ones(1), "b": jax.jit(lambda key: jax.random.normal(key, (5,)) @ constant)(key)}


A, B = np.arange(5.0, dtype=np.float32), np.array([0, 1, 2, 3, 5], np.float32)
DIFFERENT = {
    "a datum": ({}, {"data": (X, with_hole(Y, 1e-9))}),
    "dtype of the data": ({}, {"data": (X.astype(np.float32), Y)}),
    "names of the data": (
        {"data": {"x": X, "y": Y}, "loss": lambda p, b: p["b"] * jnp.mean(b["x"])},
        {"data": {"x": X, "z": Y}, "loss": lambda p, b: p["b"] * jnp.mean(b["x"])},
    ),
    "the loss": ({}, {"loss": lambda params, batch: 2 * loss(params, batch)}),
    "one unit in the last place of a constant": (
        {"loss": lambda params, batch: params["b"] * np.float32(0.1)},
        {"loss": lambda params, batch: params["b"] * np.nextafter(np.float32(0.1), np.float32(1))},
    ),
    "the starting point": ({}, {"init": lambda key: init(key, scale=2.0)}),
    "a decided argument": ({}, {"init": functools.partial(init, scale=2.0)}),
    "an array inside jit of the start": ({"init": start_in_jit(A)}, {"init": start_in_jit(B)}),
    "an array inside jit": ({"loss": in_jit(A)}, {"loss": in_jit(B)}),
    "an array inside scan": ({"loss": in_scan(A)}, {"loss": in_scan(B)}),
    "a gradient by hand": ({"loss": by_hand(1.0)}, {"loss": by_hand(2.0)}),
    "use of an argument of init": ({"init": scaled(1)}, {"init": scaled(2)}),
    "use of an argument of the loss": ({"loss": tempered(1)}, {"loss": tempered(3)}),
    "use of an argument that is None": ({"init": either(1.0)}, {"init": either(2.0)}),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_fingerprint_changes_with(what):
    first, second = (problem(**changes) for changes in DIFFERENT[what])
    assert first.fingerprint() != second.fingerprint()
    assert problem(**DIFFERENT[what][0]).fingerprint() == first.fingerprint()


def test_fingerprint_ignores_name_and_description():
    assert problem(name="other", description="same thing").fingerprint() == problem().fingerprint()


def test_fingerprint_of_an_argument_that_cannot_be_traced():
    def drawn(key, *, size=2):
        return jnp.ones(int(size))

    built = ll.Problem(drawn, lambda params, batch: jnp.sum(params) * jnp.mean(batch), Y)
    assert built.fingerprint() == built.fingerprint()
    assert built.with_arguments(size=3).fingerprint() != built.fingerprint()
