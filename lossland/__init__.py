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
    from lossland.diagnosis.causes import Cause
    from lossland.diagnosis.decomposition import decompose_change
    from lossland.diagnosis.explain import explain
    from lossland.diagnosis.explanation import Explanation
    from lossland.diagnosis.gradients import check_gradient
    from lossland.diagnosis.histories import explain_history
    from lossland.diagnosis.hygiene import check_inputs, check_labels, check_precision, check_shapes
    from lossland.diagnosis.monitor import monitor, monitored
    from lossland.optimizers import Optimizer, Schedule
    from lossland.problems.problem import Problem
    from lossland.report import write_report
    from lossland.stability import adaptive
    from lossland.stability.batch_sharpness import batch_sharpness, batch_sharpness_probe
    from lossland.stability.boundaries import Axis, Plane, boundary
    from lossland.stability.constants import catapult_window, critical_constants
    from lossland.stability.cutoffs import Cutoffs
    from lossland.stability.example_curvatures import example_curvatures
    from lossland.stability.forecast import forecast
    from lossland.stability.forecast_scores import alarm_signals, forecast_errors, forecast_scores
    from lossland.stability.fractal import boundary_dimension, zoom
    from lossland.stability.interventions import intervene
    from lossland.stability.late_prediction import late_training_scores, predict_late_spikes
    from lossland.stability.late_training import late_training_map
    from lossland.stability.local import local_multiplier, multiplier_probe
    from lossland.stability.maps import critical_learning_rate, stability_map
    from lossland.stability.minibatch import mean_square_threshold
    from lossland.stability.phases import classes, cutoff_sensitivity, outcome_probability, phase_diagram
    from lossland.stability.shares import second_moment_share
    from lossland.stability.spikes import spikes
    from lossland.sweeps.adaptive_probes import adaptive_probes, cross_entropy_numerics
    from lossland.sweeps.execution import run
    from lossland.sweeps.forks import fork, state_probe
    from lossland.sweeps.lazy import load
    from lossland.sweeps.planning import plan
    from lossland.sweeps.preconditioners import SecondMoment
    from lossland.sweeps.probes import Probe, accuracy_probe
    from lossland.sweeps.sweep import Outcome, Sweep
    from lossland.sweeps.tensorboard import to_tensorboard
    from lossland.thresholds import threshold

_NAMESPACES = {"adaptive", "curvature", "figures", "landscapes", "problems"}
"""Public names that are modules."""
_HOME = {
    "Axis": "lossland.stability.boundaries",
    "Cause": "lossland.diagnosis.causes",
    "Cutoffs": "lossland.stability.cutoffs",
    "Explanation": "lossland.diagnosis.explanation",
    "Optimizer": "lossland.optimizers",
    "Outcome": "lossland.sweeps.sweep",
    "Plane": "lossland.stability.boundaries",
    "Probe": "lossland.sweeps.probes",
    "Problem": "lossland.problems.problem",
    "Schedule": "lossland.optimizers",
    "SecondMoment": "lossland.sweeps.preconditioners",
    "Sweep": "lossland.sweeps.sweep",
    "accuracy_probe": "lossland.sweeps.probes",
    "adaptive": "lossland.stability.adaptive",
    "adaptive_probes": "lossland.sweeps.adaptive_probes",
    "alarm_signals": "lossland.stability.forecast_scores",
    "batch_sharpness": "lossland.stability.batch_sharpness",
    "batch_sharpness_probe": "lossland.stability.batch_sharpness",
    "boundary": "lossland.stability.boundaries",
    "boundary_dimension": "lossland.stability.fractal",
    "catapult_window": "lossland.stability.constants",
    "check_gradient": "lossland.diagnosis.gradients",
    "check_inputs": "lossland.diagnosis.hygiene",
    "check_labels": "lossland.diagnosis.hygiene",
    "check_precision": "lossland.diagnosis.hygiene",
    "check_shapes": "lossland.diagnosis.hygiene",
    "classes": "lossland.stability.phases",
    "critical_constants": "lossland.stability.constants",
    "critical_learning_rate": "lossland.stability.maps",
    "cross_entropy_numerics": "lossland.sweeps.adaptive_probes",
    "curvature": "lossland.curvature",
    "cutoff_sensitivity": "lossland.stability.phases",
    "decompose_change": "lossland.diagnosis.decomposition",
    "example_curvatures": "lossland.stability.example_curvatures",
    "explain": "lossland.diagnosis.explain",
    "explain_history": "lossland.diagnosis.histories",
    "figures": "lossland.figures",
    "forecast": "lossland.stability.forecast",
    "forecast_errors": "lossland.stability.forecast_scores",
    "forecast_scores": "lossland.stability.forecast_scores",
    "fork": "lossland.sweeps.forks",
    "intervene": "lossland.stability.interventions",
    "landscapes": "lossland.landscapes",
    "late_training_map": "lossland.stability.late_training",
    "late_training_scores": "lossland.stability.late_prediction",
    "load": "lossland.sweeps.lazy",
    "local_multiplier": "lossland.stability.local",
    "mean_square_threshold": "lossland.stability.minibatch",
    "monitor": "lossland.diagnosis.monitor",
    "monitored": "lossland.diagnosis.monitor",
    "multiplier_probe": "lossland.stability.local",
    "outcome_probability": "lossland.stability.phases",
    "phase_diagram": "lossland.stability.phases",
    "plan": "lossland.sweeps.planning",
    "predict_late_spikes": "lossland.stability.late_prediction",
    "problems": "lossland.problems",
    "run": "lossland.sweeps.execution",
    "second_moment_share": "lossland.stability.shares",
    "spikes": "lossland.stability.spikes",
    "stability_map": "lossland.stability.maps",
    "state_probe": "lossland.sweeps.forks",
    "threshold": "lossland.thresholds",
    "to_tensorboard": "lossland.sweeps.tensorboard",
    "write_report": "lossland.report",
    "zoom": "lossland.stability.fractal",
}

__all__ = [
    "Axis",
    "Cause",
    "Cutoffs",
    "Explanation",
    "Optimizer",
    "Outcome",
    "Plane",
    "Probe",
    "Problem",
    "Schedule",
    "SecondMoment",
    "Sweep",
    "accuracy_probe",
    "adaptive",
    "adaptive_probes",
    "alarm_signals",
    "batch_sharpness",
    "batch_sharpness_probe",
    "boundary",
    "boundary_dimension",
    "catapult_window",
    "check_gradient",
    "check_inputs",
    "check_labels",
    "check_precision",
    "check_shapes",
    "classes",
    "critical_constants",
    "critical_learning_rate",
    "cross_entropy_numerics",
    "curvature",
    "cutoff_sensitivity",
    "decompose_change",
    "example_curvatures",
    "explain",
    "explain_history",
    "figures",
    "forecast",
    "forecast_errors",
    "forecast_scores",
    "fork",
    "intervene",
    "landscapes",
    "late_training_map",
    "late_training_scores",
    "load",
    "local_multiplier",
    "mean_square_threshold",
    "monitor",
    "monitored",
    "multiplier_probe",
    "outcome_probability",
    "phase_diagram",
    "plan",
    "predict_late_spikes",
    "problems",
    "run",
    "second_moment_share",
    "spikes",
    "stability_map",
    "state_probe",
    "threshold",
    "to_tensorboard",
    "write_report",
    "zoom",
]


def __getattr__(name: str) -> Any:
    """Load a public name from the module it lives in (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'lossland' has no attribute {name!r}; it has {', '.join(__all__)}")
    module = importlib.import_module(_HOME[name])
    value = module if name in _NAMESPACES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
