"""Second derivatives of a loss, for one run or a whole tile of runs.

Operators are functions from pytree to pytree (`hessian`, `gauss_newton`, `fisher`, `preconditioned`, `in_chunks`,
`restrict`); what is asked of them comes with its own error (`top_eigenpairs`, `trace`, `spectral_density`).
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
from lossland.curvature.spectra import (
    Eigenpairs,
    Estimate,
    SpectralDensity,
    alignment,
    gradient_curvature,
    largest_magnitude_eigenpairs,
    lowest_eigenpairs,
    spectral_density,
    top_eigenpairs,
    trace,
    warm_start,
)

__all__ = [
    "Eigenpairs",
    "Estimate",
    "SpectralDensity",
    "TopEigenpair",
    "alignment",
    "bernoulli",
    "categorical",
    "dense",
    "dense_hessian",
    "empirical_fisher",
    "fisher",
    "flatten",
    "gauss_newton",
    "gaussian",
    "gradient_curvature",
    "hessian",
    "in_chunks",
    "largest_magnitude_eigenpairs",
    "lowest_eigenpairs",
    "negated",
    "parameter_names",
    "preconditioned",
    "restrict",
    "spectral_density",
    "top_eigenpair",
    "top_eigenpairs",
    "trace",
    "warm_start",
]
