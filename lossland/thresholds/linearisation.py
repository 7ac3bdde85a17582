"""The linearised step of an optax update: its Jacobians A and b, checked and reduced to what matters."""

from typing import Any, NamedTuple

import numpy as np

from lossland.thresholds.multipliers import ROUNDING, characteristic
from lossland.thresholds.probing import (
    EARLY,
    ELSEWHERE,
    NEAR,
    NEGLIGIBLE,
    REFERENCE,
    REMEMBERED,
    SCALED,
    UNEQUAL,
    Probe,
)


class Linear(NamedTuple):
    """Hold the linearised updates of n lanes, curvature in units of the preconditioner where there is one."""

    transition: np.ndarray  # A, Float[ndarray, "n m m"]: the m modes that see the gradient and are seen by x, x first
    gradient_response: np.ndarray  # b, Float[ndarray, "n m"]
    p: np.ndarray  # Float[ndarray, "n m+1"], highest power first
    q: np.ndarray  # Float[ndarray, "n m+1"]
    finite: np.ndarray
    exists: np.ndarray
    sign_like: np.ndarray
    preconditioned: np.ndarray
    scheduled: np.ndarray


def linearise(probe: Probe, name: str, step: int | None, points: list[dict[str, Any]]) -> Linear:
    """Check what every lane measured and reduce it to A and b; ValueError where no lane passes, naming the first."""
    measured = (probe.jacobian, probe.images, probe.rest)
    finite: Any = np.isfinite(np.concatenate([a.reshape(len(points), -1) for a in measured], axis=1)).all(1)
    certified = finite.copy()

    def refuse(bad, reason):
        bad = bad & certified
        np.logical_and(certified, ~bad, out=certified)
        if np.any(bad) and not np.any(certified):
            point = ", ".join(f"{key}={value}" for key, value in points[int(np.argmax(bad))].items())
            raise ValueError(f"{name}({point}): {reason}")

    refuse(
        probe.not_counting,
        "the state holds an integer that is neither a step count nor constant: a random or periodic update, which no"
        " single step represents; leave that part (noise, accumulation, alternation) out of the chain",
    )
    refuse(
        probe.alternating,
        "a periodic update, the same two steps later and another one step later, which no single step represents; leave"
        " that part (alternation, masks by the step) out of the chain",
    )
    refuse(probe.rest[:, 0] != 0, "the update moves the parameter at zero gradient, expected it to rest")
    refuse(
        probe.odd_moment,
        "the state holds an even function of the gradient that grows neither like it nor like its square; expected"
        " second moments like those of Adam, RMSprop, Adagrad or Adamax",
    )

    def linear_part(keep):
        inputs = np.append(keep, keep[:, :1], axis=1)
        kept = np.where(keep[:, None, :, None] & inputs[:, None, None], probe.jacobian, 0.0)
        return np.where(finite[:, None, None, None], kept, 0.0), inputs

    jacobian, inputs = linear_part(~probe.frozen)
    edges: Any = (np.abs(jacobian[:, [REFERENCE, EARLY]]) > NEGLIGIBLE).any(1)
    scale = NEAR * np.array([1.0, 4.0])[:, None, None]
    displaced = np.where(inputs[:, None], probe.displacements, 0.0)
    error = np.where(finite[:, None, None, None], probe.images, 0.0)
    error = error - scale * np.einsum("nij,nkj->nki", jacobian[:, REFERENCE], displaced)[:, None]
    bound = scale * np.einsum("nij,nkj->nki", np.abs(jacobian[:, REFERENCE]), np.abs(displaced))[:, None]
    rounding = 4 * np.finfo(np.float64).eps * np.abs(probe.rest)[:, None, None]
    wrong = np.abs(error) > 1e-6 * bound + rounding + 1e-14 * scale

    reached = edges[..., -1] | (wrong.any((1, 2)) & ~probe.frozen)
    seen = np.zeros_like(reached)
    seen[:, 0] = True
    for _ in range(seen.shape[1]):
        reached = reached | np.einsum("nij,nj->ni", edges[..., :-1], reached)
        seen = seen | np.einsum("nij,ni->nj", edges[..., :-1], seen)
    active = reached & seen
    wrong &= active[:, None, None]
    constant = np.abs(error[:, 0] - error[:, 1]) <= 1e-6 * np.abs(error[:, 0])
    sign_like = (wrong[:, 0] & constant).any((1, 2))
    refuse(
        wrong.any((1, 2, 3)) & ~sign_like,
        "the update is not differentiable at the minimum, is scaled by the parameter itself (trust ratios are), or"
        " keeps state in less than single precision: no curvature separates stable from unstable",
    )
    exists = finite & active[:, 0] & ~sign_like

    active[:, 0] = True
    columns = np.flatnonzero(active.any(0))
    jacobian, _ = linear_part(active)
    a, b = jacobian[..., columns[:, None], columns], jacobian[..., columns, -1]
    p, q = characteristic(a, b)

    def same(variant, factor):
        gap_p, gap_q = np.abs(p[:, variant] - p[:, 0]).max(1), np.abs(factor * q[:, variant].T - q[:, 0].T).max(0)
        largest = np.maximum(np.abs(q[:, 0]).max(1), NEGLIGIBLE)
        return ~exists | ((gap_p <= ROUNDING * np.abs(p[:, 0]).max(1)) & (gap_q <= ROUNDING * largest))

    refuse(
        ~same(ELSEWHERE, 1.0) | ~same(REMEMBERED, 1.0),
        "the step is scaled by the parameter, by the distance it has travelled or by the largest gradient seen, so"
        " there is no threshold of curvature alone",
    )
    scheduled = probe.moving | ~same(EARLY, 1.0) | ~np.isclose(*probe.stride.T, rtol=1e-6, atol=0.0)
    if step is None:
        refuse(
            scheduled,
            "the update follows a schedule; pass step=... (or it corrects averages in a way that is not recognised:"
            " pass a late one, step=10**6)",
        )
    unit = np.where(probe.preconditioner > 0, probe.preconditioner, 1.0)
    ratio = unit / unit[:, :1]
    unaffected = same(SCALED, 1.0) & same(UNEQUAL, 1.0)
    proportional = same(SCALED, ratio[:, SCALED]) & same(UNEQUAL, ratio[:, UNEQUAL])
    refuse(
        ~unaffected & ~proportional,
        "the update is not inversely proportional to the root of its second moments: they are not a preconditioner",
    )
    unit = np.where(unaffected, 1.0, unit[:, 0])[:, None]
    exists = exists & certified & (~unaffected | unaffected.all())  # one grid, one unit
    return Linear(
        transition=a[:, 0],
        gradient_response=b[:, 0] * unit,
        p=p[:, 0],
        q=q[:, 0] * unit,
        finite=finite,
        exists=exists,
        sign_like=sign_like & certified,
        preconditioned=~unaffected,
        scheduled=scheduled,
    )
