"""Masked-diffusion supervised training: the recipe that made the embedded base models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.data import Examples, encode
from unmask.denoisers.base import Denoiser, TargetLogProb
from unmask.uniforms import Uniforms


@dataclass(frozen=True, kw_only=True)
class SupervisedBatch:
    """Prompts and solutions side by side; completions are filled up with end-of-sequence tokens, which count."""

    tokens_NL: Tensor
    attention_NL: Tensor
    example_N: Tensor
    prompt_length: int


def supervised_batch(examples: Examples, solution_ids: list[list[int]], indices: list[int], length: int) -> SupervisedBatch:
    """The batch of some examples, completions of `length` tokens."""
    prompts = examples.prompts(indices, group_size=1)
    filled = [solution_ids[index] + [examples.eos_id] * (length - len(solution_ids[index])) for index in indices]
    return SupervisedBatch(
        tokens_NL=torch.cat([prompts.tokens_NP, torch.tensor(filled)], dim=1),
        attention_NL=torch.nn.functional.pad(prompts.attention_NP, (0, length), value=True),
        example_N=prompts.prompt_N,
        prompt_length=prompts.tokens_NP.shape[1],
    )


def elbo_loss(denoiser: Denoiser, batch: SupervisedBatch, uniforms: Uniforms) -> Tensor:
    """-E_t [ (1/t) sum over masked i of log p(o_i | q, x_t) ] / L, completion tokens masked with probability t ~ U(0, 1].

    t is stratified over the batch: t_n = (n + u) / N, one u a batch (LLaDA 2502.09992).
    """
    rows, start = len(batch.tokens_NL), batch.prompt_length
    completion = torch.arange(start, batch.tokens_NL.shape[1])
    time_N1 = ((torch.arange(1, rows + 1) - uniforms.key("time").draw()) / rows)[:, None].float()
    draw_NC = uniforms.key("mask", batch.example_N[:, None]).key(completion - start).draw()
    masked_NC = draw_NC < time_N1
    inputs_NL = batch.tokens_NL.clone()
    inputs_NL[:, start:] = inputs_NL[:, start:].masked_fill(masked_NC, denoiser.mask_id)
    answer = TargetLogProb(batch.tokens_NL[:, start:].flatten()[:, None])
    (logp_NC1,) = denoiser(inputs_NL, batch.attention_NL, completion.expand(rows, -1), answer)
    return -(logp_NC1[..., 0] * masked_NC / time_N1).mean()


def solution_tokens(tokenizer, examples: Examples, length: int) -> list[list[int]]:  # type: ignore[no-untyped-def]
    """Encoded solutions; each fits `length`."""
    return encode(tokenizer, [item.solution for item in examples.items])
