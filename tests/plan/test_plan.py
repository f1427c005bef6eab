"""Plans of published models and shipped recipes, and the words of the command."""

import json

import pytest
import torch

from helpers.small import small_denoiser
from helpers.small_run import settings_of
from unmask.cli.main import main, parse
from unmask.cli.subcommands import COMMANDS
from unmask.denoisers.loading import load_denoiser
from unmask.errors import UserError
from unmask.plan.estimate import advice, make_plan
from unmask.plan.gpus import GIBIBYTE, parse_gpus, parse_peak
from unmask.plan.networks import blank_denoiser, read_shape, size_of
from unmask.plan.published import published_shapes
from unmask.settings.commands import PlanSettings
from unmask.settings.reader import build, document_of
from unmask.settings.recipe import TrainSettings
from unmask.settings.recipe_files import read_recipe, recipe_names

BENCHMARKS = ("gsm8k", "math500", "countdown-words", "sudoku")
METHODS = ("diffu-grpo", "spg", "dispo", "dispo-spg", "mdpo", "tracerl")


def settings(name, **flags) -> PlanSettings:
    return build(PlanSettings, read_recipe(name) | flags)


# ---- sizes ----

PUBLISHED = {  # as their authors count them
    "GSAI-ML/LLaDA-8B-Instruct": 8.02,
    "GSAI-ML/LLaDA-1.5": 8.02,
    "Dream-org/Dream-v0-Instruct-7B": 7.62,
    "inclusionAI/LLaDA-MoE-7B-A1B-Instruct": 7.36,
    "inclusionAI/LLaDA2.0-mini": 16.26,
}


@pytest.mark.parametrize(("model", "billions"), PUBLISHED.items())
def test_size_of_published_models_is_as_published(model, billions):
    assert round(size_of(model, "fp32", 0).parameters / 1e9, 2) == billions


def test_size_of_llada_8b_to_the_last_parameter():
    layer = 4 * 4096**2 + 3 * 4096 * 12288 + 2 * 4096
    size = size_of("GSAI-ML/LLaDA-8B-Instruct", "bf16", 128)
    assert size.parameters == 32 * layer + 2 * 126464 * 4096 + 4096 == 8_015_581_184
    assert size.trained == 32 * 128 * (4 * 2 * 4096 + 3 * (4096 + 12288))
    assert (size.weight_bytes, size.trained_bytes) == (2 * size.parameters + 4 * size.trained, 4 * size.trained)


def test_size_of_moe_counts_the_experts_a_token_meets():
    size = size_of("inclusionAI/LLaDA-MoE-7B-A1B-Instruct", "fp32", 0)
    assert 1.0e9 < size.active < 1.5e9


def test_size_of_embedded_models_is_exact():
    counted = sum(weight.numel() for weight in load_denoiser("embedded:sudoku").parameters())
    assert size_of("embedded:sudoku", "fp32", 0).parameters == counted


def test_published_shapes_are_networks():
    for model in published_shapes():
        assert blank_denoiser(read_shape(model), TrainSettings()).model.lm_head.weight.device.type == "meta"


# ---- recipes ----


@pytest.mark.long
@pytest.mark.parametrize("recipe", [f"{task}-llada8b-{method}" for task in BENCHMARKS for method in METHODS])
def test_make_plan_of_benchmark_recipes_fits_one_gpu_and_eight(recipe):
    for gpus in ("1x80GB", "8x80GB"):
        plan = make_plan(settings(recipe, gpus=gpus))
        assert plan.fits, (gpus, plan.memory)
        assert plan.settings.task.name.removesuffix("-words") == recipe.partition("-")[0]
        assert plan.memory.peak > 20 * GIBIBYTE
        assert 60 < plan.seconds.step < 3600


# Updates a batch, and the upper bound's order of SPG.
SETTINGS = {
    "gsm8k-llada8b-diffu-grpo": (12, None),
    "math500-llada8b-dispo": (12, None),
    "countdown-words-llada8b-dispo": (8, None),
    "sudoku-llada8b-diffu-grpo": (8, None),
    "gsm8k-llada8b-spg": (4, 1.5),
    "sudoku-llada8b-spg": (4, 1.0),
    "sudoku-llada8b-dispo-spg": (4, 1.0),
    "math500-llada8b-dispo-spg": (4, 1.5),
    "gsm8k-llada8b-mdpo": (1, None),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_recipes_of_llada_follow_the_papers(name):
    recipe = settings(name)
    bound = getattr(recipe.method, "base", recipe.method)
    spg = bound.beta if bound.name == "spg" else None
    assert (recipe.train.num_iterations, spg) == SETTINGS[name]


@pytest.mark.parametrize("name", [name for name in recipe_names("train") if name.startswith("llada8b-")])
def test_recipes_of_llada_resolve_and_are_counted(name, monkeypatch):
    monkeypatch.setattr("unmask.plan.memory.peak_bytes", lambda *arguments: 0)  # traced above, and slow
    one, eight = (make_plan(settings(name, gpus=gpus)) for gpus in ("1x80GB", "8x80GB"))
    assert one.flops.step == pytest.approx(8 * eight.flops.step, rel=0.02)
    assert one.work.trained_forwards == 8 * eight.work.trained_forwards > 0
    assert one.fits == (one.settings.train.lora_rank > 0) != eight.layout.sharded
    assert eight.fits


@pytest.mark.long
def test_make_plan_adapters_fit_where_all_weights_do_not():
    full = make_plan(settings("llada8b-mdpo", gpus="1x80GB"))
    assert not full.fits
    (line,) = advice(full)
    assert "train.lora_rank" in line
    assert "train.param_dtype bf16" in line
    assert "train.shard auto" in line
    assert make_plan(settings("llada8b-mdpo-lora", gpus="1x80GB")).fits


@pytest.mark.parametrize("advised", ["train.gradient_checkpointing", "train.micro_batch"])
def test_advice_on_a_small_gpu_makes_it_fit(advised, tmp_path):
    def plan(**train):
        document = document_of(settings_of(tmp_path, {"name": "spg"}, rollout={"prompts": 256}, train=train))
        return make_plan(build(PlanSettings, document | {"gpus": "1x1GB"}))

    tight = plan()
    assert not tight.fits
    (line,) = [line for line in advice(tight) if advised in line]
    word = line.split(advised + " ")[1].split()[0]
    change = True if word == "true" else int(word)
    assert plan(**{advised.removeprefix("train."): change}).fits


def test_advice_on_a_rollout_that_does_not_fit_makes_it_fit(tmp_path):
    def plan(**rollout):
        sizes, train = {"prompts": 8192, "num_generations": 8}, {"micro_batch": 1}
        recipe = settings_of(tmp_path, {"name": "diffu-grpo"}, rollout=sizes | rollout, train=train)
        return make_plan(build(PlanSettings, document_of(recipe) | {"gpus": "1x1GB"}))

    tight = plan()
    assert not tight.fits
    (line,) = advice(tight)
    fewer = int(line.split("rollout.batch ")[1].split()[0])
    eased = plan(batch=fewer)
    assert eased.fits
    assert eased.work.at_once == fewer < tight.work.at_once == tight.work.samples


# ---- the command ----


@pytest.mark.parametrize("columns", [80, 120])
def test_print_plan_cuts_nothing_off(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["plan", "sudoku-dispo", "--gpus", "2x24GB", "--all-methods"]) == 0
    text = capsys.readouterr().out
    assert "…" not in text
    assert " 0.0 h" not in text
    assert max(map(len, text.splitlines())) <= columns
    for part in ("2 GPUs of 24 GB", "It fits", "gradients are summed", "just-grpo", "mdpo", "optimizer moments"):
        assert part in text


def test_plan_command_flags_override_the_recipe():
    words = ["gsm8k-llada8b-dispo", "--gpus", "8x80GB", "--train.micro-batch", "2", "--method.branches=3"]
    planned, _ = parse("plan", COMMANDS["plan"], words)
    assert (planned.train.micro_batch, planned.method.branches, planned.gpus) == (2, 3, "8x80GB")
    assert planned.task.name == "gsm8k"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sudoku-dispo", "--gpus", "8 x 80"], "8x80GB"),
        (["sudoku-dispo", "--gpu", "h10"], "'h100'"),
        (["sudoku-dispo", "--train.shard", "half"], "train.shard is 'half'"),
        (["sudoku-dispo", "--gpus", "4x24GB", "--train.shard", "3"], "groups of 3"),
        (["sudoku-dispo", "--gpus", "4x24GB", "--train.shard", "1"], "groups of one"),
        (["llada8b-spg", "--gpus", "8x80GB", "--train.shard", "8"], "train.lora_rank"),
        (["sudoku-dispo", "--gpus", "129x80GB"], "129 GPUs sample 128"),
        (["sudoku-dispo", "--utilisation", "1.5"], "utilisation"),
        (["sudoku-dispo", "--prompt-tokens", "100"], "prompt_tokens"),
        (["sudoku-dispo", "--model", "GSAI-ML/LLaDA-8B"], "GSAI-ML/LLaDA-8B-"),
        (["sudoku-disp"], "'sudoku-dispo'"),
    ],
)
def test_plan_command_errors_name_value_and_mend(words, said, capsys):
    assert main(["plan", *words]) == 2
    assert said in capsys.readouterr().err


def test_parse_gpus_and_peaks():
    assert parse_peak("a100", "bf16") == 312e12
    assert parse_peak("a100", "fp32") == 19.5e12
    assert parse_peak("165", "bf16") == 165e12
    assert parse_gpus("1x24GB") == (1, 24 * 2**30)


# ---- recipes that build on another ----


def test_read_recipe_changes_its_base_where_it_says(tmp_path):
    (tmp_path / "a.toml").write_text('base = "sudoku-dispo"\n[train]\nmax_steps = 7\n[method]\nalpha = 0.5\n')
    recipe = read_recipe(str(tmp_path / "a.toml"))
    assert (recipe["train"]["max_steps"], recipe["train"]["learning_rate"]) == (7, 1e-4)
    assert (recipe["method"]["alpha"], recipe["method"]["branches"], "base" in recipe) == (0.5, 32, False)


def test_read_recipe_with_another_choice_drops_settings_of_the_base_s(tmp_path):
    (tmp_path / "a.toml").write_text('base = "sudoku-dispo"\n[method]\nname = "mdpo"\n')
    assert read_recipe(str(tmp_path / "a.toml"))["method"] == {"name": "mdpo"}


def test_read_recipe_refuses_a_recipe_on_itself(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(f"base = {json.dumps(str(path))}\n")
    with pytest.raises(UserError, match="itself"):
        read_recipe(str(path))


def test_train_settings_allow_bf16_weights_for_adapters_alone():
    with pytest.raises(UserError, match=r"train\.lora_rank"):
        TrainSettings(param_dtype="bf16")


def test_blank_denoiser_has_the_shapes_of_the_real_one(tmp_path):
    denoiser = small_denoiser()
    denoiser.model.config.save_pretrained(tmp_path)
    blank = blank_denoiser(read_shape(str(tmp_path)), TrainSettings())
    theirs = {name: weight.shape for name, weight in denoiser.named_parameters()}
    assert {name: weight.shape for name, weight in blank.named_parameters()} == theirs
    assert all(weight.device == torch.device("meta") for weight in blank.parameters())
