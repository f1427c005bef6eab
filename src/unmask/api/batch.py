"""What a sampler gives to a loop of one's own: completions of a few prompts, with all that training on them needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.data.example import Example
from unmask.data.examples import Examples
from unmask.data.readers.user_rows import prompt_of
from unmask.errors import UserError
from unmask.types import Rollout
from unmask.uniforms import Uniforms


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Sampled completions, `num_samples` of each prompt next to each other, and the log-probs recorded on the way."""

    rollout: Rollout
    examples: Examples
    uniforms: Uniforms  # the key of its draws; those of an objective follow from it
    tokenizer: Any

    @property
    def prompts(self) -> list[str]:
        """The prompt of each completion."""
        return [self.examples.items[index].prompt for index in self.owners]

    @property
    def completions(self) -> list[str]:
        """The text of each completion, up to its end."""
        return self.texts(self.rollout.tokens_NL[None])[0]

    @property
    def owners(self) -> list[int]:
        """For each completion, the place of its prompt among those given."""
        return [row // self.rollout.group_size for row in range(len(self.rollout.tokens_NL))]

    def texts(self, tokens_ENL: Tensor) -> list[list[str]]:
        """Texts of E completions of each sample, which stand behind its prompt's columns."""
        rows = tokens_ENL[..., self.rollout.prompt_length :].tolist()
        return [self.examples.texts(self.tokenizer, self.owners, each) for each in rows]

    def raw_texts(self, tokens_ENL: Tensor) -> list[list[str]]:
        """`texts` that are not cut at their ends."""
        rows = tokens_ENL[..., self.rollout.prompt_length :].tolist()
        return [self.examples.raw_texts(self.tokenizer, self.owners, each) for each in rows]

    @property
    def tokens_ENL(self) -> Tensor:
        """The finished completions, then the recorded guesses, where there are some."""
        return torch.cat([self.rollout.tokens_NL[None], *(state.guesses_ZNL for state in self.rollout.snapshots)])


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchRewards:
    """What a batch has earned: each completion, and each recorded guess where the method has some recorded."""

    completions: Float[Tensor, "P G"]
    guesses: Float[Tensor, "P G Z"] | None = None


Prompts = Sequence[Any] | Mapping[str, Sequence[Any]]


def examples_of(prompts: Prompts) -> list[Example]:
    """Examples of prompts: texts, conversations, rows with a "prompt" and further columns, or one dict of columns.

    The last is what a DataLoader collates of rows. Raises UserError for anything else.
    """
    if isinstance(prompts, Mapping):
        columns = {name: list(values) for name, values in prompts.items()}
        prompts = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if isinstance(prompts, str) or not len(prompts):
        raise UserError(f"prompts are {prompts!r:.60}: give a list of one or more")
    return [_example(prompt) for prompt in prompts]


def _example(prompt: Any) -> Example:
    if isinstance(prompt, Example):
        return prompt
    row = dict(prompt) if isinstance(prompt, Mapping) else {"prompt": prompt}
    if "prompt" not in row:
        raise UserError(f"a row has no column 'prompt' but {', '.join(map(str, row)) or 'none'}: name it so")
    text, messages = prompt_of(row.pop("prompt"), "prompt")
    return Example(prompt=text, solution="", columns=row, messages=messages)
