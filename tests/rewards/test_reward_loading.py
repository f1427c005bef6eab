"""Reward functions are found by file, module and name; what is not there is refused before anything is written."""

import sys
from pathlib import Path

import pytest

from unmask.cli.main import main
from unmask.errors import UserError
from unmask.rewards import load_functions
from unmask.settings.reader import build
from unmask.settings.recipe import RewardSettings
from unmask.tasks import Sudoku

FILE = """
from unmask.rewards import cached

RUNS = []
RUNS.append(1)
LIMIT = 3

@cached
def brevity(prompts, completions, **columns):
    return [float(len(text) < LIMIT) for text in completions]

def style(prompts, completions, **columns):
    return [0.5] * len(completions)

def task(prompts, completions, **columns):
    return [0.25] * len(completions)

def no_columns(prompts, completions):
    return [0.0] * len(completions)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with FILE as my_rewards.py and as a package's module, and nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "my_rewards.py").write_text(FILE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "style.py").write_text(FILE)
    (tmp_path / "mine" / "broken.py").write_text("import a_module_that_is_nowhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def load(functions, weights=None):
    return load_functions(RewardSettings(funcs=functions, weights=weights), Sudoku(), "cpu")


def test_load_functions_from_the_task_a_file_and_a_module(here):
    functions = load("task, my_rewards.py:brevity,mine.style:style", "1,0.2, -0.5")
    assert [(function.name, function.weight, function.cached) for function in functions] == [
        ("task", 1.0, True),
        ("brevity", 0.2, True),
        ("style", -0.5, False),
    ]
    task, brevity, style = (function.call for function in functions)
    assert brevity(prompts=["p"] * 2, completions=["ab", "abc"]) == [1.0, 0.0]
    assert style(prompts=["p"], completions=["ab"]) == [0.5]
    assert task(prompts=["0" * 16], completions=["?"], puzzle=["0" * 16]) == [0.0]


def test_load_functions_runs_a_file_once_whatever_its_path(here):
    functions = load(f"my_rewards.py:brevity,{here / 'my_rewards.py'}:style")
    assert functions[0].call.__globals__ is functions[1].call.__globals__
    assert functions[0].call.__globals__["RUNS"] == [1]


def test_load_functions_tells_functions_of_one_name_apart(here):
    names = [function.name for function in load("task,my_rewards.py:task,my_rewards.py:style,mine.style:style")]
    assert names == ["task", "my_rewards.py:task", "my_rewards.py:style", "mine.style:style"]


def test_reward_settings_weights_are_one_unless_given():
    assert RewardSettings(funcs="task,a.py:b").function_weights == [1.0, 1.0]
    assert build(RewardSettings, {"funcs": "task,a.py:b", "weights": "0,1e-3"}).function_weights == [0.0, 1e-3]


@pytest.mark.parametrize(
    ("flags", "value", "mend"),
    [
        (["funcs=taks"], "'taks'", "FILE.py:NAME"),
        (["funcs=task,"], "'task,'", "commas"),
        (["funcs=task,task"], "'task,task'", "different"),
        (["funcs=nowhere.py:style"], "'nowhere.py'", "path"),
        (["funcs=mine:"], "'mine:'", "MODULE:NAME"),
        (["funcs=mine.py:style"], "'mine.py'", "path"),
        (["funcs=nowhere.rewards:style"], "'nowhere.rewards'", "PYTHONPATH"),
        (["funcs=mine.nowhere:style"], "'mine.nowhere'", "PYTHONPATH"),
        (["funcs=..mine:style"], "'..mine'", "MODULE:NAME"),
        (["funcs=./mine/style:style"], "'./mine/style'", "FILE.py:NAME"),
        (["funcs=my_rewards.py:brevty"], "'brevty'", "'brevity'"),
        (["funcs=mine.style:stile"], "'stile'", "'style'"),
        (["funcs=my_rewards.py:LIMIT"], "int", "brevity"),
        (["funcs=my_rewards.py:no_columns"], "'puzzle'", "**columns"),
        (["funcs=task,my_rewards.py:style", "weights=1"], "'1'", "one weight for each"),
        (["weights=1,2"], "'1,2'", "one weight for each"),
        (["weights=heavy"], "'heavy'", "1,0.2"),
        (["weights="], "''", "1,0.2"),
        (["weights=nan"], "'nan'", "1,0.2"),
        (["weights=1,,2"], "'1,,2'", "1,0.2"),
        (["batch=0"], "0", "an integer from 1 to"),
        (["funcs=reward_model:nowhere"], "'nowhere'", "there is no such directory"),
        (["funcs=judge:nowhere.toml"], "'nowhere.toml'", "No such file"),
    ],
    ids=" ".join,
)
def test_load_functions_refuses_mistakes_before_anything_is_written(flags, value, mend, here, capsys):
    before = sorted(here.rglob("*"))
    small = ("--train.examples=4", "--evaluation.examples=4", "--output=run")
    assert main(["train", *small, *(f"--reward.{flag}" for flag in flags)]) == 2
    line = capsys.readouterr().err
    assert line.startswith("unmask: error: ")
    assert line.count("\n") == 1
    assert value in line
    assert mend in line
    assert sorted(here.rglob("*")) == before


def test_load_functions_shows_an_error_within_a_users_file(here):
    with pytest.raises(ModuleNotFoundError, match="nowhere") as caught:
        load("mine.broken:style")
    assert "mine.broken" in caught.value.__notes__[0]
    Path("half.py").write_text("import sys\nsys.seen = 1 / 0\n")
    for _ in range(2):  # a module that failed is not taken for one that was imported
        with pytest.raises(ZeroDivisionError) as caught:
            load("half.py:style")
        assert "half.py" in caught.value.__notes__[0]


def test_reward_settings_that_cannot_be_read_name_the_setting():
    with pytest.raises(UserError, match=r"reward\.weights is '1;2'"):
        RewardSettings(weights="1;2")
