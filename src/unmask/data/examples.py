"""Examples: tokenized prompts of a split, dealt into batches; and the texts of sampled completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from unmask.data.chat import PLAIN, ChatSettings, render_completion, render_prompt, uses_template
from unmask.data.example import Example
from unmask.data.tokenization import completion_texts, encode, encode_prompts, left_pad, raw_texts
from unmask.errors import UserError
from unmask.types import Prompts, Rollout

_WIDTH_STEP = 16  # prompts of a batch are padded to a multiple, so that kernels are compiled for few shapes


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Examples of a split with their prompts tokenized once.

    Random draws of an example's samples are keyed by its number (`numbered`), so results do not depend on batching, and
    an example that occurs twice gets two different groups.

        examples = Examples.of(task.examples("test", 100, 0), tokenizer, denoiser.eos_id, denoiser.max_length - 64)
        rollout = sampler(denoiser, examples.prompts(range(8), group_size=4), uniforms)
        texts = rollout_texts(tokenizer, rollout, examples)
        rewards = task.rewards([...], texts, **examples.columns(range(8), repeats=4))
    """

    items: Sequence[Example]
    prompt_ids: Sequence[Sequence[int]]
    eos_id: int
    prefills: Sequence[str]  # texts at the end of the prompts that belong to the completions
    ranked_ids: Sequence[Sequence[Sequence[int]]]  # of each example, the completions to learn from; none: sampled ones
    other_end_ids: tuple[int, ...] = ()  # see `Denoiser`

    @staticmethod
    def of(
        items: Sequence[Example],
        tokenizer: PreTrainedTokenizerFast,
        eos_id: int,
        max_prompt_tokens: int,
        chat: ChatSettings = PLAIN,
        other_end_ids: tuple[int, ...] = (),
    ) -> Examples:
        """Render and tokenize the prompts, and the ranked completions that come with them.

        `eos_id`, `other_end_ids`: the denoiser's. Texts of completions are cut at all of them.
        Raises UserError where a prompt is longer than `max_prompt_tokens`, or two ranked completions are the same.
        """
        prompts = [render_prompt(tokenizer, item, chat) for item in items]
        templated = uses_template(tokenizer, chat)
        prompt_ids = encode_prompts(tokenizer, [prompt.text for prompt in prompts], templated=templated)
        for item, ids in zip(items, prompt_ids, strict=True):
            _check_length(item.prompt, len(ids), max_prompt_tokens)
        return Examples(
            items=items,
            prompt_ids=prompt_ids,
            eos_id=eos_id,
            prefills=[prompt.prefill for prompt in prompts],
            ranked_ids=[_encode_ranked(tokenizer, item, chat) for item in items if item.ranked],
            other_end_ids=other_end_ids,
        )

    def numbered(self, indices: Sequence[int]) -> list[int]:
        """Distinct numbers of the examples at `indices`: the index itself, + len(items) for each earlier occurrence.

        Of three examples, [2, 0, 2] are [2, 0, 5]. Distinct numbers stay what they are.
        """
        taken: set[int] = set()
        numbers = []
        for index in indices:
            number = next(number for number in count(index, len(self.items)) if number not in taken)
            taken.add(number)
            numbers.append(number)
        return numbers

    def indices(self, numbers: Sequence[int]) -> list[int]:
        """Indices of the examples with these numbers: see `numbered`."""
        return [number % len(self.items) for number in numbers]

    def prompts(self, indices: Sequence[int], group_size: int, device: torch.device | str = "cpu") -> Prompts:
        """A batch: `group_size` adjacent rows per example, left-padded to a multiple of 16 tokens.

        An index may be a number of `numbered`; an example that occurs twice gets two numbers, and draws of its own.
        """
        numbers = self.numbered(indices)
        rows = [self.prompt_ids[index] for index in self.indices(numbers)]
        width = -(-max(map(len, rows)) // _WIDTH_STEP) * _WIDTH_STEP
        tokens, attention = left_pad(rows, self.eos_id, min(width, self.longest))
        number_P = torch.tensor(numbers)
        return Prompts(
            tokens_NP=tokens.repeat_interleave(group_size, 0).to(device),
            attention_NP=attention.repeat_interleave(group_size, 0).to(device),
            prompt_N=number_P.repeat_interleave(group_size).to(device),
            sample_N=torch.arange(group_size).repeat(len(indices)).to(device),
        )

    @cached_property
    def longest(self) -> int:
        """Length of the longest prompt in tokens."""
        return max(map(len, self.prompt_ids))

    def columns(self, indices: Sequence[int], repeats: int) -> dict[str, list[Any]]:
        """Columns of the examples for a reward call, each value repeated `repeats` times."""
        names = self.items[indices[0]].columns
        return {name: [self.items[index].columns[name] for index in indices for _ in range(repeats)] for name in names}

    def texts(self, tokenizer: PreTrainedTokenizerFast, indices: Sequence[int], rows: list[list[int]]) -> list[str]:
        """Decoded completions of the examples at `indices`, prefill included, without end marks: what rewards read."""
        return self._prefilled(indices, completion_texts(tokenizer, rows, self.eos_id, self.other_end_ids))

    def raw_texts(self, tokenizer: PreTrainedTokenizerFast, indices: Sequence[int], rows: list[list[int]]) -> list[str]:
        """`texts` that are not cut: with end marks and what stands behind them."""
        return self._prefilled(indices, raw_texts(tokenizer, rows))

    def _prefilled(self, indices: Sequence[int], texts: list[str]) -> list[str]:
        return [self.prefills[index] + text for index, text in zip(indices, texts, strict=True)]


def completed(prompts: Prompts, rows: Sequence[Sequence[int]], length: int, eos_id: int) -> tuple[Tensor, Tensor]:
    """Prompts followed by completions, padded to `length` with end-of-sequence tokens: (tokens, attention) [N, L]."""
    filled = [[*row, *[eos_id] * (length - len(row))] for row in rows]
    tokens_NL = torch.cat([prompts.tokens_NP, torch.tensor(filled, device=prompts.tokens_NP.device)], dim=1)
    return tokens_NL, torch.nn.functional.pad(prompts.attention_NP, (0, length), value=True)


def encode_completions(
    tokenizer: PreTrainedTokenizerFast, items: Sequence[Example], completions: Sequence[str], chat: ChatSettings = PLAIN
) -> list[list[int]]:
    """Token ids of the completions, rendered for each item by `render_completion`. Raises UserError as it does."""
    pairs = zip(items, completions, strict=True)
    return encode(tokenizer, [render_completion(tokenizer, item, completion, chat) for item, completion in pairs])


def _check_length(prompt: str, tokens: int, most_tokens: int) -> None:
    if tokens <= most_tokens:
        return
    long, over = f"prompt {prompt[:40]!r} has {tokens} tokens", tokens - most_tokens
    if most_tokens < 1:
        raise UserError(f"{long}, max_new_tokens alone is all that the model takes, or more: shorten it by {over}")
    raise UserError(f"{long}, the model leaves room for {most_tokens}: shorten it, or max_new_tokens, by {over}")


def _encode_ranked(tokenizer: PreTrainedTokenizerFast, item: Example, chat: ChatSettings) -> list[list[int]]:
    """Token ids of its ranked completions. Raises UserError where two are the same, of which none is the better one."""
    ranked = encode_completions(tokenizer, [item] * len(item.ranked), item.ranked, chat)
    for place, ids in enumerate(ranked):
        if ids in ranked[:place]:
            shown = " and ".join(repr(text[:40]) for text in (item.ranked[ranked.index(ids)], item.ranked[place]))
            raise UserError(f"{item.named}: completions {shown} have the same tokens; remove the row")
    return ranked


def rollout_texts(tokenizer: PreTrainedTokenizerFast, rollout: Rollout, examples: Examples) -> list[str]:
    """Text of each completion of a rollout."""
    rows = rollout.tokens_NL[:, rollout.prompt_length :].tolist()
    return examples.texts(tokenizer, examples.indices(rollout.prompt_N.tolist()), rows)


def guess_texts(tokenizer: PreTrainedTokenizerFast, rollout: Rollout, examples: Examples) -> list[list[str]]:
    """Texts of each sample's recorded guesses (completions of snapshots): by snapshot, then by guess."""
    guesses = [state.guesses_ZNL[..., rollout.prompt_length :] for state in rollout.snapshots]
    stacked = torch.cat(guesses).transpose(0, 1)
    each = stacked.shape[1]
    indices = examples.indices(rollout.prompt_N.repeat_interleave(each).tolist())
    texts = examples.texts(tokenizer, indices, stacked.flatten(0, 1).tolist())
    return [texts[start : start + each] for start in range(0, len(texts), each)]
