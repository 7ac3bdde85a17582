"""The five claims about the course's classifier, settled by what its runs measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr

from lossland.reproductions.claims import Claim, Verdict, side_of
from lossland.reproductions.epoch_rises import KINDS
from lossland.reproductions.estimates import Estimate, is_cause, mean_share, median_of, share_of

CASE = "course_mlp"
BLOCK = 25
"""Epochs over which the trend is taken: the median of a block against that of the block before."""
OCCASIONAL = 0.01
"""Share of epochs from which on rises are not an exception."""


class Results(NamedTuple):
    """What was run.

    rises: `split_rises`; steps: share of steps that raise the full-data loss, per seed; long: `printed`, `end_loss`,
    `end_accuracy` over (seed, epoch) at the reported rate; slow: the same at a tenth of it; by_rate: share of epochs
    that rise over (batches, learning_rate, seed); orders: way of drawing batches -> (share of epochs that rise,
    distinct examples met per epoch); whole: `end_loss` and `end_accuracy` of full-batch training, taken as often.
    """

    rises: xr.Dataset
    steps: np.ndarray
    long: xr.Dataset
    slow: xr.Dataset
    by_rate: xr.DataArray
    orders: Mapping[str, tuple[np.ndarray, np.ndarray]]
    whole: xr.Dataset


def blocks_of(curve: xr.DataArray, length: int = BLOCK) -> np.ndarray:
    """Median of each whole block of epochs: (seed, block)."""
    values = curve.transpose("seed", "epoch").values
    count = values.shape[1] // length
    return np.median(values[:, : count * length].reshape(len(values), count, length), axis=2)


def trend_stops(curve: xr.DataArray, length: int = BLOCK) -> np.ndarray:
    """Epoch at the end of the last block before one that is no lower, seed by seed; inf where all fall."""
    falls = np.diff(blocks_of(curve, length), axis=1) < 0
    stop = np.where(falls.all(1), np.inf, (falls.argmin(1) + 1.0) * length)
    return stop


def rises_while_falling(curve: xr.DataArray, length: int = BLOCK) -> np.ndarray:
    """Share of epochs that rise before the trend stops falling, seed by seed."""
    values = curve.transpose("seed", "epoch").values
    found = []
    for row, stop in zip(values, trend_stops(curve, length), strict=True):
        until = len(row) if np.isinf(stop) else int(stop)
        found.append(float((np.diff(row[:until]) > 0).mean()))
    return np.array(found)


def both_fall(runs: xr.Dataset) -> np.ndarray:
    """Share of epochs over which loss and accuracy fall, both over the full data, seed by seed."""
    loss, right = (runs[name].transpose("seed", "epoch").values for name in ("end_loss", "end_accuracy"))
    return ((np.diff(loss) < 0) & (np.diff(right) < 0)).mean(1)


def numbers_of(found: Results) -> dict[str, float]:
    """Return the numbers behind the claims."""
    rises = found.rises
    numbers = {
        "epochs_that_rise": mean_share(_shares(found.long["printed"])).value,
        "epochs_that_rise_before_the_trend_stops": mean_share(rises_while_falling(found.long["printed"])).value,
        "epochs_that_rise_at_a_tenth_of_the_rate": mean_share(_shares(found.slow["printed"])).value,
        "trend_stops_at_epoch": median_of(trend_stops(found.long["printed"])).value,
        "trend_stops_at_epoch_at_a_tenth_of_the_rate": median_of(trend_stops(found.slow["printed"])).value,
        "steps_that_raise_the_full_loss": mean_share(found.steps).value,
        "first_full_batch_steps_that_rise": float(rises["first_step_rise"].mean()) if rises.sizes["state"] else np.nan,
        "short_steps_that_rise": float(rises["short_step_rise"].mean()) if rises.sizes["state"] else np.nan,
        "loss_and_accuracy_fall": mean_share(both_fall(found.long)).value,
        "loss_and_accuracy_fall_full_batch": mean_share(both_fall(found.whole)).value,
        "distinct_examples_of_an_epoch": float(found.orders["shuffled"][1].min()),
    }
    for kind in KINDS:
        numbers[f"rises_by_{kind}"] = mean_share(rises[kind].values).value
    for kind in KINDS[1:]:
        ratio = rises["ratio"].values[rises["kind"].values == kind]
        if np.isfinite(ratio).any():
            numbers[f"relative_sharpness_{kind}"] = float(np.nanmedian(ratio))
    for order, (shares, _) in found.orders.items():
        numbers[f"epochs_that_rise_{order}"] = mean_share(shares).value
    for batches in found.by_rate["batches"].values.tolist():
        for rate in found.by_rate["learning_rate"].values.tolist():
            one = found.by_rate.sel(batches=batches, learning_rate=rate)
            numbers[f"epochs_that_rise_{batches.replace(' ', '_')}_{rate:g}"] = mean_share(one.values).value
    return numbers


def claims(found: Results) -> list[Claim]:
    """Settle all five."""
    return [_occasional(found), _unseen(found), _passes(found), _leap(found), _accuracy(found)]


def _shares(curve: xr.DataArray) -> np.ndarray:
    return (curve.diff("epoch") > 0).mean("epoch").values.ravel()


def _occasional(found: Results) -> Claim:
    rising = mean_share(rises_while_falling(found.long["printed"]))
    stop, slow_stop = (median_of(trend_stops(runs["printed"])) for runs in (found.long, found.slow))
    slow = mean_share(rises_while_falling(found.slow["printed"]))
    vanish = mean_share(1 - found.rises["curvature"].values)
    falls_first = share_of(trend_stops(found.long["printed"]) > 2 * BLOCK)
    there: Verdict = side_of(rising.low, rising.high, OCCASIONAL)
    verdict: Verdict = there if there == side_of(falls_first.low, falls_first.high) else "depends"
    last = int(found.long["epoch"][-1])
    return Claim(
        CASE, "a", "occasional rises are normal with Adam as long as the trend falls", verdict,
        f"share of epochs that rise while the median of {BLOCK} epochs still falls", **rising.numbers,
        counterfactual=f"same seeds at a tenth of the rate: {slow}; share of the rises that vanish with the full "
        f"batch: {vanish}; epoch at which the trend stops falling: {stop.within(last)} of {last}, at a tenth of the "
        f"rate {slow_stop.within(last)}",
        condition="" if verdict != "depends" else "on the rate: either the trend stops falling early (at the reported "
        f"one, epoch: {stop.within(last)}) or hardly an epoch rises",
    )  # fmt: skip


def _unseen(found: Results) -> Claim:
    shuffled, ordered = (mean_share(found.orders[name][0]) for name in ("shuffled", "in_order"))
    verdict = is_cause(shuffled, ordered)
    again = mean_share(found.orders["with_replacement"][0])
    return Claim(
        CASE, "b", "rises come from data not seen before, because of shuffling", verdict,
        "share of epochs that rise in batches that are the same in every epoch, in the same order", **ordered.numbers,
        counterfactual=f"same seeds, shuffled every epoch: {shuffled}; drawn with replacement: {again}",
        condition="" if verdict != "depends" else "more seeds: the interval holds half of the share with shuffling",
    )  # fmt: skip


def _passes(found: Results) -> Claim:
    met = found.orders["shuffled"][1]
    total = int(found.orders["in_order"][1].max())
    value = Estimate(float(met.mean()), float(met.min()), float(met.max()))
    other = found.orders["with_replacement"][1]
    verdict: Verdict = "supported" if met.min() == total else "refuted" if met.max() < total else "depends"
    return Claim(
        CASE, "c", "no: an epoch passes over all the data", verdict,
        f"distinct examples met in an epoch, of {total} (interval: smallest and largest over seeds and epochs)",
        **value.numbers,
        counterfactual=f"drawn with replacement an epoch meets {other.mean():.0f}, and "
        f"{mean_share(found.orders['with_replacement'][0])} of epochs rise; each once, "
        f"{mean_share(found.orders['shuffled'][0])}: passing over all the data prevents no rise",
        condition="" if verdict != "depends" else "of the epoch",
    )  # fmt: skip


def _leap(found: Results) -> Claim:
    steps = mean_share(found.steps)
    verdict = side_of(steps.low, steps.high, OCCASIONAL)
    rises = found.rises
    first, short = (
        share_of(rises[name].values) if rises.sizes["state"] else Estimate(0.5, 0.0, 1.0)
        for name in ("first_step_rise", "short_step_rise")
    )
    return Claim(
        CASE, "d", "steps are a blind leap, not guaranteed to help", verdict,
        "share of Adam's steps that raise the loss over all data", **steps.numbers,
        counterfactual=f"from states before a rise, the next step on the full batch raises it in {first}, a step a "
        f"hundredth as long in {short} of them: Adam's momentum still points where earlier batches pointed",
        condition="" if verdict != "depends" else f"around {OCCASIONAL:.0%} of steps",
    )  # fmt: skip


def _accuracy(found: Results) -> Claim:
    both, whole = (
        mean_share(both_fall(runs), runs["end_loss"].size - runs.sizes["seed"]) for runs in (found.long, found.whole)
    )
    verdict = side_of(both.low, both.high, OCCASIONAL)
    return Claim(
        CASE, "e", "the loss may fall while accuracy falls too", verdict,
        "share of epochs after which loss and accuracy over all data are both lower", **both.numbers,
        counterfactual=f"same seeds, as many full-batch steps: {whole}",
        condition="" if verdict != "depends" else f"around {OCCASIONAL:.0%} of epochs",
    )  # fmt: skip
