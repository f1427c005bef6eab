"""Networks without weights, from a config.json or from the shapes of published checkpoints."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from unmask.denoisers.adapters import add_adapters
from unmask.denoisers.base import Denoiser
from unmask.denoisers.loading import EMBEDDED, FORMATS, resolve
from unmask.errors import UserError
from unmask.settings.recipe import TrainSettings
from unmask.validation import did_you_mean

_LAYERS = ("n_layers", "num_hidden_layers")  # whichever config.json has
_PER_LAYER = ("layer_types", "mlp_layer_types")  # lists as long as there are layers


@cache
def published_shapes() -> dict[str, dict[str, Any]]:
    """config.json of published checkpoints by their Hub names, as far as it decides the shape of the network."""
    tables = tomllib.loads(files("unmask").joinpath("plan/published.toml").read_text())
    return {name: tables[table.get("same_as", name)] for name, table in tables.items()}


def read_shape(model: str) -> dict[str, Any]:
    """config.json of a model: of a directory, an embedded model, or a published checkpoint. Raises UserError."""
    shapes = published_shapes()
    on_disk = model.startswith(EMBEDDED) or (Path(model).expanduser() / "config.json").is_file()
    if not on_disk:
        if model in shapes:
            return shapes[model]
        raise UserError(f"model {model!r} is no checkpoint directory{did_you_mean(model, list(shapes))}")
    shape: dict[str, Any] = json.loads((resolve(model) / "config.json").read_text())
    return shape


def layer_count(shape: Mapping[str, Any]) -> int:
    """Number of layers of a network."""
    return int(next(shape[name] for name in _LAYERS if name in shape))


def with_layers(shape: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The config of the same network cut to its first `count` layers."""
    shorter = dict(shape) | {name: count for name in _LAYERS if name in shape}
    return shorter | {name: shape[name][:count] for name in _PER_LAYER if shape.get(name)}


def blank_denoiser(shape: Mapping[str, Any], settings: TrainSettings) -> Denoiser:
    """The denoiser as it is trained, on the meta device (shapes without numbers). Raises UserError."""
    layout = next((layout for layout in FORMATS if layout.matches(shape)), None)
    if layout is None and shape.get("is_causal") is not False:
        raise UserError("the model attends causally: a masked diffusion model has is_causal = false in config.json")
    with torch.device("meta"):
        if layout is not None:
            network = layout.network(layout.network_config(shape))
        else:
            network = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape))
        dtype = torch.bfloat16 if settings.param_dtype == "bf16" else torch.float32
        denoiser = Denoiser(network.to(dtype), mask_id=0, eos_id=1, shift=layout is not None and layout.shift).eval()
        if settings.lora_rank:
            add_adapters(denoiser, settings.lora_rank, settings.lora_alpha)
    return denoiser


@dataclass(frozen=True, kw_only=True)
class Size:
    """Weight counts of a denoiser; `active` weights multiply every token (experts by the share that a token meets)."""

    parameters: int  # without adapters
    trained: int
    weight_bytes: int  # adapters included
    trained_bytes: int
    active: float  # in matrices of the layers, adapters and head apart
    adapters: float  # active weights of adapters
    last: float  # of `active`, those of the last layer that work at query positions alone
    last_adapters: float  # of `adapters`, likewise
    head: int  # weights of the head
    vocabulary: int
    attention: int  # layers x heads x width of a head
    last_attention: int  # of these, those of the last layer if it works at query positions alone
    max_length: int  # tokens


@cache
def size_of(model: str, weights: str, lora_rank: int) -> Size:
    """The Size of a model as it is trained, counted on its tensors. Raises UserError."""
    denoiser = blank_denoiser(read_shape(model), TrainSettings(param_dtype=weights, lora_rank=lora_rank))
    config = denoiser.model.config
    named = dict(denoiser.model.base_model.named_parameters())
    everything = list(denoiser.parameters())
    trained = [weight for weight in everything if weight.requires_grad]
    experts = getattr(config, "num_experts", None) or getattr(config, "n_routed_experts", None)
    met = config.num_experts_per_tok / experts if experts else 1.0

    def active(name: str) -> float:
        return float(named[name].numel() * (met if ".experts." in name else 1.0))

    matrices = [name for name, weight in named.items() if weight.ndim > 1 and "embed_tokens" not in name]
    adapters = [name for name in matrices if ".lora_" in name]
    last_layer = f"layers.{config.num_hidden_layers - 1}." if denoiser.queries_last_layer else "none"
    last = [name for name in matrices if name.startswith(last_layer) and "k_proj" not in name and "v_proj" not in name]
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Size(
        parameters=sum(weight.numel() for name, weight in denoiser.named_parameters() if ".lora_" not in name),
        trained=sum(weight.numel() for weight in trained),
        weight_bytes=sum(weight.nbytes for weight in everything),
        trained_bytes=sum(weight.nbytes for weight in trained),
        active=sum(active(name) for name in matrices if name not in adapters),
        adapters=sum(active(name) for name in adapters),
        last=sum(active(name) for name in last if name not in adapters),
        last_adapters=sum(active(name) for name in last if name in adapters),
        head=config.vocab_size * config.hidden_size,
        vocabulary=config.vocab_size,
        attention=config.num_hidden_layers * config.num_attention_heads * head_width,
        last_attention=config.num_attention_heads * head_width if denoiser.queries_last_layer else 0,
        max_length=denoiser.max_length,
    )
