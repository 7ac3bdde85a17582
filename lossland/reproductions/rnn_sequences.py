"""Case 4: a recurrent classifier learns four types of sequences to over 90 %, then gets worse.

Most runs have 16 hidden units, which cost about a millisecond per step and run on two cores: over a thousand on a grid
of learning rates and seeds, with loss and accuracy alone recorded. 64 and 128 units, as chosen for the case, are
checked on fewer, curvature is measured at some drops. `measure(..., size=ACCELERATOR)` is for a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lossland import figures, strict_json
from lossland.figures.rnn_sequences import rnn_sequences_figure
from lossland.problems.problem import Problem
from lossland.problems.sequences import rnn_sequences
from lossland.reproductions.claims import save_claims
from lossland.reproductions.rnn_claims import PARTS, Drops, Results, boundary_numbers, claims, numbers_of
from lossland.reproductions.rnn_events import (
    BEFORE,
    anatomy,
    checkpoint_arms,
    closely,
    drops,
    interventions,
    recurs,
)
from lossland.reproductions.rnn_labels import label_floor, label_runs
from lossland.reproductions.rnn_runs import REPORTED_RATE, STATE, reported_shape, share, train, train_arms
from lossland.reproductions.rnn_shares import arms_of, labels_of, progress_of, shares_of

EDGE_RATE, STEEP_RATE = 16 * REPORTED_RATE, 32 * REPORTED_RATE
"""Rates at which arms and labels are compared, and drops are taken apart: on other runs about half and most of the
seeds got worse there."""


class Size(NamedTuple):
    """How much is run: hidden units, sequences, rates, seeds and steps of the map; (rates, seeds, steps) in batches of
    32, and on other data; seeds and steps of arms from the start; seeds among which drops are taken apart, and how many
    at most; (sum, seeds) of invalid labels; (rate, seeds, steps) below the map; (hidden, rates, seeds,
    steps) of the checks."""

    hidden: int
    num_sequences: int
    rates: tuple[float, ...]
    seeds: int
    num_steps: int
    batches: tuple[tuple[float, ...], int, int] | None
    other_data: tuple[tuple[float, ...], int, int] | None
    arms: tuple[int, int] | None
    drops: tuple[int, int] | None
    labels: tuple[tuple[float, int], ...]
    slow: tuple[tuple[float, int, int], ...]
    wide: tuple[tuple[int, tuple[float, ...], int, int], ...]


def doubling(first: int, last: int, per_octave: int = 1) -> tuple[float, ...]:
    """Return rates from 2^first to 2^last times the reported one, `per_octave` to a factor of two."""
    places = np.arange(per_octave * first, per_octave * last + 1) / per_octave
    return tuple(float(rate) for rate in REPORTED_RATE * 2.0**places)


FAST = Size(16, 32, doubling(4, 6), 12, 240, None, None, None, None, ((1.1, 6),), (), ())
FULL = Size(
    16, 64, doubling(3, 7, 4), 64, 480,
    batches=(doubling(3, 5), 12, 480),
    other_data=(doubling(3, 5), 12, 480),
    arms=(16, 240),
    drops=(16, 12),
    labels=((1.1, 56), (1.5, 24)),
    slow=((REPORTED_RATE, 12, 6000), (2 * REPORTED_RATE, 64, 3000)),
    wide=((64, doubling(2, 4), 8, 480), (128, doubling(3, 3), 8, 240)),
)  # fmt: skip
ACCELERATOR = Size(
    64, 64, doubling(0, 7, 4), 64, 5000,
    batches=(doubling(0, 7, 2), 64, 5000),
    other_data=(doubling(0, 7, 2), 64, 5000),
    arms=(64, 2000),
    drops=(64, 256),
    labels=((1.02, 64), (1.05, 64), (1.1, 64), (1.2, 64), (1.5, 64)),
    slow=((REPORTED_RATE / 4, 32, 20000), (REPORTED_RATE / 2, 32, 10000)),
    wide=((128, doubling(0, 7, 2), 32, 5000),),
)  # fmt: skip
"""1856 runs of 64 units over 29 rates, 1920 checks, 640 arms, 480 runs of 128 units: for a GPU."""


def measure(
    folder: Path, fast: bool, table: dict[str, Any], size: Size | None = None
) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the paths of the figure and the claims.

    A fast run has fewer rates, seeds and steps, and leaves out drops, arms, lower rates and checks. Runs are kept in
    the folder: a second call goes on where the first one stopped. `size` overrides both: `ACCELERATOR` for a GPU.
    """
    size = size or (FAST if fast else FULL)
    problem = rnn_sequences(size.hidden, size.num_sequences)
    kept = folder / "runs"
    runs = train(problem, size.rates, size.seeds, size.num_steps, out=kept / "map")[["loss", "accuracy"]].load()
    full = reported_shape(runs)
    slow = {
        rate: train(problem, [rate], seeds, num_steps, every=20, out=kept / f"slow_{rate:g}").isel(learning_rate=0)
        for rate, seeds, num_steps in size.slow
    }
    labels, drift = label_runs(
        (size.hidden, size.num_sequences), EDGE_RATE, dict(size.labels), size.num_steps, out=kept / "labels"
    )
    found = Results(STEEP_RATE, EDGE_RATE, runs, None, None, labels, drift, slow)
    example = None
    if size.drops:
        taken, example, usual = _drops(problem, STEEP_RATE, size, kept)
        found = found._replace(drops=taken)
        if size.arms:
            arm_seeds, arm_steps = size.arms
            arms = start_arms(EDGE_RATE, arm_steps, usual)
            records = train_arms(problem, arms, arm_seeds, arm_steps, out=kept / "arms")
            found = found._replace(from_start=reported_shape(records))
    numbers = numbers_of(found)
    checks = _checks(problem, size, kept)
    for name, check in checks.items():
        key = name.replace(" ", "_")
        numbers |= boundary_numbers(key, check)
        for rate in check["learning_rate"].values:
            ends = zip(("", "_low", "_high"), share(check["shape"].sel(learning_rate=rate)), strict=True)
            numbers |= {f"{key}_gets_worse_at_{rate:g}{end}": value for end, value in ends}
    settled = claims(found)
    numbers |= {f"claim_{claim.letter}": claim.verdict for claim in settled}
    shares = {
        f"within {int(part * size.num_steps)} steps": reported_shape(runs, until=int(part * size.num_steps))
        for part in PARTS.values()
    }
    paths = figures.save(
        rnn_sequences_figure(
            numbers, example or _one_run(runs, full, STEEP_RATE), shares_of(shares | checks), progress_of(found),
            labels_of(found), drift, arms_of(found),
        ),
        folder / "rnn_sequences",
    )  # fmt: skip
    figures.save_numbers(full, folder / "map")
    paths.append(save_claims(settled, folder / "claims"))
    expected = {
        "before_drop_gradient_clipped": numbers.get("before_drop_unchanged"),
        "labels_autodiff_1_1_lowest_loss": label_floor(1.1),
    }
    (folder / "numbers.json").write_text(strict_json.dumps(numbers) + "\n", encoding="utf-8")
    return {name: (numbers[name], expected[name]) if name in expected else numbers[name] for name in table}, paths


def _drops(problem: Problem, rate: float, size: Size, kept: Path) -> tuple[Drops, tuple[xr.Dataset, xr.Dataset], float]:
    """Take drops at one rate apart: what is known of them, the one in which the loss rises most, and the gradient norm
    that is usual before them. States are saved on the way, on seeds of the map, which therefore drop again."""
    seeds, most = size.drops or (0, 0)
    runs = train(problem, [rate], seeds, size.num_steps, probes=[STATE], out=kept / "states")
    states = drops(runs, most)
    records = closely(problem, states)
    again = np.flatnonzero(recurs(records))
    if not again.size:
        raise ValueError(f"size: no drop at learning rate {rate:g} came again on replay; take more seeds or steps")
    norms = np.median(records["gradient_norm"].transpose("state", "step").values[:, : BEFORE // 2], axis=1)
    arms = interventions(problem, states, checkpoint_arms(problem, states, norms)).isel(state=again)
    example = _example(runs[["loss", "accuracy"]], records, again)
    return Drops(records.sizes["state"], anatomy(problem, records), arms), example, float(np.median(norms))


def _checks(problem: Problem, size: Size, kept: Path) -> dict[str, xr.Dataset]:
    """Who gets worse in batches, on other data and with more units."""
    checks: dict[str, xr.Dataset] = {}
    count = size.num_sequences
    if size.batches:
        checks["batches of 32"] = reported_shape(train(problem, *size.batches, batch_size=32, out=kept / "batches"))
    if size.other_data:
        other = rnn_sequences(size.hidden, count, noise=0.3, seed=1)
        checks["other data"] = reported_shape(train(other, *size.other_data, out=kept / "other_data"))
    for hidden, rates, seeds, num_steps in size.wide:
        wide = train(rnn_sequences(hidden, count), rates, seeds, num_steps, out=kept / f"hidden_{hidden}")
        checks[f"{hidden} units"] = reported_shape(wide)
    return checks


def _one_run(runs: xr.Dataset, full: xr.Dataset, rate: float) -> tuple[xr.Dataset, None]:
    """The run at a rate whose loss rises most after it has learnt."""
    seed = int(full["rise"].where(np.isfinite(full["rise"]), 0).sel(learning_rate=rate).idxmax("seed"))
    return runs.sel(learning_rate=rate, seed=seed), None


def start_arms(rate: float, num_steps: int, norm: float) -> dict[str, dict[str, float]]:
    """Return what is changed from the start, one thing in each arm, at gradient norms that are usual before a drop."""
    return {
        "unchanged": {"learning_rate": rate},
        "learning_rate_x_0.25": {"learning_rate": rate / 4},
        "learning_rate_decays": {"learning_rate": rate, "decay": 0.01 ** (1 / num_steps)},
        "gradient_clipped": {"learning_rate": rate, "max_norm": norm},
        "eps_1e-3": {"learning_rate": rate, "eps": 1e-3},
        "b1_0": {"learning_rate": rate, "b1": 0.0},
        "b1_0.95": {"learning_rate": rate, "b1": 0.95},
        "b2_0.99": {"learning_rate": rate, "b2": 0.99},
        "b2_0.9": {"learning_rate": rate, "b2": 0.9},
        "amsgrad": {"learning_rate": rate, "amsgrad": 1.0},
    }


def _example(runs: xr.Dataset, records: xr.Dataset, again: np.ndarray) -> tuple[xr.Dataset, xr.Dataset]:
    """Choose the drop in which the loss rises most: its whole run, and its steps one by one."""
    rise = (records["loss"].max("step") / records["loss"].min("step")).values[again]
    most = again[int(rise.argmax())]
    close = records.isel(state=most)
    return runs.sel(learning_rate=float(close["learning_rate"]), seed=int(close["seed"])), close
