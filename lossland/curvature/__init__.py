"""Second derivatives of a loss, for one run or a whole tile of runs.

Operators are functions from pytree to pytree (`hessian`, `gauss_newton`, `fisher`, `preconditioned`, `in_chunks`,
`restrict`); `top_eigenpair` finds the largest eigenvalue of one, with the residual that certifies it.
"""

from lossland.curvature.lanczos import TopEigenpair, top_eigenpair
from lossland.curvature.operators import (
    bernoulli,
    categorical,
    dense,
    dense_hessian,
    empirical_fisher,
    fisher,
    flatten,
    gauss_newton,
    gaussian,
    hessian,
    in_chunks,
    negated,
    parameter_names,
    preconditioned,
    restrict,
)

__all__ = [
    "TopEigenpair",
    "bernoulli",
    "categorical",
    "dense",
    "dense_hessian",
    "empirical_fisher",
    "fisher",
    "flatten",
    "gauss_newton",
    "gaussian",
    "hessian",
    "in_chunks",
    "negated",
    "parameter_names",
    "preconditioned",
    "restrict",
    "top_eigenpair",
]
