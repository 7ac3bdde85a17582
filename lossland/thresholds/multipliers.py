"""Multipliers of A + curvature b e_x^T: where they cross the unit circle. Pure NumPy, batched over lanes."""

from typing import Any

import numpy as np

from lossland.thresholds.rationals import ROUNDING, rational_interval

_DOUBT = ROUNDING / 10  # eigenvalues of a matrix and of its transpose agree better than this, or rationals decide


def characteristic(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the coefficients of p(w) = det(w I - A) and q(w) = e_x^T adj(w I - A) b, highest power first.

    The recursion of Faddeev and LeVerrier; its terms are products around cycles, so the units of the state drop out.
    """
    size = a.shape[-1]
    adjugate = np.broadcast_to(np.eye(size), a.shape)
    p, q = [np.ones(a.shape[:-2])], [np.zeros(a.shape[:-2])]
    for k in range(1, size + 1):
        q.append(np.einsum("...j,...j->...", adjugate[..., 0, :], b))
        product = a @ adjugate
        p.append(-np.trace(product, axis1=-2, axis2=-1) / k)
        adjugate = product + p[-1][..., None, None] * np.eye(size)
    return np.stack(p, -1), np.stack(q, -1)


def spectral_radius(a: np.ndarray, b: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """Return the spectral radius of A + curvature b e_x^T, Float[ndarray, "n k"] for curvature of that shape."""
    matrices = np.repeat(a[:, None], curvature.shape[1], axis=1)
    matrices[..., 0] += curvature[..., None] * b[:, None]
    usable: Any = np.isfinite(matrices).all((-2, -1))
    radius = np.abs(np.linalg.eigvals(np.where(usable[..., None, None], matrices, 0.0))).max(-1)
    return np.where(usable, radius, np.nan)


def _evaluate(coefficients: np.ndarray, w: np.ndarray) -> np.ndarray:
    value = np.zeros_like(w)
    for column in coefficients.T:
        value = value * w + column[:, None]
    return value


def crossings(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every curvature p(w) / q(w) with a multiplier w on the unit circle, ascending, and the w; NaN last.

    Besides w = 1 and w = -1, the value is real where Im p(w) conj(q(w)) / sin t = sum_m s_m U_(m-1)(cos t) is zero at
    w = exp(i t), with s_m = sum_k p_(k+m) q_k - p_k q_(k+m) and U the Chebyshev polynomials of the second kind.
    """
    lanes, size = len(p), p.shape[1] - 1
    rising_p, rising_q = p[:, ::-1], q[:, ::-1]
    power = np.zeros((lanes, size))  # in cos t, lowest first
    chebyshev = [np.eye(1, size)[0], 2 * np.eye(1, size, 1)[0]]
    for m in range(1, size + 1):
        forward, backward = rising_p[:, m:] * rising_q[:, :-m], rising_p[:, :-m] * rising_q[:, m:]
        power += (forward - backward).sum(1)[:, None] * chebyshev[m - 1]
        chebyshev.append(2 * np.roll(chebyshev[m], 1) - chebyshev[m - 1])
    power[np.abs(power) <= 1e-13 * np.abs(power).max(1, keepdims=True)] = 0.0
    cosine = np.full((lanes, size - 1), np.nan)
    for lane in range(lanes):
        roots = np.roots(power[lane, ::-1])
        real = roots[(np.abs(roots.imag) < 1e-6) & (np.abs(roots.real) < 1)].real
        cosine[lane, : len(real)] = real
    one = np.ones((lanes, 1))
    w = np.concatenate([one, one, -one, cosine + 1j * np.sqrt(1 - cosine**2)], axis=1)
    gain = _evaluate(q, w)
    rounding = 16 * np.finfo(np.float64).eps
    with np.errstate(divide="ignore", invalid="ignore"):
        curvature = (_evaluate(p, w) / gain).real
        curvature[np.abs(curvature) <= rounding * np.abs(p).sum(1, keepdims=True) / np.abs(gain)] = 0.0
        curvature[~(np.abs(gain) > rounding * np.abs(q).sum(1, keepdims=True))] = np.nan
    curvature[:, 0] = 0.0  # where x stands still: a mode that the gradient does not reach can hide this crossing
    order = np.argsort(curvature, axis=1)
    return np.take_along_axis(curvature, order, 1), np.take_along_axis(w, order, 1)


def stable_interval(
    p: np.ndarray, q: np.ndarray, transition: np.ndarray, gradient_response: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where each lane's stable interval ends and begins, and the multiplier that crosses at its end.

    The interval is the first to end at a positive curvature; NaN where none does, -inf where it has no beginning.
    """
    curvature, w = crossings(p, q)
    largest = np.max(np.nan_to_num(np.abs(curvature)), axis=1, keepdims=True)
    largest = np.where(largest > 0, largest, 1.0)
    ends = np.concatenate([-2 * largest, np.where(np.isnan(curvature), 2 * largest, curvature), 2 * largest], axis=1)
    left, right = ends[:, :-1], ends[:, 1:]
    stable = spectral_radius(transition, gradient_response, (left + right) / 2) <= 1 + ROUNDING
    # Multipliers that cross together leave an interval of rounding between them, which says nothing.
    empty = right - left <= 1e-10 * (np.abs(left) + np.abs(right))
    for k in range(1, stable.shape[1]):
        stable[:, k] = np.where(empty[:, k], stable[:, k - 1], stable[:, k])
    lanes, columns = np.arange(len(stable)), np.arange(curvature.shape[1])
    closes = stable[:, :-1] & ~stable[:, 1:] & (right[:, :-1] > 0)
    last = np.argmax(closes, axis=1)
    opens = ~stable[:, :-1] & stable[:, 1:] & (columns < last[:, None])
    first = curvature.shape[1] - 1 - np.argmax(opens[:, ::-1], axis=1)
    lower = np.where(opens.any(1), curvature[lanes, first], -np.inf)
    exists = closes[lanes, last]
    upper, w = np.where(exists, curvature[lanes, last], np.nan), w[lanes, last]
    rows = np.flatnonzero(exists & (np.imag(w) != 0))
    upper[rows], w[rows] = _polished(transition[rows], gradient_response[rows], upper[rows])
    lower = np.where(exists, lower, np.nan)
    for row in _doubtful(transition, gradient_response, largest, exists):
        modes = transition[row], gradient_response[row]
        upper[row], lower[row] = rational_interval(*modes)
        if np.isfinite(upper[row]):
            w[row] = _outermost(modes[0][None], modes[1][None], upper[[row]])[0]
    return upper, lower, w


def _doubtful(a: np.ndarray, b: np.ndarray, largest: np.ndarray, exists: np.ndarray) -> np.ndarray:
    """Return the lanes whose multipliers cluster so much that rounding moves them, or moved all crossings away."""
    if a.shape[-1] < 4:
        return np.zeros(0, int)
    curvature = largest * np.geomspace(1e-9, 1, 10)
    matrices = np.repeat(a[:, None], curvature.shape[1], axis=1)
    matrices[..., 0] += curvature[..., None] * b[:, None]
    finite: Any = np.isfinite(matrices).all((-3, -2, -1))
    matrices = np.where(finite[:, None, None, None], matrices, 0.0)
    radii = [np.abs(np.linalg.eigvals(each)).max(-1) for each in (matrices, np.swapaxes(matrices, -1, -2))]
    moved = (np.abs(radii[0] - radii[1]) > _DOUBT * np.maximum(1, radii[0])).any(1)
    return np.flatnonzero(finite & (b != 0).any(1) & (moved | ~exists))


def _polished(a: np.ndarray, b: np.ndarray, curvature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return complex crossings to the accuracy of eigenvalues: polynomials lose digits where multipliers cluster.

    The secant method on the spectral radius; also returned are the multipliers there.
    """
    points = [curvature * (1 - 1e-4), curvature]
    values = [spectral_radius(a, b, point[:, None])[:, 0] - 1 for point in points]
    for _ in range(8):
        slope = (values[-1] - values[-2]) / np.where(points[-1] != points[-2], points[-1] - points[-2], np.inf)
        step = np.clip(values[-1] / np.where(slope != 0, slope, np.inf), -1e-2 * curvature, 1e-2 * curvature)
        points.append(points[-1] - step)
        values.append(spectral_radius(a, b, points[-1][:, None])[:, 0] - 1)
    best = np.argmin(np.abs(values), axis=0)
    curvature = np.array(points)[best, np.arange(len(best))]
    return curvature, _outermost(a, b, curvature)


def _outermost(a: np.ndarray, b: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """Return the multiplier of the largest modulus at one curvature a lane, imaginary part not negative."""
    multipliers = np.linalg.eigvals(a + np.einsum("n,ni,j->nij", curvature, b, np.eye(1, a.shape[-1])[0]))
    outermost = np.argmax(np.abs(multipliers), axis=1)
    multiplier = multipliers[np.arange(len(outermost)), outermost].astype(complex)
    return np.real(multiplier) + 1j * np.abs(np.imag(multiplier))
