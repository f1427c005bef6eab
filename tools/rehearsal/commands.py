"""The `unmask` command in processes of its own, forked from one that has imported what it needs."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["peft", "unmask.cli.main", "unmask.cli.commands", "unmask.training.run", "unmask.training.build"]
)
_LONGEST = 3600.0  # seconds of a command

Process = multiprocessing.process.BaseProcess


class CommandFailed(Exception):
    """A command did not end well."""


def start(name: str, settings: Mapping[str, Any], *, log: Path) -> Process:
    """`unmask NAME --SETTING VALUE ...` on one thread, its words in `log`."""
    words = [name, *(str(word) for key, value in settings.items() for word in (f"--{key}", value))]
    return _start(_unmask, (words,), log)


def run(work: Callable[..., int], arguments: tuple[Any, ...], *, log: Path) -> None:
    """Some work in a process of its own, to its end. Raises CommandFailed."""
    finish(_start(work, arguments, log), log)


def _start(work: Callable[..., int], arguments: tuple[Any, ...], log: Path) -> Process:
    process: Process = _FORKS.Process(target=_logged, args=(work, arguments, str(log)))
    process.start()
    return process


def finish(process: Process, log: Path) -> None:
    """Wait for the end. Raises CommandFailed unless it is a good one."""
    process.join(timeout=_LONGEST)
    if process.exitcode is None:
        process.kill()
        raise CommandFailed(f"not done after {_LONGEST:.0f} s")
    if process.exitcode != 0:
        lines = [line for line in log.read_text().splitlines() if line.strip()] or ["nothing"]
        raise CommandFailed(f"exit {process.exitcode}: {lines[-1][-300:]}")


def unmask(name: str, settings: Mapping[str, Any], *, log: Path) -> None:
    """The command to its end. Raises CommandFailed."""
    finish(start(name, settings, log=log), log)


def _unmask(words: list[str]) -> int:
    from unmask.cli.main import main

    return main(words)


def _logged(work: Callable[..., int], arguments: tuple[Any, ...], log: str) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(1)
    with Path(log).open("a", buffering=1) as stream, redirect_stdout(stream), redirect_stderr(stream):
        for descriptor in (1, 2):  # what PyTorch's profiler says goes around sys.stderr
            os.dup2(stream.fileno(), descriptor)
        try:
            status = work(*arguments)
        except BaseException:
            import traceback

            traceback.print_exc()
            raise
    sys.exit(status)
