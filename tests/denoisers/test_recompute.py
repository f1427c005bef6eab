"""Gradient checkpointing: the same gradients with less memory. Frozen weights in bf16: adapters in float32."""

import pytest
import torch

from helpers.small import small_denoiser
from unmask.denoisers.adapters import add_adapters
from unmask.denoisers.head.reducers import TargetLogProb
from unmask.denoisers.layers.recompute import recompute_layers
from unmask.denoisers.loading import load_denoiser
from unmask.plan.dry_run import LiveBytes
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.training.build import build_trainer

TOKENS = torch.arange(36).view(3, 12) % 7


def gradients(*, recompute: bool, adapters: bool) -> tuple[dict[str, torch.Tensor], int]:
    """Of trained weights by name, and the bytes at the peak."""
    denoiser = small_denoiser()
    if adapters:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            add_adapters(denoiser, rank=2, alpha=4)
            for weight in denoiser.parameters():
                if weight.requires_grad:
                    torch.nn.init.normal_(weight, std=0.3)
    if recompute:
        recompute_layers(denoiser)
    attention = TOKENS >= 0
    with LiveBytes() as live:
        (logp,) = denoiser(TOKENS, attention, torch.arange(12).expand(3, -1), TargetLogProb(TOKENS.flatten()[:, None]))
        logp.square().sum().backward()
    live.mark()
    assert not denoiser.training
    return {name: weight.grad for name, weight in denoiser.named_parameters() if weight.requires_grad}, live.peaks[-1]


@pytest.mark.parametrize("adapters", [False, True])
def test_recompute_layers_gives_the_same_gradients_in_less_memory(adapters):
    kept, more = gradients(recompute=False, adapters=adapters)
    again, less = gradients(recompute=True, adapters=adapters)
    assert list(kept) == list(again)
    for name, gradient in kept.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(again[name], gradient, rtol=1e-6, atol=1e-6)
    assert less < 0.8 * more


SMALL = {
    "method": {"name": "diffu-grpo"},
    "rollout": {"prompts": 4, "num_generations": 4, "temperature": 1.4},
    "train": {"max_steps": 1, "examples": 16, "threads": 1, "lora_rank": 4, "precision": "bf16"},
    "evaluation": {"examples": 4, "examples_during": 4, "greedy_steps": 4},
}


def test_trainer_step_with_a_frozen_bf16_base_trains_float32_adapters():
    trained = SMALL["train"] | {
        "param_dtype": "bf16",
        "gradient_checkpointing": True,
        "num_iterations": 2,
        "micro_batch": 4,
    }
    trainer = build_trainer(build(Recipe, SMALL | {"train": trained}))
    denoiser = trainer.objective.denoiser
    for name, weight in denoiser.named_parameters():
        assert weight.dtype == (torch.float32 if ".lora_" in name else torch.bfloat16), name
    before = {name: weight.detach().clone() for name, weight in denoiser.named_parameters()}
    metrics, _ = trainer.step(0)
    assert 0 < metrics["grad_norm"] < float("inf")
    changed = {name for name, weight in denoiser.named_parameters() if not torch.equal(weight, before[name])}
    assert changed
    assert all(".lora_" in name for name in changed)
    assert trainer.evaluation(4)


def test_load_denoiser_in_bf16_is_near_float32():
    half, full = (load_denoiser("embedded:sudoku", dtype).eval() for dtype in (torch.bfloat16, torch.float32))
    tokens = torch.arange(24).view(1, 24) % 6
    asked = torch.arange(24)[None]
    reducer = TargetLogProb(tokens.flatten()[:, None])
    ours, theirs = (denoiser(tokens, tokens >= 0, asked, reducer)[0] for denoiser in (half, full))
    assert ours.dtype == torch.float32
    assert (ours - theirs).abs().max() < 0.3
