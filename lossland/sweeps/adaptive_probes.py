"""Probes of adaptive optimizers late in training: the mode that turns unstable, the cheap alarm, the update itself.

P, the preconditioner, is that of the *next* update in all of them: second moment advanced with this step's gradient,
bias corrections included (`preconditioners.next_preconditioner`); v is the second moment under its root, g the gradient
of the training objective over the full data. S = P^-1/2 H P^-1/2.

Source: Cohen et al. 2022 (S and its threshold); Wortsman et al. 2023 (root mean square of g^2 / v); Bai et al. 2025
(curvature along the gradient as a predictor).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from lossland.arguments import FUNCTION, count, expects, number, optional
from lossland.curvature import lanczos, operators
from lossland.optimizers import Optimizer
from lossland.problems.problem import Problem
from lossland.sweeps.preconditioners import FindSecondMoment, advance, next_second_moment
from lossland.sweeps.probes import Lane, Probe, State

DEAD, JUMP = 100.0, 30.0
"""A coordinate counts as dead where sqrt(v) < DEAD x the floor of P, or where one update multiplied v by more than
JUMP."""

RATE_UNITS = "1 / learning rate"


@expects(second_moment=optional(FUNCTION), tol=number(above=0), max_matvecs=count())
def adaptive_probes(
    second_moment: FindSecondMoment | None = None, *, tol: float = 1e-4, max_matvecs: int = 192
) -> tuple[Probe, ...]:
    """Build the three probes of adaptive optimizers, for one whose second moment lossland cannot find, too.

    They are those that `run` knows as "preconditioned_mode" (top eigenpair of S = P^-1/2 H P^-1/2, second moment and
    energy along it), "preconditioned_gradient_curvature" (alarm, one Hessian product) and "update_statistics" (g^2 / v,
    share of coordinates below eps, size and direction of the update; no Hessian product).

    Args:
        second_moment: function of the optimizer state, already advanced by the step's gradient, that returns a
            `SecondMoment`; found in the state if not given.
        tol, max_matvecs: of the eigenpair: it is good enough where its residual is at most tol x the eigenvalue.

    Raises:
        ValueError: for arguments that are none of these; when the sweep is traced, where no second moment is found.

    >>> import jax, jax.numpy as jnp, optax
    >>> import lossland as ll
    >>> def moment(opt_state):
    ...     v = jax.tree.map(lambda nu: nu / (1 - 0.999 ** opt_state[0].count), opt_state[0].nu)
    ...     return ll.SecondMoment(v, jax.tree.map(lambda leaf: jnp.sqrt(leaf) + 1e-16, v), 1e-16)
    >>> [probe.name for probe in ll.adaptive_probes(moment)]  # ll.run(..., optax.adabelief, sweep, ["loss", *these])
    ['preconditioned_mode', 'preconditioned_gradient_curvature', 'update_statistics']
    """
    return (
        preconditioned_mode(tol, max_matvecs, second_moment=second_moment),
        preconditioned_gradient_curvature(second_moment=second_moment),
        update_statistics(second_moment=second_moment),
    )


def preconditioned_mode(
    tol: float = 1e-4, max_matvecs: int = 192, *, second_moment: FindSecondMoment | None = None
) -> Probe:
    """Build the probe of the top eigenpair (lambda, w) of S = P^-1/2 H P^-1/2 and of what the gradient does along w.

    Records `preconditioned_sharpness` (lambda, as the probe of that name, with `_residual`, `_num_matvecs`,
    `_converged`); `mode_gradient`, a = w . P^-1/2 g, and `mode_update`, w . P^1/2 u with u the next update (both change
    sign with w); `mode_energy`, a^2 / (2 lambda), the part of the loss that sits in the mode; `mode_gradient_cosine`,
    |a| / |P^-1/2 g|; `mode_persistence`, |w . w of the previous record| (NaN at the first); `mode_log_second_moment`,
    sum_i w_i^2 ln v_i; `mode_dead_mass`, sum_i w_i^2 over coordinates with sqrt(v_i) < 100 floors of P, or whose v this
    update multiplies by more than 30: near 1, lambda tells of dead coordinates only; `mode_floor_mass`, the same with
    sqrt(v_i) below the floor itself, where eps is the larger part of P; `mode_refill`, sum_i w_i^4 / P_i:
    a gradient a along the mode alone adds (1 - b2) a^2 times it to sum_i w_i^2 ln v_i, where eps is small.

    second_moment: function of the advanced optimizer state that returns a `SecondMoment`, for an optimizer whose state
    is not known. Raises ValueError (when the sweep is traced) where there is none.
    """

    def begin(problem: Problem, params: Any) -> tuple[jax.Array, jax.Array]:
        flat, _ = ravel_pytree(params)
        return jax.random.normal(jax.random.key(0), flat.shape, flat.dtype), jnp.full_like(flat, jnp.nan)

    def measure(problem: Problem, optimizer: Optimizer, state: State, memory: Any, any_lane: Lane) -> Any:
        start, previous = memory
        moment = next_second_moment(optimizer, state, problem.objective, second_moment)
        product = operators.preconditioned(operators.hessian(problem.objective, state.params), moment.preconditioner)
        matvec, _ = operators.flatten(product, state.params)
        top = lanczos.top_eigenpair(matvec, start, tol=tol, max_matvecs=max_matvecs, any_lane=any_lane)
        v, p, gradient = (_flat(tree) for tree in (moment.value, moment.preconditioner, state.gradient))
        scaled, weight = gradient / jnp.sqrt(p), top.vector**2
        a = jnp.vdot(top.vector, scaled)
        # What v was: the advanced value is b2 v + (1 - b2) g^2 in all rules but sums and maxima, which never fall.
        before = _flat(_moment_before(optimizer, state, problem, second_moment, moment.value))
        jumped = v > JUMP * before
        dead, below = (jumped | (jnp.sqrt(v) < times * moment.floor) for times in (DEAD, 1.0))
        values = {
            "preconditioned_sharpness": top.value,
            "preconditioned_sharpness_residual": top.residual,
            "preconditioned_sharpness_num_matvecs": top.num_matvecs,
            "preconditioned_sharpness_converged": top.converged,
            "mode_gradient": a,
            "mode_update": jnp.vdot(top.vector, jnp.sqrt(p) * _flat(advance(optimizer, state, problem.objective)[0])),
            "mode_energy": a**2 / (2 * top.value),
            "mode_gradient_cosine": jnp.abs(a) / jnp.linalg.norm(scaled),
            "mode_persistence": jnp.abs(jnp.vdot(top.vector, previous)),
            "mode_log_second_moment": jnp.vdot(weight, jnp.log(jnp.maximum(v, jnp.finfo(v.dtype).tiny))),
            "mode_dead_mass": jnp.sum(jnp.where(dead, weight, 0)),
            "mode_floor_mass": jnp.sum(jnp.where(below, weight, 0)),
            "mode_refill": jnp.sum(weight**2 / p),
        }
        kept = jnp.where(jnp.all(jnp.isfinite(top.vector)), top.vector, previous)
        return values, (top.next_start, kept)

    converged = f"whether the residual is at most {tol:g} of the value"
    return _documented(
        "preconditioned_mode", measure, begin, {**MODE, "preconditioned_sharpness_converged": ("1", converged)}
    )


MODE = {
    "preconditioned_sharpness": (RATE_UNITS, "largest eigenvalue of S = P^-1/2 H P^-1/2, P of the next update"),
    "preconditioned_sharpness_residual": (
        RATE_UNITS,
        "norm of S w - value w: the distance to the nearest eigenvalue is at most this",
    ),
    "preconditioned_sharpness_num_matvecs": ("1", "Hessian products spent on this record"),
    "mode_gradient": ("loss / parameter / P^1/2", "gradient along the top mode of S, w . P^-1/2 g"),
    "mode_update": ("parameter P^1/2", "next update along the top mode of S, w . P^1/2 u"),
    "mode_energy": ("loss", "part of the loss in the top mode of S, (w . P^-1/2 g)^2 / (2 lambda)"),
    "mode_gradient_cosine": ("1", "cosine of P^-1/2 g and the top mode w of S, in absolute value"),
    "mode_persistence": ("1", "cosine of the top modes of this and the previous record, in absolute value"),
    "mode_log_second_moment": ("ln gradient^2", "logarithm of the second moment along the mode, sum of w^2 ln v"),
    "mode_dead_mass": ("1", "share of w^2 on coordinates whose second moment is near the floor or has just jumped"),
    "mode_floor_mass": ("1", "share of w^2 on coordinates whose second moment is below the floor or has just jumped"),
    "mode_refill": (
        "1 / (loss / parameter / P^1/2)^2",
        "sum of w^4 / P: what a unit gradient along the mode adds to ln v along it",
    ),
}


def preconditioned_gradient_curvature(*, second_moment: FindSecondMoment | None = None) -> Probe:
    """Build the probe of the curvature along the gradient in the metric of P, a cheap alarm: one Hessian product.

    Equation: h . S h / h . h with h = P^-1/2 g, a lower bound on the preconditioned sharpness, so that above the
    threshold it proves the instability; it gets there later, once the mode carries the gradient. Units: 1 / learning
    rate. Records `preconditioned_gradient_curvature`.
    """

    def measure(problem: Problem, optimizer: Optimizer, state: State) -> jax.Array:
        p = next_second_moment(optimizer, state, problem.objective, second_moment).preconditioner
        step = jax.tree.map(jnp.divide, state.gradient, p)
        product = operators.hessian(problem.objective, state.params)(step)
        return jnp.vdot(_flat(step), _flat(product)) / jnp.vdot(_flat(state.gradient), _flat(step))

    name = "preconditioned_gradient_curvature"
    what = "curvature along the gradient in the metric of P, h.Sh / h.h with h = P^-1/2 g"
    return Probe(name, measure, units={name: RATE_UNITS}, descriptions={name: what})


def update_statistics(*, second_moment: FindSecondMoment | None = None) -> Probe:
    """Build the probe of the next update against the gradient: no Hessian product.

    Records `gradient_excess_rms`, sqrt(mean g^2 / max(v, floor^2)), and `gradient_excess_max`, the largest g^2 /
    max(v, floor^2) (of the gradient that the update uses; at most 1 / (1 - b2) for Adam late in training); `damped`,
    the fraction of coordinates with sqrt(v) below the floor of P, where eps decides; `update_rms`, in units of the
    parameters (learning rate included); `update_gradient_cosine`, -1 for steepest descent, positive uphill.
    """

    def measure(problem: Problem, optimizer: Optimizer, state: State) -> dict[str, jax.Array]:
        moment = next_second_moment(optimizer, state, problem.objective, second_moment)
        updates, _ = advance(optimizer, state, problem.objective)
        used = state.gradient if state.batch_gradient is None else state.batch_gradient
        v, update, gradient = _flat(moment.value), _flat(updates), _flat(used)
        excess = _square_ratio(gradient, v, moment.floor)
        norms = jnp.linalg.norm(update) * jnp.linalg.norm(gradient)
        return {
            "gradient_excess_rms": jnp.sqrt(jnp.mean(excess)),
            "gradient_excess_max": jnp.max(excess),
            "damped": jnp.mean(jnp.sqrt(v) < moment.floor, dtype=v.dtype),
            "update_rms": jnp.sqrt(jnp.mean(update**2)),
            "update_gradient_cosine": jnp.vdot(update, gradient) / norms,
        }

    return _documented("update_statistics", measure, None, {
        "gradient_excess_rms": ("1", "root mean square of g / max(sqrt(v), floor)"),
        "gradient_excess_max": ("1", "largest g^2 / max(v, floor^2) of a coordinate"),
        "damped": ("1", "fraction of coordinates whose sqrt(v) is below the floor of P"),
        "update_rms": ("parameter", "root mean square of the next update, learning rate included"),
        "update_gradient_cosine": ("1", "cosine of the next update and the gradient; -1 is steepest descent"),
    })  # fmt: skip


@expects(logits=FUNCTION, loss=FUNCTION, labels=FUNCTION)
def cross_entropy_numerics(
    logits: Callable[[Any, Any], jax.Array],
    loss: Callable[[jax.Array, Any], jax.Array],
    labels: Callable[[Any], jax.Array] = lambda data: data[1],
) -> Probe:
    """Build the probe of what rounding does to a softmax cross-entropy.

    Records `zero_sum_violation`, sum_n |sum_c d_nc| / sum_nc |d_nc| with d = d loss / d logits: 0 in exact arithmetic
    for normalised labels, 1 where a gradient is absorbed; `smallest_margin`, min_n (z_ny - max_{c != y} z_nc): beyond
    ln 2^24 = 16.6 the float32 gradient of the correct class is exactly 0.

    Args:
        logits: (params, data) -> `Float[Array, "... class"]`.
        loss: (logits, data) -> scalar, with loss(logits(params, data), data) equal to the objective.
        labels: data -> classes, whole numbers `Int[Array, "..."]` or one row of probabilities per example (its largest
            counts). The second entry of the data if not given.

    Raises:
        ValueError: (when the sweep is traced) where logits and labels do not fit.
    """

    def measure(problem: Problem, optimizer: Optimizer, state: State) -> dict[str, jax.Array]:
        z = logits(state.params, problem.data)
        slope = jax.grad(lambda z: loss(z, problem.data))(z)
        given = labels(problem.data)
        if given.shape == z.shape:
            classes = jnp.argmax(given, axis=-1)
        elif given.shape == z.shape[:-1] and jnp.issubdtype(given.dtype, jnp.integer):
            classes = given
        else:
            raise ValueError(
                f"labels: expected whole numbers of shape {z.shape[:-1]} or probabilities of shape {z.shape}, got "
                f"{given.dtype} of shape {given.shape}; pass labels=function of the data"
            )
        own = jax.nn.one_hot(classes, z.shape[-1], dtype=bool)
        margin = jnp.max(jnp.where(own, z, -jnp.inf), -1) - jnp.max(jnp.where(own, -jnp.inf, z), -1)
        total = jnp.sum(jnp.abs(slope))
        violation = jnp.sum(jnp.abs(jnp.sum(slope, axis=-1))) / jnp.where(total > 0, total, 1)
        return {"zero_sum_violation": violation, "smallest_margin": jnp.min(margin)}

    return _documented("cross_entropy_numerics", measure, None, {
        "zero_sum_violation": ("1", "sum of |sum over classes of the logits' gradient| over the sum of its magnitudes"),
        "smallest_margin": ("1", "smallest logit of the label minus the largest other logit, over the examples"),
    })  # fmt: skip


def _flat(tree: Any) -> jax.Array:
    return ravel_pytree(tree)[0]


def _square_ratio(gradient: jax.Array, v: jax.Array, floor: jax.Array) -> jax.Array:
    """g^2 / max(v, floor^2), 0 where both vanish; divided before it is squared, so that small floats do not vanish."""
    root = jnp.maximum(jnp.sqrt(v), floor)
    return (gradient / jnp.where(root > 0, root, 1)) ** 2


def _moment_before(
    optimizer: Optimizer, state: State, problem: Problem, second_moment: FindSecondMoment | None, value: Any
) -> Any:
    """v after an update with a zero gradient: what the old gradients have left, so that a jump is this gradient's."""
    zero = jax.tree.map(jnp.zeros_like, state.gradient)
    still = state._replace(gradient=zero, batch_gradient=zero)
    return next_second_moment(optimizer, still, problem.objective, second_moment).value


def _documented(name: str, measure: Any, begin: Any, records: dict[str, tuple[str, str]]) -> Probe:
    return Probe(
        name,
        measure,
        begin=begin,
        units={record: units for record, (units, _) in records.items()},
        descriptions={record: text for record, (_, text) in records.items()},
    )
