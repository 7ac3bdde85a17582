"""Case 4: a recurrent classifier learns four types of sequences to over 90 %, then gets worse.

Most runs have 16 hidden units, which cost about a millisecond per step and run on two cores; 64 and 128 units, as
chosen for the case, are checked on a few. `measure(..., size=ACCELERATOR)` takes the map to thousands of runs at 64
units, which wants a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
import xarray as xr

from lossland import figures
from lossland.figures.rnn_sequences import rnn_sequences_figure
from lossland.problems.problem import Problem
from lossland.problems.sequences import KINDS, rnn_sequences
from lossland.reproductions.claims import save_claims
from lossland.reproductions.rnn_claims import claims
from lossland.reproductions.rnn_events import (
    BEFORE,
    MODE,
    anatomy,
    checkpoint_arms,
    closely,
    drops,
    interventions,
    predictions,
)
from lossland.reproductions.rnn_runs import (
    B1,
    LANES,
    REPORTED_RATE,
    STATE,
    boundary,
    label_drift,
    reported_shape,
    share,
    train,
    train_arms,
)
from lossland.stability.mode_growth import critical_ratio
from lossland.sweeps.execution import run
from lossland.sweeps.sweep import Sweep

LEAD = 10
"""Steps before a rise shows at which its forecast is held against it."""
SUM = 1.5
"""What the rows of invalid labels sum to."""


class Size(NamedTuple):
    """How much is run: hidden units of the map, its rates, seeds and steps; seeds of the arms from the start; drops
    that are taken apart; steps of the slow runs over those of the map; (hidden, rates, seeds) of the checks."""

    hidden: int
    rates: tuple[float, ...]
    seeds: int
    num_steps: int
    arm_seeds: int
    num_drops: int
    longer: int
    wide: tuple[tuple[int, tuple[float, ...], int], ...]


def doubling(count: int, per_octave: int = 1) -> tuple[float, ...]:
    """Return rates from the reported one on, `per_octave` to a factor of two."""
    return tuple(float(rate) for rate in REPORTED_RATE * 2.0 ** (np.arange(count) / per_octave))


FAST = Size(16, doubling(9)[5:8], 6, 800, 6, 4, 2, ())
FULL = Size(16, doubling(9), 16, 1500, 16, 16, 4, ((64, doubling(8)[3:], 4), (128, doubling(7)[4:], 2)))
ACCELERATOR = Size(64, doubling(33, 4), 64, 4000, 64, 64, 4, ((128, doubling(17, 2), 32),))
"""2112 runs of 64 units, as many in batches of 32, and 544 of 128: two days on two cores."""


def measure(
    folder: Path, fast: bool, table: dict[str, Any], size: Size | None = None
) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the paths of figure and claims.

    A fast run has fewer rates, seeds, steps and drops, and leaves out 64 and 128 units and other data.
    """
    size = size or (FAST if fast else FULL)
    problem = rnn_sequences(size.hidden)
    full = reported_shape(train(problem, size.rates, size.seeds, size.num_steps))
    batches = reported_shape(train(problem, size.rates, size.seeds, size.num_steps, batch_size=32))
    worst = float(full["shape"].mean("seed").idxmax("learning_rate"))
    found = {
        "full": full,
        "batches": batches,
        "by_steps": _by_steps(full, size),
        "safe": _safe(problem, full, size),
        "arms": _arms(problem, worst, size),
        "labels": _labels(worst, size),
        **_drops(problem, worst, size),
    }
    if not fast:
        found["wide"] = {
            hidden: reported_shape(train(rnn_sequences(hidden), rates, seeds, size.num_steps, lane_width=1))
            for hidden, rates, seeds in size.wide
        }
        other = rnn_sequences(size.hidden, noise=0.3, seed=1)
        found["other_data"] = reported_shape(train(other, size.rates, size.seeds, size.num_steps))
    return found
