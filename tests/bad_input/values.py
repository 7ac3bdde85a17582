"""Values that are wrong for every kind of argument: sampled ones that are known to hurt, and generated ones."""

import math

import jax.numpy as jnp
import numpy as np
import xarray as xr
from hypothesis import strategies as st

HUGE = 10**30
NO_NUMBERS = (None, "0.1", "", b"1", [], {}, 1j, object(), math.nan, np.array(["a"]), len)
TEXTS = st.text(max_size=8)


def samples(*values):
    """One of some values, whatever they compare like."""
    return st.sampled_from(range(len(values))).map(values.__getitem__)


def no_number(*, below=None, above=None, infinite=True):
    """No finite number of the range."""
    wrong = [samples(*NO_NUMBERS, True), TEXTS]
    wrong += [samples(math.inf, -math.inf)] if infinite else []
    wrong += [] if below is None else [st.floats(max_value=below, allow_nan=False, allow_infinity=False)]
    wrong += [] if above is None else [st.floats(min_value=above, allow_nan=False, allow_infinity=False)]
    return st.one_of(wrong)


def no_count(least=1):
    """No integer from `least` on that a machine could count to."""
    few = st.integers(max_value=least - 1)
    many = st.integers(min_value=2**63)
    return st.one_of(samples(*NO_NUMBERS, True, 1.5, math.inf, HUGE, -HUGE), few, many, TEXTS)


def not_callable():
    return samples(None, 3, "loss", [], {}, math.nan, object(), np.zeros(3))


def no_dataset():
    return samples(None, 3, "runs", [], {}, np.zeros((2, 2)), object(), xr.Dataset(), xr.Dataset({"x": ("y", [1.0])}))


NO_FUNCTION = not_callable()
NO_OBJECTIVE = NO_FUNCTION | samples(
    lambda params: params,
    lambda params: None,
    lambda params: "loss",
    lambda params: (jnp.sum(params), {}),
    lambda params: jnp.sum(params > 0),
    lambda params: params["missing"],
    lambda params: jnp.sum(params @ jnp.ones((7, 7))),
    lambda params: float(jnp.sum(params)),
    lambda params, batch: jnp.sum(params),
    lambda params: 1j * jnp.sum(params),
)
"""Nor a function from a vector of parameters to one real number that JAX can trace."""
NO_PRODUCT = NO_FUNCTION | samples(
    lambda vector: None,
    lambda vector: vector[:-1],
    lambda vector: vector @ vector,
    lambda vector: vector["missing"],
    lambda vector: jnp.ones((7, 7)) @ vector,
    lambda vector, other: vector,
    lambda vector: np.asarray(vector),
)
"""Nor a function from vectors to vectors of the same length that JAX can trace."""
NO_DATASET = no_dataset()
NO_PROBLEM = samples(None, 3, "digits", [], {}, len, object(), np.zeros(3))
NO_OPTIMIZER = samples(None, 3, "sgd", [], {}, object(), math.nan, np.zeros(3))
NO_TREE = samples("w", [], {}, {"w": "x"}, {"w": None}, object(), ["a"], {"w": [object()]}, np.array(["a"]), len)
NO_FLAG = samples(None, 3, "yes", "", [], {}, 0.0, math.nan, object())
NO_PATH = samples(None, 3, "", [], {}, b"x", object(), math.nan, "a\0b")
NO_MAPPING = samples(None, 3, "axes", [], [("a", 1)], object(), math.nan, np.zeros(3))
NO_TEXT = samples(None, 3, [], {}, object(), math.nan, b"x")
NO_KEY = samples(None, 3, "key", [], np.zeros(2), object(), math.nan, 1.5)
NO_ARRAY = samples(None, 3, "x", "", {}, object(), math.nan, len, ["a"], np.array(["a"]))
NO_AXES = samples(None, 3, "ax", [], {}, object(), np.zeros(3))
NO_LAW = st.one_of(samples(None, "x", "", object(), {}, 1j, math.nan, [1.0, math.nan], [1.0, "a"], len), TEXTS)
NOTHING_LIKE_IT = samples(None, 3, "x", "", [], {}, object(), math.nan, -1, HUGE, np.zeros(3))


def not_one_of(*words):
    """Another word, or none."""
    return st.one_of(samples(None, 3, [], {}, object(), math.nan), TEXTS.filter(lambda text: text not in words))


def no_list(wrong):
    """A list with something wrong in it, or no list."""
    return st.one_of(samples(None, 3, "x", object(), math.nan), st.lists(wrong, min_size=1, max_size=3))


def or_none(wrong):
    """For an argument that may be None."""
    return wrong.filter(lambda value: value is not None)
