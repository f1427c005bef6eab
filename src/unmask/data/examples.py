"""Text and tokens: tokenizers of the embedded models, batches of prompts, decoded completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from unmask.data.chat import PLAIN, ChatSettings, render_completion, render_prompt
from unmask.data.example import Example
from unmask.data.tokenization import completion_texts, encode, left_pad
from unmask.errors import UserError
from unmask.types import Prompts, Rollout

_WIDTH_STEP = 16  # prompts of a batch are padded to a multiple, so that kernels are compiled for few shapes


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Examples with their prompts encoded once; an example's index keys the random draws of its samples."""

    items: Sequence[Example]
    prompt_ids: Sequence[Sequence[int]]
    eos_id: int
    prefills: Sequence[str]  # texts at the end of the prompts that belong to the completions
    ranked_ids: Sequence[Sequence[Sequence[int]]]  # of each example, the completions to learn from; none: sampled ones

    @staticmethod
    def of(
        items: Sequence[Example],
        tokenizer: PreTrainedTokenizerFast,
        eos_id: int,
        room: int,
        chat: ChatSettings = PLAIN,
    ) -> Examples:
        """Word and encode the prompts, and completions that are given with them.

        Raises UserError where a prompt is longer than the `room` (tokens) that the model leaves.
        """
        prompts = [render_prompt(tokenizer, item, chat) for item in items]
        prompt_ids = encode(tokenizer, [prompt.text for prompt in prompts])
        for item, ids in zip(items, prompt_ids, strict=True):
            if len(ids) > room:
                raise UserError(
                    f"prompt {item.prompt[:40]!r} has {len(ids)} tokens, the model leaves room for {room}: "
                    "shorten the prompt or max_new_tokens"
                )
        return Examples(
            items=items,
            prompt_ids=prompt_ids,
            eos_id=eos_id,
            prefills=[prompt.prefill for prompt in prompts],
            ranked_ids=[
                encode_completions(tokenizer, [item] * len(item.ranked), item.ranked, chat)
                for item in items
                if item.ranked
            ],
        )

    def prompts(self, indices: Sequence[int], group_size: int, device: torch.device | str = "cpu") -> Prompts:
        """`group_size` neighbouring rows for each example, as wide as one of a few widths."""
        rows = [self.prompt_ids[index] for index in indices]
        width = -(-max(map(len, rows)) // _WIDTH_STEP) * _WIDTH_STEP
        tokens, attention = left_pad(rows, self.eos_id, min(width, self.longest))
        index_P = torch.tensor(indices)
        return Prompts(
            tokens_NP=tokens.repeat_interleave(group_size, 0).to(device),
            attention_NP=attention.repeat_interleave(group_size, 0).to(device),
            prompt_N=index_P.repeat_interleave(group_size).to(device),
            sample_N=torch.arange(group_size).repeat(len(indices)).to(device),
        )

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.prompt_ids))

    def columns(self, indices: Sequence[int], repeats: int) -> dict[str, list[Any]]:
        """Columns of the examples, each value `repeats` times: what a reward takes beside prompts and completions."""
        names = self.items[indices[0]].columns
        return {name: [self.items[index].columns[name] for index in indices for _ in range(repeats)] for name in names}

    def texts(self, tokenizer: PreTrainedTokenizerFast, indices: Sequence[int], rows: list[list[int]]) -> list[str]:
        """Completions of the examples at `indices` as rewards read them: decoded, behind their prefill."""
        texts = completion_texts(tokenizer, rows, self.eos_id)
        return [self.prefills[index] + text for index, text in zip(indices, texts, strict=True)]


def completed(prompts: Prompts, rows: Sequence[Sequence[int]], length: int, eos_id: int) -> tuple[Tensor, Tensor]:
    """Prompts with completions behind them, filled up to `length` with end-of-sequence tokens: (tokens, attention)."""
    filled = [[*row, *[eos_id] * (length - len(row))] for row in rows]
    tokens_NL = torch.cat([prompts.tokens_NP, torch.tensor(filled, device=prompts.tokens_NP.device)], dim=1)
    return tokens_NL, torch.nn.functional.pad(prompts.attention_NP, (0, length), value=True)


def encode_completions(
    tokenizer: PreTrainedTokenizerFast, items: Sequence[Example], completions: Sequence[str], chat: ChatSettings = PLAIN
) -> list[list[int]]:
    """Token ids of the completions, as `render_completion` words them for each item. Raises UserError as it does."""
    pairs = zip(items, completions, strict=True)
    return encode(tokenizer, [render_completion(tokenizer, item, completion, chat) for item, completion in pairs])


def rollout_texts(tokenizer: PreTrainedTokenizerFast, rollout: Rollout, examples: Examples) -> list[str]:
    """Texts of the finished completions."""
    rows = rollout.tokens_NL[:, rollout.prompt_length :].tolist()
    return examples.texts(tokenizer, rollout.prompt_N.tolist(), rows)


def guess_texts(tokenizer: PreTrainedTokenizerFast, rollout: Rollout, examples: Examples) -> list[list[str]]:
    """Texts of all recorded guesses of each sample: snapshots in order, their guesses in order."""
    guesses = [state.guesses_ZNL[..., rollout.prompt_length :] for state in rollout.snapshots]
    stacked = torch.cat(guesses).transpose(0, 1)
    each = stacked.shape[1]
    indices = rollout.prompt_N.repeat_interleave(each).tolist()
    texts = examples.texts(tokenizer, indices, stacked.flatten(0, 1).tolist())
    return [texts[start : start + each] for start in range(0, len(texts), each)]
