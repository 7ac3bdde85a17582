"""Factorisations of small matrices that stay one by one under `vmap`.

Source: measured with jaxlib 0.10.2 on a CPU: a batched QR, eigenvalue, singular value or LU factorisation splits its
batch over the threads of one pool and waits for them there; two of them at a time wait for each other for good. Fixed
in 0.12.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.extend import core

SPLIT = {"geqrf", "geqp3", "householder_product", "qr", "eigh", "eig", "svd", "lu", "schur", "hessenberg"}
"""Primitives whose batches are split."""
FIXED_IN = (0, 12)


@sequential_vmap
def eigh(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Decompose a symmetric matrix: eigenvalues ascending, eigenvectors as columns."""
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


@sequential_vmap
def eig(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Decompose a square matrix: complex eigenvalues in no order, right eigenvectors as columns."""
    values, vectors = jnp.linalg.eig(matrix)
    return values, vectors


@sequential_vmap
def qr(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Decompose a tall matrix into orthonormal columns and a triangle."""
    basis, triangle = jnp.linalg.qr(matrix)
    return basis, triangle


@sequential_vmap
def complete_qr(matrix: jax.Array) -> jax.Array:
    """Return an orthonormal basis of the whole space that begins with the matrix's columns."""
    return jnp.linalg.qr(matrix, mode="complete")[0]


def can_deadlock(platform: str) -> bool:
    """Whether batched factorisations can stop this software on a platform."""
    return platform == "cpu" and tuple(int(part) for part in version("jaxlib").split(".")[:2]) < FIXED_IN


def batched_factorisations(program: Any) -> set[str]:
    """Names of the factorisations of several matrices at a time in a traced program (a closed jaxpr)."""
    found = set()
    for equation in program.eqns:
        name = equation.primitive.name
        if name in SPLIT and equation.invars[0].aval.ndim > 2:
            found.add(name)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(value):
                found |= batched_factorisations(value)
    return found


def _is_program(value: Any) -> bool:
    return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))
