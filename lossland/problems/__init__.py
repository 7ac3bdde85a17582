"""What is trained: synthetic landscapes, bundled data, reported cases, and `Problem` to bring one's own.

Every builder is at hand by its name, `lossland.problems.numpy_mlp()`; its module is loaded at the first use. Importing
this package imports neither jax nor flax, so that the command line can list the problems at once.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lossland.problems import (
        datasets,
        flax_modules,
        label_noise,
        motor_currents,
        networks,
        problem,
        reported,
        sequences,
        synthetic,
        trainability,
    )
    from lossland.problems.datasets import breast_cancer, digit_rows, digits
    from lossland.problems.label_noise import with_label_noise
    from lossland.problems.motor_currents import keras_lstm
    from lossland.problems.networks import mlp_classification, mlp_regression
    from lossland.problems.problem import Problem
    from lossland.problems.reported import course_mlp, linear_regression, numpy_mlp
    from lossland.problems.sequences import rnn_sequences
    from lossland.problems.synthetic import (
        blobs,
        chebyshev,
        deep_linear,
        moons,
        quadratic,
        random_features,
        spirals,
        uv_model,
    )

_MODULES = (
    "datasets",
    "flax_modules",
    "label_noise",
    "motor_currents",
    "networks",
    "problem",
    "reported",
    "sequences",
    "synthetic",
    "trainability",
)

NAMES: dict[str, tuple[str, str]] = {
    "linear_regression": (
        "lossland.problems.reported:linear_regression",
        "y = x/2 on x = 1..20, one weight and one bias: the loss of Keras' SGD grows without bound",
    ),
    "numpy_mlp": (
        "lossland.problems.reported:numpy_mlp",
        "two tanh layers by hand, full batch, on half-moons: a spike at the start",
    ),
    "rnn_sequences": (
        "lossland.problems.sequences:rnn_sequences",
        "a recurrent classifier of four types of sequences: learns, then gets worse",
    ),
    "keras_lstm": (
        "lossland.problems.motor_currents:keras_lstm",
        "an LSTM on 98 current traces in batches of 32, the last one of two: its loss fluctuates",
    ),
    "course_mlp": (
        "lossland.problems.reported:course_mlp",
        "a relu network on six blobs, Adam at 0.01: the epoch loss sometimes rises",
    ),
    "digits": ("lossland.problems.datasets:digits", "scikit-learn's handwritten digits, 1797 x 64, ten classes"),
    "digit_rows": (
        "lossland.problems.datasets:digit_rows",
        "the same digits read row by row by a small transformer, eight rows of eight pixels",
    ),
    "breast_cancer": (
        "lossland.problems.datasets:breast_cancer",
        "scikit-learn's breast-cancer table, 569 x 30, two classes",
    ),
    "quadratic": ("lossland.problems.synthetic:quadratic", "a quadratic of chosen eigenvalues"),
    "chebyshev": ("lossland.problems.synthetic:chebyshev", "a tanh network fits a Chebyshev polynomial at 20 points"),
    "moons": ("lossland.problems.synthetic:moons", "two interleaving half-moons"),
    "blobs": ("lossland.problems.synthetic:blobs", "Gaussian blobs, six classes"),
    "spirals": ("lossland.problems.synthetic:spirals", "interleaving spirals, one class per arm"),
    "random_features": (
        "lossland.problems.synthetic:random_features",
        "least squares on random Fourier features, fitted exactly by every example",
    ),
    "deep_linear": ("lossland.problems.synthetic:deep_linear", "a deep linear network on whitened inputs"),
    "uv_model": ("lossland.problems.synthetic:uv_model", "f = u.v / sqrt(n), the solvable model of the catapult"),
}
"""Problems that have a name on the command line: name -> ("module:function", one line about it)."""

_HOMES = {name: home.partition(":")[0] for name, (home, _) in NAMES.items()} | {
    "Problem": "lossland.problems.problem",
    "mlp_classification": "lossland.problems.networks",
    "mlp_regression": "lossland.problems.networks",
    "with_label_noise": "lossland.problems.label_noise",
}
"""Names at home in a submodule: name -> the submodule."""

__all__ = [
    "NAMES",
    "Problem",
    "blobs",
    "breast_cancer",
    "chebyshev",
    "course_mlp",
    "datasets",
    "deep_linear",
    "digit_rows",
    "digits",
    "flax_modules",
    "keras_lstm",
    "label_noise",
    "linear_regression",
    "mlp_classification",
    "mlp_regression",
    "moons",
    "motor_currents",
    "named",
    "networks",
    "numpy_mlp",
    "problem",
    "quadratic",
    "random_features",
    "reported",
    "rnn_sequences",
    "sequences",
    "spirals",
    "synthetic",
    "trainability",
    "uv_model",
    "with_label_noise",
]


def named(name: str, **options: Any) -> Problem:
    """Build a problem from its name on the command line, with options of its builder.

    Raises:
        ValueError: if there is no such problem or the builder has no such option; those that exist are listed.
    """
    if not isinstance(name, str) or name not in NAMES:
        raise ValueError(f"problem: expected one of {', '.join(NAMES)}, got {name!r}")
    module, _, function = NAMES[name][0].partition(":")
    builder = getattr(importlib.import_module(module), function)
    known = inspect.signature(builder).parameters
    for option in options:
        if option not in known:
            raise ValueError(f"problem {name} has no option {option!r}; it has {', '.join(known) or 'none'}")
    return builder(**options)


def __getattr__(name: str) -> Any:
    """Load a submodule, or a function of one, at its first use (PEP 562)."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return list(__all__)
