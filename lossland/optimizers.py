"""Any optax factory, swept over its own argument names."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lossland.arguments import TRACING_ERRORS

Factory = Callable[..., optax.GradientTransformation]


class Schedule:
    """A schedule whose own arguments can be fixed or swept, given to an `Optimizer` in place of a number.

    Equation: at step t the optimizer sees `factory(**arguments)(t)`.

    Args:
        factory: a function that returns a schedule, such as `optax.exponential_decay`.
        **arguments: values to fix, by the factory's own names.

    Raises:
        ValueError: if `factory` is no callable, or has no argument of a given name (its names are listed).

    >>> import optax
    >>> decay = Schedule(optax.cosine_decay_schedule, decay_steps=100)
    >>> Optimizer(optax.sgd, learning_rate=decay).argument_names[:4]
    ('learning_rate', 'momentum', 'nesterov', 'accumulator_dtype')
    >>> Optimizer(optax.sgd, learning_rate=decay).argument_names[4:7]
    ('init_value', 'decay_steps', 'alpha')
    """

    __slots__ = ("arguments", "factory")
    factory: Callable[..., Any]
    arguments: dict[str, Any]

    def __init__(self, factory: Callable[..., Any], /, **arguments: Any):
        if not callable(factory):
            raise ValueError(
                f"factory: expected a schedule such as optax.exponential_decay, got {type(factory).__name__}"
            )
        self.factory, self.arguments = factory, dict(arguments)
        for name in arguments:
            if name not in _names(factory):
                raise ValueError(
                    f"schedule {_name_of(factory)} has no argument {name!r}; it has {', '.join(_names(factory))}"
                )

    def build(self) -> Callable[[Any], Any]:
        """The schedule: step -> value."""
        return self.factory(**self.arguments)

    def __repr__(self) -> str:
        return _repr_of("Schedule", self.factory, self.arguments)


class Optimizer:
    """An optax factory together with the arguments that are already decided.

    Equation: `params <- params + update(gradient, state, params)`, whatever optax makes of it.

    The arguments still open are what a `Sweep` may name as axes; they reach the factory as traced scalars, so one
    compilation serves every value.

    Args:
        factory: a function that returns an `optax.GradientTransformation`, such as `optax.sgd` or your own chain.
        **arguments: values to fix, by the factory's own names.

    Raises:
        ValueError: if `factory` is no callable, or has no argument of a given name (its names are listed).

    >>> import optax
    >>> Optimizer(optax.sgd, momentum=0.9)
    Optimizer(sgd, momentum=0.9)
    """

    __slots__ = ("arguments", "factory")
    factory: Factory
    arguments: dict[str, Any]

    def __init__(self, factory: Factory, /, **arguments: Any):
        if not callable(factory):
            raise ValueError(
                f"optimizer: expected an optax factory such as optax.sgd, got {type(factory).__name__}; pass the "
                "function itself and name its arguments as sweep axes or in Optimizer(factory, name=value)"
            )
        try:
            inspect.signature(factory)
        except (TypeError, ValueError):
            raise ValueError(
                f"optimizer: expected an optax factory such as optax.sgd, got {factory!r}, whose arguments Python does "
                "not tell; wrap it in a function"
            ) from None
        self.factory = factory
        self.arguments = dict(arguments)
        self._refuse_unknown(arguments)

    @property
    def name(self) -> str:
        """The factory's name."""
        return _name_of(self.factory)

    @property
    def schedules(self) -> dict[str, Schedule]:
        """Arguments that are schedules."""
        return {name: value for name, value in self.arguments.items() if isinstance(value, Schedule)}

    @property
    def argument_names(self) -> tuple[str, ...]:
        """Names that the factory takes, in its own order, then those of its schedules."""
        inner = [name for schedule in self.schedules.values() for name in _names(schedule.factory)]
        return (*_names(self.factory), *inner)

    def _refuse_unknown(self, names: Mapping[str, Any]) -> None:
        parameters = inspect.signature(self.factory).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return
        for name in names:
            if name not in self.argument_names:
                raise ValueError(
                    f"optimizer {self.name} has no argument {name!r}; it has {', '.join(self.argument_names) or 'none'}"
                )

    def missing(self, swept: Mapping[str, Any]) -> tuple[str, ...]:
        """Arguments without a default that are neither fixed nor swept."""
        needed = [(name, self.arguments) for name in _names(self.factory, needed=True)]
        for schedule in self.schedules.values():
            needed += [(name, schedule.arguments) for name in _names(schedule.factory, needed=True)]
        return tuple(name for name, given in needed if name not in given and name not in swept)

    @property
    def numbers(self) -> dict[str, float]:
        """Arguments that are plain numbers, those decided and the factory's defaults of those still open."""
        defaults = {name: one.default for name, one in inspect.signature(self.factory).parameters.items()}
        plain = (bool, int, float, np.bool_, np.integer, np.floating)
        known = (defaults | self.arguments).items()
        return {name: float(value) for name, value in known if isinstance(value, plain)}

    def with_arguments(self, **arguments: Any) -> Optimizer:
        """Return the same optimizer with more of its arguments, or of its schedules', decided."""
        own = set(_names(self.factory))
        decided = {**self.arguments, **{name: value for name, value in arguments.items() if name in own}}
        rest = {name: value for name, value in arguments.items() if name not in own}
        for argument, schedule in self.schedules.items():
            taken = {name: rest.pop(name) for name in _names(schedule.factory) if name in rest}
            if taken:
                decided[argument] = Schedule(schedule.factory, **{**schedule.arguments, **taken})
        return Optimizer(self.factory, **decided, **rest)

    def build(self, **arguments: Any) -> optax.GradientTransformationExtraArgs:
        """Call the factory: the optax transformation at these arguments (scalars, concrete or traced)."""
        if arguments:
            return self.with_arguments(**arguments).build()
        values = {
            name: value.build() if isinstance(value, Schedule) else value for name, value in self.arguments.items()
        }
        return optax.with_extra_args_support(self.factory(**values))

    def init(self, params: Any) -> Any:
        """Initial optimizer state, as optax defines it."""
        return self.build().init(params)

    def update(self, gradient: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        """One optax update: (updates, new state)."""
        return self.build().update(gradient, state, params, **extra)

    def check(self, swept: Mapping[str, Any], params: Any = None) -> None:
        """Refuse, before anything compiles, arguments that cannot be swept.

        Args:
            swept: has the names of the axes as its keys.
            params: parameters, or their shapes, for optimizers that treat some of them apart (masks, labels).

        Raises:
            ValueError: naming the argument that is unknown, missing, fixed twice, or needed by optax as a Python value.
        """
        self._refuse_unknown(swept)
        names = list(self.argument_names)
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"optimizer {self.name}: {', '.join(twice)} is an argument of more than one of it and its schedules; "
                "wrap one of them in a function with another name for it"
            )
        fixed = dict(self.arguments)
        for schedule in self.schedules.values():
            fixed |= schedule.arguments
        for name in swept:
            if name in fixed:
                raise ValueError(
                    f"optimizer {self.name}: {name!r} is both fixed to {fixed[name]!r} and a sweep axis; keep one"
                )
        if missing := self.missing(swept):
            raise ValueError(
                f"optimizer {self.name} needs {', '.join(missing)}: add an axis of that name to the sweep, or fix it "
                f"with Optimizer({self.name}, {missing[0]}=...)"
            )
        params = jax.ShapeDtypeStruct((1,), np.float32) if params is None else params
        if (refusal := self._refusal(params, tuple(swept))) is None:
            return
        if not swept:
            raise ValueError(f"optimizer {self.name}: one update cannot be traced: {refusal}")
        # Together they cannot be traced. Each alone, beside the others' defaults and then beside ordinary numbers (an
        # argument may be looked at only when another is set), so that the message can name the culprit.
        for beside in (self.missing({}), tuple(swept)):
            for name in swept:
                if (error := self._refusal(params, (name,), beside)) is not None:
                    raise ValueError(
                        f"optimizer {self.name}: {name!r} cannot be swept, optax needs it as a Python value "
                        f"({error.splitlines()[0]}); fix it with {self._holder(name)}, {name}=...) and run one sweep "
                        "per value"
                    )
        raise ValueError(
            f"optimizer {self.name}: {', '.join(swept)} cannot be swept together: {self._refusal(params, tuple(swept))}"
        )

    def _holder(self, name: str) -> str:
        """What has an argument of that name: the optimizer, or one of its schedules."""
        for schedule in self.schedules.values():
            if name in _names(schedule.factory):
                return f"Schedule({_name_of(schedule.factory)}"
        return f"Optimizer({self.name}"

    def _refusal(self, params: Any, traced: tuple[str, ...], concrete: tuple[str, ...] = ()) -> str | None:
        """Trace one update with some arguments as tracers and others at 1/2: what went wrong, or None."""
        shapes, structure = jax.tree.flatten(
            jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
        )
        question = (self.factory, tuple(self.arguments.items()), structure, tuple(shapes), traced, concrete)
        try:
            hash(question)
        except TypeError:  # a fixed argument such as an array
            return _what_tracing_refuses.__wrapped__(*question)
        return _what_tracing_refuses(*question)

    def __repr__(self) -> str:
        return _repr_of("Optimizer", self.factory, self.arguments)


@functools.lru_cache(maxsize=64)
def _what_tracing_refuses(
    factory: Callable[..., Any],
    arguments: tuple[tuple[str, Any], ...],
    structure: Any,
    shapes: tuple[jax.ShapeDtypeStruct, ...],
    traced: tuple[str, ...],
    concrete: tuple[str, ...],
) -> str | None:
    """See `Optimizer._refusal`; kept, as a second sweep asks the same."""
    optimizer = Optimizer(factory, **dict(arguments))
    numbers = {name: 0.5 for name in concrete if name not in traced}

    def loss(params: Any) -> jax.Array:
        return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(params)), jnp.zeros(()))

    def update(params: Any, values: dict[str, jax.Array]) -> Any:
        transformation = optimizer.build(**values, **numbers)
        state = transformation.init(params)
        updates, after = transformation.update(params, state, params, value=jnp.ones(()), grad=params, value_fn=loss)
        pairs = (("updates like the parameters", params, updates), ("a state like init's", state, after))
        for what, before, given in pairs:
            if _form(before) != _form(given):
                raise _MisfitError(
                    f"optimizer {optimizer.name}: expected update to return {what}, {_form(before)}, got {_form(given)}"
                )
        return updates

    params = jax.tree.unflatten(structure, shapes)
    try:
        jax.eval_shape(update, params, {name: jax.ShapeDtypeStruct((), np.float32) for name in traced})
    except _MisfitError:
        raise
    except TRACING_ERRORS as error:  # JAX's complaints about tracers are TypeErrors
        return str(error) or type(error).__name__
    return None


class _MisfitError(ValueError):
    """Update or state of an optimizer do not have the form of what they follow."""


def _form(tree: Any) -> str:
    """Structure and shapes of a pytree in words."""
    return str(jax.tree.map(jnp.shape, tree))


def _names(factory: Callable[..., Any], needed: bool = False) -> tuple[str, ...]:
    """Names of a function's arguments; of those without a default only, if `needed`."""
    parameters = inspect.signature(factory).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(p.name for p in parameters if p.kind in kinds and (p.default is p.empty or not needed))


def _name_of(factory: Any) -> str:
    while hasattr(factory, "func"):
        factory = factory.func
    return getattr(factory, "__name__", type(factory).__name__)


def _repr_of(kind: str, factory: Any, arguments: Mapping[str, Any]) -> str:
    return f"{kind}({', '.join([_name_of(factory), *(f'{k}={v!r}' for k, v in arguments.items())])})"


def as_optimizer(optimizer: Any) -> Optimizer:
    """Accept an `Optimizer`, an optax factory, or an optax transformation already built (nothing left to sweep).

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    if isinstance(optimizer, optax.GradientTransformation):

        def built() -> optax.GradientTransformation:
            return optimizer

        return Optimizer(built)
    return Optimizer(optimizer)
