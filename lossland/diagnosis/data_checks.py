"""Checks of what a problem is trained on: inputs, and targets by what its loss makes of them."""

from __future__ import annotations

import jax
import numpy as np

from lossland.diagnosis.hygiene import Check, check_inputs, check_labels
from lossland.problems.problem import Problem

AFFINE = 1e-4
"""Relative deviation from an affine dependence on the targets that rounding makes."""
MOST_CLASSES = 1000
"""Classes whose loss is looked at one by one."""


def wrong_with(problem: Problem) -> tuple[str, ...]:
    """What is wrong with inputs and targets, whatever the loss makes of them."""
    data = problem.data
    if not (isinstance(data, tuple) and len(data) == 2):
        return ()
    inputs, targets = data
    found = list(check_inputs(inputs).findings) if isinstance(inputs, np.ndarray) and inputs.ndim == 2 else []
    kind = getattr(getattr(targets, "dtype", None), "kind", "")
    if kind in ("i", "u") and (labels := _classes(np.asarray(targets))) is not None:
        found += labels.findings
    return tuple(map(str, found))


def _classes(targets: np.ndarray) -> Check | None:
    """Check whole numbers as classes, None where they are something else: signs of a margin, or rows."""
    return check_labels(targets) if targets.ndim == 1 and not np.isin(targets, (-1, 1)).all() else None


def labels_of(problem: Problem) -> Check | None:
    """Check the second entry of the data: classes, or rows in which the loss is affine, as a cross-entropy is."""
    data = problem.data
    if not (isinstance(data, tuple) and len(data) == 2) or not hasattr(data[1], "dtype"):
        return None
    targets = np.asarray(data[1])
    if targets.dtype.kind in "iu":
        return _classes(targets)
    # One number an example may be a count or a sign as well; and anything is affine in nothing.
    if targets.dtype.kind != "f" or targets.ndim != 2 or targets.shape[1] < 2 or not np.any(targets):
        return None
    params = problem.init(jax.random.key(0))
    none, once, twice = (float(problem.loss(params, (data[0], scale * targets))) for scale in (0.0, 1.0, 2.0))
    if not abs(twice - 2 * once + none) <= AFFINE * max(abs(none), abs(once), abs(twice)):
        return None
    return check_labels(targets)


def without_a_loss(problem: Problem) -> tuple[int, ...]:
    """Rows of classes whose loss is not finite, where with the labels of other rows in their place all of it is."""
    data = problem.data
    if not (isinstance(data, tuple) and len(data) == 2) or problem.init_state is not None:
        return ()
    targets = np.asarray(data[1])
    if targets.dtype.kind not in "iu" or targets.ndim != 1 or len(known := np.unique(targets)) > MOST_CLASSES:
        return ()
    params = problem.init(jax.random.key(0))

    def is_finite(rows: np.ndarray, labels: np.ndarray) -> bool:
        inputs = jax.tree.map(lambda leaf: leaf[rows], data[0])
        return bool(np.isfinite(problem.loss(params, (inputs, labels[rows]))))

    bad = np.isin(targets, [one for one in known if not is_finite(np.flatnonzero(targets == one), targets)])
    if bad.all() or not bad.any():
        return ()
    mended = np.where(bad, targets[~bad][0], targets)
    return tuple(np.flatnonzero(bad).tolist()) if is_finite(np.arange(len(targets)), mended) else ()


def made_valid(targets: np.ndarray) -> np.ndarray:
    """Rows of labels made distributions: without negative entries or NaN, every row divided by its sum."""
    clean = np.clip(np.nan_to_num(targets, nan=0.0, posinf=1.0, neginf=0.0), 0, None)
    sums = clean.sum(1, keepdims=True)
    return (clean / np.where(sums > 0, sums, 1)).astype(targets.dtype)
