"""An estimate beside the dense matrix, formed and diagonalised in float64."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lossland.arguments import FUNCTION, TREE, a, expects
from lossland.curvature.estimates import Estimate, SpectralDensity
from lossland.curvature.operators import Matvec, Params, dense
from lossland.curvature.spectra import Eigenpairs


class CrossCheck(NamedTuple):
    """An estimate beside what the dense matrix says, as NumPy arrays in float64.

    exact: the eigenvalues nearest to the estimated ones, each used once, so that a ghost has none near it; or the
    trace; or the first two moments. ranks: how many eigenvalues are larger, for eigenpairs: 0, 1, 2, ... for the top
    ones, p - 1, p - 2, ... for the lowest; None otherwise. error: |estimate - exact|. bound: what the estimate says of
    its error: the residuals, or four standard errors.
    """

    exact: np.ndarray
    ranks: np.ndarray | None
    error: np.ndarray
    bound: np.ndarray


@expects(
    estimate=a(
        "eigenpairs, a trace or a density, as lossland.curvature returns", Eigenpairs, Estimate, SpectralDensity
    ),
    build=FUNCTION,
    params=TREE,
)
def cross_check(
    estimate: Eigenpairs | Estimate | SpectralDensity, build: Callable[[Params], Matvec], params: Params
) -> CrossCheck:
    """Compare an estimate with the dense matrix, formed and diagonalised in float64 (p^2 numbers, p products).

    estimate: what `top_eigenpairs`, its siblings, `trace` or `spectral_density` returned. build: params -> product,
    e.g. `lambda params: hessian(objective, params)`; it is called with the parameters in float64, so data that it
    closes over should not be cast down by it. For use outside `jit`; the global precision stays as it is.

    Raises ValueError above 30,000 parameters.
    """
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), params)
        matrix = np.asarray(jax.jit(lambda params: dense(build(params), params))(params))
    if isinstance(estimate, Eigenpairs):
        spectrum = np.linalg.eigvalsh((matrix + matrix.T) / 2)[::-1]
        values = np.asarray(estimate.values, float)
        free, ranks = np.ones(len(spectrum), bool), []
        for value in values:
            rank = int(np.argmin(np.where(free, np.abs(spectrum - value), np.inf)))
            free[rank] = False
            ranks.append(rank)
        exact = spectrum[ranks]
        return CrossCheck(exact, np.asarray(ranks), np.abs(values - exact), np.asarray(estimate.residuals, float))
    if isinstance(estimate, Estimate):
        estimates, exact = [estimate], np.asarray(np.trace(matrix))
    else:
        estimates = [estimate.moment(1), estimate.moment(2)]
        exact = np.asarray([np.trace(matrix), np.sum(matrix * matrix.T)]) / len(matrix)
    values, errors = (np.reshape([getattr(e, name) for e in estimates], exact.shape) for name in Estimate._fields[:2])
    return CrossCheck(exact, None, np.abs(values - exact), 4 * errors)
