"""Results that were selected, renamed or emptied before they are read: refused by the argument's name, or read."""

import matplotlib
import numpy as np
import pytest

import lossland as ll
from tests.bad_input.calls import runs
from tests.bad_input.test_functions import HOUSE, no_hang

BENT = {
    "no steps": lambda runs: runs.isel(step=[]),
    "one step of them": lambda runs: runs.isel(step=-1),
    "no seeds": lambda runs: runs.isel(seed=[]),
    "no learning rates": lambda runs: runs.isel(learning_rate=[]),
    "steps renamed": lambda runs: runs.rename(step="epoch"),
    "stacked": lambda runs: runs.stack(point=("learning_rate", "seed")),
    "a learning rate twice": lambda runs: runs.isel(learning_rate=[0, 0, 1]),
    "no number as learning rate": lambda runs: runs.assign_coords(learning_rate=[0.1, 0.2, 0.3, 0.4, np.nan]),
    "losses as text": lambda runs: runs.assign(loss=runs["loss"].astype(str)),
    "losses as objects": lambda runs: runs.assign(loss=runs["loss"].astype(object)),
    "complex losses": lambda runs: runs.assign(loss=runs["loss"] * 1j),
    "status as text": lambda runs: runs.assign(status=runs["status"].astype(str)),
}
OVER_SEEDS = {
    "seeds renamed": lambda runs: runs.rename(seed="start"),
    "one seed of them": lambda runs: runs.isel(seed=0),
}
READ_STEPS = {
    "classes": ll.classes,
    "cutoff_sensitivity": ll.cutoff_sensitivity,
    "stability_map_figure": ll.figures.stability_map_figure,
    "curves_figure": ll.figures.curves_figure,
    "boundaries": ll.figures.boundaries,
    "explain": ll.explain,
}
READ_SEEDS = {
    "stability_map": ll.stability_map,
    "critical_learning_rate": ll.critical_learning_rate,
    "critical_constants": ll.critical_constants,
    "catapult_window": ll.catapult_window,
    "outcome_probability": ll.outcome_probability,
}
CASES = [(name, bent) for name in {**READ_STEPS, **READ_SEEDS} for bent in BENT]
CASES += [(name, bent) for name in READ_SEEDS for bent in OVER_SEEDS]


@pytest.fixture(autouse=True)
def no_window():
    with matplotlib.rc_context({"backend": "agg"}):
        yield


@pytest.mark.parametrize(("name", "bent"), CASES)
def test_bent_results_are_refused_by_name(name, bent):
    function = (READ_STEPS | READ_SEEDS)[name]
    given = (BENT | OVER_SEEDS)[bent](runs())
    with no_hang(), pytest.raises(ValueError, match=r"^runs?: ") as caught:
        function(given)
    where = caught.value.__traceback__
    while where.tb_next is not None:
        where = where.tb_next
    assert where.tb_frame.f_code.co_filename.startswith(HOUSE)


def test_seeds_drawn_with_replacement_are_still_read():
    """A bootstrap over seeds repeats some of them."""
    again = ll.stability_map(runs().isel(seed=[0, 0, 0]))
    first = ll.stability_map(runs().isel(seed=[0]))
    np.testing.assert_array_equal(again["diverges"], first["diverges"])


def test_a_dataset_without_its_threshold_is_drawn_without_it(tmp_path):
    given = runs().drop_vars("threshold")
    ll.figures.stability_map_figure(given)
    assert ll.write_report(given, tmp_path / "report.html").stat().st_size > 1000
