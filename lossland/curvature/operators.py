"""Products with second-derivative matrices, as functions from a pytree of parameters to a pytree like it.

Nothing here forms a matrix but `dense`. Every product is linearised once and holds no Python state, so it works under
`jit`, `vmap`, `lax.map` and inside loops. Matrix products run in full precision unless the user has set
`jax_default_matmul_precision`: an accelerator's default would measure the curvature of another function.

Source: Pearlmutter 1994 (Hessian products); Schraudolph 2002, Martens 2020 (Gauss-Newton and Fisher).
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

Params: TypeAlias = Any
Matvec: TypeAlias = Callable[[Params], Params]


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    if jax.config.jax_default_matmul_precision is not None:
        yield
        return
    with jax.default_matmul_precision("highest"):
        yield


def hessian(objective: Callable[[Params], Array], params: Params) -> Matvec:
    """Build the product v -> H v with the Hessian H = d^2 objective / d params^2 at `params`, linearised once.

    Forward over reverse: one product costs 1 to 2 gradients, and the linearisation one gradient, kept in memory.
    objective: params -> `Float[Array, ""]`, the full-batch loss; for data in chunks, `chunked_hessian`.
    Units: [objective] / [params]^2; with a batch-mean loss, 2 / learning_rate is the threshold of gradient descent.

    Raises TypeError (from JAX) where the objective is not a scalar.
    """
    with _full_precision():
        return jax.linearize(jax.grad(objective), params)[1]
