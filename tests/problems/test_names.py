"""Problems by name: the table of the command line, and what holds for every row of it."""

import subprocess
import sys

import jax
import numpy as np
import pytest

import lossland as ll
from lossland import problems
from lossland.problems import NAMES, named
from tests.problems.quick import quick, starts_of

SMALL = {
    "keras_lstm": {"hidden": 3},
    "digits": {"num_examples": 100, "widths": (8,)},
    "breast_cancer": {"num_examples": 60, "widths": (8,)},
    "digit_rows": {"num_examples": 40, "width": 4},
    "rnn_sequences": {"hidden": 4, "num_sequences": 8, "length": 6},
}


@pytest.mark.parametrize("name", NAMES)
def test_a_mean_over_examples_does_not_change_when_the_data_are_doubled(name):
    problem = named(name, **SMALL.get(name, {}))
    assert problem.normalisation == "mean"
    doubled = problem.with_data(jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), problem.data))
    params = jax.tree.map(lambda leaf: leaf[0], starts_of(problem, 1))
    value, twice = quick(lambda params: (problem.objective(params), doubled.objective(params)))(params)
    assert value > 0
    np.testing.assert_allclose(twice, value, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_problem_has_its_own_name_a_description_and_a_scale_for_its_start(name):
    problem = named(name, **SMALL.get(name, {}))
    assert problem.name == name
    assert problem.description.endswith(".")
    assert NAMES[name][1]
    argument = "initial_weight" if name == "linear_regression" else "scale"
    assert argument in problem.arguments
    draw = quick(lambda value: problem.with_arguments(**{argument: value}).init(jax.random.key(0)))
    start, zero = draw(1.0), draw(0.0)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(start))
    # The gains of layer norms and the bias of a forget gate are no weights: they stay at one.
    ones = {"digit_rows", "keras_lstm"}
    assert all(not np.any(leaf) or (name in ones and leaf.ndim == 1) for leaf in jax.tree.leaves(zero))
    assert all(np.isin(leaf, (0, 1)).all() for leaf in jax.tree.leaves(zero))
    assert {leaf.dtype for leaf in jax.tree.leaves(start)} == {np.dtype("float32")}


def test_no_two_problems_share_a_fingerprint():
    prints = {name: named(name, **SMALL.get(name, {})).fingerprint() for name in NAMES}
    assert len(set(prints.values())) == len(NAMES)


def test_options_reach_the_builder():
    assert named("moons", num_examples=10).num_examples == 10
    assert named("numpy_mlp", wrong_db1=True).name == "numpy_mlp_wrong_db1"


def test_unknown_names_and_options_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"problem: expected one of linear_regression, numpy_mlp.*got 'mnist'"):
        named("mnist")
    with pytest.raises(ValueError, match=r"problem moons has no option 'width'; it has num_examples, noise, seed"):
        named("moons", width=3)


def test_the_table_of_names_needs_neither_jax_nor_flax():
    code = (
        "import sys, lossland.problems as p\nassert p.NAMES and 'reported' in dir(p)\n"
        "print(sorted({'jax', 'flax', 'numpy', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_modules_are_there_at_first_use():
    assert ll.problems.Problem is ll.Problem
    for module in ("datasets", "networks", "reported", "synthetic"):
        assert getattr(ll.problems, module).__name__ == f"lossland.problems.{module}"
    with pytest.raises(AttributeError, match=r"no attribute 'mnist'; it has NAMES"):
        _ = ll.problems.mnist


def test_every_builder_is_an_attribute_and_unknown_ones_are_listed():
    assert set(NAMES) <= set(problems.__all__) <= set(dir(problems))
    assert problems.quadratic((1.0, 2.0)).fingerprint() == named("quadratic", eigenvalues=(1.0, 2.0)).fingerprint()
    with pytest.raises(AttributeError, match=r"'quadratics'; it has .*quadratic"):
        problems.quadratics  # noqa: B018
