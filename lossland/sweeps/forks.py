"""Fork saved training states into arms: the same moment of training, continued with one thing changed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.flatten_util import ravel_pytree

from lossland.arguments import FUNCTION, MAPPING, OPTIMIZER, a, count, dataset, expects, optional
from lossland.optimizers import Optimizer, as_optimizer
from lossland.problems.problem import Problem
from lossland.sweeps.batches import Batches
from lossland.sweeps.plan import default_lane_width
from lossland.sweeps.probes import Probe, State, as_probes
from lossland.sweeps.programs import cached, in_precision, numerics, programs
from lossland.sweeps.sweep import DTYPES

PARAMS, OPT_STATE = "saved_params", "saved_opt_state"
Adopt = Callable[[Any, Mapping[str, Any]], Any]
"""(saved optimizer state, arguments of the optimizer it was trained by) -> state of the arms' optimizer."""


def state_probe() -> Probe:
    """Build the probe that keeps the whole training state, for `ll.fork`: parameters and optimizer state, flat.

    Records `saved_params` (axis "parameter") and `saved_opt_state` (axis "opt_state_element"; whole numbers as floats,
    exact below 2^24 in float32), as they stand before the step.
    """

    def measure(problem: Problem, optimizer: Optimizer, state: State) -> dict[str, jax.Array]:
        params = ravel_pytree(state.params)[0]
        leaves = [jnp.ravel(leaf).astype(params.dtype) for leaf in jax.tree.leaves(state.opt_state)]
        return {PARAMS: params, OPT_STATE: jnp.concatenate([jnp.zeros(0, params.dtype), *leaves])}

    return Probe(
        "training_state",
        measure,
        units={PARAMS: "parameter", OPT_STATE: "1"},
        descriptions={
            PARAMS: "parameters before the step, in the order of ravel_pytree",
            OPT_STATE: "optimizer state before the step, its leaves one after another",
        },
        dims={PARAMS: ("parameter",), OPT_STATE: ("opt_state_element",)},
    )


@expects(
    problem=a("an ll.Problem", Problem),
    optimizer=OPTIMIZER,
    states=dataset(source="state_probe() records"),
    arms=MAPPING,
    num_steps=count(),
    every=count(),
    branch=optional(OPTIMIZER),
    adopt=optional(FUNCTION),
    lane_width=optional(count()),
)
def fork(
    problem: Problem,
    optimizer: Any,
    states: xr.Dataset,
    arms: Mapping[str, Mapping[str, Any]],
    *,
    num_steps: int,
    every: int = 1,
    probes: Iterable[Any] = ("loss",),
    branch: Any = None,
    adopt: Adopt | None = None,
    lane_width: int | None = None,
) -> xr.Dataset:
    """Continue saved training states on the full data, every state in every arm, all lanes of one program.

    Equation: arm i of state j starts at (params_j, adopt(opt_state_j)) and takes `num_steps` steps with the arguments
    of arm i.

    Args:
        problem: what was trained, on the full data.
        optimizer: by what it was trained: factory and arguments. Arguments of it or of the problem that are
            coordinates of `states` (hyperparameters that were swept) are taken from there.
        states: `saved_params` and `saved_opt_state`, as the probe `state_probe()` records them, with one more axis:
            that of the states.
        arms: name -> {argument of the branch's optimizer: number, or one per state}; {} changes nothing. The key
            "dtype" is the precision ("float32" if not given): each value compiles a program of its own.
        num_steps, every, probes: as in `ll.Sweep` and `ll.run`; steps count from the fork.
        branch: optimizer of the arms, if it is another; then `adopt` makes its state from the saved one.
        adopt: see `branch`.
        lane_width: runs per kernel; None takes the rule of sweeps.

    Returns:
        Dataset over (arm, states' axis, step): the probes' records, and `first_bad_step`.

    Raises:
        ValueError: before anything compiles, naming the argument, what was expected, what was got, and the fix.
    """
    trained_by = as_optimizer(optimizer)
    onward = trained_by if branch is None else as_optimizer(branch)
    check_states(problem, trained_by, states)
    _check(arms, num_steps, every, branch is not None and adopt is None)
    made = as_probes(probes)
    axis = str(states[PARAMS].dims[0])
    swept = _swept(problem, trained_by, states)
    varied = sorted({name for arm in arms.values() for name in arm if name != "dtype"} | set(swept))
    open_names = {name: None for name in varied if name not in onward.arguments and name not in problem.arguments}
    onward.check(open_names, problem.param_shapes)
    fixed = Optimizer(onward.factory, **{key: value for key, value in onward.arguments.items() if key not in varied})
    table = {
        arm: {
            name: np.broadcast_to(np.asarray(changed.get(name, _usual(onward, swept, name)), float), states.sizes[axis])
            for name in varied
        }
        for arm, changed in arms.items()
    }
    parts = []
    for dtype in dict.fromkeys(str(arm.get("dtype", "float32")) for arm in arms.values()):
        names = [name for name, arm in arms.items() if str(arm.get("dtype", "float32")) == dtype]
        values = {key: np.concatenate([table[name][key] for name in names]) for key in varied}
        records = _continued(
            problem,
            trained_by,
            fixed,
            states,
            values,
            len(names),
            adopt,
            made,
            num_steps,
            every,
            dtype,
            lane_width,
        )
        parts.append(_labelled(records, names, axis, states, made, num_steps, every))
    whole: Any = xr.concat(parts, "arm", data_vars="all") if len(parts) > 1 else parts[0]
    return whole.sel(arm=list(arms))


def restore(
    problem: Problem, optimizer: Any, states: xr.Dataset, adopt: Adopt | None = None, dtype: str = "float32"
) -> tuple[Any, Any]:
    """Return parameters and optimizer states as pytrees of NumPy arrays with the states' axis first.

    Arguments as in `fork`; `adopt` is applied to every optimizer state where it is given.
    """
    trained_by = as_optimizer(optimizer)
    swept = _swept(problem, trained_by, states)
    numbers = {name: 0.5 for name in swept if name in trained_by.argument_names}
    with numerics(dtype):
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), problem.param_shapes)
        opt_like = jax.eval_shape(trained_by.with_arguments(**numbers).init, like)

        def one(flat: jax.Array, opt_flat: jax.Array, arguments: Mapping[str, Any]) -> Any:
            opt_state = _unflatten(opt_flat, opt_like)
            given = {**trained_by.arguments, **arguments}
            return _unflatten(flat, like), opt_state if adopt is None else adopt(opt_state, given)

        flat = (states[PARAMS].values.astype(dtype), states[OPT_STATE].values.astype(dtype))
        own = {name: array.astype(dtype) for name, array in swept.items()}
        return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(*flat, own))


def _swept(problem: Problem, optimizer: Optimizer, states: xr.Dataset) -> dict[str, np.ndarray]:
    """Hyperparameters that are coordinates of the states: name -> (state,)."""
    names = {*optimizer.argument_names, *problem.arguments}
    axis = states[PARAMS].dims[0]
    return {str(name): states[name].values for name in states.coords if states[name].dims == (axis,) and name in names}


def _continued(
    problem: Problem,
    trained_by: Optimizer,
    onward: Optimizer,
    states: xr.Dataset,
    values: Mapping[str, np.ndarray],
    num_arms: int,
    adopt: Adopt | None,
    probes: tuple[Probe, ...],
    num_steps: int,
    every: int,
    dtype: str,
    lane_width: int | None,
) -> dict[str, np.ndarray]:
    """Run the arms of one precision: {record: (arm, state, ...)}."""
    num_states = states[PARAMS].shape[0]
    count = num_arms * num_states
    if lane_width is None:
        num_params = states[PARAMS].shape[-1]
        lane_width = default_lane_width(jax.default_backend(), num_params, problem.num_examples)
    chunks = -(-count // lane_width)

    def lanes(array: np.ndarray) -> np.ndarray:
        padded = np.concatenate([array, np.repeat(array[-1:], chunks * lane_width - count, axis=0)])
        return padded.reshape(chunks, lane_width, *array.shape[1:])

    index = np.tile(np.arange(num_states), num_arms)
    precision = "float64" if dtype == "float64" else "float32"
    restored = restore(problem, trained_by, states, adopt, dtype)
    params, opt_state = jax.tree.map(lambda leaf: lanes(leaf[index]), restored)
    with numerics(dtype):
        batches = Batches(problem.num_examples, None)
        arguments = tuple(sorted(onward.arguments.items(), key=lambda item: item[0]))
        _, begin, advance = cached(programs)(
            problem, onward.factory, arguments, probes, batches, num_steps, every, dtype, True, lane_width
        )
        hyperparameters = {name: lanes(array.astype(precision)) for name, array in values.items()}
        seeds = np.zeros((chunks, lane_width), np.uint32)
        data = in_precision(problem, dtype)
        progress, records = begin(np.int32(chunks), hyperparameters, seeds, (params, ()), data)
        if jax.tree.structure(progress.opt_state) != jax.tree.structure(opt_state):
            raise ValueError(
                f"adopt: expected the state of {onward.name}, {jax.tree.structure(progress.opt_state)}, got "
                f"{jax.tree.structure(opt_state)}"
            )
        opt_state = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), opt_state, progress.opt_state)
        zero = np.int32(0)
        progress, records, _ = advance(
            np.int32(chunks), zero, zero, np.int32(num_steps), hyperparameters, seeds,
            progress._replace(opt_state=opt_state), records, data,
        )  # fmt: skip
        found = {**records, "first_bad_step": progress.first_bad_step}
        return {
            name: np.asarray(array)
            .reshape(chunks * lane_width, *array.shape[2:])[:count]
            .reshape(num_arms, num_states, *array.shape[2:])
            for name, array in found.items()
        }


def _labelled(
    records: dict[str, np.ndarray],
    names: list[str],
    axis: str,
    states: xr.Dataset,
    probes: tuple[Probe, ...],
    num_steps: int,
    every: int,
) -> xr.Dataset:
    units = {name: text for probe in probes for name, text in probe.units.items()}
    described = {name: text for probe in probes for name, text in probe.descriptions.items()}
    named = {name: dims for probe in probes for name, dims in probe.dims.items()}
    variables: dict[str, Any] = {}
    for name, array in records.items():
        own = () if name == "first_bad_step" else ("step", *named.get(name, ()))
        own += tuple(f"{name}_axis_{place}" for place in range(array.ndim - 2 - len(own)))
        text = (
            "first step whose loss was not finite; -1 if none" if name == "first_bad_step" else described.get(name, "")
        )
        variables[name] = (("arm", axis, *own), array, {"units": units.get(name, "1"), "description": text})
    steps = np.append(np.arange(0, num_steps, every), num_steps)
    coordinates = {
        "arm": names,
        "step": ("step", steps, {"units": "step", "description": "optimizer steps since the fork"}),
    }
    # The step at which a state was saved is not the step since the fork.
    kept = {
        "forked_at" if name == "step" else str(name): array.variable
        for name, array in states.coords.items()
        if array.dims == (axis,) and name != "arm"
    }
    return xr.Dataset(variables, {**coordinates, **kept})


def _unflatten(flat: jax.Array, like: Any) -> Any:
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])
    return structure.unflatten(
        flat[end - leaf.size : end].reshape(leaf.shape).astype(leaf.dtype)
        for leaf, end in zip(leaves, ends.tolist(), strict=True)
    )


def _usual(optimizer: Optimizer, swept: Mapping[str, np.ndarray], name: str) -> Any:
    """What an argument is in an arm that does not change it."""
    if name in swept:
        return swept[name]
    if name in optimizer.arguments:
        return optimizer.arguments[name]
    default = inspect.signature(optimizer.factory).parameters[name].default
    if not isinstance(default, (int, float)):
        raise ValueError(f"arms: {name!r} is no number in arms that do not change it; give it in every arm")
    return default


def check_states(problem: Problem, optimizer: Optimizer, states: xr.Dataset) -> None:
    """Refuse states that `state_probe` did not record of this problem trained by this optimizer."""
    if not isinstance(problem, Problem):
        raise ValueError(f"problem: expected an ll.Problem, got {type(problem).__name__}")
    if problem.takes_key or problem.init_state is not None:
        raise ValueError(
            f"problem: {problem.name} has random layers or a state; forks continue plain full-data training"
        )
    for name in (PARAMS, OPT_STATE):
        if name not in states or states[name].ndim != 2:
            got = states[name].dims if name in states else "none"
            raise ValueError(
                f"states: expected {name} over (one axis of states, its elements), got {got}; record it with the probe "
                "state_probe(), and stack or select runs and steps"
            )
    expected = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(problem.param_shapes))
    if states[PARAMS].shape[1] != expected:
        raise ValueError(f"states: expected {expected} parameters of {problem.name}, got {states[PARAMS].shape[1]}")
    if not states[PARAMS].shape[0]:
        raise ValueError("states: expected at least one state, got none")
    numbers = {name: 0.5 for name in _swept(problem, optimizer, states) if name in optimizer.argument_names}
    if missing := optimizer.missing(numbers):
        raise ValueError(f"optimizer: {optimizer.name} needs {', '.join(missing)}, fixed or as a coordinate of states")
    like = jax.eval_shape(optimizer.with_arguments(**numbers).init, problem.param_shapes)
    elements = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(like))
    if states[OPT_STATE].shape[1] != elements:
        raise ValueError(
            f"states: expected {elements} elements of the state of {optimizer.name}, got {states[OPT_STATE].shape[1]}; "
            "give the optimizer that they were trained by"
        )


def _check(arms: Mapping[str, Any], num_steps: int, every: int, lost: bool) -> None:
    if not arms:
        raise ValueError("arms: expected at least one, got none; {'unchanged': {}} changes nothing")
    for name, arm in arms.items():
        if arm.get("dtype", "float32") not in DTYPES[:2]:
            raise ValueError(f"arms[{name!r}]: expected dtype float32 or float64, got {arm['dtype']!r}")
    if not 1 <= every <= num_steps:
        raise ValueError(f"every: expected 1 to num_steps = {num_steps}, got {every}")
    if lost:
        raise ValueError(
            "adopt: needed with branch: a function (saved state, arguments) -> state of the branch's optimizer"
        )
