"""The five claims about the network by hand whose full-batch loss spikes at the start, settled by its runs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from lossland.reproductions.claims import Claim, Verdict, side_of
from lossland.reproductions.estimates import Estimate, median_of, share_of
from lossland.stability.maps import critical_learning_rate, outcomes

CASE = "numpy_mlp"
LOW, HIGH = 0.01, 1.0
"""The reported learning rates."""


class Results(NamedTuple):
    """What was run: the map over (learning_rate, seed); the map over (scale, learning_rate, seed); training with the
    right and the wrong gradient at the reported high rate; names of wrong gradients and their relative error."""

    runs: xr.Dataset
    scaled: xr.Dataset
    right: xr.Dataset
    wrong: xr.Dataset
    wrong_names: str
    wrong_error: float


def claims(found: Results) -> list[Claim]:
    """Settle all five."""
    return [_gradients(found), _bowl(found), _weights(found), _divergence(found), _monotone(found)]


def _spikes(runs: xr.Dataset) -> np.ndarray:
    """Whether the loss ever rose, seed by seed."""
    return (runs["num_rises"] > 0).values.ravel()


def _gradients(found: Results) -> Claim:
    right, wrong = share_of(_spikes(found.right)), share_of(_spikes(found.wrong))
    verdict: Verdict = "refuted" if not found.wrong_names else "supported" if right.high < 0.5 else "depends"
    last = {
        name: median_of(one["loss"].isel(step=-1)) for name, one in (("right", found.right), ("wrong", found.wrong))
    }
    return Claim(
        CASE, "a", "the gradients are wrong", verdict,
        f"share of seeds whose loss spikes at learning rate {HIGH:g} with the right gradients", **right.numbers,
        counterfactual=f"same seeds with the poster's gradient of {found.wrong_names or 'no parameter'}: {wrong}; "
        "loss at the "
        f"end {last['wrong']} against {last['right']} with the right ones",
        condition="" if verdict != "depends" else f"that of {found.wrong_names} is wrong, by {found.wrong_error:.3g} "
        "times its length, but the spike is there without the mistake",
    )  # fmt: skip


def _at(runs: xr.Dataset, rate: float) -> xr.Dataset:
    return runs.isel(learning_rate=int(np.abs(np.log(runs["learning_rate"].values / rate)).argmin()))


def _bowl(found: Results) -> Claim:
    low, high = (_at(found.runs, rate)["loss"].isel(step=-1).values for rate in (LOW, HIGH))
    higher = share_of(high > low)
    verdict = side_of(higher.low, higher.high)
    best = found.runs["loss"].isel(step=-1).median("seed")
    most = float(best["learning_rate"][int(best.argmin("learning_rate"))])
    return Claim(
        CASE, "b", "larger learning rates overshoot and end higher in the bowl", verdict,
        f"share of seeds that end higher at learning rate {HIGH:g} than at {LOW:g}", **higher.numbers,
        counterfactual=f"loss at the end, same seeds: {median_of(high)} at {HIGH:g}, {median_of(low)} at {LOW:g}; "
        "the lowest "
        f"median, {float(best.min()):.3g}, is that of {most:.3g}",
        condition="" if verdict != "depends" else f"on the rate: the lowest end is that of {most:.3g}",
    )  # fmt: skip


def _weights(found: Results) -> Claim:
    rises = ~outcomes(found.scaled)["never_rises"].isel(learning_rate=0)
    scales = rises["scale"].values
    first, last = (share_of(rises.isel(scale=place).values) for place in (0, -1))
    apart = last.low > first.high or last.high < first.low
    overlap: Verdict = "supported" if last == first else "depends"
    verdict: Verdict = "refuted" if apart else overlap
    edge = rises.mean("seed").values > 0.5
    begins = (
        f"more than half of the seeds rise from {scales[edge.argmax()]:.2g} times on"
        if edge.any()
        else "no scale raises half"
    )
    return Claim(
        CASE, "c", "initial weights should not matter much", verdict,
        f"share of seeds whose loss rises at learning rate {LOW:g} from initial weights {scales[-1]:g} times as large",
        **last.numbers,
        counterfactual=f"same seeds with weights as reported: {first}; {begins}",
        condition="" if verdict != "depends" else begins,
    )  # fmt: skip


def _divergence(found: Results) -> Claim:
    lost = outcomes(found.runs)["diverges"]
    at_most = share_of(lost.isel(learning_rate=-1))
    at_one = share_of(_at(lost.to_dataset(name="lost"), HIGH)["lost"])
    edge = critical_learning_rate(found.runs)
    where = Estimate(*(float(edge[name]) for name in ("median", "low", "high")))
    verdict: Verdict = "depends" if at_most.low > 0.5 > at_one.high else side_of(at_most.low, at_most.high)
    largest = float(found.runs["learning_rate"][-1])
    return Claim(
        CASE, "d", "divergence is normal for batch gradient descent at large rates", verdict,
        f"share of seeds that diverge at learning rate {largest:.3g}", **at_most.numbers,
        counterfactual=f"same seeds at {HIGH:g}: {at_one}; rate at which half of the seeds diverge: "
        f"{where.within(largest)}, although sharpness at the start is "
        f"{float((_at(found.runs, HIGH)['sharpness'].isel(step=0) * HIGH / 2).median()):.3g} times 2 / {HIGH:g}",
        condition="" if verdict != "depends" else f"on the learning rate: half of the seeds diverge at "
        f"{where.within(largest)}",
    )  # fmt: skip


def _monotone(found: Results) -> Claim:
    high, low = (share_of(_spikes(_at(found.runs, rate))) for rate in (HIGH, LOW))
    # One full-batch loss that rises is enough against "only".
    verdict: Verdict = "refuted" if high.low > 0.05 else "supported" if high.value == 0 else "depends"
    return Claim(
        CASE, "e", "a non-monotone loss is a mini-batch effect only", verdict,
        f"share of seeds whose full-batch loss rises at learning rate {HIGH:g}", **high.numbers,
        counterfactual=f"same seeds at {LOW:g}: {low}",
        condition="" if verdict != "depends" else "on the seed",
    )  # fmt: skip
