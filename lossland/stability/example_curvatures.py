"""The Hessians of single examples at one point of training, whose spread is what makes minibatches noisy."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from lossland.arguments import TREE, a, expects, number, optional
from lossland.problems.problem import Problem, cast_floating

_MAX_FLOATS = 2**28


class ExampleCurvatures(NamedTuple):
    """The Hessians of all examples' losses in the eigenbasis of their mean, H_i = sum_r weights_ir f_ir f_ir^T.

    eigenvalues: `Float[ndarray, "d"]`, those of H that are kept, in rising order; basis: `Float[ndarray, "p d"]`, their
    eigenvectors in the order of `ravel_pytree`; factors: `Float[ndarray, "n d r"]`; weights: `Float[ndarray, "n r"]`;
    num_left_out: directions in which H is flat or negative; lowest_eigenvalue: of H, those left out included;
    normalisation: that of the problem; preconditioned: whether these are P^-1/2 H_i P^-1/2.
    """

    eigenvalues: np.ndarray
    basis: np.ndarray
    factors: np.ndarray
    weights: np.ndarray
    num_left_out: int
    lowest_eigenvalue: float
    normalisation: str
    preconditioned: bool


@expects(
    problem=a("an ll.Problem", Problem), params=TREE, preconditioner=optional(TREE), cutoff=number(least=0, below=1)
)
def example_curvatures(
    problem: Problem, params: Any, *, preconditioner: Any = None, cutoff: float = 1e-8
) -> ExampleCurvatures:
    """Compute the Hessian of every example's loss at `params` in float64, reduced to its rank.

    `preconditioner`: the diagonal of P, a pytree like the parameters, for an adaptive optimizer with its second moment
    frozen. Directions in which the mean Hessian is below `cutoff` times its largest eigenvalue are left out: there is
    nothing to be stable. Costs n Hessians of p parameters and their eigenvectors, so it is for some hundred parameters.

    Raises ValueError where the loss is not a mean (sum) over examples of losses of their own, nothing curves upwards,
    or there is more than fits (2 GB).
    """
    with jax.enable_x64(True):
        params = cast_floating(params, jnp.float64)
        flat, unravel = ravel_pytree(params)
        data = cast_floating(problem.data, jnp.float64)
        size, num_examples = flat.size, problem.num_examples
        scale = jnp.ones(size) if preconditioner is None else jax.lax.rsqrt(_flat_like(preconditioner, params))
        if size * size * 8 > _MAX_FLOATS:
            raise ValueError(
                f"example_curvatures: expected at most {int((_MAX_FLOATS / 8) ** 0.5)} parameters, got {size}"
            )

        def loss(offset: jax.Array, example: Any) -> jax.Array:
            batch = jax.tree.map(lambda leaf: leaf[None], example)
            return problem._evaluate(unravel(flat + scale * offset), batch)

        @jax.jit
        def one(example: Any) -> tuple[jax.Array, jax.Array]:
            return loss(jnp.zeros(size), example), jax.hessian(loss)(jnp.zeros(size), example)

        total, mean, values, vectors = 0.0, np.zeros((size, size)), [], []
        for index in range(num_examples):
            value, hessian = one(jax.tree.map(lambda leaf, index=index: leaf[index], data))
            hessian = np.asarray((hessian + hessian.T) / 2)
            weight, vector = np.linalg.eigh(hessian)
            order = np.argsort(-np.abs(weight))
            rank = max(1, int(np.sum(np.abs(weight) > 1e-12 * np.abs(weight).max())))
            values.append(weight[order[:rank]])
            vectors.append(vector[:, order[:rank]])
            total += float(value)
            mean += hessian / num_examples
        objective = float(problem.objective(params))
    share = total / num_examples if problem.normalisation == "mean" else total
    if not abs(share - objective) <= 1e-6 * (abs(objective) + 1e-12):
        raise ValueError(
            f"problem {problem.name}: expected a loss that is the {problem.normalisation} over examples of losses of "
            f"their own, got {objective:.6g} for the data and {share:.6g} from its examples; say normalisation='sum' "
            "if it is a sum, and leave out what couples examples"
        )
    eigenvalues, basis = np.linalg.eigh(mean)
    keep = eigenvalues > cutoff * max(eigenvalues[-1], 0.0)
    if not keep.any() or not np.isfinite(eigenvalues).all():
        raise ValueError(
            f"example_curvatures: no direction of positive curvature at params (top {eigenvalues[-1]:.3g})"
        )
    rank = max(len(value) for value in values)
    if num_examples * int(keep.sum()) * rank > _MAX_FLOATS:
        raise ValueError(
            f"example_curvatures: {num_examples} examples of rank {rank} in {int(keep.sum())} directions do not fit; "
            "use fewer examples or parameters"
        )
    factors = np.zeros((num_examples, int(keep.sum()), rank))
    weights = np.zeros((num_examples, rank))
    for index, (value, vector) in enumerate(zip(values, vectors, strict=True)):
        factors[index, :, : len(value)] = basis[:, keep].T @ vector
        weights[index, : len(value)] = value
    return ExampleCurvatures(
        eigenvalues[keep],
        basis[:, keep],
        factors,
        weights,
        int((~keep).sum()),
        float(eigenvalues[0]),
        problem.normalisation,
        preconditioner is not None,
    )


def _flat_like(tree: Any, params: Any) -> jax.Array:
    if jax.tree.map(jnp.shape, tree) != jax.tree.map(jnp.shape, params):
        raise ValueError("preconditioner: expected positive arrays of the structure and shapes of params")
    flat = ravel_pytree(cast_floating(tree, jnp.float64))[0]
    if not bool(jnp.all(flat > 0)):
        raise ValueError("preconditioner: expected positive entries, the diagonal of P")
    return flat
