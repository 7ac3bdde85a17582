"""Factorisations over many lanes: in a process of its own, as a deadlock would take this one too."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossland as ll
from lossland.curvature import factorisations

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np, optax
import lossland as ll
from lossland.sweeps.curvature_probes import top_eigenvalues, trace

def problem(size):
    def init(key):
        draw = jax.nn.initializers.orthogonal()
        return [draw(one, (size, size)) for one in jax.random.split(key, 4)]

    def loss(params, batch):
        for weight in params:
            batch = batch @ weight
        return jnp.mean((batch - jnp.arange(size)) ** 2)

    return ll.Problem(init, loss, np.arange(2.0 * size).reshape(2, size))

orthogonal = problem(32)
sweep = ll.Sweep({"learning_rate": [1e-3]}, 128, 1, 1, lane_width=16)
for _ in range(10):  # without care, nine times in ten the first call never ends
    ll.run(orthogonal, optax.sgd, sweep, progress=False)
runs = ll.run(problem(2), optax.sgd, sweep, [top_eigenvalues(2), trace(8)], progress=False)
assert runs["top_eigenvalues_converged"].all()
print("ended")
"""


@pytest.mark.long
def test_orthogonal_starts_of_many_lanes_do_not_wait_for_each_other():
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=180, cwd=Path(__file__).parents[2]
    )
    assert found.stdout.strip() == "ended", found.stderr


def determinant(problem, optimizer, state):
    return {"log_volume": jnp.linalg.slogdet(state.params + 10 * jnp.eye(3))[1]}


def test_factorisations_of_many_lanes_in_a_probe_are_refused_where_they_can_deadlock(monkeypatch):
    problem = ll.Problem(
        lambda key: jax.random.normal(key, (3, 3)),
        lambda params, batch: jnp.mean((batch @ params) ** 2),
        np.ones((2, 3)),
    )
    wide, narrow = (ll.Sweep({"learning_rate": [0.01]}, 6, 2, 1, lane_width=width) for width in (4, 1))
    monkeypatch.setattr(factorisations, "FIXED_IN", (99, 0))
    with pytest.raises(ValueError, match=r"lane_width: .*factorises matrices \(lu\).*4 runs at a time.*lane_width=1"):
        ll.run(problem, optax.sgd, wide, [determinant])
    runs = ll.run(problem, optax.sgd, narrow, [determinant, "loss"])
    assert np.isfinite(runs["log_volume"]).all()
