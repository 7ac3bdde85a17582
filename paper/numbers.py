"""Every number of the text, from the summaries: `main.tex` names it, this writes `numbers.tex` and `targets.tex`.

In the text, `\\val{STEM.NUMBER}` is what was measured and `\\want{STEM.NUMBER}` what was expected; `\\val[STYLE]{...}`
says how it is written; `\\verdict{STEM.NUMBER}` is the verdict on it; `\\set{NAME}` is a setting or a count, computed
in `settings`; `\\made{STEM}` says for a caption how a result was made; `\\byprofile{STEM}{FULL}{FAST}` is one text
where the experiment was run in full, the other where it was not. Only what the text asks for is written, and what it
asks for must exist.
"""

from __future__ import annotations

import argparse
import importlib
import math
import re
import sys
from collections.abc import Callable
from decimal import ROUND_UP, Decimal
from pathlib import Path
from typing import Any

import numpy as np

from experiments.catalogue import STEMS, experiment
from experiments.experiment import RESULTS
from lossland.stability import spike_boundary
from lossland.stability.intervals import binomial_interval
from lossland.sweeps.archive import write_whole
from paper.prose import by_profile
from paper.sources import BUILD, PAPER, MissingSummaryError, Results, benchmark

ASKED = re.compile(r"\\(val|want|set|verdict)(?:\[(\w+)\])?\{([^}]+)\}")
MADE = re.compile(r"\\made\{([^}]+)\}")
BY_PROFILE = re.compile(r"\\byprofile\{(\w+)\}")
NOT_MEASURED = r"\emph{not measured}"


def scientific(value: float, digits: int = 2) -> str:
    """Write 1.2 x 10^-5 for TeX, and numbers of usual size plainly, to so many digits."""
    if not math.isfinite(value):
        return r"\mbox{NaN}" if math.isnan(value) else r"\ensuremath{\infty}"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if -3 <= int(exponent) < 6:
        plain = f"{float(f'{value:.{digits}g}'):.{max(digits - 1 - int(exponent), 0)}f}"
        return plain.replace("-", r"\ensuremath{-}")
    return rf"\ensuremath{{{mantissa}\times10^{{{int(exponent)}}}}}"


def rounded_up(value: float, digits: int = 2) -> float:
    """Round away from zero to so many digits: what a number that is called a bound is written as."""
    if not value or not math.isfinite(value):
        return value
    exact = Decimal(repr(float(value)))
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), ROUND_UP))


def percent(share: float, decimals: int = 0) -> str:
    """Write a share in per cent, with more decimals where it would look like none or all and is neither."""
    if share in (0, 1):
        return rf"{100 * share:.0f}\,\%"
    while float(shown := f"{100 * share:.{decimals}f}") in (0, 100) and decimals < 9:
        decimals += 1
    return rf"{shown}\,\%"


def fewest_digits(value: float) -> int:
    """Significant digits that a number has, 1 to 5."""
    return next((few for few in range(1, 5) if float(f"{value:.{few}g}") == value), 5)


def _interval(write: Callable[[float], str]) -> Callable[[Any], str]:
    return lambda value: f"{write(value[0])} to {write(value[1])}" if isinstance(value, (list, tuple)) else write(value)


STYLES: dict[str, Callable[[Any], str]] = {
    "": lambda value: _interval(lambda x: scientific(x, 3))(value),
    "two": lambda value: _interval(lambda x: scientific(x, 2))(value),
    "one": lambda value: _interval(lambda x: scientific(x, 1))(value),
    "five": lambda value: _interval(lambda x: scientific(x, 5))(value),
    "exact": lambda value: scientific(value, fewest_digits(value)),
    "int": lambda value: f"{round(value):,}".replace(",", r"\,"),
    "percent": lambda value: _interval(percent)(value),
    "permille": lambda value: _interval(lambda x: percent(x, 1))(value),
    "upto": lambda value: scientific(rounded_up(value)),
    "uptopercent": lambda value: rf"{scientific(rounded_up(100 * value))}\,\%",
    "word": str,
}
"""How a number is written: significant digits in words, a whole number, a share in per cent; bounds rounded up."""
DEFAULTS = {"set": "exact", "verdict": "word"}


def settings(results: Results) -> dict[str, Callable[[], Any]]:
    """Settings and counts that the text mentions, by name; computed when they are asked for."""

    def module(stem: str) -> Any:
        return importlib.import_module(f"lossland.reproductions.{stem}")

    def judged() -> list[dict[str, Any]]:
        return [one for stem in results.stems() for one in results.summary(stem)["targets"]]

    def reproduced() -> int:
        return sum(one["verdict"] == "reproduced" for one in judged())

    def settled() -> list[str]:
        """Verdicts on what people said about the reported cases."""
        return [claim["verdict"] for stem in results.stems() for claim in results.summary(stem)["claims"]]

    def row(work: str) -> dict[str, float]:
        return next(one["seconds"] for one in benchmark("sweeps")["rows"] if one["work"] == work)

    def curvature(of: str, name: str, key: str) -> float:
        return benchmark("curvature")[of]["rows"][name][key]

    def landscapes(name: str) -> Any:
        return getattr(experiment_module("landscapes"), name)

    def planted() -> tuple[int, int]:
        """Scenarios that limits were set on, and runs of them on seeds that none was set on."""
        scenarios = module("fault_injection").SCENARIOS
        healthy = {one.name for one in scenarios if one.cause is module("fault_injection").Cause.healthy}
        counts, names, _, held_out, _ = results.arguments("fault_injection", "confusion_figure")
        own = [not held and name not in healthy for name, held in zip(names, held_out, strict=True)]
        return sum(own), int(np.asarray(counts)[own].sum())

    def planted_right() -> Any:
        share, runs = results.targets("fault_injection")["right_on_held_out_seeds"]["measured"], planted()[1]
        return [float(bound) for bound in binomial_interval(round(share * runs), runs)]

    def above_floor() -> np.ndarray:
        expected = results.arguments("late_training_map", "late_training_figure")[1]
        return np.asarray(expected["eps"] / expected["epsilon_floor"]) > module("late_training_map").MARGIN

    def forked() -> Any:
        return results.arguments("adam_spikes", "interventions_figure")[0]

    def lag_ratio() -> np.ndarray:
        found = results.arguments("adam_spikes", "spikes_figure")[1]
        return np.asarray(found["lag"] / found["predicted_lag"])

    def forecast(place: int) -> Any:
        return results.arguments("adam_forecast", "forecast_figure")[place]

    return {
        "targets": lambda: len(judged()),
        "targets_reproduced": reproduced,
        "targets_failed": lambda: len(judged()) - reproduced(),
        "claims": lambda: len(settled()),
        "claims_supported": lambda: settled().count("supported"),
        "claims_refuted": lambda: settled().count("refuted"),
        "claims_depend": lambda: settled().count("depends"),
        "experiments": lambda: len(results.stems()),
        "experiments_full": lambda: sum(results.summary(stem)["profile"] == "full" for stem in results.stems()),
        "keras_rate": lambda: module("linear_regression").RATE,
        "keras_examples": lambda: module("linear_regression").EXAMPLES,
        "printed_losses": lambda: len(results.arguments("linear_regression", "linear_regression_figure")[2]),
        "phase_margin": lambda: module("linear_regression").MARGIN,
        "spike_rate": lambda: module("adam_spikes").RATE,
        "spike_b2": lambda: module("adam_spikes").B2,
        "spike_before": lambda: module("adam_spikes").BEFORE,
        "spike_count": lambda: int((~np.isnan(lag_ratio())).sum()),
        "spike_states": lambda: forked().sizes["state"],
        "spike_horizon": lambda: module("adam_spikes").HORIZON,
        "frozen_without_a_spike": lambda: float(np.isinf(forked()["spike"].sel(arm="second_moment_frozen")).mean()),
        "forecast_spikes": lambda: int(forecast(0)["num_spikes"]),
        "forecast_lead": lambda: forecast(0).attrs["lead"],
        "forecast_false_alarms": lambda: forecast(0).attrs["false_alarms"],
        "forecast_false_alarms_scored": lambda: float(forecast(0)["false_alarm_rate"].sel(alarm="forecast")),
        "boundary_factor": lambda: spike_boundary.FACTOR,
        "boundary_bend": lambda: spike_boundary.BEND,
        "planted_scenarios": lambda: planted()[0],
        "planted_runs": lambda: planted()[1],
        "planted_right": planted_right,
        "edge_pairs": lambda: sum(
            len(pairs) for pairs in results.arguments("edge_of_stability", "edge_of_stability_figure")[1].values()
        ),
        "rnn_rate": lambda: module("rnn_sequences").STEEP_RATE,
        "lstm_epochs": lambda: results.arguments("keras_lstm", "keras_lstm_figure")[0].sizes["epoch"],
        "map_settings": lambda: above_floor().size,
        "map_settings_above_floor": lambda: int(above_floor().sum()),
        "map_margin": lambda: module("late_training_map").MARGIN,
        "eigenvalue_tolerance": lambda: 1e-4,
        "slice_near": lambda: landscapes("NEAR"),
        "edge_band": lambda: max(module("edge_of_stability").ALLOWED.values()),
        "edge_optimizers": lambda: len(module("edge_of_stability").ALLOWED),
        "chains": lambda: len(module("thresholds").CHAINS),
        "own_momentum": lambda: module("minibatch_law").MOMENTUM,
        "tanh_over_naive": lambda: row("T2")["naive"] / row("T2")["lossland"],
        "tanh_over_torch": lambda: row("T2")["eager PyTorch"] / row("T2")["lossland"],
        "tanh_over_torch_vmap": lambda: row("T2")["torch.func.vmap"] / row("T2")["lossland"],
        "tanh_of_peak": lambda: next(
            one["fraction_of_peak"] for one in benchmark("sweeps")["rows"] if one["work"] == "T2"
        ),
        "early_stop": lambda: benchmark("sweeps")["early_stop"]["over_share"],
        "sharpness_gradients": lambda: curvature("a", "ours cold", "gradients"),
        "sharpness_error": lambda: curvature("a", "ours cold", "relative_error"),
        "pyhessian_error": lambda: curvature("a", "PyHessian", "relative_error"),
        "lobpcg_error": lambda: curvature("a", "lobpcg_standard (iterations)", "relative_error"),
        "network_parameters": lambda: benchmark("curvature")["a"]["parameters"],
        "software": lambda: ", ".join(f"{name} {version}" for name, version in software(results).items()),
    }


def experiment_module(stem: str) -> Any:
    """Return the script of an experiment."""
    experiment(stem)
    return importlib.import_module(f"experiments.{stem}")


def software(results: Results) -> dict[str, str]:
    """Versions that all summaries were made with, several where they differ."""
    found: dict[str, dict[str, None]] = {}
    for stem in results.stems():
        for name, version in results.summary(stem)["software"].items():
            found.setdefault(name, {})[version] = None
    return {name: " and ".join(of) for name, of in found.items()}


def asked(text: str) -> list[tuple[str, str, str]]:
    """Numbers that a text asks for, each once: (macro, style, key)."""
    return list(dict.fromkeys((macro, style or "", key) for macro, style, key in ASKED.findall(text)))


def value_of(results: Results, macro: str, key: str) -> Any:
    """Look a number up.

    Raises:
        KeyError: if there is none of that name, saying where it was looked for.
        MissingSummaryError: if only the full profile measures it.
    """
    if macro == "set":
        known = settings(results)
        if key not in known:
            raise KeyError(f"\\set{{{key}}}: there are {', '.join(known)}")
        return known[key]()
    stem, _, name = key.partition(".")
    targets = results.targets(stem)
    if name not in targets and results.summary(stem)["profile"] == "fast" and name in experiment(stem).table("full"):
        raise MissingSummaryError(f"not measured by the fast profile: python -m experiments {stem} --profile full")
    if name not in targets:
        raise KeyError(
            f"\\{macro}{{{key}}}: {stem}'s summary ({results.summary(stem)['profile']}) has {', '.join(targets)}"
        )
    return _finite(targets[name][{"val": "measured", "want": "expected", "verdict": "verdict"}[macro]])


def in_full(results: Results, stem: str) -> bool:
    """Whether an experiment was run in full."""
    return results.has(stem) and results.summary(stem)["profile"] == "full"


def _finite(value: Any) -> Any:
    """Read the words back that JSON has for infinity and NaN."""
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return float(value) if value in ("Infinity", "-Infinity", "NaN") else value


def written(results: Results, text: str) -> str:
    """Return `numbers.tex` for a text."""
    lines = ["% Written by paper/numbers.py from the summaries; not to be edited."]
    for stem in dict.fromkeys(BY_PROFILE.findall(text)):
        lines.append(rf"\expandafter\def\csname full:{stem}\endcsname{{{int(in_full(results, stem))}}}")
    text = by_profile(text, lambda stem: in_full(results, stem))
    for macro, style, key in asked(text):
        try:
            shown = STYLES[style or DEFAULTS.get(macro, "")](value_of(results, macro, key))
        except MissingSummaryError as error:
            print(f"{macro} {key}: {error}", file=sys.stderr)
            shown = NOT_MEASURED
        lines.append(rf"\expandafter\def\csname {macro}:{style}:{key}\endcsname{{{shown}}}")
    for stem in dict.fromkeys(MADE.findall(text)):
        lines.append(rf"\expandafter\def\csname made:{stem}\endcsname{{{made(results, stem)}}}")
    return "\n".join(lines) + "\n"


def made(results: Results, stem: str) -> str:
    """How a result was made, for a caption."""
    if stem.startswith("benchmarks/"):
        machine = benchmark(stem.partition("/")[2])["machine"]
        words = machine if isinstance(machine, str) else f"{machine['cores']} cores, jax {machine['jax']}"
        return rf"Benchmark \texttt{{{escaped(stem)}}}, {escaped(words)}."
    if not results.has(stem):
        return rf"Experiment \texttt{{{escaped(stem)}}}: {NOT_MEASURED}."
    one = results.summary(stem)
    sweeps = rf", sweeps \texttt{{{one['hash']}}}" if one["sweeps"] else rf", identity \texttt{{{one['hash']}}}"
    return rf"Experiment \texttt{{{escaped(stem)}}}, {one['profile']} profile{sweeps}."


def escaped(text: str) -> str:
    """Write a name for TeX, with places to break it."""
    return (
        text.replace("\\", r"\textbackslash ").replace("_", r"\_\allowbreak ").replace("%", r"\%").replace("&", r"\&")
    )


def table(results: Results) -> str:
    """Return `targets.tex`: every target with what was expected, what was measured, and the verdict."""
    signs = {"at_most": r"$\le$", "at_least": r"$\ge$", "between": "in", "within": "in"}
    lines = ["% Written by paper/numbers.py from the summaries; not to be edited."]
    for stem in filter(results.has, STEMS):
        one = results.summary(stem)
        lines.append(
            rf"\multicolumn{{5}}{{@{{}}l}}{{\textbf{{{escaped(stem)}}}, {one['profile']} profile, "
            rf"\texttt{{{one['hash']}}}}} \\*"
        )
        for target in one["targets"]:
            name = escaped(described(target["name"].partition(".")[2], one["claims"]))
            tolerance = rf" $\pm$ {_cell(target['tolerance'])}" if target["tolerance"] else ""
            if target["tolerance"] and target["comparison"] == "relative":
                tolerance += " rel."
            lines.append(
                rf"{name} & {signs.get(target['comparison'], '$=$')} & {_cell(target['expected'])}{tolerance} & "
                rf"{_cell(target['measured'])} & {target['verdict']} \\"
            )
        lines.append(r"\addlinespace")
    return "\n".join(lines) + "\n"


def described(name: str, settled: list[dict[str, Any]]) -> str:
    """Read a target's name: its words, numbers with their point, and for a claim what was claimed."""
    words = re.sub(r"\b(\d) (\d+)\b", r"\1.\2", name.replace("_", " "))
    said = {f"claim {claim['letter']}": claim["text"] for claim in settled}
    return f"{words}: {said[words]}" if words in said else words


def _cell(value: Any) -> str:
    value = _finite(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_cell, value)) + "]"
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, (int, float, np.number)):
        whole = math.isfinite(value) and float(value).is_integer() and abs(value) < 1e7
        return f"{int(value)}" if whole else scientific(float(value), fewest_digits(float(value)))
    return escaped(str(value))


def main() -> int:
    """Write both files."""
    parser = argparse.ArgumentParser(description="write numbers.tex and targets.tex")
    parser.add_argument("--out", type=Path, default=BUILD)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.results)
    text = (PAPER / "main.tex").read_text(encoding="utf-8")
    for name, content in (("numbers.tex", written(results, text)), ("targets.tex", table(results))):
        write_whole(options.out / name, content.encode())
        print(options.out / name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
