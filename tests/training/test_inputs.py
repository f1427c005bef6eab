"""A run goes on with the files it was started with, from whatever directory; changed ones are told."""

import json
import logging
import tomllib
from pathlib import Path

import pytest

from unmask.cli.main import main

FLAGS = [
    *("--recipe", "sudoku-diffu-grpo", "--train.threads", "1", "--train.examples", "8", "--train.steps", "1"),
    *("--rollout.prompts", "2", "--rollout.group-size", "4", "--evaluation.examples", "4"),
    *("--evaluation.greedy-steps", "4", "--task.data", "data/rows.csv", "--reward.functions", "task,rewards.py:good"),
]
ROWS = "Puzzle,Solution\n0034341221434321,1234341221434321\n1234341221434300,1234341221434321\n"
REWARD = "def good(prompts, completions, **columns):\n    return [{}] * len(completions)\n"


def files_in(directory: Path, reward: float, rows: str) -> Path:
    (directory / "data").mkdir(parents=True)
    (directory / "data" / "rows.csv").write_text(rows)
    (directory / "rewards.py").write_text(REWARD.format(reward))
    return directory


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(files_in(tmp_path / "home", 1.0, ROWS))
    assert main(["train", *FLAGS, "--output", "run"]) == 0
    return tmp_path / "home" / "run"


def test_resume_elsewhere_reads_the_same_files(run, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(files_in(tmp_path / "elsewhere", -7.0, "broken"))
    recipe = tomllib.loads((run / "recipe.toml").read_text())
    assert recipe["task"]["data"] == str(run.parent / "data" / "rows.csv")
    assert recipe["reward"]["functions"] == f"task,{run.parent / 'rewards.py'}:good"
    with caplog.at_level(logging.WARNING, logger="unmask"):
        assert main(["train", "--resume", str(run), "--train.steps", "2"]) == 0
    assert caplog.messages == []
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["rewards/good/mean"] for row in rows if "rewards/good/mean" in row] == [1.0, 1.0]


def test_resume_tells_of_changed_files(run, caplog):
    (run.parent / "data" / "rows.csv").write_text(ROWS.replace("0034", "0234"))
    (run.parent / "rewards.py").write_text(REWARD.format(2.0))
    with caplog.at_level(logging.WARNING, logger="unmask"):
        assert main(["train", "--resume", str(run), "--train.steps", "2"]) == 0
    assert any("rows.csv has changed" in message for message in caplog.messages)
    assert any("rewards.py has changed" in message for message in caplog.messages)


def test_resume_without_its_data_is_one_line(run, capsys):
    (run.parent / "data" / "rows.csv").unlink()
    assert main(["train", "--resume", str(run), "--train.steps", "2"]) == 2
    assert "rows.csv" in capsys.readouterr().err.splitlines()[-1]


def test_resume_with_other_held_out_rows_ends_in_one_line(run, capsys):
    (run.parent / "data" / "rows.csv").write_text("\n".join(ROWS.splitlines()[:2]) + "\n")
    assert main(["train", "--resume", str(run), "--train.steps", "2"]) == 2
    assert "held-out data changed" in capsys.readouterr().err.splitlines()[-1]
