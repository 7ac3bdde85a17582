"""What is measured along the way. A probe reads a training state and returns named numbers; it never changes a run."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from lossland.arguments import FUNCTION, MAPPING, Rule, check, expects, optional
from lossland.curvature import lanczos, operators
from lossland.optimizers import Optimizer
from lossland.problems.problem import Problem


class State(NamedTuple):
    """One run, before a step: what a probe may read.

    `loss` and `gradient` are the full-data objective and its gradient at `params`. `batch_loss` and `batch_gradient`
    are those of the batch that the next step will use, random layers included: the same thing where every step sees the
    full data. `model_state` is what the network keeps besides its parameters (batch statistics). `epoch_mean_loss` is
    the running mean of batch losses, weighted by batch size, over the epoch so far: at the end of an epoch what Keras
    prints; NaN before the first step, and where every step sees the full data.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    loss: jax.Array
    gradient: Any
    batch_loss: Any = None
    batch_gradient: Any = None
    model_state: Any = ()
    epoch_mean_loss: Any = None


Lane = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Probe:
    """A measurement with its documentation.

    Args:
        name: what the records call it.
        measure: `measure(problem, optimizer, state)`, an array or a dict of arrays. `problem` and `optimizer` come with
            the run's hyperparameters decided: `problem.objective(params)` is the loss over the full data,
            `optimizer.update` one optax update.
        units: record name -> units ("1" where there are none).
        descriptions: record name -> one sentence.
        dims: record name -> names of the value's own axes, after the step axis.
        begin: for a probe that keeps a memory between records (a warm start): `begin(problem, params) -> memory`;
            `measure` then takes `(problem, optimizer, state, memory, any_lane)` and returns `(values, memory)`.
        follow: for a memory of every step (extremes, first times), `follow(memory, step, loss) -> memory`: called with
            the full-data loss before the first step and after each one, or, where steps see batches or random layers,
            at every record, before it is measured. It returns a memory of the same structure, shapes and types.

    Raises:
        ValueError: for functions that cannot take these arguments, or a `follow` without `begin`.
    """

    name: str
    measure: Callable[..., Any]
    units: dict[str, str] = field(default_factory=dict, hash=False)
    descriptions: dict[str, str] = field(default_factory=dict, hash=False)
    dims: dict[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    begin: Callable[[Problem, Any], Any] | None = None
    follow: Callable[[Any, jax.Array, jax.Array], Any] | None = None

    def __post_init__(self) -> None:
        check("name", self.name, Rule("a Python identifier", str.isidentifier))
        check(f"{self.name}: measure", self.measure, FUNCTION)
        for key in ("units", "descriptions", "dims"):
            check(f"{self.name}: {key}", getattr(self, key), MAPPING)
        for key in ("begin", "follow"):
            check(f"{self.name}: {key}", getattr(self, key), optional(FUNCTION))
        if self.follow is not None and self.begin is None:
            raise ValueError(f"{self.name}: follow needs a memory; pass begin=function of (problem, params)")
        remembers = ", memory, any_lane" if self.begin is not None else ""
        _check_takes(self.name, "measure", self.measure, f"problem, optimizer, state{remembers}")
        if self.begin is not None:
            _check_takes(self.name, "begin", self.begin, "problem, params")
        if self.follow is not None:
            _check_takes(self.name, "follow", self.follow, "memory, step, loss")

    def start(self, problem: Problem, params: Any) -> Any:
        """The memory before the first record, () for a probe without one."""
        return () if self.begin is None else self.begin(problem, params)

    def __call__(
        self, problem: Problem, optimizer: Optimizer, state: State, memory: Any, any_lane: Lane
    ) -> tuple[dict[str, jax.Array], Any]:
        """Measure once: ({record name: value}, new memory)."""
        if self.begin is None:
            values = self.measure(problem, optimizer, state)
        else:
            values, memory = self.measure(problem, optimizer, state, memory, any_lane)
        named = values if isinstance(values, dict) else {self.name: values}
        return {name: jnp.asarray(value) for name, value in named.items()}, memory


def _check_takes(probe: str, name: str, function: Any, arguments: str) -> None:
    """Raise a ValueError unless a function takes these arguments; one without a signature is taken at its word."""
    if not callable(function):
        raise ValueError(f"{probe}: {name}: expected a function of ({arguments}), got {type(function).__name__}")
    try:
        signature = inspect.signature(function)
    except ValueError:
        return
    try:
        signature.bind(*[None] * len(arguments.split(", ")))
    except TypeError as error:
        raise ValueError(f"{probe}: {name}: expected a function of ({arguments}): {error}") from None


def loss_probe() -> Probe:
    """Build the probe of the training objective over the full data, L(params)."""
    return Probe(
        "loss",
        lambda problem, optimizer, state: state.loss,
        units={"loss": "1"},
        descriptions={"loss": "training objective over the full data"},
    )


def batch_loss_probe() -> Probe:
    """Build the probe of the loss of the batch that the next step will use, random layers included."""
    return Probe(
        "batch_loss",
        lambda problem, optimizer, state: state.batch_loss,
        units={"batch_loss": "1"},
        descriptions={"batch_loss": "loss of the batch that the next step uses"},
    )


def epoch_mean_loss_probe() -> Probe:
    """Build the probe of the running epoch mean, sum_i b_i l_i / sum_i b_i over the batches of the epoch so far.

    Recorded at the end of an epoch it is what Keras prints: a mean over parameters that changed under way.
    """
    return Probe(
        "epoch_mean_loss",
        lambda problem, optimizer, state: state.epoch_mean_loss,
        units={"epoch_mean_loss": "1"},
        descriptions={
            "epoch_mean_loss": "mean batch loss of the epoch so far, weighted by batch size, as Keras prints"
        },
    )


def gradient_norm_probe() -> Probe:
    """Build the probe of the Euclidean norm of the full-data gradient, |g| = sqrt(sum g_i^2)."""

    def measure(problem: Problem, optimizer: Optimizer, state: State) -> jax.Array:
        return jnp.linalg.norm(ravel_pytree(state.gradient)[0])

    return Probe(
        "gradient_norm",
        measure,
        units={"gradient_norm": "1"},
        descriptions={"gradient_norm": "Euclidean norm of the gradient of the training objective"},
    )


def gradient_curvature_probe() -> Probe:
    """Build the probe of the curvature along the gradient, g.Hg / g.g: one Hessian product.

    A gradient-descent step of length eta raises the quadratic model of the loss iff this exceeds 2 / eta.
    """

    def measure(problem: Problem, optimizer: Optimizer, state: State) -> jax.Array:
        gradient, unravel = ravel_pytree(state.gradient)
        product, _ = ravel_pytree(operators.hessian(problem.objective, state.params)(unravel(gradient)))
        return jnp.vdot(gradient, product) / jnp.vdot(gradient, gradient)

    return Probe(
        "gradient_curvature",
        measure,
        units={"gradient_curvature": "1"},
        descriptions={"gradient_curvature": "curvature of the training objective along its gradient, g.Hg / g.g"},
    )


@expects(logits=FUNCTION, labels=FUNCTION)
def accuracy_probe(
    logits: Callable[[Any, Any], jax.Array], labels: Callable[[Any], jax.Array] = lambda data: data[1]
) -> Probe:
    """Build the probe of the training accuracy: the share of examples whose largest logit is that of their label.

    Equation: accuracy = mean over the full data of [argmax_c z_c = label]. Of equal logits the first counts.

    Args:
        logits: (params, data) -> `Float[Array, "example class"]`.
        labels: data -> `Int[Array, "example"]`; the second entry of the data if not given.

    Raises:
        ValueError: (when the sweep is traced) where logits and labels do not fit.
    """

    def measure(problem: Problem, optimizer: Optimizer, state: State) -> jax.Array:
        z, given = logits(state.params, problem.data), jnp.asarray(labels(problem.data))
        if given.shape != z.shape[:-1] or not jnp.issubdtype(given.dtype, jnp.integer):
            raise ValueError(
                f"labels: expected whole numbers of shape {z.shape[:-1]}, one per row of logits, got {given.dtype} of "
                f"shape {given.shape}; pass labels=function of the data"
            )
        return jnp.mean(jnp.argmax(z, axis=-1) == given, dtype=z.dtype)

    return Probe(
        "accuracy",
        measure,
        units={"accuracy": "1"},
        descriptions={"accuracy": "share of the training examples whose largest logit is their label's"},
    )


def sharpness_probe(tol: float = 1e-4, max_matvecs: int = 192) -> Probe:
    """Build the probe of the sharpness, the largest signed eigenvalue of the Hessian of the full-data objective.

    Equation: sharpness = max over unit v of v.Hv, by Lanczos, started from the top directions of the previous record
    and stopped when the residual |Hv - sharpness v| is at most `tol` times its magnitude. The residual bounds the
    distance to the nearest eigenvalue. Beside the value stand `sharpness_residual` (same units),
    `sharpness_num_matvecs` and `sharpness_converged`. Units: loss / parameter^2.
    """

    def begin(problem: Problem, params: Any) -> jax.Array:
        flat, _ = ravel_pytree(params)
        return jax.random.normal(jax.random.key(0), flat.shape, flat.dtype)

    def measure(problem: Problem, optimizer: Optimizer, state: State, start: jax.Array, any_lane: Lane) -> Any:
        _, unravel = ravel_pytree(state.params)
        product = operators.hessian(problem.objective, state.params)

        def matvec(vector: jax.Array) -> jax.Array:
            return ravel_pytree(product(unravel(vector)))[0]

        top = lanczos.top_eigenpair(matvec, start, tol=tol, max_matvecs=max_matvecs, any_lane=any_lane)
        values = {
            "sharpness": top.value,
            "sharpness_residual": top.residual,
            "sharpness_num_matvecs": top.num_matvecs,
            "sharpness_converged": top.converged,
        }
        return values, top.next_start

    return Probe(
        "sharpness",
        measure,
        begin=begin,
        units={
            "sharpness": "loss / parameter^2",
            "sharpness_residual": "loss / parameter^2",
            "sharpness_num_matvecs": "1",
            "sharpness_converged": "1",
        },
        descriptions={
            "sharpness": "largest signed eigenvalue of the Hessian of the training objective over the full data",
            "sharpness_residual": "norm of H v - sharpness v: the distance to the nearest eigenvalue is at most this",
            "sharpness_num_matvecs": "Hessian products spent on this record",
            "sharpness_converged": f"whether the residual is at most {tol:g} of the sharpness",
        },
    )


def _elsewhere(module: str, name: str) -> Callable[[], Probe]:
    """Build a probe of another module, which is imported when it is first asked for: it imports this one."""
    return lambda: getattr(importlib.import_module(f"lossland.sweeps.{module}"), name)()


BUILT_IN: dict[str, Callable[[], Probe]] = {
    "loss": loss_probe,
    "batch_loss": batch_loss_probe,
    "epoch_mean_loss": epoch_mean_loss_probe,
    "gradient_norm": gradient_norm_probe,
    "gradient_curvature": gradient_curvature_probe,
    "sharpness": sharpness_probe,
    "lowest_eigenvalue": _elsewhere("curvature_probes", "lowest_eigenvalue"),
    "preconditioned_sharpness": _elsewhere("curvature_probes", "preconditioned_sharpness"),
    "trace": _elsewhere("curvature_probes", "trace"),
    "preconditioned_mode": _elsewhere("adaptive_probes", "preconditioned_mode"),
    "preconditioned_gradient_curvature": _elsewhere("adaptive_probes", "preconditioned_gradient_curvature"),
    "update_statistics": _elsewhere("adaptive_probes", "update_statistics"),
}


def as_probes(probes: Iterable[Any]) -> tuple[Probe, ...]:
    """Turn names, functions and `Probe` objects into probes.

    Raises:
        ValueError: for a name that is not built in (those that are get listed), a function that cannot take
            (problem, optimizer, state), or two probes of one name.
    """
    if isinstance(probes, (str, Probe)) or callable(probes) or not isinstance(probes, Iterable):
        raise ValueError(f"probes: expected a list, got {probes!r}; write probes=[...]")
    made = tuple(_as_probe(probe) for probe in probes)
    names = [probe.name for probe in made]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"probes: expected distinct names, got {', '.join(sorted(twice))} twice")
    return made


def _as_probe(probe: Any) -> Probe:
    if isinstance(probe, Probe):
        return probe
    if isinstance(probe, str):
        if probe not in BUILT_IN:
            raise ValueError(
                f"probes: no built-in probe {probe!r}; there are {', '.join(BUILT_IN)}, or pass a function"
            )
        return _built_in(probe)
    if not callable(probe):
        raise ValueError(
            f"probes: expected a name or a function (problem, optimizer, state), got {type(probe).__name__}"
        )
    try:
        inspect.signature(probe).bind(None, None, None)
    except TypeError as error:
        raise ValueError(
            f"probes: {getattr(probe, '__name__', probe)!r} must take (problem, optimizer, state): {error}"
        ) from None
    name = getattr(probe, "__name__", type(probe).__name__)
    if not name.isidentifier():  # a lambda
        raise ValueError("probes: a lambda has no name to record under; use a function, or ll.Probe(name, function)")
    description = (inspect.getdoc(probe) or "").split("\n")[0]
    return Probe(name, probe, descriptions={name: description} if description else {})


@functools.cache  # one object per name, so that a second sweep finds the first one's compiled program
def _built_in(name: str) -> Probe:
    return BUILT_IN[name]()
