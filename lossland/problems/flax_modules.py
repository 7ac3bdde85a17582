"""Pure `init` and `apply` functions of flax networks, linen and nnx."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import linen, nnx
from flax.errors import InvalidRngError

Network = tuple[str, Callable[[jax.Array], Any], Callable[[Any, Any], Any]]


def network_of(module: Any, example: Any) -> Network:
    """Return the name, `init(key) -> params` and `apply(params, inputs) -> outputs` of a flax network.

    Args:
        module: a `flax.linen.Module`, or a function `rngs -> nnx.Module`.
        example: inputs with a leading example axis of length one, for shapes only.

    Raises:
        ValueError: if it is neither, keeps state besides parameters, or needs random numbers when applied.
    """
    if isinstance(module, linen.Module):
        return _linen(module, example)
    if isinstance(module, nnx.Module):
        raise ValueError(
            f"module: got a finished nnx module ({type(module).__name__}), whose weights are already drawn; pass the "
            f"function that makes one, lambda rngs: {type(module).__name__}(..., rngs=rngs)"
        )
    if isinstance(module, type) and issubclass(module, linen.Module):
        raise ValueError(f"module: got the class {module.__name__}; pass an instance, {module.__name__}(...)")
    if callable(module):
        return _nnx(module)
    raise ValueError(
        f"module: expected a flax.linen.Module or a function rngs -> flax.nnx.Module, got {type(module).__name__}"
    )


def _linen(module: linen.Module, example: Any) -> Network:
    def init(key: jax.Array) -> Any:
        return module.init(key, example)["params"]

    def apply(params: Any, inputs: Any) -> Any:
        return module.apply({"params": params}, inputs)

    collections = jax.eval_shape(lambda: module.init(jax.random.key(0), example))
    if others := sorted(set(collections) - {"params"}):
        raise ValueError(
            f"module: {type(module).__name__} keeps state besides its parameters ({', '.join(others)}); full-batch "
            "training of batch statistics is not supported: remove the layer or use its parameters only"
        )
    if "params" not in collections:
        raise ValueError(f"module: {type(module).__name__} has no parameters to train")
    try:
        jax.eval_shape(lambda: module.apply(module.init(jax.random.key(0), example), example))
    except InvalidRngError as error:
        raise ValueError(
            f"module: {type(module).__name__} needs random numbers when applied (dropout); make it deterministic, "
            "full-batch training has no key stream for it"
        ) from error
    return type(module).__name__, init, apply


def _nnx(construct: Callable[[nnx.Rngs], Any]) -> Network:
    try:
        abstract = nnx.eval_shape(lambda: construct(nnx.Rngs(0)))
    except TypeError as error:
        raise ValueError(f"module: expected a function rngs -> flax.nnx.Module; calling it gave {error}") from error
    if not isinstance(abstract, nnx.Module):
        raise ValueError("module: expected a function rngs -> flax.nnx.Module, but it returns something else")
    graph, _, others = nnx.split(abstract, nnx.Param, ...)
    variables = jax.tree.leaves(others, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    if kinds := sorted({type(variable).__name__ for variable in variables}):
        raise ValueError(
            f"module: the nnx network keeps state besides its parameters ({', '.join(kinds)}: batch statistics or "
            "dropout); remove the layer or make it deterministic"
        )

    def init(key: jax.Array) -> Any:
        return nnx.to_pure_dict(nnx.state(construct(nnx.Rngs(key)), nnx.Param))

    def apply(params: Any, inputs: Any) -> Any:
        state = nnx.state(abstract, nnx.Param)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)(inputs)

    return type(abstract).__name__, init, apply
