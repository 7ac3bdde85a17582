"""The six claims about the LSTM whose loss fluctuates, settled by what its runs measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr

from lossland.reproductions.claims import Claim, Verdict, side_of
from lossland.reproductions.epoch_rises import KINDS
from lossland.reproductions.estimates import Estimate, is_cause, mean_share, share_of

CASE = "keras_lstm"
MAIN, SGD, COSINES = "RMSprop", "SGD", "RMSprop, cosines"
"""Settings whose rises are split."""
STAYS = 0.01
"""Share of epochs that rise without dropout, beyond which the fluctuation has not gone with it."""
LEARNS = 0.9
"""Accuracy at which a run has learnt."""


class Results(NamedTuple):
    """What was run.

    rises: setting -> `split_rises`; epoch_shares: setting -> (share of epochs whose printed loss rises, that of the
    unchanged runs), one per seed; windows: setting -> share of windows, as long as an epoch, over
    which the loss of full-batch training rises; steps: setting -> share of full-batch steps that raise the loss, of
    `num_steps` in all;
    reached: setting -> largest accuracy of each seed; mislabelled: `mislabelled_steps`; noise: `epoch_noise`; climbs:
    `climbs_by_position`; hidden: units of the small and the large network.
    """

    rises: Mapping[str, xr.Dataset]
    epoch_shares: Mapping[str, tuple[np.ndarray, np.ndarray]]
    windows: Mapping[str, np.ndarray]
    steps: Mapping[str, np.ndarray]
    num_steps: Mapping[str, int]
    reached: Mapping[str, np.ndarray]
    mislabelled: xr.Dataset
    noise: xr.Dataset
    climbs: np.ndarray
    hidden: tuple[int, int]


def numbers_of(found: Results) -> dict[str, float]:
    """Return the numbers behind the claims."""
    law = found.noise["measured"].mean("draw") / found.noise["predicted"]
    trailing = found.noise["measured"].mean("draw")
    numbers = {
        "noise_over_law": float(law.mean()),
        "noise_over_law_worst_batch_size": float(abs(law.mean("state") - 1).max()),
        "noise_of_two_over_noise_of_32": float((trailing.sel(batch_size=2) / trailing.sel(batch_size=32)).mean()),
        "noise_over_gradient_square_batch_32": float(
            (trailing.sel(batch_size=32) / found.noise["gradient_square"]).mean()
        ),
        "climbs_after_the_batch_of_two": mean_share(found.climbs[:, -1]).value,
    }
    for setting, one in found.rises.items():
        name = _key(setting)
        for kind in KINDS:
            numbers[f"{name}_{kind}"] = mean_share(one[kind].values).value
        for kind in KINDS[1:]:
            ratio = one["ratio"].values[one["kind"].values == kind]
            if np.isfinite(ratio).any():
                numbers[f"{name}_{kind}_relative_sharpness"] = float(np.nanmedian(ratio))
    for setting, (changed, unchanged) in found.epoch_shares.items():
        numbers[f"epochs_that_rise_{_key(setting)}"] = mean_share(changed).value
        numbers[f"epochs_that_rise_beside_{_key(setting)}"] = mean_share(unchanged).value
    for setting, shares in found.windows.items():
        numbers[f"full_batch_windows_that_rise_{_key(setting)}"] = mean_share(shares).value
    for setting, shares in found.steps.items():
        numbers[f"full_batch_steps_that_rise_{_key(setting)}"] = mean_share(shares).value
    for setting, best in found.reached.items():
        numbers[f"accuracy_reached_{_key(setting)}"] = float(np.mean(best))
    for size in found.mislabelled["batch_size"].values.tolist():
        for label in ("right", "wrong"):
            one = found.mislabelled["change"].sel(batch_size=size, label=label)
            numbers[f"{label}_label_in_{size}_raises"] = float((one > 0).mean())
            numbers[f"{label}_label_in_{size}_change"] = float(one.mean())
    return numbers


def _key(setting: str) -> str:
    return setting.lower().replace(",", "").replace(".", "_").replace(" ", "_")


def claims(found: Results) -> list[Claim]:
    """Settle all six."""
    return [_batches(found), _full_batch(found), _parameters(found), _tiny(found), _mislabelled(found), _dropout(found)]


def vanishing(rises: xr.Dataset) -> Estimate:
    """Share of the rises that are not there with the full batch: those of the record and of the noise."""
    return mean_share(1 - rises["curvature"].values)


def _batches(found: Results) -> Claim:
    vanish = vanishing(found.rises[MAIN])
    printed = mean_share(found.epoch_shares["batches of 32"][0])
    whole = mean_share(found.windows[MAIN])
    locally, alone = side_of(vanish.low, vanish.high), is_cause(printed, whole)
    verdict: Verdict = locally if locally == alone else "depends"
    parts = ", ".join(f"{kind} {mean_share(found.rises[MAIN][kind].values).value:.0%}" for kind in KINDS)
    others = "; ".join(f"{name}: {vanishing(one)}" for name, one in found.rises.items() if name != MAIN)
    return Claim(
        CASE, "a", "the fluctuation comes from mini-batches", verdict,
        "share of the rises of the printed loss that vanish when training goes on from the same state with the full "
        "batch",
        **vanish.numbers,
        counterfactual=f"same seeds, full batch from the start: the loss of {whole} of windows as long as an epoch "
        "rises, "
        f"against {printed} of epochs in batches of 32; the rises are made of {parts}; the share that vanishes in "
        f"other settings: {others}",
        condition="" if verdict != "depends" else "each rise is the batches' doing, but with full batches from the "
        f"start RMSprop at its rate still rises: in {whole} of windows",
    )  # fmt: skip


def _full_batch(found: Results) -> Claim:
    steps = {name: mean_share(shares, found.num_steps[name]) for name, shares in found.steps.items()}
    falls = {name: one.high < 0.01 for name, one in steps.items()}
    rises = {name: one.low > 0.01 for name, one in steps.items()}
    verdict: Verdict = "supported" if all(falls.values()) else "refuted" if all(rises.values()) else "depends"
    return Claim(
        CASE, "b", "with all samples in each update the loss decreases and reaches a limit", verdict,
        "share of full-batch RMSprop steps that raise the loss", **steps[MAIN].numbers,
        counterfactual="; ".join(f"same seeds with {name}: {one}" for name, one in steps.items() if name != MAIN),
        condition="" if verdict != "depends" else "on the step's length against the curvature: "
        + ", ".join(f"{name} {'falls' if falls[name] else 'rises' if rises[name] else 'is between'}" for name in steps),
    )  # fmt: skip


def _parameters(found: Results) -> Claim:
    large, small = (mean_share(one) for one in found.epoch_shares[f"{found.hidden[1]} units"])
    verdict = is_cause(large, small)
    return Claim(
        CASE, "c", "200,000 parameters for 98 samples is the cause", verdict,
        f"share of epochs whose printed loss rises with {found.hidden[0]} units", **small.numbers,
        counterfactual=f"with {found.hidden[1]} units: {large}",
        condition="" if verdict != "depends" else "more seeds: the interval holds half of the larger network's share",
    )  # fmt: skip


def _tiny(found: Results) -> Claim:
    two, main = (mean_share(one) for one in found.epoch_shares["batches of 2"])
    learnt = share_of(found.reached["batches of 2"] >= LEARNS)
    beside = share_of(found.reached["batches of 32"] >= LEARNS)
    cause, learning = is_cause(two, main), side_of(learnt.low, learnt.high)
    fails: Verdict = {"supported": "refuted", "refuted": "supported"}.get(learning, "depends")  # type: ignore[assignment]
    if side_of(beside.low, beside.high) != "supported":
        fails = "depends"  # what 32 has not learnt either says nothing about 2
    verdict: Verdict = cause if cause == fails else "depends"
    others = ", ".join(
        f"{name.removeprefix('batches ')}: {mean_share(one[0])}"
        for name, one in found.epoch_shares.items()
        if name.startswith("batches of") and name not in ("batches of 2", "batches of 32")
    )
    drop, keep = (mean_share(one) for one in found.epoch_shares["last batch dropped"])
    return Claim(
        CASE, "d", "very small batches are the cause; batch 2 does not learn", verdict,
        "share of epochs whose printed loss rises in batches of 32", **main.numbers,
        counterfactual=f"same seeds, about as many updates, in batches of 2: {two}{', ' * bool(others)}{others}; "
        f"without the last batch of two: {drop} against {keep}; {LEARNS:.0%} accuracy reached in batches of 2 by "
        f"{learnt} "
        f"of seeds, in batches of 32 by {beside}",
        condition="" if verdict != "depends" else f"that they are the cause is {_told(cause)}; that 2 does not learn "
        f"is {_told(fails)}"
        + (", as batches of 32 do not clearly learn in as many updates either" if fails == "depends" else ""),
    )  # fmt: skip


def _told(verdict: Verdict) -> str:
    return "open" if verdict == "depends" else verdict


def _mislabelled(found: Results) -> Claim:
    change = found.mislabelled["change"]
    raised = (change > 0).mean(("state", "draw")) if "state" in change.dims else (change > 0).mean("draw")
    each = (change > 0).mean("draw")
    steps = change.sel(label="wrong", batch_size=2).size
    wrong, right = (mean_share(each.sel(label=label, batch_size=2).values, steps) for label in ("wrong", "right"))
    verdict: Verdict = "supported" if wrong.low > max(0.5, right.high) else "refuted" if wrong.high < 0.5 else "depends"
    by_size = "; ".join(
        f"{size}: {float(raised.sel(label='wrong', batch_size=size)):.0%} against "
        f"{float(raised.sel(label='right', batch_size=size)):.0%}, change "
        f"{float(change.sel(label='wrong', batch_size=size).mean()):.2g} "
        f"against {float(change.sel(label='right', batch_size=size).mean()):.2g}"
        for size in found.mislabelled["batch_size"].values.tolist()
    )
    return Claim(
        CASE, "e", "one mislabelled sample in a tiny batch raises the global loss", verdict,
        "share of steps on a batch of 2 with one wrong label that raise the loss over all data", **wrong.numbers,
        counterfactual=f"the same batch with right labels: {right}; wrong against right by batch size: {by_size}",
        condition="" if verdict != "depends" else "the interval is not clear of one half, or of what right labels do",
    )  # fmt: skip


def _dropout(found: Results) -> Claim:
    name = next(name for name in found.epoch_shares if name.startswith("dropout"))
    dropped, plain = (mean_share(one) for one in found.epoch_shares[name])
    of_most = is_cause(dropped, plain)
    # What is there without dropout too is not its doing.
    verdict: Verdict = "depends" if of_most == "supported" and plain.low > STAYS else of_most
    conditions = {
        "supported": f"most rises with dropout are its doing, but without it {plain} of epochs rise too",
        "depends": "more seeds: the interval holds half of the share with dropout",
    }
    others = "; ".join(
        f"with {other}: {mean_share(one[0])}"
        for other, one in found.epoch_shares.items()
        if other.startswith("dropout")
    )
    return Claim(
        CASE, "f", "dropout is the cause", verdict,
        "share of epochs whose printed loss rises without dropout", **plain.numbers,
        counterfactual=f"same seeds and epochs {others}",
        condition="" if verdict != "depends" else conditions[of_most],
    )  # fmt: skip
