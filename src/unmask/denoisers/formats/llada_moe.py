"""LLaDA-MoE's checkpoint format (inclusionAI/LLaDA-MoE-7B-A1B): a Qwen3-MoE that attends both ways (2509.24389).

Its router mixes with the probabilities as they are, not renormalized, whatever config.json says of `norm_topk_prob`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock, Qwen3MoeTopKRouter

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


class BiasedRouter(Qwen3MoeTopKRouter):
    """Chooses experts by their probability plus a bias, which stays in the weights that it mixes with.

    T tokens, E experts, K of them a token. The bias is loaded and saved, and not trained.
    """

    def __init__(self, config: Qwen3MoeConfig) -> None:
        super().__init__(config)
        self.register_buffer("expert_bias", torch.zeros(config.num_experts))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [T, E], weights and numbers of the chosen experts [T, K]."""
        logits_TE = linear(hidden_states.reshape(-1, self.hidden_dim), self.weight)
        score_TE = logits_TE.softmax(-1, dtype=torch.float32) + self.expert_bias
        weight_TK, expert_TK = score_TE.topk(self.top_k, dim=-1)
        return logits_TE, weight_TK.to(logits_TE.dtype), expert_TK


class BiasedQwen3Moe(Qwen3MoeForCausalLM):
    """A Qwen3-MoE whose routers have an expert bias."""

    _keep_in_fp32_modules_strict = ("expert_bias",)

    def __init__(self, config: Qwen3MoeConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            if isinstance(layer.mlp, Qwen3MoeSparseMoeBlock):
                layer.mlp.gate = BiasedRouter(config)


LLADA_MOE_BIASED = replace(
    LLADA_MOE,
    name="LLaDA-MoE with expert bias",
    matches=lambda published: LLADA_MOE.matches(published) and bool(published.get("moe_router_enable_expert_bias")),
    network=BiasedQwen3Moe,
    fixed={**LLADA_MOE.fixed, "moe_router_enable_expert_bias": True},
    renaming={r"^model\.layers\.(\d+)\.mlp\.expert_bias": r"model.layers.\1.mlp.gate.expert_bias"},
)
