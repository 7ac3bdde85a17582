"""The growth of the second moment of minibatch training, measured by simulation of the optimizer itself.

E |z|^2 is a mean over rare runs: near the mean-square threshold the typical run decays, the few that meet batch after
batch of high curvature carry the mean, and an average over independent runs misses them however many there are. So the
runs are selected as they go: at every step a run weighs what its second moment has grown by, and runs are drawn anew in
proportion to their weights. The product of the mean weights is an unbiased estimate of E |z_T|^2 whose variance grows
with T only linearly in relative terms.

Source: Del Moral 2004, *Feynman-Kac Formulae* (particle approximation, unbiasedness); Grassberger 2002 ("go with the
winners"); Kitagawa 1996 (systematic resampling).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from lossland.optimizers import as_optimizer
from lossland.problems.problem import Problem, cast_floating
from lossland.stability.minibatch import BatchSampling, noise_factor

T_QUANTILE = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 12: 2.201, 16: 2.131}
"""Number of repetitions -> 97.5 % quantile of Student's t with one degree of freedom less."""


class MeasuredGrowth(NamedTuple):
    """Growth of the second moment at every learning rate, log E |z_T|^2 per step after a burn-in.

    log_growth: `Float[ndarray, "rate repetition"]`, independent repetitions; learning_rates: `Float[ndarray, "rate"]`.
    """

    learning_rates: np.ndarray
    log_growth: np.ndarray

    def critical_learning_rate(self) -> tuple[float, float, float]:
        """Return where the log growth last crosses zero, interpolated, with its 95 % interval: (estimate, low, high).

        Mean and Student interval over the repetitions of the logarithm of the rate. The growth has a kink where another
        mode takes over, so only the two rates beside the crossing count. NaN where a repetition does not cross zero on
        the grid.
        """
        roots = [_crossing(np.log(self.learning_rates), column) for column in self.log_growth.T]
        mean, half = student_interval(np.array(roots))
        return float(np.exp(mean)), float(np.exp(mean - half)), float(np.exp(mean + half))


def student_interval(values: np.ndarray) -> tuple[float, float]:
    """Return mean and half width of the 95 % Student interval of independent values.

    Raises ValueError for a number of values without a tabulated quantile.
    """
    if len(values) not in T_QUANTILE:
        raise ValueError(f"repetitions: expected one of {', '.join(map(str, T_QUANTILE))}, got {len(values)}")
    return float(np.mean(values)), float(T_QUANTILE[len(values)] * np.std(values, ddof=1) / np.sqrt(len(values)))


def second_moment_growth(
    problem: Problem,
    optimizer: Any,
    minimum: Any,
    learning_rates: Any,
    *,
    batch_size: int,
    sampling: BatchSampling = "without_replacement",
    num_runs: int = 1024,
    num_steps: int = 300,
    burn_in: int = 100,
    repetitions: int = 8,
    seed: int = 0,
) -> MeasuredGrowth:
    """Measure the growth of E |z|^2 per step around a minimum that fits every example, for a linear optimizer.

    z = (parameters - minimum, latest update). `num_runs` runs at every learning rate and repetition take real steps of
    the optimizer on real batches, drawn independently at every step. After each step runs are selected as the module
    says, and scaled back to norm 1, which commutes with steps that are linear in z: so the loss has to be quadratic in
    the parameters, and `optimizer` (a factory with the argument `learning_rate`, the others decided) linear in the
    gradient. Both are checked, at the start.

    Raises ValueError where they are not, or examples have a gradient at `minimum`.
    """
    noise_factor(problem.num_examples, batch_size, sampling)
    if not 0 <= burn_in < num_steps:
        raise ValueError(f"burn_in: expected fewer than num_steps = {num_steps}, got {burn_in}")
    student_interval(np.zeros(repetitions))
    optimizer = as_optimizer(optimizer)
    minimum = cast_floating(minimum, jnp.float32)
    _check_linear(problem, optimizer, minimum)
    rates = np.asarray(learning_rates, np.float32)
    keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(jnp.arange(repetitions))
    replacement = sampling == "with_replacement"
    program = _simulation(problem, optimizer, batch_size, replacement, num_runs, num_steps, burn_in)
    # The same keys at every rate: differences between rates are then those of the rates.
    tasks = [(minimum, rate, key) for rate in rates for key in keys]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda task: float(program(*task)), tasks))
    return MeasuredGrowth(rates.astype(np.float64), np.reshape(found, (len(rates), repetitions)))


def measured_critical_learning_rate(
    problem: Problem,
    optimizer: Any,
    minimum: Any,
    bracket: tuple[float, float],
    *,
    num_rates: int = 7,
    width: float = 1.05,
    repetitions: int = 8,
    **options: Any,
) -> MeasuredGrowth:
    """Search the learning rate at which E |z|^2 neither grows nor decays, without knowing where it is.

    Halves `bracket` by the sign of the growth, two repetitions each, to a factor `width`; then measures `num_rates`
    rates across that bracket and half its width on either side, or more where a repetition does not cross zero there.
    `options` are those of `second_moment_growth`. Returns
    the last measurement; its `critical_learning_rate()` has the interval.

    Raises ValueError where the growth does not change sign in the bracket.
    """
    low, high = bracket

    def growth(rates: list[float], repetitions: int) -> MeasuredGrowth:
        return second_moment_growth(problem, optimizer, minimum, rates, repetitions=repetitions, **options)

    ends = [float(growth([rate], 2).log_growth.mean()) for rate in (low, high)]
    if not ends[0] < 0 <= ends[1]:
        raise ValueError(
            f"bracket: the second moment does not change from decay to growth between {low:.4g} and {high:.4g} (log "
            f"growth per step {ends[0]:.3g} and {ends[1]:.3g}); widen it"
        )
    while high / low > width:
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if growth([middle], 2).log_growth.mean() < 0 else (low, middle)
    margin = np.sqrt(high / low)
    for _ in range(4):  # the last signs may have been noise: widen until every repetition crosses zero
        found = growth(list(np.geomspace(low / margin, high * margin, num_rates)), repetitions)
        if np.isfinite(found.critical_learning_rate()[0]):
            break
        margin = margin**2
    return found


def _crossing(places: np.ndarray, values: np.ndarray) -> float:
    """Interpolate where values last change from negative to positive; NaN where they do not."""
    falling = np.flatnonzero(values < 0)
    if len(falling) == 0 or falling[-1] == len(values) - 1:
        return float("nan")
    left = falling[-1]
    share = values[left] / (values[left] - values[left + 1])
    return float(places[left] + share * (places[left + 1] - places[left]))


@functools.lru_cache(maxsize=16)
def _simulation(
    problem: Problem,
    optimizer: Any,
    batch_size: int,
    replacement: bool,
    num_runs: int,
    num_steps: int,
    burn_in: int,
) -> Callable[[Any, Any, jax.Array], jax.Array]:
    """Compile (minimum, learning rate, key) -> log growth per step."""
    num_examples = problem.num_examples

    def draw(key: jax.Array, order: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draw a batch for every run; `order` is a permutation per run, shuffled a little further at each step."""
        if replacement:
            return jax.random.randint(key, (num_runs, batch_size), 0, num_examples), order
        if batch_size == num_examples:
            return order, order
        # The first places of Fisher and Yates' shuffle: a uniform subset, whatever the order before.
        partners = jax.random.randint(key, (num_runs, batch_size), jnp.arange(batch_size), num_examples)

        def swap(order: jax.Array, partners: jax.Array) -> jax.Array:
            def one(place: jax.Array, order: jax.Array) -> jax.Array:
                partner = partners[place]
                here, there = order[place], order[partner]
                return order.at[place].set(there).at[partner].set(here)

            return lax.fori_loop(0, batch_size, one, order)

        order = jax.vmap(swap)(order, partners)
        return order[:, :batch_size], order

    def grow(minimum: Any, rate: jax.Array, key: jax.Array) -> jax.Array:
        start, unravel = ravel_pytree(minimum)
        data = cast_floating(problem.data, jnp.float32)
        transformation = optimizer.build(learning_rate=rate)

        def gradient(params: jax.Array, chosen: jax.Array) -> jax.Array:
            batch = jax.tree.map(lambda leaf: leaf[chosen], data)
            return jax.grad(lambda params: problem.loss(unravel(params), batch))(params)

        def step(carry: Any, now: jax.Array) -> Any:
            offset, opt_state, order = carry
            draw_key, select_key = jax.random.split(jax.random.fold_in(key, now))
            batches, order = draw(draw_key, order)
            slopes = jax.vmap(gradient)(start + offset, batches)
            updates, opt_state = jax.vmap(transformation.update)(slopes, opt_state, start + offset)
            offset = offset + updates
            weights = jnp.sum(offset**2, 1) + jnp.sum(updates**2, 1)
            # Systematic resampling: the grid of a single uniform number through the cumulated weights.
            total = jnp.cumsum(weights)
            places = (jnp.arange(num_runs) + jax.random.uniform(select_key)) / num_runs * total[-1]
            chosen = jnp.minimum(jnp.searchsorted(total, places), num_runs - 1)
            shrink = lax.rsqrt(jnp.maximum(weights[chosen], jnp.finfo(weights.dtype).tiny))

            def select(leaf: jax.Array) -> jax.Array:
                if not jnp.issubdtype(leaf.dtype, jnp.floating):
                    return leaf
                return leaf[chosen] * shrink.reshape(-1, *[1] * (leaf.ndim - 1))

            return (*jax.tree.map(select, (offset, opt_state)), order), jnp.log(total[-1] / num_runs)

        offset = jax.random.normal(jax.random.fold_in(key, num_steps), (num_runs, start.size))
        offset = offset / jnp.linalg.norm(offset, axis=1, keepdims=True)
        opt_state = jax.vmap(transformation.init)(offset)
        order = jnp.broadcast_to(jnp.arange(num_examples), (num_runs, num_examples))
        _, increments = lax.scan(step, (offset, opt_state, order), jnp.arange(num_steps))
        # What `increments` holds is log(mean |z_new|^2 / |z|^2), |z| = 1 but for the first step.
        return jnp.mean(increments[burn_in:])

    return jax.jit(grow)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _responses(problem: Problem, optimizer: Any, minimum: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Largest gradient of an example at the minimum; two steps from an offset, and from twice the offset."""
    start, unravel = ravel_pytree(minimum)
    data = cast_floating(problem.data, jnp.float32)
    transformation = optimizer.build(learning_rate=jnp.float32(0.5))

    def slope(flat: jax.Array, batch: Any) -> jax.Array:
        return jax.grad(lambda flat: problem.loss(unravel(flat), batch))(flat)

    def single(example: Any) -> jax.Array:
        return jnp.linalg.norm(slope(start, jax.tree.map(lambda leaf: leaf[None], example)))

    def twice(size: jax.Array) -> jax.Array:
        offset, opt_state = size * jnp.ones_like(start), transformation.init(start)
        for _ in range(2):
            updates, opt_state = transformation.update(slope(start + offset, data), opt_state, start + offset)
            offset = offset + updates
        return offset

    return jnp.max(lax.map(single, data)), twice(jnp.float32(1.0)), twice(jnp.float32(2.0))


def _check_linear(problem: Problem, optimizer: Any, minimum: Any) -> None:
    left_over, once, double = (np.asarray(value) for value in _responses(problem, optimizer, minimum))
    size = float(np.abs(once).max())
    if not left_over <= 1e-3 * size:
        raise ValueError(
            f"minimum: expected parameters that fit every example, got one with a gradient of norm {left_over:.3g}; "
            "noise that stays at the minimum does not decay, so its second moment says nothing about stability"
        )
    if not np.allclose(double, 2 * once, rtol=0, atol=1e-3 * size):
        raise ValueError(
            f"optimizer {optimizer.name} on problem {problem.name}: expected steps that are linear in the distance to "
            "the minimum; use a quadratic loss and an optimizer without second moments, clipping or weight decay "
            "towards another point"
        )
