import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from lossland.figures import plot_stability_map, save_numbers, stability_map_figure
from lossland.figures.maps import map_note, map_title
from lossland.figures.reading import boundaries
from lossland.stability.maps import OUTCOMES, critical_learning_rate, stability_map
from tests.figures.synthetic import SHARPNESS, assert_texts_are_apart, catapults, not_run

RATES = np.geomspace(0.1, 10, 25)
BOUNDARIES = ("predicted", "rises", "catapult_bound", "diverges")
SCALES = np.geomspace(0.5, 2, 5)


def drawn(runs):
    ax = Figure(figsize=(4, 3)).add_subplot()
    plot_stability_map(ax, runs)
    return ax


def line(ax, label):
    (found,) = [line for line in ax.lines if line.get_label() == label]
    return found


def areas(ax):
    return {patch.get_label(): patch.get_data() for patch in ax.patches if hasattr(patch, "get_data")}


def lower_median(values):
    return np.sort(values)[(len(values) - 1) // 2]


def test_areas_are_the_fractions_of_seeds():
    ratio = RATES[:, None] * SHARPNESS / 2
    expected = {
        "never_rises": (ratio <= 1).mean(1),
        "rises_and_recovers": ((ratio > 1) & (ratio <= 2)).mean(1),
        "diverges": (ratio > 2).mean(1),
    }
    found = areas(drawn(catapults({"learning_rate": RATES})))
    assert set(found) == set(OUTCOMES) == set(expected)
    for name, (top, edges, base) in found.items():
        np.testing.assert_allclose(top - base, expected[name], atol=1e-12)
        np.testing.assert_allclose(edges[1:-1], np.sqrt(RATES[1:] * RATES[:-1]))
    # Stacked from 0 to 1 without a gap.
    np.testing.assert_array_equal(found["never_rises"][2], 0)
    np.testing.assert_array_equal(found["never_rises"][0], found["rises_and_recovers"][2])
    np.testing.assert_allclose(found["diverges"][0], 1)


def test_lines_stand_at_the_medians_over_seeds():
    runs = catapults({"learning_rate": RATES})
    ax = drawn(runs)
    expected = {"predicted": lower_median(2 / SHARPNESS), "catapult_bound": lower_median(4 / SHARPNESS)}
    expected |= {event: critical_learning_rate(runs, event)["median"].item() for event in ("rises", "diverges")}
    for name, rate in expected.items():
        np.testing.assert_allclose(line(ax, name).get_xdata(), rate, rtol=1e-12)
        np.testing.assert_allclose(line(ax, f"{name} median").get_xdata(), rate, rtol=1e-12)
    # Too few seeds for 95 % inside the extremes: the interval is the full range.
    np.testing.assert_allclose(line(ax, "predicted interval").get_xdata(), [2 / SHARPNESS.max(), 2 / SHARPNESS.min()])
    texts = [text.get_text() for text in ax.texts]
    assert {"2/sharpness", "4/sharpness", "loss rises", "diverges"} <= set(texts)
    assert f"{expected['predicted']:#.3g}" in texts
    assert line(ax, "predicted").get_linestyle() != line(ax, "diverges").get_linestyle()


def test_prediction_is_named_after_the_optimizer():
    found = boundaries(catapults({"learning_rate": RATES}, product=3.8))
    assert found["label"].sel(boundary="predicted") == "3.8/sharpness"
    assert "catapult_bound" not in found["boundary"], "known for plain gradient descent only"
    np.testing.assert_allclose(found["median"].sel(boundary="predicted"), lower_median(3.8 / SHARPNESS))
    runs = catapults({"learning_rate": RATES})
    runs["threshold"] = runs["threshold"] * np.linspace(1, 2, 25)
    assert boundaries(runs)["label"].values[0] == "sharpness = threshold"


def test_boundaries_off_the_grid_are_arrows_not_lines():
    ax = drawn(catapults({"learning_rate": RATES[:6]}))
    labels = [line.get_label() for line in ax.lines]
    for name in BOUNDARIES:
        assert f"{name} off the grid" in labels
        assert name not in labels
    assert f"> {RATES[5]:.3g}" in [text.get_text() for text in ax.texts]


def test_heat_is_the_fraction_that_diverges():
    runs = catapults({"scale": SCALES, "learning_rate": RATES})
    ax = drawn(runs)
    ratio = RATES[:, None, None] * SCALES[:, None] * SHARPNESS / 2
    np.testing.assert_allclose(ax.collections[0].get_array(), (ratio > 2).mean(-1))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("scale", "learning rate")
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    for name, multiple in (("predicted", 2), ("catapult_bound", 4)):
        np.testing.assert_allclose(line(ax, name).get_xdata(), SCALES)
        np.testing.assert_allclose(line(ax, name).get_ydata(), multiple / (SCALES * np.sort(SHARPNESS)[4]))
    np.testing.assert_allclose(areas(ax)["rises"][0], critical_learning_rate(runs, "rises")["median"])


def test_the_other_order_of_axes_draws_the_same_map():
    first = drawn(catapults({"scale": SCALES, "learning_rate": RATES}))
    second = drawn(catapults({"learning_rate": RATES, "scale": SCALES}))
    np.testing.assert_array_equal(first.collections[0].get_array(), second.collections[0].get_array())


def test_rows_and_order_of_a_grid_do_not_matter():
    runs = catapults({"learning_rate": RATES})
    shuffled = runs.isel(learning_rate=np.random.default_rng(0).permutation(25))
    for name, data in areas(drawn(runs)).items():
        for ours, theirs in zip(data, areas(drawn(shuffled))[name], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_grid_without_learning_rate_has_a_contour_where_the_loss_rises():
    runs = catapults({"momentum": np.linspace(0, 0.9, 4), "scale": np.geomspace(0.5, 8, 9)})
    ax = drawn(runs)
    (contour,) = [c for c in ax.collections if len(c.get_paths()) and c.__class__.__name__ == "QuadContourSet"]
    # learning rate 0.5: the loss rises for half of the seeds where 0.5 s scale / 2 = 1
    middle = contour.get_paths()[0].vertices
    scale = middle[:, list((ax.get_xlabel(), ax.get_ylabel())).index("scale")]
    assert 4 / np.sort(SHARPNESS)[-3] < scale.mean() < 4 / np.sort(SHARPNESS)[2]


@pytest.mark.parametrize("log", [True, False])
def test_axes_are_logarithmic_where_values_are(log):
    scales = np.geomspace(0.1, 10, 7) if log else np.linspace(0.1, 1, 7)
    ax = drawn(catapults({"scale": scales, "learning_rate": RATES}))
    assert ax.get_xscale() == ("log" if log else "linear")


def test_what_was_not_run_is_hatched_and_counted():
    runs = catapults({"learning_rate": RATES})
    late = runs["status"].copy(data=np.broadcast_to(np.arange(25)[:, None] >= 20, (25, 8)))
    ax = drawn(not_run(runs, late))
    top, _, _ = areas(ax)["not run"]
    np.testing.assert_array_equal(np.isfinite(top), np.arange(25) >= 20)
    for name in OUTCOMES:
        assert np.isnan(areas(ax)[name][0][20:]).all()
    assert "40 of 200 runs were not run" in map_note(not_run(runs, late))
    assert "not run" not in map_note(runs)
    plane = catapults({"scale": SCALES, "learning_rate": RATES})
    gone = plane["status"].copy(data=np.broadcast_to(np.arange(5)[:, None, None] >= 3, plane["status"].shape))
    heat = drawn(not_run(plane, gone)).collections[0].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(heat).any(0), np.arange(5) >= 3)


def test_without_sharpness_nothing_is_predicted():
    labels = [line.get_label() for line in drawn(catapults({"learning_rate": RATES}, sharpness=False)).lines]
    assert "diverges" in labels
    assert "predicted" not in labels


def test_a_map_already_counted_is_drawn_as_it_is():
    runs = catapults({"learning_rate": RATES})
    ours, theirs = areas(drawn(stability_map(runs))), areas(drawn(runs))
    for name in OUTCOMES:
        np.testing.assert_array_equal(ours[name][0], theirs[name][0])


def test_selections_of_one_rate_or_one_seed_are_drawn():
    runs = catapults({"learning_rate": RATES})
    for part in (runs.isel(seed=3), runs.isel(learning_rate=20), runs.isel(seed=[2], learning_rate=[20])):
        found = areas(drawn(part))
        np.testing.assert_allclose(found["diverges"][0], 1)
    one = areas(drawn(runs.isel(learning_rate=20, seed=5)))
    ratio = RATES[20] * SHARPNESS[5] / 2
    assert one["diverges"][0] - one["diverges"][2] == (ratio > 2)


def test_titles_say_what_is_seen():
    runs = catapults({"learning_rate": RATES})
    critical = critical_learning_rate(runs)["median"].item()
    predicted = lower_median(2 / SHARPNESS)
    title = map_title(runs).replace("\N{NO-BREAK SPACE}", " ")
    assert title == f"quadratic: diverges above learning rate {critical:.3g} (2/sharpness = {predicted:.3g})"
    assert map_title(runs.isel(learning_rate=slice(8))).startswith("quadratic: no run diverges up to learning rate")
    assert "at every learning rate from 4.64" in map_title(runs.isel(learning_rate=slice(20, None)))
    assert "the run diverges" in map_title(runs.isel(learning_rate=[24], seed=[0]))
    assert map_title(runs.isel(learning_rate=[0])).endswith("0 of 8 seeds diverge")
    plane = catapults({"scale": SCALES, "learning_rate": RATES})
    ends = critical_learning_rate(plane)["median"].values[[0, -1]]
    first = f"diverges above learning rate {ends[0]:.3g} at scale 0.5"
    assert map_title(plane) == f"quadratic: {first}, above {ends[1]:.3g} at scale 2"


def test_numbers_are_saved_beside_a_figure(tmp_path):
    fractions = stability_map(catapults({"learning_rate": RATES}))
    path = save_numbers(fractions, tmp_path / "new" / "map")
    table = np.genfromtxt(path, delimiter=",", names=True)
    np.testing.assert_allclose(table["learning_rate"], RATES, rtol=1e-8)
    np.testing.assert_allclose(table["diverges"], fractions["diverges"], rtol=1e-8)
    with pytest.raises(ValueError, match="without a suffix"):
        save_numbers(fractions, tmp_path / "map.csv")


def test_more_than_two_axes_are_refused_by_name():
    runs = catapults({"scale": [1.0, 2.0], "momentum": [0.0, 0.9], "learning_rate": RATES[:2]}, num_steps=4)
    message = r"got 3: scale, momentum, learning_rate.*runs\.sel\(scale=1, momentum=0\)"
    for draw in (stability_map_figure, drawn, lambda runs: drawn(stability_map(runs))):
        with pytest.raises(ValueError, match=message):
            draw(runs)
    plot_stability_map(Figure().add_subplot(), runs.sel(scale=1, momentum=0))


def test_what_is_no_result_is_refused():
    with pytest.raises(ValueError, match=r"ll\.run"):
        drawn(xr.Dataset({"loss": ("step", [1.0])}))
    with pytest.raises(ValueError, match="loss"):
        drawn(catapults({"learning_rate": RATES}).drop_vars("loss"))


CASES = {
    "catapults": catapults({"learning_rate": RATES}),
    "nothing diverges": catapults({"learning_rate": RATES[:8]}),
    "everything diverges": catapults({"learning_rate": RATES[20:]}),
    "one run": catapults({"learning_rate": RATES[20:21]}, num_seeds=1),
    "narrow areas": catapults({"learning_rate": np.geomspace(1e-3, 1e3, 40)}),
    "prediction amid an area": catapults({"learning_rate": RATES}, product=2 / 3).assign(
        {name: catapults({"learning_rate": RATES})[name] for name in ("loss", "status", "first_rise_step")}
    ),
    "plane": catapults({"scale": SCALES, "learning_rate": RATES}),
}


@pytest.mark.parametrize("case", CASES)
def test_no_label_overlaps_another_or_leaves_the_figure(case):
    assert_texts_are_apart(stability_map_figure(CASES[case]))


@pytest.mark.parametrize("case", [case for case in CASES if case != "plane"])
def test_names_in_areas_stand_inside_them_and_clear_of_lines(case):
    figure = stability_map_figure(CASES[case])
    figure.draw_without_rendering()
    (ax,) = figure.axes
    found = areas(ax)
    crossings = [line(ax, name).get_xdata()[0] for name in BOUNDARIES if has_line(ax, name)]
    names = [text for text in ax.texts if text.get_bbox_patch() is not None]
    assert names, "at least one area is wide enough"
    for text in names:
        (left, bottom), (right, top) = ax.transData.inverted().transform(text.get_window_extent().get_points())
        ceiling, edges, floor = found[text.get_text().replace("\n", " ").replace(" ", "_")]
        cells = (edges[1:] > left) & (edges[:-1] < right)
        assert floor[cells].max() <= bottom < top <= ceiling[cells].min()
        assert not [x for x in crossings if left < x < right]


def has_line(ax, label):
    return label in [line.get_label() for line in ax.lines]


def test_title_of_a_two_dimensional_map_where_nothing_diverges():
    title = map_title(catapults({"learning_rate": np.geomspace(1e-3, 1e-2, 5), "momentum": [0.0, 0.9]}))
    assert "no run diverges up to learning rate" in title


def test_a_name_is_no_formula(tmp_path):
    """What matplotlib would read as mathematics, and refuse, is drawn as it is."""
    runs = catapults({"learning_rate": np.geomspace(0.1, 4, 9)}).assign_attrs(problem="$x_$", title="$\\frac$ by sgd")
    figure = stability_map_figure(runs)
    figure.savefig(tmp_path / "map.png")
    assert r"\$x_\$" in figure.get_suptitle()
