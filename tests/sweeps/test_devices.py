"""Other numbers of devices, and another process: the same bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

import lossland as ll

SCRIPT = """
import sys
import numpy as np, optax, lossland as ll
from tests.cases import problem_named
sweep = ll.Sweep({"learning_rate": np.geomspace(1e-2, 3, 6)}, seeds=12, num_steps=30, every=10, lane_width=4)
ll.run(problem_named("cubic"), optax.sgd, sweep, ["loss", "sharpness"], sys.argv[1])
"""


def run_elsewhere(out: Path, devices: int) -> xr.Dataset:
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", SCRIPT, str(out)], check=True, env=environment, cwd=root)
    return ll.load(out)


@pytest.mark.slow
def test_bits_are_the_same_on_one_two_and_four_devices(tmp_path):
    one, two, four = (run_elsewhere(tmp_path / str(count), count) for count in (1, 2, 4))
    for other in (two, four):
        xr.testing.assert_equal(one, other)
    assert (one["status"] == ll.Outcome.diverged).any()
