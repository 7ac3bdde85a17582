"""Tutorials run, and what their text says is what their numbers are.

The build of the pages runs those that were not run here.
"""

import numpy as np
import pytest

import lossland as ll
from tests.docs.pages import DOCS, extension

percent = extension("percent_tutorials")


def run(name):
    """Run a tutorial as the build of the pages does, which takes it from here: (names at its end, figures, text)."""
    made = percent.keep(DOCS / "tutorials" / f"{name}.py")
    assert all(path.stat().st_size > 10_000 for path in made.figures)
    return made.names, made.figures, made.printed


@pytest.mark.slow
def test_a_keras_history_is_explained():
    names, _, printed = run("keras_history")
    assert names["found"].cause is ll.Cause.learning_rate_above_threshold
    assert names["found"].sharpness == pytest.approx(288.539, abs=1e-2)
    assert "standardised inputs: sharpness 2.000" in printed


@pytest.mark.slow
def test_first_map_says_what_was_measured():
    names, figures, printed = run("first_map")
    rises = names["rises"]
    assert float(rises["low"]) <= names["predicted"] <= float(rises["high"])
    assert not (names["runs"]["status"] == ll.Outcome.diverged).any(), "the text says that nothing diverges"
    above, flatter = names["above"], names["flatter"]
    assert above[-1].all(), "every run at the largest rate starts above its threshold"
    assert flatter[above].mean() > 0.75, "nearly all; those at the largest rates differ by rounding"
    assert flatter[~above].mean() < 0.5, "runs below their threshold sharpen"
    assert [path.stem for path in figures] == ["first_map_stability_map", "first_map_curves"]
    assert f"{names['measured']:.3g}" in printed


@pytest.mark.long
def test_adam_sits_at_its_own_edge():
    names, figures, printed = run("adam_edge_of_stability")
    assert "b1 = 0.9: threshold 38000 = 38 / learning rate" in printed
    assert np.all(np.abs(names["late"].values - 1) < 0.15), "the text says that both sit near 1"
    assert (names["runs"]["num_rises"] > 100).all(), "and that many steps raise the loss"
    assert len(figures) == 1


@pytest.mark.long
def test_a_run_of_a_flax_model_is_explained_and_the_remedy_verified():
    names, figures, _ = run("flax_model")
    explanation = names["explanation"]
    assert explanation.cause is not ll.Cause.unknown
    assert any(remedy.verified for remedy in explanation.remedies)
    assert len(figures) == 1
    rises = names["runs"]["num_rises"]
    assert (rises.isel(learning_rate=0) == 0).all()
    assert (rises.isel(learning_rate=-1) > 10).all()
