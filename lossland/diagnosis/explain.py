"""Why did the loss of a run rise? Observe, train again, measure, fork, decide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import xarray as xr

from lossland.arguments import OPTIMIZER, a, expects, optional, trajectories
from lossland.diagnosis import counterfactuals, measurements, replays
from lossland.diagnosis.arms import differentiated_numerically, is_recurrent
from lossland.diagnosis.causes import Cause
from lossland.diagnosis.data_checks import labels_of, made_valid, without_a_loss, wrong_with
from lossland.diagnosis.events import FACTOR
from lossland.diagnosis.explanation import Explanation, remedies_of
from lossland.diagnosis.gradients import check_gradient
from lossland.diagnosis.hygiene import Finding
from lossland.diagnosis.mechanisms import MAJORITY, PROOF, decide
from lossland.diagnosis.observation import BEFORE, Observation, observe, recorded_losses
from lossland.problems.problem import Problem
from lossland.sweeps.execution import run as train
from lossland.sweeps.probes import as_probes
from lossland.sweeps.sweep import Outcome, Sweep
from lossland.sweeps.trajectories import sweep_of

NEEDS_PROBLEM = (
    "counterfactuals: give explain the problem and the optimizer, and it replays the run with one thing changed",
    "the gradient, the labels and the precision: they need the problem",
)
NEEDS_CURVATURE = "curvature: neither sharpness nor preconditioned sharpness was recorded"
NEEDS_A_LOSS = "counterfactuals: the loss is not finite at the first step, and there is no state before it to replay"
REPLAYED = {
    "right_gradient": "the run with the right gradient",
    "valid_labels": "the run with valid labels",
    "float64": "the run in float64",
}
"""Arms that need a program of their own."""


@expects(run=trajectories("step"), problem=optional(a("an ll.Problem", Problem)), optimizer=optional(OPTIMIZER))
def explain(run: xr.Dataset, problem: Problem | None = None, optimizer: Any = None) -> Explanation:
    """Say why the loss of one run rose: cause, evidence, confidence, and the counterfactuals that prove it.

    The largest rise of the loss over the full data is explained. With problem and optimizer the run is trained again
    from its initial state, bit for bit, curvature and noise are measured around the rise, the change of the loss is
    split into slope + curvature + rest, and the state before the rise is continued in arms with one thing changed each.
    Without them the records alone decide, and `untested` says what they cannot tell.

    Args:
        run: one run of `ll.run`'s dataset, such as `runs.sel(learning_rate=0.1, seed=3)`.
        problem, optimizer: what it was trained by, the optimizer with the arguments that were fixed.

    Raises:
        ValueError: where `run` holds more than one run, one that was not computed, or no loss, or where the problem or
            the optimizer is another one.
    """
    one = _one_run(run)
    return explanations(one, problem, optimizer)[0]


def explanations(runs: xr.Dataset, problem: Problem | None = None, optimizer: Any = None) -> list[Explanation]:
    """Explain runs that differ in their seed alone: replays share their compiled programs.

    Args:
        runs: dims (seed, step), scalar coordinates for the hyperparameters.
        problem, optimizer: as in `explain`.
    """
    seen = [observe(runs.isel(seed=place)) for place in range(runs.sizes["seed"])]
    labels = [_named(runs, place) for place in range(runs.sizes["seed"])]
    if problem is None or optimizer is None:
        return [_from_records(one, name, runs) for one, name in zip(seen, labels, strict=True)]
    if problem.init_state is not None:
        replays.checked(runs, problem, optimizer)
        why = "counterfactuals: the problem keeps a state (batch statistics), which replays do not continue"
        return [
            _from_records(_told(one, problem, runs), name, runs, why) for one, name in zip(seen, labels, strict=True)
        ]
    if any(not np.isfinite(one.loss[0]) for one in seen):
        return _without_a_loss(runs, problem, optimizer, seen, labels)
    case = replays.retrained(runs, problem, optimizer)
    seen = [_told(observe(case.runs.isel(seed=place)), problem, runs) for place in range(runs.sizes["seed"])]
    seen = [_with_settings(one, case) for one in seen]
    if not any(name in runs for name in ("batch_loss", "epoch_mean_loss")):
        # Training again recorded the batches' loss; of a rise that nobody has seen there is nothing to explain.
        seen = [one.changed(recorded=None, recorded_rise=None) for one in seen]
    return _replayed(case, seen, labels)


def _one_run(run: xr.Dataset) -> xr.Dataset:
    """Check that there is one run, and give it the dim "seed" back."""
    if not isinstance(run, xr.Dataset) or "loss" not in run:
        raise ValueError("run: expected one run of the dataset that ll.run returns, with a record of the loss")
    own = {dim for dim in run["loss"].dims if dim != "step"}
    wide = {str(dim): run.sizes[dim] for dim in own if run.sizes[dim] > 1}
    if wide:
        found = ", ".join(f"{count} values of {dim}" for dim, count in wide.items())
        choice = ", ".join(f"{dim}={_first(run, dim)}" for dim in wide)
        raise ValueError(f"run: expected one run, got {found}; select one: runs.sel({choice})")
    run = recorded_losses(run.isel(dict.fromkeys(own, 0)))
    if "status" in run and run["status"].item() == Outcome.not_run:
        raise ValueError(
            "run: expected one that was computed, got status not_run; the call of ll.run that made its folder, "
            "repeated with the same arguments and without part, computes what is missing"
        )
    widened = run.expand_dims("seed") if "seed" in run.coords else run.expand_dims(seed=[0])
    # The threshold is one of the hyperparameters, whatever the seed.
    return widened.assign(threshold=run["threshold"].variable) if "threshold" in run else widened


def _first(run: xr.Dataset, dim: str) -> Any:
    return run[dim].values[0].item() if dim in run.coords else 0


def _named(runs: xr.Dataset, place: int) -> dict[str, Any]:
    point = {str(name): runs[name].values.item() for name in runs.coords if runs[name].ndim == 0 and name != "point"}
    return point | {"seed": int(runs["seed"].values[place])}


def _told(one: Observation, problem: Problem, runs: xr.Dataset) -> Observation:
    """Add what the problem and the sweep say."""
    sweep = sweep_of(runs)
    size = int(runs["batch_size"]) if "batch_size" in runs.coords else sweep.batch_size
    small = size is not None and size < problem.num_examples
    return one.changed(
        batch_size=size if small else None,
        num_examples=problem.num_examples,
        has_random_layers=problem.takes_key or problem.init_state is not None,
    )


def _with_settings(one: Observation, case: replays.Case) -> Observation:
    return one.changed(
        rates=case.rates(one.step),
        momentum=replays.momentum_of(case.tuned),
        b2=replays.decay_of(case.tuned),
        is_adaptive=case.is_adaptive,
        is_recurrent=is_recurrent(case.problem),
    )


def _from_records(one: Observation, name: dict[str, Any], runs: xr.Dataset, why: str = "") -> Explanation:
    """Decide by the records alone."""
    sweep = sweep_of(runs) if "sweep" in runs.attrs else None
    if sweep is not None and one.batch_size is None and one.num_examples is None:
        one = one.changed(batch_size=int(runs["batch_size"]) if "batch_size" in runs.coords else sweep.batch_size)
    untested: list[str] = [why] if why else list(NEEDS_PROBLEM)
    if sweep is None:
        untested.append("whether the loss that was passed is that of all data: a batch's rises by noise as well")
    if not np.isfinite(one.ratio).any():
        untested.append(NEEDS_CURVATURE)
    if one.resolution > 1:
        untested.append(f"what happened between records, {one.resolution} steps apart")
        if one.rise is None and one.steps_uphill:
            untested.append(
                f"rises between records: {one.steps_uphill} steps raised the loss, and no record by {FACTOR - 1:.0%}"
            )
    verdict = decide(one)
    remedies = remedies_of(one, PROOF.get(verdict.cause, ()), _facts(one, None))
    return Explanation(verdict.cause, verdict.confidence, verdict.evidence, remedies, tuple(untested), name, (), one)


def _replayed(case: replays.Case, seen: list[Observation], names: list[dict[str, Any]]) -> list[Explanation]:
    """Measure, fork and decide; runs without a rise need neither."""
    untested: list[str] = []
    arms = None
    findings: tuple[str, ...] = ()
    if any(one.rise is not None for one in seen):
        seen, findings = _with_hygiene(case, seen, untested)
        seen = measurements.with_curvature(case, seen)
        try:
            seen = measurements.with_decomposition(case, seen)
        except TypeError as error:  # a loss of which float64 makes no program
            untested.append(f"slope, curvature and rest of the rise, in float64: {_brief(error)}")
        seen = measurements.with_noise(case, seen)
        arms = counterfactuals.forked(case, seen)
        if arms is not None:
            seen = _with_arms(case, seen, arms, untested)
            seen = _with_other_data(case, seen)
    if not case.same_bits:
        untested.append(
            f"the same bits: the run trained again differs by up to {case.difference:.2g} of its loss; replays are of "
            "the run trained again"
        )
    out = []
    for place, (one, name) in enumerate(zip(seen, names, strict=True)):
        verdict = decide(one)
        facts = _facts(one, case) | _settings(arms, place)
        remedies = remedies_of(one, PROOF.get(verdict.cause, ()), facts)
        made = Explanation(
            verdict.cause,
            verdict.confidence,
            verdict.evidence,
            remedies,
            (*untested, *one.untested),
            name,
            findings,
            one,
        )
        out.append(replace(made, curves=_curves(arms, place, one)))
    return out


def _without_a_loss(
    runs: xr.Dataset, problem: Problem, optimizer: Any, seen: list[Observation], names: list[dict[str, Any]]
) -> list[Explanation]:
    """Explain runs that begin without a finite loss by their records and their data, the others by replay."""
    replays.checked(runs, problem, optimizer)
    rest = [place for place, one in enumerate(seen) if np.isfinite(one.loss[0])]
    others = dict(zip(rest, explanations(runs.isel(seed=rest), problem, optimizer) if rest else (), strict=True))
    findings, rows = wrong_with(problem), without_a_loss(problem)
    if rows:
        text = f"labels of {len(rows)} rows make the loss not finite; with labels of other rows in their place it is"
        findings = (*findings, str(Finding("labels", text, rows)))
    return [
        others[place]
        if place in others
        else replace(
            _from_records(_told(one, problem, runs).changed(wrong_rows=rows), name, runs, NEEDS_A_LOSS),
            findings=findings,
        )
        for place, (one, name) in enumerate(zip(seen, names, strict=True))
    ]


def _with_hygiene(
    case: replays.Case, seen: list[Observation], untested: list[str]
) -> tuple[list[Observation], tuple[str, ...]]:
    """Check labels, inputs and the gradient once for all runs; what is wrong with the data is told besides."""
    data = case.problem.data
    labels = labels_of(case.problem)
    place = next(place for place, one in enumerate(seen) if one.rise is not None)
    start = case.states(np.array([place]), np.array([0]))["saved_params"].values[0]
    params = jax.tree.map(np.asarray, replays.tree_of(case.problem, start))
    wrong: tuple[str, ...] = ()
    loss = jax.jit(case.problem.loss)
    try:
        wrong = check_gradient(loss, jax.jit(jax.grad(case.problem.loss)), params, data).autodiff_differs
    except (TypeError, ValueError) as error:  # float64 makes no program of the loss, or it is not finite nearby
        untested.append(f"the gradient, against differences in float64: {_brief(error)}")
    findings = dict.fromkeys(wrong_with(case.problem))
    if labels is not None:
        findings |= dict.fromkeys(str(finding) for finding in labels.findings)
    return [one.changed(labels=labels, wrong_leaves=wrong) for one in seen], tuple(findings)


def _with_arms(
    case: replays.Case, seen: list[Observation], arms: counterfactuals.Arms, untested: list[str]
) -> list[Observation]:
    """Add the arms' rises, with right gradients, valid labels and float64 where they are in question."""
    out = list(seen)
    more = _in_question(case, seen, arms, untested)
    noisy = case.batches.batch_size is not None or case.trained.takes_key
    for row, place in enumerate(arms.places):
        one, rises, told = seen[place], arms.rises(place), []
        if noisy:
            # The fork trains on the full data: what the run itself did is the arm that nothing was changed in.
            rises["full_batch"] = rises["unchanged"]
            inside = (one.step >= arms.forked_at[row]) & (one.step <= arms.forked_at[row] + arms.windows[row])
            rises["unchanged"] = counterfactuals.log_rise(one.loss[inside])
        for name, other in more.items():
            found = other.rises(place)["unchanged"]
            if name != "float64":  # from the first step on: compared with the whole run up to its peak
                whole = _from_the_start(one, rises, int(other.windows[row]))
                if isinstance(whole, str):
                    told.append(f"{REPLAYED[name]}: {whole}")
                    continue
                found *= rises["unchanged"] / max(whole, 1e-9)
            rises[name] = found
        out[place] = one.changed(arms=rises, untested=tuple(told))
    return out


def _in_question(
    case: replays.Case, seen: list[Observation], arms: counterfactuals.Arms, untested: list[str]
) -> dict[str, counterfactuals.Arms]:
    """Continue the runs with what is suspected put right: the gradient, the labels, the precision."""
    whole = counterfactuals.from_the_start(arms)
    problem, first = case.problem, seen[arms.places[0]]
    wanted: dict[str, Callable[[], counterfactuals.Arms]] = {}
    if first.wrong_leaves:
        wanted["right_gradient"] = lambda: counterfactuals.continued(
            case, whole, differentiated_numerically(problem), "float64"
        )
    if first.labels is not None and not first.labels.ok and np.asarray(problem.data[1]).ndim == 2:
        mended = problem.with_data((problem.data[0], made_valid(np.asarray(problem.data[1]))))
        wanted["valid_labels"] = lambda: counterfactuals.continued(case, whole, mended, case.dtype)
    if case.dtype == "float32" and any(seen[place].overflow is not None for place in arms.places):
        wanted["float64"] = lambda: counterfactuals.continued(case, arms, problem, "float64")
    found = {}
    for name, make in wanted.items():
        try:
            found[name] = make()
        except (TypeError, ValueError) as error:  # too many parameters, or float64 makes no program of the loss
            untested.append(f"{REPLAYED[name]}: {_brief(error)}")
    return found


def _from_the_start(one: Observation, rises: dict[str, float], window: int) -> float | str:
    """Logarithm of the rise that a replay from the first step on is compared with, or why it can be with none."""
    whole = counterfactuals.log_rise(one.loss[: int(np.searchsorted(one.step, window)) + 1])
    if whole < MAJORITY * rises["unchanged"]:
        return f"the rise lies beyond the {window} steps of a replay from the start"
    if "full_batch" not in rises:
        return whole
    # Such a replay sees the full data.
    return rises["full_batch"] if rises["full_batch"] > np.log(FACTOR) else "on the full data nothing rises"


def _brief(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _with_other_data(case: replays.Case, seen: list[Observation]) -> list[Observation]:
    """Train again without the ragged batch, or without the examples that make the noise, where these are suspected."""
    out = list(seen)
    causes = {place: decide(one).cause for place, one in enumerate(seen) if one.rise is not None}
    ragged = [
        place for place, one in enumerate(seen) if one.ragged_share > 0 and one.arms.get("full_batch") is not None
    ]
    suspected = [place for place, cause in causes.items() if cause is Cause.mislabelled_examples]
    if any(causes.get(place) is Cause.trailing_small_batch for place in ragged):
        again = _trained(case, case.trained, last_batch="drop")
        for place in ragged:
            out[place] = _compared(out[place], again.isel(seed=place), "last_batch_dropped")
    if suspected:
        counts = np.bincount(np.concatenate([seen[place].outliers for place in suspected]))
        worst = np.argsort(-counts)[: len(seen[suspected[0]].outliers)]
        kept = np.setdiff1d(np.arange(case.problem.num_examples), worst)
        fewer = replace(case.trained, data=jax.tree.map(lambda leaf: leaf[kept], case.trained.data))
        again = _trained(case, fewer)
        for place in suspected:
            out[place] = _compared(out[place], again.isel(seed=place), "outliers_dropped")
    return out


def _trained(case: replays.Case, problem: Problem, **changed: Any) -> xr.Dataset:
    sweep = case.sweep
    fields: dict[str, Any] = {
        name: getattr(sweep, name)
        for name in ("dtype", "batch_size", "sampling", "last_batch", "freeze")
        if name not in case.point
    }
    axes = {name: [value] for name, value in case.point.items()}
    again = Sweep(
        axes,
        seeds=case.runs["seed"].values.astype(int).tolist(),
        num_steps=sweep.num_steps,
        every=1,
        **(fields | changed),
    )
    return train(problem, case.optimizer, again, as_probes(["loss"]), progress=False).isel(dict.fromkeys(case.point, 0))


def _compared(one: Observation, again: xr.Dataset, arm: str) -> Observation:
    """Compare the largest rises of two whole runs; the one that is explained stands for the arm without a change."""
    whole = counterfactuals.log_rise(one.loss[np.isfinite(one.loss)])
    other = counterfactuals.log_rise(again["loss"].values.astype(float))
    scale = one.arms["unchanged"] / whole if whole > 0 else 1.0
    return one.changed(arms=one.arms | {arm: other * scale})


def _facts(one: Observation, case: replays.Case | None) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if one.rates is not None and one.rise is not None:
        at = int(np.searchsorted(one.step, min(max(one.rise.start, 0), one.step[-1])))
        facts["rate"] = float(one.rates[min(at, len(one.rates) - 1)])
        near = one.step >= one.rise.valley - BEFORE // 2
        facts["rate_before"] = float(one.rates[near][0]) if one.rate_rise is None else one.rate_rise.before
    if case is not None and case.batches.batch_size:
        facts["rest"] = case.batches.rest
        if np.isfinite(one.noise_ratio) and one.noise_ratio > 1:
            facts["batch"] = min(int(np.ceil(case.batches.batch_size * one.noise_ratio)), case.problem.num_examples)
    return facts


def _settings(arms: counterfactuals.Arms | None, place: int) -> dict[str, float]:
    if arms is None or place not in arms.places:
        return {}
    row = int(np.flatnonzero(arms.places == place)[0])
    found = {}
    for arm, key, name in (("eps_raised", "eps", "eps"), ("clipped", "max_norm", "norm")):
        if arm in arms.settings and key in arms.settings[arm]:
            found[name] = float(np.broadcast_to(arms.settings[arm][key], len(arms.places))[row])
    return found


def _curves(arms: counterfactuals.Arms | None, place: int, one: Observation) -> dict[str, np.ndarray]:
    """Steps and losses of the arms of one run; a fork that changes nothing sees the full data where the run did not."""
    if arms is None or place not in arms.places:
        return {}
    row = int(np.flatnonzero(arms.places == place)[0])
    last = int(arms.windows[row]) + 1
    found = {"step": arms.forked_at[row] + arms.loss["step"].values[:last]}
    names = {str(name): str(name) for name in arms.loss["arm"].values.tolist()}
    if "full_batch" in one.arms:
        names = {"full_batch": names.pop("unchanged")} | names
    return found | {name: arms.loss.sel(arm=arm).values[row, :last] for name, arm in names.items()}
