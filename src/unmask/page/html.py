"""The page's HTML: template, styles and scripts in one file, with what may run in it named by digest.

Texts of models and of users are data: JSON in a script element that runs nothing, in which < is escaped, set as text
by the page's own scripts. A content security policy lets only those scripts run, and nothing be fetched.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unmask.errors import UserError

_ASSETS = files("unmask.page").joinpath("assets")
_SCRIPTS = ("data.js", "canvases.js", "charts.js", "group.js", "trained.js", "training.js", "tables.js", "page.js")
_OF_BOKEH = ("bokeh.min.js", "bokeh-api.min.js")


def document(page: Mapping[str, Any], blobs: str, connect: str = "'none'") -> str:
    """The HTML file of a page. `blobs`: see `embedded`; `connect`: what the page may ask, in the words of the policy.

    Raises UserError where the extra `report` is not installed.
    """
    scripts = [*_bokeh(), *(_ASSETS.joinpath(name).read_text() for name in _SCRIPTS)]
    if any("</script" in script.lower() for script in scripts):
        raise UserError(
            "a script of the installed bokeh holds an end tag and cannot be inlined: install another version"
        )
    digests = " ".join(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts)
    policy = (
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data: blob:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": escape(policy),
        "title": escape(_title(page)),
        "style": _ASSETS.joinpath("page.css").read_text(),
        "data": _data(page),
        "blobs": blobs,
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    # One pass: what is put in is not looked through for marks.
    return re.sub(r"{{(\w+)}}", lambda mark: parts[mark[1]], _ASSETS.joinpath("page.html").read_text())


def embedded(blobs: Mapping[str, bytes]) -> str:
    """Packed records as elements that nothing runs, decoded when they are shown."""
    return "\n".join(
        f'<script type="text/plain" id="blob-{escape(name)}">{b64encode(content).decode()}</script>'
        for name, content in blobs.items()
    )


def _title(page: Mapping[str, Any]) -> str:
    return " · ".join(run["name"] for run in page["runs"]) + " – unmask"


def _data(page: Mapping[str, Any]) -> str:
    return json.dumps(page, allow_nan=False).replace("<", "\\u003c")


def _bokeh() -> list[str]:
    """The scripts of the library that draws the charts, from its wheel."""
    found = find_spec("bokeh")
    if found is None or found.origin is None:
        raise UserError("the page's charts are drawn by bokeh, which is not installed: pip install 'unmask[report]'")
    place = Path(found.origin).parent / "server" / "static" / "js"
    return [(place / name).read_text() for name in _OF_BOKEH]
