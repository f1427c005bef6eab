"""`unmask` in processes of its own, forked from one that has imported what it needs, each with a fault built in."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["peft", "accelerate", "matplotlib.figure", "unmask.cli.main", "unmask.training.run", "unmask.training.supervised"]
)
LONGEST = 300.0  # seconds until a command counts as hanging

Process = multiprocessing.process.BaseProcess
Fault = Callable[[], object]  # called in the child before the command begins


@dataclass(kw_only=True)
class Ended:
    """How a command ended: exit code (-9 after kill -9; None: it hung) and what it said on standard error."""

    code: int | None
    errors: list[str] = field(default_factory=list)

    @property
    def last_error(self) -> str:
        """Its last line; empty where there is none."""
        return self.errors[-1] if self.errors else ""


def start(
    words: Sequence[str], folder: Path, fault: Fault | None = None, environment: Mapping[str, str] | None = None
) -> Process:
    """`unmask` with these words, on one thread; what it says lies in two files of the folder."""
    arguments = (list(words), folder, fault, dict(environment or {}))
    process: Process = _FORKS.Process(target=_child, args=arguments, daemon=True)
    process.start()
    return process


def ended(process: Process, folder: Path) -> Ended:
    """Wait for the end of a process that was started with this folder."""
    process.join(timeout=LONGEST)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    return Ended(code=code, errors=(folder / "errors").read_text().splitlines() if (folder / "errors").exists() else [])


def run(words: Sequence[str], folder: Path, fault: Fault | None = None) -> Ended:
    """`unmask` with these words to its end."""
    return ended(start(words, folder, fault), folder)


def _child(words: list[str], folder: Path, fault: Fault | None, environment: dict[str, str]) -> None:
    os.environ.update(environment, HF_HUB_OFFLINE="1")
    import torch

    from unmask.cli.main import main

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    output, errors = (folder / name for name in ("output", "errors"))
    with output.open("w", buffering=1) as out, errors.open("w", buffering=1) as err:
        os.dup2(err.fileno(), 2)
        with redirect_stdout(out), redirect_stderr(err):
            if fault is not None:
                fault()
            status = main(words)
    sys.exit(status)
