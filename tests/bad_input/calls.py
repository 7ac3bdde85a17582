"""Every public function once, with arguments that fit and, for each of them, values that do not."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import lossland as ll
from lossland.problems import datasets, motor_currents, networks, reported, sequences, synthetic, trainability
from lossland.stability.forecast import RECORDS
from tests.bad_input.values import (
    NO_ARRAY,
    NO_AXES,
    NO_DATASET,
    NO_FLAG,
    NO_FUNCTION,
    NO_KEY,
    NO_LAW,
    NO_MAPPING,
    NO_OBJECTIVE,
    NO_OPTIMIZER,
    NO_PATH,
    NO_PROBLEM,
    NO_PRODUCT,
    NO_TEXT,
    NO_TREE,
    NOTHING_LIKE_IT,
    no_count,
    no_list,
    no_number,
    not_one_of,
    or_none,
    samples,
)
from tests.figures.synthetic import catapults


class Call(NamedTuple):
    """A function, arguments that fit (made when they are needed), and for each argument what does not."""

    function: Callable[..., Any]
    fits: Callable[[], Mapping[str, Any]]
    wrong: Mapping[str, Any]


@functools.cache
def problem():
    return ll.Problem(lambda key: jnp.ones(2), lambda params, data: jnp.mean((data @ params) ** 2), np.ones((4, 2)))


@functools.cache
def runs():
    return catapults({"learning_rate": np.geomspace(0.1, 4, 5)}, num_seeds=3)


@functools.cache
def plane_of_runs():
    return catapults({"learning_rate": np.geomspace(0.1, 4, 5), "scale": [1.0, 2.0]}, num_seeds=3)


@functools.cache
def saved():
    """As `state_probe()` records states."""
    return xr.Dataset({"saved_params": (("state", "p"), np.ones((1, 2))), "saved_opt_state": (("state", "o"), [[]])})


@functools.cache
def records():
    """As of Adam, with what forecasts read, blank."""
    found = runs().copy()
    for name in ("preconditioned_sharpness", "preconditioned_sharpness_residual", "update_rms", *RECORDS):
        found[name] = xr.ones_like(found["loss"])
    return found


def objective(params):
    return jnp.sum(params**2)


def matvec(vector):
    return 2 * vector


POINT = np.ones(3, np.float32)
NO_COUNT, NO_RATE = no_count(), no_number(below=0.0)
NO_NUMBER_AT_ALL = samples(None, "x", "", object(), {}, 1j, [1.0, "a"], len)
NO_SHARE = no_number(below=0.0, above=1.0)
NO_FACTOR = no_number(below=1.0)
NO_CUTOFFS = samples(None, 3, 0.1, "strict", [], {}, object())
NO_SEED = no_count(0)
NO_SEEDS = samples(None, "x", object(), math.nan, 0, -1, 1.5, [], [-1], [0.5], [1, 1], [None], ["a"], 10**9, 10**30)
NO_WIDTHS = no_list(NO_COUNT).filter(lambda value: not isinstance(value, int) or value < 1)  # one layer may be a number
PLANE = ll.Plane(ll.Axis("learning_rate", 0.1, 1.0), ll.Axis("scale", 0.1, 1.0))
SWEEP = {"learning_rate": [0.1, 0.2]}


def _laws():
    """The laws of `ll.adaptive`: numbers or arrays everywhere."""
    usual = {"b1": 0.9, "b2": 0.99, "learning_rate": 0.1, "kappa": 1.0, "kappa0": 1.0, "steps": 3, "power": 4.0}
    calls = {}
    for name in ll.adaptive.__all__:
        law = getattr(ll.adaptive, name)
        if isinstance(law, type):
            continue
        parameters = inspect.signature(law).parameters
        needed = {key: usual.get(key, 0.5) for key, p in parameters.items() if p.default is p.empty}
        wrong = {key: or_none(NO_LAW) if p.default is None else NO_LAW for key, p in parameters.items()}
        wrong |= {"inside_root": NO_FLAG} if "inside_root" in wrong else {}
        wrong |= {"max_steps": NO_COUNT} if "max_steps" in wrong else {}
        wrong |= {"probability": NO_SHARE} if "probability" in wrong else {}
        if name == "spike_rise":  # reads records, NaN included
            wrong |= dict.fromkeys(("log_ratio", "refill", "loss", "learning_rate", "rate"), NO_NUMBER_AT_ALL)
        calls[f"adaptive.{name}"] = Call(law, lambda needed=needed: needed, wrong)
    return calls


def _maps():
    one = {"runs": NO_DATASET, "cutoffs": NO_CUTOFFS}
    plane = {"x": "learning_rate", "y": "scale"}
    axis = not_one_of("learning_rate", "scale")
    return {
        "stability_map": Call(ll.stability_map, lambda: {"runs": runs()}, one),
        "critical_learning_rate": Call(
            ll.critical_learning_rate,
            lambda: {"runs": runs()},
            one | {"event": not_one_of("diverges", "rises")},
        ),
        "classes": Call(ll.classes, lambda: {"runs": runs()}, one),
        "cutoff_sensitivity": Call(ll.cutoff_sensitivity, lambda: {"runs": runs()}, one | {"factor": NO_FACTOR}),
        "outcome_probability": Call(
            ll.outcome_probability,
            lambda: {"runs": runs()},
            one
            | {
                "outcome": not_one_of("diverges", "stalls"),
                "method": not_one_of("wilson", "clopper_pearson"),
                "coverage": NO_SHARE,
            },
        ),
        "phase_diagram": Call(
            ll.phase_diagram,
            lambda: {"runs": plane_of_runs(), **plane},
            one | {"x": axis, "y": axis, "coverage": NO_SHARE, "method": not_one_of("wilson", "clopper_pearson")},
        ),
        "critical_constants": Call(
            ll.critical_constants,
            lambda: {"runs": runs()},
            one | {"within": or_none(NO_SEED), "unit": not_one_of("sharpness")},
        ),
        "catapult_window": Call(ll.catapult_window, lambda: {"runs": runs()}, one | {"unit": not_one_of("sharpness")}),
    }


def _training_calls():
    def given(**more):
        return lambda: {"problem": problem(), "optimizer": optax.sgd, **more}

    both = {"problem": NO_PROBLEM, "optimizer": NO_OPTIMIZER}
    sweep = ll.Sweep(SWEEP, 1, 2, 1)
    states = xr.Dataset()
    grid = {"axes": NO_MAPPING, "seeds": NO_SEEDS, "num_steps": NO_COUNT, "after": or_none(no_count(0))}
    late = {"visible": NO_FACTOR, "out": or_none(NO_PATH), "progress": NO_FLAG}
    executor = samples(3, "threads", [], object())
    return {
        "run": Call(
            ll.run,
            given(sweep=sweep),
            both
            | {
                "sweep": samples(None, 3, {}, SWEEP, object()),
                "probes": samples(None, 3, "loss", ["nonsense"], [3], [None], [lambda x: x], ["loss", "loss"]),
                "out": or_none(NO_PATH),
                "progress": samples(None, 3, "yes", [], object()),
                "executor": executor,
                "part": samples(3, "0/2", (1,), (2, 2), (-1, 2), (0.5, 2), ("a", "b"), (0, 0), object()),
                "checkpoint_seconds": NO_RATE,
                "attributes": or_none(NO_MAPPING),
            },
        ),
        "plan": Call(
            ll.plan,
            given(sweep=sweep),
            both
            | {
                "sweep": samples(None, 3, {}, SWEEP, object()),
                "probes": samples(None, 3, "loss", ["nonsense"], [3], [None]),
                "lane_widths": or_none(no_list(NO_COUNT)),
            },
        ),
        "boundary": Call(
            ll.boundary,
            given(plane=PLANE),
            both
            | {
                "plane": NOTHING_LIKE_IT,
                "resolution": NO_COUNT,
                "seeds": no_list(no_count(0)),
                "num_steps": NO_COUNT,
                "lost": NO_FUNCTION,
                "stride": NO_COUNT,
                "adaptive": NO_FLAG,
                "out": or_none(NO_PATH),
                "progress": NO_FLAG,
            },
        ),
        "fork": Call(
            ll.fork,
            given(states=states, arms={"unchanged": {}}, num_steps=2),
            both
            | {
                "states": NO_DATASET,
                "arms": NO_MAPPING,
                "num_steps": NO_COUNT,
                "every": NO_COUNT,
                "branch": or_none(NO_OPTIMIZER),
                "adopt": or_none(NO_FUNCTION),
                "lane_width": or_none(NO_COUNT),
            },
        ),
        "intervene": Call(
            ll.intervene,
            given(states=states),
            both
            | {
                "states": NO_DATASET,
                "num_steps": NO_COUNT,
                "every": NO_COUNT,
                "arms": or_none(NO_MAPPING),
                "visible": NO_FACTOR,
            },
        ),
        "late_training_map": Call(
            ll.late_training_map,
            given(axes=SWEEP),
            both
            | grid
            | late
            | {
                "begun": NO_SHARE,
                "method": not_one_of("wilson", "clopper_pearson"),
                "coverage": NO_SHARE,
                "executor": executor,
            },
        ),
        "predict_late_spikes": Call(
            ll.predict_late_spikes, given(axes=SWEEP, optimizer=optax.adam), both | grid | late | {"executor": executor}
        ),
        "explain": Call(
            ll.explain,
            lambda: {"run": runs().isel(learning_rate=4, seed=0)},
            {"run": NO_DATASET, "problem": or_none(NO_PROBLEM), "optimizer": or_none(NO_OPTIMIZER)},
        ),
        "second_moment_share": Call(
            ll.second_moment_share,
            given(before=saved(), after=saved()),
            both
            | {
                "before": NO_DATASET,
                "after": NO_DATASET,
                "second_moment": or_none(NO_FUNCTION),
                "tol": NO_RATE,
                "dtype": not_one_of("float32", "float64"),
            },
        ),
        "example_curvatures": Call(
            ll.example_curvatures,
            lambda: {"problem": problem(), "params": np.ones(2)},
            {
                "problem": NO_PROBLEM,
                "params": NO_TREE,
                "preconditioner": NO_TREE,
                "cutoff": no_number(below=-1e-9, above=1.0),
            },
        ),
        "mean_square_threshold": Call(
            ll.mean_square_threshold,
            lambda: {"curvatures": curvatures(), "optimizer": optax.sgd, "batch_size": 2},
            {
                "curvatures": NOTHING_LIKE_IT,
                "optimizer": NO_OPTIMIZER,
                "batch_size": NO_COUNT,
                "sampling": not_one_of("with_replacement", "without_replacement"),
            },
        ),
        "batch_sharpness": Call(
            ll.batch_sharpness,
            lambda: {"problem": problem(), "params": np.ones(2), "key": jax.random.key(0), "batch_size": 2},
            {
                "problem": NO_PROBLEM,
                "params": NO_TREE,
                "key": NO_KEY,
                "batch_size": NO_COUNT,
                "num_batches": no_count(2),
                "sampling": not_one_of("with_replacement", "without_replacement"),
            },
        ),
        "batch_sharpness_probe": Call(
            ll.batch_sharpness_probe,
            lambda: {"batch_size": 2},
            {
                "batch_size": NO_COUNT,
                "num_batches": no_count(2),
                "sampling": not_one_of("with_replacement", "without_replacement"),
            },
        ),
        "local_multiplier": Call(
            ll.local_multiplier,
            lambda: {
                "problem": problem(),
                "optimizer": ll.Optimizer(optax.sgd, learning_rate=0.1),
                "params": np.ones(2, np.float32),
            },
            both
            | {
                "params": NO_TREE,
                "opt_state": samples(3, "state", [], {"mu": 1}, object()),
                "target": not_one_of("largest", "oscillating"),
                "tol": NO_RATE,
                "num_vectors": NO_COUNT,
                "max_restarts": NO_COUNT,
            },
        ),
        "multiplier_probe": Call(
            ll.multiplier_probe,
            dict,
            {
                "target": not_one_of("largest", "oscillating"),
                "tol": NO_RATE,
                "num_vectors": NO_COUNT,
                "max_restarts": NO_COUNT,
            },
        ),
        "threshold": Call(
            ll.threshold,
            lambda: {"optimizer": optax.sgd, "learning_rate": 0.1},
            {
                "optimizer": NO_OPTIMIZER,
                "step": or_none(no_count(0)),
                "learning_rate": samples(None, "fast", np.nan, np.inf, [0.1, 0.2], object(), 1j),
            },
        ),
        "monitor": Call(
            ll.monitor,
            lambda: {"optimizer": optax.sgd(0.1)},
            {
                "optimizer": samples(None, 3, "sgd", [], {}, object()),
                "every": NO_COUNT,
                "window": no_count(2),
                "history": no_count(16),
                "second_moment": or_none(NO_FUNCTION),
            },
        ),
        "monitored": Call(
            ll.monitored,
            lambda: {"opt_state": ll.monitor(optax.sgd(0.1)).init(np.ones(2, np.float32))},
            {
                "opt_state": samples(None, 3, "state", [], {}, object(), optax.EmptyState()),
                "part": not_one_of("all", "records", "every_step", "recent"),
                "dims": samples(3, "run", ("run",), [3], [None]),
            },
        ),
        "load": Call(ll.load, lambda: {"path": "nowhere"}, {"path": NO_PATH, "lazy": NO_FLAG}),
        "to_tensorboard": Call(
            ll.to_tensorboard,
            lambda: {"runs": runs(), "folder": "nowhere"},
            {"runs": NO_DATASET, "folder": NO_PATH},
        ),
        "write_report": Call(
            ll.write_report,
            lambda: {"runs": runs(), "path": "nowhere/report.html"},
            {
                "runs": NO_DATASET,
                "path": NO_PATH,
                "explain": or_none(NO_FUNCTION),
                "num_explained": no_count(0),
                "max_bytes": NO_RATE,
            },
        ),
        "accuracy_probe": Call(
            ll.accuracy_probe,
            lambda: {"logits": lambda params, data: data[0]},
            {"logits": NO_FUNCTION, "labels": NO_FUNCTION},
        ),
        "adaptive_probes": Call(
            ll.adaptive_probes,
            lambda: {},
            {"second_moment": or_none(NO_FUNCTION), "tol": NO_RATE, "max_matvecs": NO_COUNT},
        ),
        "cross_entropy_numerics": Call(
            ll.cross_entropy_numerics,
            lambda: {"logits": lambda params, data: data[0], "loss": lambda logits, data: logits.sum()},
            {"logits": NO_FUNCTION, "loss": NO_FUNCTION, "labels": NO_FUNCTION},
        ),
        "zoom": Call(
            lambda **given: next(ll.zoom(**given)),
            lambda: {"draw": lambda plane: None, "plane": PLANE, "num_frames": 1},
            {
                "draw": NO_FUNCTION,
                "plane": NOTHING_LIKE_IT,
                "num_frames": NO_COUNT,
                "factor": NO_FACTOR,
                "choose": or_none(NO_FUNCTION),
            },
        ),
    }


@functools.cache
def curvatures():
    from lossland.stability.example_curvatures import ExampleCurvatures

    return ExampleCurvatures(np.ones(1), np.ones((1, 1)), np.ones((4, 1, 1)), np.ones((4, 1)), 0, 1.0, "mean", False)


def _records():
    return {
        "forecast": Call(
            ll.forecast,
            lambda: {"runs": records(), "b1": 0.9, "b2": 0.99},
            {
                "runs": NO_DATASET,
                "at": samples("now", [], [np.nan], {}, object(), -5, 1j),
                "b1": samples("x", object(), 1.5, -1, np.nan, []),
                "b2": samples("x", object(), 1.5, -1, np.nan, []),
                "horizon": NO_RATE,
                "window": NO_RATE,
                "coverage": NO_SHARE,
                "visible": NO_FACTOR,
            },
        ),
        "spikes": Call(
            ll.spikes,
            lambda: {"runs": records()},
            {"runs": NO_DATASET, "after": no_count(0), "visible": NO_FACTOR, "rate_window": NO_COUNT},
        ),
        "alarm_signals": Call(
            ll.alarm_signals,
            lambda: {"runs": records(), "predicted": xr.Dataset({"spike_step": ("x", [1.0])})},
            {"runs": NO_DATASET, "predicted": NO_DATASET},
        ),
        "forecast_scores": Call(
            ll.forecast_scores,
            lambda: {"signals": {"one": records()["loss"]}, "found": xr.Dataset(), "tuning_seeds": [0]},
            {
                "signals": samples(None, 3, "x", [], {}, {"one": 3}, xr.Dataset(), object()),
                "found": NO_DATASET,
                "tuning_seeds": no_list(no_count(0)),
                "lead": no_number(below=-1e-9),
                "within": no_number(below=-1e-9),
                "false_alarms": no_number(below=-1e-9, above=1.0),
                "after": no_number(below=-1e-9),
            },
        ),
        "forecast_errors": Call(
            ll.forecast_errors,
            lambda: {"predicted": xr.Dataset({"spike_step": ("at", [1.0])}), "found": xr.Dataset(), "ahead": [1]},
            {"predicted": NO_DATASET, "found": NO_DATASET, "ahead": no_list(no_number(below=-1e-9))},
        ),
        "late_training_scores": Call(
            ll.late_training_scores,
            lambda: {"measured": xr.Dataset({"probability": 1.0}), "predicted": xr.Dataset({"probability": 1.0})},
            {"measured": NO_DATASET, "predicted": NO_DATASET},
        ),
        "boundary_dimension": Call(
            ll.boundary_dimension,
            lambda: {"diverges": xr.DataArray(np.eye(16, dtype=bool)[None], dims=("seed", "y", "x"))},
            {
                "diverges": samples(None, 3, "x", [], {}, np.eye(4), xr.Dataset(), xr.DataArray(3.0), object()),
                "coverage": NO_SHARE,
            },
        ),
        "check_gradient": Call(
            ll.check_gradient,
            lambda: {
                "loss": lambda params, batch: jnp.sum(params),
                "gradient": lambda params, batch: np.ones(2),
                "params": np.ones(2),
                "batch": np.ones(2),
            },
            {
                "loss": NO_FUNCTION,
                "gradient": NO_FUNCTION,
                "params": NO_TREE,
                "batch": NO_TREE,
                "tolerance": NO_RATE,
                "seed": no_count(0),
            },
        ),
        "check_labels": Call(
            ll.check_labels,
            lambda: {"labels": [0, 1]},
            {
                "labels": samples(None, "x", "", [], {}, object(), [[]], [["a"]], [1, [2, 3]], np.zeros((2, 2, 2)), 3),
                "num_classes": or_none(NO_COUNT),
            },
        ),
        "check_inputs": Call(
            ll.check_inputs,
            dict,
            {"inputs": samples(None, "x", "", [], {}, object(), ["a"], [1, [2, 3]], 3.0, np.zeros((0, 2)))},
        ),
        "check_shapes": Call(
            ll.check_shapes,
            lambda: {"predictions": np.ones(2), "targets": np.ones(2)},
            {
                "predictions": samples(None, "x", {}, object(), [1, [2, 3]], ["a"]),
                "targets": samples(None, "x", {}, object(), [1, [2, 3]], ["a"]),
            },
        ),
        "check_precision": Call(
            ll.check_precision,
            lambda: {"loss": lambda params, batch: jnp.sum(params), "params": np.ones(2), "batch": np.ones(2)},
            {
                "loss": NO_FUNCTION,
                "params": NO_TREE,
                "batch": NO_TREE,
                "epsilon": NO_RATE,
                "dtype": not_one_of("float32", "bfloat16", "float16"),
            },
        ),
        "explain_history": Call(
            ll.explain_history,
            lambda: {"losses": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0], "learning_rate": 0.1},
            {
                "losses": samples(None, 3, "x", [], {}, object(), ["a"], [[1.0]], [1.0], [1, [2]], [1j, 2j]),
                "learning_rate": or_none(NO_RATE),
                "optimizer": samples(3, "nonsense", "", [], {}, object()),
                "steps_per_record": NO_COUNT,
                "full_batch": samples(3, "yes", [], object()),
                "num_examples": or_none(NO_COUNT),
                "dtype": not_one_of("float32", "float64", "bfloat16", "float16"),
            },
        ),
        "decompose_change": Call(
            ll.decompose_change,
            lambda: {"objective": objective, "before": POINT, "after": 2 * POINT},
            {
                "objective": NO_FUNCTION,
                "before": NO_TREE,
                "after": NO_TREE,
                "batched": samples(3, "yes", [], object()),
            },
        ),
    }


def _types():
    def sweep(**given):
        return ll.Sweep(**{"axes": SWEEP, "seeds": 2, "num_steps": 4, "every": 1, **given})

    wrong_values = samples(
        None, "fast", [], {}, ["a"], [np.nan], [0.1, np.inf], [0.1, 0.1], [[0.1]], object(), [None], [1j], 0.1
    )
    return {
        "Sweep": Call(
            sweep,
            dict,
            {
                "axes": NO_MAPPING | wrong_values.map(lambda v: {"axes": v}),
                "seeds": NO_SEEDS,
                "num_steps": NO_COUNT,
                "every": NO_COUNT,
                "dtype": not_one_of("float32", "float64", "bfloat16"),
                "lane_width": or_none(NO_COUNT),
                "freeze": NO_FLAG,
                "points": or_none(NO_MAPPING),
                "batch_size": or_none(NO_COUNT),
                "sampling": not_one_of("shuffled", "in_order", "with_replacement"),
                "last_batch": not_one_of("keep", "drop"),
            },
        ),
        "Sweep.random": Call(
            ll.Sweep.random,
            lambda: {"ranges": {"learning_rate": (0.1, 1.0)}, "num_points": 2, "seeds": 1},
            {
                "ranges": samples(
                    None,
                    3,
                    "x",
                    [],
                    {"a": 3},
                    {"a": (1,)},
                    {"a": (2, 1)},
                    {"a": ("x", "y")},
                    {"a": (0, 1, "log")},
                    {"a": (0, 1, "cubic")},
                    {"a": (np.nan, 1)},
                    {"a": (0, np.inf)},
                ),
                "num_points": NO_COUNT,
                "draw": no_count(0),
            },
        ),
        "Problem": Call(
            ll.Problem,
            lambda: {
                "init": lambda key: jnp.ones(2),
                "loss": lambda params, data: jnp.mean(data @ params),
                "data": np.ones((4, 2)),
            },
            {
                "init": samples(
                    None,
                    3,
                    "init",
                    [],
                    lambda: 1,
                    lambda key: "x",
                    lambda key: {},
                    lambda key: jnp.ones(2, int),
                    lambda key: 1 / 0,
                    lambda key: [object()],
                    lambda key: jnp.ones((2, 2)) @ jnp.ones(3),
                ),
                "loss": samples(
                    None,
                    3,
                    "loss",
                    [],
                    lambda params: 1.0,
                    lambda params, data: params,
                    lambda params, data: "x",
                    lambda params, data: None,
                    lambda params, data: data @ jnp.ones(7),
                    lambda params, data: params["w"],
                    lambda params, data, *, scale: 1.0,
                    lambda params, data: 1,
                    lambda params, data: bool(params[0] > 0),
                    lambda params, data: 1 / 0,
                ),
                "data": samples(
                    None,
                    "x",
                    [],
                    {},
                    3.0,
                    np.zeros((0, 2)),
                    [np.ones(3), np.ones(4)],
                    np.array(["a"]),
                    np.full((4, 2), np.nan),
                    object(),
                    np.array([[np.inf, 1.0]]),
                    {"x": None},
                    np.ones(2, complex),
                    [1, [2, 3]],
                ),
                "name": NO_TEXT,
                "normalisation": not_one_of("mean", "sum"),
                "description": NO_TEXT,
                "init_state": samples(3, "x", [], object(), lambda key: 1.0),
            },
        ),
        "Problem.from_flax": Call(
            ll.Problem.from_flax,
            lambda: {
                "module": networks.MLP((1,)),
                "loss": lambda outputs, targets: jnp.mean(outputs**2),
                "data": (np.ones((4, 2), np.float32), np.ones(4, np.float32)),
            },
            {
                "module": samples(None, 3, "MLP", [], {}, networks.MLP, object()),
                "loss": samples(None, 3, "mse", lambda outputs: 1.0, lambda a, b: "x", lambda a, b: a @ jnp.ones(9)),
                "data": samples(
                    None,
                    3,
                    "x",
                    [],
                    np.ones(3),
                    (1, 2),
                    ("a", "b"),
                    (np.ones((4, 2)),),
                    (np.ones((4, 2)), np.ones(3)),
                    (np.full((4, 2), np.nan), np.ones(4)),
                ),
            },
        ),
        "Optimizer": Call(
            lambda factory, **more: ll.Optimizer(factory, **more),
            lambda: {"factory": optax.sgd},
            {"factory": samples(None, 3, "sgd", [], {}, object()), "speed": samples(0.1, None)},
        ),
        "Schedule": Call(
            lambda factory, **more: ll.Schedule(factory, **more),
            lambda: {"factory": optax.constant_schedule},
            {"factory": samples(None, 3, "decay", [], {}, object()), "speed": samples(0.1, None)},
        ),
        "Axis": Call(
            ll.Axis,
            lambda: {"name": "learning_rate", "low": 0.1, "high": 1.0},
            {
                "name": samples(None, 3, "", [], object(), "two words"),
                "low": no_number(below=0.0, above=1.0),
                "high": no_number(below=0.1),
                "log": NO_FLAG,
            },
        ),
        "Plane": Call(
            ll.Plane,
            lambda: {"x": ll.Axis("a", 0.1, 1.0), "y": ll.Axis("b", 0.1, 1.0)},
            {
                "x": NOTHING_LIKE_IT,
                "y": NOTHING_LIKE_IT,
                "tied": samples(None, 3, "x", [], {"c": "z"}, {"a": "x"}, {"c": None}, object()),
            },
        ),
        "Cutoffs": Call(
            ll.Cutoffs,
            dict,
            {
                "recovery": no_number(below=0.0, infinite=False),
                **dict.fromkeys(("tail", "progress", "edge", "rising"), no_number(below=0.0, above=1.5)),
            },
        ),
        "Probe": Call(
            ll.Probe,
            lambda: {"name": "twice", "measure": lambda problem, optimizer, state: state.loss},
            {
                "name": samples(None, 3, "", "two words", [], object()),
                "measure": NO_FUNCTION,
                "units": NO_MAPPING,
                "descriptions": NO_MAPPING,
                "dims": NO_MAPPING,
                "begin": or_none(NO_FUNCTION),
                "follow": or_none(NO_FUNCTION) | samples(lambda memory, step, loss: memory),
            },
        ),
    }


def _problems():
    widths = {"widths": NO_WIDTHS, "activation": not_one_of(*networks.ACTIVATIONS), "num_examples": or_none(NO_COUNT)}
    loss = {"loss": not_one_of("cross_entropy", "mse")}
    points = {"num_examples": NO_COUNT, "seed": NO_SEED}
    noise = no_number(below=-1e-9)
    return {
        "problems.named": Call(
            ll.problems.named, lambda: {"name": "moons"}, {"name": not_one_of(*ll.problems.NAMES), "speed": samples(3)}
        ),
        "problems.with_label_noise": Call(
            ll.problems.with_label_noise,
            lambda: {"problem": problem(), "num_classes": 2},
            {"problem": NO_PROBLEM, "num_classes": NO_COUNT, "seed": NO_SEED},
        ),
        "digits": Call(datasets.digits, dict, widths | loss | {"seed": NO_SEED}),
        "digit_rows": Call(
            datasets.digit_rows,
            dict,
            loss | {"width": NO_COUNT, "num_layers": NO_COUNT, "num_examples": or_none(NO_COUNT), "seed": NO_SEED},
        ),
        "breast_cancer": Call(datasets.breast_cancer, dict, widths | loss | {"seed": NO_SEED}),
        "stratified": Call(
            datasets.stratified,
            lambda: {"labels": np.array([0, 1]), "num_examples": 1},
            {"labels": NO_ARRAY, "num_examples": or_none(NO_COUNT), "seed": NO_SEED},
        ),
        "linear_regression": Call(
            reported.linear_regression, dict, {"num_examples": NO_COUNT, "standardised": NO_FLAG}
        ),
        "linear_regression_family": Call(
            reported.linear_regression_family, dict, {"max_examples": no_count(2), "standardised": NO_FLAG}
        ),
        "numpy_mlp": Call(
            reported.numpy_mlp,
            dict,
            {"data": not_one_of("moons", "breast_cancer"), "wrong_db1": NO_FLAG, "numpy_seed": or_none(NO_SEED)},
        ),
        "numpy_mlp_initial_params": Call(
            reported.numpy_mlp_initial_params, dict, {"seed": NO_SEED, "num_inputs": NO_COUNT}
        ),
        "numpy_mlp_gradient": Call(
            reported.numpy_mlp_gradient,
            lambda: {"params": reported.numpy_mlp_initial_params(), "batch": (np.ones((3, 2)), np.ones(3))},
            {"params": NO_MAPPING | samples({}, {"W1": "x"}), "batch": NO_TREE, "wrong_db1": NO_FLAG},
        ),
        "draw_sequences": Call(
            sequences.draw_sequences,
            dict,
            {"num_sequences": NO_COUNT, "length": NO_COUNT, "noise": noise, "seed": NO_SEED},
        ),
        "rnn_sequences": Call(
            sequences.rnn_sequences,
            dict,
            {
                "hidden": NO_COUNT,
                "num_sequences": NO_COUNT,
                "length": NO_COUNT,
                "noise": noise,
                "seed": NO_SEED,
                "gradient": not_one_of("autodiff", "fused"),
                "excess": not_one_of("next", "uniform"),
            },
        ),
        "course_mlp": Call(reported.course_mlp, dict, {"deviation": noise, "seed": NO_SEED}),
        "keras_lstm": Call(
            motor_currents.keras_lstm,
            dict,
            {
                "hidden": NO_COUNT,
                "traces": not_one_of("motor_currents", "cosines"),
                "dropout": no_number(below=-1e-9, above=1.0),
                "batch_norm": NO_FLAG,
                "num_mislabelled": NO_SEED,
                "noise": noise,
                "seed": NO_SEED,
            },
        ),
        "draw_motor_currents": Call(
            motor_currents.draw_motor_currents,
            dict,
            {"num_sequences": NO_COUNT, "num_classes": no_count(2), "noise": noise, "seed": NO_SEED},
        ),
        "draw_cosines": Call(motor_currents.draw_cosines, dict, {"num_sequences": no_count(2), "seed": NO_SEED}),
        "quadratic": Call(
            synthetic.quadratic, dict, {"eigenvalues": samples(None, 3, "x", [], {}, [np.nan], ["a"], [[1.0]], [1j])}
        ),
        "chebyshev": Call(synthetic.chebyshev, dict, widths | {"num_examples": NO_COUNT, "degree": NO_SEED}),
        "moons": Call(synthetic.moons, dict, widths | loss | points | {"noise": noise}),
        "blobs": Call(synthetic.blobs, dict, widths | loss | points | {"deviation": noise, "centres": NO_ARRAY}),
        "spirals": Call(synthetic.spirals, dict, widths | loss | points | {"noise": noise, "num_arms": NO_COUNT}),
        "half_moons": Call(synthetic.half_moons, dict, points | {"noise": noise}),
        "gaussian_blobs": Call(synthetic.gaussian_blobs, dict, points | {"deviation": noise, "centres": NO_ARRAY}),
        "spiral_arms": Call(synthetic.spiral_arms, dict, points | {"noise": noise, "num_arms": NO_COUNT}),
        "random_features": Call(
            synthetic.random_features, dict, points | {"num_features": NO_COUNT, "dimension": NO_COUNT}
        ),
        "deep_linear": Call(synthetic.deep_linear, dict, points | {"dimension": NO_COUNT, "depth": NO_COUNT}),
        "uv_model": Call(synthetic.uv_model, dict, {"width": NO_COUNT}),
        "mean_field_network": Call(
            trainability.mean_field_network,
            dict,
            {
                "width": NO_COUNT,
                "activation": not_one_of("identity", "relu", "tanh"),
                "num_examples": or_none(NO_COUNT),
                "data_seed": NO_SEED,
            },
        ),
        "with_scale": Call(networks.with_scale, lambda: {"problem": problem()}, {"problem": NO_PROBLEM}),
        "mlp_regression": Call(
            networks.mlp_regression,
            lambda: {"inputs": np.ones((4, 2)), "targets": np.ones((4, 1)), "widths": (2,)},
            {
                "inputs": NO_ARRAY,
                "targets": NO_ARRAY,
                "widths": NO_WIDTHS,
                "activation": not_one_of(*networks.ACTIVATIONS),
                "use_bias": NO_FLAG,
                "name": NO_TEXT,
                "description": NO_TEXT,
            },
        ),
        "mlp_classification": Call(
            networks.mlp_classification,
            lambda: {"inputs": np.ones((4, 2)), "labels": np.array([0, 1, 0, 1]), "widths": (2,)},
            loss
            | {
                "inputs": NO_ARRAY,
                "labels": NO_ARRAY,
                "widths": NO_WIDTHS,
                "activation": not_one_of(*networks.ACTIVATIONS),
                "name": NO_TEXT,
                "description": NO_TEXT,
            },
        ),
    }


def _curvature():
    c = ll.curvature
    on = {"objective": NO_OBJECTIVE, "params": NO_TREE}
    flat = {"matvec": NO_PRODUCT, "like": NO_TREE}
    pairs = flat | {
        "k": NO_COUNT,
        "tol": NO_RATE,
        "start": or_none(NO_TREE),
        "num_vectors": or_none(NO_COUNT),
        "max_matvecs": NO_COUNT,
        "any_lane": NO_FUNCTION,
    }
    moving = {"matvec": matvec, "like": POINT}
    random = flat | {"key": NO_KEY}
    arrays = {"logits": NO_ARRAY, "tangent": NO_ARRAY}
    calls = {
        "hessian": Call(c.hessian, lambda: {"objective": objective, "params": POINT}, on),
        "gauss_newton": Call(
            c.gauss_newton,
            lambda: {"predict": lambda params: params, "loss": jnp.sum, "params": POINT},
            {"predict": NO_FUNCTION, "loss": NO_OBJECTIVE, "params": NO_TREE},
        ),
        "fisher": Call(
            c.fisher,
            lambda: {"predict": lambda params: params, "output_fisher": c.gaussian, "params": POINT},
            {"predict": NO_FUNCTION, "output_fisher": NO_FUNCTION, "params": NO_TREE},
        ),
        "bernoulli": Call(c.bernoulli, lambda: {"logits": POINT, "tangent": POINT}, arrays),
        "categorical": Call(c.categorical, lambda: {"logits": POINT[None], "tangent": POINT[None]}, arrays),
        "gaussian": Call(
            c.gaussian, lambda: {"means": POINT, "tangent": POINT}, {"means": NO_ARRAY, "tangent": NO_ARRAY}
        ),
        "empirical_fisher": Call(
            c.empirical_fisher,
            lambda: {"example_losses": lambda params: params, "params": POINT},
            {"example_losses": NO_FUNCTION, "params": NO_TREE},
        ),
        "preconditioned": Call(
            c.preconditioned,
            lambda: {"matvec": matvec, "preconditioner": POINT},
            {"matvec": NO_FUNCTION, "preconditioner": NO_TREE},
        ),
        "negated": Call(c.negated, lambda: {"matvec": matvec}, {"matvec": NO_FUNCTION}),
        "in_chunks": Call(
            c.in_chunks,
            lambda: {"build": lambda data: matvec, "data": np.ones((4, 2)), "chunk_size": 2, "reduction": "mean"},
            {
                "build": NO_FUNCTION,
                "data": NO_TREE,
                "chunk_size": NO_COUNT,
                "reduction": not_one_of("mean", "sum"),
            },
        ),
        "parameter_names": Call(c.parameter_names, dict, {"params": NO_TREE}),
        "restrict": Call(
            c.restrict,
            lambda: {"function": objective, "params": {"w": POINT}, "selected": lambda name: True},
            {"function": NO_FUNCTION, "params": NO_TREE, "selected": NO_FUNCTION},
        ),
        "flatten": Call(c.flatten, lambda: moving, flat | {"matvec": NO_FUNCTION}),
        "dense": Call(c.dense, lambda: moving, flat | {"batch_size": NO_COUNT}),
        "dense_hessian": Call(
            c.dense_hessian, lambda: {"objective": objective, "params": POINT}, on | {"batch_size": NO_COUNT}
        ),
        "trace": Call(c.trace, lambda: {**moving, "key": jax.random.key(0)}, random | {"num_matvecs": no_count(4)}),
        "spectral_density": Call(
            c.spectral_density,
            lambda: {**moving, "key": jax.random.key(0)},
            random | {"num_probes": no_count(2), "num_steps": NO_COUNT, "num_points": no_count(2), "width": NO_RATE},
        ),
        "warm_start": Call(c.warm_start, dict, {"pairs": NOTHING_LIKE_IT}),
        "cross_check": Call(
            c.cross_check,
            lambda: {
                "estimate": c.Estimate(np.float32(1), np.float32(1), np.int32(1)),
                "build": lambda params: matvec,
                "params": POINT,
            },
            {"estimate": NOTHING_LIKE_IT, "build": NO_FUNCTION, "params": NO_TREE},
        ),
        "gradient_curvature": Call(c.gradient_curvature, lambda: {"objective": objective, "params": POINT}, on),
        "alignment": Call(
            c.alignment, lambda: {"update": POINT, "vector": POINT}, {"update": NO_TREE, "vector": NO_TREE}
        ),
        "top_eigenpair": Call(
            c.top_eigenpair,
            lambda: {"matvec_flat": matvec, "start": jnp.asarray(POINT)},
            {
                "matvec_flat": NO_FUNCTION,
                "start": NO_ARRAY,
                "tol": NO_RATE,
                "num_vectors": NO_COUNT,
                "max_matvecs": NO_COUNT,
                "any_lane": NO_FUNCTION,
            },
        ),
        "outermost_eigenpair": Call(
            c.outermost_eigenpair,
            lambda: {"matvec": matvec, "rmatvec": matvec, "start": jnp.asarray(POINT)},
            {
                "matvec": NO_FUNCTION,
                "rmatvec": NO_FUNCTION,
                "start": NO_ARRAY,
                "target": not_one_of("largest", "oscillating"),
                "tol": NO_RATE,
                "num_vectors": NO_COUNT,
                "max_restarts": NO_COUNT,
            },
        ),
        "balancing": Call(
            c.balancing,
            lambda: {"matvec": matvec, "rmatvec": matvec, "num_params": 3, "dtype": np.dtype("float32")},
            {
                "matvec": NO_FUNCTION,
                "rmatvec": NO_FUNCTION,
                "num_params": NO_COUNT,
                "dtype": samples(3, "x", [], object(), "int32"),
            },
        ),
    }
    for name in ("top_eigenpairs", "lowest_eigenpairs", "largest_magnitude_eigenpairs"):
        calls[name] = Call(getattr(c, name), lambda: moving, pairs)
    return {f"curvature.{name}": call for name, call in calls.items()}


def _landscapes():
    s = ll.landscapes
    on = {"objective": NO_OBJECTIVE, "params": NO_TREE}
    tree = NO_TREE | samples(None, np.ones(2, np.float32), {"w": POINT}, np.full(3, np.nan, np.float32))
    few = {"batch_size": NO_COUNT}
    extent = no_number(below=0.0) | samples((1.0, 0.0), (0.0, np.nan), ("a", "b"), (1.0,), [])
    points = no_count(2) | samples((2, 0), (2.5, 3), "ab")
    path = np.cumsum(np.eye(3, dtype=np.float32), 0)
    calls = {
        "line": Call(
            s.line,
            lambda: {"objective": objective, "params": POINT, "direction": POINT, "num_points": 3},
            on | few | {"direction": tree, "extent": extent, "num_points": no_count(2)},
        ),
        "plane": Call(
            s.plane,
            lambda: {"objective": objective, "params": POINT, "directions": [POINT, path[0]], "num_points": 3},
            on
            | few
            | {
                "directions": samples(None, 3, "x", [], [POINT], [POINT, POINT], [POINT, 0 * POINT], [POINT, "x"]),
                "extent": extent,
                "num_points": points,
            },
        ),
        "trajectory_plane": Call(
            s.trajectory_plane,
            lambda: {"objective": objective, "trajectory": path, "num_points": 3},
            few
            | {
                "objective": NO_OBJECTIVE,
                "trajectory": NO_TREE | samples(POINT, path[:2], 0 * path, {"a": path, "b": path[:2]}),
                "directions": samples(3, "x", [], [POINT], [POINT, "x"], [POINT, np.ones(2)]),
                "num_points": points,
            },
        ),
        "top_eigenvectors": Call(
            s.top_eigenvectors, lambda: {"objective": objective, "params": POINT}, on | {"k": NO_COUNT, "tol": NO_RATE}
        ),
        "gradient_direction": Call(s.gradient_direction, lambda: {"objective": objective, "params": POINT}, on),
        "random_direction": Call(
            s.random_direction,
            lambda: {"key": jax.random.key(0), "params": POINT},
            {"key": NO_KEY, "params": NO_TREE},
        ),
        "filter_normalised": Call(
            s.filter_normalised, lambda: {"direction": POINT, "params": POINT}, {"direction": tree, "params": NO_TREE}
        ),
        "principal_directions": Call(
            s.principal_directions, lambda: {"trajectory": path}, {"trajectory": NO_TREE, "k": NO_COUNT}
        ),
    }
    return {f"landscapes.{name}": call for name, call in calls.items()}


def _figures():
    from matplotlib.figure import Figure

    f = ll.figures
    flat = xr.Dataset({"loss": (("first", "second"), np.ones((2, 2)))}, {"first": [0.0, 1.0], "second": [0.0, 1.0]})
    line = xr.Dataset({"loss": ("distance", np.ones(3))}, {"distance": [-1.0, 0.0, 1.0]})

    def axes():
        return Figure().add_subplot()

    drawn = {"ax": NO_AXES, "runs": NO_DATASET}
    values = samples("x", [], {}, object(), [np.nan], ["a"], [17.0], 1j, [[0.1]])
    lines = samples(None, 3, "x", [], {}, {"a": 3}, {"a": xr.Dataset()}, object())
    phases = {"phases": NO_DATASET}
    seed = samples(-1, "x", 1.5, 99, object(), [])
    maps = samples(None, 3, "x", [], {}, {"a": 3}, {"a": ([], "x")}, {"a": ([xr.Dataset()], "x")}, object())
    calls = {
        "boundaries": Call(f.boundaries, dict, {"runs": NO_DATASET}),
        "choose_values": Call(f.choose_values, dict, {"runs": NO_DATASET}),
        "curves": Call(
            f.curves,
            lambda: {"runs": runs(), "name": "loss", "values": [0.1]},
            {
                "runs": NO_DATASET,
                "name": not_one_of("loss", "sharpness"),
                "values": samples("x", None, {}, object(), [np.nan], ["a"], [17.0], 1j),
            },
        ),
        "curves_figure": Call(f.curves_figure, lambda: {"runs": runs()}, {"runs": NO_DATASET, "values": values}),
        "plot_loss": Call(f.plot_loss, lambda: {"ax": axes(), "runs": runs()}, drawn | {"values": values}),
        "plot_sharpness": Call(f.plot_sharpness, lambda: {"ax": axes(), "runs": runs()}, drawn | {"values": values}),
        "plot_stability_map": Call(f.plot_stability_map, lambda: {"ax": axes(), "runs": runs()}, drawn),
        "stability_map_figure": Call(f.stability_map_figure, dict, {"runs": NO_DATASET}),
        "phase_diagram_figure": Call(f.phase_diagram_figure, dict, phases),
        "plot_phase_diagram": Call(
            f.plot_phase_diagram,
            lambda: {"ax": axes(), "phases": ll.phase_diagram(plane_of_runs(), "learning_rate", "scale")},
            phases | {"ax": NO_AXES},
        ),
        "plane_figure": Call(f.plane_figure, lambda: {"plane": flat}, {"plane": NO_DATASET, "title": NO_TEXT}),
        "plot_plane": Call(f.plot_plane, lambda: {"ax": axes(), "plane": flat}, {"ax": NO_AXES, "plane": NO_DATASET}),
        "line_figure": Call(
            f.line_figure,
            lambda: {"lines": {"a": line}},
            {"lines": lines, "curvatures": samples(3, "x", [], {"a": "x"}, object()), "title": NO_TEXT},
        ),
        "plot_line": Call(
            f.plot_line,
            lambda: {"ax": axes(), "lines": {"a": line}},
            {"ax": NO_AXES, "lines": lines, "curvatures": samples(3, "x", [], {"a": "x"}, object())},
        ),
        "plot_boundary": Call(
            f.plot_boundary,
            lambda: {"ax": axes(), "found": mapped()},
            {"ax": NO_AXES, "found": NO_DATASET, "seed": seed, "edges": NO_FLAG},
        ),
        "boundary_figure": Call(
            f.boundary_figure,
            lambda: {"maps": {"a": ([mapped(), mapped()], "words")}, "title": "t", "note": "n"},
            {"maps": maps, "title": NO_TEXT, "note": NO_TEXT},
        ),
        "late_training_figure": Call(
            f.late_training_figure,
            lambda: {"measured": late()},
            {"measured": NO_DATASET, "predicted": or_none(NO_DATASET), "b1": no_number(below=-1e-9, above=1.0)},
        ),
        "save": Call(
            f.save,
            lambda: {"figure": Figure(), "path_stem": "nowhere"},
            {
                "figure": NOTHING_LIKE_IT,
                "path_stem": NO_PATH,
                "formats": samples(None, 3, "png", [], ["gif"], [3], object()),
            },
        ),
        "save_numbers": Call(
            f.save_numbers,
            lambda: {"numbers": line, "path_stem": "nowhere"},
            {"numbers": samples(None, 3, "x", [], {}, np.ones(2), object()), "path_stem": NO_PATH},
        ),
        "save_frames": Call(
            f.save_frames,
            lambda: {"frames": [], "folder": "nowhere", "title": "t"},
            {"frames": samples(None, 3, "x", [3], [(1, 2)], object()), "folder": NO_PATH, "title": NO_TEXT},
        ),
    }
    return {f"figures.{name}": call for name, call in calls.items()}


@functools.cache
def late():
    """As `ll.late_training_map` returns it."""
    dims, side = ("learning_rate", "b2"), {"learning_rate": [0.01, 0.1], "b2": [0.9, 0.99]}
    flat = {name: (dims, np.ones((2, 2))) for name in ("probability", "price")}
    each = {"first_spike": ((*dims, "seed"), np.full((2, 2, 3), 60.0)), "time": (dims, np.full((2, 2), 60.0))}
    return xr.Dataset({**flat, **each}, {**side, "seed": [0, 1, 2]}, {"late_after": "25", "num_steps": 100})


@functools.cache
def mapped():
    """As `ll.boundary` returns it."""
    side = np.linspace(0.1, 1.0, 4)
    flags = np.triu(np.ones((4, 4), bool))[None]
    return xr.Dataset(
        {"diverges": (("seed", "b", "a"), flags)}, {"seed": [0], "a": side, "b": side}, {"log_x": 0, "log_y": 0}
    )


CALLS = {
    **_types(),
    **_training_calls(),
    **_maps(),
    **_records(),
    **_laws(),
    **_problems(),
    **_curvature(),
    **_landscapes(),
    **_figures(),
}
"""Name -> call."""
SAID = {("problems.named", "name"): "problem"}
"""Arguments that messages call otherwise."""
EXEMPT = {
    "Cause": "an enumeration",
    "Explanation": "made by explain",
    "Outcome": "an enumeration",
    "SecondMoment": "returned by a function of the user's, and looked at there",
    "state_probe": "takes no argument",
    "adaptive": "a module",
    "curvature": "a module",
    "figures": "a module",
    "landscapes": "a module",
    "problems": "a module",
}
"""Public names that take no input of a user's, and why."""
