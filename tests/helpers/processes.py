"""Commands in processes of their own, which a test may kill: forked from one that has imported what they need."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["peft", "unmask.cli.main", "unmask.cli.commands", "unmask.training.run", "unmask.training.trainer"]
)

Process = multiprocessing.process.BaseProcess


def start(work: Callable[..., object], *arguments: object, log: Path, environment: dict[str, str] | None = None):
    """A process that does `work`, prints to `log`, and ends with what `work` returns as its exit status."""
    process = _FORKS.Process(target=_logged, args=(work, arguments, log, environment or {}), daemon=True)
    process.start()
    return process


def command(*arguments: str, log: Path):
    """`unmask` with these arguments, on one thread."""
    return start(_unmask, arguments, log=log)


def finish(process: Process, log: Path) -> None:
    """Wait for its end, which must be a good one."""
    process.join(timeout=240)
    assert process.exitcode == 0, log.read_text()[-2000:]


def _unmask(arguments: tuple[str, ...]) -> int:
    import torch

    from unmask.cli.main import main

    torch.set_num_threads(1)
    return main(list(arguments))


def _logged(work: Callable[..., object], arguments: tuple[object, ...], log: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    with log.open("a", buffering=1) as stream, redirect_stdout(stream), redirect_stderr(stream):
        try:
            status = work(*arguments)
        except BaseException as error:
            import traceback

            traceback.print_exception(error)
            raise
    sys.exit(status)
