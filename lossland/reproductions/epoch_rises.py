"""Rises of the loss that a training loop prints once an epoch, split into what made them.

Keras prints the mean of the batch losses of an epoch, taken at parameters that change under way. Where that mean rises
from one epoch to the next, one of three things happened:

- record: the mean of the *full-data* loss over the same steps did not rise; other examples were met at other steps;
- noise: it did rise, but from the same state (parameters, optimizer state) the full batch brings it down;
- curvature: it rises with the full batch as well: the step itself is too long.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax import lax

from lossland.diagnosis.measurements import noise_program
from lossland.diagnosis.replays import tree_of
from lossland.optimizers import Optimizer
from lossland.problems.problem import Problem
from lossland.stability.intervals import mean_interval
from lossland.stability.minibatch import noise_factor
from lossland.sweeps.batches import Batches
from lossland.sweeps.forks import OPT_STATE, PARAMS, fork, restore, state_probe
from lossland.sweeps.programs import numerics
from lossland.thresholds import threshold

STATE = state_probe()
KINDS = ("record", "noise", "curvature")
SHORT = "rate_x_0.01"
"""Arm with a hundredth of the learning rate."""


def epochs_of(runs: xr.Dataset, batches: Batches) -> xr.Dataset:
    """Read off the records of every step what is printed and what is true, epoch by epoch: over (..., epoch).

    Equation: printed = sum_i b_i l_i / sum_i b_i over the steps i of an epoch, b_i the size and l_i the loss of the
    batch; full = the same with the full-data loss before each step. `end_loss` is the full-data loss after the epoch;
    `end_accuracy` likewise where accuracy was recorded.

    Args:
        runs: recorded before every step, with "loss" and, with batches, "batch_loss".
        batches: how the examples were cut.

    Raises:
        ValueError: if records lie more than one step apart, or there is not one whole epoch.
    """
    length = batches.per_epoch
    count = (runs.sizes["step"] - 1) // length
    if np.any(np.diff(runs["step"].values) != 1) or not count:
        raise ValueError(f"runs: expected a record before every step of at least one epoch of {length}; use every=1")
    sizes = sizes_of(batches)

    def mean(name: str) -> xr.DataArray:
        inside = runs[name].isel(step=slice(0, count * length))
        values = inside.transpose(..., "step").values
        shaped = values.reshape(*values.shape[:-1], count, length)
        return xr.DataArray(shaped @ (sizes / sizes.sum()), dims=[*(d for d in inside.dims if d != "step"), "epoch"])

    ends = runs.isel(step=slice(length, count * length + 1, length)).rename(step="epoch").drop_vars("epoch")
    found = {
        "printed": mean("batch_loss" if "batch_loss" in runs else "loss"),
        "full": mean("loss"),
        "end_loss": ends["loss"].drop_vars(list(ends["loss"].coords)),
    }
    if "accuracy" in runs:
        found["end_accuracy"] = ends["accuracy"].drop_vars(list(ends["accuracy"].coords))
    kept = {str(name): runs[name] for name in runs["loss"].dims if name != "step"}
    return xr.Dataset(found, {**kept, "epoch": np.arange(1, count + 1)})


def sizes_of(batches: Batches) -> np.ndarray:
    """Examples in each batch of an epoch."""
    sizes = np.full(batches.per_epoch, batches.batch_size or batches.num_examples, float)
    if batches.rest:
        sizes[-1] = batches.rest
    return sizes


def rises(curve: xr.DataArray, dim: str = "epoch") -> xr.DataArray:
    """Say at which records a curve stands above the record before."""
    return curve.diff(dim) > 0


def rise_shares(curve: xr.DataArray, dim: str = "epoch") -> np.ndarray:
    """Share of records above the one before, seed by seed."""
    return rises(curve, dim).mean(dim).values.ravel()


def split_rises(
    problem: Problem, optimizer: Optimizer, runs: xr.Dataset, batches: Batches, most: int, curvature_of: int = 0
) -> xr.Dataset:
    """Split the rises of the printed loss, seed by seed: `record`, `noise`, `curvature`, shares that sum to one.

    Where the full-data mean rose too, training goes on from the state at the start of the epoch before, for the same
    number of steps with the full batch, and with a hundredth of the rate.

    Args:
        problem, optimizer, batches: what was trained, how.
        runs: over (seed, step), recorded before every step, with "loss", "batch_loss" and the states of `STATE`.
        most: rises per seed that are gone through, evenly spread over training; shares are scaled up from them.
        curvature_of: of so many of these states, sharpness over its threshold is measured.

    Returns:
        Dataset over (seed): `count` (printed rises), the three shares, NaN where there is no rise; over (state):
        `state_seed`, `state_epoch`, `kind`, `first_step_rise` and `short_step_rise` (whether the first full-batch step
        raised the loss, at the rate and at a hundredth of it) and `ratio` (NaN where it was not measured).
    """
    length, sizes, epochs = batches.per_epoch, sizes_of(batches), epochs_of(runs, batches)
    printed, full = (rises(epochs[name]).transpose("seed", "epoch").values for name in ("printed", "full"))
    chosen = [_spread(np.flatnonzero(p & f), most) for p, f in zip(printed, full, strict=True)]
    owner = np.repeat(np.arange(len(chosen)), [len(places) for places in chosen])
    epoch = np.concatenate([*chosen, np.zeros(0, int)]).astype(int)
    states = states_of(runs, owner, length * epoch)
    count, both = printed.sum(1), (printed & full).sum(1)
    stays = np.zeros(0, bool)
    extra: dict[str, np.ndarray] = {name: np.zeros(0) for name in ("first_step_rise", "short_step_rise", "ratio")}
    if states.sizes["state"]:
        rate = float(optimizer.arguments["learning_rate"])
        arms = {"full batch": {}, SHORT: {"learning_rate": rate / 100}}
        again = fork(problem, optimizer, states, arms, num_steps=2 * length)["loss"].transpose("arm", "state", "step")
        weights = sizes / sizes.sum()
        before, after = (again.values[0][:, part] @ weights for part in _two_epochs(length))
        stays = after > before
        extra["first_step_rise"] = again.values[0, :, 1] > again.values[0, :, 0]
        extra["short_step_rise"] = again.values[1, :, 1] > again.values[1, :, 0]
        extra["ratio"] = _ratio(problem, optimizer, states, curvature_of)
    shares = np.full((3, len(count)), np.nan)
    for seed in np.flatnonzero(count):
        own = stays[owner == seed]
        true = both[seed] / count[seed]
        kept = float(own.mean()) if len(own) else 0.0
        shares[:, seed] = 1 - true, true * (1 - kept), true * kept
    return xr.Dataset(
        {
            "count": ("seed", count),
            **{name: ("seed", row) for name, row in zip(KINDS, shares, strict=True)},
            "state_seed": ("state", epochs["seed"].values[owner]),
            "state_epoch": ("state", epoch + 1),
            "kind": ("state", np.where(stays, "curvature", "noise")),
            **{name: ("state", values) for name, values in extra.items()},
        },
        {"seed": epochs["seed"].values},
    )


def _two_epochs(length: int) -> tuple[slice, slice]:
    return slice(0, length), slice(length, 2 * length)


def _spread(places: np.ndarray, most: int) -> np.ndarray:
    if len(places) <= most:
        return places
    return places[np.linspace(0, len(places) - 1, most).round().astype(int)]


def _ratio(problem: Problem, optimizer: Optimizer, states: xr.Dataset, most: int) -> np.ndarray:
    """Sharpness (preconditioned, for an adaptive optimizer) over its threshold at some of the states, else NaN."""
    ratio = np.full(states.sizes["state"], np.nan)
    places = _spread(np.arange(len(ratio)), most)
    certificate = threshold(optimizer)
    if not len(places) or certificate.critical_curvature is None:
        return ratio
    name = "preconditioned_sharpness" if certificate.preconditioned else "sharpness"
    found = fork(problem, optimizer, states.isel(state=places), {"unchanged": {}}, num_steps=1, probes=[name])
    ratio[places] = found[name].isel(arm=0, step=0).values / certificate.critical_curvature
    return ratio


def states_of(runs: xr.Dataset, seeds: Any, steps: Any) -> xr.Dataset:
    """Take saved states, places along "seed" and steps, over the axis "state"."""
    where: Any = {
        name: xr.DataArray(np.asarray(places, int), dims="state") for name, places in (("seed", seeds), ("step", steps))
    }
    return runs[[PARAMS, OPT_STATE]].isel(where).drop_vars(["seed", "step"])


def epoch_noise(
    problem: Problem, states: xr.Dataset, sizes: Sequence[int], num_draws: int, seed: int = 0
) -> xr.Dataset:
    """Measure the variance of batch gradients and predict it: over (state, batch_size).

    Equation: predicted E |g_B - g|^2 = (n - B) / (B (n - 1)) x mean_i |g_i - g|^2, g_i the examples' gradients;
    `measured` is the mean of |g_B - g|^2 over drawn batches, each differentiated by itself. `gradient_square` is |g|^2.
    """
    flat = states[PARAMS].values.astype(np.float32)
    draws = np.random.default_rng(seed)
    n = problem.num_examples
    with numerics("float32"):
        square, spread = (np.asarray(x, float) for x in noise_program(problem)(flat))
        params = tree_of(problem, flat)
        measured = np.stack(
            [
                np.asarray(
                    _noise_of(problem, size)(
                        params, np.stack([draws.permutation(n)[:size] for _ in range(num_draws)]), problem.data
                    )
                )
                for size in sizes
            ],
            axis=1,
        )
    factor = np.array([noise_factor(n, size, "without_replacement") for size in sizes])
    return xr.Dataset(
        {
            "measured": (("state", "batch_size", "draw"), measured),
            "predicted": (("state", "batch_size"), spread.mean(1)[:, None] * factor),
            "gradient_square": ("state", square),
        },
        {"batch_size": list(sizes)},
    )


@functools.lru_cache(maxsize=32)
def _noise_of(problem: Problem, size: int) -> Any:
    def one(params: Any, draws: jax.Array, data: Any) -> jax.Array:
        whole = jax.grad(problem.loss)(params, data)

        def distance(chosen: jax.Array) -> jax.Array:
            gradient = jax.grad(problem.loss)(params, jax.tree.map(lambda leaf: leaf[chosen], data))
            return optax.tree_utils.tree_norm(jax.tree.map(jnp.subtract, gradient, whole), squared=True)

        return lax.map(distance, draws)

    return jax.jit(lambda params, draws, data: lax.map(lambda own: one(own, draws, data), params))


def mislabelled_steps(
    problem: Problem,
    optimizer: Optimizer,
    states: xr.Dataset,
    sizes: Sequence[int],
    num_draws: int,
    num_classes: int,
    seed: int = 0,
) -> xr.Dataset:
    """Take one step on a batch with one wrong label, and on the same batch with right ones: over (label, batch_size,
    state, draw).

    Equation: `change` = L(params + update) - L(params), L the loss over the full data with right labels, the update
    from the saved optimizer state. A wrong label is the next class.
    """
    draws = np.random.default_rng(seed)
    n = problem.num_examples
    with numerics("float32"):
        params, opt_state = restore(problem, optimizer, states)
        found = [
            np.moveaxis(
                np.asarray(
                    _steps_of(problem, optimizer, num_classes)(
                        params,
                        opt_state,
                        np.stack([draws.permutation(n)[:size] for _ in range(num_draws)]),
                        problem.data,
                    )
                ),
                -1,
                0,
            )
            for size in sizes
        ]
    return xr.Dataset(
        {"change": (("label", "batch_size", "state", "draw"), np.stack(found, 1))},
        {"label": ["right", "wrong"], "batch_size": list(sizes)},
    )


@functools.lru_cache(maxsize=32)
def _steps_of(problem: Problem, optimizer: Optimizer, num_classes: int) -> Any:
    def one(params: Any, opt_state: Any, chosen: jax.Array, data: Any) -> jax.Array:
        before = problem.loss(params, data)

        def change(wrong: jax.Array) -> jax.Array:
            inputs, labels = jax.tree.map(lambda leaf: leaf[chosen], data)
            labels = labels.at[0].set(jnp.where(wrong, (labels[0] + 1) % num_classes, labels[0]))
            gradient = jax.grad(problem.loss)(params, (inputs, labels))
            updates, _ = optimizer.update(gradient, opt_state, params)
            return problem.loss(optax.apply_updates(params, updates), data) - before

        return lax.map(change, jnp.array([False, True]))

    def all_of(params: Any, opt_state: Any, draws: jax.Array, data: Any) -> jax.Array:
        def of_state(state: tuple[Any, Any]) -> jax.Array:
            own_params, own_opt_state = state
            return lax.map(lambda chosen: one(own_params, own_opt_state, chosen, data), draws)

        return lax.map(of_state, (params, opt_state))

    return jax.jit(all_of)


def climbs_by_position(loss: xr.DataArray, batches: Batches) -> np.ndarray:
    """Share of all climbs of log L, step by step, that fall to each place in the epoch: (seed, position).

    Equation: share_p = sum over steps at place p of max(log L_(t+1) - log L_t, 0), over the same sum of all steps.
    """
    values = np.log(loss.transpose("seed", "step").values.astype(float))
    up = np.clip(np.diff(values), 0, None)
    whole = up.shape[1] // batches.per_epoch * batches.per_epoch
    each = up[:, :whole].reshape(len(up), -1, batches.per_epoch).sum(1)
    total = each.sum(1, keepdims=True)
    return np.divide(each, total, out=np.full_like(each, np.nan), where=total > 0)


def summarised(values: Mapping[str, np.ndarray]) -> xr.Dataset:
    """Mean over seeds with its interval, by setting: `mean`, `low`, `high` over "setting"."""
    found = np.array([mean_interval(one) for one in values.values()])
    return xr.Dataset(
        {name: ("setting", found[:, column]) for column, name in enumerate(("mean", "low", "high"))},
        {"setting": list(values)},
    )
