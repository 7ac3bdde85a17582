import os
import re
import struct
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lossland.figures import curves_figure, plot_loss, save, stability_map_figure, style
from lossland.figures.labels import cell_edges, log_spaced, log_ticks, spread, text_width, wrap
from tests.figures.synthetic import catapults, combinations

RUNS = catapults({"learning_rate": np.geomspace(0.1, 10, 12)}, num_seeds=4)


def lightness(color):
    """CIE L*, 0 to 100: what is left of a colour in print without colours."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    luminance = float(np.dot([0.2126, 0.7152, 0.0722], linear))
    return 116 * (luminance ** (1 / 3) if luminance > 0.008856 else 7.787 * luminance + 16 / 116) - 16


def test_outcomes_differ_in_lightness_in_the_order_of_their_harm():
    light = [lightness(style.OUTCOME_COLORS[name]) for name in ("never_rises", "rises_and_recovers", "diverges")]
    assert min(-np.diff(light)) > 18


def test_curves_differ_in_lightness_and_line_style_and_can_be_read_as_text():
    light = [lightness(color) for color in style.CURVE_COLORS]
    assert min(-np.diff(light)) > 10
    assert max(light) < 68
    assert all(first != second for first, second in combinations(style.CURVE_STYLES))


def test_words_in_areas_stand_out_from_them():
    for name, color in style.OUTCOME_COLORS.items():
        assert abs(lightness(color) - lightness(style.LABEL_COLORS[name])) > 50


def test_heat_darkens_steadily():
    light = [lightness(style.HEAT(share)) for share in np.linspace(0, 1, 33)]
    assert max(np.diff(light)) < 0
    assert light[0] - light[-1] > 55


def test_saved_files_have_the_resolution_and_the_fonts(tmp_path):
    png, pdf = save(stability_map_figure(RUNS), tmp_path / "deep" / "map.v2")
    assert [png.name, pdf.name] == ["map.v2.png", "map.v2.pdf"]
    data = png.read_bytes()
    per_metre = struct.unpack(">I", data[data.index(b"pHYs") + 4 :][:4])[0]
    assert per_metre * 0.0254 >= 150
    width = struct.unpack(">I", data[data.index(b"IHDR") + 4 :][:4])[0]
    assert abs(width / (per_metre * 0.0254) - style.WIDTH) < 0.02
    text = pdf.read_bytes()
    assert b"/FontFile2" in text, "TrueType outlines are embedded"
    assert b"/Type3" not in text
    for file in (data, text):
        assert not re.search(rb"CreationDate|ModDate|\b20\d\d-\d\d-\d\d", file)


@pytest.mark.slow
def test_files_are_the_same_bytes_in_another_process_and_no_window_is_prepared(tmp_path):
    code = (
        "import sys, numpy as np; from lossland import figures; from tests.figures.synthetic import catapults\n"
        "runs = catapults({'learning_rate': np.geomspace(0.1, 10, 12)}, num_seeds=4)\n"
        "figures.save(figures.stability_map_figure(runs), sys.argv[1] + '/map')\n"
        "figures.save(figures.curves_figure(runs), sys.argv[1] + '/curves')\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    for name, figure in (("map", stability_map_figure(RUNS)), ("curves", curves_figure(RUNS))):
        save(figure, tmp_path / "here" / name)
    environment = {**os.environ, "PYTHONHASHSEED": "7", "MPLBACKEND": "qtagg", "DISPLAY": ""}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    (tmp_path / "there").mkdir()
    command = [sys.executable, "-c", code, str(tmp_path / "there")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
    for name in ("map.png", "map.pdf", "curves.png", "curves.pdf"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name


def test_saving_twice_gives_the_same_bytes(tmp_path):
    figure = curves_figure(RUNS)
    first = [path.read_bytes() for path in save(figure, tmp_path / "a")]
    assert first == [path.read_bytes() for path in save(figure, tmp_path / "a")]


def test_settings_of_the_caller_survive_and_do_not_leak_in(tmp_path):
    with matplotlib.rc_context({"font.size": 31, "text.color": "red", "axes.spines.top": True, "pdf.fonttype": 3}):
        before = matplotlib.rcParams.copy()
        figure = stability_map_figure(RUNS)
        _, pdf = save(figure, tmp_path / "map")
        with pytest.raises(ValueError, match="not on the grid"):
            plot_loss(Figure().add_subplot(), RUNS, [123.0])
        assert matplotlib.rcParams.copy() == before
    sizes = {text.get_fontsize() for text in figure.findobj(matplotlib.text.Text) if text.get_text()}
    assert max(sizes) <= style.TEXT + 1
    assert min(sizes) >= style.SMALL
    assert b"/Type3" not in pdf.read_bytes()
    assert not figure.axes[0].spines["top"].get_visible()


def test_a_suffix_is_refused_and_the_canvas_comes_back(tmp_path):
    figure = Figure()
    canvas = figure.canvas
    with pytest.raises(ValueError, match=r"without a suffix, got 'map\.png'; write 'map'"):
        save(figure, tmp_path / "map.png")
    save(figure, tmp_path / "map")
    assert figure.canvas is canvas


def test_spread_moves_as_little_as_needed():
    np.testing.assert_allclose(spread([0, 5, 20], 4, 0, 100), [0, 5, 20])
    np.testing.assert_allclose(spread([50, 50], 4, 0, 100), [48, 52])
    np.testing.assert_allclose(spread([50, 50, 51], 4, 0, 100), [46 + 1 / 3, 50 + 1 / 3, 54 + 1 / 3])
    np.testing.assert_allclose(spread([100, 100, 0], 4, 0, 100), [96, 100, 0])
    rng = np.random.default_rng(0)
    for _ in range(50):
        moved = spread(rng.uniform(-20, 120, 9), 8, 0, 100)
        assert min(np.diff(np.sort(moved))) >= 8 - 1e-9
        assert moved.min() >= -1e-9
        assert moved.max() <= 100 + 1e-9


def test_log_spacing_is_told_from_linear():
    assert log_spaced(np.geomspace(1e-3, 1, 9))
    assert log_spaced([0.1, 1.0])
    assert not log_spaced(np.linspace(0.1, 1, 9))
    assert not log_spaced(np.arange(2, 41))
    assert not log_spaced([0.0, 0.1, 1.0])
    assert not log_spaced([0.5, 1.0])


def test_cells_meet_midway_and_ticks_are_plain():
    np.testing.assert_allclose(cell_edges(np.array([1.0, 10.0, 100.0]), True), 10.0 ** np.array([-0.5, 0.5, 1.5, 2.5]))
    np.testing.assert_allclose(cell_edges(np.array([1.0, 2.0, 4.0]), False), [0.5, 1.5, 3.0, 5.0])
    np.testing.assert_allclose(cell_edges(np.array([3.0]), True), [1.5, 6.0])
    assert log_ticks(0.01, 3) == [0.01, 0.03, 0.1, 0.3, 1, 3]
    assert log_ticks(1, 10) == [1, 2, 5, 10]
    for low, high in ((1.1, 1.3), (1e-12, 1e9), (0.4, 0.6), (3e-5, 8e2)):
        ticks = log_ticks(low, high)
        assert 2 <= len(ticks) <= 7
        assert all(low <= tick <= high for tick in ticks)


def test_lines_are_broken_at_spaces_and_not_wider_than_asked():
    words = "a title that is longer than one line of the figure it stands over"
    lines = wrap(words, 120, 8).split("\n")
    assert " ".join(lines) == words
    assert max(text_width(line, 8) for line in lines) <= 120
    assert len(lines) > 1
