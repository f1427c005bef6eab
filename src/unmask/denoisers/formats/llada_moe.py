"""LLaDA-MoE's checkpoint format (inclusionAI/LLaDA-MoE-7B-A1B): a Qwen3-MoE that attends both ways (2509.24389).

Its router mixes with the probabilities as they are, not renormalized, whatever config.json says of `norm_topk_prob`.
"""

from __future__ import annotations

from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from unmask.denoisers.formats.base import CheckpointFormat, Published, is_a, shared_settings


def _config(published: Published) -> Qwen3MoeConfig:
    return Qwen3MoeConfig(
        **shared_settings(published),
        head_dim=published["hidden_size"] // published["num_attention_heads"],
        num_experts=published["num_experts"],
        num_experts_per_tok=published["num_experts_per_tok"],
        moe_intermediate_size=published["expert_intermediate_size"],
        intermediate_size=published["dense_intermediate_size"],
        mlp_only_layers=[layer for layer, sparse in enumerate(published["moe_layer_freq"]) if not sparse],
        norm_topk_prob=False,
    )


LLADA_MOE = CheckpointFormat(
    name="LLaDA-MoE",
    # Published checkpoints say "llada", as LLaDA-8B does.
    matches=lambda published: published.get("model_type") == "lladamoe" or is_a(published, "LLaDAMoEModelLM"),
    network=Qwen3MoeForCausalLM,
    config=_config,
    fixed={
        "attention_bias": False,
        "clip_qkv": None,
        "moe_router_enable_expert_bias": None,
        "partial_rotary_factor": 1,
        "qk_layernorm": True,
        "rope_scaling": None,
        "shared_expert_intermediate_size": None,
    },
)
