"""A setting that would be accepted and never read is refused by name, given as a flag or in a recipe."""

from dataclasses import fields, replace

import pytest
import tomli_w

from unmask.cli.main import parse
from unmask.cli.subcommands import COMMANDS
from unmask.errors import UserError
from unmask.methods import METHODS
from unmask.settings.idle import declared_idle
from unmask.settings.reader import document_of
from unmask.settings.recipe import RewardSettings, RolloutSettings, TrainSettings

MODEL = ("--model", "somewhere")
PAIRS = (*MODEL, "--task", "pairs", "--method", "vrpo")
ROWS = (*MODEL, "--task", "dataset", "--task.data", "rows.jsonl")
ADAPTIVE = ("--method", "diffu-grpo", "--rollout.unmasking", "threshold")


def parsed(command, *words):
    return parse(command, COMMANDS[command], list(words))[0]


@pytest.mark.parametrize(
    ("command", "words", "flag"),
    [
        ("train", [*PAIRS, "--reward.funcs", "task"], "--reward.funcs"),
        ("train", [*PAIRS, "--reward.weights", "2"], "--reward.weights"),
        ("train", [*PAIRS, "--rollout.temperature", "0.5"], "--rollout.temperature"),
        ("train", [*PAIRS, "--rollout.unmasking", "threshold"], "--rollout.unmasking"),
        ("train", [*PAIRS, "--train.shuffle-rewards", "true"], "--train.shuffle-rewards"),
        ("train", ["--train.lora-alpha", "8"], "--train.lora-alpha"),
        ("train", ["--train.ref-model-mixup-alpha", "0.5"], "--train.ref-model-mixup-alpha"),
        ("train", ["--reward.batch", "4"], "--reward.batch"),
        ("pretrain", ["--model", "somewhere", "--hidden", "512"], "--hidden"),
        ("pretrain", ["--model", "somewhere", "--max-length=64"], "--max-length"),
        ("pretrain", ["--lora-alpha", "8"], "--lora-alpha"),
        ("pretrain", ["--eval-steps", "8"], "--eval-steps"),
        ("plan", ["--train.lora-alpha", "8"], "--train.lora-alpha"),
        ("train", [*ADAPTIVE, "--rollout.steps", "8"], "--rollout.steps"),
        ("train", [*ADAPTIVE, "--rollout.schedule", "cosine"], "--rollout.schedule"),
        ("train", [*ADAPTIVE, "--evaluation.greedy-steps", "8"], "--evaluation.greedy-steps"),
        ("train", [*ROWS, "--train.eval-steps", "8"], "--train.eval-steps"),
        ("train", [*ROWS, "--evaluation.examples-during", "8"], "--evaluation.examples-during"),
        ("train", [*ROWS, "--evaluation.greedy-steps", "8"], "--evaluation.greedy-steps"),
        ("train", [*ROWS, "--evaluation.batch", "8"], "--evaluation.batch"),
        ("train", [*ROWS, "--task.answer-column", "label"], "--task.answer-column"),
        ("train", [*ROWS, "--task.hub-split", "validation"], "--task.hub-split"),
        ("train", [*ROWS, "--task.hub-config", "main"], "--task.hub-config"),
        ("train", [*ROWS, "--task.hub-test-split", "validation"], "--task.hub-test-split"),
        ("train", ["--method", "unigrpo", "--method.beta", "0", "--method.divergence-to", "old"], "--method.diverg"),
        ("train", ["--method", "tracerl", "--method.beta", "0", "--method.estimate", "k1"], "--method.estimate"),
        ("train", ["--method", "spg", "--method.mix", "0", "--method.beta", "2"], "--method.beta"),
        ("train", ["--method.base", "spg", "--method.base.mix", "0", "--method.base.beta", "2"], "--method.base.beta"),
        ("sample", ["--prompt", "0000", "--item", "3"], "--item"),
        ("sample", ["--unmasking", "factor", "--steps", "8"], "--steps"),
        ("evaluate", ["--unmasking", "threshold,factor", "--steps", "8"], "--steps"),
    ],
)
def test_parse_refuses_flags_that_nothing_reads(command, words, flag):
    with pytest.raises(UserError, match=rf"^{flag}\S* would not be read: .*; leave it out$"):
        parsed(command, *words)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", [*PAIRS, "--rollout.prompts", "4", "--rollout.max-new-tokens", "64"]),
        ("train", ["--train.lora-alpha", "8", "--train.lora-rank", "4"]),
        ("train", ["--reward.batch", "4", "--reward.funcs", "reward_model:somewhere"]),
        ("pretrain", ["--hidden", "512"]),
        ("pretrain", ["--model", "somewhere", "--lora-rank", "4", "--lora-alpha", "8"]),
        ("train", [*MODEL, "--task", "dataset", "--task.data", "org/rows", "--task.hub-split", "validation"]),
        ("train", [*ROWS, "--task.test-data", "org/rows", "--task.hub-config", "main", "--task.hub-test-split", "dev"]),
        (
            "train",
            [*ROWS, "--task.answer-kind", "text", "--task.answer-column", "label", "--train.eval-steps", "8"],
        ),
        ("train", ["--method", "diffu-grpo", "--rollout.unmasking", "scheduled_threshold", "--rollout.steps", "8"]),
        ("evaluate", ["--unmasking", "low_confidence,threshold", "--steps", "8"]),
        ("sample", ["--prompt", "0000"]),
    ],
)
def test_parse_takes_flags_that_are_read(command, words):
    parsed(command, *words)


ADAPTERS = "[train]\nlora_alpha = 8"


@pytest.mark.parametrize(
    ("command", "text", "path"),
    [
        ("train", ADAPTERS, "train.lora_alpha"),
        ("plan", ADAPTERS, "train.lora_alpha"),
        ("train", "[train]\nref_model_mixup_alpha = 0.5", "train.ref_model_mixup_alpha"),
        ("train", "[reward]\nbatch = 4", "reward.batch"),
        ("train", "[method]\nname = 'tracerl'\nbeta = 0.0\nestimate = 'k1'", "method.estimate"),
        ("train", "[rollout]\nschedule = 'cosine'\nunmasking = 'threshold'", "rollout.schedule"),
        ("train", "[rollout]\nsteps = 8\n[rollout.unmasking]\nname = 'factor'", "rollout.steps"),
        ("train", "model = 'm'\n[task]\nname = 'pairs'\n[rollout]\ntemperature = 0.5", "rollout.temperature"),
        ("train", "model = 'm'\n[task]\nname = 'pairs'\n[rollout]\nunmasking = 'random'", "rollout.unmasking"),
        ("train", "model = 'm'\n[task]\nname = 'dataset'\n[train]\neval_steps = 8", "train.eval_steps"),
        ("train", "model = 'm'\n[task]\nname = 'dataset'\nanswer_column = 'x'", "task.answer_column"),
        ("pretrain", "model = 'm'\nhidden = 512", "hidden"),
        ("pretrain", "eval_steps = 8", "eval_steps"),
    ],
)
def test_parse_refuses_values_of_a_recipe_that_nothing_reads(command, text, path, tmp_path):
    (tmp_path / "own.toml").write_text(text)
    words = [str(tmp_path / "own.toml")] if command == "plan" else ["--recipe", str(tmp_path / "own.toml")]
    with pytest.raises(UserError, match=rf"^{path} \S+ would not be read: .*; leave it out$"):
        parsed(command, *words)


def test_parse_takes_defaults_in_a_recipe_that_nothing_reads(tmp_path):
    (tmp_path / "own.toml").write_text("[train]\nlora_alpha = 64\n[reward]\nbatch = 16")
    assert parsed("train", "--recipe", str(tmp_path / "own.toml")).train == TrainSettings()


def test_parse_takes_values_of_a_recipe_that_a_flag_makes_read(tmp_path):
    (tmp_path / "own.toml").write_text(ADAPTERS)
    assert parsed("train", "--recipe", str(tmp_path / "own.toml"), "--train.lora-rank", "4").train.lora_alpha == 8


def test_parse_leaves_out_values_of_a_recipe_that_flags_make_idle(tmp_path):
    recipe = parsed("train", "--recipe", "llada8b-vrpo", "--task", "pairs", "--task.data", "rows.jsonl")
    assert recipe.rollout == RolloutSettings(prompts=16, max_new_tokens=256)
    assert recipe.reward == RewardSettings()
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(document_of(recipe)))
    assert parsed("train", "--recipe", str(tmp_path / "recipe.toml")) == recipe


def test_parse_leaves_out_values_of_a_base_that_the_recipe_on_it_makes_idle(tmp_path):
    (tmp_path / "base.toml").write_text("[train]\nlora_rank = 4\nlora_alpha = 8")
    (tmp_path / "own.toml").write_text(f"base = '{tmp_path / 'base.toml'}'\n[train]\nlora_rank = 0")
    assert parsed("train", "--recipe", str(tmp_path / "own.toml")).train == TrainSettings()


def test_parse_resumes_a_run_whose_recipe_has_values_that_nothing_reads(tmp_path):
    (tmp_path / "recipe.toml").write_text(ADAPTERS + "\n")
    assert parsed("train", "--resume", str(tmp_path), "--train.max-steps", "999").train.lora_alpha == 8
    with pytest.raises(UserError, match=r"--train.ref-model-mixup-alpha would not be read"):
        parsed("train", "--resume", str(tmp_path), "--train.ref-model-mixup-alpha", "0.6")


def test_parse_refuses_a_filter_by_answers_where_none_are_compared():
    for words in (PAIRS, ROWS):
        with pytest.raises(UserError, match=r"train.over_denoising_filter .*: set it to false"):
            parsed("train", *words, "--train.over-denoising-filter", "true")


# Other values of settings: of the same kind, and taken by every setting of that name.
OTHERS = {bool: (False, True), int: (0, 1, 2), float: (0.0, 0.25, 0.5)}
WORDS = {
    "divergence_to": ("reference", "old"),
    "estimate": ("k1", "k3"),
    "advantage": ("future_mean", "step_reward"),
    "step_choice": ("largest_advantages", "random_steps"),
    "positions": ("all_masked", "committed"),
}
TIMES_ZERO = {("spg", "beta")}  # the term has it, and multiplies what it makes by 0


def others(method, field):
    """The method with other values of one setting, those that it takes."""
    values = WORDS[field.name] if field.name in WORDS else OTHERS[type(getattr(method, field.name))]
    for value in values:
        try:
            yield replace(method, **{field.name: value})
        except UserError:
            continue


@pytest.mark.parametrize("name", METHODS)
def test_settings_of_a_method_that_change_no_term_are_declared_idle(name):
    """With every single setting at every other value, each other setting changes the terms, or says why it does not."""
    plain = [field for field in fields(METHODS[name]) if field.name != "base"]
    for base in (variant for field in plain for variant in others(METHODS[name](), field)):
        for field in plain:
            terms = [variant.terms(eos_id=0) for variant in others(base, field)]
            unread = all(found == terms[0] for found in terms)
            idle = field.name in declared_idle(base)
            assert idle == unread or (idle and (name, field.name) in TIMES_ZERO), (base, field.name)
