"""The command line: `lossland map`, `plan`, `reproduce`, `explain`, `report`, `status`, `verify`, `doctor`,
`selfcheck`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Union

import tyro

from lossland import __version__
from lossland.problems import NAMES
from lossland.reproductions import NAMES as TARGETS

# Nothing above imports jax, so that --help answers at once; commands import what they need when they run.

Values = tuple[str, ...]


@dataclass(frozen=True)
class _Training:
    """What `map` and `plan` have in common."""

    problem: tyro.conf.Positional[str]
    """One of the bundled problems (`lossland --help` lists them)."""
    learning_rate: Values = ()
    """Learning rates. Default: 32 values from a tenth to a hundred times the one predicted from the sharpness at
    initialisation."""
    axis: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Another axis, NAME=VALUES with commas or LOW:HIGH:COUNT: an argument of the optimizer or of the problem, such as
    momentum=0,0.9 or scale=0.1:3:16. At most one."""
    optimizer: str = "sgd"
    """Any optax optimizer, by name."""
    fix: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Fix an argument of the optimizer or of the problem, NAME=VALUE. May be repeated."""
    option: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Set an option of the problem's builder, NAME=VALUE, such as loss=mse or widths=64,64 for digits. May be
    repeated."""
    seeds: int = 8
    """Number of seeds: starting points at every learning rate."""
    steps: int = 400
    """Optimizer steps per run."""
    every: int | None = None
    """Record every so many steps. Default: 40 records."""
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    """Precision of parameters and data."""
    batch_size: int | None = None
    """Examples per step, in shuffled epochs with the ragged last batch kept. Default: the full data."""
    lane_width: int | None = None
    """How many runs one kernel advances together: bits depend on it. Default: a rule; `lossland plan` times others."""


@dataclass(frozen=True)
class Map(_Training):
    """Train a problem over learning rates and seeds, measure its sharpness, and draw where training is stable.

    Values are written as numbers (0.1 0.3 1), or as LOW:HIGH:COUNT for COUNT values evenly spaced on a log scale.
    """

    out: Path | None = None
    """Folder for the runs and figures; the same command again resumes it. Default: runs/PROBLEM."""
    part: str | None = None
    """Do part K of N, K/N with K from 0 to N - 1, beside other processes that share the folder. The one that finishes
    last draws."""
    dask: str | None = None
    """Train on the workers of a Dask scheduler, given its address, such as tcp://HOST:8786."""

    def __call__(self) -> int:
        from lossland.mapping import map_problem

        return map_problem(self.problem, **{name: value for name, value in vars(self).items() if name != "problem"})


@dataclass(frozen=True)
class Plan(_Training):
    """Say what `lossland map` with the same options would take: lane widths timed, memory, tiles, disk, time."""

    def __call__(self) -> int:
        from lossland.mapping import plan_problem

        return plan_problem(self.problem, **{name: value for name, value in vars(self).items() if name != "problem"})


@dataclass(frozen=True)
class Reproduce:
    """Reproduce reported results: print every number with what was expected, its tolerance, and the verdict.

    Exits with 1 if a number is not reproduced.
    """

    name: tyro.conf.Positional[
        Annotated[str | None, tyro.conf.arg(help=f"Which target: {', '.join(TARGETS)}. Default: all of them.")]
    ] = None
    all: bool = False
    """Reproduce all targets."""
    cases: bool = False
    """Settle all claims of the five reported cases: verdict, number with interval, counterfactual. Cases whose claims
    lie in the folder are read, the others run."""
    json: bool = False
    """Print a JSON list of objects with keys name, expected, tolerance, measured, verdict, seconds."""
    fast: bool = False
    """Fewer runs, for a quick check."""
    out: Path | None = None
    """Folder for the runs and figures. Default: runs/reproduce."""

    def __call__(self) -> int:
        from lossland.reproductions import reproduce

        if self.all and self.name is not None:
            raise ValueError(f"reproduce: --all and the name {self.name} exclude each other; keep one")
        if self.cases:
            from lossland.reproductions.cases import reproduce_cases

            if self.all or self.name is not None:
                raise ValueError("reproduce: --cases takes no name and no --all; keep one")
            return reproduce_cases(as_json=self.json, fast=self.fast, out=self.out)
        return reproduce(self.name, as_json=self.json, fast=self.fast, out=self.out)


@dataclass(frozen=True)
class Report:
    """Write one HTML file of a folder of runs: the map, and each run's curves and story. It opens offline."""

    folder: tyro.conf.Positional[Path]
    """Folder that `lossland map` or ll.run(..., out=...) wrote."""
    out: Path | None = None
    """File to write. Default: report.html in the folder."""
    explain: int = 8
    """Explain so many runs, of each outcome those whose loss rose most; replayed where `lossland map` made them."""

    def __call__(self) -> int:
        from lossland.explaining import report_folder

        path = report_folder(self.folder, self.out, self.explain)
        print(f"{path}: {path.stat().st_size / 1e6:.2g} MB, opens in any browser")
        return 0


@dataclass(frozen=True)
class Explain:
    """Say why the loss of one run rose: cause, numbers, and what would have changed it, replayed where it can be."""

    folder: tyro.conf.Positional[Path]
    """Folder that `lossland map` or ll.run(..., out=...) wrote."""
    learning_rate: float | None = None
    """Learning rate of the run; the nearest is taken."""
    seed: int | None = None
    """Seed of the run."""
    at: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Another coordinate of the run, NAME=VALUE. May be repeated."""
    json: bool = False
    """Print one JSON object."""
    out: Path | None = None
    """Where to draw it: a path without a suffix."""

    def __call__(self) -> int:
        from lossland.explaining import coordinates, explain_folder

        named = {"learning_rate": self.learning_rate, "seed": self.seed}
        chosen = {name: value for name, value in named.items() if value is not None} | coordinates(self.at)
        return explain_folder(self.folder, chosen, as_json=self.json, out=self.out)


@dataclass(frozen=True)
class Status:
    """Say what a folder of runs holds: how many runs are done, how many diverged."""

    folder: tyro.conf.Positional[Path]
    """Folder that `lossland map` or ll.run(..., out=...) wrote."""

    def __call__(self) -> int:
        import lossland as ll

        runs = ll.load(self.folder)
        total = runs["status"].size
        counts = {outcome.name: int((runs["status"] == outcome).sum()) for outcome in ll.Outcome}
        print(
            f"{self.folder}: {runs.attrs['title']}, {' × '.join(f'{n} {d}' for d, n in runs['status'].sizes.items())}"
        )
        for name, count in counts.items():
            print(f"  {name:<10} {count:>8}  {100 * count / total:5.1f} %")
        return 0


@dataclass(frozen=True)
class Verify:
    """Check every file of a folder of runs against its checksums, and compute some tiles again, comparing bits.

    Exits with 1 if something is damaged. Nothing is changed; the command that made the folder mends it.
    """

    folder: tyro.conf.Positional[Path]
    """Folder that `lossland map` or ll.run(..., out=...) wrote."""
    rerun: int = 0
    """Compute so many tiles again, chosen at random (folders that `lossland map` wrote)."""

    def __call__(self) -> int:
        from lossland.mapping import verify_folder

        return verify_folder(self.folder, self.rerun)


@dataclass(frozen=True)
class Doctor:
    """Say which versions and devices lossland would use here, and how precise their products are."""

    def __call__(self) -> int:
        import platform
        from importlib import metadata

        import jax

        print(f"lossland {__version__}, Python {platform.python_version()}")
        for package in ("jax", "jaxlib", "optax", "flax", "numpy", "xarray", "matplotlib", "scikit-learn"):
            try:
                print(f"  {package:<13} {metadata.version(package)}")
            except metadata.PackageNotFoundError:
                print(
                    f"  {package:<13} not installed"
                    + (' (pip install "lossland[data]")' if package == "scikit-learn" else "")
                )
        for device in jax.local_devices():
            print(f"  device        {device.platform}: {device.device_kind}")
        from lossland.sweeps.programs import product_error

        ambient = "float64" if jax.config.jax_enable_x64 else "float32"  # pyright: ignore[reportAttributeAccessIssue]
        for dtype in ("float32", "float64"):
            print(f"  precision     {dtype} matrix products of sweeps: relative error {product_error(dtype):.1e}")
        print(f"  precision     {ambient} is JAX's default in this process; sweeps set their own, `dtype`")
        return 0


@dataclass(frozen=True)
class Selfcheck:
    """Measure three textbook facts by training, in under a minute: 2 / learning_rate on a quadratic,
    38 / learning_rate for Adam, progressive sharpening of a network.

    Exits with 1 if one does not hold.
    """

    def __call__(self) -> int:
        from lossland.selfcheck import selfcheck

        return selfcheck()


Command = Union[  # noqa: UP007 - tyro reads the names from the annotations
    Annotated[Map, tyro.conf.subcommand("map", prefix_name=False)],
    Annotated[Plan, tyro.conf.subcommand("plan", prefix_name=False)],
    Annotated[Reproduce, tyro.conf.subcommand("reproduce", prefix_name=False)],
    Annotated[Report, tyro.conf.subcommand("report", prefix_name=False)],
    Annotated[Explain, tyro.conf.subcommand("explain", prefix_name=False)],
    Annotated[Status, tyro.conf.subcommand("status", prefix_name=False)],
    Annotated[Verify, tyro.conf.subcommand("verify", prefix_name=False)],
    Annotated[Doctor, tyro.conf.subcommand("doctor", prefix_name=False)],
    Annotated[Selfcheck, tyro.conf.subcommand("selfcheck", prefix_name=False)],
]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code. Bad input is one line on standard error and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(f"lossland {__version__}")
        return 0
    command = tyro.cli(
        Command, prog="lossland", description=_description(), args=arguments, config=(tyro.conf.OmitArgPrefixes,)
    )
    try:
        return command()
    except ValueError as error:
        print(f"lossland: {error}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        from lossland.sweeps.remote import ExecutorError
        from lossland.sweeps.store import StorageError

        said = isinstance(error, (ExecutorError, StorageError))
        if not said and getattr(error, "filename", None) is None:  # a file or folder the user named, or a defect
            raise
        print(f"lossland: {error if said else f'{error.filename}: {error.strerror}'}", file=sys.stderr)  # pyright: ignore[reportAttributeAccessIssue]
        return 1
    except KeyboardInterrupt:
        print("lossland: stopped; finished runs are saved, the same command resumes", file=sys.stderr)
        return 130


def _description() -> str:
    problems = "\n".join(f"  {name}: {text}" for name, (_, text) in NAMES.items())
    return f"Why did my training loss go up? Stability maps and sharpness of training.\n\nProblems:\n{problems}"


if __name__ == "__main__":
    sys.exit(main())
