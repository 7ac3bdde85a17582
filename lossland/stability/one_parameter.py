"""Any optax optimizer on one parameter, every step recorded, many settings at once: what laws are measured against."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lossland.optimizers import Optimizer, as_optimizer
from lossland.sweeps.curvature_probes import next_preconditioner
from lossland.sweeps.probes import State


class Path(NamedTuple):
    """What a run did, before every step: `Float[ndarray, "lane step"]` each, float64.

    `x` and the `gradient` there (noise included); `first_moment` and `second_moment` before this gradient enters them
    (zero where the optimizer has none); `kappa` = learning_rate x f''(x) / P, P the divisor of the step that follows.
    """

    x: Any
    gradient: Any
    first_moment: Any
    second_moment: Any
    kappa: Any


def simulate(
    optimizer: Any,
    num_steps: int,
    *,
    start: Any = 1.0,
    curvature: Any = 1.0,
    power: Any = 2.0,
    noise: Any = 0.0,
    seed: int = 0,
    **arguments: Any,
) -> Path:
    """Train one parameter with the optimizer itself in float64 and record every step.

    Equation: f(x) = curvature |x|^power / power, gradient curvature |x|^(power - 1) sign x + noise N(0, 1), x_0 =
    start. `optimizer` is an optax factory or an `ll.Optimizer`; `arguments` are its own, `learning_rate` among them.
    Everything but `num_steps` and `seed` is a number or an array of one axis; arrays advance together, one lane each,
    and another value compiles nothing. Lanes draw different noise.

    Raises ValueError for arrays of different lengths, arguments that the optimizer does not have, and optimizers that
    are not of the form (first moment) / sqrt(second moment).
    """
    optimizer = as_optimizer(optimizer)
    named = {"start": start, "curvature": curvature, "power": power, "noise": noise, **arguments}
    shapes = {name: np.shape(value) for name, value in named.items()}
    if any(len(shape) > 1 for shape in shapes.values()) or len({*shapes.values()} - {()}) > 1:
        raise ValueError(f"simulate: expected numbers and arrays of one length, got shapes {shapes}")
    optimizer.check({name: None for name in arguments})
    lanes = max((shape[0] for shape in shapes.values() if shape), default=1)
    values = {name: np.broadcast_to(np.asarray(value, np.float64), (lanes,)) for name, value in named.items()}
    fixed = tuple(sorted(optimizer.arguments.items()))
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        keys = jax.vmap(lambda lane: jax.random.fold_in(jax.random.key(seed), lane))(jnp.arange(lanes))
        path = _program(optimizer.factory, fixed, num_steps, bool(np.any(values["noise"])))(values, keys)
        return Path(*(np.asarray(column).T for column in path))


class Events(NamedTuple):
    """Rounds of crossing, spike and trough, `[ndarray, "event"]` each; steps index the path.

    `lane`; `crossing`: first step with kappa >= kappa*; `spike`: first step from there on with |gradient| at least the
    root of the second moment of the crossing; `peak` and `trough`: extremes of kappa until `next_crossing`.
    """

    lane: np.ndarray
    crossing: np.ndarray
    spike: np.ndarray
    peak: np.ndarray
    trough: np.ndarray
    next_crossing: np.ndarray


def spike_events(path: Path, critical: Any, settled: Any = 100) -> Events:
    """Find every complete round after `settled` steps: kappa rises through `critical`, the loss spikes, kappa falls."""
    lanes = len(path.kappa)
    critical, settled = (np.broadcast_to(np.asarray(x, np.float64), (lanes,)) for x in (critical, settled))
    found = []
    for lane, threshold in enumerate(critical):
        kappa, size = path.kappa[lane], np.abs(path.gradient[lane])
        above = kappa >= threshold
        rises = np.flatnonzero(above[1:] & ~above[:-1]) + 1
        falls = np.flatnonzero(~above[1:] & above[:-1]) + 1
        last = settled[lane]
        for crossing in rises[rises < len(kappa) - 1]:
            if crossing < last:
                continue
            loud = size[crossing:] >= np.sqrt(path.second_moment[lane, crossing + 1])
            spike = crossing + int(np.argmax(loud))
            later_falls = falls[falls > spike]
            if not loud.any() or not len(later_falls):
                break
            later_rises = rises[rises > later_falls[0]]
            if not len(later_rises):
                break
            after = later_rises[0]
            peak = crossing + int(np.argmax(kappa[crossing : later_falls[0]]))
            trough = later_falls[0] + int(np.argmin(kappa[later_falls[0] : after]))
            found.append((lane, crossing, spike, peak, trough, after))
            last = after
    return Events(*np.array(found, int).reshape(-1, 6).T)


@functools.lru_cache(maxsize=32)
def _program(factory: Any, fixed: tuple, num_steps: int, noisy: bool) -> Callable[..., Any]:
    def one(values: dict[str, jax.Array], key: jax.Array) -> Path:
        shape = {name: values[name] for name in ("start", "curvature", "power", "noise")}
        optimizer = Optimizer(factory, **dict(fixed)).with_arguments(
            **{name: value for name, value in values.items() if name not in shape}
        )
        curvature, power = shape["curvature"], shape["power"]

        def objective(x: jax.Array) -> jax.Array:
            return curvature * jnp.abs(x) ** power / power

        def step(carry: Any, now: jax.Array) -> Any:
            x, opt_state = carry
            gradient = curvature * jnp.abs(x) ** (power - 1) * jnp.sign(x)
            if noisy:
                gradient += shape["noise"] * jax.random.normal(jax.random.fold_in(key, now), (), x.dtype)
            state = State(now, x, opt_state, objective(x), gradient)
            divisor = next_preconditioner(optimizer, state, objective)
            updates, advanced = optimizer.update(gradient, opt_state, x)
            first, second = (optax.tree_utils.tree_get(opt_state, name, jnp.zeros(())) for name in ("mu", "nu"))
            bend = curvature * (power - 1) * jnp.abs(x) ** (power - 2)
            kappa = optimizer.arguments["learning_rate"] * bend / divisor
            return (x + updates, advanced), Path(x, gradient, first, second, kappa)

        start = (shape["start"], optimizer.init(shape["start"]))
        return jax.lax.scan(step, start, jnp.arange(num_steps))[1]

    # Steps first: a scan over lanes that advance together.
    return jax.jit(jax.vmap(one, out_axes=1), compiler_options={"xla_backend_optimization_level": 1})
