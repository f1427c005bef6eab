"""Masked-diffusion supervised training: the recipe that made the embedded base models."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from unmask.data import Examples, encode_completions, task_tokenizer
from unmask.denoisers.base import Denoiser, TargetLogProb
from unmask.denoisers.pretrained import save_denoiser
from unmask.denoisers.tiny import tiny_denoiser
from unmask.environment import best_device
from unmask.errors import UserError
from unmask.recipe import PretrainRecipe
from unmask.report.progress import TrainingProgress
from unmask.uniforms import Uniforms


@dataclass(frozen=True, kw_only=True)
class SupervisedBatch:
    """Prompts and solutions side by side; completions are filled up with end-of-sequence tokens, which count."""

    tokens_NL: Tensor
    attention_NL: Tensor
    example_N: Tensor
    prompt_length: int


def supervised_batch(
    examples: Examples,
    solution_ids: list[list[int]],
    indices: list[int],
    length: int,
    device: torch.device | str = "cpu",
) -> SupervisedBatch:
    """The batch of some examples, completions of `length` tokens."""
    prompts = examples.prompts(indices, 1, device)
    filled = [solution_ids[index] + [examples.eos_id] * (length - len(solution_ids[index])) for index in indices]
    return SupervisedBatch(
        tokens_NL=torch.cat([prompts.tokens_NP, torch.tensor(filled, device=device)], dim=1),
        attention_NL=torch.nn.functional.pad(prompts.attention_NP, (0, length), value=True),
        example_N=prompts.prompt_N,
        prompt_length=prompts.tokens_NP.shape[1],
    )


def elbo_loss(denoiser: Denoiser, batch: SupervisedBatch, uniforms: Uniforms) -> Tensor:
    """-E_t [ (1/t) sum over masked i of log p(o_i | q, x_t) ] / L, completion tokens masked w.p. t ~ U(0, 1].

    t is stratified over the batch: t_n = (n + u) / N, one u a batch (LLaDA 2502.09992).
    """
    rows, start, device = len(batch.tokens_NL), batch.prompt_length, batch.tokens_NL.device
    completion = torch.arange(start, batch.tokens_NL.shape[1], device=device)
    time_N1 = ((torch.arange(1, rows + 1, device=device) - uniforms.key("time").draw()) / rows)[:, None].float()
    draw_NC = uniforms.key("mask", batch.example_N[:, None]).key(completion - start).draw()
    masked_NC = draw_NC < time_N1
    inputs_NL = batch.tokens_NL.clone()
    inputs_NL[:, start:] = inputs_NL[:, start:].masked_fill(masked_NC, denoiser.mask_id)
    answer = TargetLogProb(batch.tokens_NL[:, start:].flatten()[:, None])
    logp_NC1: Tensor
    (logp_NC1,) = denoiser(inputs_NL, batch.attention_NL, completion.expand(rows, -1), answer)
    return -(logp_NC1[..., 0] * masked_NC / time_N1).mean()


def pretrain(recipe: PretrainRecipe, tokenizer: PreTrainedTokenizerFast) -> Denoiser:
    """The denoiser that the recipe makes: the same weights for the same recipe, machine and number of threads."""
    length, device = recipe.task.max_new_tokens, best_device()
    denoiser = tiny_denoiser(
        vocabulary=len(tokenizer),
        mask_id=tokenizer.mask_token_id,
        eos_id=tokenizer.eos_token_id,
        hidden=recipe.hidden,
        layers=recipe.layers,
        heads=recipe.heads,
        max_length=recipe.max_length,
        seed=recipe.seed,
    ).to(device)
    items = recipe.task.examples("train", recipe.examples, recipe.seed)
    examples = Examples.of(items, tokenizer, denoiser.eos_id, room=recipe.max_length - length)
    solutions = encode_completions(tokenizer, items, [item.solution for item in items])
    optimizer = torch.optim.AdamW(
        denoiser.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=recipe.weight_decay
    )
    uniforms = Uniforms().key("pretrain", recipe.seed)
    with TrainingProgress(recipe.steps) as progress:
        for step in range(recipe.steps):
            indices = [(step * recipe.batch + place) % len(items) for place in range(recipe.batch)]
            loss = elbo_loss(
                denoiser, supervised_batch(examples, solutions, indices, length, device), uniforms.key(step)
            )
            optimizer.param_groups[0]["lr"] = recipe.learning_rate * min(1.0, (step + 1) / max(1, recipe.warmup_steps))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(denoiser.parameters(), recipe.max_grad_norm)
            optimizer.step()
            progress.update(step + 1, f"loss {loss.item():.3f}")
    return denoiser


def pretrain_to(recipe: PretrainRecipe, directory: Path) -> None:
    """Pretrain into a directory; print the hash of the weights. Raises UserError where it holds something."""
    if not recipe.task.vocabulary:
        raise UserError(
            f"task {recipe.task.name} is prose, which no small model of its own can spell: give another task"
        )
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"output {str(directory)!r} is not empty: give a new directory")
    tokenizer = task_tokenizer(recipe.task.vocabulary)
    denoiser = pretrain(recipe, tokenizer)
    directory.mkdir(parents=True, exist_ok=True)
    save_denoiser(denoiser, tokenizer, directory)
    digest = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    print(f"model: {directory}\nsha256 of model.safetensors: {digest}")  # noqa: T201
