"""Values of settings: every number has a range, every text can be written; one line, before anything is written."""

import math

import pytest

from unmask.cli.main import main
from unmask.cli.subcommands import COMMANDS
from unmask.errors import UserError
from unmask.methods import METHODS
from unmask.sampling.unmasking import RULES
from unmask.settings.commands import EvaluateSettings, OracleSettings, PlanSettings, PretrainRecipe, SampleSettings
from unmask.settings.reader import build, leaves, nested
from unmask.settings.recipe import EvaluationSettings, Recipe, RewardSettings, RolloutSettings, TrainSettings
from unmask.tasks import TASKS

CHOICES = {"method": METHODS, "task": TASKS, "rollout.unmasking": RULES}
NUMBERS = sorted(
    {(name, leaf.path) for name, command in COMMANDS.items() for leaf in leaves(command.settings())
     if leaf.kind in ("int", "float")}
)  # fmt: skip


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-7", "9" * 18])
def test_build_refuses_numbers_out_of_range_by_name(value):
    for command, path in NUMBERS:
        if not path.endswith("seed") or value != "9" * 18:
            with pytest.raises(UserError, match=f"--{path.replace('_', '-')} is .*(from|give an integer$)"):
                build(COMMANDS[command].settings, nested({path: value}))


@pytest.mark.parametrize("kind", CHOICES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -(10**9), 10**400])
def test_build_refuses_numbers_out_of_range_in_every_choice(kind, value):
    section, _, key = kind.rpartition(".")
    for name, settings in CHOICES[kind].items():
        for leaf in leaves(settings()):
            if leaf.kind in ("int", "float") and "." not in leaf.path:
                table = {key: {"name": name, leaf.path: value}}
                with pytest.raises(UserError, match=leaf.path):
                    build(Recipe, {section: table} if section else table)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("train.adam_beta1", "2"),
        ("train.adam_beta2", "1"),
        ("train.threads", "0"),
        ("train.threads", "100000"),
        ("train.max_steps", "1000000000"),
        ("train.examples", str(2**63 - 1)),
        ("train.ref_model_mixup_alpha", "1.5"),
        ("rollout.block_length", "0"),
        ("rollout.max_new_tokens", "0"),
        ("evaluation.seed", str(2**64)),
        ("method.branches", "0"),
        ("method.base.prompt_mask_prob", "2"),
    ],
)
def test_train_refuses_values_that_cannot_work(flag, value, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", f"--{flag.replace('_', '-')}", value]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert flag.replace("_", "-") in line
    assert value in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--model", "a\udcff"], ["--output", "a\udcff"], ["--chat.system", "\ud800"]])
def test_train_refuses_text_that_is_not_unicode(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words[0] in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"[method]\nname = 'dispo'\n[method.base]\nname = {}", "method.base.name"),
        (b"[method]\nname = {}", "method.name"),
        (b"[method]\nname = 3", "method.name"),
        (b"method = []", "method is"),
        (b"base = {}", "base"),
        (b"base = 3", "base"),
        (b"model = '\xff'", "UTF-8"),
        (b'model = "a\\u0000b"', "model"),
        (b"[train]\nlearning_rate = nan", "train.learning_rate"),
        (b"[train]\nmax_steps = 1" + b"0" * 5000, "recipe"),
        (b"[train]\nlearning_rate = 1" + b"0" * 400, "train.learning_rate"),
        (b"a = " + b"[" * 5000, "recipe"),
    ],
)
def test_train_refuses_values_in_a_recipe(content, value, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_bytes(content)
    assert main(["train", "--recipe", "recipe.toml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert value in line
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: TrainSettings(max_steps=0), "train.max_steps is 0: give an integer from 1 to 10000000"),
        (
            lambda: TrainSettings(learning_rate=0.0),
            "train.learning_rate is 0.0: give a number from above 0 to 10000000",
        ),
        (lambda: TrainSettings(final_fraction=1.5), "train.final_fraction is 1.5: give a number from 0 to 1"),
        (lambda: RolloutSettings(batch=-1), "rollout.batch is -1: give an integer from 0 to 10000000"),
        (lambda: RolloutSettings(steps=0), "rollout.steps is 0: give an integer from 1 to 10000000"),
        (lambda: EvaluationSettings(batch=0), "evaluation.batch is 0: give an integer from 1 to 10000000"),
        (lambda: RewardSettings(batch=0), "reward.batch is 0: give an integer from 1 to 10000000"),
        (lambda: PlanSettings(utilisation=0.0), "utilisation is 0.0: give a number from above 0 to 1"),
        (lambda: PlanSettings(headroom=1.0), "headroom is 1.0: give a number from 0 to below 1"),
        (lambda: PretrainRecipe(batch=0), "batch is 0: give an integer from 1 to 10000000"),
        (lambda: SampleSettings(item=-1), "item is -1: give an integer from 0 to 10000000"),
        (lambda: EvaluateSettings(samples=0), "samples is 0: give an integer from 1 to 10000000"),
        (lambda: OracleSettings(scale=0.0), "scale is 0.0: give a number from above 0 to 10000000"),
    ],
)
def test_settings_made_in_python_have_the_same_ranges(make, line):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == line
