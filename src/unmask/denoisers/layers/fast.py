"""The layers of a network of transformers as sampling and updates run them: the same weights, the same function.

With fewer passes over memory; and in the last layer for the asked columns alone: all columns give keys and values
there; queries, what they attend to, and what follows are read at asked columns only.
"""

from __future__ import annotations

import sys
from functools import cache as remember
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from unmask.denoisers.layers.elementwise import gated, rms_norm, rotate

# Layers of transformers that are: x + attention(norm(x)), then x + mlp(norm(x)), with RMS norms and rotated halves.
_KNOWN = tuple(f"{name}DecoderLayer" for name in ("Llama", "Qwen2", "Qwen3", "Qwen3Moe", "Glm4Moe"))
_ATTENTION = ("sdpa", "eager")  # whose masks have a row for each query, or one for all
_NOT_OF_ATTENTION = ("position_ids", "use_cache", "query_columns")


def use_fast_layers(network: Any) -> bool:
    """Let the layers of a network take `query_columns`, and run them as here where they are given.

    Without, they are transformers' own. False where the last layer is not known to allow it. With, hooks on a layer's
    parts are not called, and what those give may be written over.
    """
    layers = getattr(network.base_model, "layers", None)
    if layers is None or network.config._attn_implementation not in _ATTENTION:
        return False
    for layer in layers:  # those that another denoiser of the same network has asked already are ours
        if not isinstance(layer, _Layer) and _is_known(layer):
            ours = _LastLayer if layer is layers[-1] else _Layer
            layer.__class__ = _mixed(ours, type(layer))  # type: ignore[arg-type]  # mypy knows no hash of a type
    return isinstance(layers[-1], _Layer)


def _is_known(layer: Any) -> bool:
    kind = type(layer)
    if kind.__name__ not in _KNOWN or not kind.__module__.startswith("transformers.models."):
        return False
    wrapped = "forward" in vars(layer)  # from outside, for instance to fetch its weights
    return not wrapped and getattr(layer.self_attn, "sliding_window", None) is None


@remember
def _mixed(ours: type[nn.Module], theirs: type[nn.Module]) -> type[nn.Module]:
    return type(theirs.__name__, (ours, theirs), {})


class _Layer(nn.Module):
    """Mixed into a layer."""

    input_layernorm: nn.Module
    self_attn: nn.Module
    post_attention_layernorm: nn.Module
    mlp: nn.Module

    def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
        """All columns [F, L, D]."""
        # A compiler makes few passes of transformers' own. It must not look for the asked columns: their number changes
        # at every step, and each would be another graph.
        if torch.compiler.is_compiling() or "query_columns" not in options:
            output: Tensor = super().forward(hidden_states, **options)
            return output
        return self._run(hidden_states, None, **options)

    def _run(
        self,
        hidden_FLD: Tensor,
        query_FA: Tensor | None,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        cache: Any = None,
        **options: Any,
    ) -> Tensor:
        normed_FLD = _norm(self.input_layernorm, hidden_FLD)
        attended = _attend(self.self_attn, normed_FLD, query_FA, position_embeddings, attention_mask, cache, options)
        hidden_FAD = _added(attended, hidden_FLD if query_FA is None else _take(hidden_FLD, query_FA))
        return _added(_mlp(self.mlp, _norm(self.post_attention_layernorm, hidden_FAD)), hidden_FAD)


class _LastLayer(_Layer):
    """Mixed into the last layer: the columns `query_columns` [F, A] of what it gives, [F, A, D]."""

    def forward(self, hidden_states: Tensor, query_columns: Tensor | None = None, **options: Any) -> Tensor:
        """All columns where none are asked."""
        if query_columns is None:
            return super().forward(hidden_states, **options)
        return self._run(hidden_states, query_columns, **options)


def _take(tensor_FLD: Tensor, columns_FA: Tensor) -> Tensor:
    return tensor_FLD.gather(1, columns_FA[..., None].expand(-1, -1, tensor_FLD.shape[-1]))


def _added(new: Tensor, to: Tensor) -> Tensor:
    """The sum; where no gradient is made, written over `new`."""
    return new + to if torch.is_grad_enabled() or new.dtype != to.dtype else new.add_(to)


def _norm(norm: Any, x: Tensor) -> Tensor:
    return rms_norm(x, norm.weight, norm.variance_epsilon)


def _mlp(mlp: Any, x: Tensor) -> Tensor:
    if isinstance(getattr(mlp, "act_fn", None), (nn.SiLU, SiLUActivation)):
        mixed: Tensor = mlp.down_proj(gated(mlp.gate_proj(x), mlp.up_proj(x)))
    else:  # experts, or another activation
        mixed = mlp(x)
    return mixed


def _attend(
    attention: Any,
    normed_FLD: Tensor,
    query_FA: Tensor | None,
    position_embeddings: tuple[Tensor, Tensor],
    mask: Tensor | None,
    cache: Any,
    options: dict[str, Any],
) -> Tensor:
    """What the attention gives at the asked columns, or at all."""
    cos, sin = position_embeddings
    cos_asked, sin_asked, asking = cos, sin, normed_FLD
    if query_FA is not None:
        cos_asked, sin_asked = (_take(each.expand(len(normed_FLD), -1, -1), query_FA) for each in (cos, sin))
        asking = _take(normed_FLD, query_FA)
        if mask is not None and mask.shape[2] > 1:
            mask = mask.expand(len(query_FA), -1, -1, -1)
            mask = mask.gather(2, query_FA[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))

    def heads(projected: Tensor) -> Tensor:
        return projected.view(*projected.shape[:-1], -1, attention.head_dim)

    query, key = heads(attention.q_proj(asking)), heads(attention.k_proj(normed_FLD))
    if hasattr(attention, "q_norm"):
        query, key = _norm(attention.q_norm, query), _norm(attention.k_norm, key)
    query = rotate(query.transpose(1, 2), cos_asked[:, None], sin_asked[:, None])
    key = rotate(key.transpose(1, 2), cos[:, None], sin[:, None])
    value = heads(attention.v_proj(normed_FLD)).transpose(1, 2)
    if cache is not None:
        key, value = cache.update(key, value, attention.layer_idx)
    without_kernel = getattr(sys.modules[type(attention).__module__], "eager_attention_forward", None)
    function = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, without_kernel)
    options = {name: option for name, option in options.items() if name not in _NOT_OF_ATTENTION}
    options |= {"dropout": attention.attention_dropout if attention.training else 0.0, "is_causal": False}
    output, _ = function(attention, query, key, value, mask, scaling=attention.scaling, **options)
    attended: Tensor = attention.o_proj(output.reshape(*asking.shape[:2], -1))
    return attended
