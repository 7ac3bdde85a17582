"""The whole table from the committed numbers: what was measured, what was asked for, and why it was missed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
SMALL_STEPS = (
    "counting rises, keeping peaks and stopping runs that died take 0.85 of the 2.3 µs of a step of a problem of two "
    "parameters; the naive way does none of it"
)
PRODUCTS = "a loop of jitted runs and one `vmap` of the whole grid are as fast: the products themselves limit all three"


Reason = Callable[[dict[str, Any]], str]


class Row(NamedTuple):
    """One number: `read` takes it from all results, `least` or `most` is asked for, `reason` says why it is missed."""

    part: str
    name: str
    read: Callable[[dict[str, Any]], float | None]
    least: float | None = None
    most: float | None = None
    unit: str = "×"
    reason: str | Reason = ""


def _sweep(work: str, reading: Callable[[dict[str, Any]], float]) -> Callable[[dict[str, Any]], float | None]:
    return lambda results: next((reading(row) for row in results["sweeps"]["rows"] if row["work"] == work), None)


def _naive(work: str) -> Callable[[dict[str, Any]], float | None]:
    return _sweep(work, lambda row: row["times_naive"]["lossland"])


def _against(work: str, other: str) -> Callable[[dict[str, Any]], float | None]:
    return _sweep(work, lambda row: row["times_naive"]["lossland"] / row["times_naive"][other])


def _peak(work: str) -> Callable[[dict[str, Any]], float | None]:
    return _sweep(work, lambda row: 100 * row["fraction_of_peak"])


def _recorded(work: str) -> Callable[[dict[str, Any]], float | None]:
    return _sweep(
        work, lambda row: row["times_naive"]["lossland"] / row["times_naive"]["lossland, every step recorded"]
    )


def _curvature(*path: str) -> Callable[[dict[str, Any]], float | None]:
    def read(results: dict[str, Any]) -> float | None:
        found: Any = results["curvature"]
        for name in path:
            found = found[name]
        return found

    return read


def _many(other: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda results: (
        results["curvature"]["c"][other]["seconds"] / results["curvature"]["c"]["ours, mapped"]["seconds"]
    )


def _second_core(work: str) -> Reason:
    """What a second core was worth to the work, and to the naive way where that was timed."""

    def reason(results: dict[str, Any]) -> str:
        row = results["threads"].get("rows", {}).get(work)
        if row is None:
            return "what the second core is worth here was not measured"
        worth = row["second_core"]
        told = f"on this machine a second core makes this work {worth['lossland']:.2f} times as fast"
        if "naive" in worth:
            told += f", the naive way {worth['naive']:.2f} times"
        if ratio := row.get("times_naive", {}).get("1"):
            told += f"; on one core the ratio is {ratio:.2f}"
        return told

    return reason


def _compiled(name: str) -> Reason:
    def reason(results: dict[str, Any]) -> str:
        row = results["scaling"]["compile"][name]
        return (
            f"{row['compilations']:.0f} programs are compiled side by side (starts, first records, training), and a "
            f"second sweep of any size compiles nothing; the largest takes {row['largest_compilation_seconds']:.1f} s"
        )

    return reason


def _monitored(results: dict[str, Any], *wanted: str) -> dict[str, Any] | None:
    """What was measured of a work, an optimizer and a way of stepping."""
    rows = results["monitor"].get("rows", [])
    return next((row for row in rows if (row["work"], row["optimizer"], row["way"]) == wanted), None)


def _monitor(*wanted: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda results: row["ratio"] if (row := _monitored(results, *wanted)) else None


def _same_bits(results: dict[str, Any]) -> float | None:
    rows = results["monitor"].get("rows")
    return sum(row["same_bits"] for row in rows) / len(rows) if rows else None


def _monitor_reason(*wanted: str) -> Reason:
    def reason(results: dict[str, Any]) -> str:
        row = _monitored(results, *wanted)
        assert row is not None, "a row is missed where it was measured"
        return (
            f"{row['extra_microseconds']:.0f} µs on a step of {row['plain_microseconds']:.0f} µs: what is measured has "
            "to be written to memory, where training alone fuses it away"
        )

    return reason


def _monitor_rows() -> tuple[Row, ...]:
    works, optimizers, ways = ("mlp, batch 128", "mlp, full batch", "transformer, batch 128"), ("adam", "momentum"), (
        "loop", "scan")  # fmt: skip
    return tuple(
        Row("monitor", f"{work}, {optimizer}, {way}", _monitor(work, optimizer, way), most=1.05,
            reason=_monitor_reason(work, optimizer, way))
        for work in works for optimizer in optimizers for way in ways
    )  # fmt: skip


def _warm_products(results: dict[str, Any]) -> str:
    near, far = (results["curvature"]["a"]["rows"][f"ours warm, {gap} steps"]["products"] for gap in (5, 10))
    return f"the tolerance of 1e-4 takes {near} products even from there, and {far} from 10 steps before"


def _products_in_gradients(results: dict[str, Any]) -> str:
    found = results["curvature"]["b"]
    products = found["rows"]["ours warm, 5 steps"]["products"]
    return f"{products} products, each worth {found['product_in_gradients']:.3g} gradients"


def _beside_matfree(results: dict[str, Any]) -> str:
    ours, fixed = (results["curvature"]["c"][name]["mean_products"] for name in ("ours, mapped", "matfree 16, vmapped"))
    told = f"{ours:.3g} products on average against its fixed {fixed:g}, which was chosen knowing the answer; "
    return told + _second_core("top eigenvalues")(results)


def _small_steps(results: dict[str, Any]) -> str:
    peak = _peak("8 wide")(results)
    return f"steps this small are overhead, not products ({peak:.1g} % of the peak); " + _second_core("8 wide")(results)


def _of(file: str, *path: Any) -> Callable[[dict[str, Any]], float | None]:
    def read(results: dict[str, Any]) -> float | None:
        found: Any = results[file]
        for name in path:
            if isinstance(found, dict) and name not in found:
                return None
            found = found[name]
        return found

    return read


ROWS = (
    Row("sweeps", "T1, 4,096 runs of two parameters: over the whole grid vmapped", _naive("T1"), 5, reason=SMALL_STEPS),
    Row("sweeps", "T1: million run-steps a second", _sweep("T1", lambda row: row["run_steps_per_second"] / 1e6), 100,
        unit="", reason=SMALL_STEPS),
    Row("sweeps", "T1 at 65,536 runs: over the whole grid vmapped", _naive("T1, 65,536 runs"), 9, reason=SMALL_STEPS),
    Row("sweeps", "T2, tanh network: of the matrix-product peak", _peak("T2"), 60, unit="%",
        reason=_second_core("T2")),
    Row("sweeps", "T2: over the whole grid vmapped", _naive("T2"), 3, reason=_second_core("T2")),
    Row("sweeps", "T2: over `torch.func.vmap`", _against("T2", "torch.func.vmap"), 2),
    Row("sweeps", "T2: over eager PyTorch", _against("T2", "eager PyTorch"), 6),
    Row("sweeps", "T2: time with every step recorded", _recorded("T2"), most=1.1),
    Row("sweeps", "T3, the same with Adam: of the peak", _peak("T3"), 55, unit="%"),
    Row("sweeps", "T3: over the whole grid vmapped", _naive("T3"), 2.5, reason=_second_core("T3")),
    Row("sweeps", "T3: time with every step recorded", _recorded("T3"), most=1.1),
    Row("sweeps", "T4, LSTM: over the whole grid vmapped", _naive("T4"), 2.5, reason=_second_core("T4")),
    Row("sweeps", "T4: over eager PyTorch", _against("T4", "eager PyTorch"), 2),
    Row("sweeps", "unmodified flax and optax: of the peak", _peak("flax"), 50, unit="%"),
    Row("sweeps", "unmodified flax and optax: over its own vmap", _naive("flax"), 2.2),
    Row("sweeps", "networks 8 wide: over the whole grid vmapped", _naive("8 wide"), 3,
        reason=_small_steps),
    Row("sweeps", "networks 512 wide: of the peak", _peak("512 wide"), 75, unit="%", reason=PRODUCTS),
    Row("sweeps", "early stop: time over the share of run-steps alive", _of("sweeps", "early_stop", "over_share"),
        most=1.1),
    Row("curvature", "17,226 parameters: product in gradients", _curvature("a", "product_in_gradients"), most=2,
        unit="g"),
    Row("curvature", "301,066 parameters: product in gradients", _curvature("b", "product_in_gradients"), most=2,
        unit="g"),
    Row("curvature", "17,226: top eigenvalue, cold", _curvature("a", "rows", "ours cold", "gradients"), most=20,
        unit="g"),
    Row("curvature", "301,066: top eigenvalue, cold", _curvature("b", "rows", "ours cold", "gradients"), most=25,
        unit="g"),
    Row("curvature", "17,226: warm from 5 steps before", _curvature("a", "rows", "ours warm, 5 steps", "gradients"),
        most=8, unit="g", reason=_warm_products),
    Row("curvature", "301,066: warm from 5 steps before", _curvature("b", "rows", "ours warm, 5 steps", "gradients"),
        most=8, unit="g", reason=_products_in_gradients),
    Row("curvature", "17,226: top five", _curvature("a", "rows", "ours top 5", "gradients"), most=40, unit="g"),
    Row("curvature", "301,066: top five", _curvature("b", "rows", "ours top 5", "gradients"), most=40, unit="g"),
    Row("curvature", "17,226: solver over pure products", lambda results: 100 * _read(
        results, "a", "rows", "ours cold", "overhead_over_products"), most=25, unit="%"),
    Row("curvature", "17,226: sharpness every 10 steps over training, warm", _curvature(
        "a", "every_10_steps_over_training", "warm"), most=1),
    Row("curvature", "301,066: sharpness every 10 steps over training, warm", _curvature(
        "b", "every_10_steps_over_training", "warm"), most=1),
    Row("curvature", "256 runs: over vmapped matfree", _many("matfree 16, vmapped"), 3,
        reason=_beside_matfree),
    Row("curvature", "256 runs: over SciPy's eigsh in a loop", _many("scipy eigsh in a loop"), 4,
        reason=_second_core("top eigenvalues")),
    Row("curvature", "256 runs: over curvlinops", _many("curvlinops + eigsh in a loop"), 10),
    Row("curvature", "256 runs: largest relative error", _curvature("c", "ours, mapped", "largest_relative_error"),
        most=1e-5, unit=""),
    Row("curvature", "float64: relative error of the top", _curvature("dense", "float64", "top_relative_error"),
        most=1e-7, unit=""),
    Row("curvature", "17,226: compile", _curvature("a", "rows", "ours cold", "compile_seconds"), most=1.5, unit="s",
        reason="the solver's loop is compiled with the network inside; not looked into further"),
    Row("imports", "`import lossland` over `import jax, optax`", _of("imports", "imports", "import lossland", "ratio"),
        most=1.2),
    Row("imports", "`lossland --help`, processor time", _of("imports", "imports", "lossland --help", "seconds"), most=1,
        unit="s"),
    Row("imports", "every public name over `import jax, optax`", _of(
        "imports", "imports", "import lossland, every public name", "ratio")),
    Row("scaling", "2 forced host devices over one core", _of("scaling", "devices", 1, "speedup")),
    Row("scaling", "2 Dask workers of one core each over one", _of("scaling", "processes", 1, "speedup")),
    Row("scaling", "memory of a run among many, over its parameters", lambda results: (
        _read_of(results, "scaling", "memory", "bytes_per_run", over="bytes_of_parameters_per_run"))),
    Row("scaling", "peak memory over the plan", _of("scaling", "memory", "measured_over_planned")),
    Row("compile", "perceptron: first sweep", _of("scaling", "compile", "perceptron", "compile_seconds"), most=1.2,
        unit="s", reason=_compiled("perceptron")),
    Row("compile", "recurrent network: first sweep", _of("scaling", "compile", "recurrent", "compile_seconds"),
        most=2.5, unit="s", reason=_compiled("recurrent")),
    *_monitor_rows(),
    Row("monitor", "share of these that end on the same bits with and without", _same_bits, 1, unit=""),
)  # fmt: skip
"""Every number of the table: one row for each."""
ABOUT = {
    "sweeps": "Training sweeps: the same runs, trained in several ways, in turn within every round",
    "curvature": "Top eigenvalues, in gradients (g) at the same point",
    "imports": "Start-up, in pairs of fresh processes, processor time",
    "scaling": "Scaling and memory, each measurement a fresh process",
    "compile": "Compilation by XLA, in a fresh process",
    "monitor": "Time of a step with `ll.monitor` around the optimizer over that without, on digits",
}


def _read(results: dict[str, Any], *path: str) -> float:
    value = _curvature(*path)(results)
    assert value is not None
    return value


def _read_of(results: dict[str, Any], file: str, part: str, name: str, over: str) -> float | None:
    found = results[file].get(part)
    return found[name] / found[over] if found else None


def results() -> dict[str, Any]:
    """Everything that is committed: file -> its numbers; {} for what was not measured."""
    names = ("sweeps", "curvature", "imports", "scaling", "monitor", "threads")
    files = {name: RESULTS / f"{name}.json" for name in names}
    return {name: json.loads(path.read_text()) if path.exists() else {} for name, path in files.items()}


class Line(NamedTuple):
    """A row of the table, read: verdict is met, missed, measured (nothing was asked for) or not measured."""

    part: str
    name: str
    value: str
    asked: str
    verdict: str
    reason: str


def lines(found: dict[str, Any] | None = None) -> list[Line]:
    """Read every row and judge it."""
    found = results() if found is None else found
    return [_line(row, found) for row in ROWS]


def _line(row: Row, found: dict[str, Any]) -> Line:
    limit, sign = (row.least, "≥") if row.least is not None else (row.most, "≤")
    asked = "" if limit is None else f"{sign} {_shown(limit, row.unit)}"
    try:
        value = row.read(found)
    except (KeyError, IndexError):
        value = None
    if value is None:
        return Line(row.part, row.name, "", asked, "not measured", "")
    good = limit is None or (value >= limit if row.least is not None else value <= limit)
    verdict = "measured" if limit is None else "met" if good else "missed"
    reason = "" if good else row.reason if isinstance(row.reason, str) else row.reason(found)
    return Line(row.part, row.name, _shown(value, row.unit), asked, verdict, reason)


def _shown(value: float, unit: str) -> str:
    return f"{value:.3g}" + ({"×": " ×", "": ""}.get(unit, f" {unit}"))


def text(found: dict[str, Any] | None = None) -> str:
    """The table for a terminal."""
    shown = []
    part = ""
    for line in lines(found):
        if line.part != part:
            part = line.part
            shown += ["", ABOUT[part]]
        shown.append(f"  {line.name:<62}{line.value:>10}  {line.asked:>10}  {line.verdict}")
        if line.reason:
            shown.append(f"      {line.reason}")
    return "\n".join(shown).strip()


def markdown(found: dict[str, Any] | None = None) -> str:
    """The page of the documentation."""
    found = results() if found is None else found
    page = [
        "# Benchmarks",
        "",
        "Ratios, measured side by side on one machine: two shared cores of a CPU, no accelerator. Absolute times drift",
        "with what else runs there; ratios are medians over rounds in which every contestant takes its turn. A target",
        "that was missed says why.",
        "`python -m benchmarks --table` prints this table from the numbers in `benchmarks/results`,",
        "`python -m benchmarks` measures them anew (hours; needs the extra `bench`), and",
        "`python -m benchmarks --markdown` writes this page.",
    ]
    part = ""
    every = lines(found)
    for line in every:
        if line.part != part:
            part = line.part
            page += ["", f"## {part.capitalize()}", "", f"{ABOUT[part]}.", ""]
            page += ["| | measured | asked | |", "|---|---:|---:|---|"]
        why = f": {line.reason}" if line.reason else ""
        page.append(f"| {line.name} | {line.value} | {line.asked} | {line.verdict}{why} |")
    counts = {verdict: sum(line.verdict == verdict for line in every) for verdict in ("met", "missed", "not measured")}
    page += ["", f"{counts['met']} targets met, {counts['missed']} missed"
             + (f", {counts['not measured']} not measured" if counts["not measured"] else "") + "."]  # fmt: skip
    page += ["", "## Machines and versions", ""]
    for name, content in found.items():
        if content:
            page.append(f"- {name}: {_machine(content.get('machine', ''))}")
    return "\n".join(page) + "\n"


def _machine(about: Any) -> str:
    if not isinstance(about, dict):
        return str(about)
    versions = about.get("versions", {})
    parts = [f"{about['cores']} cores", f"Python {about['python']}"]
    parts += [f"{name} {versions[name]}" for name in versions] or [f"jax {about['jax']}"]
    parts += [f"load {about['load']}"] if "load" in about else []
    return ", ".join(parts) + (f"; {about['note']}" if "note" in about else "")
