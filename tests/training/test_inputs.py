"""A run goes on with the files it was started with, from whatever directory; changed ones are told."""

import json
import logging
import sys
import tomllib
from pathlib import Path

import pytest

from unmask.cli.main import main
from unmask.rewards import load_functions
from unmask.settings.inputs import input_digests
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe

FLAGS = [
    *("--recipe", "sudoku-diffu-grpo", "--train.threads", "1", "--train.examples", "8", "--train.max-steps", "1"),
    *("--rollout.prompts", "2", "--rollout.num-generations", "4", "--evaluation.examples", "4"),
    *("--evaluation.greedy-steps", "4", "--task.data", "data/rows.csv", "--reward.funcs", "task,rewards.py:good"),
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
    assert recipe["reward"]["funcs"] == f"task,{run.parent / 'rewards.py'}:good"
    with caplog.at_level(logging.WARNING, logger="unmask"):
        assert main(["train", "--resume", str(run), "--train.max-steps", "2"]) == 0
    assert caplog.messages == []
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["rewards/good/mean"] for row in rows if "rewards/good/mean" in row] == [1.0, 1.0]


def test_resume_tells_of_changed_files(run, caplog):
    (run.parent / "data" / "rows.csv").write_text(ROWS.replace("0034", "0234"))
    (run.parent / "rewards.py").write_text(REWARD.format(2.0))
    with caplog.at_level(logging.WARNING, logger="unmask"):
        assert main(["train", "--resume", str(run), "--train.max-steps", "2"]) == 0
    assert any("rows.csv has changed" in message for message in caplog.messages)
    assert any("rewards.py has changed" in message for message in caplog.messages)


def test_resume_without_its_data_is_one_line(run, capsys):
    (run.parent / "data" / "rows.csv").unlink()
    assert main(["train", "--resume", str(run), "--train.max-steps", "2"]) == 2
    assert "rows.csv" in capsys.readouterr().err.splitlines()[-1]


def test_resume_with_other_held_out_rows_ends_in_one_line(run, capsys):
    (run.parent / "data" / "rows.csv").write_text("\n".join(ROWS.splitlines()[:2]) + "\n")
    assert main(["train", "--resume", str(run), "--train.max-steps", "2"]) == 2
    assert "held-out data changed" in capsys.readouterr().err.splitlines()[-1]


SOURCES = {
    "helpers.py": "BONUS = 1.0\n",
    "own.py": "from dataclasses import dataclass\n"
    "from unmask.methods import DiffuGRPO\nfrom unmask.tasks import Sudoku\n"
    "from helpers import BONUS\n"
    "@dataclass(frozen=True, kw_only=True)\nclass Mine(DiffuGRPO):\n    name = 'mine'\n"
    "@dataclass(frozen=True, kw_only=True)\nclass Boards(Sudoku):\n    name = 'boards'\n"
    "def good(prompts, completions, **columns):\n    return [BONUS] * len(completions)\n",
}


@pytest.mark.parametrize("place", ["{file}:", "installed_own:"], ids=["file", "module"])
@pytest.mark.parametrize("table", ["method", "task", "reward"])
def test_digests_cover_the_users_classes_and_functions(table, place, tmp_path, monkeypatch):
    file = tmp_path / "own.py"
    for name, source in SOURCES.items():
        (tmp_path / name).write_text(source)
    (tmp_path / "installed_own.py").write_text(SOURCES["own.py"].replace("from helpers import BONUS", "BONUS = 1.0"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "installed_own", raising=False)
    place = place.format(file=file)
    document = {
        "method": {"method": {"name": f"{place}Mine"}},
        "task": {"task": {"name": f"{place}Boards"}},
        "reward": {"reward": {"funcs": f"{place}good"}},
    }[table]
    recipe = build(Recipe, document)
    load_functions(recipe.reward, recipe.task, "cpu")  # as a run does before it digests
    digests = input_digests(recipe)
    names = {"own.py", "helpers.py"} if place.startswith("/") else {"installed_own.py"}
    assert {Path(path).name for path in digests} == names


def test_digests_leave_out_the_packages_own_files():
    assert input_digests(build(Recipe, {})) == {}
