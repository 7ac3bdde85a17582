"""When Adam will cross its threshold by forgetting alone: read off one state of training."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from lossland.curvature import lanczos, operators
from lossland.optimizers import Optimizer
from lossland.problems.problem import Problem
from lossland.sweeps.preconditioners import next_second_moment
from lossland.sweeps.probes import Lane, Probe, State

_NEWTON_STEPS = 5
_CLOSE = 1e-3
"""Distance of ln ratio from 0 that counts as the crossing."""


def forgetting(horizon: float, tol: float = 1e-3, max_matvecs: int = 96) -> Probe:
    """Build the probe of the crossing that Adam comes to while its second moment forgets and all else stays.

    Equation: kappa_t = learning_rate x lambda_max(P_t^-1/2 H P_t^-1/2), P_t = sqrt(v_t) + eps, v_t = b2^t v, with H, v
    (of the next update) and the bias corrections of this state; the wait is the root t of kappa_t = kappa* = 2 (1 + b1)
    / (1 - b1). Newton's method in u = b2^(t/2), in which 1 / kappa is about linear: u <- u (1 + (kappa / kappa* - 1) /
    s), s = sum_i w_i^2 sqrt(v_t,i) / P_t,i, w the top eigenvector. Where eps holds kappa down there is no root.

    Records `forgetting_wait`, steps to the crossing (0 above the threshold, inf beyond `horizon`); there, or at the
    horizon, `forgetting_ratio`, kappa_t / kappa*, `forgetting_slope`, of its logarithm per step, and
    `forgetting_refill`, sum_i w_i^4 / P_i. For optax's adam and adamw, with eps outside
    the root, without Nesterov's step, and with numbers for learning_rate, b1 and b2.

    Raises:
        ValueError: unless horizon > 0; when the sweep is traced: for another optimizer.
    """
    if not horizon > 0:
        raise ValueError(f"horizon: expected a positive number of steps, got {horizon!r}")

    def begin(problem: Problem, params: Any) -> jax.Array:
        flat, _ = ravel_pytree(params)
        return jax.random.normal(jax.random.key(0), flat.shape, flat.dtype)

    def measure(problem: Problem, optimizer: Optimizer, state: State, start: jax.Array, any_lane: Lane) -> Any:
        moment = next_second_moment(optimizer, state, problem.objective)
        v, _ = ravel_pytree(moment.value)
        rate, b1, b2 = (jnp.asarray(_argument(optimizer, name), v.dtype) for name in ("learning_rate", "b1", "b2"))
        _check(optimizer)
        critical = 2 * (1 + b1) / (1 - b1)
        n = (state.step + 1).astype(v.dtype)
        hessian = operators.hessian(problem.objective, state.params)
        _, unravel = ravel_pytree(state.params)
        tiny = jnp.sqrt(jnp.finfo(v.dtype).tiny)

        def newton(carry: Any, nothing: None) -> Any:
            start, wait = carry[:2]
            root = jnp.sqrt(v * b2**wait * (1 - b2**n) / (1 - b2 ** (n + wait)))
            divisor = jnp.maximum(root + moment.floor, tiny)
            product = operators.preconditioned(hessian, unravel(divisor))
            matvec, _ = operators.flatten(product, state.params)
            top = lanczos.top_eigenpair(matvec, start, tol=tol, max_matvecs=max_matvecs, any_lane=any_lane)
            weight = top.vector**2
            log_ratio = jnp.log(rate * top.value / critical)
            share = jnp.sum(weight * root / divisor)
            slope = -jnp.log(b2) / 2 * share / (1 - b2 ** (n + wait))
            more = 2 * jnp.log(jnp.maximum(1 + jnp.expm1(log_ratio) / share, 0)) / jnp.log(b2)
            onward = jnp.clip(jnp.nan_to_num(wait + more, nan=horizon, posinf=horizon), 0, horizon)
            found = jnp.stack([log_ratio, slope, jnp.sum(weight**2 / divisor)])
            return (top.next_start, onward, wait, found), None

        blank = jnp.full(3, jnp.nan, v.dtype)
        zero = jnp.zeros((), v.dtype)
        (start, onward, wait, found), _ = lax.scan(newton, (start, zero, zero, blank), length=_NEWTON_STEPS)
        log_ratio, slope, refill = found
        close = jnp.abs(log_ratio) < _CLOSE
        root = jnp.where(close | (log_ratio > 0) & (wait == 0), wait, jnp.where(onward < horizon, onward, jnp.inf))
        values = {
            "forgetting_wait": jnp.where(jnp.isnan(log_ratio), jnp.nan, root),
            "forgetting_ratio": jnp.exp(log_ratio),
            "forgetting_slope": slope,
            "forgetting_refill": refill,
        }
        return values, start

    documented = {
        "forgetting_wait": (
            "step",
            "steps until the second moment has forgotten enough for the crossing; inf for never",
        ),
        "forgetting_ratio": ("1", "preconditioned sharpness over threshold there, or at the horizon"),
        "forgetting_slope": ("1 / step", "slope of its logarithm there"),
        "forgetting_refill": (
            "1 / (loss / parameter / P^1/2)^2",
            "sum of w^4 / P there: what a unit gradient along the mode adds to ln v along it",
        ),
    }
    return Probe(
        "forgetting",
        measure,
        begin=begin,
        units={name: units for name, (units, _) in documented.items()},
        descriptions={name: text for name, (_, text) in documented.items()},
    )


def _check(optimizer: Optimizer) -> None:
    """Refuse rules whose second moment does not fall by b2 alone, or whose threshold is another."""
    changed = [name for name in ("eps_root", "nesterov") if np.any(optimizer.arguments.get(name, False))]
    if optimizer.factory not in (optax.adam, optax.adamw) or changed:
        told = f"{optimizer.name} with {', '.join(changed)}" if changed else optimizer.name
        raise ValueError(f"forgetting: expected optax.adam or optax.adamw without eps_root or nesterov, got {told}")


def _argument(optimizer: Optimizer, name: str) -> Any:
    if name in optimizer.arguments:
        return optimizer.arguments[name]
    parameters = inspect.signature(optimizer.factory).parameters
    if name not in parameters or parameters[name].default is inspect.Parameter.empty:
        raise ValueError(
            f"forgetting: expected an optimizer with an argument {name}, as adam of optax, got {optimizer.name}"
        )
    return parameters[name].default
