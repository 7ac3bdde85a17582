"""What public functions expect of their arguments, said in one line above each and checked before anything compiles.

    @expects(runs=dataset("loss"), factor=number(above=1), method=choice("wilson", "clopper_pearson"))
    def public(runs, factor=2.0, method="wilson"): ...

A value that does not fit is a `ValueError` that names the argument, what was expected and what was got. Arguments that
are left at their defaults are not looked at; values that JAX is tracing fit wherever numbers do.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import xarray as xr

Function = TypeVar("Function", bound=Callable[..., Any])
MOST = 2**31 - 1
"""Largest count: what steps, sizes and indices are counted in."""
MOST_EXAMPLES, MOST_UNITS = 2**24, 2**16
"""Larger problems than these are slips of the keyboard; data of one's own may be of any size."""
TRACING_ERRORS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    NotImplementedError,
)
"""What a function that does not fit its inputs raises when it is called or traced."""


class Rule(NamedTuple):
    """What an argument has to be, in words, and whether a value is."""

    expected: str
    holds: Callable[[Any], bool]


def expects(**rules: Rule) -> Callable[[Function], Function]:
    """Check the arguments of a function against a rule each, before it is called."""

    def decorate(function: Function) -> Function:
        names = tuple(inspect.signature(function).parameters)
        if unknown := set(rules) - set(names):
            raise TypeError(f"{function.__name__} has no argument {', '.join(sorted(unknown))}")

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            for name, value in (*zip(names, args, strict=False), *kwargs.items()):
                if name in rules:
                    check(name, value, rules[name])
            return function(*args, **kwargs)

        return checked  # pyright: ignore[reportReturnType] - same signature, by functools.wraps

    return decorate


def check(name: str, value: Any, rule: Rule) -> None:
    """Refuse a value that does not fit.

    Raises:
        ValueError: naming the argument, what was expected and what was got.
    """
    try:
        fits = bool(rule.holds(value))
    except TRACING_ERRORS:  # what cannot even be looked at does not fit
        fits = False
    if not fits:
        most = (
            f" and at most {MOST}" if _is_integer(value) and value > MOST and " at most " not in rule.expected else ""
        )
        raise ValueError(f"{name}: expected {rule.expected}{most}, got {described(value)}")


@contextlib.contextmanager
def calling(name: str, expected: str) -> Iterator[None]:
    """Turn what goes wrong in calling or tracing a function that was given into a `ValueError` that names it."""
    try:
        yield
    except TRACING_ERRORS as error:
        raise ValueError(
            f"{name}: expected {expected}; calling it gave {type(error).__name__}: {str(error) or 'no message'}"
        ) from error


def count(least: int = 1, most: int = MOST) -> Rule:
    """A whole number."""
    expected = f"an integer of at least {least}" + ("" if most == MOST else f" and at most {most}")
    return Rule(expected, lambda value: _is_integer(value) and least <= value <= most)


def number(
    *, above: float = -math.inf, least: float = -math.inf, below: float = math.inf, most: float = math.inf
) -> Rule:
    """A finite number in a range."""
    limits = [f"above {above:g}"] if above > -math.inf else []
    limits += [f"of at least {least:g}"] if least > -math.inf else []
    limits += [f"below {below:g}"] if below < math.inf else []
    limits += [f"of at most {most:g}"] if most < math.inf else []

    def holds(value: Any) -> bool:
        if isinstance(value, jax.core.Tracer):
            return True
        if not _is_number(value):
            return False
        value = float(value)
        return math.isfinite(value) and above < value < below and least <= value <= most

    return Rule(" ".join(["a finite number", " and ".join(limits)]).strip(), holds)


def choice(*values: str) -> Rule:
    """One of some words."""
    return Rule(f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values)


def a(expected: str, *types: type) -> Rule:
    """An object of one of some types."""
    return Rule(expected, lambda value: isinstance(value, types))


def dataset(*variables: str, source: str = "ll.run returns") -> Rule:
    """A dataset with some variables or coordinates."""
    held = f" with {', '.join(variables)}" if variables else ""
    return Rule(
        f"the xarray.Dataset{held} that {source}",
        lambda value: isinstance(value, xr.Dataset) and all(name in value.variables for name in variables),
    )


def trajectories(*dims: str) -> Rule:
    """A dataset as `ll.run` makes them: some of its axes not selected away, none emptied, stacked or renamed."""
    axes = f" over {', '.join(dims)}" if dims else ""
    return Rule(
        f"the xarray.Dataset with status that ll.run returns,{axes} and other axes of distinct finite numbers, none of"
        " them empty or stacked",
        lambda value: isinstance(value, xr.Dataset) and _is_trajectories(value, dims),
    )


def optional(rule: Rule) -> Rule:
    """None, or what fits a rule."""
    return Rule(f"{rule.expected}, or None", lambda value: value is None or rule.holds(value))


def several(rule: Rule, least: int = 1) -> Rule:
    """A list of at least so many values that fit a rule."""

    def holds(value: Any) -> bool:
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            return False
        if isinstance(value, Iterator):  # which can be read once only
            return True
        values = list(value)
        return len(values) >= least and all(rule.holds(one) for one in values)

    return Rule(f"a list of at least {least}, each {rule.expected}", holds)


def pair(rule: Rule) -> Rule:
    """Two values that fit a rule."""
    many = several(rule, 2)
    return Rule(f"a pair, each {rule.expected}", lambda value: many.holds(value) and len(value) == 2)


def named(rule: Rule) -> Rule:
    """A dict of names to values that fit a rule."""
    return Rule(
        f"a dict of names, each with {rule.expected}",
        lambda value: isinstance(value, Mapping) and all(rule.holds(one) for one in value.values()),
    )


def either(*rules: Rule) -> Rule:
    """What fits one of some rules."""
    return Rule(" or ".join(rule.expected for rule in rules), lambda value: any(rule.holds(value) for rule in rules))


FLAG = Rule("True or False", lambda value: isinstance(value, (bool, np.bool_)))
FUNCTION = Rule("a function", lambda value: callable(value) and not isinstance(value, type))
TEXT = Rule("a text", lambda value: isinstance(value, str))
MAPPING = Rule("a dict", lambda value: isinstance(value, Mapping))
PATH = Rule(
    "a path (text or pathlib.Path)",
    lambda value: isinstance(value, (str, os.PathLike)) and bool(str(value)) and "\0" not in str(value),
)
NUMBERS = Rule(
    "a number or an array of finite numbers",
    lambda value: isinstance(value, jax.core.Tracer) or (_holds_numbers(value) and bool(np.isfinite(value).all())),
)
NUMERIC = Rule(
    "a number or an array of numbers",
    lambda value: isinstance(value, jax.core.Tracer) or _holds_numbers(value) or _is_empty(value),
)
ARRAY = Rule(
    "an array of real numbers with at least one axis", lambda value: _is_real_leaf(value) and bool(np.shape(value))
)
TREE = Rule(
    "a pytree of arrays of real numbers, at least one",
    lambda value: bool(jax.tree.leaves(value)) and all(_is_real_leaf(leaf) for leaf in jax.tree.leaves(value)),
)
KEY = Rule("a key, such as jax.random.key(0)", lambda value: _is_key(value))
SEEDS = either(count(1, 2**24), several(count(0)))
WIDTHS = either(count(1, MOST_UNITS), several(count(1, MOST_UNITS), 0))
"""Units of one hidden layer, or of each."""
DRAWABLE = Rule("an Axes of matplotlib", lambda value: callable(getattr(value, "pcolormesh", None)))
OPTIMIZER = Rule(
    "an optax factory such as optax.sgd, an optax transformation or an ll.Optimizer",
    lambda value: callable(value) or all(callable(getattr(value, part, None)) for part in ("init", "update")),
)


def described(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, xr.Dataset):
        sizes = ", ".join(f"{size} {name}" for name, size in value.sizes.items())
        return f"a Dataset with {', '.join(map(str, value.variables)) or 'nothing in it'}" + f" ({sizes})" * bool(sizes)
    if isinstance(value, jax.core.Tracer):
        return "a value that JAX is tracing"
    if isinstance(value, (np.ndarray, jax.Array)) and np.shape(value):
        finite = np.asarray(value.dtype.kind not in "fc" or np.isfinite(np.asarray(value)).all())
        return f"an array of {value.dtype} of shape {np.shape(value)}" + ("" if finite else ", not all of it finite")
    text = repr(value)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    plain = value is None or isinstance(value, (bool, int, float, complex, str, bytes, np.generic))
    return text if plain else f"{text} ({type(value).__name__})"


def _is_trajectories(runs: xr.Dataset, dims: tuple[str, ...]) -> bool:
    numbers = ("status", "loss", "sharpness", "threshold", "first_rise_step", "first_bad_step", "step")
    if "status" not in runs or not all(_is_real_leaf(runs[name]) for name in numbers if name in runs.variables):
        return False
    if ("seed" in dims and "seed" not in runs["status"].dims) or (
        "step" in dims and "step" not in runs.get("loss", runs).dims
    ):
        return False
    if not all(runs.sizes.values()) or any(getattr(index, "nlevels", 1) > 1 for index in runs.indexes.values()):
        return False
    if "learning_rate" not in runs.indexes:
        return True
    rates = np.asarray(runs.indexes["learning_rate"], np.float64)
    return bool(np.isfinite(rates).all()) and len(np.unique(rates)) == len(rates)


def _is_integer(value: Any) -> bool:
    if isinstance(value, (np.ndarray, jax.Array)):
        return False
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if isinstance(value, (np.ndarray, jax.Array)):
        return value.shape == () and _is_real_leaf(value) and value.dtype != np.bool_
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _holds_numbers(value: Any) -> bool:
    if isinstance(value, (str, bytes, Mapping, set, frozenset)) or value is None:
        return False
    return np.asarray(value).dtype.kind in "fiu" and np.asarray(value).size > 0


def _is_empty(value: Any) -> bool:
    """Whether a value is an array without elements: where nothing happened, nothing is computed."""
    return isinstance(value, (np.ndarray, jax.Array)) and value.size == 0 and value.dtype.kind in "fiu"


def _is_real_leaf(value: Any) -> bool:
    if isinstance(value, (bool, int, float)):
        return True
    dtype = getattr(value, "dtype", None)
    if dtype is None or not hasattr(value, "shape"):
        return False
    return jnp.issubdtype(dtype, np.floating) or jnp.issubdtype(dtype, np.integer) or dtype == np.bool_


def _is_key(value: Any) -> bool:
    if not isinstance(value, (jax.Array, np.ndarray)):
        return False
    return jnp.issubdtype(value.dtype, jax.dtypes.prng_key) or (value.dtype == np.uint32 and value.shape[-1:] == (2,))
