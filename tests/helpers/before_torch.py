"""Commands as a new process runs them until torch would be imported, each forked from one that imported `main` alone.

Forks take a tenth of the time that interpreters do.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

END = 7  # the exit code where torch would be imported
_SERVER = f"""
import json, os, sys
from importlib.abc import MetaPathFinder
class End(MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname == "torch":
            os._exit({END})
sys.meta_path.insert(0, End())
from unmask.cli.main import main

def run(words, place, stdout, stderr, modules):
    os.chdir(place)
    for descriptor, output in ((1, stdout), (2, stderr)):
        os.dup2(os.open(output, os.O_WRONLY), descriptor)
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    with open(modules, "w") as file:
        file.write(" ".join(sys.modules))
    os._exit(code)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            run(*json.loads(line))
        finally:
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Done:
    """How a command ended, what it had written by then, and which modules were imported."""

    code: int
    stdout: str
    stderr: str
    modules: frozenset[str]


class Commands:
    """A process that forks one for each command: a context manager, at whose end it is gone."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, words: list[str], where: Path, outputs: Path) -> Done:
        """`unmask WORDS` in a directory; `outputs` is another, for what it writes."""
        files = [outputs / name for name in ("stdout", "stderr", "modules")]
        for file in files:
            file.write_text("")
        assert self._server.stdin
        assert self._server.stdout
        print(json.dumps([words, str(where), *map(str, files)]), file=self._server.stdin, flush=True)
        code = int(self._server.stdout.readline())
        stdout, stderr, modules = (file.read_text() for file in files)
        return Done(code, stdout, stderr, frozenset(modules.split()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._server:  # which ends with its input
            pass
