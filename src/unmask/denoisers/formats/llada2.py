"""LLaDA2's checkpoint format (inclusionAI/LLaDA2.0, LLaDA2.1): a GLM-4-MoE that attends in blocks (2512.15745).

A position attends both ways within its block, and to all earlier ones. Queries, keys and values are one tensor there,
three in transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM
from transformers.core_model_loading import Concatenate, ConversionOps, WeightConverter

from unmask.denoisers.formats.base import CheckpointFormat, Published, is_a, shared_settings


class LLaDA2Config(Glm4MoeConfig):
    """GLM-4-MoE's under a name of its own: transformers looks up the conversion of tensors by it."""

    model_type = "llada2_moe"


class SplitHeads(ConversionOps):
    """A fused projection into those of queries, keys and values."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **options: Any
    ) -> dict[str, Tensor]:
        """As transformers asks: tensors by source pattern into tensors by target pattern."""
        config = options["config"]
        ((fused,),) = input_dict.values()
        heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        parts = fused.split([count * config.head_dim for count in heads])
        return {name: part.clone() for name, part in zip(target_patterns, parts, strict=True)}

    @property
    def reverse_op(self) -> ConversionOps:
        """On saving."""
        return Concatenate(dim=0)


def _config(published: Published) -> LLaDA2Config:
    settings = shared_settings(published)
    settings["rope_parameters"]["partial_rotary_factor"] = published["partial_rotary_factor"]
    same = ("intermediate_size", "moe_intermediate_size", "num_experts_per_tok", "n_group", "topk_group")
    return LLaDA2Config(
        **settings,
        **{key: published[key] for key in (*same, "first_k_dense_replace", "routed_scaling_factor")},
        head_dim=published.get("head_dim") or published["hidden_size"] // published["num_attention_heads"],
        n_routed_experts=published["num_experts"],
        n_shared_experts=published["num_shared_experts"],
        norm_topk_prob=True,
        use_qk_norm=True,
        num_mtp_layers=0,
    )


_ATTENTION = r"^model\.layers\.(\d+)\.attention\."

LLADA2 = CheckpointFormat(
    name="LLaDA2",
    matches=lambda published: published.get("model_type") == "llada2_moe" or is_a(published, "LLaDA2MoeModelLM"),
    network=Glm4MoeForCausalLM,
    config=_config,
    fixed={
        "moe_router_enable_expert_bias": True,
        "norm_head": False,
        "norm_topk_prob": True,
        "rope_scaling": None,
        "score_function": "sigmoid",
        "use_bias": False,
        "use_qk_norm": True,
        "use_qkv_bias": False,
        "use_sliding_window": False,
    },
    renaming={
        r"^model\.word_embeddings\.": "model.embed_tokens.",
        _ATTENTION + r"query_layernorm\.": r"model.layers.\1.self_attn.q_norm.",
        _ATTENTION + r"key_layernorm\.": r"model.layers.\1.self_attn.k_norm.",
        _ATTENTION + r"dense\.": r"model.layers.\1.self_attn.o_proj.",
        r"^model\.layers\.(\d+)\.mlp\.gate\.expert_bias": r"model.layers.\1.mlp.gate.e_score_correction_bias",
    },
    conversions=(
        WeightConverter(
            "attention.query_key_value.weight",
            ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"],
            operations=[SplitHeads()],
        ),
    ),
    like="glm4_moe",
    block_length=32,
)
