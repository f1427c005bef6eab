"""Running programs against tests inside bubblewrap, and nowhere else. docs/code.md tells what that defends against."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO

from unmask.errors import UserError
from unmask.verifiers.seccomp import seccomp_filter

MOST_WORKERS = 8  # several ranks may share a machine
STARTUP_SECONDS = 30  # for two interpreters; they take about a tenth
DIRECTORY_BYTES = 2**24  # of the one directory that can be written to
_LONGEST_VERDICT = 2**14  # bytes
_READY = b'"ready"\n'
# Without site-packages, user directory, script directory; nothing is compiled to disk.
_PYTHON = (str(Path(sys.executable).resolve()), "-S", "-s", "-P", "-B", "/harness.py")
_HARNESS = Path(__file__).with_name("sandbox_worker.py")
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A program and the tests that it must pass.

    program: the text under test
    reference: a right program, which the tests' interpreter runs for its imports and helpers
    names: what the tests take from the program under test instead
    tests: statements that raise where the program is wrong
    """

    program: str
    reference: str
    names: tuple[str, ...]
    tests: str


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one program and its tests: wall-clock seconds, and memory."""

    seconds: int
    memory_megabytes: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Result of a trial: status "passed", "failed" or "timed out", and the beginning of the error raised."""

    status: str
    error: str = ""


def run_trials(trials: Sequence[Trial], limits: Limits) -> list[Verdict]:
    """The verdict of each trial; equal ones are run once, one per core. Raises UserError without a sandbox."""
    check_sandbox()
    distinct = list(dict.fromkeys(trials))
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_WORKERS)) as pool:
        verdicts = pool.map(lambda trial: _run(trial, limits), distinct)
        verdict_of = dict(zip(distinct, verdicts, strict=True))
    return [verdict_of[trial] for trial in trials]


@cache
def check_sandbox() -> None:
    """Check once per process that the sandbox works. Raises UserError where programs cannot be run safely."""
    trial = Trial(program="def one(): return 1", reference="", names=("one",), tests="assert one() == 1")
    verdict = _run(trial, Limits(seconds=STARTUP_SECONDS, memory_megabytes=256))
    if verdict.status != "passed":
        raise UserError(f"a right program did not pass in the sandbox ({verdict}): try another Python or bubblewrap")


def _run(trial: Trial, limits: Limits) -> Verdict:
    host, host_side = socket.socketpair()
    tests_side, program_side = socket.socketpair()
    with (
        host,
        host_side,
        tests_side,
        program_side,
        _sandbox("tests", limits, (host_side, tests_side)) as tests,
        _sandbox("program", limits, (program_side,)) as program,
    ):
        if _started(host, trial):
            return _verdict(host, limits)
        complaint = tests.stop() or program.stop() or "no answer"
        raise UserError(
            f"bubblewrap makes no sandbox here ({complaint}), and code is run in one only: allow user namespaces on "
            "this machine or in its container, or take a newer bubblewrap"
        )


def _started(host: socket.socket, trial: Trial) -> bool:
    """Hand the trial over; tell whether both interpreters are up, so that what follows is the program's own doing."""
    host.settimeout(STARTUP_SECONDS)
    try:
        host.sendall(json.dumps(asdict(trial)).encode() + b"\n")
        return host.recv(len(_READY)) == _READY
    except OSError:
        return False


def _verdict(host: socket.socket, limits: Limits) -> Verdict:
    """What the tests' sandbox says in time. Only their harness writes to this socket, and it writes once."""
    host.settimeout(limits.seconds)
    try:
        line = host.recv(_LONGEST_VERDICT)
    except TimeoutError:
        return Verdict(status="timed out")
    except ConnectionError:
        line = b""
    if not line:
        return Verdict(status="failed", error="the tests' process ended early")
    status, error = json.loads(line)
    return Verdict(status=status, error=error)


@contextmanager
def _sandbox(role: str, limits: Limits, ends: Sequence[socket.socket]) -> Iterator[_Sandbox]:
    """A harness process in namespaces of its own, which are gone at the end. Takes its ends of sockets over."""
    command, refused = _bubblewrap(), seccomp_filter()
    refused_reader, refused_writer = os.pipe()
    os.write(refused_writer, refused)
    os.close(refused_writer)
    status_reader, status_writer = os.pipe()
    os.set_blocking(status_reader, False)
    descriptors = [end.fileno() for end in ends]
    numbers = (limits.seconds, limits.memory_megabytes * 2**20, *descriptors)
    with os.fdopen(status_reader, "rb") as status:
        try:
            process = subprocess.Popen(  # noqa: S603
                [
                    *command,
                    *("--seccomp", str(refused_reader), "--info-fd", str(status_writer)),
                    *(*_PYTHON, role, *map(str, numbers)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={"PYTHONHASHSEED": "0"},  # or verdicts would change with the order of sets
                pass_fds=(refused_reader, status_writer, *descriptors),
                start_new_session=True,  # Ctrl-C is for the trainer
            )
        finally:
            os.close(refused_reader)
            os.close(status_writer)
            for end in ends:
                end.close()
        sandbox = _Sandbox(process=process, status=status)
        try:
            yield sandbox
        finally:
            sandbox.stop()


@dataclass(frozen=True, kw_only=True)
class _Sandbox:
    process: subprocess.Popen[bytes]
    status: IO[bytes]  # bwrap tells here which process is the first of its namespaces

    def stop(self) -> str:
        """Kill the namespaces' first process, the harness, and all others with it; give what bwrap complained of.

        Then bwrap collects it and ends. Were bwrap killed, or another process of its first (without --as-pid-1), the
        dead would be left to process 1 of the machine, which in many containers never looks.
        """
        if self.process.returncode is not None:
            return ""
        try:
            os.kill(json.loads(self.status.read() or b"")["child-pid"], signal.SIGKILL)
        except (ValueError, ProcessLookupError):  # it never was, or is gone
            self.process.kill()
        return self.process.communicate()[1].decode(errors="replace").strip()


def _bubblewrap() -> list[str]:
    """The command that makes the sandbox: nothing of the machine but Python, read-only, and an empty directory."""
    command = shutil.which("bwrap")
    if command is None:
        raise UserError(
            "code is run inside bubblewrap only, and there is no bwrap here: install bubblewrap "
            "(on Debian: apt install bubblewrap)"
        )
    visible = [path for path in (*_LIBRARIES, sys.base_prefix) if Path(path).exists()]
    return [
        command,
        *("--unshare-all", "--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *(part for path in visible for part in ("--ro-bind", path, path)),
        *("--ro-bind", str(_HARNESS), "/harness.py"),
        *("--size", str(DIRECTORY_BYTES), "--tmpfs", "/tmp"),  # noqa: S108  # the sandbox's own
        *("--remount-ro", "/", "--chdir", "/tmp"),  # noqa: S108
    ]
