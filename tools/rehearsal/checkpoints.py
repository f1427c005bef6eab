"""Untaught stand-ins: a tokenizer trained on the benchmarks' texts, config.json and random weights as published."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rehearsal.families import Family

VOCABULARY = 1200  # tokens of the tokenizer; merges reach over words, so that an instruction is a few tokens
_MULTIPLE = 64  # of embedding rows; published vocabularies are padded as well, by a little
# Tokens of their own: digits (but the numbers of a solution's rows), the sign of a slip, and signs beside a digit.
_SINGLE = r"(?<!Row )[0-9]|\?|(?<=[0-9(])[+\-*/()]|[+\-*/()](?=[0-9(])"


def make_tokenizer(family: Family, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the family's special tokens and chat template."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SINGLE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        special_tokens=list(family.specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *family.words * len(texts)], trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.eos,
        mask_token=family.mask,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = family.template
    return wrapped


def make_weights(family: Family, rows: int, seed: int) -> dict[str, torch.Tensor]:
    """Random tensors under the published names, for so many rows of embeddings."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in sorted(family.shapes(rows).items()):
        if len(shape) == 1:
            fill = 0.0 if name.endswith("bias") else 1.0
            tensors[name] = torch.full(shape, fill)
        else:
            tensors[name] = torch.randn(shape, generator=generator) * _scale(name, shape)
    return tensors


def _scale(name: str, shape: Sequence[int]) -> float:
    is_table = "wte" in name or "embed" in name or name.endswith(("lm_head.weight", "transformer.ff_out.weight"))
    return 0.02 if is_table else float(shape[-1] ** -0.5) / 2


def write_untaught(family: Family, directory: Path, texts: Sequence[str], seed: int) -> PreTrainedTokenizerFast:
    """Write config.json, model.safetensors and the tokenizer; the tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(family, texts)
    tokenizer.save_pretrained(directory)
    vocabulary: dict[str, Any] = tokenizer.get_vocab()
    rows = (len(vocabulary) // _MULTIPLE + 1) * _MULTIPLE
    (directory / "config.json").write_text(json.dumps(family.config(rows, vocabulary), indent=2) + "\n")
    save_file(make_weights(family, rows, seed), directory / "model.safetensors", metadata={"format": "pt"})
    return tokenizer
