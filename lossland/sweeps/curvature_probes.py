"""Probes of curvature: several eigenvalues, preconditioned and Gauss-Newton sharpness, trace.

Each records its own error beside the value, and starts from the directions of the previous record where it searches for
eigenvectors. All are of the training objective over the full data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from lossland.curvature import estimates, lanczos, operators, spectra
from lossland.optimizers import Optimizer
from lossland.problems.problem import Problem
from lossland.sweeps.preconditioners import FindSecondMoment, next_preconditioner
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


def preconditioned_sharpness(
    tol: float = 1e-4, max_matvecs: int = 192, *, second_moment: FindSecondMoment | None = None
) -> Probe:
    """Build the probe of the largest eigenvalue of P^-1/2 H P^-1/2.

    P is the diagonal preconditioner of the *next* update: second moment already advanced with this step's gradient,
    its bias correction included; see `next_preconditioner`. Units: 1 / learning rate. Compare with
    `ll.threshold(optimizer)`: 2 (1 + b1) / ((1 - b1) learning_rate) for Adam. Records `preconditioned_sharpness`,
    `_residual`, `_num_matvecs`, `_converged`. second_moment: for an optimizer that `next_second_moment` does not know.

    Source: Cohen et al. 2022, section 2.
    """

    def product(problem: Problem, optimizer: Optimizer, state: State) -> operators.Matvec:
        diagonal = next_preconditioner(optimizer, state, problem.objective, second_moment)
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
        estimate = estimates.trace(product, like=state.params, key=key, num_matvecs=num_matvecs)
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
