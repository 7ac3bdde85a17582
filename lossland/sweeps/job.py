"""A sweep made ready: compiled programs, arguments of every tile, labels, and what identifies it."""

from __future__ import annotations

import functools
import hashlib
import re
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import numpy as np
import optax

import lossland
from lossland import strict_json, thresholds
from lossland.optimizers import Optimizer
from lossland.problems.problem import Problem
from lossland.sweeps.plan import Plan
from lossland.sweeps.probes import Probe
from lossland.sweeps.programs import MATMUL_PRECISION, STATIC, GroupProgram, cached, digest_of
from lossland.sweeps.sweep import RESERVED, Sweep
from lossland.sweeps.training import NOISY_SUMMARY, SUMMARY

BLOCK = 256
"""Hyperparameter points whose thresholds are computed together."""
SOFTWARE = ("lossland", "jax", "jaxlib", "optax")


def axis_owners(problem: Problem, optimizer: Optimizer, sweep: Sweep) -> dict[str, str]:
    """Say for every hyperparameter who takes it: name -> "problem", "sweep", or the optimizer's name.

    Raises:
        ValueError: for a name that nobody has (all that exist are listed), or that two have.
    """
    owners = {}
    results = {"status", "threshold", "relative_sharpness", *SUMMARY, *NOISY_SUMMARY}
    for name in sweep.hyperparameters:
        if name in results:
            raise ValueError(f"axes: {name!r} is a name that every result has; take the argument under another name")
        having = [
            owner
            for owner, names in (
                ("problem", problem.arguments),
                (optimizer.name, optimizer.argument_names),
                ("sweep", STATIC),
            )
            if name in names
        ]
        if len(having) > 1:
            raise ValueError(f"axes: {name!r} is an argument of both {having[0]} and {having[1]}; rename one")
        if not having:
            raise ValueError(
                f"axes: {name!r} is no argument of optimizer {optimizer.name} (it has "
                f"{', '.join(optimizer.argument_names) or 'none'}) nor of problem {problem.name} (it has "
                f"{', '.join(problem.arguments) or 'none'}) nor one of {', '.join(STATIC)}"
            )
        owners[name] = having[0]
    return owners


class Job:
    """One sweep made ready to run."""

    def __init__(
        self,
        problem: Problem,
        optimizer: Optimizer,
        probes: tuple[Probe, ...],
        sweep: Sweep,
        plan: Plan,
        place: dict[str, str],
    ):
        self.problem, self.optimizer, self.probes = problem, optimizer, probes
        self.sweep, self.plan, self.place = sweep, plan, place
        self.owners = axis_owners(problem, optimizer, sweep)
        self.hyperparameters, self.seeds = sweep.runs()
        self.programs = [GroupProgram(self, group) for group in sweep.groups()]

    def program_of(self, runs: np.ndarray) -> GroupProgram:
        """The program that a tile's runs share."""
        return next(program for program in self.programs if np.isin(runs[0], program.group.runs))

    def layout(self) -> dict[str, Any]:
        """All that labelling needs, as JSON."""
        described = {name: text for probe in self.probes for name, text in probe.descriptions.items()}
        units = {name: text for probe in self.probes for name, text in probe.units.items()}
        dims = {name: names for probe in self.probes for name, names in probe.dims.items()}
        noisy = any(program.noisy for program in self.programs)
        summary = NOISY_SUMMARY if noisy else SUMMARY
        variables = {}
        own_names = {*RESERVED, *self.sweep.dims, *self.sweep.hyperparameters}
        own_names |= {"status", "threshold", "relative_sharpness"}
        for name, shape in self.shapes().items():
            if name in own_names:
                raise ValueError(f"probes: a probe records {name!r}, a name that every result has; choose another")
            once = name in summary
            own = shape.shape if once else shape.shape[1:]
            named = dims.get(name) or tuple(f"{name}_axis_{axis}" for axis in range(len(own)))
            if len(named) != len(own):
                raise ValueError(f"probes: {name} has {len(own)} axes of its own, dims names {len(named)}: {named}")
            variables[name] = {
                "dims": [*([] if once else ["step"]), *named],
                "shape": list(shape.shape),
                "dtype": str(shape.dtype),
                "units": summary[name][0] if once else units.get(name, "1"),
                "description": summary[name][1] if once else described.get(name, name.replace("_", " ")),
            }
        return {
            "sweep": self.sweep.to_json(),
            "num_runs": self.sweep.num_runs,
            "owners": self.owners,
            "variables": variables,
            "threshold": self.threshold(),
            "attributes": self.provenance(),
        }

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every variable of one run, in the widest precision of the groups."""
        found: dict[str, jax.ShapeDtypeStruct] = {}
        for program in self.programs:
            for name, shape in program.shapes.items():
                dtype = np.promote_types(shape.dtype, found[name].dtype) if name in found else shape.dtype
                found[name] = jax.ShapeDtypeStruct(shape.shape, dtype)
        return found

    def threshold(self) -> dict[str, Any]:
        """Sharpness at which the linearised optimizer turns unstable, at every hyperparameter point of the grid."""
        points = {
            name: values.reshape(self.sweep.shape)[..., 0].reshape(-1)
            for name, values in self.hyperparameters.items()
            if self.owners[name] not in ("problem", "sweep")
        }
        count = self.sweep.num_runs // len(self.sweep.seeds)
        return thresholds_of(self.optimizer, points, count)

    def identity(self) -> dict[str, Any]:
        """Everything that decides bits."""
        programs = "".join(program.digest() for program in self.programs)
        return {
            "sweep": self.sweep.to_json(),
            "problem": f"{self.problem.name} {self.problem.fingerprint()}",
            "optimizer": re.sub(r" at 0x[0-9a-f]+", "", repr(self.optimizer)),
            "optimizer_program": self.optimizer_program(),
            "variables": ",".join(sorted(self.shapes())),
            "probes_program": hashlib.sha256(programs.encode()).hexdigest()[:16],
            **self.place,
        }

    def optimizer_program(self) -> str:
        """Hash of the optimizer's traced update: two functions of one name are two optimizers."""
        swept = [name for name, owner in self.owners.items() if owner not in ("problem", "sweep")]

        def update(params: Any, values: list[Any]) -> Any:
            optimizer = self.optimizer.with_arguments(**dict(zip(swept, values, strict=True)))
            extra = {"value": np.float32(1), "grad": params, "value_fn": self.problem.objective}
            return optimizer.update(params, optimizer.init(params), params, **extra)[0]

        values = [jax.ShapeDtypeStruct((), np.float32)] * len(swept)
        with jax.enable_x64(False):
            program = jax.make_jaxpr(update)(self.problem.param_shapes, values)
        return digest_of(program)

    def provenance(self) -> dict[str, Any]:
        """Attributes of the dataset."""
        return {
            "title": f"{self.problem.name} trained by {self.optimizer.name}",
            "problem": self.problem.name,
            "problem_fingerprint": self.problem.fingerprint(),
            "loss_normalisation": f"{self.problem.normalisation} over {self.problem.num_examples} examples",
            "optimizer": re.sub(r" at 0x[0-9a-f]+", "", repr(self.optimizer)),
            "optimizer_arguments": strict_json.dumps(
                {name: value for name, value in self.optimizer.numbers.items() if name not in self.owners}
            ),
            "sweep": self.sweep.to_json(),
            "sweep_fingerprint": self.sweep.fingerprint(),
            "lane_width": self.plan.lane_width,
            "dtype": self.sweep.dtype,
            "matmul_precision": MATMUL_PRECISION,
            "platform": self.place["platform"],
            "device": self.place["device"],
            **{f"{name}_version": self.place[name] for name in SOFTWARE},
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }


def thresholds_of(optimizer: Optimizer, points: dict[str, np.ndarray], count: int) -> dict[str, Any]:
    """Compute the threshold at `count` hyperparameter points; see `_thresholds`."""
    arguments = tuple(sorted(optimizer.arguments.items(), key=lambda item: item[0]))
    return cached(_thresholds)(
        optimizer.factory, arguments, tuple((name, tuple(values.tolist())) for name, values in points.items()), count
    )


@functools.lru_cache(maxsize=32)
def _thresholds(
    factory: Callable[..., Any], arguments: tuple[Any, ...], points_given: tuple[Any, ...], count: int
) -> dict[str, Any]:
    """Compute the threshold at `count` hyperparameter points, with attributes that say what it is compared with.

    An optimizer that has no linear threshold, or whose update cannot be linearised, gets NaN and the reason: that is no
    obstacle to training it.
    """
    attributes: dict[str, Any] = {"units": "loss / parameter^2", "preconditioned": 0}
    try:
        build = cached(_builder)(factory, arguments)
        points = {name: np.asarray(values) for name, values in points_given}
        first: dict[str, Any] = {name: float(values[0]) for name, values in points.items()}
        certificate = thresholds.threshold(build, **first)
        attributes["preconditioned"] = int(certificate.preconditioned)
        attributes["condition"] = certificate.condition
        if points:
            values = np.concatenate(
                [_block_of_thresholds(build, points, start, count) for start in range(0, count, BLOCK)]
            )
        else:
            critical = certificate.critical_curvature
            values = np.full(count, np.nan if critical is None else critical)
    except ValueError as error:
        values = np.full(count, np.nan)
        attributes["condition"] = f"not computed: {error}"
    measured = "preconditioned sharpness" if attributes["preconditioned"] else "sharpness"
    attributes["description"] = f"{measured} at which the linearised optimizer turns unstable"
    return {"values": values.tolist(), "attributes": attributes}


def _block_of_thresholds(build: Any, points: dict[str, np.ndarray], start: int, count: int) -> np.ndarray:
    index = np.minimum(np.arange(start, start + BLOCK), count - 1)  # always full, so that one program serves every grid
    block = thresholds.critical_curvatures(build, {name: values[index] for name, values in points.items()})
    return block[: count - start]


def here() -> dict[str, str]:
    """Platform, device and versions of the software of this process: what decides bits besides the sweep."""
    device: Any = jax.local_devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "lossland": lossland.__version__,
        "jax": jax.__version__,
        "jaxlib": _version("jaxlib"),
        "optax": optax.__version__,
    }


_version = functools.lru_cache(maxsize=4)(metadata.version)


@functools.lru_cache(maxsize=32)  # one object per optimizer, so that its threshold is compiled once
def _builder(factory: Callable[..., Any], arguments: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    optimizer = Optimizer(factory, **dict(arguments))

    def build(**swept: Any) -> optax.GradientTransformation:
        return optimizer.build(**swept)

    build.__name__ = optimizer.name
    return build
