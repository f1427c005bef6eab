"""Text to token ids and back: tokenizers of the embedded models, encoding, padding, decoding."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import groupby

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from unmask.data.turns import end_ids
from unmask.denoisers.base import MASK_TOKEN
from unmask.errors import UserError

EOS_TOKEN = "<|endoftext|>"  # noqa: S105


def task_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that splits text into the longest matches among `vocabulary`, plus an end and a mask token."""
    tokens = {token: index for index, token in enumerate((*vocabulary, EOS_TOKEN, MASK_TOKEN))}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token=EOS_TOKEN))  # `encode` refuses what it stands for
    longest_first = sorted(vocabulary, key=len, reverse=True)
    pattern = "|".join(re.escape(token) for token in longest_first)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=EOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=EOS_TOKEN,
        mask_token=MASK_TOKEN,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens. Raises UserError for a text that the tokenizer cannot spell."""
    for text in texts:
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UserError(f"{text[:60]!r} holds half of a character (a lone surrogate): mend the text")
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    for text, ids in zip(texts, encoded, strict=True):
        if not ids or tokenizer.unk_token_id in ids:
            raise UserError(
                f"the tokenizer cannot spell {text[:60]!r}: use the tokenizer that belongs to model and task"
            )
    return encoded


def encode_prompts(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], *, templated: bool) -> list[list[int]]:
    """Token ids of each prompt. Raises UserError as `encode` does.

    A plain text begins as the tokenizer's own post-processor lets it, with a beginning-of-sequence token where it adds
    one, and never with two; in the text of a chat template (`templated`) nothing is added.
    """
    encoded = encode(tokenizer, texts)
    lead = [] if templated else leading_ids(tokenizer)
    return [ids if ids[: len(lead)] == lead else [*lead, *ids] for ids in encoded]


def leading_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Special tokens that the tokenizer's post-processor writes before a text; what it writes behind plays no part."""
    marked = tokenizer("0", return_special_tokens_mask=True)
    ids: list[int] = marked["input_ids"]
    specials: list[int] = marked["special_tokens_mask"]
    return ids[: specials.index(0)] if 0 in specials else []


def left_pad(rows: Sequence[Sequence[int]], pad_id: int, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows of ids padded on the left to `width` (default: the longest): (tokens, attention as bool) [N, L]."""
    width = width or max(len(row) for row in rows)
    tokens = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], dtype=torch.long)
    attention = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows], dtype=torch.bool)
    return tokens, attention


def completion_texts(
    tokenizer: PreTrainedTokenizerFast, rows: list[list[int]], eos_id: int, other_end_ids: Collection[int] = ()
) -> list[str]:
    """Decoded completions (rows of completion tokens), cut before the first token that ends one (see `end_ids`).

    Other special tokens stay in the text. `other_end_ids`: see `Denoiser`.
    """
    ends = end_ids(tokenizer, eos_id) | set(other_end_ids)
    cut = [next((place for place, token in enumerate(row) if token in ends), len(row)) for row in rows]
    return raw_texts(tokenizer, [row[:end] for row, end in zip(rows, cut, strict=True)])


def raw_texts(tokenizer: PreTrainedTokenizerFast, rows: list[list[int]]) -> list[str]:
    """Decoded rows of tokens, whole, with all their special tokens; ids that the tokenizer does not know as <id N>."""
    known = _known_ids(tokenizer, len(tokenizer))
    texts: list[str] = tokenizer.batch_decode(rows)
    return [text if known.issuperset(row) else _with_ids(tokenizer, row) for row, text in zip(rows, texts, strict=True)]


@lru_cache(maxsize=8)
def _known_ids(tokenizer: PreTrainedTokenizerFast, count: int) -> frozenset[int]:
    """The ids that have a token; `count` of them."""
    return frozenset(tokenizer.get_vocab().values())


def _with_ids(tokenizer: PreTrainedTokenizerFast, row: list[int]) -> str:
    """The text of a row in which unknown ids, which decoding drops, are written out."""
    parts = []
    for unknown, group in groupby(row, key=lambda token: tokenizer.convert_ids_to_tokens(token) is None):
        ids = list(group)
        parts.append("".join(f"<id {token}>" for token in ids) if unknown else str(tokenizer.decode(ids)))
    return "".join(parts)


def token_names(tokenizer: PreTrainedTokenizerFast, row: list[int]) -> list[str]:
    """The tokens of a row as texts, ids that the tokenizer does not know as <id N>."""
    names = zip(row, tokenizer.convert_ids_to_tokens(row), strict=True)
    return [f"<id {token}>" if name is None else name for token, name in names]


def token_texts(tokenizer: PreTrainedTokenizerFast, row: list[int]) -> list[str]:
    """What each token of a row adds to a text, for people to read; a part of a character is shown as �.

    Ids that the tokenizer does not know are <id N>. Byte-level names such as "Ġthe" read " the" here.
    """

    def text(token: int) -> str:
        # The second of two keeps the space that decoders take from the first token of a text.
        once, twice = (tokenizer.decode([token] * count, clean_up_tokenization_spaces=False) for count in (1, 2))
        return str(twice)[len(once) :]

    names = zip(row, token_names(tokenizer, row), strict=True)
    shown = {token: text(token) or name for token, name in dict(names).items()}
    return [shown[token] for token in row]
