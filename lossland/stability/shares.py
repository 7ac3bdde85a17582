"""How much of a rise of the preconditioned sharpness is the second moment's, and how much the Hessian's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import lax

from lossland.arguments import FUNCTION, OPTIMIZER, a, choice, dataset, expects, number, optional
from lossland.curvature import lanczos, operators
from lossland.optimizers import as_optimizer
from lossland.problems.problem import Problem
from lossland.sweeps.forks import OPT_STATE, PARAMS, restore
from lossland.sweeps.preconditioners import FindSecondMoment, next_preconditioner
from lossland.sweeps.probes import State
from lossland.sweeps.programs import numerics


@expects(
    problem=a("an ll.Problem", Problem),
    optimizer=OPTIMIZER,
    before=dataset(PARAMS, OPT_STATE, source="state_probe() records"),
    after=dataset(PARAMS, OPT_STATE, source="state_probe() records"),
    second_moment=optional(FUNCTION),
    tol=number(above=0),
    dtype=choice("float32", "float64"),
)
def second_moment_share(
    problem: Problem,
    optimizer: Any,
    before: xr.Dataset,
    after: xr.Dataset,
    *,
    second_moment: FindSecondMoment | None = None,
    tol: float = 1e-5,
    dtype: str = "float32",
) -> xr.Dataset:
    """Split the rise of ln k, k(x, P) = lambda_max(P^-1/2 H(x) P^-1/2), between the preconditioner P and the point x.

    Equation: with states 0 and 1, dP = 1/2 [ln k(x1, P1) / k(x1, P0) + ln k(x0, P1) / k(x0, P0)] and dH = 1/2 [ln k(x1,
    P1) / k(x0, P1) + ln k(x1, P0) / k(x0, P0)]: the Shapley values of two players, dP + dH = ln k(x1, P1) / k(x0, P0)
    exactly. P is that of the next update in each state.

    Args:
        problem, optimizer: as in `fork`.
        before, after: saved states (`state_probe`), paired along their first axis.
        second_moment: for an optimizer whose state is not known.
        tol: relative residual of the eigenvalues.
        dtype: precision, "float32" or "float64".

    Returns:
        Dataset over the states' axis: `moment_rise` (dP), `hessian_rise` (dH), `moment_share` = dP / (dP + dH),
        `converged`.

    Raises:
        ValueError: where `before` and `after` are not paired, or P cannot be found.
    """
    if before[PARAMS].shape != after[PARAMS].shape:
        raise ValueError(
            f"after: expected one state for each of before, {before[PARAMS].shape}, got {after[PARAMS].shape}"
        )
    trained_by = as_optimizer(optimizer)
    names = [
        str(name)
        for name in before.coords
        if before[name].dims == before[PARAMS].dims[:1] and name in {*trained_by.argument_names, *problem.arguments}
    ]
    own = {name: before[name].values.astype(dtype) for name in names}

    def one(states: Any, arguments: dict[str, jax.Array]) -> Any:
        mine = {name: value for name, value in arguments.items() if name in problem.arguments}
        here = problem.with_arguments(**mine)
        tuned = trained_by.with_arguments(**{name: value for name, value in arguments.items() if name not in mine})

        def preconditioner(params: Any, opt_state: Any) -> Any:
            loss, gradient = jax.value_and_grad(here.objective)(params)
            state = State(jnp.int32(0), params, opt_state, loss, gradient)
            return next_preconditioner(tuned, state, here.objective, second_moment)

        diagonals = [preconditioner(*state) for state in states]
        start = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(states[0][0])])
        start = lanczos.generic_vector(jnp.uint32(1), start.size, start.dtype)

        def log_top(pair: Any) -> tuple[jax.Array, jax.Array]:
            params, diagonal = pair
            product = operators.preconditioned(operators.hessian(here.objective, params), diagonal)
            matvec, _ = operators.flatten(product, params)
            top = lanczos.top_eigenpair(
                matvec, start, tol=tol, any_lane=lambda active: lax.pmax(active.astype(jnp.int32), "lanes") > 0
            )
            return jnp.log(top.value), top.converged

        pairs = [(states[x][0], diagonals[p]) for x in (0, 1) for p in (0, 1)]
        logs, converged = lax.map(log_top, jax.tree.map(lambda *leaves: jnp.stack(leaves), *pairs))
        (k00, k01), (k10, k11) = logs.reshape(2, 2)
        return 0.5 * (k11 - k10 + k01 - k00), 0.5 * (k11 - k01 + k10 - k00), jnp.all(converged)

    states = tuple(restore(problem, optimizer, side, dtype=dtype) for side in (before, after))
    with numerics(dtype):
        solve = jax.jit(jax.vmap(one, axis_name="lanes"))
        moment, hessian_part, converged = (np.asarray(array) for array in solve(states, own))
    axis = before[PARAMS].dims[0]
    texts = {
        "moment_rise": (moment, "rise of ln k due to the second moment"),
        "hessian_rise": (hessian_part, "rise of ln k due to the Hessian"),
        "moment_share": (moment / (moment + hessian_part), "share of the rise of ln k due to the second moment"),
        "converged": (converged, "whether all four eigenvalues reached their tolerance"),
    }
    return xr.Dataset(
        {name: (axis, values, {"units": "1", "description": text}) for name, (values, text) in texts.items()},
        before.coords,
    )
