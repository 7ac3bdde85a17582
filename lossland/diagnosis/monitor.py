"""What explanation needs from a training loop of one's own: an optax transformation that watches the one it wraps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax import lax

from lossland.arguments import FUNCTION, TEXT, check, count, expects, optional, several
from lossland.diagnosis.built_moments import moment_reader
from lossland.diagnosis.observation import NOT_PASSED
from lossland.optimizers import as_optimizer
from lossland.sweeps.preconditioners import FindSecondMoment
from lossland.sweeps.single_run import ROUNDING
from lossland.sweeps.sweep import Outcome
from lossland.sweeps.training import SUMMARY

RECORDS = {
    "loss": ("1", "loss passed to update as value=, before the step (of the batch, where the step sees one)"),
    "gradient_norm": ("1", "Euclidean norm of the gradient that the step used"),
    "update_norm": ("parameter", "Euclidean norm of the update, learning rate included"),
    "slope": ("loss", "gradient . update, the change of the loss to first order; positive is uphill"),
    "update_gradient_cosine": ("1", "cosine of the update and the gradient; -1 is steepest descent"),
    "gradient_excess_rms": ("1", "root mean square of g / max(sqrt(v), floor), v the advanced second moment"),
    "gradient_excess_max": ("1", "largest g^2 / max(v, floor^2) of a coordinate"),
    "damped": ("1", "fraction of coordinates with sqrt(v) below the floor (eps, or sqrt(eps) under the root)"),
    "num_nonfinite": ("1", "coordinates of the gradient that are infinite or NaN"),
}
"""What is kept of a step: name -> (units, description), in the order of the buffers' columns."""
COUNTERS = ("steps_done", "first_bad_step", "first_rise_step", "num_rises")
"""What is counted over all steps; one more entry of the state is the number of rows of the history."""
LEVELS = ("first_loss", "last_loss", "peak_loss")
PARTS = ("all", "recent", "history")
SMALL = 4096
"""Arrays of fewer elements are measured together: an operation on few numbers costs as much as one on many."""


class MonitorState(NamedTuple):
    """State of a monitored optimizer.

    inner: state of the optimizer itself; counters: `Int32[5]`, `COUNTERS` and the history's rows; levels: `Float32[3]`,
    `LEVELS`; records: `Float32[row, record]`, first the history (evenly spaced steps from the first on in the rows that
    `_row_of` tells, and one row for what is not kept), then the window, step t in row t mod its length.
    """

    inner: Any
    counters: jax.Array
    levels: jax.Array
    records: jax.Array


@expects(second_moment=optional(FUNCTION))
def monitor(
    optimizer: Any,
    *,
    every: int = 16,
    window: int = 300,
    history: int = 512,
    second_moment: FindSecondMoment | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer of your own loop so that its state keeps what explanation needs; updates stay the same bits.

    Use it in place of the optimizer, pass the loss, and read it when you like:

        tx = ll.monitor(optax.adam(1e-3))
        updates, opt_state = tx.update(gradient, opt_state, params, value=loss)
        print(ll.explain_history(ll.monitored(opt_state, "history")["loss"]))

    It keeps the loss and the count of rises of every step and, every few steps, the rest of `RECORDS`: |g|, |u|, g.u,
    their cosine, how far g^2 exceeds the second moment v of Adam, AMSGrad, RMSprop or Adagrad (decay and eps are found
    by probing the optimizer once), non-finite entries. Nothing is computed on the host; it works under jit, scan and
    vmap (which measures at every step and drops what is not asked for).

    Args:
        optimizer: an optax transformation, or an `ll.Optimizer` with all its arguments decided.
        every: steps between measurements of gradient, update and second moment, a power of two: NaN in the steps
            between. 1 measures them all, which small networks feel.
        window: the last so many steps are all kept.
        history: at most so many evenly spaced steps are kept from the first on; a power of two.
        second_moment: function of the advanced inner state that returns a `SecondMoment`, for an optimizer whose state
            is not known. Without one, and where none is found, the records of v are left out.

    Raises:
        ValueError: for something that is no optimizer, a window below 2, an interval that is no power of two, or a
            history that is none from 16 on; (when traced) for a value that is no scalar.
    """
    inner = _transformation(optimizer)
    for name, value, least in (("every", every, 1), ("window", window, 2), ("history", history, 16)):
        check(name, value, count(least, 2**24))
        if name != "window" and value & (value - 1):
            raise ValueError(f"{name}: expected a power of two, got {value}; the next is {1 << value.bit_length()}")
    read = moment_reader(inner) if second_moment is None else _given(second_moment)

    def init(params: Any) -> MonitorState:
        return MonitorState(
            inner.init(params),
            jnp.asarray([0, -1, -1, 0, history], jnp.int32),
            jnp.asarray([jnp.nan, jnp.inf, -jnp.inf], jnp.float32),
            jnp.full((history + 1 + window, len(RECORDS)), jnp.nan, jnp.float32),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, MonitorState]:
        loss = _checked_loss(extra.get("value"))
        new_updates, inner_state = inner.update(updates, state.inner, params, **extra)
        step = state.counters[0]

        def measured(barrier: Callable[[Any], Any]) -> jax.Array:
            value, floor = (None, 0.0) if read is None else read(inner_state) or (None, 0.0)
            gradient, taken, second = barrier((updates, new_updates, value))
            return _measure(gradient, taken, second, floor)

        row = _at_every(every, step, measured)
        counters, levels = _count(state.counters, state.levels, loss, row[-1])
        row = row.at[0].set(jnp.nan if loss is None else loss)
        records = lax.dynamic_update_index_in_dim(state.records, row, _row_of(step, history), 0)
        records = lax.dynamic_update_index_in_dim(records, row, history + 1 + step % window, 0)
        return new_updates, MonitorState(inner_state, counters, levels, records)

    return optax.GradientTransformationExtraArgs(init, update)


@expects(dims=optional(several(TEXT, 0)))
def monitored(opt_state: Any, part: str = "all", dims: tuple[str, ...] | None = None) -> xr.Dataset:
    """Read what `monitor` has kept, in the form of one run of `ll.run`: "loss" and the rest over "step".

    Args:
        opt_state: state of a monitored optimizer, or anything that holds one (a chain's state, flax's TrainState).
        part: "recent" (every step of the window), "history" (evenly spaced from the first step on), or "all".
        dims: names of leading axes, for states of many runs at once (vmap). Default: "run" for one axis.

    Returns:
        Dataset over "step": those of `RECORDS` that were measured, `status`, and figures over every step
        (`first_bad_step`, `first_rise_step`, `num_rises`, `peak_loss`, `steps_done`) as in `ll.run`. Rises are of the
        loss that was passed: minibatch losses rise by noise. The attribute `every` is the spacing of the history.

    Raises:
        ValueError: where there is no monitored state, or several, or the axes do not fit.
    """
    if part not in PARTS:
        raise ValueError(f"part: expected one of {', '.join(PARTS)}, got {part!r}")
    state = _find(opt_state)
    counters, levels, records = (np.asarray(leaf) for leaf in state[1:])
    lead = counters.shape[:-1]
    names = tuple(dims) if dims is not None else ("run",)[: len(lead)]
    if len(names) != len(lead):
        raise ValueError(f"dims: expected {len(lead)} names for leading axes of shape {lead}, got {names}")
    num_steps, rows = (int(counters[..., place].max(initial=0)) for place in (0, len(COUNTERS)))
    if np.any(counters[..., 0] != num_steps):
        raise ValueError("opt_state: its runs have taken different numbers of steps; read them one by one")
    recent, history = records[..., rows + 1 :, :], records[..., :rows, :]
    kept, places = _history_steps(num_steps, rows)
    last = np.arange(max(0, num_steps - recent.shape[-2]), num_steps)
    found = {"recent": (last, recent[..., last % recent.shape[-2], :]), "history": (kept, history[..., places, :])}
    if part == "all":
        earlier = kept < (last[0] if len(last) else 0)
        steps = np.concatenate([kept[earlier], last])
        values = np.concatenate([found["history"][1][..., earlier, :], found["recent"][1]], axis=-2)
    else:
        steps, values = found[part]
    return _dataset(steps, values, counters, levels, names, _stride(num_steps, rows))


def _dataset(
    steps: np.ndarray, values: np.ndarray, counters: np.ndarray, levels: np.ndarray, names: tuple[str, ...], every: int
) -> xr.Dataset:
    measured = {name for place, name in enumerate(RECORDS) if not np.all(np.isnan(values[..., place]))}
    has_loss = not np.all(np.isnan(levels[..., 0])) or "loss" in measured
    variables: dict[str, Any] = {
        name: ((*names, "step"), values[..., place], {"units": units, "description": text})
        for place, (name, (units, text)) in enumerate(RECORDS.items())
        if name in measured or (name == "loss" and has_loss)
    }
    summary: dict[str, Any] = dict(zip(COUNTERS, np.moveaxis(counters, -1, 0)[: len(COUNTERS)], strict=True))
    if has_loss:
        summary["peak_loss"] = levels[..., LEVELS.index("peak_loss")]
    else:
        del summary["first_rise_step"], summary["num_rises"]
    for name, figure in summary.items():
        variables[name] = (names, figure, {"units": SUMMARY[name][0], "description": SUMMARY[name][1]})
    bad = summary["first_bad_step"] >= 0
    if "loss" in variables and not bad.any() and np.isnan(variables["loss"][1]).any():
        variables["loss"][2][NOT_PASSED] = "NaN at steps to which no value was passed"
    status = np.where(bad, Outcome.diverged, Outcome.finished).astype(np.int8)
    variables["status"] = (names, status, Outcome.attributes())
    about = {"units": "step", "description": "optimizer steps taken before the record"}
    return xr.Dataset(variables, {"step": ("step", steps, about)}, {"title": "monitored training", "every": every})


def _transformation(optimizer: Any) -> optax.GradientTransformationExtraArgs:
    if isinstance(optimizer, optax.MultiSteps):
        update: Any = optimizer.update
        return optax.GradientTransformationExtraArgs(optimizer.init, update)
    made = as_optimizer(optimizer)
    if missing := made.missing({}):
        raise ValueError(
            f"optimizer: expected a transformation such as optax.{made.name}(1e-3), got the factory {made.name} "
            f"without its {', '.join(missing)}; call it"
        )
    built = made.build()
    if not isinstance(built, optax.GradientTransformation):
        raise ValueError(f"optimizer: expected an optax transformation, got {type(built).__name__}")
    return built


def _given(second_moment: FindSecondMoment) -> Any:
    def read(opt_state: Any) -> tuple[Any, Any]:
        found = second_moment(opt_state)
        return found.value, found.floor

    return read


def _checked_loss(value: Any) -> jax.Array | None:
    if value is None:
        return None
    if jnp.shape(value) != ():
        raise ValueError(f"value: expected the scalar loss of this step, got shape {jnp.shape(value)}")
    return jnp.asarray(value, jnp.float32)


def _at_every(every: int, step: jax.Array, measure: Callable[[Callable[[Any], Any]], jax.Array]) -> jax.Array:
    """The measurements of this step; NaN, and 0 non-finite entries, in the steps between.

    Behind a barrier, or in a branch, nothing that is measured is fused with what is trained: the bits stay the same.
    """
    if every == 1:
        return measure(lax.optimization_barrier)
    blank = jnp.asarray([*[jnp.nan] * (len(RECORDS) - 1), 0.0], jnp.float32)
    # Without operands the branch takes along what it reads, and no more.
    return lax.cond(step % every == 0, lambda: measure(lambda seen: seen), lambda: blank)


def _measure(gradient: Any, updates: Any, second: Any, floor: Any) -> jax.Array:
    """The row of one step, `Float32[record]`, but for the loss."""
    g, u = _parts(gradient), _parts(updates)
    gg, uu, gu = (_total(map(_dot, left, right)) for left, right in ((g, g), (u, u), (g, u)))
    size = max(1, sum(part.size for part in g))
    lengths = jnp.sqrt(gg) * jnp.sqrt(uu)
    excess: tuple[Any, ...] = (jnp.nan,) * 3
    if second is not None and g and jax.tree.structure(second) == jax.tree.structure(gradient):
        roots = [jnp.sqrt(part) for part in _parts(second)]
        bounds = [jnp.maximum(root, floor) for root in roots]
        ratios = [part / jnp.where(bound > 0, bound, 1) for part, bound in zip(g, bounds, strict=True)]
        below = [(root < floor).astype(jnp.float32) for root in roots]
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(ratio)) for ratio in ratios]))
        excess = (
            jnp.sqrt(_total(map(_dot, ratios, ratios)) / size),
            largest**2,
            _total(map(_dot, below, below)) / size,
        )
    num_nonfinite = _total(jnp.sum(~jnp.isfinite(part), dtype=jnp.float32) for part in g)
    cosine = gu / jnp.where(lengths > 0, lengths, 1)
    row = (jnp.nan, jnp.sqrt(gg), jnp.sqrt(uu), gu, cosine, *excess, num_nonfinite)
    return jnp.stack([jnp.asarray(value, jnp.float32) for value in row])


def _parts(tree: Any) -> list[jax.Array]:
    """Real numbers of a pytree as vectors in float32: large arrays, and all the small ones together."""
    large, small = [], []
    for leaf in jax.tree.leaves(tree):
        leaf = jnp.asarray(leaf)
        for part in [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]:
            (small if part.size < SMALL else large).append(part.astype(jnp.float32).reshape(-1))
    return [*large, jnp.concatenate(small)] if small else large


def _dot(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.vdot(left, right, precision=lax.Precision.HIGHEST)


def _total(values: Iterable[jax.Array]) -> jax.Array:
    return sum(values, jnp.zeros((), jnp.float32))


def _count(counters: jax.Array, levels: jax.Array, loss: jax.Array | None, num_nonfinite: jax.Array) -> Any:
    """Figures over every step, by the rules of `ll.run`: a rise is one by more than rounding, or a loss not finite."""
    step, first_bad, first_rise, num_rises, rows = counters
    bad = num_nonfinite > 0
    rose = jnp.zeros((), bool)
    if loss is not None:
        first, last, peak = levels
        first = jnp.where(step == 0, loss, first)
        size = jnp.where(jnp.isfinite(last), jnp.abs(last), 0) + jnp.abs(first)
        rose = ~(loss <= last + ROUNDING * jnp.finfo(jnp.float32).eps * size) & ~jnp.isnan(last)
        bad |= ~jnp.isfinite(loss)
        peak = jnp.where(jnp.isfinite(loss), jnp.maximum(peak, loss), peak)
        levels = jnp.stack([first, loss, peak])
    first_bad = jnp.where(bad & (first_bad < 0), step, first_bad)
    first_rise = jnp.where(rose & (first_rise < 0), step, first_rise)
    return jnp.stack([step + 1, first_bad, first_rise, num_rises + rose, rows]).astype(jnp.int32), levels


def _row_of(step: Any, rows: int, xp: Any = jnp) -> Any:
    """Row of a step in a history of 2^n rows, of which no row is ever moved; the last row is for steps not kept.

    While t < 2^n every step is kept, in row t. After, while t < 2^(n + k), those that 2^k divides: with t = 2^(k-1)
    (2^n + 2 u), u in [0, 2^(n-1)), the n bits of 2 u + 1 rotated left by k - 1. Steps that 2^(k-1) divides and 2^k does
    not have bit k - 1 set, so the new ones take the place of exactly those.
    """
    bits = rows.bit_length() - 1
    level = sum((step >= rows << k) * 1 for k in range(31 - bits))
    odd = ((step >> xp.maximum(level - 1, 0)) & (rows - 1)) | 1
    turn = (level - 1) % bits
    turned = ((odd << turn) | (odd >> (bits - turn))) & (rows - 1)
    place = xp.where(level == 0, step, turned)
    return xp.where(step & ((1 << level) - 1) == 0, place, rows)


def _stride(num_steps: int, rows: int) -> int:
    """Spacing of the steps that a history has kept all of."""
    return 1 << max(0, (num_steps - 1).bit_length() - (rows.bit_length() - 1)) if num_steps else 1


def _history_steps(num_steps: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spaced steps in a history, and their rows: `Int["step"]` each."""
    steps = np.arange(0, num_steps, _stride(num_steps, rows))
    return steps, _row_of(steps, rows, np)


def _find(opt_state: Any) -> MonitorState:
    def is_monitor(node: Any) -> bool:
        return isinstance(node, MonitorState)

    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_monitor) if is_monitor(node)]
    if len(found) != 1:
        raise ValueError(
            f"opt_state: expected the state of one monitored optimizer, tx = ll.monitor(optax.adam(1e-3)), found "
            f"{len(found) or 'none'}"
        )
    return found[0]
