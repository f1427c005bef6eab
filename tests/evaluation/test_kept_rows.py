"""Rows of `unmask evaluate` are in the file as soon as they are finished, and the same command goes on from them."""

import json
import os
import shutil

import pytest

from unmask.cli.main import main
from unmask.denoisers.directories import ASSETS
from unmask.evaluation import table
from unmask.tasks import Sudoku

FLAGS = ("--examples", "12", "--threads", "1")
THREE_ROWS = [
    ("--steps", "2,4,8"),
    ("--steps", "4", "--unmasking", "low_confidence,random,margin"),
    ("--lengths", "4,8,16", "--steps", "/1", "--task", "arithmetic", "--model", "embedded:arithmetic"),
    ("--steps", "2,4,8", "--samples", "2", "--temperature", "1", "--over-denoising", "true"),
]


@pytest.fixture
def measured(monkeypatch):
    """Called before each row is measured, a list of functions; it grows by a number a row."""
    measure, rows = table.mean_metrics, []

    def spy(*arguments, **options):
        rows.append(len(rows))
        for function in spy.before:
            function(len(rows))
        return measure(*arguments, **options)

    spy.before, spy.rows = [], rows
    monkeypatch.setattr(table, "mean_metrics", spy)
    return spy


def killed_at(number, error):
    def end(row):
        if row == number:
            raise error

    return end


class Killed(BaseException):
    """Nothing catches it, as nothing catches kill -9."""


@pytest.mark.parametrize("flags", THREE_ROWS, ids=" ".join)
def test_evaluate_that_was_killed_keeps_its_rows_and_goes_on_from_them(flags, tmp_path, measured, capsys):
    whole, output = tmp_path / "whole.json", tmp_path / "table.json"
    assert main(["evaluate", *FLAGS, *flags, "--output", str(whole)]) == 0
    expected = json.loads(whole.read_text())
    assert len(expected) == 3
    measured.rows.clear()
    for done in (1, 2):
        measured.before = [killed_at(2 * done, Killed)]
        with pytest.raises(Killed):
            main(["evaluate", *FLAGS, *flags, "--output", str(output)])
        assert json.loads(output.read_text()) == expected[:done]
    measured.before = []
    capsys.readouterr()
    assert main(["evaluate", *FLAGS, *flags, "--output", str(output)]) == 0
    assert output.read_bytes() == whole.read_bytes()
    assert len(measured.rows) == 5  # two, of which one was killed; then one and one; then the last
    assert capsys.readouterr().out.count("kept from before") == 2
    assert {path.name for path in tmp_path.iterdir()} == {"whole.json", "table.json"}


def test_evaluate_shows_each_row_before_the_next_is_measured(measured, capsys):
    shown = []
    measured.before = [lambda row: shown.append(capsys.readouterr().out)]
    assert main(["evaluate", *FLAGS, "--steps", "2,4,8"]) == 0
    for steps, text in zip((2, 4), shown[1:], strict=True):
        assert f"low_confidence, 16 tokens, {steps} steps: 12/12  solved " in text


@pytest.mark.parametrize("flags", [("--seed", "2"), ("--examples", "13"), ("--steps", "2,8"), ("--block-length", "8")])
def test_evaluate_with_other_settings_begins_anew(flags, tmp_path, measured):
    output = tmp_path / "table.json"
    command = ["evaluate", *FLAGS, "--steps", "2,4", "--output", str(output)]
    measured.before = [killed_at(2, Killed)]
    with pytest.raises(Killed):
        main(command)
    measured.rows.clear()
    measured.before = []
    assert main([*command, *flags]) == 0
    assert len(measured.rows) == 2


@pytest.mark.parametrize("changed", ["model.safetensors", "config.json", "rule.py", "puzzles.csv"])
def test_evaluate_of_changed_files_begins_anew(changed, tmp_path, measured):
    model = shutil.copytree(ASSETS / "sudoku", tmp_path / "model")
    rule, data = tmp_path / "rule.py", tmp_path / "puzzles.csv"
    rule.write_text(
        "from dataclasses import dataclass\nfrom unmask.sampling.unmasking import Random\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Drawn(Random):\n    name = 'drawn'\n"
    )
    puzzles = [f"{item.prompt},{item.solution}\n" for item in Sudoku().examples("test", 4, seed=1)]
    data.write_text("".join(["Puzzle,Solution\n", *puzzles]))
    command = ["evaluate", *FLAGS, "--task.data", str(data), "--model", str(model), "--unmasking", f"{rule}:Drawn"]
    command += ["--steps", "2,4", "--output", str(tmp_path / "table.json")]
    measured.before = [killed_at(2, Killed)]
    with pytest.raises(Killed):
        main(command)
    measured.rows.clear()
    measured.before = []
    path = next(path for path in (rule, data, model / changed) if path.name == changed)
    os.utime(path, ns=(1, 1))
    if path == data:
        data.write_text(data.read_text() + puzzles[0])
    if path == rule:
        rule.write_text(rule.read_text() + "# changed\n")
    assert main(command) == 0
    assert len(measured.rows) == 2


def test_evaluate_interrupted_says_which_rows_are_kept(tmp_path, measured, capsys):
    output = tmp_path / "table.json"
    for row, said in ((1, "unmask: interrupted"), (2, f"1 finished row is in {output}, from which the same command")):
        measured.rows.clear()
        measured.before = [killed_at(row, KeyboardInterrupt)]
        assert main(["evaluate", *FLAGS, "--steps", "2,4", "--output", str(output)]) == 130
        line = capsys.readouterr().err.splitlines()[-1]
        assert said in line
        assert ("kept" in line or "finished" in line) == (row == 2)


def test_evaluate_writes_a_whole_table_to_a_pipe(tmp_path):
    reader, writer = os.pipe()
    assert main(["evaluate", *FLAGS, "--steps", "2,4", "--output", f"/dev/fd/{writer}"]) == 0
    os.close(writer)
    with os.fdopen(reader) as stream:
        assert [row["steps"] for row in json.loads(stream.read())] == [2, 4]


def test_evaluate_refuses_a_directory_as_output(tmp_path, capsys):
    assert main(["evaluate", "--output", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "table.json") in line
    assert list(tmp_path.iterdir()) == []
