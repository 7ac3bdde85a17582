"""Is this the gradient of that loss? A user's own backward pass against autodiff and central differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossland.arguments import FUNCTION, TRACING_ERRORS, TREE, calling, count, described, expects, number

STEP = 6e-6  # cube root of the rounding unit of float64: where both errors of a central difference are least
CONFIRMING, ESTIMATING = 4, 24  # directions per leaf that confirm autodiff, or that stand in for it
LONGEST = 2e-2  # step of a central difference of a loss with few digits
NODES = 7  # evaluations a direction from which the digits of a loss are told
LOST = 1e3  # rounding units of the whole gradient that sums of many terms lose in one parameter
KINK = 1e-3  # autodiff and central differences may differ by this share: a kink of the loss lies within a step


@dataclass(frozen=True)
class LeafCheck:
    """One parameter's gradient: `relative_error` = ||g - reference|| / ||reference||, inf for an impossible shape.

    `cosine` and `ratio` (of norms) compare it with the reference where that is known entry by entry, else NaN;
    `pattern` is the likely mistake in words, "" where none is recognised.
    """

    name: str
    shape: tuple[int, ...]
    relative_error: float
    cosine: float
    ratio: float
    pattern: str
    is_wrong: bool


@dataclass(frozen=True)
class GradientCheck:
    """What `check_gradient` found. `ok` if no leaf is wrong; `wrong` are the names of those that are.

    `reference` says what the gradient was compared with; `autodiff_differs` names leaves where autodiff itself is not
    the derivative of the loss (a custom rule, a stopped gradient, a kink).
    """

    leaves: tuple[LeafCheck, ...]
    reference: str
    tolerance: float
    autodiff_differs: tuple[str, ...] = ()

    @property
    def wrong(self) -> tuple[str, ...]:
        return tuple(leaf.name for leaf in self.leaves if leaf.is_wrong)

    @property
    def ok(self) -> bool:
        return not self.wrong

    def __str__(self) -> str:
        width = max(len(leaf.name) for leaf in self.leaves)
        lines = [
            f"{leaf.name:<{width}}  {'WRONG' if leaf.is_wrong else 'right'}  relative error {leaf.relative_error:.2g}"
            + (f"  {leaf.pattern}" if leaf.is_wrong and leaf.pattern else "")
            for leaf in self.leaves
        ]
        verdict = f"wrong: {', '.join(self.wrong)}" if self.wrong else "right: every gradient is that of the loss"
        lines.append(f"{verdict} (against {self.reference}; tolerance {self.tolerance:g})")
        if self.autodiff_differs:
            lines.append(
                f"autodiff of the loss differs from its central differences in {', '.join(self.autodiff_differs)}:"
                " a custom derivative, a stopped gradient or a kink"
            )
        return "\n".join(lines)


@expects(loss=FUNCTION, gradient=FUNCTION, params=TREE, batch=TREE, tolerance=number(above=0), seed=count(0))
def check_gradient(
    loss: Callable[[Any, Any], Any],
    gradient: Callable[[Any, Any], Any],
    params: Any,
    batch: Any,
    *,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> GradientCheck:
    """Compare a gradient function with the derivative of its loss, parameter by parameter, in float64.

    Equation: relative error = ||g - g_ref|| / ||g_ref||, g_ref by autodiff, confirmed by central differences
    (L(p + h u) - L(p - h u)) / 2 h along random directions u of each leaf (two step sizes, extrapolated). A loss that
    JAX cannot trace is compared with central differences alone; its errors are then estimates from 24 directions.

    Args:
        loss: (params, batch) -> scalar, the mean or sum it is trained on; JAX or NumPy.
        gradient: (params, batch) -> the same structure as `params`; JAX or NumPy. Gets copies: it may overwrite them.
        params: where to compare, a pytree of real floats. A generic point: at zero weights much is zero by symmetry.
        batch: what both are called with; floats are widened to float64.
        tolerance: largest relative error that counts as right. A gradient computed in float32 has 1e-6 to 1e-4.
        seed: of the random directions.

    Raises:
        ValueError: if the loss is not a finite scalar, `params` holds no floats, or the gradient has another structure.
    """
    with jax.enable_x64(True):
        params, batch = _widened(params), _widened(batch)
        named = jax.tree_util.tree_flatten_with_path(params)[0]
        names = [_name(path) for path, _ in named]
        leaves = [leaf for _, leaf in named]
        _check_params(names, leaves)
        value = _scalar(loss(_copied(params), _copied(batch)))
        theirs, unit = _matched(gradient(_copied(params), _copied(batch)), params)
        exact = _autodiff(loss, params, batch)
        treedef = jax.tree.structure(params)

        def at(place: int, moved: np.ndarray) -> float:
            changed = [moved if index == place else leaf.copy() for index, leaf in enumerate(leaves)]
            return _scalar(loss(treedef.unflatten(changed), _copied(batch)))

        generator = np.random.default_rng(seed)
        count = ESTIMATING if exact is None else CONFIRMING

        def moved(shifts: list[np.ndarray]) -> float:
            changed = [leaf + shift for leaf, shift in zip(leaves, shifts, strict=True)]
            return _scalar(loss(treedef.unflatten(changed), _copied(batch)))

        rounding = _rounding(moved, leaves, value)
        measured = [
            _differences(at, place, leaf, count, generator, value, rounding) for place, leaf in enumerate(leaves)
        ]
    num_examples = _num_examples(batch)
    sizes = [_norm_along(slopes, leaf.size) for (_, slopes, _), leaf in zip(measured, leaves, strict=True)]
    if exact is not None:
        sizes = [float(np.linalg.norm(leaf)) for leaf in exact]
    overall = float(np.linalg.norm(sizes))
    # A gradient that is zero (of a shift that nothing sees) comes out as the rounding of the terms that cancel in it.
    unit = max(unit, rounding / max(abs(value), np.finfo(np.float64).tiny))
    floor = min(max(1e-9, LOST * unit), 1e-3) * overall
    differs, checks = [], []
    for place, (name, leaf, mine) in enumerate(zip(names, leaves, theirs, strict=True)):
        directions, slopes, noise = measured[place]
        reference = None if exact is None else exact[place]
        least = max(sizes[place], floor, np.finfo(np.float64).tiny)
        if reference is not None:
            off = np.abs(directions @ reference.ravel() - slopes)
            if np.any(off > KINK * least / np.sqrt(leaf.size) + 10 * noise):
                differs.append(name)
                reference = None
        # What rounding leaves unknown of a norm that is estimated from slopes is no error of the gradient.
        allowed = tolerance if reference is not None else tolerance + noise * np.sqrt(leaf.size) / least
        checks.append(_compare(name, leaf, mine, reference, directions, slopes, least, allowed, num_examples))
    source = "central differences" if exact is None else "autodiff, confirmed by central differences"
    return GradientCheck(tuple(checks), source, tolerance, tuple(differs))


def _compare(
    name: str,
    leaf: np.ndarray,
    mine: np.ndarray,
    reference: np.ndarray | None,
    directions: np.ndarray,
    slopes: np.ndarray,
    least: float,
    tolerance: float,
    num_examples: int,
) -> LeafCheck:
    """Compare one leaf with its reference, or with slopes along directions where there is none."""
    shape_note = ""
    if mine.shape != leaf.shape:
        shape_note = f"shape {mine.shape} for a parameter of shape {leaf.shape}"
        if mine.size == leaf.size:
            is_transposed = mine.ndim == 2 and mine.T.shape == leaf.shape
            mine = mine.T if is_transposed else mine.reshape(leaf.shape)
            shape_note += ": transposed" if is_transposed else ": reshape it"
        else:
            try:
                mine = np.broadcast_to(mine, leaf.shape)
                shape_note += ", spread over it by broadcasting"
            except ValueError:
                return LeafCheck(name, leaf.shape, np.inf, np.nan, np.nan, shape_note, True)
    if not np.all(np.isfinite(mine)):
        bad = int(np.sum(~np.isfinite(mine)))
        return LeafCheck(name, leaf.shape, np.inf, np.nan, np.nan, f"{bad} of {mine.size} entries not finite", True)
    if reference is None:
        error = _norm_along(directions @ mine.ravel() - slopes, leaf.size) / least
        cosine = ratio = float("nan")
        pattern = ""
    else:
        size = float(np.linalg.norm(mine))
        error = float(np.linalg.norm(mine - reference)) / least
        length = float(np.linalg.norm(reference)) or least
        cosine = float(np.vdot(mine, reference)) / (size * length) if size else 0.0
        ratio = size / length
        pattern = _pattern(mine, reference, leaf, cosine, ratio, num_examples)
    is_wrong = bool(error > tolerance or shape_note)
    words = "; ".join(part for part in (shape_note, pattern if error > tolerance else "") if part)
    return LeafCheck(name, leaf.shape, float(error), cosine, ratio, words, is_wrong)


def _pattern(
    mine: np.ndarray, reference: np.ndarray, leaf: np.ndarray, cosine: float, ratio: float, num_examples: int
) -> str:
    """Recognise a usual mistake."""

    def near(left: Any, right: Any) -> bool:
        return bool(np.allclose(left, right, rtol=1e-3, atol=1e-6 * float(np.max(np.abs(reference), initial=0.0))))

    if not np.any(mine):
        return "zero everywhere"
    if mine.size > 1 and near(mine, np.full(mine.shape, mine.flat[0])):
        if near(mine.flat[0], reference.sum()):
            return "every entry is the sum of all entries: a sum without its axis"
        if near(mine.flat[0], reference.mean()):
            return "every entry is the mean of all entries: a mean without its axis"
    if mine.ndim == 2 and mine.shape[0] == mine.shape[1] and near(mine.T, reference) and not near(mine, reference):
        return "transposed"
    if abs(cosine) > 1 - 1e-6:
        sign = "the sign is flipped" if cosine < 0 else ""
        factor = ""
        if not np.isclose(ratio, 1, rtol=1e-3):
            factor = f"{ratio:.4g} times the right one"
            if num_examples > 1 and np.isclose(ratio, num_examples, rtol=1e-3):
                factor += ": the sum over examples where the loss takes their mean"
            elif num_examples > 1 and np.isclose(ratio, 1 / num_examples, rtol=1e-3):
                factor += ": the mean over examples where the loss takes their sum"
        return ", ".join(part for part in (sign, factor) if part)
    off, square = reference - mine, float(np.vdot(leaf, leaf))
    if leaf.size > 1 and square > 0:
        share = float(np.vdot(leaf, off)) / square
        if np.linalg.norm(off - share * leaf) < 1e-3 * np.linalg.norm(off):
            return f"{abs(share):.3g} times the parameter {'is missing' if share > 0 else 'too much'}: a penalty on it"
    return f"cosine with the right one {cosine:.3g}, {ratio:.3g} times as long"


def _differences(
    at: Callable[[int, np.ndarray], float],
    place: int,
    leaf: np.ndarray,
    count: int,
    generator: np.random.Generator,
    value: float,
    digits: float,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Slopes of the loss along random unit directions of one leaf, and what rounding leaves unknown of them.

    `digits` is the rounding of the loss: the step grows with its cube root where that is not float64's.
    """
    count = min(count, leaf.size) if leaf.size < CONFIRMING else count
    directions = generator.normal(size=(count, leaf.size))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    size = max(abs(value), 1e-300)
    far = float(np.clip(np.cbrt(digits / size), STEP, LONGEST)) * max(1.0, float(np.linalg.norm(leaf)))
    slopes = np.zeros(count)
    for row, direction in enumerate(directions):
        along = direction.reshape(leaf.shape)
        wide, narrow = ((at(place, leaf + h * along) - at(place, leaf - h * along)) / (2 * h) for h in (far, far / 2))
        slopes[row] = (4 * narrow - wide) / 3
    rounding = 8 * max(np.finfo(np.float64).eps * size, digits) / far
    return directions, slopes, float(rounding)


def _rounding(moved: Callable[[list[np.ndarray]], float], leaves: list[np.ndarray], value: float) -> float:
    """Rounding of a loss that computes in less than float64 (a network with a dtype, a cast), 0 where it is float64's.

    Equation: sigma^2 = (4!)^2 / 8! mean (D^4 L)^2, D^4 L fourth differences over steps in which a smooth loss has none;
    the least of three directions, since a kink lies along few. Source: More and Wild 2011, section 2.
    """
    generator = np.random.default_rng(0)
    found = []
    for _ in range(3):
        directions = [generator.normal(size=leaf.shape) / np.sqrt(max(leaf.size, 1)) for leaf in leaves]
        sizes = [STEP / 2 * max(1.0, float(np.linalg.norm(leaf))) for leaf in leaves]
        values = [
            moved([place * size * along for size, along in zip(sizes, directions, strict=True)])
            for place in range(-(NODES // 2), NODES // 2 + 1)
        ]
        found.append(float(np.sqrt(np.mean(np.diff(values, 4) ** 2) / 70)))
    return min(found) if min(found) > 1e3 * np.finfo(np.float64).eps * abs(value) else 0.0


def _norm_along(slopes: np.ndarray, size: int) -> float:
    """Norm of a vector of so many entries from its products with random unit vectors: E (e.u)^2 = ||e||^2 / n."""
    return float(np.sqrt(size * np.mean(slopes**2)))


def _autodiff(loss: Callable[[Any, Any], Any], params: Any, batch: Any) -> list[np.ndarray] | None:
    """The gradient by autodiff, None for a loss that JAX cannot trace."""
    try:
        return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(jax.grad(loss)(params, batch))]
    except (jax.errors.UnexpectedTracerError, *TRACING_ERRORS):
        return None


def _num_examples(batch: Any) -> int:
    """The size that most arrays of a batch have along some axis: examples may be rows or columns; 0 where none is."""
    sizes = [dict.fromkeys(np.shape(leaf)) for leaf in jax.tree.leaves(batch) if np.ndim(leaf)]
    every = [size for one in sizes for size in one]
    return max(every, key=every.count, default=0)


def _matched(found: Any, params: Any) -> tuple[list[np.ndarray], float]:
    """Leaves of the user's gradient in the order of the parameters, and the rounding unit of the coarsest."""
    wanted = [_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    leaves = {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(found)[0]}
    if set(leaves) != set(wanted):
        missing, extra = sorted(set(wanted) - set(leaves)), sorted(set(leaves) - set(wanted))
        parts = [f"lacks {', '.join(missing)}" if missing else "", f"has also {', '.join(extra)}" if extra else ""]
        raise ValueError(
            f"gradient: expected one leaf for each of {', '.join(wanted)}; what it returned "
            + " and ".join(part for part in parts if part)
        )
    units = [
        float(jnp.finfo(dtype).eps)
        for dtype in (np.asarray(leaf).dtype for leaf in leaves.values())
        if jnp.issubdtype(dtype, jnp.floating)
    ]
    with calling("gradient", "numbers in every leaf"):
        return [np.asarray(leaves[name], np.float64) for name in wanted], max(units, default=0.0)


def _check_params(names: list[str], leaves: list[np.ndarray]) -> None:
    if not leaves:
        raise ValueError("params: expected at least one parameter, got an empty structure")
    for name, leaf in zip(names, leaves, strict=True):
        if not np.issubdtype(np.asarray(leaf).dtype, np.floating):
            raise ValueError(f"params: {name}: expected real floats, got {np.asarray(leaf).dtype}")
        if not np.all(np.isfinite(leaf)):
            raise ValueError(f"params: {name}: expected finite values; compare at a point before the run diverged")
        if not np.size(leaf):
            raise ValueError(f"params: {name}: is empty, shape {np.shape(leaf)}")


def _scalar(value: Any) -> float:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise ValueError(f"loss: expected a scalar, got {described(value)}")
    if array.size != 1:
        raise ValueError(f"loss: expected a scalar, got shape {array.shape}; return a mean or a sum")
    if not np.isfinite(array).all():
        raise ValueError(f"loss: expected a finite value at params and around them, got {array.item()}")
    return float(array.reshape(()))


def _widened(tree: Any) -> Any:
    """Leaves as NumPy arrays, floats in double precision."""

    def wide(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        return np.array(array, np.float64) if array.dtype.kind == "f" or array.dtype.name == "bfloat16" else array

    return jax.tree.map(wide, tree)


def _copied(tree: Any) -> Any:
    return jax.tree.map(np.copy, tree)


def _name(path: tuple[Any, ...]) -> str:
    keys = (getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))) for key in path)
    return "/".join(map(str, keys)) or "params"
