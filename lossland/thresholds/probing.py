"""Single steps of an optax update around a minimum: compiled once, measured at reference points and at other clocks."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lossland.thresholds.multipliers import ROUNDING

# Powers of two, so that scaling costs no bits: gradients far below every clipping threshold and eps, a preconditioner
# far above every eps. What the Jacobian picks up from being taken at NEAR and not at 0 is below NEGLIGIBLE.
NEAR = 2.0**-100
_FAR = 2.0**36
NEGLIGIBLE = 1e-26
_LONG_AGO = 2**30  # a step count at which bias corrections are 1
_CLOCKS = (1, 2, 7, 99, 1_001, 54_321, 1_000_003)  # where an update that follows a schedule shows it
_MARCH = (1, 2, 3, 4, 5, 7, 20, 50, 99, 101, 300, 1_001, 5_003, 20_011, 40_009)  # and where a bias correction does not
_SETTLED = 20_000  # steps after which the corrections of optax's own optimizers are over


def check_finite(name: str, hyperparameters: Mapping[str, Any]) -> None:
    for key, value in hyperparameters.items():
        if isinstance(value, int | float | np.number) and not np.isfinite(value):
            raise ValueError(f"{name}: {key} must be finite, got {value}; leave that point out")


def build_optimizer(factory: Any, name: str, hyperparameters: Mapping[str, Any]) -> Any:
    """Call a factory, after checking its arguments by name."""
    if not callable(factory):
        raise ValueError(f"threshold: expected an optax factory or an optax.GradientTransformation, got {factory!r}")
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:
        raise ValueError(f"threshold: expected an optax factory, got {factory!r}; wrap it in a function") from None
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    unknown = [] if any(p.kind is p.VAR_KEYWORD for p in parameters) else sorted(set(hyperparameters) - set(names))
    if unknown:
        raise ValueError(f"{name}: has no argument {', '.join(unknown)}; it has {', '.join(names)}")
    required = [p.name for p in parameters if p.name in names and p.default is p.empty]
    missing = [key for key in required if key not in hyperparameters]
    if missing:
        given = ", ".join(hyperparameters) or "none"
        raise ValueError(f"{name}: needs the arguments {', '.join(missing)}, got {given}; pass {missing[0]}=...")
    check_finite(name, hyperparameters)
    try:
        transformation = factory(**hyperparameters)
    except jax.errors.JAXTypeError:
        raise
    except (TypeError, ArithmeticError, LookupError, AttributeError) as error:
        raise ValueError(f"{name}: could not be built ({error}); pass its arguments by name") from error
    if not (hasattr(transformation, "init") and hasattr(transformation, "update")):
        raise ValueError(f"{name}: expected to return an optax.GradientTransformation, got {transformation!r}")
    return transformation


class Probe(NamedTuple):
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
    moving: np.ndarray  # (n,): the linearised update is another one at another clock
    alternating: np.ndarray  # (n,): it is the same two steps later, and another one step later


# Reference points, each with one thing changed that must not matter, or must matter in a known way.
REFERENCE, ELSEWHERE, SCALED, UNEQUAL, EARLY, REMEMBERED = range(6)
_STRIDE, _EARLY_STRIDE, _REST = range(6, 9)
_POINTS = 9  # every call of the compiled step has this many points, so that one program serves all


def compile_step(build: Callable, name: str, fixed: tuple[tuple[str, Any], ...]) -> tuple[Callable, ...]:
    """Compile an optimizer of one parameter, flattened to arrays and mapped over n lanes and k points each.

    start(lanes, x (n, k)) -> z (n, k, d), counts (n, k, c), corrects (n, k, c), trusted (n, k, c)
    step(lanes, z, counts, gradient (n, k)) -> z, counts, Jacobian (n, k, d, d + 1), second derivative in the gradient
    march(lanes, z, counts, running, number of steps (n, k)) -> z, counts, last stride: steps under a gradient of 1

    z = (x, the state's floats), counts = the state's integers. A count that `corrects` lies beside a float in its node:
    it drives that float's bias correction where optax keeps it so (`trusted`), and elsewhere where it is seen to; any
    other count drives a schedule.
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
        transformation = build_optimizer(build, name, {**dict(fixed), **lane[1]})
        state = transformation.init(x[None])
        _check_state(state, jax.eval_shape(transformation.init, jax.ShapeDtypeStruct((1, 1), jnp.float64)), name)
        leaves = jax.tree_util.tree_flatten_with_path(state)[0]
        homes = {path[:-1] for path, leaf in leaves if is_float(leaf)}

        def by_count(holds):
            marks = [np.full(np.size(leaf), holds(path[:-1])) for path, leaf in leaves if not is_float(leaf)]
            return jnp.asarray(np.concatenate([np.zeros(0, bool), *marks]))

        corrects = by_count(lambda home: home in homes)
        trusted = by_count(lambda home: type(_at(state, home)).__module__.partition(".")[0] == "optax")
        return *flatten(x[None], state), corrects, trusted

    def step(lane, z, counts, gradient):
        transformation = build_optimizer(build, name, {**dict(fixed), **lane[1]})
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
                if isinstance(error, TypeError) and "missing" in reason and "argument" in reason:
                    missing = reason[reason.index("missing") :]
                    raise ValueError(
                        f"{name}: an update without further arguments is {missing}: a step that depends on the loss"
                        " has no threshold of curvature alone; certify the chain without that part"
                    ) from error
                raise ValueError(
                    f"{name}: one update of a single real parameter could not be traced and differentiated"
                    f" ({type(error).__name__}: {reason}); expected init(params) and update(gradient, state, params) of"
                    " differentiable JAX operations, without Python control flow on swept values; of rules by the"
                    " names of parameters certify each by itself"
                ) from error

        return call

    def march(lane, z, counts, running, num_steps):
        """Steps under a constant gradient of 1 at x = 0, counts in `running` going on: z, and the last stride."""
        transformation = build_optimizer(build, name, {**dict(fixed), **lane[1]})
        like = jax.eval_shape(transformation.init, jax.ShapeDtypeStruct((1,), jnp.float64))

        def once(_, carry):
            z, counts, _ = carry
            y = z.at[0].set(0.0)
            updates, state = transformation.update(jnp.ones(1), unflatten(y, counts, like), y[:1])
            after, counts_after = flatten(optax.apply_updates(y[:1], updates), state)
            return after, jnp.where(running, counts_after, counts), after[0]

        return jax.lax.fori_loop(0, num_steps, once, (z, counts, jnp.zeros(())))

    return mapped(start, 1), mapped(step, 3), mapped(march, 4)


compile_once = functools.lru_cache(maxsize=64)(compile_step)


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    """Return the node of a tree at a key path."""
    for key in path:
        if hasattr(key, "name"):
            tree = getattr(tree, key.name)
        else:
            tree = tree[key.idx if hasattr(key, "idx") else key.key]
    return tree


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
def measure(programs: tuple[Callable, ...], swept: dict, num_lanes: int, clock: int | None) -> Probe:
    """Measure single steps around the minimum of a quadratic in one parameter, schedules at the step `clock`."""
    start, step = (functools.partial(program, (np.arange(num_lanes), swept)) for program in programs[:2])

    def everywhere(value):
        return np.broadcast_to(value, (num_lanes, _POINTS, *np.shape(value)[2:]))

    # What differs between the points: x, the preconditioner, the ratio of each second moment to the one before it, what
    # is added to remembered sizes, the displacement (norms have no derivative at 0), the gradient, the clock.
    defaults = [[0.0], [_FAR], [1.0], [0.0], [NEAR], [0.0]]
    x, scale, ratio, remembered, nearby, gradient = np.tile(defaults, _POINTS)
    clocks = np.full(_POINTS, _LONG_AGO if clock is None else clock)
    x[ELSEWHERE], scale[SCALED], ratio[UNEQUAL], remembered[REMEMBERED] = 1.0, 4 * _FAR, 4.0, _FAR**2
    clocks[[EARLY, _EARLY_STRIDE]], nearby[_STRIDE:], gradient[[_STRIDE, _EARLY_STRIDE]] = 0, 0.0, 1.0

    # Three states at zero gradient. A float that grows by equal amounts (a sum of weights) is a clock, set far ahead.
    zero = everywhere(np.zeros((1, 1)))
    z0, counts0, corrects, trusted = start(everywhere(x[None]))
    z1, counts1, *_ = step(z0, counts0, zero)
    z2, counts2, *_ = step(z1, counts1, zero)
    settled = np.where(z1 - z0 == z2 - z1, z2 + 2.0**52 * (z2 - z1), z2)
    counting = (counts1 == counts0 + 1) & (counts2 == counts0 + 2)
    if np.any(corrects & counting):
        # What a count does is a matter of the code, not of the numbers: two lanes of a grid tell.
        pick = np.unique([0, num_lanes - 1])
        few = (np.arange(len(pick)), {name: column[pick] for name, column in swept.items()})
        state, running = (z0[pick, :1], counts0[pick, :1]), (counting & corrects)[pick, :1]
        march = functools.partial(programs[2], few)
        corrects = corrects & _corrects_bias(march, *state, running, trusted[pick, :1], clock)
    ticking = (z1 - z0 == 1) & (z2 - z1 == 1)  # a step count kept as a float

    # How each float answers to the parameter and to the gradient: second moments are even, linear state is odd.
    base = everywhere(settled[:, :1]).copy()
    base[..., 0] = [0, 1, -1, 0, 0, 0, 0, 0, 0]
    probed = everywhere(np.array([[0, 0, 0, 1, -1, NEAR, -NEAR, 2 * NEAR, 0]]))
    response, _, jacobian, _ = step(base, everywhere(counts2[:, :1]), probed)
    plus, minus, double = (jacobian[:, point, :, -1] for point in (5, 6, 7))
    tolerance = ROUNDING * np.abs(plus)
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
    z = np.where(ticking & (clocks[:, None] < _LONG_AGO), clocks[:, None], z)

    def at(now):
        return np.where(counting, np.where(corrects, _LONG_AGO, now), counts2)

    counts = at(clocks[:, None])

    shape, generator = (4, z.shape[-1] + 1), np.random.default_rng(0)
    displacements = generator.uniform(0.5, 1.0, shape) * generator.choice([-1.0, 1.0], shape)
    aside = nearby[:, None] * np.abs(displacements[0])  # no two of opposite signs: no product looks like a reversal
    after, counts_after, jacobian, bend = step(z + aside[:, :-1], counts, gradient + aside[:, -1] + zero)
    rest = after[:, _REST]

    # The reference at other clocks, schedules and float counts set there.
    asked = _LONG_AGO if clock is None else clock
    others = np.array([*_CLOCKS, asked + 1, asked + 2])[:, None]
    here = everywhere(z[:, :1])
    here = np.where(ticking, others, here) + everywhere(aside[None, :1, :-1])
    *_, elsewhere, _ = step(here, at(others), everywhere(np.full((1, 1), aside[0, -1])))
    rank_of = np.where(even, scale[0], 1.0)[:, None, :, None]
    apart = np.abs(elsewhere - jacobian[:, :1]) / rank_of
    differs = (apart > 1e-6 * np.abs(jacobian[:, :1] / rank_of).max((2, 3), keepdims=True)).any((2, 3))

    # Opposite pairs of: everything, the state alone, the gradient alone, the parameter alone. The gradient is larger by
    # the preconditioner, so that all move the parameter alike.
    displacements[1, [0, -1]], displacements[2, :-1], displacements[3, 1:] = 0.0, 0.0, 0.0
    displacements[:, -1] *= _FAR
    displacements = np.concatenate([displacements, -displacements, 0 * displacements[:1]])
    still = z[:, _REST:], everywhere(counts[:, _REST:])
    images = [
        step(still[0] + size * displacements[:, :-1], still[1], zero + size * displacements[:, -1])[0]
        for size in (NEAR, 4 * NEAR)
    ]

    # An update divided by the moment of this very gradient bends in it (a maximum, of degree 1, only far from 0).
    bent = np.abs(bend[:, 0]) * _FAR**2 > 1e-12 * np.abs(jacobian[:, 0, :, -1]) * NEAR
    advanced = np.any((bent & ~even) | (even & (degree == 1)), axis=1)
    divisor = np.where(advanced[:, None, None], after, z)
    return Probe(
        jacobian=jacobian[:, : REMEMBERED + 1],
        preconditioner=np.max(np.where(even[:, None], divisor, 0.0) ** (1 / degree[:, None]), axis=-1),
        stride=after[:, [_STRIDE, _EARLY_STRIDE], 0] - after[:, [_REST], 0],
        images=np.stack([image[:, :-1] - rest[:, None] for image in images], axis=1),
        displacements=displacements[:-1],
        rest=rest,
        frozen=even,
        odd_moment=np.any(even & (np.abs(exponent - degree) > 1e-6), axis=1),
        moving=differs[:, :-2].any(1),
        alternating=differs[:, -2] & ~differs[:, -1],
        not_counting=np.any(~np.where(counting, counts_after == counts + 1, counts2 == counts1), axis=(1, 2)),
    )


def _corrects_bias(
    march: Callable,
    z: np.ndarray,
    counts: np.ndarray,
    running: np.ndarray,
    trusted: np.ndarray,
    clock: int | None,
) -> bool:
    """Say whether the counts that run do nothing but correct averages for their start at zero.

    Under a constant gradient corrected averages are constant from the first step on, and so is the update; a schedule
    changes it. Corrections of optax's own state (`trusted`) need not be of that kind, but are over after some time.
    """
    stops: list[int] = sorted({*_MARCH, *([] if clock is None else [clock + 1, clock + 2])})
    strides, before = [], 0
    for stop in stops:
        num_steps = np.full(z.shape[:2], stop - before)
        z, counts, stride = march(z, counts, running, num_steps)
        strides.append(stride[:, 0])
        before = stop
    table, late = np.array(strides), np.array(stops) > _SETTLED
    size = np.abs(table[-1])
    constant = np.ptp(table, axis=0) <= 1e-4 * size
    settled = (np.ptp(table[late], axis=0) <= 1e-3 * size) & (size > 0)
    return bool(np.any(constant | (settled & trusted.all((1, 2)))))  # a degenerate lane tells nothing
