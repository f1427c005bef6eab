"""What `unmask --version` prints, and with `--verbose` what a report of a fault needs: no paths, no names, no keys."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires

from unmask import __version__
from unmask.errors import UserError
from unmask.report.environment import commit, first_line, installed

_REQUIREMENT = re.compile(r"([\w.-]+)(?:.*\bextra *== *[\"']([\w-]+))?")
_ONE_GIB = 1 << 30
_MISSING = "not installed"


def print_version(words: list[str]) -> None:
    """Print the version, and with `--verbose` a line each on the environment. Raises UserError for other words."""
    if unknown := [word for word in words if word != "--verbose"]:
        raise UserError(f"unmask --version takes no {unknown[0]!r}; --verbose tells of the environment")
    if not words:
        print(f"unmask {__version__}")  # noqa: T201
        return
    for name, text in environment():
        print(f"{name}: {text}")  # noqa: T201


def environment() -> Iterator[tuple[str, str]]:
    """Names and values: version, commit, Python, system, CPU, torch and its build, GPUs, libraries, bubblewrap."""
    known = commit()
    yield "unmask", f"{__version__}, {f'commit {known}' if known else 'a release or a copy without commit'}"
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "system", f"{_system()}, {platform.system()} {platform.release()}, {platform.machine()}"
    yield from _torch()
    yield from _libraries()
    yield "bubblewrap", first_line(["bwrap", "--version"]) if shutil.which("bwrap") else _MISSING


def _torch() -> Iterator[tuple[str, str]]:
    """Its version and build, threads, and each GPU."""
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    yield "torch", f"{torch.__version__}, built for {build if torch.version.cuda or torch.version.hip else 'the CPU'}"
    threads = ", ".join(f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS",) if name in os.environ)
    yield "CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads{f' ({threads})' if threads else ''}"
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        gibibytes = device.total_memory / _ONE_GIB
        yield f"GPU {index}", f"{device.name}, {gibibytes:.0f} GiB, compute capability {device.major}.{device.minor}"
    if not torch.cuda.device_count():
        yield "GPU", "none"


def _libraries() -> Iterator[tuple[str, str]]:
    """What the package needs, and what its extras for users name as far as it is installed."""
    try:
        needed = [_REQUIREMENT.match(text) for text in requires("unmask") or []]
    except PackageNotFoundError:
        return
    for name, extra in (match.groups() for match in needed if match):
        told = installed(name)
        if name != "torch" and extra != "dev" and not (extra and told is None):
            yield name, told or _MISSING


def _system() -> str:
    """The distribution's own name, where there is one."""
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
