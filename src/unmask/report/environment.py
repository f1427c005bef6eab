"""What a run ran in: versions, commit, machine."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from unmask import __version__

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "peft")
_GIT_SECONDS = 5.0


def environment() -> dict[str, str]:
    """Versions of unmask and what it computes with, its commit where it is a checkout, Python and the machine."""
    found = {"unmask": __version__, "commit": _commit(), "python": platform.python_version()}
    found |= {name: _version(name) for name in _PACKAGES}
    return {name: value for name, value in (found | {"machine": platform.platform()}).items() if value}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    """The commit of the checkout that the package lies in, with + where files differ from it; empty elsewhere."""
    git, place = shutil.which("git"), Path(__file__).parents[1]
    if git is None:
        return ""
    described = _said(git, "-C", str(place), "rev-parse", "HEAD")
    return described and described + ("+" if _said(git, "-C", str(place), "diff", "HEAD", "--name-only", ".") else "")


def _said(*words: str) -> str:
    """What a command prints; empty where it fails or takes long."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""
