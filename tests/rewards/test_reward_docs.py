"""What docs/rewards.md shows works as it says."""

import asyncio
import dataclasses
import re
import shlex
import sys
import tomllib
from pathlib import Path

from unmask.cli.main import parse
from unmask.cli.subcommands import COMMANDS
from unmask.rewards import load_functions
from unmask.rewards.judge import JudgeSettings
from unmask.settings.reader import build
from unmask.settings.recipe import RewardSettings
from unmask.tasks import Sudoku

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()


def shown(language: str) -> str:
    """The one block of code in a language."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return block


def test_docs_example_file_gives_what_it_says(tmp_path):
    path = tmp_path / "my_rewards.py"
    path.write_text(shown("python"))
    specs = ",".join(f"{path}:{name}" for name in ("brevity", "near", "politeness"))
    brevity, near, politeness = load_functions(RewardSettings(funcs=specs), Sudoku(), "cpu")
    assert (brevity.cached, near.cached, politeness.cached, politeness.is_async) == (True, True, False, True)
    texts = {
        "prompts": ["?"] * 4,
        "completions": ["", "it is 7", "Please " * 100, "8"],
        "answer": ["1", "7", "7", "many"],
    }
    assert brevity.scores(texts) == [1.0, 1 - 7 / 400, 0.0, 1 - 1 / 400]
    assert near.scores(texts) == [0.0, 1.0, 0.0, None]
    assert asyncio.run(politeness.awaited_scores(texts)) == [0.0, 0.0, 1.0, 0.0]


def test_docs_command_loads_the_functions_of_the_example_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("my_rewards.py").write_text(shown("python"))
    (line,) = [line for line in PAGE.splitlines() if line.startswith("unmask train ")]
    recipe, _ = parse("train", COMMANDS["train"], shlex.split(line)[2:])
    functions = load_functions(recipe.reward, recipe.task, "cpu")
    del sys.modules["my_rewards"]  # not for other tests
    assert [(function.name, function.weight) for function in functions] == [
        ("task", 1.0),
        ("brevity", 0.2),
        ("politeness", 0.5),
    ]


def test_docs_judge_settings_are_those_of_the_code():
    document = tomllib.loads(shown("toml"))
    settings = build(JudgeSettings, document)
    for field in dataclasses.fields(settings):
        if field.name not in ("url", "model", "template", "score", "api_key_variable"):
            assert getattr(settings, field.name) == field.default
    assert settings.pattern.findall(settings.message("a", "b") + "I give\nScore: 7.5") == ["7.5"]
