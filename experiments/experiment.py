"""An experiment: a measurement at one of two sizes, and the summary that is kept of it."""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import json
import platform
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from experiments import trees
from lossland import reproductions, strict_json
from lossland.mapping import dask_executor
from lossland.sweeps.archive import write_whole
from lossland.sweeps.surroundings import surroundings
from lossland.sweeps.sweep import Sweep

Profile = Literal["fast", "full"]
PROFILES: tuple[Profile, ...] = get_args(Profile)
RESULTS = Path(__file__).parent / "results"
WORK = Path("runs/experiments")
SOFTWARE = ("jax", "jaxlib", "optax", "flax", "numpy", "scikit-learn")
LARGEST = 5_000_000
"""Bytes of one file of a summary: what can be committed."""
TARGETS = Path(__file__).parent / "targets.toml"
"""Targets of experiments that are no reproduction."""


@dataclass(frozen=True)
class Experiment:
    """One result of the paper.

    Attributes:
        stem: name of the script, of the folder of its summary, and of the reproduction that it runs, if it is one.
        shows: what is seen, in a sentence.
        figures: numbers of the paper's figures that are drawn from it.
        section: section of the paper.
        fast, full: what the two profiles cost on two cores, in words.
        measure: measurement (folder, fast, table) -> (numbers, paths); that of the reproduction by default.
    """

    stem: str
    shows: str
    figures: tuple[int, ...]
    section: str
    fast: str
    full: str
    measure: Callable[[Path, bool, dict[str, Any]], tuple[dict[str, Any], Any]] | None = None

    def table(self, profile: Profile) -> dict[str, dict[str, Any]]:
        """What is expected: number -> expected, tolerance, source. A fast profile leaves out what it cannot tell."""
        if self.measure is None:
            table = reproductions.targets(self.stem)
        else:
            table = tomllib.loads(TARGETS.read_text(encoding="utf-8"))[self.stem]
        return {name: entry for name, entry in table.items() if profile == "full" or not entry.get("full_only")}

    def run(
        self,
        profile: Profile = "fast",
        *,
        results: Path = RESULTS,
        work: Path | None = None,
        executor: Executor | None = None,
        again: bool = False,
    ) -> dict[str, Any]:
        """Measure, judge and keep the summary; what was kept before at this size or a larger one is returned as it is.

        Args:
            results: folder of the summaries.
            work: folder of the runs, `runs/experiments/<stem>-<profile>` by default; one that holds part of them, such
                as one that `lossland reproduce` has left, is completed.
            executor: takes the tiles of sweeps; forks are computed here.
            again: measure although there is a summary.
        """
        place = results / self.stem
        kept = None if again else load_summary(place)
        if kept and PROFILES.index(kept["profile"]) >= PROFILES.index(profile):
            return kept
        folder = work or WORK / f"{self.stem}-{profile}"
        folder.mkdir(parents=True, exist_ok=True)
        table = self.table(profile)
        sweeps: list[str] = []
        began, worked = time.perf_counter(), time.process_time()

        def told(sweep: Sweep) -> None:
            sweeps.append(sweep.fingerprint())

        with surroundings(executor, told), figures_kept(self._module()) as drawn:
            measured, _ = self._module_measure()(folder, profile == "fast", table)
        numbers = reproductions.judge(self.stem, measured, table, time.perf_counter() - began)
        place.mkdir(parents=True, exist_ok=True)
        (place / "summary.json").unlink(missing_ok=True)
        trees.save(drawn, place / "drawn.npz")
        claims = folder / "claims.json"
        summary = {
            "stem": self.stem,
            "profile": profile,
            "sweeps": sorted(set(sweeps)),
            "hash": hashlib.sha256(" ".join(sorted(set(sweeps)) or [self.stem]).encode()).hexdigest()[:12],
            "drawn": hashlib.sha256((place / "drawn.npz").read_bytes()).hexdigest(),
            "seconds": round(time.perf_counter() - began),
            "processor_seconds": round(time.process_time() - worked),
            "software": {"python": platform.python_version(), **versions()},
            "machine": platform.machine(),
            "claims": json.loads(claims.read_text(encoding="utf-8")) if claims.exists() else [],
            "targets": [{**asdict(number), "seconds": None} for number in numbers],
        }
        size = (place / "drawn.npz").stat().st_size
        if size > LARGEST:
            raise ValueError(f"{self.stem}: {size / 1e6:.1f} MB are drawn, more than {LARGEST / 1e6:g}; thin them out")
        # Last, so that a summary is there whole or not at all.
        write_whole(place / "summary.json", (strict_json.dumps(summary) + "\n").encode())
        return load_summary(place) or summary

    def _module(self) -> ModuleType:
        if self.measure is None:
            return importlib.import_module(f"lossland.reproductions.{self.stem}")
        return sys.modules[self.measure.__module__]

    def _module_measure(self) -> Callable[..., Any]:
        return self.measure or self._module().measure

    def command(self, arguments: Sequence[str] | None = None) -> int:
        """Run from a command line; 1 if a target is not reproduced."""
        parser = argparse.ArgumentParser(description=self.shows)
        add_options(parser)
        options = parser.parse_args(arguments)
        with executor_at(options.executor) as executor:
            found = self.run(
                options.profile, results=options.results, work=options.work, executor=executor, again=options.again
            )
        return told_in_words(found)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every script has."""
    parser.add_argument("--profile", choices=PROFILES, default="fast", help="how much is run")
    parser.add_argument("--executor", help="Dask scheduler that takes the sweeps' tiles: dask://HOST:PORT")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the summaries")
    parser.add_argument("--work", type=Path, help="folder of the runs; one that holds part of them is completed")
    parser.add_argument("--again", action="store_true", help="measure although there is a summary")


@contextlib.contextmanager
def executor_at(address: str | None) -> Iterator[Executor | None]:
    """Connect to `dask://HOST:PORT`; nothing without an address."""
    if address is not None and not address.startswith("dask://"):
        raise SystemExit(f"--executor: expected dask://HOST:PORT, got {address!r}")
    with dask_executor(address and address.replace("dask://", "tcp://", 1)) as executor:
        yield executor


def told_in_words(summary: dict[str, Any]) -> int:
    """Print the targets of a summary; 1 if one is not reproduced."""
    numbers = [reproductions.Number(**{**one, "seconds": float(summary["seconds"])}) for one in summary["targets"]]
    print(f"{summary['profile']} profile, sweeps {summary['hash']}")
    print(reproductions.format_numbers(summary["stem"], numbers, float(summary["seconds"])), flush=True)
    return int(any(number.verdict != "reproduced" for number in numbers))


def load_summary(place: Path) -> dict[str, Any] | None:
    """Read a summary back; None where there is none, or what is drawn is not what it was written with."""
    path, drawn = place / "summary.json", place / "drawn.npz"
    if not (path.exists() and drawn.exists()):
        return None
    summary = json.loads(path.read_text(encoding="utf-8"))
    return summary if hashlib.sha256(drawn.read_bytes()).hexdigest() == summary["drawn"] else None


def load_drawn(place: Path) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Read what figures were drawn from: (name of the function, arguments, named arguments) of each, in order."""
    return trees.load(place / "drawn.npz")


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    return {name: importlib.metadata.version(name) for name in SOFTWARE if _is_installed(name)}


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@contextlib.contextmanager
def figures_kept(module: ModuleType) -> Iterator[list[tuple[str, tuple[Any, ...], dict[str, Any]]]]:
    """Keep what a module's figures are drawn from while it draws them: yields (name, arguments, named arguments).

    A reproduction hands its results to figure functions and to nothing else, so their arguments are the one complete
    record of what is drawn; they are caught there, and the reproductions need not know of it.
    """
    from lossland import figures

    kept: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def keeping(name: str, draw: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(draw)
        def drawing(*arguments: Any, **named: Any) -> Any:
            kept.append((name, arguments, named))
            return draw(*arguments, **named)

        return drawing

    names = [
        (place, name, draw)
        for place in (module, figures)
        for name, draw in vars(place).items()
        if name.endswith("_figure") and not name.startswith("_") and callable(draw)
    ]
    for place, name, draw in names:
        setattr(place, name, keeping(name, draw))
    try:
        yield kept
    finally:
        for place, name, draw in names:
            setattr(place, name, draw)
