"""Probes of curvature: several eigenvalues, preconditioned and Gauss-Newton sharpness, trace.

Each records its own error beside the value, and starts from the directions of the previous record where it searches for
eigenvectors. All are of the training objective over the full data.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree

from lossland.curvature import lanczos, operators, spectra
from lossland.optimizers import Optimizer
from lossland.problems.problem import Problem
from lossland.sweeps.probes import Lane, Probe, State

HESSIAN_UNITS = "loss / parameter^2"


def top_eigenvalues(k: int, tol: float = 1e-4, max_matvecs: int = 512) -> Probe:
    """Build the probe of the k largest signed eigenvalues of the Hessian, largest first, each as often as it occurs.

    Records `top_eigenvalues`, their `_residual` and `_converged` (axis "rank", 0 is the sharpness) and `_num_matvecs`.
    Units: loss / parameter^2.
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1 eigenvalue, got {k}")

    def measure(problem: Problem, optimizer: Optimizer, state: State, start: jax.Array, any_lane: Lane) -> Any:
        _, unravel = ravel_pytree(state.params)
        product = operators.hessian(problem.objective, state.params)
        pairs = spectra.top_eigenpairs(
            product,
            like=state.params,
            k=k,
            tol=tol,
            start=unravel(start),
            max_matvecs=max_matvecs,
            any_lane=any_lane,
        )
        mixed, _ = ravel_pytree(spectra.warm_start(pairs))
        # A lane that diverged must not hand its NaN on.
        values = (pairs.values, pairs.residuals, pairs.num_matvecs, pairs.converged)
        return values, jnp.where(jnp.all(jnp.isfinite(mixed)), mixed, start)

    return _eigenvalue_probe(
        "top_eigenvalues", f"{k} largest signed eigenvalues of the Hessian", HESSIAN_UNITS, tol, measure, ("rank",)
    )


def lowest_eigenvalue(tol: float = 1e-4, max_matvecs: int = 192) -> Probe:
    """Build the probe of the most negative eigenvalue of the Hessian (not the smallest in magnitude).

    Records `lowest_eigenvalue`, `_residual`, `_num_matvecs`, `_converged`. Units: loss / parameter^2.
    """

    def product(problem: Problem, optimizer: Optimizer, state: State) -> operators.Matvec:
        return operators.negated(operators.hessian(problem.objective, state.params))

    name, what = "lowest_eigenvalue", "most negative eigenvalue of the Hessian"
    return _eigenvalue_probe(name, what, HESSIAN_UNITS, tol, _one_eigenvalue(product, tol, max_matvecs, sign=-1))


def gauss_newton_sharpness(
    predict: Callable[[Any, Any], Any],
    loss: Callable[[Any, Any], jax.Array],
    tol: float = 1e-4,
    max_matvecs: int = 192,
) -> Probe:
    """Build the probe of the largest eigenvalue of the Gauss-Newton matrix G = J^T (d^2 loss / d outputs^2) J.

    predict: (params, data) -> outputs; loss: (outputs, data) -> scalar, with loss(predict(params, data), data) equal to
    the problem's objective: where it is not, to a relative 1e-3, `_converged` is False. Records
    `gauss_newton_sharpness`, `_residual`, `_num_matvecs`, `_converged`. Units: loss / parameter^2.
    """

    def product(problem: Problem, optimizer: Optimizer, state: State) -> operators.Matvec:
        def outputs(params: Any) -> Any:
            return predict(params, problem.data)

        return operators.gauss_newton(outputs, lambda outputs: loss(outputs, problem.data), state.params)

    solve = _one_eigenvalue(product, tol, max_matvecs)

    def measure(problem: Problem, optimizer: Optimizer, state: State, start: jax.Array, any_lane: Lane) -> Any:
        (value, residual, num_matvecs, converged), memory = solve(problem, optimizer, state, start, any_lane)
        composed = loss(predict(state.params, problem.data), problem.data)
        is_objective = jnp.abs(composed - state.loss) <= 1e-3 * jnp.abs(state.loss)
        return (value, residual, num_matvecs, converged & is_objective), memory

    what = "largest eigenvalue of the Gauss-Newton matrix"
    return _eigenvalue_probe("gauss_newton_sharpness", what, HESSIAN_UNITS, tol, measure)


def preconditioned_sharpness(tol: float = 1e-4, max_matvecs: int = 192) -> Probe:
    """Build the probe of the largest eigenvalue of P^-1/2 H P^-1/2.

    P is the diagonal preconditioner of the *next* update: second moment already advanced with this step's gradient,
    its bias correction included; see `next_preconditioner`. Units: 1 / learning rate. Compare with
    `ll.threshold(optimizer)`: 2 (1 + b1) / ((1 - b1) learning_rate) for Adam. Records `preconditioned_sharpness`,
    `_residual`, `_num_matvecs`, `_converged`.

    Source: Cohen et al. 2022, section 2.
    """

    def product(problem: Problem, optimizer: Optimizer, state: State) -> operators.Matvec:
        diagonal = next_preconditioner(optimizer, state, problem.objective)
        return operators.preconditioned(operators.hessian(problem.objective, state.params), diagonal)

    name, what = "preconditioned_sharpness", "largest eigenvalue of P^-1/2 H P^-1/2, P of the next update"
    return _eigenvalue_probe(name, what, "1 / learning rate", tol, _one_eigenvalue(product, tol, max_matvecs))


def trace(num_matvecs: int = 32) -> Probe:
    """Build the probe of the trace of the Hessian, with its standard error: see `ll.curvature.trace`.

    Records `trace`, `trace_standard_error`, `trace_num_matvecs`. Units: loss / parameter^2.
    """

    def measure(problem: Problem, optimizer: Optimizer, state: State) -> dict[str, jax.Array]:
        product = operators.hessian(problem.objective, state.params)
        key = jax.random.fold_in(jax.random.key(0), state.step)
        estimate = spectra.trace(product, like=state.params, key=key, num_matvecs=num_matvecs)
        names = ("trace", "trace_standard_error", "trace_num_matvecs")
        return dict(zip(names, estimate, strict=True))

    return Probe(
        "trace",
        measure,
        units={"trace": HESSIAN_UNITS, "trace_standard_error": HESSIAN_UNITS, "trace_num_matvecs": "1"},
        descriptions={
            "trace": "trace of the Hessian of the training objective, estimated from random vectors",
            "trace_standard_error": "standard error of the trace over the random vectors",
            "trace_num_matvecs": "Hessian products spent on this record",
        },
    )


def _one_eigenvalue(product: Callable[..., operators.Matvec], tol: float, max_matvecs: int, sign: int = 1) -> Any:
    """Build the measurement of the largest eigenvalue of a product, times `sign`."""

    def measure(problem: Problem, optimizer: Optimizer, state: State, start: jax.Array, any_lane: Lane) -> Any:
        matvec, _ = operators.flatten(product(problem, optimizer, state), state.params)
        top = lanczos.top_eigenpair(matvec, start, tol=tol, max_matvecs=max_matvecs, any_lane=any_lane)
        return (sign * top.value, top.residual, top.num_matvecs, top.converged), top.next_start

    return measure


def _eigenvalue_probe(
    name: str, what: str, units: str, tol: float, measure: Callable[..., Any], dims: tuple[str, ...] = ()
) -> Probe:
    """Name and document (value, residual, num_matvecs, converged); the memory is a start on flat vectors."""
    records = (name, f"{name}_residual", f"{name}_num_matvecs", f"{name}_converged")

    def begin(problem: Problem, params: Any) -> jax.Array:
        flat, _ = ravel_pytree(params)
        return jax.random.normal(jax.random.key(0), flat.shape, flat.dtype)

    def named(*args: Any) -> Any:
        values, memory = measure(*args)
        return dict(zip(records, values, strict=True)), memory

    descriptions = (
        f"{what} of the training objective over the full data",
        "norm of A v - value v: the distance to the nearest eigenvalue is at most this",
        "Hessian products spent on this record",
        f"whether the residual is at most {tol:g} of the value",
    )
    return Probe(
        name,
        named,
        begin=begin,
        units=dict(zip(records, (units, units, "1", "1"), strict=True)),
        descriptions=dict(zip(records, descriptions, strict=True)),
        dims={record: dims for record in (records[0], records[1], records[3])} if dims else {},
    )


# --- The preconditioner ---


def _adam(moments: Any, get: Callable[[str], Any]) -> Any:
    correction = 1 - get("b2") ** moments.count
    return jax.tree.map(lambda nu: jnp.sqrt(nu / correction + get("eps_root")) + get("eps"), moments.nu)


def _amsgrad(moments: Any, get: Callable[[str], Any]) -> Any:
    return jax.tree.map(lambda nu: jnp.sqrt(nu + get("eps_root")) + get("eps"), moments.nu_max)


def _rms(moments: Any, get: Callable[[str], Any]) -> Any:
    correction = 1 - get("decay") ** moments.count if "count" in moments._fields else 1.0
    mean = moments.mu if "mu" in moments._fields else jax.tree.map(jnp.zeros_like, moments.nu)

    def root(nu: jax.Array, mu: jax.Array) -> jax.Array:
        variance = nu / correction - (mu / correction) ** 2
        return jnp.sqrt(variance + get("eps")) if get("eps_in_sqrt") else jnp.sqrt(variance) + get("eps")

    return jax.tree.map(root, moments.nu, mean)


def _adagrad(moments: Any, get: Callable[[str], Any]) -> Any:
    return jax.tree.map(lambda total: jnp.sqrt(total + get("eps")), moments.sum_of_squares)


RULES: dict[str, Callable[[Any, Callable[[str], Any]], Any]] = {
    "ScaleByAdamState": _adam,
    "ScaleByAmsgradState": _amsgrad,
    "ScaleByRmsState": _rms,
    "ScaleByRmsWithCountState": _rms,
    "ScaleByRStdDevState": _rms,
    "ScaleByRStdDevWithCountState": _rms,
    "ScaleByRssState": _adagrad,
}
"""Name of the optax state that holds second moments -> P from it, once advanced, and the optimizer's arguments."""


def next_preconditioner(optimizer: Optimizer, state: State, objective: Callable[[Any], jax.Array]) -> Any:
    """Return the diagonal of P of the update that follows `state`: a pytree like the parameters.

    The update is -learning_rate * (first moment) / P elementwise, all moments advanced with this step's gradient (the
    one in `state.batch_gradient` where there is one). Adam: P = sqrt(nu / (1 - b2^t) + eps_root) + eps.

    Raises:
        ValueError: where the optimizer's state has no second moments, or several, or of another rule than those of
            Adam, AMSGrad, RMSprop and Adagrad; where its arguments (b2, eps, ...) cannot be read from its factory; or
            where its own update is not inversely proportional to P (trust ratios, Adamax, RAdam).
    """
    gradient = state.gradient if state.batch_gradient is None else state.batch_gradient
    _check_rule(optimizer)
    _, advanced = optimizer.update(
        gradient, state.opt_state, state.params, value=state.loss, grad=gradient, value_fn=objective
    )
    diagonal = _preconditioner(optimizer, advanced)
    if jax.tree.structure(diagonal) != jax.tree.structure(state.params):
        raise ValueError(
            f"preconditioned_sharpness: optimizer {optimizer.name} keeps second moments for a part of the parameters "
            "only, so P is undefined for the rest; use an optimizer that treats all alike"
        )
    return diagonal


def _preconditioner(optimizer: Optimizer, opt_state: Any) -> Any:
    def is_known(node: Any) -> bool:
        return type(node).__name__ in RULES

    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_known) if is_known(node)]
    if len(found) != 1:
        raise ValueError(
            f"preconditioned_sharpness: expected an optimizer with one set of second moments, as adam, adamw, nadam, "
            f"amsgrad, rmsprop or adagrad of optax, got {optimizer.name} with {len(found) or 'none'}; use the probe "
            "'sharpness'"
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
                f"factory with an argument {name} and pass it on to optax"
            )
        return default

    return RULES[type(found[0]).__name__](found[0], get)


def _check_rule(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose update is not (linear in the latest gradient) / P, on coordinates of many sizes.

    From one state, gradients c_j and -c_j: update_j(+) - update_j(-) = factor c_j (1 / P_j(+) + 1 / P_j(-)).
    """
    numbers = {name: 0.5 if isinstance(value, Tracer) else value for name, value in optimizer.arguments.items()}
    numbers |= {name: 0.5 for name in Optimizer(optimizer.factory, **numbers).missing({})}
    concrete = Optimizer(optimizer.factory, **numbers)
    sizes = np.asarray([1.0, 1e-2, 1e-5, 1e-8])
    names = [str(j) for j in range(len(sizes))]
    params: dict[str, jax.Array] = {}

    def update(factor: float, opt_state: Any) -> Any:
        gradient = {name: jnp.full(2, factor * size) for name, size in zip(names, sizes, strict=True)}
        return concrete.update(
            gradient, opt_state, params, value=jnp.ones(()), grad=gradient, value_fn=lambda params: jnp.ones(())
        )

    with jax.ensure_compile_time_eval():
        params |= {name: jnp.full(2, 2.0**-40) for name in names}  # so small that weight decay is negligible
        opt_state = concrete.init(params)
        for factor in (1.0, 0.3):
            _, opt_state = update(factor, opt_state)
        stride, inverse = np.zeros(len(sizes)), np.zeros(len(sizes))
        for sign in (1, -1):
            updates, advanced = update(0.7 * sign, opt_state)
            diagonal = _preconditioner(concrete, advanced)
            stride += sign * np.asarray([float(updates[name][0]) for name in names])
            inverse += np.asarray([1 / float(diagonal[name][0]) for name in names])
    shares = stride / inverse / sizes
    if not np.allclose(shares, shares[0], rtol=1e-3, atol=0) or shares[0] == 0:
        raise ValueError(
            f"preconditioned_sharpness: the update of {optimizer.name} is not (first moment) / sqrt(second moment), "
            f"expected one factor for all parameters, got {np.array2string(shares, precision=3)}; its state looks like "
            "Adam's, but its rule is another"
        )
