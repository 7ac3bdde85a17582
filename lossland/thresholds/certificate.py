"""Stability thresholds computed from an optimizer's own update.

On f(x) = curvature x^2 / 2 one optax step maps z = (x, float state) to A z + curvature b x, where A and b are the
Jacobians of the step with respect to z and to the gradient. The minimum is stable while the spectral radius of
J = A + curvature b e_x^T is at most 1, and

    det(w I - J) = p(w) - curvature q(w),    p(w) = det(w I - A),    q(w) = e_x^T adj(w I - A) b,

so the curvatures at which a multiplier w lies on the unit circle are the real values p / q takes there: a polynomial
equation, not a search. Second moments are frozen; they are known by what they do (even and homogeneous in the gradient,
the step inversely proportional to their root), not by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from lossland.arguments import OPTIMIZER, check, described
from lossland.thresholds.linearisation import linearise
from lossland.thresholds.multipliers import ROUNDING, spectral_radius, stable_interval
from lossland.thresholds.probing import (
    Probe,
    build_optimizer,
    check_finite,
    compile_once,
    compile_step,
    measure,
)


@dataclass(frozen=True)
class Certificate:
    """State for which curvatures the linearised update of an optimizer is stable, and how it leaves stability.

    `critical_curvature` and `lower_curvature` (None: no lower end) bound the stable interval, in units of curvature:
    eigenvalues of the Hessian H, or of P^-1/2 H P^-1/2 where `preconditioned`, P being the divisor of the next update.
    `multiplier` is the eigenvalue of the update on the unit circle at the critical curvature, `period` = 2 pi /
    |arg multiplier| steps. `transition` and `gradient_response` are A and b, the parameter first. An update that keeps
    its size as the gradient vanishes has no linear threshold: `critical_curvature` is None; `limit_cycle_amplitude`
    (units of the parameter; the largest over 64 phases) and `period` are then measured on f(x) = x^2 / 2.

    Source: Cohen et al. 2021 (arXiv 2103.00065) and 2022 (arXiv 2207.14484) for the thresholds that are in use.
    """

    critical_curvature: float | None
    lower_curvature: float | None
    multiplier: complex | None
    period: float | None
    preconditioned: bool
    condition: str
    limit_cycle_amplitude: float | None = None
    transition: np.ndarray | None = field(default=None, repr=False, compare=False)
    gradient_response: np.ndarray | None = field(default=None, repr=False, compare=False)

    def growth(self, curvature: Any) -> Any:
        """Return the factor by which the amplitude grows per step: the spectral radius of A + curvature b e_x^T.

        `curvature` has any shape and the units of `critical_curvature`. Returns its shape, a float for a scalar; NaN
        where there is no linearisation. The loss grows by the square.
        """
        curvature = np.asarray(curvature, dtype=np.float64)
        if self.transition is None or self.gradient_response is None:
            radius = np.full(curvature.shape, np.nan)
        else:
            modes = self.transition[None], self.gradient_response[None]
            radius = spectral_radius(*modes, curvature.reshape(1, -1)).reshape(curvature.shape)
        return radius if curvature.ndim else float(radius)

    def __str__(self) -> str:
        lines = ["no linear threshold", "no onset", "no growth rate"]
        if self.critical_curvature is not None:
            name = "curvature of P^-1/2 H P^-1/2" if self.preconditioned else "curvature"
            lower = "" if self.lower_curvature is None else f"{self.lower_curvature:.10g} < "
            factors = ", ".join(f"{f:.4f}" for f in self.growth(self.critical_curvature * np.array([0.98, 1.02, 1.2])))
            lines = [
                f"stable for {lower}{name} < {self.critical_curvature:.10g}",
                f"onset with multiplier {self.multiplier:.6g}, period {self.period:.6g} steps",
                f"growth per step at 0.98, 1.02 and 1.2 times the threshold: {factors}",
            ]
        elif self.limit_cycle_amplitude is not None:
            lines[1] = f"limit cycle of amplitude {self.limit_cycle_amplitude:.4g}, period {self.period:.4g} steps"
        return "\n".join([*lines, f"condition: {self.condition}"])


def threshold(optimizer: Any, *, step: int | None = None, **hyperparameters: Any) -> Certificate:
    """Certify at which curvature an optimizer turns unstable, from the linearisation of its own update.

    `optimizer` is an optax factory, called with `hyperparameters`, or an `optax.GradientTransformation`. Schedules
    stand at `step`; bias corrections are those of late training (counts stored beside float state drive these in optax;
    elsewhere they do if a constant gradient gives constant steps, and drive a schedule if not).
    A weight decay coupled into the gradient shifts H where nothing is preconditioned and is negligible beside P. The
    probe is a vector of one parameter. Another value of a float hyperparameter compiles nothing.

    Raises ValueError where an argument is missing, unknown, traced or not finite, and where the update goes up the
    gradient (no learning rate, or a negative one), is random, periodic, complex, not differentiable, scaled by the
    parameter, or not preconditioned in a way that is known.
    """
    _check_step(step)
    check("optimizer", optimizer, OPTIMIZER)
    for name, value in hyperparameters.items():
        if (
            isinstance(value, (str, complex, list))
            or type(value) is object
            or (value is None and name == "learning_rate")
        ):
            raise ValueError(f"{name}: expected a number, got {described(value)}")
    if traced := [key for key, value in hyperparameters.items() if isinstance(value, jax.core.Tracer)]:
        raise ValueError(
            f"{_name(optimizer)}: {', '.join(traced)} is traced; call threshold outside jit, vmap and grad, or"
            " thresholds.critical_curvatures on arrays of values"
        )
    if many := [key for key, value in hyperparameters.items() if _is_array(value)]:
        raise ValueError(
            f"{_name(optimizer)}: {', '.join(many)} holds several values, expected one; for grids use"
            " thresholds.critical_curvatures"
        )
    factory, name, arguments = optimizer, _name(optimizer), hyperparameters
    if hasattr(optimizer, "build"):
        factory, name = optimizer.build, getattr(optimizer, "name", name)
    elif hasattr(optimizer, "init") and hasattr(optimizer, "update"):
        if hyperparameters:
            given = ", ".join(hyperparameters)
            raise ValueError(f"threshold: got {given} for an optimizer that is built already; pass its factory instead")
        factory, name, arguments = _built, "optimizer", {"transformation": optimizer}
    with jax.enable_x64(True), jax.default_device(_host()):
        transformation = build_optimizer(factory, name, arguments)
        probe = _measure_one(factory, name, arguments, step)
        linear = linearise(probe, name, step, [hyperparameters])
        if not linear.finite[0]:
            raise ValueError(f"{name}: one update of a single parameter is not finite at a vanishing gradient")
        _refuse_rules_by_shape(transformation, name)
        if linear.sign_like[0]:
            if probe.stride[0, 0] > 0:
                raise ValueError(_climbs(name))
            amplitude, period = _limit_cycle(transformation, step)
            condition = "none: the update keeps its size as the gradient vanishes, at every positive curvature"
            return Certificate(None, None, None, period, False, condition, amplitude)
    if not linear.exists[0]:
        condition = "none: the update does not answer to a small gradient, or less than float64 resolves"
        return Certificate(None, None, None, None, bool(linear.preconditioned[0]), condition)
    preconditioned = bool(linear.preconditioned[0])
    condition = "gradients far below any clipping threshold or eps, bias corrections settled"
    if preconditioned:
        condition = "second moment frozen, far above eps; gradients below any clipping threshold, corrections settled"
    if linear.scheduled[0]:
        condition += f", schedules at step {step}"
    critical, lower, multiplier = (
        column[0] for column in stable_interval(linear.p, linear.q, linear.transition, linear.gradient_response)
    )
    parts = linear.transition[0], linear.gradient_response[0]
    if not np.isfinite(critical) and parts[1][0] > 0:
        raise ValueError(_climbs(name))
    if not np.isfinite(critical):
        condition = "no positive curvature turns the update from stable to unstable; " + condition
        return Certificate(None, None, None, None, preconditioned, condition, None, *parts)
    angle = abs(float(np.angle(multiplier)))
    return Certificate(
        critical_curvature=float(critical),
        lower_curvature=float(lower) if np.isfinite(lower) else None,
        multiplier=complex(multiplier),
        period=2 * np.pi / angle if angle else np.inf,
        preconditioned=preconditioned,
        condition=condition,
        transition=parts[0],
        gradient_response=parts[1],
    )


def critical_curvatures(
    build: Callable[..., optax.GradientTransformation],
    hyperparameters: Mapping[str, Any],
    *,
    step: int | None = None,
) -> np.ndarray:
    """Compute `threshold(build, ...).critical_curvature` on a whole grid of hyperparameters with one compilation.

    `hyperparameters` maps argument names to arrays of one shape (n,); `build` is called with traced scalars, and is
    compiled once as long as it is the same object. Returns Float[ndarray, "n"], float64, NaN where no linear threshold
    exists. Raises ValueError as `threshold` does, but for points that cannot be certified (NaN) only where all are.
    """
    _check_step(step)
    if not hasattr(build, "build") and hasattr(build, "init") and hasattr(build, "update"):
        raise ValueError("critical_curvatures: got an optimizer that is built already; pass its factory instead")
    name = getattr(build, "name", None) or _name(build)
    build = getattr(build, "build", build)
    columns = {key: np.asarray(values, dtype=np.float64) for key, values in hyperparameters.items()}
    shapes = {key: column.shape for key, column in columns.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 1:
        raise ValueError(f"critical_curvatures: hyperparameters must be arrays of one shape (n,), got {shapes}")
    points = [dict(zip(columns, map(float, row), strict=True)) for row in zip(*columns.values(), strict=True)]
    for point in points:
        check_finite(name, point)
    if not points:
        return np.empty(0)
    with jax.enable_x64(True), jax.default_device(_host()):
        probe = measure(compile_once(build, name, ()), columns, len(points), step)
    linear = linearise(probe, name, step, points)
    return np.where(
        linear.exists, stable_interval(linear.p, linear.q, linear.transition, linear.gradient_response)[0], np.nan
    )


def _measure_one(factory: Callable, name: str, hyperparameters: dict[str, Any], step: int | None) -> Probe:
    """Measure one point, its real hyperparameters traced where that is possible, so that others compile nothing."""
    swept = {key: np.full(1, float(v)) for key, v in hyperparameters.items() if isinstance(v, float | np.floating)}
    fixed = tuple((key, value) for key, value in hyperparameters.items() if key not in swept)
    try:
        programs = compile_once(factory, name, fixed)
    except TypeError:  # an argument without a hash
        programs = compile_step(factory, name, fixed)
    try:
        return measure(programs, swept, 1, step)
    except ValueError as error:
        if not swept or not isinstance(error.__cause__, jax.errors.JAXTypeError):
            raise
        return measure(compile_step(factory, name, tuple(hyperparameters.items())), {}, 1, step)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | jax.Array) and np.size(value) > 1


def _built(transformation: Any) -> Any:
    return transformation


def _host() -> Any:
    """Return a CPU where JAX has one: accelerators are slow or inexact in float64."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def _refuse_rules_by_shape(transformation: Any, name: str) -> None:
    """Raise where a matrix of one parameter moves otherwise than a vector of it: a mask or partition by axes."""

    def path(shape: tuple[int, ...]) -> list[float]:
        x, places = jnp.ones(shape), []
        state = transformation.init(x)
        for gradient in (1.0, -0.5, 0.25):
            updates, state = transformation.update(jnp.full(shape, gradient), state, x)
            x = optax.apply_updates(x, updates)
            places.append(float(jnp.ravel(jnp.asarray(x))[0]))
        return places

    if not np.allclose(path((1,)), path((1, 1)), rtol=1e-9, atol=0, equal_nan=True):
        raise ValueError(f"{name}: treats matrices by another rule than vectors; certify the rule of each by itself")


def _climbs(name: str) -> str:
    return (
        f"{name}: the update goes up the gradient, so there is nothing to be stable: a learning rate is missing (parts "
        "such as optax.scale_by_adam have none) or negative; chain optax.scale_by_learning_rate(...)"
    )


def _name(optimizer: Any) -> str:
    return getattr(getattr(optimizer, "func", optimizer), "__name__", type(optimizer).__name__)


def _check_step(step: Any) -> None:
    if step is not None and (isinstance(step, bool) or not isinstance(step, int | np.integer) or not 0 <= step < 2**31):
        raise ValueError(f"threshold: step must be an integer from 0 to 2^31 - 1 or None, got {step!r}")


def _limit_cycle(transformation: Any, step: int | None, phases: int = 64, steps: int = 4096) -> tuple[float, float]:
    """Simulate f(x) = x^2 / 2 from many phases; return the largest late |x| and that run's mean period in steps."""

    def stopped(leaf):
        return jnp.full_like(leaf, step or 0) if jnp.issubdtype(jnp.result_type(leaf), jnp.integer) else leaf

    def advance(carry, _):
        x, state = carry
        updates, state = transformation.update(x, jax.tree.map(stopped, state), x)
        x = x + updates
        return (x, state), x[0]

    def late(phase):
        state = jax.tree.map(stopped, transformation.init(jnp.zeros(1)))
        stride, _ = transformation.update(jnp.ones(1), state, jnp.zeros(1))
        x = (3 + phase) * jnp.maximum(jnp.abs(stride), ROUNDING)
        return jax.lax.scan(advance, (x, state), length=steps)[1][steps // 2 :]

    paths = np.asarray(jax.jit(jax.vmap(late))((jnp.arange(phases) + 0.5) / phases))
    widest = paths[np.argmax(np.abs(paths).max(1))]
    turns = np.count_nonzero(np.diff(np.sign(widest)))
    return float(np.abs(paths).max()), 2 * (len(widest) - 1) / turns if turns else np.inf
