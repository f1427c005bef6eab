"""Names and defaults: what a command starts from where no recipe is named, and what its run is called."""

import os
import subprocess
import sys

import pytest

from unmask.cli.main import COMMANDS, main, parse
from unmask.errors import UserError
from unmask.methods import METHODS
from unmask.settings.reader import build, read_recipe, recipe_names
from unmask.settings.recipe import Recipe, RolloutSettings, TrainSettings
from unmask.tasks import Arithmetic, Countdown, Sudoku

DATA = ("--task", "dataset", "--task.data", "rows.jsonl")


def parsed(*words: str, command: str = "train"):
    return parse(command, COMMANDS[command], list(words))[0]


def test_parse_without_model_task_or_method_is_the_main_job():
    main_job = build(Recipe, read_recipe("sudoku-dispo"))
    assert parsed() == main_job
    assert parsed("--train.seed", "0", "--method.alpha", "4") == main_job


@pytest.mark.parametrize("method", METHODS)
def test_parse_of_a_named_method_inherits_no_recipe(method):
    rule = () if METHODS[method]().unmasking is None else ("--rollout.unmasking", METHODS[method]().unmasking)
    recipe = parsed(*DATA, "--method", method, *rule)
    assert recipe.method == METHODS[method]()
    assert recipe.train == TrainSettings()
    assert recipe.rollout == RolloutSettings(unmasking=recipe.rollout.unmasking)


@pytest.mark.parametrize("words", [("--model", "embedded:sudoku"), ("--task", "sudoku"), ("--method", "dispo")])
def test_parse_of_a_named_part_of_the_main_job_inherits_no_recipe(words):
    assert parsed(*words) == Recipe()


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "plan", "pretrain"])
@pytest.mark.parametrize(
    ("model", "task"),
    [
        ("sudoku", Sudoku()),
        ("countdown", Countdown(max_number=9, max_target=40)),
        ("arithmetic", Arithmetic(terms=3, max_number=5)),
    ],
)
def test_parse_takes_the_task_that_an_embedded_model_brings(command, model, task):
    assert parsed("--model", f"embedded:{model}", command=command).task == task
    other = parsed("--model", f"embedded:{model}", "--task", "sudoku", "--task.size", "6", command=command).task
    assert other == Sudoku(size=6)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "sudoku-dispo"),
        (["--train.seed", "1"], "sudoku-dispo"),
        (["--recipe", "sudoku-mdpo"], "sudoku-mdpo"),
        (["--method", "mdpo"], "mdpo-sudoku"),
        (["--model", "embedded:countdown"], "dispo-countdown"),
        (["--recipe", "sudoku-mdpo", "--method", "spg"], "spg-sudoku"),
    ],
)
def test_train_names_its_run_after_what_it_does(words, name, monkeypatch):
    names = []

    def start(recipe, output, name):
        names.append(name)
        raise UserError("enough")

    monkeypatch.setattr("unmask.training.run.start_run", start)
    assert main(["train", *words]) == 2
    assert names == [name]


@pytest.mark.parametrize("command", ["train", "plan"])
def test_parse_refuses_two_lengths_that_contradict_each_other(command):
    both = ("--task.max-new-tokens", "64", "--rollout.max-new-tokens", "128")
    with pytest.raises(UserError, match=r"--rollout.max-new-tokens 128 .* --task.max-new-tokens 64"):
        parsed(*DATA, *both, command=command)
    assert parsed(*DATA, *both[:2], "--rollout.max-new-tokens", "64", command=command).rollout.max_new_tokens == 64
    assert parsed(*DATA, *both[2:], command=command).rollout.max_new_tokens == 128


def test_recipes_lists_every_shipped_one_and_help_none(capsys):
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    for command in ("train", "pretrain"):
        assert all(f"  {name} " in printed for name in recipe_names(command))
        assert main([command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "unmask recipes" in shown
        assert "llada8b" not in shown


def test_evaluate_s_table_is_not_cut_in_a_pipe():
    code = (
        "from unmask.evaluation.table import print_table\nfrom unmask.settings.commands import EvaluateSettings\n"
        "names = ('solved', 'solved_low', 'solved_high', 'pass_at_16', 'over_denoised', 'correct_cells')\n"
        "row = {'unmasking': 'scheduled_threshold', 'tokens': 256, 'steps': 128, 'examples': 500}\n"
        "print_table([row | dict.fromkeys(names, 0.51234)], EvaluateSettings(model='models/' + 'long-name-' * 9))"
    )
    words = [sys.executable, "-c", code]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}  # which asks for a width
    printed = subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout
    for word in ("scheduled_threshold", "over denoised", "correct cells", "long-name-" * 9, "51.2% (51.2% – 51.2%)"):
        assert word in printed
