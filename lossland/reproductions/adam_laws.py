"""Adam late in training, on one parameter: every law against the optimizer itself in float64, over many settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lossland import figures
from lossland.figures.adaptive import adam_laws_figure
from lossland.reproductions.adam_edges import breathing, cycle_grid, flat_minima, floors, multipliers, noise_edges
from lossland.reproductions.adam_rounds import noisy_lags, onsets, relaxations, rounds, spike_boundaries
from lossland.reproductions.one_parameter_runs import LONG_AGO, Pair, columns, joined, relative
from lossland.stability import adaptive


def measure(folder: Path, fast: bool, table: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the figure's paths."""
    numbers: dict[str, Any] = {}
    pairs: dict[str, Pair] = {}
    parts = (onsets, rounds, noisy_lags, relaxations, floors, multipliers, breathing, noise_edges, flat_minima, updates)
    for part in parts:
        found, more = part(fast)
        numbers |= found
        pairs |= more
    boundary, found = spike_boundaries(fast)
    numbers |= found
    everything = ((law, *pair) for law, both in pairs.items() for pair in zip(*both, strict=True))
    lines = [f'"{law}",{predicted:.9g},{measured:.9g}' for law, predicted, measured in everything]
    (folder / "adam_laws.csv").write_text("\n".join(["law,predicted,measured", *lines]) + "\n", encoding="utf-8")
    paths = figures.save(adam_laws_figure(pairs, boundary, cycle_grid(fast)), folder / "adam_laws")
    return {name: value for name, value in numbers.items() if name in table}, paths


def updates_of(gradients: np.ndarray, b1: float, b2: float, factory: Any = optax.adam) -> np.ndarray:
    """Updates that gradients cause, per learning rate and without the minus sign, bias corrections settled."""
    optimizer = factory(1.0, b1=b1, b2=b2, eps=0.0)
    with jax.enable_x64(True):
        opt_state: Any = optimizer.init(jnp.zeros(()))
        state, *rest = opt_state
        state = state._replace(count=jnp.int32(LONG_AGO))

        def step(opt_state: Any, gradient: jax.Array) -> Any:
            update, opt_state = optimizer.update(gradient, opt_state, jnp.zeros(()))
            return opt_state, -update

        return np.asarray(jax.jit(lambda s, g: jax.lax.scan(step, s, g))((state, *rest), jnp.asarray(gradients))[1])


def updates(fast: bool) -> tuple[dict[str, Any], dict[str, Pair]]:
    """Sizes of updates: after a silence, at most, under noise, and in a cycle of gradients."""
    jumps, bounds, spreads, drifts = [], [], [], []
    steps = np.arange(1, 101)
    for b1, b2 in ((0.9, 0.999), (0.9, 0.99), (0.95, 0.99), (0.5, 0.9), (0.0, 0.99)):
        jumps.append((adaptive.jump_response(steps, b1, b2), updates_of(np.ones(100), b1, b2)))
        if b1:
            length = int(300 / np.log(b2 / b1))  # grows by e^300
            growing = (b2 / b1) ** np.arange(min(length, 4000)) * 1e-140
            bounds.append((float(adaptive.update_bound(b1, b2)), float(updates_of(growing, b1, b2)[-1])))
    generator = np.random.default_rng(0)
    for b1 in (0.5, 0.9, 0.95):
        sizes = updates_of(generator.standard_normal(50_000 if fast else 400_000), b1, 0.9995)[10_000:]
        spreads.append((float(adaptive.update_rms(b1)), float(np.sqrt(np.mean(sizes**2)))))
    for size, b2 in ((3.0, 0.1), (3.0, 0.9), (3.0, 0.999), (10.0, 1 / 101), (5.0, 0.5)):
        for b1 in (0.0, 0.5):
            cycle = np.array([size, -1.0, -1.0])
            path = updates_of(np.tile(cycle, 7000), b1, b2)
            drifts.append((float(adaptive.periodic_drift(cycle, b1, b2)), float(path[-3000:].mean())))
    jump = joined(jumps)
    bound, spread, drift = (columns(kind) for kind in (bounds, spreads, drifts))
    peak = updates_of(np.ones(100), 0.9, 0.999)
    numbers = {
        "jump_response_largest_error": relative(jump),
        "jump_response_peak": float(peak.max()),
        "jump_response_peak_step": int(peak.argmax()) + 1,
        "update_bound_largest_error": relative(bound),
        "noise_update_rms_largest_error": relative(spread),
        "periodic_drift_largest_error": float(np.max(np.abs(drift[0] - drift[1]))),
        "periodic_drift_of_the_counterexample": float(drift[1][0]),
    }
    return numbers, {"jump response": (jump[0][::9], jump[1][::9]), "largest update": bound}
