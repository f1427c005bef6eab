"""Output whose reader goes away, as under `| head`: no traceback, and the exit code of such a process."""

import os
import subprocess
import sys

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


def piped(*words):
    """What a command writes into a pipe, nothing asking for a width."""
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-m", "unmask", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def test_methods_writes_each_row_on_one_line_in_a_pipe():
    lines = piped("methods").splitlines()
    for row in all_rows():
        (line,) = (line for line in lines if line.startswith(f"{row.method} "))
        assert all(cell in line for cell in row.cells.values())


def test_methods_of_one_writes_each_setting_on_one_line_in_a_pipe():
    lines = piped("methods", "mdpo").splitlines()
    for leaf in leaves(MDPO()):
        assert [line for line in lines if f"--method.{leaf.path.replace('_', '-')} " in line and leaf.help in line]


@pytest.mark.long
def test_plan_of_all_methods_writes_each_on_one_line_in_a_pipe():
    lines = [line.split() for line in piped("plan", "--all-methods").splitlines()]
    for name in METHODS:
        assert [words for words in lines if words[:1] == [name] and len(words) > 4]
