"""Help answers without torch, names every setting with its text, and every shipped recipe loads."""

import subprocess
import sys
from functools import partial

import pytest

from unmask.cli.main import main, parse
from unmask.cli.subcommands import COMMANDS
from unmask.methods import MDPO, METHODS, SPG, DiSPO
from unmask.sampling.unmasking import RULES
from unmask.settings.reader import build, document_of, leaves
from unmask.settings.recipe_files import recipe_names
from unmask.tasks import TASKS, Sudoku

DISPO = partial(
    DiSPO, alpha=4.0, branches=32, degree=3.0, token_mean=True
)  # of the default recipe, unless a method is named
HEAVY = {"torch", "transformers", "accelerate", "numpy", "matplotlib", "rich", "tokenizers"}


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join
)
def test_help_imports_nothing_heavy(words, commands, tmp_path):
    done = commands.run(words, tmp_path, tmp_path)
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout
    assert "unmask.cli.main" in done.modules
    assert not done.modules & HEAVY


@pytest.mark.parametrize("name", list(COMMANDS))
def test_leaves_of_every_command_have_help_texts(name):
    settings = COMMANDS[name].settings()
    assert [leaf.path for leaf in leaves(settings) if not leaf.help] == []


@pytest.mark.parametrize("choices", [METHODS, TASKS, RULES], ids=["methods", "tasks", "rules"])
def test_leaves_of_every_choice_have_help_texts(choices):
    assert [(name, leaf.path) for name in choices for leaf in leaves(choices[name]()) if not leaf.help] == []


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_build_reads_every_shipped_recipe_back_from_its_document(command):
    names = recipe_names(command)
    assert len(names) >= 3
    for recipe in names:
        settings, _ = parse(command, COMMANDS[command], ["--recipe", recipe])
        assert build(type(settings), document_of(settings)) == settings


def test_parse_flags_beat_the_recipe_which_beats_the_defaults():
    words = ["--recipe", "sudoku-dispo", "--method.alpha=0.25", "--train.learning-rate", "2", "--method.branches", "3"]
    settings, _ = parse("train", COMMANDS["train"], words)
    assert (settings.method.alpha, settings.method.branches, settings.train.learning_rate) == (0.25, 3, 2.0)
    assert settings.method.base.shared_prompt_mask is True


def test_parse_another_method_drops_the_settings_of_the_recipe_s():
    settings, _ = parse("train", COMMANDS["train"], ["--method", "mdpo", "--method.steps", "2"])
    assert (settings.method.name, settings.method.steps, settings.method.beta) == ("mdpo", 2, 0.02)


def test_main_names_the_command_nearest_to_an_unknown_one(capsys):
    assert main(["evalute"]) == 2
    assert "'evaluate'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "method"),
    [
        (["--method.steps", "8", "--method", "mdpo"], MDPO(steps=8)),
        (["--method", "dispo", "--method.base", "spg", "--method.base.beta", "2"], DiSPO(base=SPG(beta=2.0))),
        (["--method.base.mix=0.1", "--method.base=spg"], DISPO(base=SPG(mix=0.1))),
        (["--method", "mdpo", "--method", "spg"], SPG()),
    ],
)
def test_parse_reads_choices_at_any_depth_and_in_any_order(words, method):
    assert parse("train", COMMANDS["train"], words)[0].method == method


def test_parse_changes_a_choice_that_no_recipe_names():
    settings, _ = parse("sample", COMMANDS["sample"], ["--task.size", "6", "--prompt=0000"])
    assert (settings.task, settings.prompt) == (Sudoku(size=6, min_empty=8, max_empty=12), "0000")


def test_parse_takes_plan_s_recipe_without_a_flag_and_switches_without_a_value():
    settings, options = parse("plan", COMMANDS["plan"], ["sudoku-mdpo", "--all-methods", "--train.lora-rank", "8"])
    assert (settings.method.name, settings.train.lora_rank, settings.gpus) == ("mdpo", 8, "1x80GB")
    assert (options.recipe, options.all_methods) == ("sudoku-mdpo", True)
    assert parse("plan", COMMANDS["plan"], [])[1].all_methods is False
    assert parse("plan", COMMANDS["plan"], ["--recipe", "sudoku-mdpo"])[1].recipe == "sudoku-mdpo"  # as train takes it


def test_help_of_plan_shows_where_its_recipe_goes(capsys):
    assert main(["plan", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: unmask plan [RECIPE] [--SETTING VALUE ...]\n")


def test_help_shows_the_settings_of_the_choices_made(capsys):
    assert main(["train", "--method.base", "spg", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--method.base.mix" in printed
    assert "--method.base.epsilon" not in printed


@pytest.mark.parametrize(("value", "code"), [("2", 0), ("x", 2)])
def test_main_tells_of_an_old_name_in_one_line_even_if_an_error_follows(value, code):
    run = "import sys; from unmask.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", run, "train", "--train.updates", value, "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    assert lines[0] == "unmask: --train.updates is now --train.num-iterations; the next version refuses the old name"
    assert (done.returncode, len(lines)) == (code, 1 + (code == 2))
