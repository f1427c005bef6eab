"""Output whose reader goes away, as under `| head`: no traceback, and the exit code of such a process."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout

import pytest

from unmask.cli.main import main
from unmask.methods import MDPO, METHODS
from unmask.report.methods_page import all_rows
from unmask.settings.reader import leaves

UNREAD = 141  # 128 + SIGPIPE, as a shell tells of a process that the signal ends


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--version",),
        ("train", "--help"),
        ("recipes",),
        ("methods",),
        pytest.param(("methods", "--markdown"), marks=pytest.mark.long),
        ("plan",),
        ("sample",),
        ("evaluate", "--examples", "2", "--steps", "4"),
    ],
    ids=" ".join,
)
def test_main_ends_quietly_where_nobody_reads_its_output(words):
    command = [sys.executable, "-m", "unmask", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # before a line is written
        assert process.stderr.read() == ""
    assert process.returncode == UNREAD


def test_main_raises_the_broken_pipe_of_others(monkeypatch):
    def tell():
        raise BrokenPipeError

    monkeypatch.setattr("unmask.report.methods_page.print_methods", tell)
    with open("/dev/null", "w") as output:
        monkeypatch.setattr("sys.stdout", output)
        with pytest.raises(BrokenPipeError):
            main(["methods"])


@pytest.fixture
def piped(monkeypatch):
    """What commands write into a pipe, nothing asking for a width."""

    def written(*words):
        reading, writing = os.pipe()
        with ThreadPoolExecutor(1) as threads, os.fdopen(reading) as pipe, os.fdopen(writing, "w") as output:
            read = threads.submit(pipe.read)
            with redirect_stdout(output):
                assert main(words) == 0
            output.close()
            return read.result()

    monkeypatch.delenv("COLUMNS", raising=False)
    return written


def test_methods_writes_each_row_on_one_line_in_a_pipe(piped):
    lines = piped("methods").splitlines()
    for row in all_rows():
        (line,) = (line for line in lines if line.startswith(f"{row.method} "))
        assert all(cell in line for cell in row.cells.values())


def test_methods_of_one_writes_each_setting_on_one_line_in_a_pipe(piped):
    lines = piped("methods", "mdpo").splitlines()
    for leaf in leaves(MDPO()):
        assert [line for line in lines if f"--method.{leaf.path.replace('_', '-')} " in line and leaf.help in line]


@pytest.mark.long
def test_plan_of_all_methods_writes_each_on_one_line_in_a_pipe(piped):
    lines = [line.split() for line in piped("plan", "--all-methods").splitlines()]
    for name in METHODS:
        assert [words for words in lines if words[:1] == [name] and len(words) > 4]
