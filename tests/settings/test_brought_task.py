"""A model brings the task that it was made for: of its run's recipe, or of its config.json."""

import json
import shutil

import pytest

from unmask.cli.main import main, parse
from unmask.cli.subcommands import COMMANDS
from unmask.data.chat import ChatSettings
from unmask.denoisers.directories import ASSETS
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
def test_of_a_model_without_a_task_it_is_said_until_one_is_named(command, place, monkeypatch):
    monkeypatch.chdir(place)
    for words, missing in ([], True), (["--task", "sudoku"], False), (["--task.size", "4"], True):
        settings, options = parse(command, COMMANDS[command], ["--model", "blank", *words])
        assert (settings.task, options.task_is_missing) == (Sudoku(), missing)
    assert not parse(command, COMMANDS[command], ["--model", "run"])[1].task_is_missing
    assert not parse(command, COMMANDS[command], [])[1].task_is_missing


def test_sample_of_a_prompt_needs_no_data_of_the_task_that_a_model_brings(place, tmp_path, monkeypatch, capsys):
    shutil.copytree(place / "exported", tmp_path / "exported")
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "--model", "exported", "--prompt", "1+2=", "--steps", "4"]) == 0
    assert main(["sample", "--model", "exported", "--steps", "4"]) == 2
    assert "rows.jsonl" in capsys.readouterr().err


def test_sample_says_which_task_it_takes(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    main(["sample", "--model", "blank"])
    assert "blank brings no task, so this is sudoku: --task names another" in capsys.readouterr().out


def test_a_task_that_is_named_keeps_what_the_model_brings_of_it(place, monkeypatch):
    monkeypatch.chdir(place)
    brought = settings_of("evaluate", "--model", "embedded:countdown").task
    assert brought != Countdown()
    assert settings_of("evaluate", "--model", "embedded:countdown", "--task", "countdown").task == brought
    assert settings_of("evaluate", "--model", "run", "--task", "dataset").task.answer_kind == "number"
    assert settings_of("evaluate", "--model", "run", "--task", "arithmetic").task == Arithmetic()
    changed = settings_of("evaluate", "--model", "run", "--task.answer-kind", "text").task
    assert (changed.answer_kind, changed.max_new_tokens) == ("text", 4)


@pytest.mark.parametrize("file", ["recipe.toml", "config.json"])
def test_a_task_in_a_file_of_a_model_is_no_code(file, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "blank", "model")
    (tmp_path / "model" / "evil.py").write_text("open('hacked', 'w')\n")
    written = (
        '[task]\nname = "model/evil.py:Evil"\n' if file == "recipe.toml" else '{"task": {"name": "model/evil.py:E"}}'
    )
    (tmp_path / "model" / file).write_text(written)
    for command in ("evaluate", "sample", "train", "plan"):
        assert parse(command, COMMANDS[command], ["--model", "model"])[1].task_is_missing
    assert not (tmp_path / "hacked").exists()


def test_objects_of_another_process_are_not_brought(place, tmp_path):
    shutil.copytree(place / "blank", tmp_path / "blank")
    (tmp_path / "blank" / "recipe.toml").write_text('[task]\nname = "dataset"\ndata = "python:list"\n')
    assert parse("evaluate", COMMANDS["evaluate"], ["--model", str(tmp_path / "blank")])[1].task_is_missing
