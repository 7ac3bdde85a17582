"""Why did my training loss go up?

Train thousands of copies of a problem at once, measure their curvature as they go, and say with numbers why a loss
rose. Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lossland import curvature, figures, landscapes, problems
    from lossland.optimizers import Optimizer, Schedule
    from lossland.problems.problem import Problem
    from lossland.stability.boundaries import Axis, Plane, boundary
    from lossland.stability.constants import catapult_window, critical_constants
    from lossland.stability.cutoffs import Cutoffs
    from lossland.stability.fractal import boundary_dimension, zoom
    from lossland.stability.maps import critical_learning_rate, stability_map
    from lossland.stability.phases import classes, cutoff_sensitivity, outcome_probability, phase_diagram
    from lossland.sweeps.execution import run
    from lossland.sweeps.lazy import load
    from lossland.sweeps.planning import plan
    from lossland.sweeps.probes import Probe
    from lossland.sweeps.sweep import Outcome, Sweep
    from lossland.thresholds import threshold

_HOME = {
    "curvature": "lossland.curvature",
    "figures": "lossland.figures",
    "landscapes": "lossland.landscapes",
    "problems": "lossland.problems",
    "Optimizer": "lossland.optimizers",
    "Outcome": "lossland.sweeps.sweep",
    "Probe": "lossland.sweeps.probes",
    "Schedule": "lossland.optimizers",
    "Problem": "lossland.problems.problem",
    "Sweep": "lossland.sweeps.sweep",
    "Axis": "lossland.stability.boundaries",
    "Plane": "lossland.stability.boundaries",
    "boundary": "lossland.stability.boundaries",
    "boundary_dimension": "lossland.stability.fractal",
    "catapult_window": "lossland.stability.constants",
    "classes": "lossland.stability.phases",
    "critical_constants": "lossland.stability.constants",
    "cutoff_sensitivity": "lossland.stability.phases",
    "Cutoffs": "lossland.stability.cutoffs",
    "outcome_probability": "lossland.stability.phases",
    "phase_diagram": "lossland.stability.phases",
    "zoom": "lossland.stability.fractal",
    "critical_learning_rate": "lossland.stability.maps",
    "plan": "lossland.sweeps.planning",
    "load": "lossland.sweeps.lazy",
    "run": "lossland.sweeps.execution",
    "stability_map": "lossland.stability.maps",
    "threshold": "lossland.thresholds",
}

__all__ = [
    "Axis",
    "Cutoffs",
    "Optimizer",
    "Outcome",
    "Plane",
    "Probe",
    "Problem",
    "Schedule",
    "Sweep",
    "boundary",
    "boundary_dimension",
    "catapult_window",
    "classes",
    "critical_constants",
    "critical_learning_rate",
    "curvature",
    "cutoff_sensitivity",
    "figures",
    "landscapes",
    "load",
    "outcome_probability",
    "phase_diagram",
    "plan",
    "problems",
    "run",
    "stability_map",
    "threshold",
    "zoom",
]


def __getattr__(name: str) -> Any:
    """Load a public name from the module it lives in (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'lossland' has no attribute {name!r}; it has {', '.join(__all__)}")
    module = importlib.import_module(_HOME[name])
    value = module if _HOME[name] == f"lossland.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
