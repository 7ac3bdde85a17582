"""Case 5: a course's classifier under Adam at 0.01, and epochs on which the loss rises."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from lossland import figures, strict_json
from lossland.figures.course_mlp import course_mlp_figure
from lossland.optimizers import Optimizer
from lossland.problems.problem import Problem
from lossland.problems.reported import course_mlp, course_mlp_logits
from lossland.reproductions.claims import save_claims
from lossland.reproductions.course_claims import Results, blocks_of, claims, numbers_of, trend_stops
from lossland.reproductions.epoch_rises import KINDS, STATE, epochs_of, rise_shares, split_rises, summarised
from lossland.sweeps.batches import Batches
from lossland.sweeps.execution import run
from lossland.sweeps.probes import Probe, accuracy_probe
from lossland.sweeps.single_run import key_of
from lossland.sweeps.sweep import SAMPLINGS, Sampling, Sweep

RATE, BATCH, EXAMPLES = 0.01, 32, 400
ADAM = Optimizer(optax.adam)
PER_EPOCH = 13


class Size(NamedTuple):
    """How much is run: seeds; epochs recorded at every step; rises per seed that are gone through, and states whose
    curvature is measured; seeds and epochs of the long runs; rates, seeds and epochs of the map."""

    seeds: int
    epochs: int
    rises: int
    curvatures: int
    long: tuple[int, int]
    rates: tuple[float, ...]
    map_seeds: int
    map_epochs: int


FAST = Size(3, 20, 3, 2, (2, 150), (1e-3, 1e-2), 2, 20)
FULL = Size(8, 50, 8, 8, (5, 800), (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2), 4, 40)


@functools.cache
def accuracy() -> Probe:
    """Build the probe of the training accuracy; one object, so that programs are shared."""
    return accuracy_probe(lambda params, data: course_mlp_logits(params, data[0]))


def measure(
    folder: Path, fast: bool, table: dict[str, Any], size: Size | None = None
) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the paths of the figure and the claims.

    A fast run has fewer seeds, epochs and rates. `size` overrides both.
    """
    size = size or (FAST if fast else FULL)
    problem, batches = course_mlp(), Batches(EXAMPLES, BATCH)
    fixed = ADAM.with_arguments(learning_rate=RATE)
    sweep = Sweep({}, size.seeds, PER_EPOCH * size.epochs, 1, lane_width=1, batch_size=BATCH)
    steps = run(problem, fixed, sweep, ["loss", "batch_loss", STATE], progress=False)
    rates = sorted({*size.rates, RATE})
    long = _coarse(problem, [RATE / 10, RATE], *size.long)
    by_rate = xr.concat(
        [
            _shares(_coarse(problem, rates, size.map_seeds, size.map_epochs)["printed"]),
            _shares(_full_batch(problem, rates, size.map_seeds, size.map_epochs)["printed"]),
        ],
        xr.DataArray(["batches of 32", "full batch"], dims="batches", name="batches"),
    )
    orders = {
        name: (
            _coarse(problem, [RATE], size.seeds, size.epochs, name)["printed"]
            .isel(learning_rate=0)
            .pipe(lambda one: rise_shares(one)),
            distinct_examples(name, size.seeds, min(size.epochs, 20)),
        )
        for name in SAMPLINGS
    }
    whole = _full_batch(problem, [RATE], size.seeds, size.epochs).isel(learning_rate=0)
    found = Results(
        split_rises(problem, fixed, steps, batches, size.rises, size.curvatures),
        rise_shares(steps["loss"], "step"),
        long.sel(learning_rate=RATE),
        long.sel(learning_rate=RATE / 10),
        by_rate,
        orders,
        whole,
    )
    numbers: dict[str, Any] = numbers_of(found)
    settled = claims(found)
    numbers |= {f"claim_{claim.letter}": claim.verdict for claim in settled}
    one = found.long.isel(seed=0)
    kinds = summarised({name: found.rises[name].values for name in KINDS})
    figure = course_mlp_figure(
        one, blocks_of(found.long["printed"])[0], float(trend_stops(found.long["printed"])[0]), kinds, by_rate
    )
    paths = figures.save(figure, folder / "course_mlp")
    paths.append(save_claims(settled, folder / "claims"))
    (folder / "size.txt").write_text(f"{size}\n", encoding="utf-8")
    (folder / "numbers.json").write_text(strict_json.dumps(numbers) + "\n", encoding="utf-8")
    return {name: numbers[name] for name in table}, paths


def distinct_examples(sampling: Sampling, seeds: int, epochs: int) -> np.ndarray:
    """Count the distinct examples that an epoch meets, by the sampler that trains: (seed, epoch)."""
    batches = Batches(EXAMPLES, BATCH, sampling)
    names = jnp.arange(EXAMPLES)

    def met(step: jax.Array, order: Any, key: jax.Array) -> jax.Array:
        def seen(chosen: jax.Array) -> jax.Array:
            return jnp.zeros(EXAMPLES, bool).at[chosen].set(True)

        return batches.with_batch(seen, names, order, step, key if batches.random else None)

    @jax.jit
    def one_epoch(seed: jax.Array, epoch: jax.Array) -> jax.Array:
        key = key_of(seed, "batches")
        first = epoch * batches.per_epoch
        order = batches.order(first, batches.blank_order(), lambda: key)
        flags = [met(first + place, order, key) for place in range(batches.per_epoch)]
        return jnp.sum(jnp.stack(flags).any(0))

    return np.array(
        [[int(one_epoch(jnp.uint32(seed), jnp.int32(epoch))) for epoch in range(epochs)] for seed in range(seeds)]
    )


def _coarse(
    problem: Problem, rates: list[float], seeds: int, epochs: int, sampling: Sampling = "shuffled"
) -> xr.Dataset:
    """Train in batches and read off what is printed: over (learning_rate, seed, epoch)."""
    length = Batches(EXAMPLES, BATCH, sampling).per_epoch
    sweep = Sweep(
        {"learning_rate": rates}, seeds, length * epochs, length, lane_width=1, batch_size=BATCH, sampling=sampling
    )
    runs = run(problem, ADAM, sweep, ["loss", "epoch_mean_loss", accuracy()], progress=False)
    return _by_epoch(runs, epochs).rename(epoch_mean_loss="printed")


def _full_batch(problem: Problem, rates: list[float], seeds: int, epochs: int) -> xr.Dataset:
    """Train with the full batch for as many steps; `printed` is the mean over as many steps as an epoch has."""
    sweep = Sweep({"learning_rate": rates}, seeds, PER_EPOCH * epochs, 1, lane_width=1)
    runs = run(problem, ADAM, sweep, ["loss", accuracy()], progress=False)
    found = epochs_of(runs, Batches(EXAMPLES, BATCH))
    return found[["printed", "end_loss", "end_accuracy"]]


def _by_epoch(runs: xr.Dataset, epochs: int) -> xr.Dataset:
    ends = runs[["loss", "epoch_mean_loss", "accuracy"]].isel(step=slice(1, None)).rename(step="epoch")
    return ends.assign_coords(epoch=np.arange(1, epochs + 1)).rename(loss="end_loss", accuracy="end_accuracy")


def _shares(curve: xr.DataArray) -> xr.DataArray:
    return (curve.diff("epoch") > 0).mean("epoch")
