"""The ELBO of log p(target | context): exact where all masks can be enumerated, else estimated from some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from math import comb
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from unmask.data.tokenization import encode, left_pad
from unmask.denoisers.base import Denoiser, Guidance
from unmask.denoisers.head.reducers import TargetLogProb
from unmask.uniforms import Uniforms


class Pair(NamedTuple):
    """Token ids of a context and of the target after it, whose log-likelihood is wanted."""

    context: Sequence[int]
    target: Sequence[int]


def pair_of(tokenizer: PreTrainedTokenizerFast, context: str, continuation: str) -> Pair:
    """Token ids of a context and its continuation: the spelling of both in one, cut where the second begins.

    A token with characters of both belongs to the target ("1" and "2" as the token "12": no context, target "12"), as
    the harness gives spaces at a context's end to the continuation. A target is empty only where the continuation is.
    """
    if not context + continuation:
        return Pair([], [])
    ids = encode(tokenizer, [context + continuation])[0]
    if not continuation:
        return Pair(ids, [])
    offsets = tokenizer(context + continuation, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    # Tokenizers may leave white space out of offsets: a continuation of nothing else is at least the last token.
    reach = (index for index, (_, end) in enumerate(offsets) if end > len(context))
    cut = next(reach, len(ids) - 1) if context else 0
    return Pair(ids[:cut], ids[cut:])


class Row(NamedTuple):
    """A mask of one pair's target, and the weight of its masked tokens' log-probs in the bound."""

    pair: int
    masked_C: Tensor
    weight: float


def every_mask(length: int) -> tuple[Tensor, Tensor]:
    """The 2^L - 1 masks [M, C] of a target, and weights [M] 1 / (l · C(L, l)): L/l times the mask's probability."""
    masked_MC = (torch.arange(1, 2**length)[:, None] >> torch.arange(length)) & 1
    weights = [1 / (count * comb(length, count)) for count in masked_MC.sum(1).tolist()]
    return masked_MC.bool(), torch.tensor(weights, dtype=torch.float64)


def drawn_masks(length: int, masks: int, uniforms: Uniforms) -> tuple[Tensor, Tensor]:
    """Random masks [M, C] of l = 1 + floor(L · (m + u) / M) positions, one u, and weights [M] L / (l · M).

    Unbiased for the bound; the counts are spread evenly over 1..L, as by LLaDA's own evaluation (2502.09992).
    """
    mask_M = torch.arange(masks)
    count_M = ((mask_M + uniforms.key("count").draw()) * length / masks).long().clamp(max=length - 1) + 1
    draw_MC = uniforms.key("position", mask_M[:, None], torch.arange(length)).draw()
    return draw_MC.argsort(1).argsort(1) < count_M[:, None], length / (count_M.double() * masks)


def rows_of(pairs: Sequence[Pair], masks: int, uniforms: Uniforms) -> Iterator[Row]:
    """Masks of each pair: all where they are no more than `masks`, else so many drawn ones.

    Draws are keyed by the context, so the answers to one question share them, whatever their batch.
    """
    for index, (context, target) in enumerate(pairs):
        if 2 ** len(target) - 1 <= masks:
            masked_MC, weight_M = every_mask(len(target))
        else:
            masked_MC, weight_M = drawn_masks(len(target), masks, uniforms.key(str(list(context))))
        for masked_C, weight in zip(masked_MC, weight_M.tolist(), strict=True):
            yield Row(index, masked_C, weight)


def lower_bounds(
    denoiser: Denoiser, pairs: Sequence[Pair], rows: Iterator[Row], batch: int, guidance_scale: float = 0.0
) -> list[float]:
    """sum over the rows of each pair of weight · sum over masked tokens of log p, in nats; `batch` rows at a time."""
    bounds = [0.0] * len(pairs)
    while part := list(islice(rows, batch)):
        for row, value in zip(part, _values(denoiser, pairs, part, guidance_scale), strict=True):
            bounds[row.pair] += row.weight * value
    return bounds


@torch.no_grad()
def _values(denoiser: Denoiser, pairs: Sequence[Pair], rows: Sequence[Row], guidance_scale: float) -> list[float]:
    """Sum of log p over the masked tokens of each row."""
    device = next(denoiser.parameters()).device
    texts = [(*pairs[row.pair].context, *pairs[row.pair].target) for row in rows]
    tokens_FL, attention_FL = left_pad(texts, denoiser.eos_id)
    length = tokens_FL.shape[1]
    width = max(len(row.masked_C) for row in rows)  # targets stand at the right end
    masked_FL = torch.zeros(tokens_FL.shape, dtype=torch.bool)
    prompt_FL = ~masked_FL
    for index, row in enumerate(rows):
        masked_FL[index, length - len(row.masked_C) :] = row.masked_C
        prompt_FL[index, length - len(row.masked_C) :] = False
    guidance = Guidance(scale=guidance_scale, prompt_FL=prompt_FL.to(device)) if guidance_scale else None
    (logp_FA1,) = denoiser(
        tokens_FL.masked_fill(masked_FL, denoiser.mask_id).to(device),
        attention_FL.to(device),
        torch.arange(length - width, length, device=device).expand(len(rows), -1),
        TargetLogProb(tokens_FL[:, length - width :].reshape(-1, 1).to(device)),
        guidance,
    )
    values: list[float] = (logp_FA1[..., 0].double().cpu() * masked_FL[:, length - width :]).sum(1).tolist()
    return values
