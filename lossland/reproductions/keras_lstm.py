"""Case 3: an LSTM on 98 sequences in batches of 32, and a training loss that fluctuates."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import xarray as xr

from lossland import figures, strict_json
from lossland.figures.keras_lstm import keras_lstm_figure
from lossland.optimizers import Optimizer
from lossland.problems.motor_currents import keras_lstm, keras_lstm_logits
from lossland.problems.problem import Problem
from lossland.reproductions.claims import save_claims
from lossland.reproductions.epoch_rises import (
    STATE,
    climbs_by_position,
    epoch_noise,
    epochs_of,
    mislabelled_steps,
    rise_shares,
    split_rises,
    states_of,
    summarised,
)
from lossland.reproductions.keras_claims import COSINES, MAIN, SGD, Results, claims, numbers_of
from lossland.sweeps.batches import Batches
from lossland.sweeps.execution import run
from lossland.sweeps.probes import Probe, accuracy_probe
from lossland.sweeps.sweep import LastBatch, Sweep

RATE, BATCH = 1e-3, 32
RMSPROP = Optimizer(optax.rmsprop, learning_rate=RATE, decay=0.9, eps=1e-7)
"""Keras' RMSprop: epsilon under the root."""
DESCENT = Optimizer(optax.sgd, learning_rate=RATE)
DROPOUT = 0.2
PER_EPOCH = 4


class Size(NamedTuple):
    """How much is run: seeds and epochs of RMSprop in batches of 32, recorded at every step; rises per seed that are
    gone through, and states whose curvature is measured; epochs of gradient descent; (batch sizes, epochs) of small
    batches; epochs of cosines, of dropout; steps with the full batch; (hidden, seeds, epochs) of the large network;
    (seeds, epochs) of the long runs; (batch sizes, states, draws) of the noise; draws of mislabelled batches. 0 leaves
    a part out."""

    seeds: int
    epochs: int
    rises: int
    curvatures: int
    descent_epochs: int
    small: tuple[tuple[int, ...], int]
    cosine_epochs: int
    dropout_epochs: int
    full_steps: int
    large: tuple[int, int, int]
    long: tuple[int, int]
    noise: tuple[tuple[int, ...], int, int]
    wrong_draws: int


FAST = Size(2, 12, 2, 2, 6, ((2,), 2), 0, 6, 24, (48, 2, 6), (0, 0), ((2, BATCH), 2, 8), 4)
FULL = Size(8, 100, 4, 6, 24, ((4, 2), 12), 30, 60, 240, (222, 2, 20), (1, 300), ((2, 8, BATCH), 4, 24), 10)


@functools.cache
def accuracy() -> Probe:
    """Build the probe of the training accuracy; one object, so that programs are shared."""
    return accuracy_probe(lambda params, data: keras_lstm_logits(params, data[0]))


def measure(
    folder: Path, fast: bool, table: dict[str, Any], size: Size | None = None
) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the paths of the figure and the claims.

    A fast run has fewer seeds, epochs and states, no cosines, and 48 units in place of 222. `size` overrides both. The
    longer runs are kept in the folder: a second call goes on where the first one stopped.
    """
    size = size or (FAST if fast else FULL)
    problem, batches = keras_lstm(), Batches(98, BATCH)
    main = _every_step(problem, RMSPROP, size.seeds, size.epochs)
    slow = _every_step(problem, DESCENT, size.seeds, size.descent_epochs)
    few = max(1, size.rises // 2)
    rises = {
        MAIN: split_rises(problem, RMSPROP, main, batches, size.rises, size.curvatures),
        SGD: split_rises(problem, DESCENT, slow, batches, few),
    }
    if size.cosine_epochs:
        cosines = keras_lstm(traces="cosines")
        runs = _every_step(cosines, RMSPROP, size.seeds, size.cosine_epochs)
        rises[COSINES] = split_rises(cosines, RMSPROP, runs, batches, few)
    kept = folder / "runs"
    whole = {
        MAIN: _full_batch(problem, RMSPROP, size.seeds, size.full_steps, kept / "full_batch"),
        SGD: _full_batch(problem, DESCENT, size.seeds, PER_EPOCH * size.descent_epochs, kept / "full_batch_descent"),
    }
    epochs = epochs_of(main, batches)
    beside = {
        **{
            f"batches of {count}": _coarse(problem, size.seeds, size.small[1], kept / f"batches_of_{count}", count)
            for count in size.small[0]
        },
        "last batch dropped": _coarse(problem, size.seeds, size.epochs, kept / "last_dropped", BATCH, "drop"),
        f"dropout {DROPOUT}": _coarse(keras_lstm(dropout=DROPOUT), size.seeds, size.dropout_epochs, kept / "dropout"),
        f"{size.large[0]} units": _coarse(keras_lstm(size.large[0]), size.large[1], size.large[2], kept / "large"),
    }
    if not fast:
        regular = keras_lstm(dropout=DROPOUT, batch_norm=True)
        beside[f"dropout {DROPOUT}, batch normalisation"] = _coarse(
            regular, size.seeds, size.dropout_epochs, kept / "regularised"
        )
    printed = rise_shares(epochs["printed"])
    shares = {"batches of 32": (printed, printed)}
    for setting, one in beside.items():
        # Other batch sizes and the large network learn within other numbers of epochs: theirs against the whole run.
        own = setting.startswith(("dropout", "last batch"))
        unchanged = epochs["printed"].isel(epoch=slice(0, one.sizes["epoch"] if own else None))
        shares[setting] = rise_shares(one["printed"]), rise_shares(unchanged)
    long = _coarse(problem, *size.long, kept / "long") if size.long[0] else epochs
    sizes, num_states, num_draws = size.noise
    places = PER_EPOCH * np.linspace(0, size.epochs - 1, num_states).astype(int)
    last = PER_EPOCH * (size.epochs - 1)
    found = Results(
        rises,
        shares,
        {name: rise_shares(epochs_of(one, batches)["full"]) for name, one in whole.items()},
        {name: rise_shares(one["loss"], "step") for name, one in whole.items()},
        {name: one.sizes["seed"] * (one.sizes["step"] - 1) for name, one in whole.items()},
        {
            "batches of 2": beside["batches of 2"]["end_accuracy"].max("epoch").values,
            "batches of 32": epochs["end_accuracy"].max("epoch").values,
            "long runs": long["end_accuracy"].max("epoch").values,
        },
        mislabelled_steps(
            problem, RMSPROP, states_of(main, range(size.seeds), [last] * size.seeds),
            sorted({2, *size.small[0], BATCH}), size.wrong_draws, 6,
        ),
        epoch_noise(problem, states_of(main, [0] * num_states, places), sizes, num_draws),
        climbs_by_position(main["loss"], batches),
        (32, size.large[0]),
    )  # fmt: skip
    numbers: dict[str, Any] = numbers_of(found)
    numbers["parameters_of_large_network"] = _num_params(keras_lstm(size.large[0]))
    numbers["last_batch_of_an_epoch"] = batches.rest
    numbers["epochs_to_full_accuracy"] = _first_epoch(long["end_accuracy"], 1.0)
    settled = claims(found)
    numbers |= {f"claim_{claim.letter}": claim.verdict for claim in settled}
    settings: dict[str, np.ndarray] = {
        "batches of 32": shares["batches of 32"][0],
        **{name: one[0] for name, one in shares.items() if name != "batches of 32"},
        "full batch": found.windows[MAIN],
    }
    figure = keras_lstm_figure(
        long.isel(seed=0), {name: summarised({k: one[k].values for k in ("record", "noise", "curvature")})
        for name, one in rises.items()}, found.noise, summarised(settings), found.mislabelled,
    )  # fmt: skip
    paths = figures.save(figure, folder / "keras_lstm")
    paths.append(save_claims(settled, folder / "claims"))
    (folder / "size.txt").write_text(f"{size}\n", encoding="utf-8")
    (folder / "numbers.json").write_text(strict_json.dumps(numbers) + "\n", encoding="utf-8")
    expected = {"noise_over_law": 1.0, "climbs_after_the_batch_of_two": 1 / PER_EPOCH}
    return {name: (numbers[name], expected[name]) if name in expected else numbers[name] for name in table}, paths


def _sweep(seeds: int, num_steps: int, every: int, batch_size: int | None = BATCH, last: LastBatch = "keep") -> Sweep:
    return Sweep({}, seeds, num_steps, every, lane_width=1, batch_size=batch_size, last_batch=last)


def _every_step(problem: Problem, optimizer: Optimizer, seeds: int, epochs: int) -> xr.Dataset:
    probes = ["loss", "batch_loss", accuracy(), STATE]
    return run(problem, optimizer, _sweep(seeds, PER_EPOCH * epochs, 1), probes, progress=False)


def _full_batch(problem: Problem, optimizer: Optimizer, seeds: int, num_steps: int, out: Path) -> xr.Dataset:
    return run(problem, optimizer, _sweep(seeds, num_steps, 1, None), ["loss"], out, progress=False)


def _coarse(
    problem: Problem, seeds: int, epochs: int, out: Path, batch_size: int = BATCH, last: LastBatch = "keep"
) -> xr.Dataset:
    """Train with RMSprop and read off what is printed: `printed`, `end_loss` and `end_accuracy` over (seed, epoch)."""
    length = Batches(98, batch_size, last_batch=last).per_epoch
    probes: list[Any] = ["loss", "epoch_mean_loss"]
    if problem.init_state is None:
        probes.append(accuracy())
    sweep = _sweep(seeds, length * epochs, length, batch_size, last)
    runs = run(problem, RMSPROP, sweep, probes, out, progress=False).isel(step=slice(1, None))
    found = runs.rename(step="epoch").assign_coords(epoch=np.arange(1, epochs + 1))
    return found[[name for name in ("loss", "epoch_mean_loss", "accuracy") if name in found]].rename(
        {"loss": "end_loss", "epoch_mean_loss": "printed"}
        | ({"accuracy": "end_accuracy"} if "accuracy" in found else {})
    )


def _num_params(problem: Problem) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(problem.param_shapes))


def _first_epoch(accuracy: xr.DataArray, level: float) -> float:
    """Median over seeds of the first epoch that ends at a level; inf where half of the seeds do not get there."""
    reached = accuracy.transpose("seed", "epoch").values >= level
    first = np.where(reached.any(1), accuracy["epoch"].values[reached.argmax(1)].astype(float), np.inf)
    return float(np.sort(first)[len(first) // 2])
