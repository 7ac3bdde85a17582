"""Any optax factory, swept over its own argument names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

Factory = Callable[..., optax.GradientTransformation]


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
        self.factory = factory
        self.arguments = dict(arguments)
        self._refuse_unknown(arguments)

    @property
    def name(self) -> str:
        """The factory's name."""
        factory: Any = self.factory
        while hasattr(factory, "func"):
            factory = factory.func
        return getattr(factory, "__name__", type(factory).__name__)

    @property
    def argument_names(self) -> tuple[str, ...]:
        """Names that the factory takes, in its own order."""
        parameters = inspect.signature(self.factory).parameters.values()
        return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))

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
        parameters = inspect.signature(self.factory).parameters.values()
        return tuple(
            p.name
            for p in parameters
            if p.default is p.empty
            and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            and p.name not in self.arguments
            and p.name not in swept
        )

    def with_arguments(self, **arguments: Any) -> Optimizer:
        """Return the same optimizer with more of its arguments decided."""
        return Optimizer(self.factory, **{**self.arguments, **arguments})

    def build(self, **arguments: Any) -> optax.GradientTransformationExtraArgs:
        """Call the factory: the optax transformation at these arguments (scalars, concrete or traced)."""
        return optax.with_extra_args_support(self.factory(**{**self.arguments, **arguments}))

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
        for name in swept:
            if name in self.arguments:
                raise ValueError(
                    f"optimizer {self.name}: {name!r} is both fixed to {self.arguments[name]!r} and a sweep axis; "
                    "keep one"
                )
        if missing := self.missing(swept):
            raise ValueError(
                f"optimizer {self.name} needs {', '.join(missing)}: add an axis of that name to the sweep, or fix it "
                f"with Optimizer({self.name}, {missing[0]}=...)"
            )
        params = jax.ShapeDtypeStruct((1,), np.float32) if params is None else params
        if not swept or self._refusal(params, tuple(swept)) is None:
            return
        # Together they cannot be traced. Each alone, beside the others' defaults and then beside ordinary numbers (an
        # argument may be looked at only when another is set), so that the message can name the culprit.
        for beside in (self.missing({}), tuple(swept)):
            for name in swept:
                if (error := self._refusal(params, (name,), beside)) is not None:
                    raise ValueError(
                        f"optimizer {self.name}: {name!r} cannot be swept, optax needs it as a Python value "
                        f"({error.splitlines()[0]}); fix it with Optimizer({self.name}, {name}=...) and run one sweep "
                        "per value"
                    )
        raise ValueError(
            f"optimizer {self.name}: {', '.join(swept)} cannot be swept together: {self._refusal(params, tuple(swept))}"
        )

    def _refusal(self, params: Any, traced: tuple[str, ...], concrete: tuple[str, ...] = ()) -> str | None:
        """Trace one update with some arguments as tracers and others at 1/2: what went wrong, or None."""
        numbers = {name: 0.5 for name in concrete if name not in traced}

        def loss(params: Any) -> jax.Array:
            return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(params)), jnp.zeros(()))

        def update(params: Any, values: dict[str, jax.Array]) -> Any:
            transformation = self.build(**values, **numbers)
            return transformation.update(
                params, transformation.init(params), params, value=jnp.ones(()), grad=params, value_fn=loss
            )

        try:
            jax.eval_shape(update, params, {name: jax.ShapeDtypeStruct((), np.float32) for name in traced})
        except (TypeError, ValueError, AttributeError) as error:  # JAX's complaints about tracers are TypeErrors
            return str(error) or type(error).__name__
        return None

    def __repr__(self) -> str:
        return f"Optimizer({', '.join([self.name, *(f'{k}={v!r}' for k, v in self.arguments.items())])})"


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
