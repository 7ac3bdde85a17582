"""Interventions on Adam: a saved state continued with one thing changed, the delay of its next spike predicted and
measured.

Source: Kingma and Ba 2015 (Adam); Reddi et al. 2018 (AMSGrad); Wortsman et al. 2023 (StableAdamW).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from lossland.arguments import MAPPING, NUMERIC, OPTIMIZER, a, check, count, dataset, expects, number, optional
from lossland.optimizers import as_optimizer
from lossland.problems.problem import Problem
from lossland.stability.arguments import decay, momentum
from lossland.stability.mode_growth import critical_ratio
from lossland.stability.spikes import VISIBLE
from lossland.sweeps.adaptive_probes import preconditioned_mode
from lossland.sweeps.forks import PARAMS, check_states, fork, restore
from lossland.sweeps.preconditioners import SecondMoment
from lossland.sweeps.programs import numerics

CLIP = 1.0
"""Root mean square at which the arm "update_clipped" clips m / P."""


class IntervenedAdamState(NamedTuple):
    """Moments m and v as weighted sums of g and g^2, with the sums of their weights; the largest v so far; v and P of
    the last update; updates taken."""

    mu: Any
    nu: Any
    mu_weight: jax.Array
    nu_weight: jax.Array
    nu_max: Any
    count: jax.Array
    moment: SecondMoment


def intervened_adam(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    freeze: Any = 0.0,
    amsgrad: Any = 0.0,
    clip: Any = jnp.inf,
    stable: Any = 0.0,
    decay: Any = 1.0,
) -> optax.GradientTransformation:
    """Build Adam with every intervention as a number, so that all arms of a fork share one program.

    Equation: m, v are means of g, g^2 with weights b^age, divided by the sum of the weights, which stays right when b1
    or b2 change under way (for constant b it is Adam's bias correction); update -learning_rate decay^t m / (sqrt(v) +
    eps). freeze = 1 holds v; amsgrad = 1 takes its maximum from the start on; clip: largest root mean square of m /
    (sqrt(v) + eps) over a tensor; stable = 1 divides a tensor's update by max(1, RMS of g / max(sqrt(v), eps)).
    """

    def zeros(params: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, params)

    def init(params: Any) -> IntervenedAdamState:
        weight = jnp.zeros((), jax.tree.leaves(params)[0].dtype)
        moment = SecondMoment(zeros(params), zeros(params), weight)
        return IntervenedAdamState(
            zeros(params), zeros(params), weight, weight, zeros(params), jnp.zeros((), jnp.int32), moment
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, IntervenedAdamState]:
        kept = jnp.where(freeze > 0, 1.0, b2)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: kept * v + (1 - kept) * g**2, state.nu, updates)
        mu_weight = b1 * state.mu_weight + (1 - b1)
        nu_weight = kept * state.nu_weight + (1 - kept)
        mean = jax.tree.map(lambda v: v / nu_weight, nu)
        largest = jax.tree.map(jnp.maximum, state.nu_max, mean)
        value = jax.tree.map(lambda v, most: jnp.where(amsgrad > 0, most, v), mean, largest)
        p = jax.tree.map(lambda v: jnp.sqrt(v) + eps, value)

        def direction(m: jax.Array, p: jax.Array, v: jax.Array, g: jax.Array) -> jax.Array:
            step = m / mu_weight / p
            step = step / jnp.maximum(1, jnp.sqrt(jnp.mean(step**2)) / clip)
            excess = jnp.sqrt(jnp.mean((g / jnp.maximum(jnp.sqrt(v), eps)) ** 2))
            return step / jnp.where(stable > 0, jnp.maximum(1, excess), 1)

        rate = learning_rate * decay**state.count
        taken = jax.tree.map(lambda *leaves: -rate * direction(*leaves), mu, p, value, updates)
        moment = SecondMoment(value, p, jnp.zeros_like(nu_weight) + eps)
        return taken, IntervenedAdamState(mu, nu, mu_weight, nu_weight, largest, state.count + 1, moment)

    return optax.GradientTransformation(init, update)


def adopt_adam(opt_state: Any, arguments: Mapping[str, Any]) -> IntervenedAdamState:
    """Turn the state of `optax.adam` (or adamw, nadam) into the one of `intervened_adam` from which it goes on.

    The largest v so far starts at the present one, so that AMSGrad begins here.

    Raises:
        ValueError: for a state without one set of Adam's moments.
    """
    found = [
        node
        for node in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, optax.ScaleByAdamState))
        if isinstance(node, optax.ScaleByAdamState)
    ]
    if len(found) != 1:
        raise ValueError(f"opt_state: expected one set of Adam's moments, as optax.adam keeps, got {len(found)}")
    adam: Any = found[0]
    count = adam.count
    b1, b2 = arguments.get("b1", 0.9), arguments.get("b2", 0.999)
    mu_weight, nu_weight = 1 - b1**count, 1 - b2**count
    # Before the first update there is nothing to divide by.
    mean = jax.tree.map(lambda v: v / jnp.where(count > 0, nu_weight, 1), adam.nu)
    moment = SecondMoment(mean, jax.tree.map(jnp.sqrt, mean), jnp.zeros_like(nu_weight))
    return IntervenedAdamState(adam.mu, adam.nu, mu_weight, nu_weight, mean, jnp.zeros((), jnp.int32), moment)


def _moment_of(opt_state: IntervenedAdamState) -> SecondMoment:
    return opt_state.moment


MODE = preconditioned_mode(second_moment=_moment_of)
"""One object, so that a second fork compiles nothing."""


def adam_arms(problem: Problem, optimizer: Any, states: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Return the standard interventions on saved states of Adam, as arms of `fork` with branch `intervened_adam`.

    "learning_rate_decays" lowers the learning rate as fast as the preconditioner would decay, sqrt(b2) per step;
    "eps_raised" adds a tenth of the median of sqrt(v), state by state.
    """
    check_states(problem, as_optimizer(optimizer), states)
    given = _arguments(optimizer, states)
    rate, b2, eps = given["learning_rate"], given["b2"], given["eps"]
    _, adopted = restore(problem, optimizer, states, adopt_adam)
    roots = np.concatenate([np.sqrt(v).reshape(len(v), -1) for v in jax.tree.leaves(adopted.nu_max)], axis=1)
    return {
        "unchanged": {},
        "second_moment_frozen": {"freeze": 1.0},
        "amsgrad": {"amsgrad": 1.0},
        "learning_rate_x_0.97": {"learning_rate": 0.97 * rate},
        "learning_rate_x_0.9": {"learning_rate": 0.9 * rate},
        "learning_rate_decays": {"decay": np.sqrt(b2)},
        "eps_raised": {"eps": eps + 0.1 * np.median(roots, axis=1)},
        "b1_0.95": {"b1": 0.95},
        "b1_0.8": {"b1": 0.8},
        "b2_0.99": {"b2": 0.99},
        "b2_0.9999": {"b2": 0.9999},
        "update_clipped": {"clip": CLIP},
        "stable_adamw": {"stable": 1.0},
        "float64": {"dtype": "float64"},
    }


@expects(
    problem=a("an ll.Problem", Problem),
    optimizer=OPTIMIZER,
    states=dataset(source="state_probe() records"),
    num_steps=count(),
    every=count(),
    arms=optional(MAPPING),
    visible=number(above=1),
)
def intervene(
    problem: Problem,
    optimizer: Any,
    states: xr.Dataset,
    *,
    num_steps: int = 600,
    every: int = 2,
    arms: Mapping[str, Mapping[str, Any]] | None = None,
    visible: float = VISIBLE,
) -> xr.Dataset:
    """Fork saved states of Adam into interventions; predict and measure how much each delays the next spike.

    The arm "unchanged" calibrates h, the drift of the Hessian: the slope of ln ratio between the fork and its crossing,
    less that of the second moment. For an arm with first ratio r0 (measured at the fork under the arm's own P and
    learning rate),

        ln ratio(t) = ln r0 + h t + t ln decay - ln(s q(t) + 1 - s),   q(t)^2 = b2^t w / (1 - (1 - w) b2^t),

    with s = sqrt(v) / P along the mode and w = 1 - b2^step, the sum of weights that v is divided by: ln v falls by
    |ln b2| / (1 - b2^step) per step, faster than |ln b2| while bias correction lasts. q = 1 where v cannot fall. The
    crossing is where this reaches 0; from there the mode is stepped on until it holds as much as the rest of the loss,
    starting as it stood at the crossing of the unchanged arm, or at the fork where r0 > 1.

    Args:
        problem, optimizer, states: as in `fork`; optimizer is `optax.adam` with its arguments, fixed or swept. States
            with "loss" and `state_probe()` recorded: `runs.sel(step=900)` of one setting, one state for each seed.
        num_steps: steps from the fork; a spike later than that counts as none.
        every: steps between records.
        arms: as in `fork` with branch `intervened_adam`; `adam_arms` if not given. "unchanged" has to be among them.
        visible: factor by which the loss rises at a spike.

    Returns:
        Dataset over (arm, states' axis): `crossing`, `spike`, `predicted_crossing`, `predicted_spike`, steps since the
        fork, inf where there is none in `num_steps`, predictions NaN where the unchanged arm does not cross, or within
        two records, so that nothing calibrates them; `delay`, `predicted_delay` against "unchanged"; `size`, peak loss
        over valley; over (states' axis): `rate`, sigma. Records of all arms: `loss`, `ratio`.

    Raises:
        ValueError: as `fork`; without an arm "unchanged"; for an optimizer whose update is not that of `optax.adam` at
            its learning_rate, b1, b2 and eps (weight decay, eps_root, Nesterov, a schedule).
    """
    check_states(problem, as_optimizer(optimizer), states)
    _check_adam(problem, optimizer, states)
    arms = adam_arms(problem, optimizer, states) if arms is None else arms
    if "unchanged" not in arms or arms["unchanged"]:
        raise ValueError("arms: expected an arm 'unchanged': {} among them, which the others are compared with")
    _check_arms(arms)
    given = _arguments(optimizer, states)
    fixed = {name: value for name, value in as_optimizer(optimizer).arguments.items() if name in given}
    forked = fork(
        problem,
        optimizer,
        states,
        arms,
        num_steps=num_steps,
        every=every,
        probes=["loss", MODE],
        branch=as_optimizer(intervened_adam).with_arguments(**fixed),
        adopt=adopt_adam,
    )
    axis = str(states["saved_params"].dims[0])
    steps = forked["step"].values.astype(float)
    table = {
        name: np.stack([
            np.broadcast_to(np.asarray(arm.get(name, given.get(name, DEFAULTS[name])), float), states.sizes[axis])
            for arm in arms.values()
        ])
        for name in DEFAULTS
    }  # fmt: skip
    rate = table["learning_rate"][..., None] * table["decay"][..., None] ** steps
    loss = forked["loss"].values.astype(float)
    gradient, update, sharpness = (
        forked[name].values.astype(float) for name in ("mode_gradient", "mode_update", "preconditioned_sharpness")
    )
    # Along the mode, in units in which its energy is that of the loss: gradient, first moment.
    mode = np.stack([gradient, -update / rate]) / np.sqrt(sharpness)
    ratio = rate * sharpness / critical_ratio(table["b1"])[..., None]
    crossing = _first(steps, ratio >= 1)
    rise = np.fmin.accumulate(loss, axis=-1) * visible
    spike = _first(steps, loss > rise)
    size = np.nanmax(loss / np.fmin.accumulate(loss, axis=-1), axis=-1)
    base = list(arms).index("unchanged")
    sigma, start = _calibrate(steps, ratio[base], loss[base], mode[:, base], crossing[base])
    _, adopted = restore(problem, optimizer, states, adopt_adam)
    weight = adopted.nu_weight.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):  # no crossing, no prediction: sigma is NaN
        hessian = sigma + _log_root(crossing[base], table["b2"][base], weight) / crossing[base]
    predicted_crossing, predicted_spike = _predict(
        forked, table, ratio[..., 0], mode[..., 0], loss[..., 0], start, hessian, weight, num_steps
    )
    both = ("arm", axis)
    with np.errstate(invalid="ignore"):
        delay, predicted_delay = spike - spike[base], predicted_spike - predicted_spike[base]
    variables = {
        "crossing": (both, crossing, "first record with a ratio of at least 1"),
        "spike": (both, spike, "first record whose loss is visibly above its smallest value since the fork"),
        "predicted_crossing": (both, predicted_crossing, "crossing by the law"),
        "predicted_spike": (both, predicted_spike, "spike by the law"),
        "delay": (both, delay, "spike of the arm - spike of the unchanged arm"),
        "predicted_delay": (both, predicted_delay, "the same by the law"),
        "size": (both, size, "largest loss over its smallest value before"),
        "rate": (axis, sigma, "slope of ln ratio in the unchanged arm before its crossing"),
        "ratio": ((*both, "step"), ratio, "preconditioned sharpness over its threshold, those of the arm"),
    }
    units = {name: "step" for name in list(variables)[:6]} | {"rate": "1 / step"}
    return forked[["loss"]].assign(
        {
            name: (dims, values, {"units": units.get(name, "1"), "description": text})
            for name, (dims, values, text) in variables.items()
        }
    )


DEFAULTS = {"learning_rate": np.nan, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "freeze": 0.0, "amsgrad": 0.0, "decay": 1.0}
"""Arguments that the predictions depend on, as in `optax.adam` where that has them."""


def _arguments(optimizer: Any, states: xr.Dataset) -> dict[str, Any]:
    """Adam's own arguments: fixed ones as numbers, swept ones state by state."""
    fixed = as_optimizer(optimizer).arguments
    given = {}
    for name in ("learning_rate", "b1", "b2", "eps"):
        value = states[name].values if name in states.coords else fixed.get(name, DEFAULTS[name])
        if isinstance(value, float) and np.isnan(value):
            raise ValueError(f"optimizer: needs its {name}, fixed or as a coordinate of states")
        if not np.issubdtype(np.asarray(value).dtype, np.number):
            raise ValueError(
                f"optimizer: expected a number for {name}, got {type(value).__name__}; a schedule has none"
            )
        given[name] = value
    return given


def _check_arms(arms: Mapping[str, Mapping[str, Any]]) -> None:
    for arm, changed in arms.items():
        for name, value in changed.items():
            where = f"arms[{arm!r}]"
            if name == "dtype":
                continue
            check(f"{where}: {name}", value, NUMERIC)
            if name == "b1":
                momentum(where, value)
            elif name == "b2":
                decay(where, value, frozen=True)


def _check_adam(problem: Problem, optimizer: Any, states: xr.Dataset) -> None:
    """Refuse an optimizer whose update is not that of `intervened_adam`, from a saved state: the unchanged arm would be
    changed. The gradient is minus the first moment, which a Nesterov step shows."""
    trained_by = as_optimizer(optimizer)
    first = states.isel({str(states[PARAMS].dims[0]): slice(1)})
    names = {name: float(np.ravel(value)[0]) for name, value in _arguments(optimizer, first).items()}
    swept = {name: float(first[name].values[0]) for name in trained_by.argument_names if name in first.coords}
    (params, own), (_, adopted) = (restore(problem, optimizer, first, adopt, "float64") for adopt in (None, adopt_adam))
    with numerics("float64"):
        params, own, adopted = jax.tree.map(lambda leaf: leaf[0], (params, own, adopted))
        gradient = jax.tree.map(lambda m: jnp.where(m == 0, 1.0, -m), adopted.mu)
        one, tuned = jnp.ones(()), trained_by.with_arguments(**swept)
        expected, _ = tuned.update(gradient, own, params, value=one, grad=gradient, value_fn=lambda params: one)
        found, _ = intervened_adam(**names).update(gradient, adopted, params)
        pairs = zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True)
        if not all(np.allclose(left, right, rtol=1e-4, atol=0) for left, right in pairs):
            raise ValueError(
                f"optimizer: expected the update of optax.adam, got another of {trained_by.name} (weight decay, "
                "eps_root, Nesterov, clipping, a schedule); the arm 'unchanged' would not be"
            )


def _first(steps: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """Step of the first True along the last axis, inf where there is none."""
    return np.where(flags.any(-1), steps[flags.argmax(-1)], np.inf)


def _calibrate(
    steps: np.ndarray, ratio: np.ndarray, loss: np.ndarray, mode: np.ndarray, crossing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Slope of ln ratio up to the crossing of the unchanged arm; gradient and moment of the mode and the loss there."""
    sigma, start = np.full(len(ratio), np.nan), np.full((3, len(ratio)), np.nan)
    for state, at in enumerate(crossing):
        before = steps <= at
        if np.isfinite(at) and before.sum() > 2:
            sigma[state] = np.polyfit(steps[before], np.log(ratio[state, before]), 1)[0]
            place = int(np.flatnonzero(steps == at)[0])
            start[:, state] = *mode[:, state, place], loss[state, place]
    return sigma, start


def _log_root(steps: Any, b2: Any, weight: Any) -> Any:
    """Change of ln sqrt(v) in so many steps without gradients: v = nu / weight, weight the sum of nu's weights now."""
    kept = np.power(b2, steps)
    return 0.5 * (np.log(kept) + np.log(weight) - np.log1p(-(1 - weight) * kept))


def _predict(
    forked: xr.Dataset,
    table: Mapping[str, np.ndarray],
    ratio: np.ndarray,
    mode: np.ndarray,
    loss: np.ndarray,
    start: np.ndarray,
    hessian: np.ndarray,
    weight: np.ndarray,
    num_steps: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Crossing and spike of every arm by the law in `intervene`, from first records: (arm, state) each."""
    clock = np.arange(num_steps + 1)
    held = (table["freeze"] > 0) | (table["amsgrad"] > 0)
    log_q = np.where(held[..., None], 0.0, _log_root(clock, table["b2"][..., None], weight[:, None]))
    root = np.exp(0.5 * forked["mode_log_second_moment"].values[..., 0].astype(float))
    share = root / (root + table["eps"])
    decayed = share[..., None] * np.exp(log_q) + (1 - share[..., None])
    drift = (hessian + np.log(table["decay"]))[..., None] * clock
    path = np.log(ratio)[..., None] + drift - np.log(decayed)
    crossing = _first(clock.astype(float), path >= 0)
    above = path[..., 0] >= 0
    from_fork = np.stack([*mode, loss])
    gradient, moment, energy = np.where(above, from_fork, start[:, None])
    log_kappa = np.log(critical_ratio(table["b1"]))[..., None] + path
    first = np.where(np.isfinite(crossing), crossing, num_steps).astype(int)
    later = np.minimum(first[..., None] + clock, num_steps)
    steps = _steps_to_energy(gradient, moment, np.take_along_axis(log_kappa, later, -1), table["b1"], energy)
    spike = crossing + steps
    unknown = np.isnan(gradient) | np.isnan(hessian)
    seen = np.where(spike <= num_steps, spike, np.inf)
    return np.where(unknown, np.nan, crossing), np.where(unknown, np.nan, seen)


def _steps_to_energy(gradient: Any, moment: Any, log_kappa: np.ndarray, b1: Any, energy: Any) -> np.ndarray:
    """Step a mode of Adam on until its energy, gradient^2 / 2, reaches `energy`: steps, inf where it never does.

    Equation: g <- g - kappa_i m, m <- b1 m + (1 - b1) g, with kappa_i from the last axis of `log_kappa`.

    gradient, moment: along the mode, the gradient already in the moment; energy: in units of gradient^2 (the loss times
    the sharpness). NaN where any of them is not finite.
    """
    gradient, moment, b1, energy = np.broadcast_arrays(
        *(np.asarray(value, float) for value in (gradient, moment, b1, energy))
    )
    g, m = gradient.copy(), moment.copy()
    reached = np.where(g**2 / 2 >= energy, 0.0, np.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(log_kappa.shape[-1]):
            g = g - np.exp(np.minimum(log_kappa[..., step], 50)) * m
            m = b1 * m + (1 - b1) * g
            reached = np.where(np.isinf(reached) & (g**2 / 2 >= energy), step + 1.0, reached)
            if np.isfinite(reached).all():
                break
    known = np.isfinite(gradient) & np.isfinite(moment) & np.isfinite(energy) & ~np.isnan(log_kappa).any(-1)
    return np.where(known, reached, np.nan)
