"""Names and defaults: what a command starts from where no recipe is named, and what its run is called."""

import os
import subprocess
import sys

import pytest
import tomli_w

from unmask.cli.main import main, parse
from unmask.cli.subcommands import COMMANDS
from unmask.errors import UserError
from unmask.methods import METHODS
from unmask.settings.reader import build, document_of
from unmask.settings.recipe import Recipe, RolloutSettings, TrainSettings
from unmask.settings.recipe_files import read_recipe, recipe_names
from unmask.tasks import TASKS, Arithmetic, Countdown, Sudoku

ROWS = ("--task", "dataset", "--task.data", "rows.jsonl")
DATA = ("--model", "embedded:sudoku", *ROWS)


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


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "plan"])
@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("sudoku", Sudoku()),
        ("countdown", Countdown(max_number=9, max_target=40)),
        ("arithmetic", Arithmetic(terms=3, max_number=5)),
    ],
)
def test_parse_takes_the_embedded_model_whose_task_is_named(command, task, settings):
    parsed_settings = parsed("--task", task, command=command)
    assert (parsed_settings.model, parsed_settings.task) == (f"embedded:{task}", settings)
    assert parsed("--task", task, "--model", "somewhere", command=command).model == "somewhere"


def test_parse_of_a_named_task_keeps_its_flags_and_the_method():
    recipe = parsed("--task", "countdown", "--task.max-target", "30", "--method", "mdpo")
    assert (recipe.model, recipe.task) == ("embedded:countdown", Countdown(max_number=9, max_target=30))
    assert recipe.method.name == "mdpo"


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "plan"])
@pytest.mark.parametrize("task", sorted(set(TASKS) - {"sudoku", "countdown", "arithmetic"}))
def test_parse_asks_for_a_model_where_no_embedded_one_knows_the_task(command, task):
    for words in ((), ("--method", "dispo")) if command in ("train", "plan") else ((),):
        with pytest.raises(UserError, match=rf"^no embedded model knows task '{task}': give --model"):
            parsed("--task", task, *words, command=command)


OWN = """
from dataclasses import dataclass
from unmask.tasks import Countdown, GSM8K


@dataclass(frozen=True, kw_only=True)
class Game(Countdown):
    pass


@dataclass(frozen=True, kw_only=True)
class Sums(GSM8K):
    pass
"""


def test_parse_takes_the_embedded_model_of_the_task_that_a_user_s_extends(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    recipe = parsed("--task", f"{tmp_path}/own.py:Game", "--task.max-target", "30")
    assert (recipe.model, type(recipe.task).__name__) == ("embedded:countdown", "Game")
    assert (recipe.task.max_number, recipe.task.max_target) == (9, 30)
    with pytest.raises(UserError, match=r"Sums': give --model"):
        parsed("--task", f"{tmp_path}/own.py:Sums")


def test_pretrain_needs_no_model_for_any_task():
    assert parsed("--task", "countdown", command="pretrain").model is None


def test_help_shows_the_settings_of_a_task_that_no_embedded_model_knows(capsys):
    assert main(["train", "--task", "dataset", "--help"]) == 0
    assert "--task.answer-kind" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "model", "task"),
    [
        ("task = 'countdown'", "embedded:countdown", Countdown(max_number=9, max_target=40)),
        ("[task]\nname = 'countdown'\nmax_number = 7", "embedded:countdown", Countdown(max_number=7, max_target=40)),
        ("model = 'embedded:arithmetic'", "embedded:arithmetic", Arithmetic(terms=3, max_number=5)),
        ("[train]\nmax_steps = 3", "embedded:sudoku", Sudoku()),
    ],
)
def test_parse_completes_a_recipe_that_names_model_or_task_alone(text, model, task, tmp_path):
    (tmp_path / "own.toml").write_text(text)
    recipe = parsed("--recipe", str(tmp_path / "own.toml"))
    assert (recipe.model, recipe.task) == (model, task)


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

    def start(recipe, output, name, shard_size):
        names.append(name)
        raise UserError("enough")

    monkeypatch.setattr("unmask.training.starting.start_run", start)
    assert main(["train", *words]) == 2
    assert names == [name]


@pytest.mark.parametrize("command", ["train", "plan"])
def test_parse_refuses_two_lengths_that_contradict_each_other(command):
    both = ("--task.max-new-tokens", "64", "--rollout.max-new-tokens", "128")
    with pytest.raises(UserError, match=r"--rollout.max-new-tokens 128 .* --task.max-new-tokens 64"):
        parsed(*DATA, *both, command=command)
    assert parsed(*DATA, *both[:2], "--rollout.max-new-tokens", "64", command=command).rollout.max_new_tokens == 64
    assert parsed(*DATA, *both[2:], command=command).rollout.max_new_tokens == 128


def test_parse_reads_trl_s_other_word_for_a_length_without_a_notice(caplog):
    assert parsed("--rollout.max-completion-length", "8").rollout.max_new_tokens == 8
    assert not caplog.messages
    with pytest.raises(UserError, match=r"^rollout.max_completion_length 8 contradicts rollout.max_new_tokens 16"):
        parsed("--rollout.max-completion-length", "8", "--rollout.max-new-tokens", "16")


def test_parse_takes_a_hyphen_for_the_point_behind_a_table_s_name():
    recipe = parsed("--reward-funcs", "task,a.py:b", "--reward-weights=1,2", "--train-max-steps", "7")
    assert (recipe.reward.funcs, recipe.reward.weights, recipe.train.max_steps) == ("task,a.py:b", "1,2", 7)
    with pytest.raises(UserError, match=r"^unknown argument '--train.max-step': perhaps you meant '--train.max-steps'"):
        parsed("--train-max-step", "7")
    assert parsed("--model-format", "my.py:format").model_format == "my.py:format"


def test_parse_refuses_an_idle_setting_by_its_old_name_too(tmp_path):
    with pytest.raises(UserError, match=r"ref-model-mixup-alpha would not be read"):
        parsed("--train.reference-mixup", "0.5")
    (tmp_path / "own.toml").write_text("[train]\nreference_mixup = 0.5")
    with pytest.raises(UserError, match=r"ref_model_mixup_alpha 0.5 would not be read"):
        parsed("--recipe", str(tmp_path / "own.toml"))


def test_parse_reads_every_name_of_the_version_before(tmp_path):
    (tmp_path / "old.toml").write_text(
        "[rollout]\ngroup_size = 6\n[reward]\nfunctions = 'task,a.py:b'\n[train]\nsteps = 9\nevaluate_every = 3\n"
        "checkpoint_every = 4\nkeep_checkpoints = 5\ncompile = true\nreference_sync_steps = 2\nreference_mixup = 0.5\n"
    )
    recipe = parsed("--recipe", str(tmp_path / "old.toml"))
    train = recipe.train
    assert (recipe.rollout.num_generations, recipe.reward.specs) == (6, ["task", "a.py:b"])
    assert (train.max_steps, train.eval_steps, train.save_steps, train.save_total_limit) == (9, 3, 4, 5)
    assert (train.torch_compile, train.ref_model_sync_steps, train.ref_model_mixup_alpha) == (True, 2, 0.5)


def test_parse_refuses_two_values_under_the_two_names_of_a_setting(tmp_path):
    message = r"^train.updates 2 contradicts train.num_iterations 3, its name of now"
    with pytest.raises(UserError, match=message):
        parsed("--train.updates", "2", "--train.num-iterations", "3")
    (tmp_path / "own.toml").write_text("[train]\nupdates = 2\nnum_iterations = 3")
    with pytest.raises(UserError, match=message):
        parsed("--recipe", str(tmp_path / "own.toml"))
    (tmp_path / "own.toml").write_text("[train]\nupdates = 2")
    assert parsed("--recipe", str(tmp_path / "own.toml"), "--train.num-iterations", "3").train.num_iterations == 3


def test_evaluate_refuses_lengths_that_contradict_the_task_s():
    with pytest.raises(UserError, match=r"--lengths 128,256 .* --task.max-new-tokens 64"):
        parsed(*DATA, "--lengths", "128,256", "--task.max-new-tokens", "64", command="evaluate")
    assert parsed(*DATA, "--lengths", "64", "--task.max-new-tokens", "64", command="evaluate").lengths == "64"


TWO_LENGTHS = "model = 'm'\n[task]\nname = 'dataset'\ndata = 'd.jsonl'\nmax_new_tokens = 64\n[rollout]\n"


def test_parse_refuses_a_recipe_with_two_lengths_that_contradict_each_other(tmp_path):
    (tmp_path / "own.toml").write_text(TWO_LENGTHS + "max_new_tokens = 128")
    with pytest.raises(UserError, match=r"^rollout.max_new_tokens 128 .* contradicts task.max_new_tokens 64"):
        parsed("--recipe", str(tmp_path / "own.toml"))


def test_parse_refuses_a_flag_that_contradicts_the_recipe_or_its_base(tmp_path):
    (tmp_path / "base.toml").write_text(TWO_LENGTHS + "steps = 8")
    (tmp_path / "own.toml").write_text(f"base = '{tmp_path / 'base.toml'}'")
    for name in ("base", "own"):
        with pytest.raises(UserError, match=r"^--rollout.max-new-tokens 128 .* contradicts task.max_new_tokens 64"):
            parsed("--recipe", str(tmp_path / f"{name}.toml"), "--rollout.max-new-tokens", "128")


def test_parse_of_the_recipe_of_a_run_takes_its_default_length_for_unsaid(tmp_path):
    first = parsed(*DATA, "--rollout.max-new-tokens", "128")
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(document_of(first)))
    assert parsed("--recipe", str(tmp_path / "recipe.toml")) == first
    again = parsed("--recipe", str(tmp_path / "recipe.toml"), "--rollout.max-new-tokens", "64")
    assert again.rollout.max_new_tokens == 64


def test_recipes_lists_every_shipped_one_and_help_none(capsys):
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    for command in ("train", "pretrain"):
        assert all(f"  {name} " in printed for name in recipe_names(command))
        assert main([command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "unmask recipes" in shown
        assert "llada8b" not in shown


@pytest.mark.long
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
