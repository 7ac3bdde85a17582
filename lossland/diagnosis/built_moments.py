"""The second moment of an optax transformation that is already built: its decay and its floor, found by probing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lossland.sweeps.preconditioners import RULES

SIZES = (1.0, 1e-4, 1e-8, 1e-12, 1e-16)
"""Gradients of the probe: for the first the floor is nothing, for the last it is all; squares do not underflow."""
ACCURACY = 1e-3
TINY = 1e-30

ReadMoment = Callable[[Any], "tuple[Any, Any] | None"]
"""Advanced optimizer state -> (v, floor of sqrt(v)): v a pytree like the parameters, in gradient^2; or None."""


def moment_reader(transformation: optax.GradientTransformationExtraArgs) -> ReadMoment | None:
    """Find out how a transformation divides by its second moment v; None where it does not, or in a way not known.

    Equations: v decays by b2 at a step with gradient 0; from one state, gradients c_j and -c_j give update_j(+) -
    update_j(-) = factor c_j (1 / P_j(+) + 1 / P_j(-)) with one factor for all j. Where c_j is large P = sqrt(v), which
    tells the factor; where it is tiny P is the floor: eps, or sqrt(eps) where that stands under the root.
    """
    try:
        with jax.ensure_compile_time_eval():
            found = _probe(transformation)
    except (
        TypeError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
    ):  # made for other parameters
        return None
    if found is None:
        return None
    decay, floor = found

    def read(opt_state: Any) -> tuple[Any, Any] | None:
        nodes = _moments(opt_state)
        return None if len(nodes) != 1 else (_value(nodes[0], decay), floor)

    return read


def _probe(transformation: optax.GradientTransformationExtraArgs) -> tuple[float, float] | None:
    """(decay, floor); decay is NaN for a rule without one."""
    sizes = np.asarray(SIZES)
    params = {"probe": jnp.full(len(sizes), 2.0**-40)}  # so small that weight decay is negligible

    def update(factor: float, state: Any) -> tuple[np.ndarray, Any]:
        gradient = {"probe": jnp.asarray(factor * sizes, jnp.float32)}
        updates: Any
        updates, state = transformation.update(
            gradient, state, params, value=jnp.ones(()), grad=gradient, value_fn=lambda params: jnp.ones(())
        )
        return np.asarray(updates["probe"], np.float64), state

    state = transformation.init(params)
    for factor in (1.0, 0.3):
        _, state = update(factor, state)
    if len(_moments(state)) != 1:
        return None
    decay = _decay(_moments(state)[0], _moments(update(0.0, state)[1])[0])
    if decay is None:
        return None
    stride = np.zeros(len(sizes))
    values = []
    for sign in (1, -1):
        updates, advanced = update(0.7 * sign, state)
        stride += sign * updates
        values.append(np.sqrt(np.maximum(np.asarray(_value(_moments(advanced)[0], decay)["probe"], np.float64), 0)))
    if not (np.all(np.isfinite(stride)) and np.all(stride * stride[0] > 0)):
        return None

    found = [_floor(stride / sizes, values, combine) for combine in (np.add, np.hypot)]
    floor, factor, _ = min(found, key=lambda candidate: candidate[2])
    # Wherever eps stands, also in both places, P lies between sqrt(v + floor^2) and sqrt(v) + floor.
    inverse = stride / sizes / factor
    low, high = (_inverses(values, floor, combine) for combine in (np.add, np.hypot))
    if np.any(inverse < low * (1 - ACCURACY)) or np.any(inverse > high * (1 + ACCURACY)):
        return None
    return decay, floor if floor > 2 * values[0][-1] else 0.0


def _floor(slopes: np.ndarray, roots: list[np.ndarray], combine: Callable[..., Any]) -> tuple[float, float, float]:
    """Solve slope_j = factor (1 / P_j(+) + 1 / P_j(-)), P = combine(sqrt(v), floor): (floor, factor, largest error)."""
    floor, factor = 0.0, 0.0
    smallest = float(np.mean([root[-1] for root in roots]))
    for _ in range(5):  # the floor is a small correction to the factor
        factor = slopes[0] / _inverses(roots, floor, combine)[0]
        p = 2 * factor / slopes[-1]
        floor = max(0.0, p - smallest) if combine is np.add else float(np.sqrt(max(0.0, p**2 - smallest**2)))
    error = np.max(np.abs(slopes / factor / _inverses(roots, floor, combine) - 1))
    return float(floor), float(factor), float(error)


def _inverses(roots: list[np.ndarray], floor: float, combine: Callable[..., Any]) -> np.ndarray:
    return np.sum([1 / combine(np.maximum(root, TINY), floor) for root in roots], axis=0)


def _moments(opt_state: Any) -> list[Any]:
    def is_known(node: Any) -> bool:
        return type(node).__name__ in RULES

    return [node for node in jax.tree.leaves(opt_state, is_leaf=is_known) if is_known(node)]


def _value(node: Any, decay: float) -> Any:
    return RULES[type(node).__name__].value(node, {"b2": decay, "decay": decay}.__getitem__)


def _decay(before: Any, after: Any) -> float | None:
    """What a step with gradient 0 leaves of the moving average; NaN where there is none, None where it stands still."""
    if not hasattr(before, "nu"):
        return float("nan")
    left, right = (np.asarray(node.nu["probe"], np.float64)[0] for node in (before, after))
    decay = right / left if left > 0 else 1.0
    return float(decay) if 0 < decay < 1 else None
