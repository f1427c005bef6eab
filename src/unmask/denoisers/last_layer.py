"""The last layer of a network, for the asked columns alone.

All columns give keys and values there; queries, what they attend to, and what follows are read at asked columns only.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Layers of transformers that are: x + attention(norm(x)), then x + mlp(norm(x)).
_KNOWN = ("Llama", "Qwen2", "Qwen3", "Qwen3Moe", "Glm4Moe")


def ask_last_layer(network: Any) -> bool:
    """Let the last layer of a network take `asked_columns`; False where its architecture is not known to allow it."""
    layers = getattr(network.base_model, "layers", None)
    if layers is not None and isinstance(layers[-1], _LastLayer):  # another denoiser has the same network
        return True
    if layers is None or type(layers[-1]).__name__ not in {f"{name}DecoderLayer" for name in _KNOWN}:
        return False
    kinds = getattr(network.config, "layer_types", None) or ["full_attention"]
    if kinds[-1] != "full_attention":
        return False
    layers[-1].__class__ = type(f"Last{type(layers[-1]).__name__}", (_LastLayer, type(layers[-1])), {})
    return True


class _LastLayer(nn.Module):
    """Mixed into a layer: the columns `asked_columns` [F, A] of what it gives, [F, A, D]; all where it is None."""

    input_layernorm: nn.Module
    self_attn: nn.Module
    post_attention_layernorm: nn.Module
    mlp: nn.Module

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        cache: Any = None,
        asked_columns: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        if asked_columns is None or position_embeddings is None:
            options |= {"attention_mask": attention_mask, "position_embeddings": position_embeddings, "cache": cache}
            output: Tensor = super().forward(hidden_states, **options)
            return output
        normed_FLD = self.input_layernorm(hidden_states)
        asked_FAD = _take(hidden_states, asked_columns)
        attended_FAD = _attend(
            self.self_attn, normed_FLD, asked_columns, position_embeddings, attention_mask, cache, options
        )
        hidden_FAD: Tensor = asked_FAD + attended_FAD
        mixed_FAD: Tensor = self.mlp(self.post_attention_layernorm(hidden_FAD))
        return hidden_FAD + mixed_FAD


def _take(tensor_FLD: Tensor, columns_FA: Tensor) -> Tensor:
    return tensor_FLD.gather(1, columns_FA[..., None].expand(-1, -1, tensor_FLD.shape[-1]))


def _attend(
    attention: Any,
    normed_FLD: Tensor,
    asked_FA: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    mask: Tensor | None,
    cache: Any,
    options: dict[str, Any],
) -> Tensor:
    """What the attention gives at the asked columns."""
    module = sys.modules[type(attention).__module__]  # where the architecture's own rotation is

    def heads(projected: Tensor) -> Tensor:
        return projected.view(*projected.shape[:-1], -1, attention.head_dim)

    query, key = heads(attention.q_proj(_take(normed_FLD, asked_FA))), heads(attention.k_proj(normed_FLD))
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key = query.transpose(1, 2), key.transpose(1, 2)
    value = heads(attention.v_proj(normed_FLD)).transpose(1, 2)
    cos, sin = (part.expand(len(query), -1, -1) for part in position_embeddings)
    # Rotated apart, for they stand at different columns; the other argument is as small as may be.
    query, _ = module.apply_rotary_pos_emb(query, query[:, :1], _take(cos, asked_FA), _take(sin, asked_FA))
    _, key = module.apply_rotary_pos_emb(key[:, :1], key, cos, sin)
    if cache is not None:
        key, value = cache.update(key, value, attention.layer_idx)
    if mask is not None and mask.shape[2] > 1:
        mask = mask.expand(len(query), -1, -1, -1)
        mask = mask.gather(2, asked_FA[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    function = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, module.eager_attention_forward
    )
    options = {name: option for name, option in options.items() if name not in ("position_ids", "use_cache")}
    options |= {"dropout": attention.attention_dropout if attention.training else 0.0, "is_causal": False}
    output, _ = function(attention, query, key, value, mask, scaling=attention.scaling, **options)
    attended: Tensor = attention.o_proj(output.reshape(*asked_FA.shape, -1))
    return attended
