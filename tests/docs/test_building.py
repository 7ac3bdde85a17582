"""The modules that build the pages: tutorials in percent format, docstrings, equations."""

import re
import traceback

import pytest

from tests.docs.pages import DOCS, extension

percent = extension("percent_tutorials")

SCRIPT = """# %% [markdown]
# # A title
#
# Some *text*.

# %%
a = 2
print("a is", a)

# %%
a + 1
"""


def test_a_script_is_cut_into_text_and_code():
    found = percent.cells(SCRIPT)
    assert [cell.kind for cell in found] == ["text", "code", "code"]
    assert found[0].text == "# A title\n\nSome *text*."
    assert found[1].line == 7


def test_code_before_the_first_marker_is_refused():
    with pytest.raises(ValueError, match=r"line 1: expected a script that begins with '# %%'"):
        percent.cells("import this\n")


def test_cells_share_names_and_what_they_print_is_kept(tmp_path):
    steps = list(percent.execute(SCRIPT, "script.py", tmp_path))
    assert steps[1][1].printed == "a is 2\n"
    assert steps[-1][2]["a"] == 2


def test_an_error_names_the_line_of_the_script(tmp_path):
    with pytest.raises(ZeroDivisionError) as caught:
        list(percent.execute("# %%\nx = 1\nx / 0\n", "script.py", tmp_path))
    last = traceback.extract_tb(caught.tb)[-1]
    assert (last.filename, last.lineno) == ("script.py", 3)


def test_figures_are_copied_and_shown(tmp_path):
    script = (
        "# %% [markdown]\n# # T\n# %%\nfrom matplotlib.figure import Figure\nfrom lossland import figures\n"
        "figures.save(Figure((1, 1)), 'out/dot')\n"
    )
    made = percent.page(script, "tiny.py", tmp_path / "images", "images")
    page = made.text
    assert "(images/tiny_dot.png)" in page
    assert (tmp_path / "images" / "tiny_dot.png").read_bytes()[:4] == b"\x89PNG"
    assert made.figures == [tmp_path / "images" / "tiny_dot.png"]
    assert page.startswith("# T\n\n*A script")


def test_what_docutils_would_take_for_markup_is_escaped():
    docstrings = extension("plain_docstrings")
    assert docstrings.escaped("|g| and a * b, `|g|`") == r"\|g\| and a \* b, `|g|`"
    assert docstrings.escaped("a_ b_c") == r"a\_ b_c"
    assert docstrings.escaped("    **arguments: values of a*b") == r"    **arguments: values of a\*b"
    assert docstrings.escaped("`lag`(G)") == r"`lag`\ (G)"
    shown = docstrings.displayed(["A law:", "", "    a = |b|", "", "Args:", "", "    x: |y|"])
    assert shown[2:5] == [".. code-block:: text", "", "    a = |b|"]
    assert shown[-1] == r"    x: \|y\|"


def test_equations_are_drawn_and_read_aloud():
    svg = extension("static_math").svg
    drawn = svg(r"\lambda < 2 / \eta")
    assert 'aria-label="\\lambda &lt; 2 / \\eta"' in drawn
    assert drawn.count("<path") == 1
    numbers = [float(x) for x in re.findall(r"-?\d+\.\d\d", drawn.split('d="')[1])]
    assert len(numbers) > 50
    assert max(numbers) < 100
    with pytest.raises(ValueError, match="Unknown symbol"):
        svg(r"\nosuchsymbol")


def test_tutorials_begin_with_a_title_and_are_all_listed():
    listed = (DOCS / "tutorials" / "index.md").read_text()
    for path in (DOCS / "tutorials").glob("*.py"):
        first = percent.cells(path.read_text())[0]
        assert first.kind == "text"
        assert first.text.startswith("# ")
        assert f"\n{path.stem}\n" in listed
