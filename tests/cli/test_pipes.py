"""Output whose reader goes away, as under `| head`: no traceback, and the exit code of such a process."""

import subprocess
import sys

import pytest

from unmask.cli.main import main

UNREAD = 141  # 128 + SIGPIPE, as a shell tells of a process that the signal ends


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--version",),
        ("train", "--help"),
        ("recipes",),
        ("methods",),
        ("methods", "--markdown"),
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
