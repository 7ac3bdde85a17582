"""Mean-square stability of minibatch training: below which learning rate the second moment of the iterates decays.

Linearised at a minimum that fits every example, a step on a batch is z <- J_batch z, z = (parameters, momentum), with

    J_batch = A (x) I + b e_x^T (x) H_batch,    H_batch = mean over the batch of the examples' Hessians H_i,

A and b those of the optimizer's `Certificate`. With batches drawn independently at every step the second moment
S = E z z^T obeys S <- E[J_batch S J_batch^T] = J S J^T + b b^T (x) N(S_xx), J at the mean Hessian H and

    N(X) = q (1/n sum_i H_i X H_i - H X H),    q = 1 / B with replacement, (n - B) / (B (n - 1)) without.

In the eigenbasis of H the first part falls into pairs of eigenvalues. Summed over time it answers to N by an
elementwise product with G_ij = sum_k g_i(k) g_j(k), g_i(k) = e_x^T J(h_i)^k b: where the mean is stable, the second
moment is iff the noise kernel X -> G o N(X) has a spectral radius below 1. The Kronecker matrix is never formed.

Epochs (shuffled batches, each example once) are not independent from step to step, and not what this is for. Their
operator is a mean over permutations; computed in full for four examples, its threshold lies above this one without
momentum, and on either side of it with momentum. Noise that stays at the minimum (labels that are not fitted)
changes how far the iterates spread, not whether they are stable.

Source: Wu, Ma and E 2018 (one dimension); Mulayoff and Michaeli 2024, arXiv 2306.07850 (SGD, sampling without
replacement); Agarwala and Pennington 2024, arXiv 2404.19261 (the norm of the noise kernel). Momentum and the
elementwise form are derived here.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lossland.arguments import OPTIMIZER, a, count, expects
from lossland.curvature.arnoldi import outermost_eigenpair
from lossland.stability.example_curvatures import ExampleCurvatures
from lossland.thresholds import Certificate, threshold

BatchSampling = Literal["with_replacement", "without_replacement"]
_TOLERANCE = 1e-9
_LEAST_LOG_RATE = -60.0


@dataclass(frozen=True)
class MeanSquareCertificate:
    """State below which learning rate the second moment of minibatch training decays.

    `critical_learning_rate`: of the second moment; `mean_critical_learning_rate`: of the mean, at which full-batch
    training turns unstable; their ratio says how much of the limit is noise. `sampling`, `batch_size`: what it is for,
    batches drawn independently at every step.
    """

    critical_learning_rate: float
    mean_critical_learning_rate: float
    batch_size: int
    sampling: BatchSampling
    _model: _Model

    def noise_kernel_norm(self, learning_rate: float) -> float:
        """Return the spectral radius of the noise kernel: the second moment is stable iff it is below 1.

        Infinite where the mean is unstable already.
        """
        return self._model.kernel_norm(learning_rate, 1.0)

    def growth(self, learning_rate: float) -> float:
        """Return the factor by which E |z|^2 grows per step at long times; the amplitude's is its square root.

        The root of rho(kernel at discount gamma) = 1 above the square of the mean's spectral radius.
        """
        return self._model.growth(learning_rate)


@expects(curvatures=a("what ll.example_curvatures returns", ExampleCurvatures), optimizer=OPTIMIZER, batch_size=count())
def mean_square_threshold(
    curvatures: ExampleCurvatures,
    optimizer: Any,
    *,
    batch_size: int,
    sampling: BatchSampling = "without_replacement",
    **hyperparameters: Any,
) -> MeanSquareCertificate:
    """Certify below which learning rate minibatch training is stable in mean square.

    `optimizer`: an optax factory with the argument `learning_rate`, linear in the gradient or with its second moment
    frozen (then `curvatures` need its preconditioner); `hyperparameters`: its other arguments. Batches are drawn
    independently at every step. Units: those of the learning rate. Accurate to a relative 1e-8.

    Raises ValueError for a sampling that is not independent, a batch larger than the data, and where optimizer and
    curvatures do not fit each other or there is no linear threshold.
    """
    model = _Model(curvatures, optimizer, batch_size, sampling, dict(hyperparameters))
    mean = model.mean_critical()
    return MeanSquareCertificate(model.critical(mean), mean, batch_size, sampling, model)


def mean_square_closed_form(curvature: Any, variance: Any, momentum: Any = 0.0, *, ema: bool = False) -> Any:
    """Return the mean-square critical learning rate in one dimension, batch curvature of mean h and variance s^2.

    SGD and heavy ball: 2 (1 - b^2) h / ((1 - b) h^2 + (1 + b) s^2); with `ema` (momentum m <- b m + (1 - b) g, the
    frozen Adam): 2 (1 + b) h / ((1 - b) h^2 + (1 + b) s^2). Limits: without noise 2 (1 + b) / h and 2 (1 + b) /
    ((1 - b) h); dominated by noise 2 (1 - b) h / s^2 and 2 h / s^2, whatever b. Arguments broadcast.

    Source: Wu, Ma and E 2018 for b = 0; the others by the Jury conditions of the 3 x 3 second-moment recursion.
    """
    h, s2, b = (np.asarray(value, np.float64) for value in (curvature, variance, momentum))
    return 2 * (1 + b) * h * (1.0 if ema else 1 - b) / ((1 - b) * h**2 + (1 + b) * s2)


def noise_factor(num_examples: int, batch_size: int, sampling: BatchSampling) -> float:
    """Return q: the variance of a batch mean over that of one example.

    1 / B with replacement, (n - B) / (B (n - 1)) without.

    Raises ValueError for a sampling that is not independent from step to step, or a batch larger than the data.
    """
    if sampling not in ("with_replacement", "without_replacement"):
        raise ValueError(
            f"sampling: expected 'with_replacement' or 'without_replacement', independent draws at every step, got "
            f"{sampling!r}; batches of an epoch depend on each other and have no such operator"
        )
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(f"batch_size: expected an integer of at least 1, got {batch_size!r}")
    if sampling == "with_replacement":
        return 1 / batch_size
    if batch_size > num_examples:
        raise ValueError(f"batch_size: expected at most the {num_examples} examples there are, got {batch_size}")
    return (num_examples - batch_size) / (batch_size * (num_examples - 1)) if num_examples > 1 else 0.0


class _Model:
    """The recursion of the second moment at any learning rate; linearisations are made once per rate."""

    def __init__(
        self, curvatures: ExampleCurvatures, optimizer: Any, batch_size: int, sampling: Any, hyperparameters: dict
    ):
        if "learning_rate" in hyperparameters:
            raise ValueError("mean_square_threshold: learning_rate is what is sought; leave it out")
        self.curvatures, self.optimizer, self.hyperparameters = curvatures, optimizer, hyperparameters
        self.factor = noise_factor(len(curvatures.weights), batch_size, sampling)
        # Of a loss that sums over examples, a batch has the sum of its examples' Hessians.
        scale = batch_size if curvatures.normalisation == "sum" else 1
        self.eigenvalues = scale * curvatures.eigenvalues
        self.weights = scale * curvatures.weights
        self.certificates: dict[float, Certificate] = {}

    def certificate(self, learning_rate: float) -> Certificate:
        if learning_rate not in self.certificates:
            self.certificates[learning_rate] = self._certify(learning_rate)
        return self.certificates[learning_rate]

    def _certify(self, learning_rate: float) -> Certificate:
        found = threshold(self.optimizer, learning_rate=float(learning_rate), **self.hyperparameters)
        if found.transition is None:
            raise ValueError(f"mean_square_threshold: the optimizer has no linear threshold ({found.condition})")
        if found.preconditioned != self.curvatures.preconditioned:
            raise ValueError(
                "mean_square_threshold: the optimizer divides by second moments, so example_curvatures needs "
                "preconditioner=P, the divisor of its next update"
                if found.preconditioned
                else "mean_square_threshold: the curvatures are preconditioned, but the optimizer is not adaptive"
            )
        return found

    def mean_critical(self) -> float:
        """Find where the critical curvature, falling in the learning rate, meets the top eigenvalue."""
        top = self.eigenvalues[-1]

        def excess(log_rate: float) -> float:
            # None: decay alone is unstable at this rate.
            critical = self.certificate(np.exp(log_rate)).critical_curvature
            return np.inf if critical is None else float(np.log(top / critical))

        begin = 0.0
        while not np.isfinite(excess(begin)):
            begin -= 1.0
            if begin < _LEAST_LOG_RATE:
                condition = self.certificate(np.exp(begin)).condition
                raise ValueError(f"mean_square_threshold: the optimizer has no linear threshold ({condition})")
        guess = begin - excess(begin)  # exact where critical curvature x learning rate is a constant
        if abs(excess(guess)) < _TOLERANCE:
            return float(np.exp(guess))
        low = high = guess
        while excess(low) > 0:
            low -= 1.0
        while excess(high) < 0:
            high += 1.0
        return float(np.exp(_root(excess, low, high)))

    def critical(self, mean_critical: float) -> float:
        """Find the first learning rate at which the noise kernel has norm 1; the mean's where there is no noise."""
        if self.factor == 0 or not self.kernel_norm(mean_critical / 2, 1.0) > 0:
            return mean_critical

        def excess(log_rate: float) -> float:
            return float(np.log(self.kernel_norm(np.exp(log_rate), 1.0)))

        end = float(np.log(mean_critical))
        grid = end + np.log(np.array([1e-6, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 0.95, 0.99, 1 - 1e-6]))
        low = grid[0]
        while excess(low) >= 0:  # noise dominates
            low -= 7.0
        for high in grid[grid > low]:
            if excess(high) >= 0:
                return float(np.exp(_root(excess, low, high)))
            low = high
        return mean_critical

    def kernel_norm(self, learning_rate: float, discount: float) -> float:
        certificate = self.certificate(learning_rate)
        radius = np.max(np.asarray(certificate.growth(self.eigenvalues))) ** 2
        if radius >= discount:
            return np.inf
        if self.factor == 0:
            return 0.0
        response = self._response(certificate, discount)
        # Symmetric and of modest entries: the norm is that of the kernel times a number.
        largest = float(np.abs(response).max())
        weights, top = self.weights, float(np.abs(self.weights).max())
        value, bound = _kernel_radius(
            response / largest, self.curvatures.factors, weights / top, self.eigenvalues / top, self.factor
        )
        if not bound <= 1e-6 * value:
            raise ArithmeticError(
                f"mean_square_threshold: the noise kernel has not converged, {value:.6g} +- {bound:.1g}"
            )
        return value * largest * top**2

    def growth(self, learning_rate: float) -> float:
        floor = float(np.max(np.asarray(self.certificate(learning_rate).growth(self.eigenvalues))) ** 2)
        if self.factor == 0:
            return floor

        def excess(log_discount: float) -> float:
            return -float(np.log(max(self.kernel_norm(learning_rate, np.exp(log_discount)), 1e-300)))

        low, high = np.log(floor) + 1e-9, np.log(floor) + 1e-3
        if excess(low) >= 0:
            return floor
        while excess(high) < 0:
            high = high + 2 * (high - np.log(floor))
        return float(np.exp(_root(excess, low, high)))

    def _response(self, certificate: Certificate, discount: float) -> np.ndarray:
        """G_ij = sum_k discount^-(k + 1) g_i(k) g_j(k), from one small linear system per pair of eigenvalues."""
        a, b = certificate.transition, certificate.gradient_response
        assert a is not None
        assert b is not None
        size = len(b)
        jacobians = a + self.eigenvalues[:, None, None] * np.outer(b, np.eye(size)[0])
        forcing = np.outer(b, b).ravel()
        rows = []
        for jacobian in jacobians:
            pairs = np.einsum("ab,jcd->jacbd", jacobian, jacobians).reshape(-1, size**2, size**2)
            systems = discount * np.eye(size**2) - pairs
            rows.append(np.linalg.solve(systems, np.broadcast_to(forcing[:, None], (len(pairs), size**2, 1)))[:, 0, 0])
        return np.array(rows)


def _kernel_radius(
    response: np.ndarray, factors: np.ndarray, weights: np.ndarray, eigenvalues: np.ndarray, factor: float
) -> tuple[float, float]:
    """Spectral radius of X -> G o N(X) and its error bound."""
    with jax.enable_x64(True):
        pair = _kernel_program(response, factors, weights, eigenvalues, factor)
        return float(jnp.abs(pair.value)), float(pair.error_bound)


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
def _kernel_program(
    response: jax.Array, factors: jax.Array, weights: jax.Array, eigenvalues: jax.Array, factor: float
) -> Any:
    num_examples, size, _ = factors.shape

    def noise(matrix: jax.Array) -> jax.Array:
        inner = jnp.einsum("nir,ij,njs->nrs", factors, matrix, factors, optimize="optimal")
        inner = inner * weights[:, :, None] * weights[:, None, :] / num_examples
        spread = jnp.einsum("nir,nrs,njs->ij", factors, inner, factors, optimize="optimal")
        return factor * (spread - eigenvalues[:, None] * matrix * eigenvalues)

    def matvec(flat: jax.Array) -> jax.Array:
        return (response * noise(flat.reshape(size, size))).ravel()

    def rmatvec(flat: jax.Array) -> jax.Array:
        return noise(response * flat.reshape(size, size)).ravel()

    # A positive map has its spectral radius as an eigenvalue, with a positive eigenvector: any covariance has a share.
    start = jnp.diag(jnp.diag(response)).ravel()
    return outermost_eigenpair(matvec, rmatvec, start, tol=_TOLERANCE, num_vectors=24, max_restarts=40)


def _root(function: Any, low: float, high: float, tolerance: float = 1e-10) -> float:
    """Find the root of a rising function of a logarithm in a bracket: regula falsi with Illinois' weights, bisection
    where a value is not finite."""
    at_low, at_high = function(low), function(high)
    for _ in range(200):
        if high - low <= tolerance or at_low == 0 or at_high == 0:
            break
        middle = (low + high) / 2
        if np.isfinite(at_low) and np.isfinite(at_high):
            middle = low - at_low * (high - low) / (at_high - at_low)
        value = function(middle)
        if abs(value) <= tolerance:
            return middle
        if value < 0:
            low, at_low, at_high = middle, value, at_high / 2
        else:
            high, at_high, at_low = middle, value, at_low / 2
    return low if abs(at_low) < abs(at_high) else high
