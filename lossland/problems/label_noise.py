"""Wrong labels, as many as one likes: a hyperparameter of any classification problem."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossland.arguments import a, count, expects
from lossland.problems.problem import Params, Problem

LEVELS = 2**24
"""Whole numbers below this are exact in single precision."""


@expects(problem=a("an ll.Problem", Problem), num_classes=count(), seed=count(0))
def with_label_noise(problem: Problem, num_classes: int, seed: int = 0) -> Problem:
    """Return the same problem with a hyperparameter `label_noise`, the probability that a label is drawn at random.

    Equation: `label_i <- other_i if u_i < label_noise else label_i`, u_i uniform in [0, 1) and other_i uniform over the
    classes, both drawn once from `seed`. Labels that are noisy at one level stay so at every higher one.

    Args:
        problem: its data are a pair (inputs, integer labels).
        num_classes: labels are 0 ... num_classes - 1.

    Raises:
        ValueError: if the data are no such pair.
    """
    if not (isinstance(problem.data, tuple) and len(problem.data) == 2):
        raise ValueError("problem: label noise needs data (inputs, labels)")
    inputs, labels = problem.data
    if not (isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind in "iu"):
        raise ValueError("problem: label noise needs one integer label per example")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"num_classes: labels go from {labels.min()} to {labels.max()}, got {num_classes} classes")
    draws = np.random.default_rng(seed)
    chances = draws.integers(0, LEVELS, len(labels)).astype(np.int32)  # whole numbers: the same in every precision
    others = draws.integers(0, num_classes, len(labels)).astype(labels.dtype)

    def loss(params: Params, batch: Any, *, label_noise: Any = 0.0, **rest: Any) -> jax.Array:
        inputs, (labels, chances, others) = batch
        return problem.loss(params, (inputs, jnp.where(chances < label_noise * LEVELS, others, labels)), **rest)

    # What the loss itself takes (its own hyperparameters, a key, a state) goes on being asked for.
    own = inspect.signature(problem.loss)
    kinds = [p for p in own.parameters.values() if p.kind is p.KEYWORD_ONLY]
    added = inspect.Parameter("label_noise", inspect.Parameter.KEYWORD_ONLY, default=0.0)
    positional = [p for p in inspect.signature(loss).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    loss.__signature__ = inspect.Signature([*positional, *kinds, added])  # pyright: ignore[reportFunctionMemberAccess]
    return replace(problem, loss=loss, data=(inputs, (labels, chances, others)), _checked=False)
