"""Speed beside other ways of doing the same: training sweeps, sharpness, and scaling with the number of runs."""

from typing import Any

from matplotlib.figure import Figure

from lossland.figures import style
from lossland.figures.labels import settle
from paper.sources import Results, benchmark

SOURCES = ()
OURS, THEIRS = style.CURVE_COLORS[3], "#AEB6C2"
SWEEPS = {
    "T1": "linear regression,\n4096 runs × 500 steps",
    "T2": "tanh network,\n256 runs × 500 steps",
    "T3": "the same, Adam",
    "T4": "LSTM,\n16 runs × 100 steps",
}
CONTESTANTS = ("lossland", "naive", "loop of jitted runs", "torch.func.vmap", "eager PyTorch")
NAMES = {"naive": "vmap of the grid"}
TOOLS = {
    "ours cold": "lossland, cold",
    "ours warm, 10 steps": "lossland, warm",
    "lobpcg_standard (iterations)": "JAX's LOBPCG",
    "matfree 16": "matfree, 16 steps",
    "PyHessian": "PyHessian",
    "scipy eigsh": "SciPy's eigsh",
    "hessian-eigenthings 32": "hessian-eigenthings",
    "curvlinops + eigsh": "curvlinops + eigsh",
}


def whole(results: Results) -> Any:
    """Draw three panels."""
    sweeps, curvature = benchmark("sweeps"), benchmark("curvature")
    with style.house_style():
        figure = Figure(figsize=(2 * style.WIDTH, 2.9), layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 1, 0.9))
        _sweeps(left, {row["work"]: row["seconds"] for row in sweeps["rows"] if row["work"] in SWEEPS})
        _sharpness(middle, curvature["a"]["rows"])
        _scaling(right, sweeps["scaling"])
        for ax in (left, middle, right):
            style.dress(ax)
        settle(figure)
    return figure


def _sweeps(ax: Any, works: dict[str, dict[str, float]]) -> None:
    """Time over that of the vmapped grid, a mark for each contestant."""
    markers = dict(zip(CONTESTANTS, ("D", "o", "s", "^", "v"), strict=True))
    places = range(len(works))[::-1]
    for name in CONTESTANTS:
        points = [(one[name] / one["naive"], y) for one, y in zip(works.values(), places, strict=True) if name in one]
        ours = name == "lossland"
        ax.plot(
            *zip(*points, strict=True), markers[name], label=NAMES.get(name, name), markersize=5 if ours else 4,
            color=OURS if ours else style.GREY, markerfacecolor=OURS if ours else "white", zorder=4 if ours else 3,
        )  # fmt: skip
    ax.axvline(1, color=style.RULE, linewidth=0.8, zorder=1)
    ax.set(
        xscale="log", yticks=list(places), yticklabels=[SWEEPS[name] for name in works], ylim=(-0.6, len(works) - 0.4)
    )
    ax.set(xlabel="time / time of one vmap over the grid")
    ax.set_title("Training sweeps", loc="left")
    ax.legend(frameon=False, loc="lower right", handletextpad=0.1, borderaxespad=0.0)
    ax.tick_params(axis="y", length=0)


def _sharpness(ax: Any, rows: dict[str, dict[str, float]]) -> None:
    """Time in gradients of the top eigenvalue, with the relative error of each tool written beside it."""
    shown = {label: rows[name] for name, label in TOOLS.items() if name in rows}
    places = range(len(shown))[::-1]
    for (label, row), y in zip(shown.items(), places, strict=True):
        ours, inexact = label.startswith("lossland"), row["relative_error"] > 1e-4
        ax.barh(y, row["gradients"], color=OURS if ours else THEIRS, hatch="////" if inexact else "", edgecolor="white")
        ax.annotate(
            f"{row['relative_error']:.0e}", (row["gradients"], y), (3, 0), textcoords="offset points", va="center",
            fontsize=style.SMALL,
        )  # fmt: skip
    longest = max(row["gradients"] for row in shown.values())
    ax.set(
        yticks=list(places), yticklabels=list(shown), xlim=(0, 1.22 * longest), xlabel="time, in full-batch gradients"
    )
    ax.set_title("Largest eigenvalue", loc="left")
    ax.tick_params(axis="y", length=0)


def _scaling(ax: Any, rows: list[dict[str, float]]) -> None:
    """Time of a run against the number of runs of a sweep."""
    ax.plot(
        [row["runs"] for row in rows], [row["microseconds_per_run"] for row in rows], "D-", color=OURS, markersize=4,
        linewidth=1,
    )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="runs in a sweep", ylabel="µs a run")
    ax.set_title("Scaling", loc="left")


PARTS = {"": whole}
