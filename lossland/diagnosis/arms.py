"""Continue saved states with one thing changed: any optax optimizer, its step scaled, held, clipped, v frozen."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from lossland.curvature.operators import primitives
from lossland.optimizers import Optimizer, as_optimizer
from lossland.problems.problem import Batch, Params, Problem

ADDED = {"factor": 1.0, "held": 0.0, "forked_at": 0.0, "max_norm": np.inf, "freeze": 0.0, "forget": 0.0}
"""Arguments that an adjusted optimizer has besides its own, with what changes nothing."""
CENTRAL = {np.dtype("float64"): 6e-6, np.dtype("float32"): 5e-3}
"""Step of a central difference: the cube root of the rounding unit."""
MOST_PARAMETERS = 4096
"""Above it, a gradient by differences of every parameter costs more than it tells."""


class AdjustedState(NamedTuple):
    """State of the optimizer itself, and steps since the fork."""

    inner: Any
    count: jax.Array


@functools.lru_cache(maxsize=64)  # one object per factory, so that a second fork compiles nothing
def adjusted(factory: Callable[..., Any]) -> Callable[..., optax.GradientTransformation]:
    """Return a factory with the arguments of `factory` and of `ADDED`.

    Equation: gradient g min(1, max_norm / |g|) into the optimizer; its update times `factor`, and with held = 1 times
    rate(forked_at) / rate(now) where the learning rate is a schedule; with freeze = 1 the second moment `nu` of its
    state stays as it was; with forget = 1 the sum of gradients `trace` in its state is 0 before every step.
    """

    def make(**arguments: Any) -> optax.GradientTransformationExtraArgs:
        factor, held, forked_at, max_norm, freeze, forget = (
            arguments.pop(name, usual) for name, usual in ADDED.items()
        )
        inner = optax.with_extra_args_support(factory(**arguments))
        rate: Any = arguments.get("learning_rate")

        def init(params: Any) -> AdjustedState:
            return AdjustedState(inner.init(params), jnp.zeros((), jnp.int32))

        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, AdjustedState]:
            norm = optax.global_norm(updates)
            # 0 x infinity must not reach the update of a run that is not clipped.
            scale = jnp.where(norm > max_norm, max_norm / jnp.where(norm > 0, norm, 1), 1.0)
            begun = jax.tree.map(functools.partial(_forgotten, forget), state.inner, is_leaf=has_trace)
            steps, after = inner.update(jax.tree.map(lambda g: g * scale, updates), begun, params, **extra)
            size = factor
            if callable(rate):
                now, then = jnp.asarray(rate(forked_at + state.count)), jnp.asarray(rate(jnp.asarray(forked_at)))
                size = size * jnp.where(held > 0, then / jnp.where(now != 0, now, 1), 1.0)
            kept = jax.tree.map(functools.partial(_frozen, freeze), after, state.inner, is_leaf=_has_second_moment)
            return jax.tree.map(lambda step: step * size, steps), AdjustedState(kept, state.count + 1)

        return optax.GradientTransformationExtraArgs(init, update)

    own = [p.replace(kind=p.KEYWORD_ONLY) for p in inspect.signature(factory).parameters.values()]
    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=usual) for name, usual in ADDED.items()]
    make.__signature__ = inspect.Signature([*own, *more])  # pyright: ignore[reportFunctionMemberAccess]
    make.__name__ = f"adjusted_{getattr(factory, '__name__', 'optimizer')}"
    return make


def adjustable(optimizer: Any) -> Optimizer:
    """Return an optimizer with the arguments of `ADDED` besides its own."""
    given = as_optimizer(optimizer)
    return Optimizer(adjusted(given.factory), **given.arguments)


def adopt(opt_state: Any, arguments: Any) -> AdjustedState:
    """Begin an adjusted optimizer where the optimizer itself stood."""
    return AdjustedState(opt_state, jnp.zeros((), jnp.int32))


def _has_second_moment(node: Any) -> bool:
    return hasattr(node, "nu") and hasattr(node, "_replace")


def has_trace(node: Any) -> bool:
    """Whether a part of an optimizer's state is the decaying sum of gradients of a heavy ball."""
    return hasattr(node, "trace") and hasattr(node, "_replace")


def _forgotten(forget: Any, node: Any) -> Any:
    if not has_trace(node):
        return node
    return node._replace(trace=jax.tree.map(lambda leaf: jnp.where(forget > 0, jnp.zeros_like(leaf), leaf), node.trace))


def _frozen(freeze: Any, after: Any, before: Any) -> Any:
    if not _has_second_moment(after):
        return after
    return after._replace(nu=jax.tree.map(lambda new, old: jnp.where(freeze > 0, old, new), after.nu, before.nu))


@functools.lru_cache(maxsize=64)
def evaluated(problem: Problem) -> Problem:
    """Return the problem in evaluation mode, without random layers, which a fork can continue.

    Raises:
        ValueError: for a problem with a state of its own (batch statistics).
    """
    if problem.init_state is not None:
        raise ValueError(f"problem: {problem.name} keeps a state; replays continue problems without one")
    if not problem.takes_key and "train" not in inspect.signature(problem.loss).parameters:
        return problem

    def loss(params: Params, batch: Batch) -> jax.Array:
        return problem.loss(params, batch)

    return replace(problem, loss=loss)


@functools.lru_cache(maxsize=16)
def differentiated_numerically(problem: Problem) -> Problem:
    """Return the problem with gradients by central differences in every parameter, whatever its own rule says.

    Equation: dL / dp_i = (L(p + h e_i) - L(p - h e_i)) / 2 h.

    Raises:
        ValueError: beyond `MOST_PARAMETERS`.
    """
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(problem.param_shapes))
    if count > MOST_PARAMETERS:
        raise ValueError(f"problem: {problem.name} has {count} parameters, more than {MOST_PARAMETERS}")

    @jax.custom_vjp
    def value(params: Params, batch: Batch) -> jax.Array:
        return problem.loss(params, batch)

    def forward(params: Params, batch: Batch) -> tuple[jax.Array, tuple[Params, Batch]]:
        return problem.loss(params, batch), (params, batch)

    def backward(kept: tuple[Params, Batch], cotangent: jax.Array) -> tuple[Params, Any]:
        params, batch = kept
        flat, unravel = ravel_pytree(params)
        step = CENTRAL[np.dtype(flat.dtype)]

        def slope(index: jax.Array) -> jax.Array:
            shift = jnp.zeros_like(flat).at[index].set(step)
            return (problem.loss(unravel(flat + shift), batch) - problem.loss(unravel(flat - shift), batch)) / (
                2 * step
            )

        gradient = jax.lax.map(slope, jnp.arange(flat.size))
        blank = jax.tree.map(_no_cotangent, batch)
        return unravel(cotangent * gradient), blank

    value.defvjp(forward, backward)
    return replace(problem, loss=lambda params, batch: value(params, batch))


def _no_cotangent(leaf: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)


@functools.lru_cache(maxsize=64)
def is_recurrent(problem: Problem) -> bool:
    """Whether the loss runs a loop that carries a state along its data: a `scan` or `while` in its traced program."""
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), np.asarray(leaf).dtype), problem.data)
    with jax.enable_x64(False):
        program = jax.make_jaxpr(evaluated(problem).loss)(problem.param_shapes, batch)
    return any(name in ("scan", "while") for name in primitives(program.jaxpr))
