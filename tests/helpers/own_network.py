"""A small network and its tokenizer, as somebody who knows transformers makes them."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from unmask.data.tokenization import task_tokenizer
from unmask.tasks import Sudoku


def own_network() -> tuple[Any, Any]:
    """A Llama that attends both ways, and the tokenizer of Sudoku: the same each time."""
    tokenizer = task_tokenizer(Sudoku().vocabulary)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=None,
    )
    config.is_causal = False
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config), tokenizer
