"""A model brings the task that it was made for: of its run's recipe, or of its config.json."""

import json
import shutil

import pytest

from unmask.cli.main import main, parse
from unmask.cli.subcommands import COMMANDS
from unmask.data.chat import ChatSettings
from unmask.denoisers.directories import ASSETS
from unmask.errors import UserError
from unmask.tasks import Arithmetic, Countdown, Dataset, Sudoku

ROWS = "".join(json.dumps({"prompt": f"{a}+{b}=", "answer": str(a + b)}) + "\n" for a in range(1, 5) for b in (1, 2))
OF_ROWS = [
    "--task",
    "dataset",
    "--task.data",
    "rows.jsonl",
    "--task.answer-kind",
    "number",
    "--task.max-new-tokens",
    "4",
]
FEW = ["--train.max-steps", "1", "--rollout.prompts", "2", "--rollout.num-generations", "2", "--rollout.steps", "4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run on rows of one's own from a model of sums, its export, and a model that says nothing of tasks."""
    place = tmp_path_factory.mktemp("place")
    (place / "rows.jsonl").write_text(ROWS)
    shutil.copytree(ASSETS / "arithmetic", place / "blank")
    config = json.loads((place / "blank" / "config.json").read_text())
    del config["task"]
    (place / "blank" / "config.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        words = ["train", "--model", "embedded:arithmetic", *OF_ROWS, *FEW, "--output", "run"]
        assert main([*words, "--evaluation.greedy-steps", "4", "--chat.template", "never"]) == 0
        assert main(["export", "run", "--output", "exported"]) == 0
    return place


def settings_of(command, *words):
    return parse(command, COMMANDS[command], list(words))[0]


@pytest.mark.parametrize("model", ["run", "run/checkpoints/step_000001", "exported"])
@pytest.mark.parametrize("command", ["evaluate", "sample", "train"])
def test_a_model_brings_the_task_and_chat_of_its_recipe(command, model, place, monkeypatch):
    monkeypatch.chdir(place)
    settings = settings_of(command, "--model", model)
    assert isinstance(settings.task, Dataset)
    assert (settings.task.answer_kind, settings.task.max_new_tokens) == ("number", 4)
    assert settings.chat == ChatSettings(template="never")


def test_evaluate_of_a_run_measures_its_own_rows(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main(["evaluate", "--model", "run", "--steps", "4"]) == 0
    assert "run on dataset" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["evaluate", "sample", "train"])
def test_a_model_without_a_task_is_refused_until_one_is_named(command, place, monkeypatch):
    monkeypatch.chdir(place)
    with pytest.raises(UserError, match="model 'blank' brings no task: give --task"):
        settings_of(command, "--model", "blank")
    assert isinstance(settings_of(command, "--model", "blank", "--task", "sudoku").task, Sudoku)


def test_a_task_that_is_named_keeps_what_the_model_brings_of_it(place, monkeypatch):
    monkeypatch.chdir(place)
    brought = settings_of("evaluate", "--model", "embedded:countdown").task
    assert brought != Countdown()
    assert settings_of("evaluate", "--model", "embedded:countdown", "--task", "countdown").task == brought
    assert settings_of("evaluate", "--model", "run", "--task", "dataset").task.answer_kind == "number"
    assert settings_of("evaluate", "--model", "run", "--task", "arithmetic").task == Arithmetic()
    changed = settings_of("evaluate", "--model", "run", "--task.answer-kind", "text").task
    assert (changed.answer_kind, changed.max_new_tokens) == ("text", 4)


def test_objects_of_another_process_are_not_brought(place, tmp_path):
    shutil.copytree(place / "blank", tmp_path / "blank")
    (tmp_path / "blank" / "recipe.toml").write_text('[task]\nname = "dataset"\ndata = "python:list"\n')
    with pytest.raises(UserError, match="brings no task"):
        settings_of("evaluate", "--model", str(tmp_path / "blank"))
