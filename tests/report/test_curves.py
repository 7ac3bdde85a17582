"""Fewer points keep every rise and both ends, fewer bits keep the shape."""

import numpy as np
import pytest

from lossland.report.curves import pack_curves, thin, unpack_curves


def test_few_records_are_all_kept():
    values, steps = np.random.default_rng(0).random((3, 50)), np.arange(0, 500, 10)
    thinned = thin(values, steps, 64)
    assert thinned.exact
    np.testing.assert_array_equal(thinned.values, values)
    np.testing.assert_array_equal(thinned.steps, steps)


@pytest.mark.parametrize("count", [129, 400, 5001])
def test_lowest_and_highest_records_and_both_ends_stay(count):
    rng = np.random.default_rng(1)
    values = np.exp(rng.normal(size=(20, count)).cumsum(1))
    spikes = rng.integers(1, count - 1, 20)
    values[np.arange(20), spikes] = 1e9 * values.max()
    thinned = thin(values, np.arange(count), 128)
    assert not thinned.exact
    assert thinned.values.shape[1] <= 128
    assert len(thinned.steps) == thinned.values.shape[1]
    assert np.all(np.diff(thinned.steps) >= 0)
    for end in (0, -1):
        np.testing.assert_array_equal(thinned.values[:, end], values[:, end])
    for extreme in (np.min, np.max):
        np.testing.assert_array_equal(extreme(thinned.values, axis=1), extreme(values, axis=1))
    seen = thinned.steps[np.argmax(thinned.values, axis=1)]
    assert np.all(np.abs(seen - spikes) <= np.ceil(count / 63)), "a spike is drawn in its own stretch"


def test_what_is_not_a_number_stays_so_where_nothing_else_is_there():
    values = np.ones((2, 400))
    values[0, 200:] = np.nan
    values[1, ::2] = np.nan
    thinned = thin(values, np.arange(400), 64)
    late = thinned.steps > 210
    assert np.isnan(thinned.values[0, late]).all()
    assert np.isfinite(thinned.values[1, 1:-1]).all()


def test_codes_give_values_back():
    """16 bits over a run's range: relative error at most half a code of the range of its logarithm."""
    rng = np.random.default_rng(2)
    positive = np.exp(rng.uniform(-60, 60, (5, 40)))
    signed = rng.normal(size=(4, 40))
    special = np.array([[np.nan] * 40, [np.inf] * 40, [3.0] * 40, [0.0] * 40])
    special[1, :5] = [1, 2, 3, 4, np.nan]
    values = np.concatenate([positive, signed, special])
    found = unpack_curves(pack_curves(values), len(values))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(values))
    np.testing.assert_array_equal(np.isinf(found), np.isinf(values))
    span = np.log(positive).max(1) - np.log(positive).min(1)
    error = np.abs(np.log(found[:5]) - np.log(positive)).max(1)
    assert np.all(error < span / 65532 + 1e-5)
    assert np.abs(found[5:9] - signed).max() < np.ptp(signed) / 65532 + 1e-6
    np.testing.assert_allclose(found[11:], special[2:], rtol=1e-6)


def test_a_loss_that_reaches_zero_keeps_its_small_values():
    values = np.append(np.geomspace(1.0, 1e-16, 50), [0.0, 1e-3])[None]
    found = unpack_curves(pack_curves(values), 1)
    np.testing.assert_allclose(found, values, rtol=1e-3)
    assert found[0, 50] == 0
