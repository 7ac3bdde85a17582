"""Checks before training: labels, inputs, shapes, precision. A finding says what is wrong, where, and what follows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossland.arguments import FUNCTION, TREE, calling, choice, count, described, expects, number, optional

SUM_TOLERANCE = 1e-3  # rows of labels rounded to three digits still count as distributions
SHOWN = 5  # places that a finding lists
SCALE_SPREAD = 10.0  # columns or an offset this many times larger than another deserve a word
UNDERFLOW = float(np.sqrt(np.finfo(np.float32).tiny))


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: `kind` is a short name, `text` what and what follows, `places` rows or columns."""

    kind: str
    text: str
    places: tuple[int, ...] = ()

    def __str__(self) -> str:
        more = f" and {len(self.places) - SHOWN} more" if len(self.places) > SHOWN else ""
        where = f" (at {', '.join(map(str, self.places[:SHOWN]))}{more})" if self.places else ""
        return f"{self.kind}: {self.text}{where}"


@dataclass(frozen=True)
class Check:
    """What a check found. `ok` if nothing is wrong; `kinds` are the short names of what is."""

    what: str
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.findings

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(finding.kind for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings)) or f"{self.what}: nothing is wrong"


@expects(num_classes=optional(count()))
def check_labels(labels: Any, num_classes: int | None = None) -> Check:
    """Check labels of a classifier: distributions over classes, one row an example, or integer classes.

    Rows of a softmax cross-entropy must be distributions: entries >= 0 that sum to s = 1. With another sum autodiff
    gives the gradient s softmax - p and s times the sharpness, so the critical learning rate falls by s; fused kernels
    return softmax - p, under which the logits drift by learning rate x (s - 1) / C per step and the loss rises for
    good. A negative entry leaves the loss without a lower bound.

    Args:
        labels: `Float["n C"]` distributions, or `Int["n"]` classes from 0 to C - 1 (floats that are whole are fine).
        num_classes: C, for integer classes; without it only negative and fractional classes are wrong.

    Returns:
        `Check` with the kinds "not_finite", "negative", "row_sum", "outside_classes", "fractional", "column",
        "missing_class".

    Raises:
        ValueError: for labels that are empty, have more than two axes, or are no numbers.
    """
    with calling("labels", "an array of numbers"):
        array = np.asarray(labels)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"labels: expected numbers, got {array.dtype}; number the classes from 0")
    if array.ndim not in (1, 2) or not array.size:
        raise ValueError(f"labels: expected shape (n,) of classes or (n, C) of distributions, got {array.shape}")
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
    array = array.astype(np.float64)
    found = []
    not_finite = _rows(~np.isfinite(array))
    if not_finite:
        found.append(Finding("not_finite", f"{len(not_finite)} rows hold NaN or infinity", not_finite))
    array = np.where(np.isfinite(array), array, 0.0)
    if array.ndim == 2 and array.shape[1] == 1:
        text = "labels of shape (n, 1) spread against predictions of shape (n,) to (n, n): take labels[:, 0]"
        found.append(Finding("column", text))
        array = array[:, 0]
    if array.ndim == 2:
        found += _distributions(array, set(not_finite))
    else:
        found += _classes(array, set(not_finite), num_classes)
    return Check("labels", tuple(found))


def _distributions(rows: np.ndarray, skipped: set[int]) -> list[Finding]:
    found = []
    negative = tuple(row for row in _rows(rows < 0) if row not in skipped)
    if negative:
        text = f"{len(negative)} rows have negative entries, down to {rows.min():.4g}: the loss has no lower bound"
        found.append(Finding("negative", text, negative))
    sums = rows.sum(1)
    off = tuple(row for row in _rows(np.abs(sums - 1) > SUM_TOLERANCE) if row not in skipped)
    if off:
        low, high, mean = sums[list(off)].min(), sums[list(off)].max(), sums.mean()
        drift = abs(mean - 1) / rows.shape[1]
        text = (
            f"{len(off)} of {len(rows)} rows do not sum to one, sums from {low:.4g} to {high:.4g}: sharpness changes "
            f"by a factor of about {mean:.4g}, and kernels that return softmax - p let every logit drift by "
            f"{drift:.3g} x learning rate a step; divide each row by its sum"
        )
        found.append(Finding("row_sum", text, off))
    return found


def _classes(classes: np.ndarray, skipped: set[int], num_classes: int | None) -> list[Finding]:
    found = []
    fractional = tuple(row for row in _rows(classes != np.round(classes)) if row not in skipped)
    if fractional:
        found.append(Finding("fractional", f"{len(fractional)} labels are no whole numbers", fractional))
    outside = classes < 0 if num_classes is None else (classes < 0) | (classes >= num_classes)
    outside_rows = tuple(row for row in _rows(outside) if row not in skipped)
    if outside_rows:
        low, high = (float(bound(classes[list(outside_rows)])) for bound in (np.min, np.max))
        allowed = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
        them = f"{low:.9g}" if low == high else f"from {low:.9g} to {high:.9g}"
        text = (
            f"{len(outside_rows)} of {len(classes)} labels are {them}, expected {allowed}: one-hot rows of them are "
            "all zero, and indexed losses NaN or another class's"
        )
        found.append(Finding("outside_classes", text, outside_rows))
    if num_classes is not None:
        missing = tuple(sorted(set(range(num_classes)) - set(classes.astype(int).tolist())))
        if missing:
            found.append(Finding("missing_class", f"{len(missing)} classes have no example", missing))
    return found


def check_inputs(inputs: Any) -> Check:
    """Check inputs: values that are not finite, columns that are constant, equal, or of very different scale.

    For least squares with a bias the sharpness is the top eigenvalue of 2 Z^T Z / n, Z the inputs with a column of
    ones: the finding "scale" compares it with that of standardised inputs (2 times the top eigenvalue of their
    correlations), a factor by which the critical learning rate grows.

    Args:
        inputs: `Float["n ..."]`; axes after the first are flattened to columns.

    Returns:
        `Check` with the kinds "not_finite", "constant", "duplicate", "scale".

    Raises:
        ValueError: for inputs that are empty or no numbers.
    """
    with calling("inputs", "an array of numbers"):
        array = np.asarray(inputs)
    if array.dtype.kind not in "fiub" or not array.size or array.ndim == 0:
        raise ValueError(f"inputs: expected numbers of shape (n, ...), got {array.dtype} of shape {array.shape}")
    table = array.reshape(len(array), -1).astype(np.float64)
    found = []
    not_finite = _rows(~np.isfinite(table))
    if not_finite:
        found.append(Finding("not_finite", f"{len(not_finite)} rows hold NaN or infinity", not_finite))
        table = table[[row for row in range(len(table)) if row not in set(not_finite)]]
        if not len(table):
            return Check("inputs", tuple(found))
    with np.errstate(over="ignore"):  # squares of large numbers are infinite, and so is the sharpness
        spread = table.std(0)
    still = spread <= 1e-12 * np.maximum(np.abs(table).max(0), 1e-300)
    constant = tuple(np.flatnonzero(still).tolist())
    if constant and len(table) > 1:
        found.append(Finding("constant", f"{len(constant)} columns never change: they only repeat the bias", constant))
    moving = np.flatnonzero(~still)
    first: dict[bytes, int] = {}
    twins = tuple(column for column in moving.tolist() if first.setdefault(_digest(table[:, column]), column) != column)
    if twins:
        text = f"{len(twins)} columns equal another: the Hessian is singular along their difference"
        found.append(Finding("duplicate", text, twins))
    if len(moving) and len(table) > 1:
        found += _scales(table[:, moving], spread[moving], moving)
    return Check("inputs", tuple(found))


def _scales(table: np.ndarray, spread: np.ndarray, columns: np.ndarray) -> list[Finding]:
    ones = np.ones((len(table), 1))
    raw, standard = np.hstack([table, ones]), (table - table.mean(0)) / spread
    sharp, calm = (_sharpness(z) for z in (raw, np.hstack([standard, ones])))
    uneven = spread.max() > SCALE_SPREAD * spread.min() or np.any(np.abs(table.mean(0)) > SCALE_SPREAD * spread)
    if sharp <= SCALE_SPREAD * calm or not (uneven or spread.max() > SCALE_SPREAD**0.5):
        return []
    widest = tuple(columns[np.argsort(-np.abs(table).max(0))].tolist())
    text = (
        f"scales of columns differ or are large: least squares has sharpness {sharp:.4g}, {calm:.4g} with standardised "
        f"inputs, which raise the critical learning rate {sharp / calm:.3g} times; the largest columns come first"
    )
    return [Finding("scale", text, widest[:SHOWN])]


def _sharpness(z: np.ndarray) -> float:
    """Top eigenvalue of 2 Z^T Z / n, by the smaller of the two products."""
    size = float(np.abs(z).max())
    z = z / size
    product = z.T @ z if z.shape[1] <= len(z) else z @ z.T
    return 2 * float(np.linalg.eigvalsh(product / len(z))[-1]) * size * size


def _digest(column: np.ndarray) -> bytes:
    return hashlib.sha256((column + 0.0).tobytes()).digest()  # + 0.0: without negative zeros


def check_shapes(predictions: Any, targets: Any) -> Check:
    """Check that an elementwise loss of predictions and targets does not spread one over the other by accident.

    (n, 1) against (n,) makes (n, n) differences: the loss is that of predicting every target with every input, least
    at the mean.

    Args:
        predictions, targets: arrays, or anything with a `shape`.

    Returns:
        `Check` with the kind "broadcast" or "incompatible". Nothing is raised: shapes that do not match are a finding.
    """
    shapes = []
    for name, one in (("predictions", predictions), ("targets", targets)):
        if isinstance(getattr(one, "shape", None), tuple):  # of an array, or of one that is not there yet
            shapes.append(tuple(one.shape))
            continue
        with calling(name, "an array of numbers"):
            array = np.asarray(one)
        if array.dtype.kind not in "fiubc":
            raise ValueError(f"{name}: expected an array of numbers, got {described(one)}")
        shapes.append(array.shape)
    left, right = shapes
    if left == right or not left or not right:
        return Check("shapes")
    try:
        spread = np.broadcast_shapes(left, right)
    except ValueError:
        return Check("shapes", (Finding("incompatible", f"predictions {left} and targets {right} do not match"),))
    text = f"predictions {left} against targets {right} spread to {spread}; reshape one to the other"
    return Check("shapes", (Finding("broadcast", text),))


@expects(
    loss=FUNCTION, params=TREE, batch=TREE, epsilon=number(above=0), dtype=choice("float32", "bfloat16", "float16")
)
def check_precision(
    loss: Callable[[Any, Any], Any], params: Any, batch: Any, *, epsilon: float = 1e-8, dtype: str = "float32"
) -> Check:
    """Compare the gradient in a precision with the one in float64, and find what the precision cannot hold.

    Args:
        loss: (params, batch) -> scalar, of JAX operations.
        params: where to compare; floats are cast to `dtype`, and to float64.
        batch: what the loss is called with, cast alike.
        epsilon: of an adaptive optimizer.
        dtype: "float32", "bfloat16" or "float16".

    Returns:
        `Check` with the kinds "gradient" (relative error above 10 %), "overflow" (loss or gradient not finite, finite
        in float64), "underflow" (nonzero gradients whose square is 0), "epsilon" (0 in this precision).

    Raises:
        ValueError: for another dtype, or a loss that is not finite in float64 or that JAX does not differentiate.
    """
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype: expected 'float32', 'bfloat16' or 'float16', got {dtype!r}")

    def at(kind: str) -> tuple[float, np.ndarray]:
        def cast(leaf: Any) -> Any:
            array = jnp.asarray(leaf)
            return array.astype(kind) if jnp.issubdtype(array.dtype, jnp.floating) else array

        with calling("loss", "a scalar that JAX differentiates, at params of real floats"):
            value, gradient = jax.value_and_grad(loss)(jax.tree.map(cast, params), jax.tree.map(cast, batch))
        return float(value), np.concatenate([np.ravel(np.asarray(g, np.float64)) for g in jax.tree.leaves(gradient)])

    with jax.enable_x64(True):
        value, exact = at("float64")
        if not (np.isfinite(value) and np.all(np.isfinite(exact))):
            raise ValueError("loss: not finite in float64 already; compare at an earlier point")
        low_value, low = at(dtype)
        squares = np.asarray(jnp.square(jnp.asarray(low).astype(dtype)), np.float64)
        held = float(jnp.asarray(epsilon).astype(dtype))
    found = []
    if not (np.isfinite(low_value) and np.all(np.isfinite(low))):
        found.append(Finding("overflow", f"the loss ({low_value:.4g}) or its gradient is not finite in {dtype}"))
    else:
        error = float(np.linalg.norm(low - exact) / max(np.linalg.norm(exact), np.finfo(np.float64).tiny))
        if error > 0.1:
            found.append(Finding("gradient", f"the gradient in {dtype} is off by {error:.2g} of its length"))
    lost = int(np.sum((low != 0) & (squares == 0)))
    if lost:
        text = f"{lost} of {low.size} gradients are not zero, but their squares are: second moments forget them"
        found.append(Finding("underflow", text))
    if epsilon > 0 and held == 0:
        found.append(Finding("epsilon", f"epsilon = {epsilon:g} is 0 in {dtype}: an unused parameter divides by zero"))
    return Check("precision", tuple(found))


def _rows(flags: np.ndarray) -> tuple[int, ...]:
    """Rows that hold a set flag."""
    return tuple(np.flatnonzero(flags.reshape(len(flags), -1).any(1)).tolist())
