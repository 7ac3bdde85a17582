"""Stability thresholds computed from an optimizer's own update.

On f(x) = curvature x^2 / 2 one optax step maps z = (x, float state) to A z + curvature b x, where A and b are the
Jacobians of the step with respect to z and to the gradient. The minimum is stable while the spectral radius of
J = A + curvature b e_x^T is at most 1, and

    det(w I - J) = p(w) - curvature q(w),    p(w) = det(w I - A),    q(w) = e_x^T adj(w I - A) b,

so the curvatures at which a multiplier w lies on the unit circle are the real values p / q takes there: a polynomial
equation, not a search. Second moments are frozen; they are known by what they do (even and homogeneous in the gradient,
the step inversely proportional to their root), not by name.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Powers of two, so that scaling costs no bits: gradients far below every clipping threshold and eps, a preconditioner
# far above every eps. What the Jacobian picks up from being taken at _NEAR and not at 0 is below _NEGLIGIBLE.
_NEAR = 2.0**-100
_FAR = 2.0**36
_NEGLIGIBLE = 1e-26
_LONG_AGO = 2**30  # a step count at which bias corrections are 1
_ROUNDING = 1e-9


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
            radius = _spectral_radius(*modes, curvature.reshape(1, -1)).reshape(curvature.shape)
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
    stand at `step`; bias corrections are those of late training (a count stored beside float state counts for theirs).
    A weight decay coupled into the gradient shifts H where nothing is preconditioned and is negligible beside P. The
    probe is a vector of one parameter. Another value of a float hyperparameter compiles nothing.

    Raises ValueError where an argument is missing, unknown or not finite, and where the update is random, periodic,
    complex, not differentiable, scaled by the parameter, or not preconditioned in a way that is known.
    """
    _check_step(step)
    factory, name, arguments = optimizer, _name(optimizer), hyperparameters
    if hasattr(optimizer, "build"):
        factory, name = optimizer.build, getattr(optimizer, "name", name)
    elif hasattr(optimizer, "init") and hasattr(optimizer, "update"):
        if hyperparameters:
            given = ", ".join(hyperparameters)
            raise ValueError(f"threshold: got {given} for an optimizer that is built already; pass its factory instead")
        factory, name, arguments = _built, "optimizer", {"transformation": optimizer}
    with jax.enable_x64(True), jax.default_device(_host()):
        transformation = _build(factory, name, arguments)
        linear = _linearise(_measure_one(factory, name, arguments, step), name, step, [hyperparameters])
        if not linear.finite[0]:
            raise ValueError(f"{name}: one update of a single parameter is not finite at a vanishing gradient")
        if linear.sign_like[0]:
            amplitude, period = _limit_cycle(transformation, step)
            condition = "none: the update keeps its size as the gradient vanishes, at every positive curvature"
            return Certificate(None, None, None, period, False, condition, amplitude)
    preconditioned = bool(linear.preconditioned[0])
    condition = "gradients far below any clipping threshold or eps, bias corrections settled"
    if preconditioned:
        condition = "second moment frozen, far above eps; gradients below any clipping threshold, corrections settled"
    if linear.scheduled[0]:
        condition += f", schedules at step {step}"
    critical, lower, multiplier = (column[0] for column in _stable_interval(linear))
    parts = linear.transition[0], linear.gradient_response[0]
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
    name = _name(build)
    columns = {key: np.asarray(values, dtype=np.float64) for key, values in hyperparameters.items()}
    shapes = {key: column.shape for key, column in columns.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 1:
        raise ValueError(f"critical_curvatures: hyperparameters must be arrays of one shape (n,), got {shapes}")
    points = [dict(zip(columns, map(float, row), strict=True)) for row in zip(*columns.values(), strict=True)]
    for point in points:
        _check_finite(name, point)
    if not points:
        return np.empty(0)
    with jax.enable_x64(True), jax.default_device(_host()):
        probe = _measure(_compile_once(build, name, ()), columns, len(points), step)
    linear = _linearise(probe, name, step, points)
    return np.where(linear.exists, _stable_interval(linear)[0], np.nan)


def _measure_one(factory: Callable, name: str, hyperparameters: dict[str, Any], step: int | None) -> "_Probe":
    """Measure one point, its real hyperparameters traced where that is possible, so that others compile nothing."""
    swept = {key: np.full(1, float(v)) for key, v in hyperparameters.items() if isinstance(v, float | np.floating)}
    fixed = tuple((key, value) for key, value in hyperparameters.items() if key not in swept)
    try:
        programs = _compile_once(factory, name, fixed)
    except TypeError:  # an argument without a hash
        programs = _compile(factory, name, fixed)
    try:
        return _measure(programs, swept, 1, step)
    except ValueError as error:
        if not swept or not isinstance(error.__cause__, jax.errors.JAXTypeError):
            raise
        return _measure(_compile(factory, name, tuple(hyperparameters.items())), {}, 1, step)


def _built(transformation: Any) -> Any:
    return transformation


def _host() -> Any:
    """Return a CPU where JAX has one: accelerators are slow or inexact in float64."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def _name(optimizer: Any) -> str:
    return getattr(getattr(optimizer, "func", optimizer), "__name__", type(optimizer).__name__)


def _check_step(step: Any) -> None:
    if step is not None and (isinstance(step, bool) or not isinstance(step, int | np.integer) or not 0 <= step < 2**31):
        raise ValueError(f"threshold: step must be an integer from 0 to 2^31 - 1 or None, got {step!r}")


def _check_finite(name: str, hyperparameters: Mapping[str, Any]) -> None:
    for key, value in hyperparameters.items():
        if isinstance(value, int | float | np.number) and not np.isfinite(value):
            raise ValueError(f"{name}: {key} must be finite, got {value}; leave that point out")


def _build(factory: Any, name: str, hyperparameters: Mapping[str, Any]) -> Any:
    """Call a factory, after checking its arguments by name."""
    if not callable(factory):
        raise ValueError(f"threshold: expected an optax factory or an optax.GradientTransformation, got {factory!r}")
    parameters = inspect.signature(factory).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    unknown = [] if any(p.kind is p.VAR_KEYWORD for p in parameters) else sorted(set(hyperparameters) - set(names))
    if unknown:
        raise ValueError(f"{name}: has no argument {', '.join(unknown)}; it has {', '.join(names)}")
    required = [p.name for p in parameters if p.name in names and p.default is p.empty]
    missing = [key for key in required if key not in hyperparameters]
    if missing:
        given = ", ".join(hyperparameters) or "none"
        raise ValueError(f"{name}: needs the arguments {', '.join(missing)}, got {given}; pass {missing[0]}=...")
    _check_finite(name, hyperparameters)
    try:
        transformation = factory(**hyperparameters)
    except jax.errors.JAXTypeError:
        raise
    except TypeError as error:
        raise ValueError(f"{name}: could not be built ({error}); pass its arguments by name") from error
    if not (hasattr(transformation, "init") and hasattr(transformation, "update")):
        raise ValueError(f"{name}: expected to return an optax.GradientTransformation, got {transformation!r}")
    return transformation


class _Probe(NamedTuple):
    """Hold what n lanes measure of a step; d counts the parameter and the floats of the state."""

    jacobian: np.ndarray  # (n, variant, d, d + 1): derivatives with respect to parameter, state and gradient
    preconditioner: np.ndarray  # (n, variant): the divisor, read from the second moments
    stride: np.ndarray  # (n, 2): the parameter's response to a gradient of 1, at the step asked for and at step 0
    images: np.ndarray  # (n, 2, displacement, d): exact responses to small displacements, and to 4 times these
    displacements: np.ndarray  # (displacement, d + 1)
    rest: np.ndarray  # (n, d): parameter and state after a step at zero gradient
    frozen: np.ndarray  # (n, d): second moments
    odd_moment: np.ndarray  # (n,): a float is even in the gradient, but homogeneous of neither degree 1 nor degree 2
    not_counting: np.ndarray  # (n,): an integer is neither a step count nor settled


# Reference points, each with one thing changed that must not matter, or must matter in a known way.
_REFERENCE, _ELSEWHERE, _SCALED, _UNEQUAL, _EARLY, _REMEMBERED = range(6)
_STRIDE, _EARLY_STRIDE, _REST = range(6, 9)
_POINTS = 9  # every call of the compiled step has this many points, so that one program serves all


def _compile(build: Callable, name: str, fixed: tuple[tuple[str, Any], ...]) -> tuple[Callable, Callable]:
    """Compile an optimizer of one parameter, flattened to arrays and mapped over n lanes and k points each.

    start(lanes, x (n, k)) -> z (n, k, d), counts (n, k, c), corrects (n, k, c)
    step(lanes, z, counts, gradient (n, k)) -> z, counts, Jacobian (n, k, d, d + 1), second derivative in the gradient

    z = (x, the state's floats), counts = the state's integers. A count that `corrects` lies beside a float in its node
    and is taken to drive that float's bias correction; any other count drives a schedule.
    """

    def is_float(leaf):
        return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)

    def flatten(x, state):
        leaves = [jnp.ravel(jnp.asarray(leaf)) for leaf in jax.tree.leaves(state)]
        floats = [leaf.astype(jnp.float64) for leaf in leaves if is_float(leaf)]
        counts = [leaf.astype(jnp.int64) for leaf in leaves if not is_float(leaf)]
        return jnp.concatenate([x, *floats]), jnp.concatenate([jnp.zeros(0, jnp.int64), *counts])

    def unflatten(z, counts, like):
        leaves, treedef = jax.tree.flatten(like)
        values, taken = [], {True: 1, False: 0}
        for leaf in leaves:
            source, first = z if is_float(leaf) else counts, taken[is_float(leaf)]
            values.append(source[first : first + leaf.size].reshape(leaf.shape).astype(leaf.dtype))
            taken[is_float(leaf)] += leaf.size
        return treedef.unflatten(values)

    def start(lane, x):
        transformation = _build(build, name, {**dict(fixed), **lane[1]})
        state = transformation.init(x[None])
        _check_state(state, jax.eval_shape(transformation.init, jax.ShapeDtypeStruct((1, 1), jnp.float64)), name)
        leaves = jax.tree_util.tree_flatten_with_path(state)[0]
        homes = {path[:-1] for path, leaf in leaves if is_float(leaf)}
        corrects = [np.full(np.size(leaf), path[:-1] in homes) for path, leaf in leaves if not is_float(leaf)]
        return *flatten(x[None], state), jnp.asarray(np.concatenate([np.zeros(0, bool), *corrects]))

    def step(lane, z, counts, gradient):
        transformation = _build(build, name, {**dict(fixed), **lane[1]})
        like = jax.eval_shape(transformation.init, jax.ShapeDtypeStruct((1,), jnp.float64))

        def advance(y):
            updates, state = transformation.update(y[-1:], unflatten(y, counts, like), y[:1])
            if jax.tree.map(jnp.shape, state) != jax.tree.map(jnp.shape, like):
                raise ValueError(f"{name}: the update changes the structure of its state, expected the one from init")
            if jnp.iscomplexobj(updates):
                raise ValueError(f"{name}: the update is complex, expected a real update of a real parameter")
            after, counts_after = flatten(optax.apply_updates(y[:1], updates), state)
            return after, (after, counts_after)

        y = jnp.append(z, gradient)
        along = jnp.zeros_like(y).at[-1].set(1.0)
        jacobian, (after, counts_after) = jax.jacfwd(advance, has_aux=True)(y)
        bend = jax.jvp(lambda y: jax.jvp(lambda y: advance(y)[0], (y,), (along,))[1], (y,), (along,))[1]
        return after, counts_after, jacobian, bend

    def mapped(function, num_arguments):
        points = jax.vmap(function, in_axes=(None, *[0] * num_arguments))
        # Compiling takes all the time: the programs are small and run a handful of times.
        compiled = jax.jit(jax.vmap(points), compiler_options={"xla_backend_optimization_level": 0})

        def call(*arguments):
            try:
                return jax.tree.map(np.asarray, compiled(*arguments))
            except Exception as error:
                if isinstance(error, ValueError) and str(error).startswith(f"{name}: "):
                    raise
                reason = (str(error).strip().splitlines() or [""])[0]
                raise ValueError(
                    f"{name}: one update of a single real parameter could not be traced and differentiated"
                    f" ({type(error).__name__}: {reason}); expected init(params) and update(gradient, state, params) of"
                    " differentiable JAX operations, without further arguments or Python control flow on swept values"
                ) from error

        return call

    return mapped(start, 1), mapped(step, 3)


_compile_once = functools.lru_cache(maxsize=64)(_compile)


def _check_state(vector: Any, matrix: Any, name: str) -> None:
    """Refuse state that is no real number or count, and rules that depend on a parameter's number of axes."""

    def num_masked(state):
        nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
        return sum(isinstance(node, optax.MaskedNode) for node in nodes)

    if num_masked(vector) != num_masked(matrix):
        raise ValueError(f"{name}: treats matrices by another rule than vectors; certify the rule of each by itself")
    for path, leaf in jax.tree_util.tree_flatten_with_path(vector)[0]:
        dtype = jnp.result_type(leaf)
        is_complex, is_key = jnp.issubdtype(dtype, jnp.complexfloating), jnp.issubdtype(dtype, jax.dtypes.prng_key)
        if is_complex or is_key:
            raise ValueError(
                f"{name}: state{jax.tree_util.keystr(path)} is {'complex' if is_complex else 'a random key'} ({dtype}),"
                " expected real numbers and counts; leave out the part of the chain that holds it"
            )


@np.errstate(all="ignore")  # what is not finite is reported by lane
def _measure(programs: tuple[Callable, Callable], swept: dict, num_lanes: int, clock: int | None) -> _Probe:
    """Measure single steps around the minimum of a quadratic in one parameter, schedules at the step `clock`."""
    start, step = (functools.partial(program, (np.arange(num_lanes), swept)) for program in programs)

    def everywhere(value):
        return np.broadcast_to(value, (num_lanes, _POINTS, *np.shape(value)[2:]))

    # What differs between the points: x, the preconditioner, the ratio of each second moment to the one before it, what
    # is added to remembered sizes, the displacement (norms have no derivative at 0), the gradient, the clock.
    defaults = [[0.0], [_FAR], [1.0], [0.0], [_NEAR], [0.0]]
    x, scale, ratio, remembered, nearby, gradient = np.tile(defaults, _POINTS)
    clocks = np.full(_POINTS, _LONG_AGO if clock is None else clock)
    x[_ELSEWHERE], scale[_SCALED], ratio[_UNEQUAL], remembered[_REMEMBERED] = 1.0, 4 * _FAR, 4.0, _FAR**2
    clocks[[_EARLY, _EARLY_STRIDE]], nearby[_STRIDE:], gradient[[_STRIDE, _EARLY_STRIDE]] = 0, 0.0, 1.0

    # Three states at zero gradient. A float that grows by equal amounts (a sum of weights) is a clock, set far ahead.
    zero = everywhere(np.zeros((1, 1)))
    z0, counts0, corrects = start(everywhere(x[None]))
    z1, counts1, *_ = step(z0, counts0, zero)
    z2, counts2, *_ = step(z1, counts1, zero)
    settled = np.where(z1 - z0 == z2 - z1, z2 + 2.0**52 * (z2 - z1), z2)
    counting = (counts1 == counts0 + 1) & (counts2 == counts0 + 2)

    # How each float answers to the parameter and to the gradient: second moments are even, linear state is odd.
    base = everywhere(settled[:, :1]).copy()
    base[..., 0] = [0, 1, -1, 0, 0, 0, 0, 0, 0]
    probed = everywhere(np.array([[0, 0, 0, 1, -1, _NEAR, -_NEAR, 2 * _NEAR, 0]]))
    response, _, jacobian, _ = step(base, everywhere(counts2[:, :1]), probed)
    plus, minus, double = (jacobian[:, point, :, -1] for point in (5, 6, 7))
    tolerance = _ROUNDING * np.abs(plus)
    even = (plus != 0) & (np.abs(plus + minus) <= tolerance)
    odd = (plus != 0) & (np.abs(plus - minus) <= tolerance)
    even[:, 0] = False
    exponent = 1 + np.log2(np.where(even, double / np.where(even, plus, 1.0), 1.0))
    degree = np.clip(np.round(exponent), 1, 2)
    symmetric = [(response[:, k] == response[:, k + 1]) & (response[:, k] != response[:, 0]) for k in (1, 3)]
    memory = (symmetric[0] | symmetric[1]) & ~even & ~odd  # of the distance travelled, of the largest gradient seen

    rank = np.cumsum(even, axis=1) - 1
    moments = (scale[:, None] * ratio[:, None] ** rank[:, None]) ** degree[:, None]
    z = np.where(even[:, None], moments, np.where(odd[:, None], 0.0, settled))
    z = np.where(memory[:, None], z + remembered[:, None] * (np.abs(z) + 1), z)
    z[..., 0] = x
    counts = np.where(counting, np.where(corrects, _LONG_AGO, clocks[:, None]), counts2)

    shape, generator = (4, z.shape[-1] + 1), np.random.default_rng(0)
    displacements = generator.uniform(0.5, 1.0, shape) * generator.choice([-1.0, 1.0], shape)
    aside = nearby[:, None] * np.abs(displacements[0])  # no two of opposite signs: no product looks like a reversal
    after, counts_after, jacobian, bend = step(z + aside[:, :-1], counts, gradient + aside[:, -1] + zero)
    rest = after[:, _REST]

    # Opposite pairs of: everything, the state alone, the gradient alone, the parameter alone. The gradient is larger by
    # the preconditioner, so that all move the parameter alike.
    displacements[1, [0, -1]], displacements[2, :-1], displacements[3, 1:] = 0.0, 0.0, 0.0
    displacements[:, -1] *= _FAR
    displacements = np.concatenate([displacements, -displacements, 0 * displacements[:1]])
    still = z[:, _REST:], everywhere(counts[:, _REST:])
    images = [
        step(still[0] + size * displacements[:, :-1], still[1], zero + size * displacements[:, -1])[0]
        for size in (_NEAR, 4 * _NEAR)
    ]

    # An update divided by the moment of this very gradient bends in it (a maximum, of degree 1, only far from 0).
    bent = np.abs(bend[:, 0]) * _FAR**2 > 1e-12 * np.abs(jacobian[:, 0, :, -1]) * _NEAR
    advanced = np.any((bent & ~even) | (even & (degree == 1)), axis=1)
    divisor = np.where(advanced[:, None, None], after, z)
    return _Probe(
        jacobian=jacobian[:, : _REMEMBERED + 1],
        preconditioner=np.max(np.where(even[:, None], divisor, 0.0) ** (1 / degree[:, None]), axis=-1),
        stride=after[:, [_STRIDE, _EARLY_STRIDE], 0] - after[:, [_REST], 0],
        images=np.stack([image[:, :-1] - rest[:, None] for image in images], axis=1),
        displacements=displacements[:-1],
        rest=rest,
        frozen=even,
        odd_moment=np.any(even & (np.abs(exponent - degree) > 1e-6), axis=1),
        not_counting=np.any(~np.where(counting, counts_after == counts + 1, counts2 == counts1), axis=(1, 2)),
    )


class _Linear(NamedTuple):
    """Hold the linearised updates of n lanes, curvature in units of the preconditioner where there is one."""

    transition: np.ndarray  # A, Float[ndarray, "n m m"]: the m modes that see the gradient and are seen by x, x first
    gradient_response: np.ndarray  # b, Float[ndarray, "n m"]
    p: np.ndarray  # Float[ndarray, "n m+1"], highest power first
    q: np.ndarray  # Float[ndarray, "n m+1"]
    finite: np.ndarray
    exists: np.ndarray
    sign_like: np.ndarray
    preconditioned: np.ndarray
    scheduled: np.ndarray


def _linearise(probe: _Probe, name: str, step: int | None, points: list[dict[str, Any]]) -> _Linear:
    """Check what every lane measured and reduce it to A and b; ValueError where no lane passes, naming the first."""
    measured = (probe.jacobian, probe.images, probe.rest)
    finite: Any = np.isfinite(np.concatenate([a.reshape(len(points), -1) for a in measured], axis=1)).all(1)
    certified = finite.copy()

    def refuse(bad, reason):
        bad = bad & certified
        np.logical_and(certified, ~bad, out=certified)
        if np.any(bad) and not np.any(certified):
            point = ", ".join(f"{key}={value}" for key, value in points[int(np.argmax(bad))].items())
            raise ValueError(f"{name}({point}): {reason}")

    refuse(
        probe.not_counting,
        "the state holds an integer that is neither a step count nor constant: a random or periodic update, which no"
        " single step represents; leave that part (noise, accumulation, alternation) out of the chain",
    )
    refuse(probe.rest[:, 0] != 0, "the update moves the parameter at zero gradient, expected it to rest")
    refuse(
        probe.odd_moment,
        "the state holds an even function of the gradient that grows neither like it nor like its square; expected"
        " second moments like those of Adam, RMSprop, Adagrad or Adamax",
    )

    def linear_part(keep):
        inputs = np.append(keep, keep[:, :1], axis=1)
        kept = np.where(keep[:, None, :, None] & inputs[:, None, None], probe.jacobian, 0.0)
        return np.where(finite[:, None, None, None], kept, 0.0), inputs

    jacobian, inputs = linear_part(~probe.frozen)
    edges: Any = (np.abs(jacobian[:, [_REFERENCE, _EARLY]]) > _NEGLIGIBLE).any(1)
    scale = _NEAR * np.array([1.0, 4.0])[:, None, None]
    displaced = np.where(inputs[:, None], probe.displacements, 0.0)
    error = np.where(finite[:, None, None, None], probe.images, 0.0)
    error = error - scale * np.einsum("nij,nkj->nki", jacobian[:, _REFERENCE], displaced)[:, None]
    bound = scale * np.einsum("nij,nkj->nki", np.abs(jacobian[:, _REFERENCE]), np.abs(displaced))[:, None]
    rounding = 4 * np.finfo(np.float64).eps * np.abs(probe.rest)[:, None, None]
    wrong = np.abs(error) > 1e-6 * bound + rounding + 1e-14 * scale

    reached = edges[..., -1] | (wrong.any((1, 2)) & ~probe.frozen)
    seen = np.zeros_like(reached)
    seen[:, 0] = True
    for _ in range(seen.shape[1]):
        reached = reached | np.einsum("nij,nj->ni", edges[..., :-1], reached)
        seen = seen | np.einsum("nij,ni->nj", edges[..., :-1], seen)
    active = reached & seen
    wrong &= active[:, None, None]
    constant = np.abs(error[:, 0] - error[:, 1]) <= 1e-6 * np.abs(error[:, 0])
    sign_like = (wrong[:, 0] & constant).any((1, 2))
    refuse(
        wrong.any((1, 2, 3)) & ~sign_like,
        "the update is not differentiable at the minimum, is scaled by the parameter itself (trust ratios are), or"
        " keeps state in less than single precision: no curvature separates stable from unstable",
    )
    exists = finite & active[:, 0] & ~sign_like

    active[:, 0] = True
    columns = np.flatnonzero(active.any(0))
    jacobian, _ = linear_part(active)
    a, b = jacobian[..., columns[:, None], columns], jacobian[..., columns, -1]
    p, q = _characteristic(a, b)

    def same(variant, factor):
        gap_p, gap_q = np.abs(p[:, variant] - p[:, 0]).max(1), np.abs(factor * q[:, variant].T - q[:, 0].T).max(0)
        largest = np.maximum(np.abs(q[:, 0]).max(1), _NEGLIGIBLE)
        return ~exists | ((gap_p <= _ROUNDING * np.abs(p[:, 0]).max(1)) & (gap_q <= _ROUNDING * largest))

    refuse(
        ~same(_ELSEWHERE, 1.0) | ~same(_REMEMBERED, 1.0),
        "the step is scaled by the parameter, by the distance it has travelled or by the largest gradient seen, so"
        " there is no threshold of curvature alone",
    )
    scheduled = ~same(_EARLY, 1.0) | ~np.isclose(*probe.stride.T, rtol=1e-6, atol=0.0)
    if step is None:
        refuse(scheduled, "the update follows a schedule; pass step=...")
    unit = np.where(probe.preconditioner > 0, probe.preconditioner, 1.0)
    ratio = unit / unit[:, :1]
    unaffected = same(_SCALED, 1.0) & same(_UNEQUAL, 1.0)
    proportional = same(_SCALED, ratio[:, _SCALED]) & same(_UNEQUAL, ratio[:, _UNEQUAL])
    refuse(
        ~unaffected & ~proportional,
        "the update is not inversely proportional to the root of its second moments: they are not a preconditioner",
    )
    unit = np.where(unaffected, 1.0, unit[:, 0])[:, None]
    exists = exists & certified & (~unaffected | unaffected.all())  # one grid, one unit
    return _Linear(
        transition=a[:, 0],
        gradient_response=b[:, 0] * unit,
        p=p[:, 0],
        q=q[:, 0] * unit,
        finite=finite,
        exists=exists,
        sign_like=sign_like & certified,
        preconditioned=~unaffected,
        scheduled=scheduled,
    )


def _characteristic(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the coefficients of p(w) = det(w I - A) and q(w) = e_x^T adj(w I - A) b, highest power first.

    The recursion of Faddeev and LeVerrier; its terms are products around cycles, so the units of the state drop out.
    """
    size = a.shape[-1]
    adjugate = np.broadcast_to(np.eye(size), a.shape)
    p, q = [np.ones(a.shape[:-2])], [np.zeros(a.shape[:-2])]
    for k in range(1, size + 1):
        q.append(np.einsum("...j,...j->...", adjugate[..., 0, :], b))
        product = a @ adjugate
        p.append(-np.trace(product, axis1=-2, axis2=-1) / k)
        adjugate = product + p[-1][..., None, None] * np.eye(size)
    return np.stack(p, -1), np.stack(q, -1)


def _spectral_radius(a: np.ndarray, b: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """Return the spectral radius of A + curvature b e_x^T, Float[ndarray, "n k"] for curvature of that shape."""
    matrices = np.repeat(a[:, None], curvature.shape[1], axis=1)
    matrices[..., 0] += curvature[..., None] * b[:, None]
    usable: Any = np.isfinite(matrices).all((-2, -1))
    radius = np.abs(np.linalg.eigvals(np.where(usable[..., None, None], matrices, 0.0))).max(-1)
    return np.where(usable, radius, np.nan)


def _evaluate(coefficients: np.ndarray, w: np.ndarray) -> np.ndarray:
    value = np.zeros_like(w)
    for column in coefficients.T:
        value = value * w + column[:, None]
    return value


def _crossings(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every curvature p(w) / q(w) with a multiplier w on the unit circle, ascending, and the w; NaN last.

    Besides w = 1 and w = -1, the value is real where Im p(w) conj(q(w)) / sin t = sum_m s_m U_(m-1)(cos t) is zero at
    w = exp(i t), with s_m = sum_k p_(k+m) q_k - p_k q_(k+m) and U the Chebyshev polynomials of the second kind.
    """
    lanes, size = len(p), p.shape[1] - 1
    rising_p, rising_q = p[:, ::-1], q[:, ::-1]
    power = np.zeros((lanes, size))  # in cos t, lowest first
    chebyshev = [np.eye(1, size)[0], 2 * np.eye(1, size, 1)[0]]
    for m in range(1, size + 1):
        forward, backward = rising_p[:, m:] * rising_q[:, :-m], rising_p[:, :-m] * rising_q[:, m:]
        power += (forward - backward).sum(1)[:, None] * chebyshev[m - 1]
        chebyshev.append(2 * np.roll(chebyshev[m], 1) - chebyshev[m - 1])
    power[np.abs(power) <= 1e-13 * np.abs(power).max(1, keepdims=True)] = 0.0
    cosine = np.full((lanes, size - 1), np.nan)
    for lane in range(lanes):
        roots = np.roots(power[lane, ::-1])
        real = roots[(np.abs(roots.imag) < 1e-6) & (np.abs(roots.real) < 1)].real
        cosine[lane, : len(real)] = real
    one = np.ones((lanes, 1))
    w = np.concatenate([one, one, -one, cosine + 1j * np.sqrt(1 - cosine**2)], axis=1)
    gain = _evaluate(q, w)
    rounding = 16 * np.finfo(np.float64).eps
    with np.errstate(divide="ignore", invalid="ignore"):
        curvature = (_evaluate(p, w) / gain).real
        curvature[np.abs(curvature) <= rounding * np.abs(p).sum(1, keepdims=True) / np.abs(gain)] = 0.0
        curvature[~(np.abs(gain) > rounding * np.abs(q).sum(1, keepdims=True))] = np.nan
    curvature[:, 0] = 0.0  # where x stands still: a mode that the gradient does not reach can hide this crossing
    order = np.argsort(curvature, axis=1)
    return np.take_along_axis(curvature, order, 1), np.take_along_axis(w, order, 1)


def _stable_interval(linear: _Linear) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where each lane's stable interval ends and begins, and the multiplier that crosses at its end.

    The interval is the first to end at a positive curvature; NaN where none does, -inf where it has no beginning.
    """
    curvature, w = _crossings(linear.p, linear.q)
    largest = np.max(np.nan_to_num(np.abs(curvature)), axis=1, keepdims=True)
    largest = np.where(largest > 0, largest, 1.0)
    ends = np.concatenate([-2 * largest, np.where(np.isnan(curvature), 2 * largest, curvature), 2 * largest], axis=1)
    left, right = ends[:, :-1], ends[:, 1:]
    stable = _spectral_radius(linear.transition, linear.gradient_response, (left + right) / 2) <= 1 + _ROUNDING
    # Multipliers that cross together leave an interval of rounding between them, which says nothing.
    empty = right - left <= 1e-10 * (np.abs(left) + np.abs(right))
    for k in range(1, stable.shape[1]):
        stable[:, k] = np.where(empty[:, k], stable[:, k - 1], stable[:, k])
    lanes, columns = np.arange(len(stable)), np.arange(curvature.shape[1])
    closes = stable[:, :-1] & ~stable[:, 1:] & (right[:, :-1] > 0)
    last = np.argmax(closes, axis=1)
    opens = ~stable[:, :-1] & stable[:, 1:] & (columns < last[:, None])
    first = curvature.shape[1] - 1 - np.argmax(opens[:, ::-1], axis=1)
    lower = np.where(opens.any(1), curvature[lanes, first], -np.inf)
    exists = closes[lanes, last]
    upper, w = np.where(exists, curvature[lanes, last], np.nan), w[lanes, last]
    rows = np.flatnonzero(exists & (np.imag(w) != 0))
    upper[rows], w[rows] = _polished(linear.transition[rows], linear.gradient_response[rows], upper[rows])
    return upper, np.where(exists, lower, np.nan), w


def _polished(a: np.ndarray, b: np.ndarray, curvature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return complex crossings to the accuracy of eigenvalues: polynomials lose digits where multipliers cluster.

    The secant method on the spectral radius; also returned are the multipliers there, imaginary part positive.
    """
    points = [curvature * (1 - 1e-4), curvature]
    values = [_spectral_radius(a, b, point[:, None])[:, 0] - 1 for point in points]
    for _ in range(8):
        slope = (values[-1] - values[-2]) / np.where(points[-1] != points[-2], points[-1] - points[-2], np.inf)
        step = np.clip(values[-1] / np.where(slope != 0, slope, np.inf), -1e-2 * curvature, 1e-2 * curvature)
        points.append(points[-1] - step)
        values.append(_spectral_radius(a, b, points[-1][:, None])[:, 0] - 1)
    best = np.argmin(np.abs(values), axis=0)
    curvature = np.array(points)[best, np.arange(len(best))]
    multipliers = np.linalg.eigvals(a + np.einsum("n,ni,j->nij", curvature, b, np.eye(1, a.shape[-1])[0]))
    outermost = np.argmax(np.abs(multipliers), axis=1)
    multiplier = multipliers[np.arange(len(outermost)), outermost].astype(complex)
    return curvature, np.real(multiplier) + 1j * np.abs(np.imag(multiplier))


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
        x = (3 + phase) * jnp.maximum(jnp.abs(stride), _ROUNDING)
        return jax.lax.scan(advance, (x, state), length=steps)[1][steps // 2 :]

    paths = np.asarray(jax.jit(jax.vmap(late))((jnp.arange(phases) + 0.5) / phases))
    widest = paths[np.argmax(np.abs(paths).max(1))]
    turns = np.count_nonzero(np.diff(np.sign(widest)))
    return float(np.abs(paths).max()), 2 * (len(widest) - 1) / turns if turns else np.inf
