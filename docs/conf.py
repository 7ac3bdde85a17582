"""How the documentation is built: `sphinx-build -W docs docs/_build/html`. It needs no network, nor do its pages."""

import sys
from pathlib import Path

import lossland

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))

project = "lossland"
author = "the lossland authors"
release = version = lossland.__version__
html_title = f"lossland {release}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "static_math",
    "plain_docstrings",
    "percent_tutorials",
]
source_suffix = {".md": "markdown", ".py": "markdown"}
exclude_patterns = ["_build", "_extensions", "conf.py", "conftest.py", "concept_figures.py"]
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence", "attrs_inline"]
myst_heading_anchors = 3
html_math_renderer = "static"

pygments_dark_style = "github-dark"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["lossland.css"]
html_copy_source = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#27346B", "color-brand-content": "#27346B"},
    "dark_css_variables": {"color-brand-primary": "#EFA21A", "color-brand-content": "#EFB64E"},
}

default_role = "code"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Yields"]
