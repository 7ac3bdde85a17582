"""Tutorials run, and what their text says is what their numbers are."""

import numpy as np
import pytest

import lossland as ll
from tests.docs.pages import DOCS, extension

percent = extension("percent_tutorials")


def run(name, folder):
    """Run a tutorial as the pages do: (names at its end, figures, printed text)."""
    script = (DOCS / "tutorials" / f"{name}.py").read_text()
    figures, printed = [], ""
    for _, output, now in percent.execute(script, f"{name}.py", folder):
        names = now
        if output is not None:
            figures += output.figures
            printed += output.printed
    assert all(path.stat().st_size > 10_000 for path in figures)
    return names, figures, printed


@pytest.mark.slow
def test_a_keras_history_is_explained(tmp_path):
    names, _, printed = run("keras_history", tmp_path)
    assert names["found"].cause is ll.Cause.learning_rate_above_threshold
    assert names["found"].sharpness == pytest.approx(288.539, abs=1e-2)
    assert "standardised inputs: sharpness 2.000" in printed


@pytest.mark.slow
def test_first_map_says_what_was_measured(tmp_path):
    names, figures, printed = run("first_map", tmp_path)
    rises = names["rises"]
    assert float(rises["low"]) <= names["predicted"] <= float(rises["high"])
    assert not (names["runs"]["status"] == ll.Outcome.diverged).any(), "the text says that nothing diverges"
    largest = names["runs"].isel(learning_rate=-1)
    assert (largest["relative_sharpness"].isel(step=0) > 1).all()
    assert (largest["sharpness"].isel(step=-1) < largest["sharpness"].isel(step=0)).all()
    assert [path.stem for path in figures] == ["stability_map", "curves"]
    assert f"{names['measured']:.3g}" in printed


@pytest.mark.slow
def test_adam_sits_at_its_own_edge(tmp_path):
    names, figures, printed = run("adam_edge_of_stability", tmp_path)
    assert "b1 = 0.9: threshold 38000 = 38 / learning rate" in printed
    assert np.all(np.abs(names["late"].values - 1) < 0.15), "the text says that both sit near 1"
    assert (names["runs"]["num_rises"] > 100).all(), "and that many steps raise the loss"
    assert len(figures) == 1


@pytest.mark.long
def test_a_run_of_a_flax_model_is_explained_and_the_remedy_verified(tmp_path):
    names, figures, _ = run("flax_model", tmp_path)
    explanation = names["explanation"]
    assert explanation.cause is not ll.Cause.unknown
    assert any(remedy.verified for remedy in explanation.remedies)
    assert (tmp_path / "runs" / "flax_model" / "runs" / "manifest.json").exists()
    assert len(figures) == 1
    rises = names["runs"]["num_rises"]
    assert (rises.isel(learning_rate=0) == 0).all()
    assert (rises.isel(learning_rate=-1) > 10).all()
