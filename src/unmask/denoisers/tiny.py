"""Small bidirectional Llamas, for the embedded models and tests: same classes as the real ones."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from unmask.denoisers.base import Denoiser
from unmask.denoisers.layers.fast_layers import fast_layers


def tiny_denoiser(
    *,
    vocabulary: int,
    mask_id: int,
    eos_id: int,
    hidden: int,
    layers: int,
    heads: int,
    max_length: int,
    seed: int,
) -> Denoiser:
    """A randomly initialised bidirectional Llama of width `hidden` with fast layers; same seed, same weights."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=round(hidden * 8 / 3 / 16) * 16,  # SwiGLU with the size of a 4x MLP
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=False,
        pad_token_id=eos_id,
        eos_token_id=eos_id,
        bos_token_id=None,
        is_causal=False,
        mask_token_id=mask_id,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    fast_layers(model)
    return Denoiser(model, mask_id=mask_id, eos_id=eos_id)
