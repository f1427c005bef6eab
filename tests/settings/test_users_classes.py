"""Methods, tasks and unmasking rules of the user's own, FILE.py:NAME and MODULE:NAME, wherever a choice is."""

import json
import shutil
import tomllib

import pytest

from unmask.cli.main import main, parse
from unmask.cli.subcommands import COMMANDS
from unmask.evaluation.lm_eval.settings import HarnessSettings
from unmask.methods import DiSPO
from unmask.settings.commands import EvaluateSettings
from unmask.settings.reader import build, document_of
from unmask.settings.recipe import Recipe
from unmask.settings.recipe_files import read_recipe

# Without postponed annotations: the fields' types are classes, not text.
PIECES = '''
from dataclasses import dataclass, replace
from typing import ClassVar

from unmask.methods import DiffuGRPO
from unmask.methods.base import Method
from unmask.sampling.unmasking import LowConfidence, Unmasking
from unmask.tasks import Sudoku, Task
from unmask.validation import setting


@dataclass(frozen=True, kw_only=True)
class Scaled(Method):
    """diffu-GRPO, its loss times alpha."""

    name: ClassVar[str] = "scaled"
    paper: ClassVar[str] = ""
    provenance: ClassVar[str] = "own"
    alpha: float = 3.0
    clip: int | None = None
    prompt_masks: bool = setting(True, "whether prompt tokens are masked", was="masks")

    def terms(self, eos_id):
        (term,) = DiffuGRPO().terms(eos_id)
        return (replace(term, coefficient=self.alpha),)


@dataclass(frozen=True, kw_only=True)
class Graded(Sudoku):
    """Sudoku with a reward for wrong completions, too."""

    name: ClassVar[str] = "graded"
    bonus: float = 0.5

    def rewards(self, prompts, completions, **columns):
        rewards = super().rewards(prompts, completions, **columns)
        return [max(reward, self.bonus) for reward in rewards]


@dataclass(frozen=True, kw_only=True)
class Last(LowConfidence):
    """The rightmost positions first."""

    name: ClassVar[str] = "last"
    shift: int = 0

    def __call__(self, observation):
        order_NC = observation.masked_NC.flip(1).cumsum(1).flip(1)
        return observation.masked_NC & (order_NC > observation.count)


@dataclass(frozen=True, kw_only=True)
class Unsigned(Method):
    """A method without paper and provenance."""

    name: ClassVar[str] = "unsigned"

    def terms(self, eos_id):
        return ()


@dataclass(frozen=True, kw_only=True)
class Termless(Method):
    name: ClassVar[str] = "termless"
    paper: ClassVar[str] = ""
    provenance: ClassVar[str] = "own"


@dataclass(frozen=True, kw_only=True)
class Bare(Task):
    name: ClassVar[str] = "bare"

    def examples(self, split, count, seed):
        return []


@dataclass(frozen=True, kw_only=True)
class Nameless(Unmasking):
    """A rule without a name and a call."""


@dataclass(frozen=True)
class Empty:
    alpha: float = 1.0


@dataclass(frozen=True)
class Needy:
    alpha: float


@dataclass(frozen=True)
class Listed:
    alphas: tuple = (1.0, 2.0)


def made():
    """No class."""

    @dataclass(frozen=True)
    class Local:
        alpha: float = 1.0

    return Local


Hidden = made()
'''
SMALL = (
    *("--rollout.prompts", "4", "--rollout.num-generations", "4", "--train.max-steps", "1", "--train.examples", "16"),
    *("--train.threads", "1", "--evaluation.examples", "4", "--evaluation.greedy-steps", "8"),
)


@pytest.fixture
def pieces(tmp_path, monkeypatch):
    """The path of the user's file; its directory is the current one."""
    (tmp_path / "pieces.py").write_text(PIECES)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "pieces.py"


def train_settings(*flags: str) -> Recipe:
    return parse("train", COMMANDS["train"], list(flags))[0]


def test_document_of_a_user_s_class_is_read_from_any_directory(pieces, monkeypatch):
    flags = ("--method", "pieces.py:Scaled", "--method.alpha", "2", "--method.clip", "4", "--method.masks", "false")
    rules = ("--task", "pieces.py:Graded", "--task.size", "6", "--task.bonus", "0.1")
    recipe = train_settings(*flags, *rules, "--rollout.unmasking", "pieces.py:Last", "--rollout.unmasking.shift", "1")
    assert (recipe.method.alpha, recipe.method.clip, recipe.method.prompt_masks) == (2.0, 4, False)
    assert (recipe.task.size, recipe.task.bonus, recipe.rollout.unmasking.shift) == (6, 0.1, 1)
    document = document_of(recipe)
    assert document["method"] == {"name": f"{pieces}:Scaled", "alpha": 2.0, "clip": 4, "prompt_masks": False}
    (pieces.parent / "elsewhere").mkdir()
    monkeypatch.chdir(pieces.parent / "elsewhere")
    assert build(Recipe, document) == recipe


def test_build_reads_a_user_s_class_from_toml_and_as_dispo_s_base(pieces):
    pieces.with_name("own.toml").write_text(
        'base = "sudoku-dispo"\n[method.base]\nname = "pieces.py:Scaled"\nalpha = 2\n'
    )
    recipe = build(Recipe, read_recipe("own.toml"))
    assert (type(recipe.method), recipe.method.base.alpha) == (DiSPO, 2.0)
    assert build(Recipe, document_of(recipe)) == recipe
    assert train_settings("--recipe", "own.toml", "--method.base.alpha", "4").method.base.alpha == 4.0


def test_build_reads_a_user_s_class_of_a_module(pieces, monkeypatch):
    shutil.copy(pieces, pieces.with_name("pieces_of_a_module.py"))
    monkeypatch.syspath_prepend(pieces.parent)
    recipe = train_settings("--method", "pieces_of_a_module:Scaled", "--method.alpha", "5")
    assert document_of(recipe)["method"]["name"] == "pieces_of_a_module:Scaled"
    assert build(Recipe, document_of(recipe)) == recipe


def test_build_takes_a_shipped_class_by_its_module_for_the_choice_of_its_name():
    assert document_of(train_settings("--method", "unmask.methods:MDPO"))["method"]["name"] == "mdpo"


def test_lists_of_rules_take_a_user_s(pieces):
    settings = EvaluateSettings(unmasking="random,pieces.py:Last", steps="4")
    assert [sampler.unmasking.name for _, sampler in settings.samplers()] == ["random", "last"]
    harness = HarnessSettings(model="m", unmasking="pieces.py:Last")
    assert harness.sampler(16, 0.0, None).unmasking.name == "last"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--method", "pieces.py:Scald"], "'pieces.py' has no settings class 'Scald': perhaps you meant 'Scaled'"),
        (["--method", "other.py:Scaled"], "'other.py' is not a file: give the path of a Python file"),
        (["--method", "no_such_module:Scaled"], "there is no module 'no_such_module'"),
        (["--method", "pieces.py:made"], "--method is 'pieces.py:made', which is no dataclass: give a class with"),
        (
            ["--method", "pieces.py:Empty"],
            "which lacks name, paper, provenance, terms, unmasking: subclass unmask.methods.base:Method, or define",
        ),
        (
            ["--method", "pieces.py:Unsigned"],
            "which lacks paper, provenance: define the class variables paper and provenance, as in unmask.methods.",
        ),
        (["--method", "pieces.py:Termless"], "which lacks terms: define the function terms, as in unmask.methods."),
        (
            ["--task", "pieces.py:Bare"],
            "lacks max_new_tokens, rewards: define the class variable max_new_tokens and the function rewards, as in",
        ),
        (
            ["--rollout.unmasking", "pieces.py:Nameless"],
            "lacks __call__, name: define the class variable name and the function __call__, as in unmask.sampling.",
        ),
        (
            ["--method", "pieces.py:Zz"],
            "'Zz': give one of Bare, Empty, Graded, Hidden, Last, Listed, Nameless, Needy, Scaled, Termless, Unsigned",
        ),
        (["--task", "pieces.py:Scaled"], "which lacks examples, gives_pairs, max_new_tokens, metrics, rewards, splits"),
        (["--method", "pieces.py:Hidden"], "pieces.py' has no settings class 'made.<locals>.Local'"),
        (["--method", "pieces.py:Needy"], "pieces.py:Needy has no default for 'alpha': give one"),
        (["--method", "pieces.py:Listed"], "setting 'alphas' is declared tuple: declare one of int, float, bool, str"),
        (["--method", "pieces.py:Scaled", "--method.alhpa", "1"], "perhaps you meant '--method.alpha'"),
        (["--method", "pieces.py:Scaled", "--method.alpha", "x"], "--method.alpha is 'x': give a number"),
    ],
)
def test_train_refuses_a_user_s_class_in_one_line(flags, line, pieces, capsys):
    assert main(["train", *flags]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("unmask: error: ")
    assert line in said


def test_methods_tells_all_about_a_user_s(pieces, capsys):
    assert main(["methods", "pieces.py:Scaled"]) == 0
    assert "--method.prompt-masks" in capsys.readouterr().out


def test_train_runs_and_resumes_with_a_user_s_method_task_and_rule(pieces, monkeypatch):
    flags = ("--method", "pieces.py:Scaled", "--task", "pieces.py:Graded", "--rollout.unmasking", "pieces.py:Last")
    assert main(["train", *flags, "--task.bonus", "0.25", *SMALL, "--output", "run"]) == 0
    run = pieces.parent / "run"
    assert tomllib.loads((run / "recipe.toml").read_text())["task"]["name"] == f"{pieces}:Graded"
    (sample,) = map(json.loads, (run / "completions.jsonl").read_text().splitlines())
    assert min(completion["reward"] for completion in sample["completions"]) == 0.25
    shutil.rmtree(run / "checkpoints" / "step_000001")
    monkeypatch.chdir("/")
    assert main(["train", "--resume", str(run)]) == 0
    assert (run / "checkpoints" / "step_000001").is_dir()
