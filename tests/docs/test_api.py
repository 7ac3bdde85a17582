"""The reference has every public name, and every public name says what a reader needs."""

import functools
import inspect
import re

import pytest

import lossland as ll
from lossland.sweeps.probes import BUILT_IN
from tests.docs.pages import DOCS

PAGES = "\n".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
MODULES = {"adaptive", "curvature", "figures", "landscapes", "problems"}
DOCUMENTED = set(re.findall(r"auto(?:function|class):: lossland\.(\w+)$", PAGES, re.MULTILINE))


def test_every_public_name_is_in_the_reference():
    assert set(ll.__all__) - MODULES == DOCUMENTED
    for name in MODULES:
        assert f"automodule:: {getattr(ll, name).__name__}\n" in PAGES


def test_every_built_in_probe_is_listed():
    listed = (DOCS / "how_to" / "probe.md").read_text().partition("## What there is already")[2]
    assert set(re.findall(r'`"(\w+)"`', listed)) == set(BUILT_IN)


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_docstrings_say_what_it_is_what_it_takes_and_what_is_refused(name):
    thing = getattr(ll, name)
    text = inspect.getdoc(thing) or ""
    first = text.splitlines()[0]
    assert first.endswith((".", ":")), f"{name}: the first line is no sentence"
    if inspect.isfunction(thing):
        parameters = [p for p in inspect.signature(thing).parameters if p not in ("args", "kwargs")]
        if parameters:
            assert re.search("raise|refuse", text, re.IGNORECASE), f"{name}: nothing is said about bad input"


@pytest.mark.parametrize("module", ["adaptive", "curvature", "landscapes"])
def test_functions_of_modules_are_described(module):
    home = getattr(ll, module)
    for name in home.__all__ if hasattr(home, "__all__") else dir(home):
        thing = getattr(home, name)
        if not name.startswith("_") and inspect.isroutine(thing) and thing.__module__.startswith("lossland"):
            assert inspect.getdoc(thing), f"{module}.{name} has no docstring"


@pytest.mark.parametrize("name", ["Problem", "Sweep", "Optimizer", "Probe"])
def test_no_colon_turns_a_property_into_its_type(name):
    """Sphinx reads what stands before a colon in the first line of an attribute as its type."""
    for key, value in vars(getattr(ll, name)).items():
        if isinstance(value, (property, functools.cached_property)) and not key.startswith("_"):
            assert ": " not in (inspect.getdoc(value) or "").splitlines()[0], key
