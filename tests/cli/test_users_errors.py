"""Exceptions of the user's code: their own frames alone, and exit code 1; faults of ours keep their traceback."""

import json

import pytest

from unmask.cli.main import main

SIZES = ["--train.max-steps", "1", "--train.examples", "16", "--train.threads", "1", "--evaluation.examples", "8"]


def test_exception_of_a_reward_function_is_told_from_their_frame_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def f(completions, **columns):\n    return json.loads('{')\n\nimport json\n")
    words = ["train", "--recipe", "sudoku-diffu-grpo", *SIZES, "--reward.funcs", "mine.py:f", "--output", "run"]
    assert main(words) == 1
    told = capsys.readouterr().err
    told = told[told.index("Traceback") :].splitlines()
    assert told[0] == "Traceback from your code on:"
    assert told[1] == f'  File "{tmp_path / "mine.py"}", line 2, in f'
    assert any(line.startswith("json.decoder.JSONDecodeError: Expecting property name") for line in told)
    assert told[-1] == f"raised by the reward function '{tmp_path / 'mine.py'}:f'"
    assert sum("unmask/" in line for line in told) == 0


def test_exception_of_ours_keeps_its_traceback(tmp_path, monkeypatch):
    def broken(*_, **__):
        return json.loads("{")

    monkeypatch.setattr("unmask.cli.users_errors._is_users", lambda filename: False)
    monkeypatch.setattr("unmask.cli.main._dispatch", broken)
    with pytest.raises(json.JSONDecodeError):
        main(["recipes"])
