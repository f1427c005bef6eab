"""Adapters: they alone train, switched off they are the base, merged they are an ordinary checkpoint."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from helpers.small import small_denoiser
from unmask.cli.main import main
from unmask.denoisers.adapters import AdaptersOff, add_adapters
from unmask.denoisers.head.reducers import AllLogits
from unmask.denoisers.loading import load_denoiser, load_tokenizer, save_denoiser
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.training.build import build_trainer

TOKENS = torch.tensor([[1, 2, 3, 4, 5, 6]])
SMALL = {
    "rollout": {"prompts": 4, "num_generations": 4},
    "train": {"max_steps": 4, "examples": 32, "threads": 1, "num_iterations": 2, "lora_rank": 4, "save_steps": 2},
    "evaluation": {"examples": 8, "examples_during": 4, "greedy_steps": 8},
}


def logits(denoiser):
    asked = torch.arange(TOKENS.shape[1])[None]
    return denoiser(TOKENS, torch.ones_like(TOKENS).bool(), asked, AllLogits())[0].detach()


def adapted():
    denoiser = small_denoiser()
    add_adapters(denoiser, rank=2, alpha=4)
    return denoiser


def moved():
    """With adapters that say something."""
    denoiser = adapted()
    with torch.no_grad():
        for index, weight in enumerate(p for p in denoiser.parameters() if p.requires_grad):
            weight.add_(torch.linspace(-0.3, 0.4 + 0.01 * index, weight.numel()).view_as(weight))
    return denoiser


def test_add_adapters_changes_no_logits_at_first():
    denoiser = adapted()
    torch.testing.assert_close(logits(denoiser), logits(small_denoiser()))
    trained = {name for name, weight in denoiser.named_parameters() if weight.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    assert not any("lm_head" in name for name in trained)


def test_adapters_off_is_the_base_model():
    denoiser = moved()
    with_adapters = logits(denoiser)
    assert (with_adapters - logits(small_denoiser())).abs().max() > 0.1
    torch.testing.assert_close(logits(AdaptersOff(denoiser)), logits(small_denoiser()))
    assert torch.equal(logits(denoiser), with_adapters)
    with pytest.raises(TypeError):
        AdaptersOff(denoiser)(TOKENS)
    assert torch.equal(logits(denoiser), with_adapters)


def test_save_denoiser_merges_adapters(tmp_path):
    denoiser = moved()
    save_denoiser(denoiser, load_tokenizer("embedded:sudoku"), tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) <= set(small_denoiser().model.state_dict())
    torch.testing.assert_close(logits(load_denoiser(str(tmp_path)).eval()), logits(denoiser), rtol=1e-5, atol=1e-5)


def test_policy_step_moves_adapters_alone():
    trainer = build_trainer(build(Recipe, SMALL | {"method": {"name": "diffu-grpo"}}))
    objective = trainer.objective
    before = {name: weight.detach().clone() for name, weight in objective.denoiser.named_parameters()}
    metrics, _ = trainer.step(0)
    changed = {name for name, weight in objective.denoiser.named_parameters() if not torch.equal(weight, before[name])}
    assert changed
    assert all(".lora_" in name for name in changed)
    assert metrics["kl"] > 0  # the second update is away from the base
    base = load_denoiser("embedded:sudoku").eval()
    torch.testing.assert_close(logits(objective.reference), logits(base))


def test_load_adapters_resumes_a_run(tmp_path):
    directory = tmp_path / "run"
    flags = [
        word
        for section, values in SMALL.items()
        for key, value in values.items()
        for word in (f"--{section}.{key.replace('_', '-')}", str(value))
    ]
    assert main(["train", "--method", "diffu-grpo", *flags, "--output", str(directory)]) == 0
    last = directory / "checkpoints" / "step_000004"
    names = ("adapters.safetensors", "model.safetensors", "optimizer.safetensors")
    whole = {name: load_file(last / name) for name in names}
    shutil.rmtree(last)
    assert main(["train", "--resume", str(directory)]) == 0
    for name, tensors in whole.items():
        resumed = load_file(last / name)
        assert all(torch.equal(resumed[key], tensor) for key, tensor in tensors.items())


def test_moving_reference_is_refused_with_adapters(capsys, tmp_path):
    flags = ("--train.lora-rank", "4", "--train.ref-model-sync-steps", "8")
    assert main(["train", *flags, "--output", str(tmp_path / "run")]) == 2
    assert "set one of them to 0" in capsys.readouterr().err
