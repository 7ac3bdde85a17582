"""Second derivatives of a loss, for one run or a whole tile of runs.

Operators are functions from pytree to pytree (`hessian`, `gauss_newton`, `fisher`, `preconditioned`, `in_chunks`,
`restrict`). `top_eigenpairs`, `lowest_eigenpairs` and `largest_magnitude_eigenpairs` find eigenvalues of one, with the
residuals that certify them; `trace` and `spectral_density` estimate what depends on all, with standard errors;
`cross_check` compares any of these with the dense matrix in float64. `outermost_eigenpair` is for matrices that are not
symmetric. `top_eigenpair` is the solver of one eigenvalue on flat vectors, for many runs along training.
"""

from lossland.curvature.arnoldi import OutermostEigenpair, balancing, outermost_eigenpair
from lossland.curvature.cross_checks import CrossCheck, cross_check
from lossland.curvature.estimates import Estimate, SpectralDensity, spectral_density, trace
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
    alignment,
    gradient_curvature,
    largest_magnitude_eigenpairs,
    lowest_eigenpairs,
    top_eigenpairs,
    warm_start,
)

__all__ = [
    "CrossCheck",
    "Eigenpairs",
    "Estimate",
    "OutermostEigenpair",
    "SpectralDensity",
    "TopEigenpair",
    "alignment",
    "balancing",
    "bernoulli",
    "categorical",
    "cross_check",
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
    "outermost_eigenpair",
    "parameter_names",
    "preconditioned",
    "restrict",
    "spectral_density",
    "top_eigenpair",
    "top_eigenpairs",
    "trace",
    "warm_start",
]
