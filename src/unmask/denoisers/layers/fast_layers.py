"""Fast layers: decoder layers of transformers with fewer passes over memory; same weights, same function to rounding.

`fast_layers(network)` installs them, `remove_fast_layers(network)` takes them out again. With them the last layer works
at the query columns alone: keys and values are made of all columns; queries, what they attend to, and what follows at
query columns only.

A layer's class is swapped for a subclass of it, as FSDP2's `fully_shard` does, rather than `layer.forward` be set: the
layer stays free of reference cycles, copies and pickles as any other, and runs through `layer(...)`, so that hooks on
the layer (FSDP2 gathers parameters in one) are called. `fast_layers`, `recompute_layers`, `compile_layers` and
`fully_shard` may come in any order. Transformers takes seconds to import, and is there once a network is: functions
that have one import it.
"""

from __future__ import annotations

import inspect
import logging
import sys
from functools import cache as remember
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unmask.denoisers.layers.elementwise import gated, rms_norm, rotate
from unmask.denoisers.layers.recompute import runs_class_forward
from unmask.errors import UserError

_LOG = logging.getLogger(__name__)

# Layers of transformers that are: x + attention(norm(x)), then x + mlp(norm(x)), with RMS norms and rotated halves.
_KNOWN = tuple(f"{name}DecoderLayer" for name in ("Llama", "Qwen2", "Qwen3", "Qwen3Moe", "Glm4Moe"))
_ATTENTION = ("sdpa", "eager")  # whose masks have a row for each query, or one for all
_NOT_OF_ATTENTION = ("position_ids", "use_cache", "query_columns")


def fast_layers(network: Any) -> None:
    """Install fast layers in a network of transformers (such as a `LlamaForCausalLM`); twice changes nothing.

    They run where a `Denoiser` calls the network (it passes `query_columns`); any other call runs transformers' own.
    While they run without gradient, intermediate results may be overwritten, and hooks on the norms, the attention and
    the MLP within a layer are not called; hooks on the layer, and on its linear layers, are. Raises UserError where the
    network cannot have them: `why_no_fast_layers` tells.
    """
    if (reason := why_no_fast_layers(network)) is not None:
        raise UserError(f"no fast layers: {reason}")
    layers = network.base_model.layers
    for layer in layers:
        if not isinstance(layer, _Layer) and _why_not(layer) is None:
            ours = _LastLayer if layer is layers[-1] else _Layer
            layer.__class__ = _mixed(ours, type(layer))  # type: ignore[arg-type]  # mypy knows no hash of a type


def remove_fast_layers(network: Any) -> None:
    """Give the layers back the classes that they had before `fast_layers`; without fast layers nothing changes.

    Raises UserError, and removes none, where another library changed a layer's class since (`fully_shard` does).
    """
    fast = [layer for layer in getattr(network.base_model, "layers", ()) if isinstance(layer, _Layer)]
    for layer in fast:
        if "replaced" not in vars(type(layer)):
            raise UserError(f"fast layers cannot be removed: {type(layer).__name__} was put over them, undo that first")
    for layer in fast:
        layer.__class__ = type(layer).replaced  # type: ignore[assignment]


def has_fast_layers(network: Any) -> bool:
    """Whether `fast_layers` was called: the network takes `query_columns`, and answers there alone."""
    layers = getattr(network.base_model, "layers", None)
    return layers is not None and isinstance(layers[-1], _LastLayer)


def why_no_fast_layers(network: Any) -> str | None:
    """One line: which class cannot run as a fast layer, and why; None where `fast_layers` works.

    The last layer decides. Others that are unknown run as they are.
    """
    layers = getattr(network.base_model, "layers", None)
    if not layers:
        return f"{type(network.base_model).__name__} has no list of decoder layers (`layers`)"
    if network.config._attn_implementation not in _ATTENTION:
        return f"attention {network.config._attn_implementation!r} is none of {', '.join(_ATTENTION)}"
    return None if isinstance(layers[-1], _LastLayer) else _why_not(layers[-1])


def fast_layers_or_log(network: Any) -> None:
    """Install fast layers; where they cannot be had, log why, once a process for each reason."""
    if (reason := why_no_fast_layers(network)) is None:
        fast_layers(network)
    else:
        _log_once(f"no fast layers: {reason}; its layers run as transformers has them")


@remember
def _log_once(line: str) -> None:
    _LOG.warning(line)


def _why_not(layer: Any) -> str | None:
    """One line: why the layer is not one of the known."""
    name = type(layer).__name__
    # Others put subclasses over a layer's class, such as FSDPLlamaDecoderLayer.
    known = [
        kind
        for kind in type(layer).__mro__
        if kind.__name__ in _KNOWN and kind.__module__.startswith("transformers.models.")
    ]
    if not known:
        return f"{name} is none of the known decoder layers ({', '.join(_KNOWN)})"
    # transformers puts a wrapper around the forward of every subclass.
    if inspect.unwrap(type(layer).forward) is not inspect.unwrap(known[-1].forward):  # type: ignore[attr-defined]
        return f"{name} overrides the forward of {known[-1].__name__}"
    if not runs_class_forward(layer):
        return f"the forward of a {name} was replaced: call fast_layers before whatever did"
    if getattr(layer.self_attn, "sliding_window", None) is not None:
        return f"{name} attends to a sliding window"
    for part in (layer.input_layernorm, layer.self_attn, layer.post_attention_layernorm, layer.mlp):
        if part._forward_hooks or part._forward_pre_hooks:
            return f"{type(part).__name__} in {name} has forward hooks, which would not be called"
    return None


@remember
def _mixed(ours: type[_Layer], theirs: type[nn.Module]) -> type[nn.Module]:
    """`theirs` with the forward of `ours`, under its own name: libraries find layers by it."""
    return type(theirs.__name__, (ours, theirs), {"fast": ours, "replaced": theirs})


def _blank(ours: type[_Layer], theirs: type[nn.Module]) -> Any:
    """A fast layer before its state is set: for pickle and deepcopy, which do not find the mixed class by name."""
    kind: Any = _mixed(ours, theirs)  # type: ignore[arg-type]
    return kind.__new__(kind)


class _Layer(nn.Module):
    """Mixed into a layer."""

    fast: ClassVar[type[_Layer]]  # of the mixed class: its two bases
    replaced: ClassVar[type[nn.Module]]
    input_layernorm: nn.Module
    self_attn: nn.Module
    post_attention_layernorm: nn.Module
    mlp: nn.Module

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        return _blank, (self.fast, self.replaced), *reduced[2:]

    def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
        """All columns [F, L, D]."""
        # A compiler makes few passes of transformers' own. It must not look for the query columns: their number changes
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
        """All columns where `query_columns` is None."""
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
    from transformers.activations import SiLUActivation

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
    """Output of the attention at the query columns [F, A, D], or at all [F, L, D]."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    cos, sin = position_embeddings
    cos_query, sin_query, queried = cos, sin, normed_FLD
    if query_FA is not None:
        cos_query, sin_query = (_take(each.expand(len(normed_FLD), -1, -1), query_FA) for each in (cos, sin))
        queried = _take(normed_FLD, query_FA)
        if mask is not None and mask.shape[2] > 1:
            mask = mask.expand(len(query_FA), -1, -1, -1)
            mask = mask.gather(2, query_FA[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))

    def heads(projected: Tensor) -> Tensor:
        return projected.view(*projected.shape[:-1], -1, attention.head_dim)

    query, key = heads(attention.q_proj(queried)), heads(attention.k_proj(normed_FLD))
    if hasattr(attention, "q_norm"):
        query, key = _norm(attention.q_norm, query), _norm(attention.k_norm, key)
    query = rotate(query.transpose(1, 2), cos_query[:, None], sin_query[:, None])
    key = rotate(key.transpose(1, 2), cos[:, None], sin[:, None])
    value = heads(attention.v_proj(normed_FLD)).transpose(1, 2)
    if cache is not None:
        key, value = cache.update(key, value, attention.layer_idx)
    without_kernel = getattr(sys.modules[type(attention).__module__], "eager_attention_forward", None)
    function = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, without_kernel)
    options = {name: option for name, option in options.items() if name not in _NOT_OF_ATTENTION}
    options |= {"dropout": attention.attention_dropout if attention.training else 0.0, "is_causal": False}
    output, _ = function(attention, query, key, value, mask, scaling=attention.scaling, **options)
    attended: Tensor = attention.o_proj(output.reshape(*queried.shape[:2], -1))
    return attended
