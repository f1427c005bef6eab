"""Sizes of the GPU command: LLaDA-8B's exact shape with published lengths, or as small as tries every part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unmask.plan.published import published_shapes

_LLADA = "GSAI-ML/LLaDA-8B-Instruct"


@dataclass(frozen=True, kw_only=True)
class GpuSizes:
    """A network's config.json, and how much is done with it."""

    device: str
    config: dict[str, Any]
    mask_id: int
    eos_id: int
    rows: tuple[int, int, int]  # completions that are sampled at once
    prompt: int
    completion: int  # one block
    steps: int
    lora_rank: int
    update_rows: int
    update_prompt: int
    update_completion: int
    repeats: int  # of an update
    backend: str  # of torch.compile
    graphs: str | None  # its mode for CUDA graphs
    checks: tuple[str, ...] = ()  # of tests/gpu; none: all


LLADA_8B = GpuSizes(
    device="cuda",
    config=published_shapes()[_LLADA],
    mask_id=126336,
    eos_id=126081,
    rows=(8, 32, 96),
    prompt=480,
    completion=32,  # the last block of 512 tokens, two tokens a step as the papers sample
    steps=16,
    lora_rank=128,
    update_rows=6,
    update_prompt=256,
    update_completion=256,
    repeats=5,
    backend="inductor",
    graphs="reduce-overhead",
)
DRY = GpuSizes(
    device="cpu",
    config=LLADA_8B.config
    | {"d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 64}
    | {"vocab_size": 300, "embedding_size": 300, "max_sequence_length": 64},
    mask_id=299,
    eos_id=298,
    rows=(2, 3, 4),
    prompt=8,
    completion=32,
    steps=2,
    lora_rank=2,
    update_rows=2,
    update_prompt=4,
    update_completion=8,
    repeats=1,
    backend="eager",
    graphs=None,
    checks=("uniforms_agree", "logp_agrees, bf16"),  # the others have tests of their own
)
