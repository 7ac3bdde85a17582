import numpy as np
import pytest
from matplotlib.figure import Figure

from lossland.figures import choose_values, curves, curves_figure, plot_loss, plot_sharpness
from lossland.figures.curves import curves_title
from tests.figures.synthetic import SHARPNESS, assert_texts_are_apart, catapults, not_run

RATES = np.geomspace(0.1, 10, 25)
RUNS = catapults({"learning_rate": RATES})


def drawn(plot, runs, values=None):
    ax = Figure(figsize=(4, 3)).add_subplot()
    plot(ax, runs, values)
    return ax


def line(ax, label):
    (found,) = [line for line in ax.lines if line.get_label() == label]
    return found


def band(ax, label):
    (found,) = [collection for collection in ax.collections if collection.get_label() == label]
    return found.get_paths()[0].vertices


def test_a_curve_is_the_median_over_seeds_and_its_band_the_interval():
    ax = drawn(plot_loss, RUNS, [RATES[2]])
    loss = np.sort(RUNS["loss"].isel(learning_rate=2).values, axis=0)
    curve = line(ax, f"{RATES[2]:g}")
    np.testing.assert_array_equal(curve.get_xdata(), RUNS["step"])
    np.testing.assert_allclose(curve.get_ydata(), loss[3])
    # Eight seeds: 95 % of the median needs the full range.
    vertices = band(ax, f"{RATES[2]:g} band")
    for step, low, high in zip(RUNS["step"].values, loss[0], loss[-1], strict=True):
        np.testing.assert_allclose(np.unique(vertices[vertices[:, 0] == step, 1])[[0, -1]], [low, high])
    assert ax.get_yscale() == "log"


def test_one_seed_is_drawn_as_it_is_without_a_band():
    ax = drawn(plot_loss, RUNS.sel(seed=4), [RATES[2], RATES[10]])
    for rate in (2, 10):
        expected = RUNS["loss"].isel(learning_rate=rate).sel(seed=4)
        np.testing.assert_array_equal(line(ax, f"{RATES[rate]:g}").get_ydata(), expected)
    assert not ax.collections


def test_sharpness_is_relative_to_the_threshold_of_its_own_rate():
    ax = drawn(plot_sharpness, RUNS.sel(seed=0), [RATES[4], RATES[14]])
    for rate in (4, 14):
        start = line(ax, f"{RATES[rate]:g}").get_ydata()[0]
        np.testing.assert_allclose(start, SHARPNESS[0] * RATES[rate] / 2)
    np.testing.assert_array_equal(line(ax, "threshold").get_ydata(), 1)
    assert [text.xy[1] for text in ax.texts if text.get_text() == "threshold"] == [1]
    assert ax.get_ylabel() == "sharpness / threshold"


def test_without_a_threshold_the_sharpness_itself_is_drawn_with_its_units():
    runs = RUNS.assign(relative_sharpness=RUNS["relative_sharpness"] * np.nan)
    ax = drawn(plot_sharpness, runs.sel(seed=0), [RATES[4]])
    np.testing.assert_allclose(line(ax, f"{RATES[4]:g}").get_ydata(), SHARPNESS[0])
    assert ax.get_ylabel() == "sharpness (loss / parameter²)"
    assert not [line for line in ax.lines if line.get_label() == "threshold"]


def test_diverging_curves_end_with_a_cross_at_the_frame_and_survivors_do_not():
    ax = drawn(plot_loss, RUNS, [RATES[2], RATES[24]])
    crosses = [line for line in ax.lines if line.get_label().endswith(" leaves")]
    assert [cross.get_label() for cross in crosses] == [f"{RATES[24]:g} leaves"]
    (x,), (y,) = crosses[0].get_data()
    assert y == ax.get_ylim()[1]
    np.testing.assert_allclose(100.0**x, y, rtol=1e-6, err_msg="loss is 100^step")
    assert [text.get_text() for text in ax.texts if "diverges" in text.get_text()] == [f"{RATES[24]:.3g} diverges"]


def test_a_loss_that_breaks_off_below_the_frame_is_led_to_the_step_where_it_did():
    runs = RUNS.copy(deep=True)
    runs["loss"] = runs["loss"].where(~(runs["loss"] > 1e2))
    runs["first_bad_step"] = runs["first_bad_step"].where(runs["first_bad_step"] < 0, 3)
    ax = drawn(plot_loss, runs, [RATES[2], RATES[24]])
    (x,), (y,) = line(ax, f"{RATES[24]:g} leaves").get_data()
    assert (x, y) == (3, ax.get_ylim()[1])


def test_a_diverged_seed_counts_as_infinite_in_the_median():
    # At this rate some seeds diverge; leaving their NaN out would draw the median of the survivors.
    rate = RATES[15]
    lost = rate * SHARPNESS > 4
    assert 0 < lost.sum() < 4
    table = RUNS["loss"].sel(learning_rate=rate).values
    expected = np.sort(np.where(np.isnan(table), np.inf, table), axis=0)[3]
    found = curves(RUNS, "loss", [rate])
    np.testing.assert_allclose(found["median"].isel(learning_rate=0), expected)
    assert found["diverging"].item() == lost.mean()
    most = curves(RUNS, "loss", RATES[-1:])
    assert np.isnan(most["median"].isel(learning_rate=0, step=-1))
    assert most["leaves_at"].item() == 19


def test_seeds_that_were_not_run_are_left_out():
    gone = RUNS["status"].copy(data=np.broadcast_to(np.arange(8) >= 5, (25, 8)))
    found = curves(not_run(RUNS, gone), "loss", [RATES[2]])
    np.testing.assert_allclose(found["median"].isel(learning_rate=0), np.sort(RUNS["loss"].values[2, :5], axis=0)[2])
    assert found["num_seeds"].item() == 5


def test_chosen_rates_lie_below_at_and_above_the_critical_ones():
    chosen = choose_values(RUNS)
    s = np.sort(2 / SHARPNESS)[3]
    below, calm, safe, lost = chosen
    assert below < calm < s * 1.1 < safe < 2 * s * 1.1 < lost
    np.testing.assert_allclose(calm, RATES[s > RATES].max())
    assert (RATES[list(RATES).index(lost)] * SHARPNESS > 4).mean() > 0.5
    quiet = choose_values(RUNS.isel(learning_rate=slice(8)))
    assert quiet[-1] == RATES[7], "the largest rate is drawn where none diverges"
    assert list(choose_values(RUNS.isel(learning_rate=[3, 1]))) == [RATES[1], RATES[3]]


def test_values_given_to_six_digits_find_their_grid_point():
    ax = drawn(plot_loss, RUNS, [round(RATES[3], 9)])
    np.testing.assert_array_equal(line(ax, f"{RATES[3]:g}").get_ydata(), curves(RUNS, "loss", [RATES[3]])["median"][0])


def test_figure_has_both_panels_and_a_title_with_the_numbers():
    figure = curves_figure(RUNS)
    assert [ax.get_ylabel() for ax in figure.axes] == ["training loss", "sharpness / threshold"]
    ratio = np.sort(RUNS["relative_sharpness"].sel(learning_rate=choose_values(RUNS)[2], step=0))[3]
    assert f"sharpness goes from {ratio:.2g} to 0.9 times the threshold" in figure.get_suptitle().replace("\n", " ")
    assert [ax.get_ylabel() for ax in curves_figure(catapults({"learning_rate": RATES}, sharpness=False)).axes] == [
        "training loss"
    ]
    assert curves_title(RUNS, RATES[-2:]) == "quadratic: every learning rate drawn diverges"
    assert curves_title(RUNS.sel(seed=[3]), RATES[:1]).endswith("the sharpness stays at 0.1 times the threshold")


def test_figure_of_two_axes_takes_the_middle_of_the_other_and_says_so():
    runs = catapults({"scale": [0.5, 1.0, 2.0], "learning_rate": RATES})
    figure = curves_figure(runs)
    assert "scale 1" in figure.get_suptitle()
    rate = choose_values(RUNS)[0]
    shown = line(figure.axes[0], f"{rate:g}").get_ydata()
    np.testing.assert_array_equal(shown, curves(RUNS, "loss", [rate])["median"][0])


def test_bad_requests_are_refused_by_name():
    with pytest.raises(ValueError, match=r"0\.3 is not on the grid; the nearest value is 0\.316"):
        drawn(plot_loss, RUNS, [0.3])
    with pytest.raises(ValueError, match="1 to 5 values of learning_rate, got 6"):
        drawn(plot_loss, RUNS, RATES[:6])
    with pytest.raises(ValueError, match="'sharpness'"):
        drawn(plot_sharpness, catapults({"learning_rate": RATES}, sharpness=False))
    for values in (None, RATES[:1]):
        with pytest.raises(ValueError, match=r"select one value of scale: runs\.sel\(scale=1\)"):
            drawn(plot_loss, catapults({"scale": [1.0, 2.0], "learning_rate": RATES}), values)
    with pytest.raises(ValueError, match="computed yet"):
        drawn(plot_loss, not_run(RUNS, RUNS["status"] > -1))


@pytest.mark.parametrize("part", [(0, 25), (0, 8), (20, 25), (3, 4)], ids=["all", "calm", "lost", "one"])
def test_no_label_overlaps_another_or_leaves_the_figure(part):
    assert_texts_are_apart(curves_figure(RUNS.isel(learning_rate=slice(*part))))


def test_curves_that_end_together_keep_their_labels_apart():
    runs = RUNS.copy()
    runs["loss"] = runs["loss"] * 0 + 1
    runs["relative_sharpness"] = runs["relative_sharpness"] * 0 + 1
    assert_texts_are_apart(curves_figure(runs, RATES[:5]))
