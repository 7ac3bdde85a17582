"""The diagonal preconditioner P of an adaptive optimizer, read from the second moment in its optax state."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree

from lossland.optimizers import Optimizer
from lossland.sweeps.probes import State


class SecondMoment(NamedTuple):
    """What scales an update, coordinate by coordinate: pytrees like the parameters.

    What `adaptive_probes`, `monitor` and `second_moment_share` want of an optimizer that lossland does not know.

    value: v, the second moment as it stands under the root, bias correction (AMSGrad: maximum) included, in
    gradient^2; preconditioner: P, in units of the gradient, e.g. sqrt(v) + eps; floor: P where v = 0, a scalar:
    sqrt(eps_root) + eps for Adam, sqrt(eps) where eps stands under the root.

    >>> import jax, jax.numpy as jnp, optax
    >>> def moment_of_belief(opt_state):  # of optax.adabelief at its defaults, after the step's gradient
    ...     belief = opt_state[0]
    ...     v = jax.tree.map(lambda nu: nu / (1 - 0.999**belief.count), belief.nu)
    ...     return SecondMoment(v, jax.tree.map(lambda leaf: jnp.sqrt(leaf) + 1e-16, v), 1e-16)
    """

    value: Any
    preconditioner: Any
    floor: Any


FindSecondMoment = Callable[[Any], SecondMoment]
"""Optimizer state, already advanced by the step's gradient -> its second moment; for states that lossland does not
know."""


SIZES = (1.0, 1e-2, 1e-5, 1e-8)
"""Gradients on which a rule is checked."""


class Rule(NamedTuple):
    """How an optax state holds v, and how P follows from it; both get the optimizer's arguments by name."""

    value: Callable[[Any, Callable[[str], Any]], Any]
    root: Callable[[Any, Callable[[str], Any]], Any]


def _adam(moments: Any, get: Callable[[str], Any]) -> Any:
    correction = 1 - get("b2") ** moments.count
    return jax.tree.map(lambda nu: nu / correction, moments.nu)


def _rms(moments: Any, get: Callable[[str], Any]) -> Any:
    correction = 1 - get("decay") ** moments.count if "count" in moments._fields else 1.0
    mean = moments.mu if "mu" in moments._fields else jax.tree.map(jnp.zeros_like, moments.nu)
    return jax.tree.map(lambda nu, mu: nu / correction - (mu / correction) ** 2, moments.nu, mean)


def _root_of_adam(value: Any, get: Callable[[str], Any]) -> Any:
    return jnp.sqrt(value + get("eps_root")) + get("eps")


def _root_of_rms(value: Any, get: Callable[[str], Any]) -> Any:
    return jnp.sqrt(value + get("eps")) if get("eps_in_sqrt") else jnp.sqrt(value) + get("eps")


def _root_of_adagrad(value: Any, get: Callable[[str], Any]) -> Any:
    return jnp.sqrt(value + get("eps"))


ADAM = Rule(_adam, _root_of_adam)
RMS = Rule(_rms, _root_of_rms)
RULES: dict[str, Rule] = {
    "ScaleByAdamState": ADAM,
    "ScaleByAmsgradState": Rule(lambda moments, get: moments.nu_max, _root_of_adam),
    "ScaleByRmsState": RMS,
    "ScaleByRmsWithCountState": RMS,
    "ScaleByRStdDevState": RMS,
    "ScaleByRStdDevWithCountState": RMS,
    "ScaleByAdemamixState": ADAM,
    "ScaleByRssState": Rule(lambda moments, get: moments.sum_of_squares, _root_of_adagrad),
}
"""Name of the optax state that holds second moments -> how to read it, once advanced."""
SUPPLY = (
    "supply them: ll.adaptive_probes(second_moment=function of the advanced optimizer state that returns an "
    "ll.SecondMoment)"
)
"""What to do about an optimizer that is not known."""


def next_preconditioner(
    optimizer: Optimizer,
    state: State,
    objective: Callable[[Any], jax.Array],
    second_moment: FindSecondMoment | None = None,
) -> Any:
    """Return the diagonal of P of the update that follows `state`: a pytree like the parameters.

    The update is -learning_rate * (first moment) / P elementwise, all moments advanced with this step's gradient (the
    one in `state.batch_gradient` where there is one). Adam: P = sqrt(nu / (1 - b2^t) + eps_root) + eps.

    Raises:
        ValueError: see `next_second_moment`.
    """
    return next_second_moment(optimizer, state, objective, second_moment).preconditioner


def next_second_moment(
    optimizer: Optimizer,
    state: State,
    objective: Callable[[Any], jax.Array],
    second_moment: FindSecondMoment | None = None,
) -> SecondMoment:
    """Return v, P and its floor of the update that follows `state`; what P means: see `next_preconditioner`.

    second_moment: function of the advanced optimizer state, for an optimizer that this does not know.

    Raises:
        ValueError: where the optimizer's state has no second moments, or several, or of another rule than those of
            Adam, AMSGrad, AdEMAMix, RMSprop and Adagrad; where its arguments (b2, eps, ...) cannot be read from its
            factory; or where its own update is not inversely proportional to P (trust ratios, Adamax, RAdam).
    """
    if second_moment is None:
        _check_rule(optimizer, state.params)
    _, advanced = advance(optimizer, state, objective)
    if second_moment is not None:
        found = second_moment(advanced)
        if not isinstance(found, SecondMoment):
            raise ValueError(
                "second_moment: expected a function that returns a SecondMoment(value, preconditioner, floor), got "
                f"{type(found).__name__}"
            )
    else:
        found = _second_moment(optimizer, advanced)
    _check_whole(optimizer, found, state.params)
    return found


def _check_whole(optimizer: Optimizer, found: SecondMoment, params: Any) -> None:
    if any(jax.tree.structure(tree) != jax.tree.structure(params) for tree in found[:2]):
        raise ValueError(
            f"preconditioned_sharpness: optimizer {optimizer.name} keeps second moments for a part of the parameters "
            f"only, or in another shape, so P is undefined for the rest; use an optimizer that treats all alike, or "
            f"{SUPPLY}"
        )


def advance(optimizer: Optimizer, state: State, objective: Callable[[Any], jax.Array]) -> tuple[Any, Any]:
    """Return the update that follows `state`, and the optimizer state after it."""
    gradient = state.gradient if state.batch_gradient is None else state.batch_gradient
    loss = state.loss if state.batch_loss is None else state.batch_loss
    return optimizer.update(gradient, state.opt_state, state.params, value=loss, grad=gradient, value_fn=objective)


def _second_moment(optimizer: Optimizer, opt_state: Any) -> SecondMoment:
    def is_known(node: Any) -> bool:
        return type(node).__name__ in RULES

    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_known) if is_known(node)]
    if len(found) != 1:
        raise ValueError(
            f"preconditioned_sharpness: expected an optimizer with one set of second moments, as adam, adamw, nadam, "
            f"amsgrad, rmsprop or adagrad of optax, got {optimizer.name} with {len(found) or 'none'}; use the probe "
            f"'sharpness', or {SUPPLY}"
        )
    parameters = inspect.signature(optimizer.factory).parameters

    def get(name: str) -> Any:
        if name in optimizer.arguments:
            return optimizer.arguments[name]
        if name == "eps_root" and name not in parameters:
            return 0.0  # as in all of optax; `_check_rule` would notice another
        default = parameters[name].default if name in parameters else inspect.Parameter.empty
        if default is inspect.Parameter.empty:
            raise ValueError(
                f"preconditioned_sharpness: needs the value of {name!r}, which {optimizer.name} does not take; write a "
                f"factory with an argument {name} and pass it on to optax, or {SUPPLY}"
            )
        return default

    rule = RULES[type(found[0]).__name__]
    value = rule.value(found[0], get)
    return SecondMoment(value, jax.tree.map(lambda leaf: rule.root(leaf, get), value), rule.root(jnp.zeros(()), get))


def _check_rule(optimizer: Optimizer, params: Any) -> None:
    """Refuse an optimizer whose update is not (linear in the latest gradient) / P, on coordinates of many sizes.

    From one state, gradients c_j and -c_j: update_j(+) - update_j(-) = factor c_j (1 / P_j(+) + 1 / P_j(-)).

    params: what is trained; their names and numbers of axes are kept where there are several, for masks and labels.
    """
    numbers = {name: 0.5 if isinstance(value, Tracer) else value for name, value in optimizer.arguments.items()}
    numbers |= {name: 0.5 for name in Optimizer(optimizer.factory, **numbers).missing({})}
    concrete = Optimizer(optimizer.factory, **numbers)
    leaves, structure = jax.tree.flatten(params)
    if len(leaves) < 2:  # trust ratios are one factor for each array
        leaves, structure = jax.tree.flatten({str(j): jnp.zeros(1) for j in range(len(SIZES))})
    shapes = [(len(SIZES),) + (1,) * (leaf.ndim - 1) if leaf.ndim else () for leaf in leaves]
    sizes = [np.roll(SIZES, -j)[: int(np.prod(shape))].reshape(shape) for j, shape in enumerate(shapes)]
    flat = np.concatenate([np.ravel(leaf) for leaf in sizes])

    def update(factor: float, opt_state: Any) -> Any:
        gradient = jax.tree.unflatten(structure, [jnp.asarray(factor * leaf, jnp.zeros(()).dtype) for leaf in sizes])
        return concrete.update(
            gradient, opt_state, small, value=jnp.ones(()), grad=gradient, value_fn=lambda params: jnp.ones(())
        )

    with jax.ensure_compile_time_eval():
        # So small that weight decay is negligible.
        small = jax.tree.unflatten(structure, [jnp.full(shape, 2.0**-40) for shape in shapes])
        opt_state = concrete.init(small)
        for factor in (1.0, 0.3):
            _, opt_state = update(factor, opt_state)
        stride, inverse = np.zeros(len(flat)), np.zeros(len(flat))
        for sign in (1, -1):
            updates, advanced = update(0.7 * sign, opt_state)
            moment = _second_moment(concrete, advanced)
            _check_whole(optimizer, moment, small)
            stride += sign * np.asarray(ravel_pytree(updates)[0], float)
            diagonal = jax.tree.map(jnp.broadcast_to, moment.preconditioner, jax.tree.map(jnp.shape, small))
            inverse += 1 / np.asarray(ravel_pytree(diagonal)[0], float)
    shares = stride / inverse / flat
    if not np.allclose(shares, shares[0], rtol=1e-3, atol=0) or shares[0] == 0:
        raise ValueError(
            f"preconditioned_sharpness: the update of {optimizer.name} is not (first moment) / sqrt(second moment), "
            f"expected one factor for all parameters, got {np.array2string(shares[: len(SIZES)], precision=3)}; its "
            f"state looks like Adam's, but its rule is another; {SUPPLY}"
        )
