"""A sweep's folder without training: made-up records of a small grid."""

from typing import Any

import numpy as np

from lossland.sweeps.sweep import Sweep

PER_TILE = 5
IDENTITY = {"problem": "line", "jax": "1.0", "jaxlib": "1.1"}


def sweep_of_size(rates: int = 4, momenta: int = 2, seeds: int = 3, num_steps: int = 12) -> Sweep:
    """Two axes x seeds; the default has five tiles, the last of them short."""
    axes = {"learning_rate": np.geomspace(0.01, 1, rates), "momentum": np.linspace(0, 0.9, momenta)}
    return Sweep(axes, seeds, num_steps=num_steps, every=2, lane_width=1)


def layout_of(sweep: Sweep) -> dict[str, Any]:
    """What the engine writes into the manifest."""
    steps = len(sweep.recorded_steps)

    def spec(dims: list[str], shape: list[int], dtype: str) -> dict[str, Any]:
        return {"dims": dims, "shape": shape, "dtype": dtype, "units": "1", "description": "made up"}

    rates = np.repeat(sweep.axes["learning_rate"], sweep.shape[1])
    return {
        "sweep": sweep.to_json(),
        "num_runs": sweep.num_runs,
        "owners": {name: "sgd" for name in sweep.axes},
        "variables": {
            "loss": spec(["step"], [steps], "float32"),
            "sharpness": spec(["step"], [steps], "float32"),
            "layers": spec(["step", "layer"], [steps, 3], "float64"),
            "rising": spec(["step"], [steps], "bool"),
            "first_bad_step": spec([], [], "int32"),
            "first_rise_step": spec([], [], "int32"),
            "num_rises": spec([], [], "int32"),
            "peak_loss": spec([], [], "float32"),
        },
        "threshold": {"values": (2 / rates).tolist(), "attributes": {"units": "1", "preconditioned": 0}},
        "attributes": {"title": "line trained by sgd", "sweep": sweep.to_json(), "lane_width": 1},
    }


def results_of(sweep: Sweep) -> dict[str, np.ndarray]:
    """Records of every run: name -> (run, ...)."""
    rng = np.random.default_rng(0)
    results = {}
    for name, spec in layout_of(sweep)["variables"].items():
        values = 1000 * rng.random((sweep.num_runs, *spec["shape"]))
        results[name] = (values > 500) if spec["dtype"] == "bool" else values.astype(spec["dtype"])
    results["first_bad_step"] = np.where(rng.random(sweep.num_runs) < 0.3, 5, -1).astype(np.int32)
    return results


def tile_results(sweep: Sweep, tile: int) -> dict[str, np.ndarray]:
    """Records of the runs of one tile."""
    place = sweep.tiles(PER_TILE)[tile]
    return {name: values[place] for name, values in results_of(sweep).items()}
