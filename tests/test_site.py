"""The site: it builds without a warning, loads nothing from the network, and shows what GitHub shows."""

import re
import subprocess
import sys
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import unmask
from unmask.methods import METHODS
from unmask.report.methods_page import docstring

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
REMOTE = re.compile(r"^(?:https?:)?//", flags=re.IGNORECASE)
OTHERS = {"api", "methods"}  # made for the site: of docstrings, and a page for each method
COUNTED = {"li", "tr", "pre", "h2", "h3", "img"}
# Material's own script would load these for diagrams, which no page has, and for browsers of before 2020.
KNOWN = {"https://unpkg.com/mermaid@11/dist/mermaid.min.js", "https://unpkg.com/resize-observer-polyfill"}


class Loads(HTMLParser):
    """What a page loads by itself, and the tags within its article."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: Counter[str] = Counter()
        self.names: set[str] = set()
        self._within = 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.names.add(values.get("id") or "")
        if tag in ("script", "img", "iframe", "source", "video", "embed"):
            self.loads.append(values.get("src") or "")
        if tag == "link" and values.get("rel") not in ("next", "prev", "canonical"):
            self.loads.append(values.get("href") or "")
        if tag == "article":
            self._within += 1
        if self._within and tag in COUNTED:
            self.tags[tag] += 1

    def handle_endtag(self, tag):
        if tag == "article":
            self._within -= 1


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site as `make site` builds it."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_site_loads_nothing_from_the_network(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        text = page.read_text()
        loads = Loads(text).loads
        assert len(loads) > 3
        assert [load for load in loads if REMOTE.match(load)] == []
        assert 'class="mermaid"' not in text
    for style in site.rglob("*.css"):
        assert not re.search(r"""(?:url\(|@import\s*)["']?(?:https?:)?//""", style.read_text())
    found = {url for script in site.rglob("*.js") for url in re.findall(r"https?://unpkg[^\"'`]+", script.read_text())}
    assert found <= KNOWN


def test_remote_loads_would_be_found():
    text = '<link rel="stylesheet" href="//a/b.css"><script src="https://c/d.js"></script><link rel="next" href="//e">'
    assert [load for load in Loads(text).loads if REMOTE.match(load)] == ["//a/b.css", "https://c/d.js"]


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem not in OTHERS], ids=lambda page: page.stem)
def test_page_has_the_lists_tables_and_blocks_that_github_shows(page, site):
    html = MarkdownIt("commonmark").enable("table").render(page.read_text())
    built = site / ("index.html" if page.stem == "README" else f"{page.stem}.html")
    assert Loads(built.read_text()).tags == Loads(f"<article>{html}</article>").tags


def test_every_method_has_a_page_with_its_formula(site):
    table = (site / "methods.html").read_text()
    for name, method in METHODS.items():
        text = unescape(re.sub(r"<[^>]+>", "", (site / "methods" / f"{name}.html").read_text()))
        assert docstring(method()) in text
        assert f'href="methods/{name}.html"' in table


def test_reference_has_every_public_name(site):
    """By the anchors that mkdocstrings makes of names."""
    names = Loads((site / "api.html").read_text()).names
    public = {f"unmask.{name}" for name in getattr(unmask, "__all__", []) if name != "__version__"}
    assert sorted(public - names) == []
