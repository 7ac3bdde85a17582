"""All experiments, in the order in which their results stand in the paper."""

from __future__ import annotations

import importlib

from experiments.experiment import Experiment

STEMS = (
    "linear_regression",
    "numpy_mlp",
    "keras_lstm",
    "rnn_sequences",
    "course_mlp",
    "thresholds",
    "edge_of_stability",
    "catapult",
    "critical_constants",
    "minibatch_law",
    "cosine_quadratic",
    "fractal_boundary",
    "adam_laws",
    "adam_spikes",
    "adam_forecast",
    "adam_networks",
    "late_training_map",
    "fault_injection",
    "landscapes",
)


def experiment(stem: str) -> Experiment:
    """Return the experiment of a stem.

    Raises:
        ValueError: if there is none; those that exist are listed.
    """
    if stem not in STEMS:
        raise ValueError(f"no experiment {stem!r}; there are {', '.join(STEMS)}")
    return importlib.import_module(f"experiments.{stem}").EXPERIMENT


def table() -> str:
    """Return the table of `experiments/README.md`."""
    lines = [
        "| script | what it shows | fast | full | figure | section | targets |",
        "|---|---|---|---|---|---|---|",
    ]
    for stem in STEMS:
        one = experiment(stem)
        drawn = ", ".join(map(str, one.figures)) or "table"
        home = "targets.toml" if one.measure else "../lossland/reproductions/targets.toml"
        targets = f"[`[{stem}.*]`]({home})"
        lines.append(
            f"| [`{stem}`]({stem}.py) | {one.shows} | {one.fast} | {one.full} | {drawn} | {one.section} | {targets} |"
        )
    return "\n".join(lines)
