"""Real data that need no network: tables that scikit-learn ships.

Loss normalisation: mean over examples; "mse" takes the *sum* over outputs and a half, see
`networks.mlp_classification`. Needs the extra `data`: `pip install "lossland[data]"`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from lossland.arguments import ARRAY, MOST_EXAMPLES, MOST_UNITS, WIDTHS, count, expects, optional
from lossland.problems.networks import (
    Activation,
    Loss,
    Transformer,
    classification_loss,
    mlp_classification,
    with_scale,
)
from lossland.problems.problem import Problem


@expects(widths=WIDTHS, num_examples=optional(count(1, MOST_EXAMPLES)), seed=count(0))
def digits(
    widths: Sequence[int] = (64,),
    activation: str | Activation = "tanh",
    loss: Loss = "cross_entropy",
    num_examples: int | None = None,
    seed: int = 0,
) -> Problem:
    """Build the classification of scikit-learn's handwritten digits by a multilayer perceptron.

    1797 images of 8 x 8 pixels, grey levels divided by 16 to lie in [0, 1], ten classes. `num_examples` keeps a
    stratified subsample drawn with `seed`; of two sizes the smaller is part of the larger.

    Hyperparameters: `scale` (1) multiplies the initial weights.

    Raises:
        ValueError: if scikit-learn is missing, or for more examples than there are.
    """
    table = _scikit_learn("load_digits")
    keep = stratified(table.target, num_examples, seed)
    return mlp_classification(
        table.data[keep] / 16.0,
        table.target[keep],
        widths=widths,
        activation=activation,
        loss=loss,
        name="digits",
        description=f"scikit-learn's handwritten digits, {len(keep)} examples, grey levels in [0, 1].",
    )


@expects(
    width=count(2, MOST_UNITS),
    num_layers=count(1, 2**10),
    num_examples=optional(count(1, MOST_EXAMPLES)),
    seed=count(0),
)
def digit_rows(
    width: int = 16, num_layers: int = 1, loss: Loss = "mse", num_examples: int | None = None, seed: int = 0
) -> Problem:
    """Build the classification of scikit-learn's digits by a small transformer that reads them row by row.

    Sequences of eight rows of eight pixels, grey levels in [0, 1]; `networks.Transformer` with two heads. Loss and
    `num_examples` as in `digits`.

    Hyperparameters: `scale` (1) multiplies the initial weights, not the gains of layer norms.

    Raises:
        ValueError: if scikit-learn is missing, for more examples than there are, an odd width, or an unknown loss.
    """
    if isinstance(width, bool) or not isinstance(width, (int, np.integer)) or width < 2 or width % 2:
        raise ValueError(f"width: expected an even number of units, for two heads, got {width!r}")
    table = _scikit_learn("load_digits")
    keep = stratified(table.target, num_examples, seed)
    problem = Problem.from_flax(
        Transformer(10, width=width, num_layers=num_layers),
        classification_loss(loss),
        ((table.images[keep] / 16.0).astype(np.float32), table.target[keep].astype(np.int32)),
        name="digit_rows",
        description=f"scikit-learn's handwritten digits read row by row, {len(keep)} examples, grey levels in [0, 1].",
    )
    return with_scale(problem)


@expects(widths=WIDTHS, num_examples=optional(count(1, MOST_EXAMPLES)), seed=count(0))
def breast_cancer(
    widths: Sequence[int] = (64,),
    activation: str | Activation = "tanh",
    loss: Loss = "cross_entropy",
    num_examples: int | None = None,
    seed: int = 0,
) -> Problem:
    """Build the classification of scikit-learn's breast-cancer table by a multilayer perceptron.

    Wisconsin, diagnostic: 569 examples of 30 features, standardised over all of them to mean 0 and variance 1; labels
    0 malignant, 1 benign, one output each. `num_examples` keeps a stratified subsample drawn with `seed`.

    Hyperparameters: `scale` (1) multiplies the initial weights.

    Raises:
        ValueError: if scikit-learn is missing, or for more examples than there are.
    """
    features, labels = breast_cancer_table()
    keep = stratified(labels, num_examples, seed)
    return mlp_classification(
        features[keep],
        labels[keep],
        widths=widths,
        activation=activation,
        loss=loss,
        name="breast_cancer",
        description=f"scikit-learn's breast-cancer table, {len(keep)} examples, standardised features.",
    )


def breast_cancer_table() -> tuple[np.ndarray, np.ndarray]:
    """Load the breast-cancer table: (standardised features `Float32["569 30"]`, labels `Int32["569"]`)."""
    table = _scikit_learn("load_breast_cancer")
    standardised = (table.data - table.data.mean(axis=0)) / table.data.std(axis=0)
    return standardised.astype(np.float32), table.target.astype(np.int32)


@expects(labels=ARRAY, num_examples=optional(count(1, MOST_EXAMPLES)), seed=count(0))
def stratified(labels: Any, num_examples: int | None, seed: int = 0) -> np.ndarray:
    """Choose examples so that every class keeps its share: sorted indices `Int["num_examples"]`.

    Each class is shuffled with `seed`; the example of rank r (from 0) among the n of its class stands at (r + 1/2) / n,
    and those that stand first are taken. Hence shares are as close as whole numbers allow and subsamples are nested.

    Raises:
        ValueError: unless 1 <= num_examples <= number of labels; None keeps all.
    """
    labels = np.asarray(labels)
    if num_examples is None:
        return np.arange(labels.size)
    if not 1 <= num_examples <= labels.size:
        raise ValueError(f"num_examples: expected 1 to {labels.size}, got {num_examples}")
    rng = np.random.default_rng(seed)
    standing = np.empty(labels.size)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        standing[members] = (np.arange(members.size) + 0.5) / members.size
    return np.sort(np.argsort(standing, kind="stable")[:num_examples])


def _scikit_learn(loader: str) -> Any:
    try:
        module = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise ValueError('this data comes with scikit-learn, which is missing: pip install "lossland[data]"') from error
    return getattr(module, loader)()
