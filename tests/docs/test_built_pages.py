"""The pages as they are built: `sphinx-build -W docs docs/_build/html` first, then `pytest -m long tests/docs`."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from tests.docs.pages import DOCS

HTML = DOCS / "_build" / "html"
PAGES = sorted(HTML.rglob("*.html"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.long, pytest.mark.skipif(not PAGES, reason="sphinx-build -W docs docs/_build/html first")]

LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}
"""What a browser fetches by itself: tag -> attribute."""


class Loaded(HTMLParser):
    """Addresses that a page loads, and identifiers that it defines and links to."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.links, self.identifiers = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        if tag in LOADS and named.get(LOADS[tag]):
            self.addresses.append(named[LOADS[tag]])
        if tag == "a" and named.get("href"):
            self.links.append(named["href"])
        if named.get("id"):
            self.identifiers.add(named["id"])


def test_pages_load_nothing_from_elsewhere():
    for path in PAGES:
        outside = [a for a in Loaded(path.read_text()).addresses if re.match(r"(https?:)?//", a)]
        assert not outside, f"{path.relative_to(HTML)} loads {outside}"
    for path in HTML.rglob("*.css"):
        fetched = re.findall(r"@import[^;]+|url\(\s*['\"]?(?:https?:)?//[^)]+", path.read_text())
        assert not fetched, f"{path.relative_to(HTML)} loads {fetched}"
    for path in HTML.rglob("*.js"):
        assert not re.search(r"(cdn\.|unpkg|jsdelivr|googleapis)", path.read_text()), path.name


def test_links_between_pages_lead_somewhere():
    known = {path: Loaded(path.read_text()) for path in PAGES}
    broken = []
    for path, page in known.items():
        for link in page.links:
            if re.match(r"\w+:", link):
                continue
            place, _, anchor = link.partition("#")
            target = (path.parent / place).resolve() if place else path
            if not target.exists() or (anchor and target in known and anchor not in known[target].identifiers):
                broken.append(f"{path.relative_to(HTML)}: {link}")
    assert not broken


def test_equations_are_pictures_and_none_is_left_as_source():
    text = (HTML / "concepts" / "sharpness.html").read_text()
    assert text.count('class="equation"') > 5
    assert "$$" not in re.sub(r"<(script|pre).*?</\1>", "", text, flags=re.DOTALL)


def test_tutorials_show_what_they_print_and_draw():
    text = (HTML / "tutorials" / "first_map.html").read_text()
    assert "measured, median over seeds" in text
    assert "first_map_stability_map.png" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("page", ["index", "concepts/threshold", "api/sweeps", "guarantees", "tutorials/flax_model"])
def test_a_phone_does_not_scroll_sideways(page, tmp_path):
    """In a frame 390 pixels wide: headless Chromium itself opens no window that narrow."""
    path = HTML / f"{page}.html"
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe src="{path.as_uri()}" style="width:390px;height:800px;border:0"></iframe><script>onload = () => {{'
        "const inner = document.querySelector('iframe').contentDocument.documentElement;"
        "document.title = inner.scrollWidth + ' ' + inner.clientWidth; }</script>"
    )
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=5000", "--dump-dom", frame.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    wide, window = map(int, re.search(r"<title>(\d+) (\d+)</title>", done.stdout).groups())
    assert window <= 390
    assert wide <= window
