"""What explanation needs from a training loop of one's own: an optax transformation that watches the one it wraps."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax import lax

from lossland.diagnosis.built_moments import moment_reader
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
LEVELS = ("first_loss", "last_loss", "peak_loss")
PARTS = ("all", "recent", "history")
LANES = (128, 64, 32, 16, 8)
LARGE = 2048
"""Arrays of more elements are summed in lanes, which a CPU does at once."""


class MonitorState(NamedTuple):
    """State of a monitored optimizer.

    inner: state of the optimizer itself; counters: `Int32[4]`, `COUNTERS`; levels: `Float32[3]`, `LEVELS`; recent:
    `Float32[window, record]`, step t in row t mod window; history: `Float32[rows + 1, record]`, evenly spaced steps from
    the first on in rows that `_row_of` tells, the last row for what is not kept.
    """

    inner: Any
    counters: jax.Array
    levels: jax.Array
    recent: jax.Array
    history: jax.Array


def monitor(
    optimizer: Any, *, window: int = 300, history: int = 512, second_moment: FindSecondMoment | None = None
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer of your own loop so that its state keeps what explanation needs; updates stay the same bits.

    Use it in place of the optimizer, pass the loss, and read it when you like:

        tx = ll.monitor(optax.adam(1e-3))
        updates, opt_state = tx.update(gradient, opt_state, params, value=loss)
        print(ll.explain_history(ll.monitored(opt_state, "history")["loss"]))

    Every step it keeps `RECORDS`: g.u, |g|, |u|, their cosine, how far g^2 exceeds the second moment v of Adam, AMSGrad,
    RMSprop or Adagrad (decay and eps are found by probing the optimizer once), non-finite entries. Nothing is computed
    on the host; it works under jit, scan and vmap.

    Args:
        optimizer: an optax transformation, or an `ll.Optimizer` with all its arguments decided.
        window: the last so many steps are all kept.
        history: at most so many evenly spaced steps are kept from the first on; a power of two.
        second_moment: function of the advanced inner state that returns a `SecondMoment`, for an optimizer whose state
            is not known. Without one, and where none is found, the records of v are left out.

    Raises:
        ValueError: for something that is no optimizer, a window below 2 or a history that is no power of two from 16 on;
            (when traced) for a value that is no scalar.
    """
    inner = _transformation(optimizer)
    for name, value, least in (("window", window, 2), ("history", history, 16)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
    if history & (history - 1):
        raise ValueError(f"history: expected a power of two, got {history}; the next is {1 << history.bit_length()}")
    read = moment_reader(inner) if second_moment is None else _given(second_moment)

    def init(params: Any) -> MonitorState:
        blank = jnp.full((window, len(RECORDS)), jnp.nan, jnp.float32)
        return MonitorState(
            inner.init(params),
            jnp.asarray([0, -1, -1, 0], jnp.int32),
            jnp.asarray([jnp.nan, jnp.inf, -jnp.inf], jnp.float32),
            blank,
            jnp.full((history + 1, len(RECORDS)), jnp.nan, jnp.float32),
        )

    def update(updates: Any, state: MonitorState, params: Any = None, **extra: Any) -> tuple[Any, MonitorState]:
        given = extra.get("value") is not None
        loss = _checked_loss(extra.get("value"))
        new_updates, inner_state = inner.update(updates, state.inner, params, **extra)
        moment = None if read is None else read(inner_state)
        # Behind a barrier nothing that is measured is fused with what is trained: the bits stay those of the optimizer.
        second, floor = (None, 0.0) if moment is None else moment
        seen = lax.optimization_barrier((updates, new_updates, second))
        row, num_nonfinite = _measure(loss, *seen, floor)
        counters, levels = _count(state.counters, state.levels, loss, given, num_nonfinite)
        step = state.counters[0]
        recent = lax.dynamic_update_index_in_dim(state.recent, row, step % window, 0)
        kept = lax.dynamic_update_index_in_dim(state.history, row, _row_of(step, history), 0)
        return new_updates, MonitorState(inner_state, counters, levels, recent, kept)

    return optax.GradientTransformationExtraArgs(init, update)


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
    counters, levels, recent, history = (np.asarray(leaf) for leaf in state[1:])
    lead = counters.shape[:-1]
    names = tuple(dims) if dims is not None else ("run",)[: len(lead)]
    if len(names) != len(lead):
        raise ValueError(f"dims: expected {len(lead)} names for leading axes of shape {lead}, got {names}")
    num_steps = int(counters[..., 0].max(initial=0))
    if np.any(counters[..., 0] != num_steps):
        raise ValueError("opt_state: its runs have taken different numbers of steps; read them one by one")
    rows = history.shape[-2] - 1
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
    summary = dict(zip(COUNTERS, np.moveaxis(counters, -1, 0), strict=True))
    if has_loss:
        summary["peak_loss"] = levels[..., LEVELS.index("peak_loss")]
    else:
        del summary["first_rise_step"], summary["num_rises"]
    for name, figure in summary.items():
        variables[name] = (names, figure, {"units": SUMMARY[name][0], "description": SUMMARY[name][1]})
    bad = summary["first_bad_step"] >= 0
    status = np.where(bad, Outcome.diverged, Outcome.finished).astype(np.int8)
    variables["status"] = (names, status, Outcome.attributes())
    about = {"units": "step", "description": "optimizer steps taken before the record"}
    return xr.Dataset(variables, {"step": ("step", steps, about)}, {"title": "monitored training", "every": every})


def _transformation(optimizer: Any) -> optax.GradientTransformationExtraArgs:
    made = as_optimizer(optimizer)
    if missing := made.missing({}):
        raise ValueError(
            f"optimizer: expected a transformation such as optax.{made.name}(1e-3), got the factory {made.name} without "
            f"its {', '.join(missing)}; call it"
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


def _checked_loss(value: Any) -> jax.Array:
    if value is None:
        return jnp.full((), jnp.nan, jnp.float32)
    if jnp.shape(value) != ():
        raise ValueError(f"value: expected the scalar loss of this step, got shape {jnp.shape(value)}")
    return jnp.asarray(value, jnp.float32)


def _measure(loss: jax.Array, gradient: Any, updates: Any, second: Any, floor: Any) -> Any:
    """The row of one step, `Float32[record]`, and the number of non-finite entries."""
    g, u = _leaves(gradient), _leaves(updates)
    gg, uu, gu = (
        sum((jnp.sum(a * b) for a, b in zip(left, right, strict=True)), jnp.zeros(()))
        for left, right in ((g, g), (u, u), (g, u))
    )
    size = max(1, sum(leaf.size for leaf in g))

    def count_nonfinite() -> jax.Array:
        return sum((jnp.sum(~jnp.isfinite(leaf), dtype=jnp.float32) for leaf in g), jnp.zeros(()))

    # A finite sum of squares has no other terms.
    num_nonfinite = lax.cond(jnp.isfinite(gg), lambda: jnp.zeros(()), count_nonfinite)
    lengths = jnp.sqrt(gg) * jnp.sqrt(uu)
    excess: tuple[Any, ...] = (jnp.nan,) * 3
    if second is not None and jax.tree.structure(second) == jax.tree.structure(gradient):
        roots = [jnp.sqrt(leaf) for leaf in _leaves(second)]
        bounds = [jnp.maximum(root, floor) for root in roots]
        shares = [(leaf / jnp.where(bound > 0, bound, 1)) ** 2 for leaf, bound in zip(g, bounds, strict=True)]
        total, below = (
            sum((jnp.sum(leaf, dtype=jnp.float32) for leaf in leaves), jnp.zeros(()))
            for leaves in (shares, [root < floor for root in roots])
        )
        largest = jnp.max(jnp.stack([jnp.max(leaf) for leaf in shares]))
        excess = (jnp.sqrt(total / size), largest, below / size)
    row = (
        loss,
        jnp.sqrt(gg),
        jnp.sqrt(uu),
        gu,
        gu / jnp.where(lengths > 0, lengths, 1),
        *excess,
        num_nonfinite,
    )
    return jnp.stack([jnp.asarray(value, jnp.float32) for value in row]), num_nonfinite


def _leaves(tree: Any) -> list[jax.Array]:
    """Real numbers of a pytree in float32, large arrays as rows of lanes: `Float32["row lane"]`."""
    found = []
    for leaf in jax.tree.leaves(tree):
        leaf = jnp.asarray(leaf)
        parts = [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]
        for part in parts:
            part = part.astype(jnp.float32)
            lanes = next((n for n in LANES if part.size > LARGE and part.size % n == 0), None)
            found.append(part.reshape(-1, lanes) if lanes else part.reshape(-1))
    return found


def _count(counters: jax.Array, levels: jax.Array, loss: jax.Array, given: bool, num_nonfinite: jax.Array) -> Any:
    """Figures over every step, by the rules of `ll.run`: a rise is one by more than rounding, or a loss not finite."""
    step, first_bad, first_rise, num_rises = counters
    first, last, peak = levels
    first = jnp.where(step == 0, loss, first)
    size = jnp.where(jnp.isfinite(last), jnp.abs(last), 0) + jnp.abs(first)
    rose = given & ~(loss <= last + ROUNDING * jnp.finfo(jnp.float32).eps * size) & ~jnp.isnan(last)
    bad = (given & ~jnp.isfinite(loss)) | (num_nonfinite > 0)
    counters = jnp.stack(
        [
            step + 1,
            jnp.where(bad & (first_bad < 0), step, first_bad),
            jnp.where(rose & (first_rise < 0), step, first_rise),
            num_rises + rose,
        ]
    )
    peak = jnp.where(jnp.isfinite(loss), jnp.maximum(peak, loss), peak)
    return counters.astype(jnp.int32), jnp.stack([first, loss if given else last, peak])


def _row_of(step: jax.Array, rows: int) -> jax.Array:
    """Row of a step in a history of 2^n rows, of which no row is ever moved; the last row is for steps not kept.

    While t < 2^n every step is kept, in row t. After, while t < 2^(n + k), those that 2^k divides: with t = 2^(k-1)
    (2^n + 2 u), u in [0, 2^(n-1)), the n bits of 2 u + 1 rotated left by k - 1. Steps that 2^(k-1) divides and 2^k does
    not have bit k - 1 set, so the new ones take the place of exactly those.
    """
    bits = rows.bit_length() - 1
    level = jnp.maximum(0, 32 - lax.clz(step) - bits)
    odd = ((step >> jnp.maximum(level - 1, 0)) & (rows - 1)) | 1
    turn = (level - 1) % bits
    turned = ((odd << turn) | (odd >> (bits - turn))) & (rows - 1)
    place = jnp.where(level == 0, step, turned)
    return jnp.where(step & ((1 << level) - 1) == 0, place, rows)


def _stride(num_steps: int, rows: int) -> int:
    """Spacing of the steps that a history has kept all of."""
    return 1 << max(0, (num_steps - 1).bit_length() - (rows.bit_length() - 1)) if num_steps else 1


def _history_steps(num_steps: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spaced steps in a history, and their rows: `Int["step"]` each."""
    steps = np.arange(0, num_steps, _stride(num_steps, rows))
    if not len(steps):
        return steps, steps
    with jax.ensure_compile_time_eval():
        return steps, np.asarray(jax.vmap(lambda step: _row_of(step, rows))(jnp.asarray(steps, jnp.int32)))


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
