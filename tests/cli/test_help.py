"""Help answers without torch, names every setting with its text, and every shipped recipe loads."""

import subprocess
import sys

import pytest

from unmask.cli.main import COMMANDS, main, parse
from unmask.methods import METHODS
from unmask.sampling.unmasking import RULES
from unmask.settings.reader import build, document_of, leaves, recipe_names
from unmask.tasks import TASKS

HEAVY = ("torch", "transformers", "accelerate", "numpy", "matplotlib", "rich", "tokenizers")


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join
)
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys\nfrom unmask.cli.main import main\n"
        f"try:\n    code = main({words!r})\nexcept SystemExit as end:\n    code = end.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"
    assert done.stderr == ""


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_setting_has_a_help_text(name):
    settings = COMMANDS[name].settings()
    assert [leaf.path for leaf in leaves(settings) if not leaf.help] == []


@pytest.mark.parametrize("choices", [METHODS, TASKS, RULES], ids=["methods", "tasks", "rules"])
def test_every_setting_of_every_choice_has_a_help_text(choices):
    assert [(name, leaf.path) for name in choices for leaf in leaves(choices[name]()) if not leaf.help] == []


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_every_recipe_loads_and_reads_back(command):
    names = recipe_names(command)
    assert len(names) >= 3
    for recipe in names:
        settings, _ = parse(command, COMMANDS[command], ["--recipe", recipe])
        assert build(type(settings), document_of(settings)) == settings


def test_flags_beat_the_recipe_which_beats_the_defaults():
    words = ["--recipe", "sudoku-dispo", "--method.alpha=0.25", "--train.learning-rate", "2", "--method.branches", "3"]
    settings, _ = parse("train", COMMANDS["train"], words)
    assert (settings.method.alpha, settings.method.branches, settings.train.learning_rate) == (0.25, 3, 2.0)
    assert settings.method.base.shared_prompt_mask is True


def test_naming_another_method_drops_the_settings_of_the_recipe_s():
    settings, _ = parse("train", COMMANDS["train"], ["--method", "mdpo", "--method.steps", "2"])
    assert (settings.method.name, settings.method.steps, settings.method.beta) == ("mdpo", 2, 0.02)


def test_unknown_command_names_the_nearest(capsys):
    assert main(["evalute"]) == 2
    assert "'evaluate'" in capsys.readouterr().err
