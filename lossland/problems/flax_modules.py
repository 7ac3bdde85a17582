"""Pure functions of flax networks, linen and nnx."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.errors import InvalidRngError

TRAINING_FLAGS = {"train": True, "training": True, "deterministic": False, "use_running_average": False}
"""Arguments of a linen module's `__call__` that say whether it trains: name -> its value in training."""


class Network(NamedTuple):
    """A network as pure functions.

    `init(key) -> params`; `init_state(key) -> state`, None if there is nothing besides parameters; `apply(params,
    inputs, state, key, train) -> (outputs, new state)`.
    """

    name: str
    init: Callable[[jax.Array], Any]
    init_state: Callable[[jax.Array], Any] | None
    takes_key: bool
    apply: Callable[..., tuple[Any, Any]]


def network_of(module: Any, example: Any) -> Network:
    """Return the pure functions of a flax network.

    Args:
        module: a `flax.linen.Module`, or a function `rngs -> nnx.Module`.
        example: inputs with a leading example axis of length one, for shapes only.

    Raises:
        ValueError: if it is neither, has no parameters, or cannot be told whether it trains.
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
        return _nnx(module, example)
    raise ValueError(
        f"module: expected a flax.linen.Module or a function rngs -> flax.nnx.Module, got {type(module).__name__}"
    )


def _linen(module: linen.Module, example: Any) -> Network:
    name = type(module).__name__
    parameters = inspect.signature(type(module).__call__).parameters
    flags = {flag: value for flag, value in TRAINING_FLAGS.items() if flag in parameters}

    def mode(train: bool) -> dict[str, Any]:
        return {flag: value == train for flag, value in flags.items()}

    def variables(key: jax.Array) -> Any:
        return module.init(key, example, **mode(False))

    collections = jax.eval_shape(lambda: variables(jax.random.key(0)))
    if "params" not in collections:
        raise ValueError(f"module: {name} has no parameters to train")
    others = sorted(set(collections) - {"params"})
    if others and not flags:
        raise ValueError(
            f"module: {name} keeps state besides its parameters ({', '.join(others)}), and its __call__ has none of "
            f"{', '.join(TRAINING_FLAGS)}, by which training and evaluation could be told apart: add one"
        )

    def init(key: jax.Array) -> Any:
        return variables(key)["params"]

    def init_state(key: jax.Array) -> Any:
        drawn = variables(key)
        return {other: drawn[other] for other in others}

    def apply(params: Any, inputs: Any, state: Any, key: jax.Array | None, train: bool) -> tuple[Any, Any]:
        # A stream that is not there falls back to the one called "params".
        rngs = {"params": key} if key is not None else None
        everything = {"params": params, **(state or {})}
        if others and train:
            return module.apply(everything, inputs, rngs=rngs, mutable=others, **mode(True))
        return module.apply(everything, inputs, rngs=rngs, **mode(train)), state

    def needs_key(train: bool) -> bool:
        def forward() -> Any:
            drawn = dict(variables(jax.random.key(0)))
            return apply(drawn.pop("params"), example, drawn, None, train)

        try:
            jax.eval_shape(forward)
        except InvalidRngError:
            return True
        return False

    if needs_key(False):
        raise ValueError(
            f"module: {name} needs random numbers in evaluation too (dropout); give its __call__ one of "
            f"{', '.join(TRAINING_FLAGS)}, so that evaluation is deterministic"
        )
    return Network(name, init, init_state if others else None, needs_key(True), apply)


def _nnx(construct: Callable[[nnx.Rngs], Any], example: Any) -> Network:
    try:
        abstract = nnx.eval_shape(lambda: construct(nnx.Rngs(0)))
    except TypeError as error:
        raise ValueError(f"module: expected a function rngs -> flax.nnx.Module; calling it gave {error}") from error
    if not isinstance(abstract, nnx.Module):
        raise ValueError("module: expected a function rngs -> flax.nnx.Module, but it returns something else")
    graph, trained, streams, kept = nnx.split(abstract, nnx.Param, nnx.RngState, ...)
    if not jax.tree.leaves(trained):
        raise ValueError(f"module: {type(abstract).__name__} has no parameters to train")

    def init(key: jax.Array) -> Any:
        return nnx.to_pure_dict(nnx.state(construct(nnx.Rngs(key)), nnx.Param))

    def init_state(key: jax.Array) -> Any:
        _, _, _, others = nnx.split(construct(nnx.Rngs(key)), nnx.Param, nnx.RngState, ...)
        return nnx.to_pure_dict(others)

    def filled(template: Any, values: Any) -> Any:
        state = jax.tree.map(lambda leaf: leaf, template)
        nnx.replace_by_pure_dict(state, values)
        return state

    def randomness(key: jax.Array | None) -> Any:
        """Every stream of the network, begun anew from one key."""
        base = jax.random.key(0) if key is None else key
        leaves, structure = jax.tree.flatten(streams)
        fresh = [
            jax.random.fold_in(base, place)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.zeros(leaf.shape, leaf.dtype)  # how many draws a stream has made
            for place, leaf in enumerate(leaves)
        ]
        return jax.tree.unflatten(structure, fresh)

    def apply(params: Any, inputs: Any, state: Any, key: jax.Array | None, train: bool) -> tuple[Any, Any]:
        model = nnx.merge(graph, filled(trained, params), randomness(key), filled(kept, state or {}))
        (model.train if train else model.eval)()
        outputs = model(inputs)
        if not train or not stateful:
            return outputs, state
        _, _, _, after = nnx.split(model, nnx.Param, nnx.RngState, ...)
        return outputs, nnx.to_pure_dict(after)

    stateful = bool(jax.tree.leaves(kept))
    takes_key = bool(jax.tree.leaves(streams))
    return Network(type(abstract).__name__, init, init_state if stateful else None, takes_key, apply)
