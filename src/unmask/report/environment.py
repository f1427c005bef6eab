"""What a run ran in: versions, commit, machine."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from unmask import __version__

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "peft")
_CHECKOUT = Path(__file__).parents[3]
_SECONDS = 10.0


def environment() -> dict[str, str]:
    """Versions of unmask and what it computes with, its commit where it is known, Python and the machine."""
    found = {"unmask": __version__, "commit": commit(), "python": platform.python_version()}
    found |= {name: installed(name) for name in _PACKAGES}
    return {name: value for name, value in (found | {"machine": platform.platform()}).items() if value}


def installed(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the checkout that this is, -dirty where files differ from it, or that pip took the package from.

    None where neither is known. A repository that merely holds the environment is not asked.
    """
    if (_CHECKOUT / ".git").exists() and shutil.which("git"):
        return first_line(
            ["git", "-C", str(_CHECKOUT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
        )
    try:
        told = json.loads(distribution("unmask").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return None
    found: str | None = told.get("vcs_info", {}).get("commit_id")
    return found


def first_line(command: Sequence[str]) -> str:
    """What a program says first, or why it says nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({type(error).__name__})"
    return done.stdout.partition("\n")[0].strip() or "unknown"
