"""A loss landscape with its data and its distribution of starting points."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from lossland.arguments import TEXT, TRACING_ERRORS, calling, check

Params = Any
Batch = Any

REQUESTS = ("key", "train", "state")
"""Keyword-only arguments of a loss that the engine fills in."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What is trained: `init(key) -> params`, `loss(params, batch) -> scalar`, and data with a leading example axis.

    Equation: `objective(params) = loss(params, data)`, the loss over the full data.

    Keyword-only arguments of `init` and `loss` (each with a default) are the problem's own hyperparameters: a `Sweep`
    may name them as axes, as in `init(key, *, scale=1.0)`. Three names of `loss` are not axes but requests: `key` (a
    JAX key for random layers, None in evaluation), `train` (True in a training step, False in evaluation), `state`
    (what the network keeps besides its parameters; such a loss returns `(scalar, new state)`).

    Args:
        init: draws a starting point from a JAX key; any pytree of floating-point arrays.
        loss: scalar loss of `params` on a batch with the structure of `data`.
        data: pytree of arrays that share the length of their first axis, one entry per example.
        name: what figures and records call the problem.
        normalisation: how `loss` depends on the number of examples, `"mean"` or `"sum"` over them. Sharpness is
            proportional to it, and published values differ by this factor.
        description: one sentence for humans.
        init_state: draws the initial `state` from a JAX key, for a loss that takes one (batch statistics).

    Raises:
        ValueError: before anything compiles, naming what is wrong: leading axes that differ, non-finite data, a loss
            that is not a scalar, parameters that are not floating point, an argument without a default.
    """

    init: Callable[..., Params]
    loss: Callable[..., jax.Array]
    data: Batch
    name: str = "problem"
    normalisation: Literal["mean", "sum"] = "mean"
    description: str = ""
    init_state: Callable[..., Any] | None = field(default=None, kw_only=True)
    _state: Any = field(default=None, repr=False, kw_only=True)
    _checked: bool = field(default=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        if self._checked:
            return
        check("name", self.name, TEXT)
        check("description", self.description, TEXT)
        object.__setattr__(self, "data", _checked_data(self.data))
        if self.normalisation not in ("mean", "sum"):
            raise ValueError(f"normalisation: expected 'mean' or 'sum' over examples, got {self.normalisation!r}")
        _check_functions(self)
        object.__setattr__(self, "_checked", True)

    @property
    def num_examples(self) -> int:
        """Length of the leading axis of the data."""
        return jax.tree.leaves(self.data)[0].shape[0]

    @functools.cached_property
    def param_shapes(self) -> Any:
        """Shapes and dtypes of the parameters that `init` draws."""
        return jax.eval_shape(self.init, jax.eval_shape(lambda: jax.random.key(0)))

    @property
    def arguments(self) -> dict[str, Any]:
        """The problem's own hyperparameters, the keyword-only arguments of `init` and `loss`, and their defaults."""
        return {**_keyword_only(self.init), **_keyword_only(self.loss)}

    @property
    def takes_key(self) -> bool:
        """Whether training needs random numbers (dropout)."""
        return "key" in _requests(self.loss)

    def with_arguments(self, **arguments: Any) -> Problem:
        """Return the same problem with some of its hyperparameters decided (concrete or traced).

        Raises:
            ValueError: if the problem has no hyperparameter of a given name; those it has are listed.
        """
        for name in arguments:
            if name not in self.arguments:
                raise ValueError(
                    f"problem {self.name} has no argument {name!r}; it has {', '.join(self.arguments) or 'none'}"
                )

        def bound(function: Callable[..., Any]) -> Callable[..., Any]:
            mine = {name: value for name, value in arguments.items() if name in _keyword_only(function)}
            return functools.partial(function, **mine) if mine else function

        return replace(self, init=bound(self.init), loss=bound(self.loss))

    def with_data(self, data: Batch) -> Problem:
        """Return the same problem over other data of the same structure (not checked again: it may be traced)."""
        return replace(self, data=data)

    def with_state(self, state: Any) -> Problem:
        """Return the same problem with the network's state, for a loss that takes one; `objective` then uses it."""
        return self if self.init_state is None else replace(self, _state=state)

    def objective(self, params: Params) -> jax.Array:
        """Full-batch training loss, a scalar, in the precision of `params`, in evaluation mode."""
        return self._evaluate(params, cast_floating(self.data, jnp.result_type(*jax.tree.leaves(params))))

    def _evaluate(self, params: Params, batch: Batch) -> jax.Array:
        if self.init_state is None:
            return self.loss(params, batch)  # requests have their evaluation values as defaults
        state = self.init_state(jax.random.key(0)) if self._state is None else self._state
        return self.loss(params, batch, state=state)[0]

    def training_loss(self, params: Params, batch: Batch, key: jax.Array | None, state: Any) -> tuple[jax.Array, Any]:
        """Loss of a batch in training mode, and the network's state after it (() if it keeps none)."""
        offered = {"key": key, "train": True, "state": state}
        wanted = {name: offered[name] for name in _requests(self.loss)}
        value: Any = self.loss(params, batch, **wanted)
        return (value, ()) if self.init_state is None else value

    def fingerprint(self) -> str:
        """Hash of what is trained: the data's bytes and the traced programs of `init`, `loss` and the loss's gradient.

        Programs are traced twice, with hyperparameters at their defaults and with all of them open, so that `x * scale`
        and `x * scale**2` differ although both defaults are 1. Single precision, whatever JAX's ambient configuration.
        """
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.data):
            digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
        digest.update(self._programs)
        return digest.hexdigest()[:16]

    @functools.cached_property
    def _programs(self) -> bytes:
        """Hash of the traced programs alone: those cannot change, data in place can."""
        digest = hashlib.sha256()
        with jax.enable_x64(False), jax.default_matmul_precision("highest"):
            key = jax.eval_shape(lambda: jax.random.key(0))
            params = jax.eval_shape(self.init, key)
            batch = jax.tree.map(_shape_of, self.data)
            # A rule of differentiation written by hand shows in the gradient's program only.
            evaluation = jax.value_and_grad(self._evaluate)
            for function, inputs in ((self.init, (key,)), (evaluation, (params, batch))):
                digest_program(digest, jax.make_jaxpr(function)(*inputs))
            if _requests(self.loss):
                state = jax.eval_shape(self.init_state, key) if self.init_state else ()
                training = jax.value_and_grad(self.training_loss, has_aux=True)
                digest_program(digest, jax.make_jaxpr(training)(params, batch, key, state))

            def objective(params: Params, batch: Batch, **arguments: Any) -> jax.Array:
                return self.with_arguments(**arguments)._evaluate(params, batch)

            for function, opened, inputs in (
                (self.init, self.init, (key,)),
                (self.loss, objective, (params, batch)),
            ):
                number = jax.ShapeDtypeStruct((), np.float32)
                if open_arguments := {
                    name: number
                    for name, default in _keyword_only(function).items()
                    if default is None or isinstance(default, (int, float))
                }:
                    digest.update(repr(sorted(open_arguments)).encode())
                    digest.update(_digest_of_open_program(opened, inputs, open_arguments))
        return digest.digest()

    @classmethod
    def from_flax(
        cls,
        module: Any,
        loss: Callable[[jax.Array, Any], jax.Array],
        data: tuple[Any, Any],
        *,
        name: str | None = None,
        normalisation: Literal["mean", "sum"] = "mean",
        description: str = "",
    ) -> Problem:
        """Build a problem from a flax network.

        Equation: `loss(params, (x, y)) = mean over examples of loss(module(x), y)`.

        Args:
            module: a `flax.linen.Module`, or for `flax.nnx` a function `rngs -> nnx.Module` that constructs one
                (every seed needs its own weights, so a finished nnx module is refused).
            loss: `(outputs, targets) -> scalar`; a vector with one entry per example, as optax's losses return, is
                averaged (or summed, by `normalisation`).
            data: `(inputs, targets)`, arrays or pytrees with a leading example axis.

        Raises:
            ValueError: if `data` is not such a pair, or if the network keeps state (batch statistics) or needs random
                numbers (dropout) and cannot be told whether it trains.
        """
        from lossland.problems.flax_modules import network_of

        if not (isinstance(data, tuple) and len(data) == 2):
            raise ValueError(f"data: from_flax expects a pair (inputs, targets), got {type(data).__name__}")
        data = _checked_data(data)
        network = network_of(module, jax.tree.map(lambda leaf: leaf[:1], data[0]))

        def forward(params: Params, batch: tuple[Any, Any], key: Any, train: bool, state: Any) -> tuple[Any, Any]:
            inputs, targets = batch
            outputs, after = network.apply(params, inputs, state, key, train)
            value = loss(outputs, targets)
            if value.ndim == 1 and value.shape[0] == jax.tree.leaves(targets)[0].shape[0]:
                value = jnp.mean(value) if normalisation == "mean" else jnp.sum(value)
            return value, after

        def plain(params: Params, batch: Batch) -> jax.Array:
            return forward(params, batch, None, True, None)[0]

        def random(params: Params, batch: Batch, *, key: Any = None, train: bool = False) -> jax.Array:
            return forward(params, batch, key, train, None)[0]

        def stateful(params: Params, batch: Batch, *, train: bool = False, state: Any = None) -> tuple[jax.Array, Any]:
            return forward(params, batch, None, train, state)

        def both(
            params: Params, batch: Batch, *, key: Any = None, train: bool = False, state: Any = None
        ) -> tuple[jax.Array, Any]:
            return forward(params, batch, key, train, state)

        kinds = {(False, False): plain, (True, False): random, (False, True): stateful, (True, True): both}
        return cls(
            network.init,
            kinds[network.takes_key, network.init_state is not None],
            data,
            name=name or network.name,
            normalisation=normalisation,
            description=description,
            init_state=network.init_state,
        )


def cast_floating(tree: Any, dtype: Any) -> Any:
    """Cast the floating-point leaves of a pytree, leaving integers and booleans alone."""

    def cast(leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.asarray(leaf, dtype)
        return jnp.asarray(leaf)

    return jax.tree.map(cast, tree)


def _keyword_only(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return {}
    bound = function.keywords if isinstance(function, functools.partial) else {}
    names = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in bound}
    return {name: default for name, default in names.items() if name not in REQUESTS}


def _requests(loss: Callable[..., Any]) -> tuple[str, ...]:
    """Which of `key`, `train`, `state` a loss takes."""
    try:
        parameters = inspect.signature(loss).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in REQUESTS)


def digest_program(digest: Any, program: ClosedJaxpr) -> None:
    """Add a traced program to a hash: its text, and the bytes of every array that it has closed over."""
    # Printed programs carry the memory addresses of helper functions, which differ between processes.
    digest.update(re.sub(r"0x[0-9a-f]+", "", str(program)).encode())
    for constant in _constants(program):
        array = np.asarray(constant)
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())


def _digest_of_open_program(function: Callable[..., Any], inputs: tuple[Any, ...], arguments: dict[str, Any]) -> bytes:
    digest = hashlib.sha256()

    def opened(inputs: tuple[Any, ...], arguments: dict[str, Any]) -> Any:
        return function(*inputs, **arguments)

    try:
        digest_program(digest, jax.make_jaxpr(opened)(inputs, arguments))
    except (TypeError, ValueError) as error:  # an argument that is needed as a Python value, hence cannot be swept
        digest.update(type(error).__name__.encode())
    return digest.digest()


def _constants(program: Any) -> Iterator[Any]:
    """Arrays that a traced program has closed over, those of its inner programs (`jit`, `scan`, rules) included."""
    if isinstance(program, (ClosedJaxpr, Jaxpr)):  # one and the same type in newer versions of JAX
        yield from getattr(program, "consts", ())
        for equation in getattr(program, "jaxpr", program).eqns:
            literals = [getattr(variable, "val", None) for variable in equation.invars]
            yield from (value for value in literals if getattr(value, "shape", ()))
            yield from _constants(list(equation.params.values()))
    elif isinstance(program, (list, tuple)):
        for part in program:
            yield from _constants(part)


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    dtype = np.float32 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
    return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(dtype))


def _checked_data(data: Batch) -> Batch:
    leaves = jax.tree_util.tree_leaves_with_path(data)
    if not leaves:
        raise ValueError("data: expected a pytree of arrays with a leading example axis, got no arrays at all")
    first_name, first_length = "", -1
    for path, leaf in leaves:
        name = "data" + jax.tree_util.keystr(path)
        with calling(name, "an array of real numbers"):
            array = np.asarray(leaf)
        if array.dtype.kind not in "fiub" and not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name}: expected real numbers, got dtype {array.dtype}")
        if array.ndim == 0 or array.shape[0] == 0:
            raise ValueError(
                f"{name}: expected a leading axis with one entry per example, got shape {array.shape}; a single "
                "example has shape (1, ...), and a list of numbers has to become an array"
            )
        if first_length < 0:
            first_name, first_length = name, array.shape[0]
        if array.shape[0] != first_length:
            raise ValueError(
                f"{name}: leading axis has {array.shape[0]} examples where {first_name} has {first_length}; every "
                "array of the data needs one entry per example"
            )
        if array.dtype.kind not in "iub" and not np.isfinite(array.astype(np.float64)).all():
            bad = np.argwhere(~np.isfinite(array.astype(np.float64)))
            raise ValueError(
                f"{name}: {len(bad)} of {array.size} values are not finite, the first at index "
                f"{tuple(int(i) for i in bad[0])}; remove or impute them"
            )
    return jax.tree.map(np.asarray, data)


def _check_functions(problem: Problem) -> None:
    for name, function in (("init", problem.init), ("loss", problem.loss)):
        if not callable(function):
            raise ValueError(f"{name}: expected a function, got {type(function).__name__}")
        for argument, default in _keyword_only(function).items():
            if default is inspect.Parameter.empty:
                raise ValueError(f"{name}: keyword-only argument {argument!r} needs a default value")
        for argument in _requests(function):
            default = inspect.signature(function).parameters[argument].default
            if default is not (False if argument == "train" else None):
                raise ValueError(
                    f"{name}: {argument!r} is filled in by the engine in training; its default, for evaluation, must "
                    f"be {'False' if argument == 'train' else 'None'}, got {default!r}"
                )
    takes_state = "state" in _requests(problem.loss)
    if takes_state != (problem.init_state is not None):
        raise ValueError(
            "init_state: the loss takes `state`, so it needs init_state=function of one JAX key that draws it"
            if takes_state
            else "loss: init_state was given, so it must take a keyword-only `state` and return (scalar, new state)"
        )
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        params = jax.eval_shape(problem.init, key)
    except TRACING_ERRORS as error:
        raise ValueError(
            "init: expected a function of one JAX key that returns parameters; calling it gave "
            f"{type(error).__name__}: {error}"
        ) from error
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("init: expected a pytree of floating-point arrays, got no arrays at all")
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"init: params{jax.tree_util.keystr(path)} has dtype {leaf.dtype}, expected floating point; only "
                "real-valued parameters can be trained (move constants into the loss or the data)"
            )
    batch = jax.tree.map(_shape_of, problem.data)
    returned = []

    def evaluated(params: Any, batch: Any) -> Any:
        returned.append(problem._evaluate(params, batch))
        return returned[-1]

    try:
        value = jax.eval_shape(evaluated, params, batch)
        state = jax.eval_shape(problem.init_state, key) if problem.init_state else ()
        _, after = jax.eval_shape(problem.training_loss, params, batch, key, state)
    except TRACING_ERRORS as error:
        raise ValueError(
            "loss: expected a function (params, batch) -> scalar; tracing it on init's parameters and the data gave "
            f"{type(error).__name__}: {error}"
        ) from error
    if jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) != jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    ):
        raise ValueError("loss: the new state must have the structure, shapes and dtypes of what init_state draws")
    shape = getattr(value, "shape", None)
    if shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        got = f"shape {shape} and dtype {value.dtype}" if shape is not None else type(value).__name__
        raise ValueError(f"loss: expected a floating-point scalar, got {got}; take the mean over examples")
    if not isinstance(returned[-1], jax.Array):
        raise ValueError(
            f"loss: expected a scalar that JAX computes from the parameters, got the plain number {returned[-1]}"
        )
