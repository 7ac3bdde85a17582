"""The self-check measures; it says no where a fact does not hold."""

import optax
import pytest

from lossland import selfcheck
from lossland.cli import main
from lossland.optimizers import Optimizer


def test_thresholds_are_measured_where_textbooks_say():
    for fact in (selfcheck.gradient_descent(), selfcheck.adam()):
        assert fact.holds, fact


@pytest.mark.slow
def test_a_network_sharpens_to_its_edge():
    fact = selfcheck.progressive_sharpening()
    assert fact.holds, fact


def test_another_number_is_a_miss(capsys, monkeypatch):
    """Half a per cent beside the truth is seen, and is what the command ends with."""
    optimizer = Optimizer(optax.sgd)
    found = selfcheck._threshold(optimizer, curvature=10.0, scale=1.0, textbook=2.0, num_steps=2000)
    assert found[0] < 2.0 < found[1]
    assert found[1] - found[0] < 2e-3 * 2
    monkeypatch.setattr(selfcheck, "FACTS", (lambda: selfcheck._compared("moved", found, 2.01),))
    assert main(["selfcheck"]) == 1
    assert "FAILS" in capsys.readouterr().out
    monkeypatch.setattr(selfcheck, "FACTS", (lambda: selfcheck._compared("true", found, 2.0),))
    assert main(["selfcheck"]) == 0
    assert "all facts hold" in capsys.readouterr().out


def test_doctor_says_how_precise_products_are(capsys):
    assert main(["doctor"]) == 0
    errors = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines() if "relative error" in line]
    assert len(errors) == 2
    assert errors[0] < 1e-6
    assert errors[1] < 1e-14
