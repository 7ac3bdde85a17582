"""How fast training leaves the point where it stands: the outermost multiplier of the full update map.

One step maps z = (parameters, float state of the optimizer) to F(z). Nearby runs separate as the powers of the Jacobian
J = dF / dz, whose eigenvalues are the multipliers. Nothing is frozen: momentum, second moments, an active clipping
threshold and weight decay are all differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from lossland.arguments import TREE, a, choice, count, expects, number
from lossland.curvature.arnoldi import Target, balancing, outermost_eigenpair
from lossland.curvature.lanczos import generic_vector
from lossland.curvature.operators import full_precision
from lossland.optimizers import as_optimizer
from lossland.problems.problem import Problem
from lossland.sweeps.probes import Probe, State

_ALMOST_ZERO = 2.0**20
"""In units of the smallest normal number: decays and corrections must not flush it to zero."""
RECORDS = {
    "real": "real part of the multiplier",
    "imag": "imaginary part of the multiplier, of a conjugate pair the positive one",
    "error_bound": "condition number x residual: to first order the distance to an eigenvalue is at most this",
    "converged": "whether the error bound is within the tolerance",
}


class LocalMultiplier(NamedTuple):
    """One multiplier of the update map at a point of training.

    multiplier: `Complex[Array, ""]`, its modulus the factor by which a perturbation along `direction` grows per step;
    direction: pytree like the parameters, the parameters' share of the eigenvector, unit norm, complex, real where the
    multiplier is (up to rounding); residual, condition, error_bound: see `curvature.OutermostEigenpair`, in balanced
    coordinates; num_matvecs: products with J and with its transpose; converged: `Bool[Array, ""]`.
    """

    multiplier: jax.Array
    direction: Any
    residual: jax.Array
    condition: jax.Array
    error_bound: jax.Array
    num_matvecs: jax.Array
    converged: jax.Array


@expects(
    problem=a("an ll.Problem", Problem),
    params=TREE,
    target=choice("largest", "oscillating"),
    tol=number(above=0),
    num_vectors=count(2),
    max_restarts=count(),
)
def local_multiplier(
    problem: Problem,
    optimizer: Any,
    params: Any,
    opt_state: Any = None,
    *,
    target: Target = "largest",
    tol: float = 1e-5,
    num_vectors: int = 64,
    max_restarts: int = 6,
) -> LocalMultiplier:
    """Find an outermost eigenvalue of J = d(params, opt_state after a step) / d(params, opt_state).

    "largest": the spectral radius, above 1 wherever there is negative curvature. "oscillating": the multiplier of
    smallest real part, the mode that flips sign from step to step; on a quadratic with GD it is 1 - learning_rate x
    sharpness, -1 at the threshold. The step is that of the full-data objective at `params`; `opt_state` is the one
    before it (None: a fresh one). Counts, keys and injected hyperparameters are held. Works under `jit` and `vmap`, on
    CPU and GPU (a nonsymmetric eigensolver is needed); float64 parameters are worth their cost where second moments are
    tiny. Returns a `LocalMultiplier`.

    Raises ValueError for an optimizer whose arguments are not all decided, for parameters or a state of the wrong
    structure, for a complex state, and where a number is out of range.
    """
    if not isinstance(problem, Problem):
        raise ValueError(f"problem: expected an ll.Problem, got {type(problem).__name__}")
    optimizer = as_optimizer(optimizer)
    if missing := optimizer.missing({}):
        raise ValueError(
            f"optimizer {optimizer.name} needs {', '.join(missing)}; fix it with Optimizer({optimizer.name}, "
            f"{missing[0]}=...)"
        )
    _check_structure("params", params, jax.eval_shape(problem.init, jax.eval_shape(lambda: jax.random.key(0))))
    transformation = optimizer.build()
    fresh = jax.eval_shape(transformation.init, params)
    opt_state = transformation.init(params) if opt_state is None else opt_state
    _check_structure("opt_state", opt_state, fresh)

    moving, join = _split(opt_state)
    flat, unravel = ravel_pytree((params, moving))
    num_params = ravel_pytree(params)[0].size
    # A second moment of exactly 0 (a parameter without gradient) has a root without a derivative. No multiplier depends
    # on its value: it evolves alone.
    in_state = jnp.arange(flat.size) >= num_params
    flat = jnp.where(in_state & (flat == 0), _ALMOST_ZERO * jnp.finfo(flat.dtype).tiny, flat)

    def step(flat: jax.Array) -> jax.Array:
        params, moving = unravel(flat)
        loss, gradient = jax.value_and_grad(problem.objective)(params)
        updates, after = transformation.update(
            gradient, join(moving), params, value=loss, grad=gradient, value_fn=problem.objective
        )
        params = jax.tree.map(lambda leaf, update: leaf + update, params, updates)
        return ravel_pytree((params, _split(after)[0]))[0]

    with full_precision():
        _, push = jax.linearize(step, flat)
        transpose = jax.linear_transpose(push, flat)

    def pull(vector: jax.Array) -> jax.Array:
        return transpose(vector)[0]

    scale = balancing(push, pull, flat.size, flat.dtype)
    pair = outermost_eigenpair(
        lambda vector: push(scale * vector) / scale,
        lambda vector: pull(vector / scale) * scale,
        generic_vector(jnp.uint32(1), flat.size, flat.dtype),
        target=target,
        tol=tol,
        num_vectors=num_vectors,
        max_restarts=max_restarts,
    )
    direction = (scale * pair.vector)[:num_params]
    # The phase in which the real part is longest; then unit norm.
    direction = direction * jnp.exp(-0.5j * jnp.angle(jnp.sum(direction**2)))
    direction = direction / jnp.linalg.norm(direction)
    _, unravel_params = ravel_pytree(params)
    parts = unravel_params(jnp.real(direction)), unravel_params(jnp.imag(direction))
    return LocalMultiplier(
        pair.value,
        jax.tree.map(jax.lax.complex, *parts),
        pair.residual,
        pair.condition,
        pair.error_bound,
        pair.num_matvecs,
        pair.converged,
    )


@expects(target=choice("largest", "oscillating"), tol=number(above=0), num_vectors=count(2), max_restarts=count())
def multiplier_probe(
    target: Target = "oscillating", *, tol: float = 1e-4, num_vectors: int = 48, max_restarts: int = 4
) -> Probe:
    """Build the probe of an outermost multiplier of the update map along training, see `local_multiplier`.

    Records `{target}_multiplier_real`, `_imag`, `_error_bound`, `_converged`. Units: 1 (a factor per step).

    Raises ValueError, when the sweep is traced, as `local_multiplier`.
    """

    def measure(problem: Problem, optimizer: Any, state: State) -> dict[str, jax.Array]:
        found = local_multiplier(
            problem,
            optimizer,
            state.params,
            state.opt_state,
            target=target,
            tol=tol,
            num_vectors=num_vectors,
            max_restarts=max_restarts,
        )
        values = (jnp.real(found.multiplier), jnp.imag(found.multiplier), found.error_bound, found.converged)
        return dict(zip(names, values, strict=True))

    name = f"{target}_multiplier"
    names = [f"{name}_{part}" for part in RECORDS]
    return Probe(
        name,
        measure,
        units=dict.fromkeys(names, "1"),
        descriptions={
            key: f"{text}, {target} mode of the update map" for key, text in zip(names, RECORDS.values(), strict=True)
        },
    )


def _split(opt_state: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """Take the floats out of an optimizer's state, hyperparameters that it only carries along left in."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(opt_state)

    def moves(path: Any, leaf: Any) -> bool:
        dtype = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise ValueError(f"opt_state{jax.tree_util.keystr(path)}: expected real numbers, got {dtype}")
        held = any(getattr(key, "name", None) == "hyperparams" for key in path)
        return jnp.issubdtype(dtype, jnp.floating) and not held

    flags = [moves(path, leaf) for path, leaf in leaves]
    moving = [leaf for (_, leaf), flag in zip(leaves, flags, strict=True) if flag]

    def join(moving: list[Any]) -> Any:
        rest = iter(moving)
        merged = [next(rest) if flag else leaf for (_, leaf), flag in zip(leaves, flags, strict=True)]
        return jax.tree.unflatten(structure, merged)

    return moving, join


def _check_structure(name: str, got: Any, expected: Any) -> None:
    shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (expected, got)]
    if jax.tree.structure(got) != jax.tree.structure(expected) or shapes[0] != shapes[1]:
        trees = [jax.tree.map(jnp.shape, tree) for tree in (expected, got)]
        raise ValueError(
            f"{name}: expected the structure and shapes {trees[0]}, got {trees[1]}; pass it as it stood in training"
        )
