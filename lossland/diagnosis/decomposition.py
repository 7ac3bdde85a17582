"""What a change of the loss is made of: slope, curvature along the step, and what neither explains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lossland.arguments import FLAG, FUNCTION, TREE, expects, optional
from lossland.curvature.operators import hessian


class Change(NamedTuple):
    """L(after) - L(before) = slope + curvature + rest, in units of the loss; each `Float[ndarray, "n"]`, or a float.

    slope: g . d at `before`, d = after - before; positive means uphill. curvature: d . H d / 2 at `before`. rest: what
    is beyond quadratic. `curvature_along` = d . H d / d . d, in units of curvature; `length` = ||d||.
    """

    change: Any
    slope: Any
    curvature: Any
    rest: Any
    curvature_along: Any
    length: Any

    @property
    def dominant(self) -> Any:
        """What a rise is mostly made of: "slope", "curvature" or "rest", the largest positive part; "" for a fall."""
        parts = np.stack([np.asarray(part, np.float64) for part in (self.slope, self.curvature, self.rest)])
        names = np.array(["slope", "curvature", "rest"])[np.argmax(parts, axis=0)]
        words = np.where(np.asarray(self.change) > 0, names, "")
        return words if words.ndim else str(words)


@expects(objective=FUNCTION, before=TREE, after=TREE, batched=optional(FLAG))
def decompose_change(
    objective: Callable[[Any], Any], before: Any, after: Any, *, batched: bool | None = None
) -> Change:
    """Split the change of a loss between two points into slope, curvature and rest, in float64.

    Equation: L(x + d) - L(x) = g . d + d . H d / 2 + rest. A step of gradient descent has slope -|d|^2 / rate, so it
    rises where the curvature along it exceeds 2 / rate, up to the rest.

    Args:
        objective: params -> scalar, of JAX operations; the loss over the full data, or over the batch the step saw.
        before, after: pytrees of floats of one structure, or both with the same extra leading axis n.
        batched: whether they have it; None finds out, which a loss that broadcasts over its parameters cannot tell.

    Returns:
        `Change`, floats for single points.

    Raises:
        ValueError: if the structures or shapes differ, or the objective is not a scalar.
    """
    first, second = jax.tree.structure(before), jax.tree.structure(after)
    if first != second:
        raise ValueError(f"after: expected the structure of before, {first}, got {second}")
    with jax.enable_x64(True):
        start, end = (jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), x) for x in (before, after))
        shapes = [jax.tree.map(jnp.shape, x) for x in (start, end)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"after: expected the shapes of before, {shapes[0]}, got {shapes[1]}")
        many = _is_batched(objective, start) if batched is None else batched
        parts = jax.jit(jax.vmap(_parts(objective)) if many else _parts(objective))(start, end)
        found = [np.asarray(part, np.float64) for part in parts]
    return Change(*(part if many else float(part) for part in found))


def _parts(objective: Callable[[Any], Any]) -> Callable[[Any, Any], tuple[jax.Array, ...]]:
    def split(before: Any, after: Any) -> tuple[jax.Array, ...]:
        step = jax.tree.map(jnp.subtract, after, before)
        gradient, bend = jax.grad(objective)(before), hessian(objective, before)(step)
        slope, curved = _inner(gradient, step), _inner(bend, step)
        change = objective(after) - objective(before)
        square = _inner(step, step)
        along = curved / jnp.where(square > 0, square, 1.0)
        return change, slope, curved / 2, change - slope - curved / 2, along, jnp.sqrt(square)

    return split


def _inner(left: Any, right: Any) -> jax.Array:
    return jnp.asarray(sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (left, right)), strict=True)))


def _is_batched(objective: Callable[[Any], Any], params: Any) -> bool:
    """Whether the points have a leading axis of their own: the objective takes one point to a scalar."""
    try:
        if jax.eval_shape(objective, params).shape == ():
            return False
    except (TypeError, ValueError):
        pass
    leaves = jax.tree.leaves(params)
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
    if len(lengths) == 1 and None not in lengths:
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params)
        if jax.eval_shape(objective, one).shape == ():
            return True
    raise ValueError("objective: expected a function of params to a scalar, of one point or of each of n points")
