"""Networks without weights, from a config.json or from the shapes of published checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from unmask.denoisers.adapters import add_adapters
from unmask.denoisers.base import Denoiser
from unmask.denoisers.formats import format_of
from unmask.denoisers.layers.fast_layers import fast_layers_or_log
from unmask.denoisers.load_errors import config_errors
from unmask.errors import UserError
from unmask.plan.layout import WeightGroups
from unmask.plan.published import model_config
from unmask.settings.recipe import TrainSettings

_PER_LAYER = ("layer_types", "mlp_layer_types")  # lists as long as there are layers


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A network's configuration, and how the network is made of it."""

    config: PretrainedConfig
    make: Callable[[PretrainedConfig], Any]
    shift: bool
    block_length: int | None = None  # of the blocks that a position attends to

    def with_layers(self, count: int) -> Shape:
        """The same network with its first `count` layers alone."""
        config = copy.deepcopy(self.config)
        config.num_hidden_layers = count
        for name in _PER_LAYER:
            if getattr(config, name, None):
                setattr(config, name, getattr(config, name)[:count])
        return replace(self, config=config)


def read_shape(model: str, model_format: str | None = None) -> Shape:
    """The shape of a model: a directory's, an embedded model's, or a published one's. Raises UserError.

    `model_format`: the user's own checkpoint format, as `load_denoiser` takes it.
    """
    published = model_config(model)
    checkpoint_format = format_of(published, model_format)
    if checkpoint_format is not None:
        config = checkpoint_format.network_config(published)
        return Shape(
            config=config,
            make=checkpoint_format.network,
            shift=bool(published.get("logits_shift", checkpoint_format.shift)),
            block_length=published.get("block_length", checkpoint_format.block_length),
        )
    if published.get("is_causal") is not False:
        raise UserError("the model attends causally: a masked diffusion model has is_causal = false in config.json")
    with config_errors(model):
        config = AutoConfig.for_model(**published)
    return Shape(
        config=config,
        make=AutoModelForCausalLM.from_config,
        shift=bool(published.get("logits_shift", False)),
        block_length=published.get("block_length"),
    )


def blank_denoiser(shape: Shape, settings: TrainSettings) -> Denoiser:
    """The denoiser that is trained, on the meta device: it has shapes and no numbers.

    Matrices in 4 bits stand there as what they are multiplied as.
    """
    with torch.device("meta"):
        network = shape.make(copy.deepcopy(shape.config))
        fast_layers_or_log(network)
        dtype = torch.bfloat16 if settings.param_dtype == "bf16" else torch.float32
        blocks = shape.block_length
        denoiser = Denoiser(network.to(dtype), mask_id=0, eos_id=1, shift=shape.shift, block_length=blocks).eval()
        if settings.four_bit and settings.precision == "bf16":
            for matrix in _four_bit_matrices(denoiser).values():
                matrix.to(torch.bfloat16)
        if settings.lora_rank:
            add_adapters(denoiser, settings.lora_rank, settings.lora_alpha)
    return denoiser


def _four_bit_matrices(denoiser: Denoiser) -> dict[str, nn.Linear]:
    """The layers that `train.four_bit` loads in 4 bits, by name: linear ones but the head and adapters."""
    head = denoiser.model.get_output_embeddings()
    return {
        name: module
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear) and module is not head and ".lora_" not in name
    }


def four_bit_bytes(count: int) -> int:
    """Bytes of a matrix of so many weights in 4 bits (NF4 with doubly quantized scales, as bitsandbytes keeps it).

    Half a byte a weight, a byte of scale for 64 of them, a float32 for 256 scales, and tables: 16 and 256 float32,
    an offset.
    """
    scales = -(-count // 64)
    return -(-count // 2) + scales + 4 * -(-scales // 256) + 4 * (16 + 256 + 1)


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
    groups: WeightGroups  # of all weights
    tensors: tuple[int, ...]  # weights of each tensor, without adapters
    trained_tensors: tuple[int, ...]  # likewise of what is trained
    experts: int  # weights in experts
    dequantized: int  # weights of the largest matrix in 4 bits, which is written out to be multiplied
    shift: bool
    block_length: int | None


@cache
def size_of(
    model: str, param_dtype: str, lora_rank: int, model_format: str | None = None, *, four_bit: bool = False
) -> Size:
    """The numbers of a model as it is trained, counted on its tensors. Raises UserError."""
    train = TrainSettings(param_dtype=param_dtype, lora_rank=lora_rank, four_bit=four_bit)
    shape = read_shape(model, model_format)
    denoiser = blank_denoiser(shape, train)
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
    matrices_in_four_bits = [m.weight for m in _four_bit_matrices(denoiser).values()] if four_bit else []
    saved = sum(weight.nbytes - four_bit_bytes(weight.numel()) for weight in matrices_in_four_bits)
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Size(
        parameters=sum(weight.numel() for name, weight in denoiser.named_parameters() if ".lora_" not in name),
        trained=sum(weight.numel() for weight in trained),
        weight_bytes=sum(weight.nbytes for weight in everything) - saved,
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
        groups=_groups(denoiser),
        tensors=tuple(weight.numel() for name, weight in denoiser.named_parameters() if ".lora_" not in name),
        trained_tensors=tuple(weight.numel() for weight in trained),
        experts=sum(weight.numel() for name, weight in named.items() if ".experts." in name),
        dequantized=max((weight.numel() for weight in matrices_in_four_bits), default=0),
        shift=shape.shift,
        block_length=shape.block_length,
    )


def _groups(denoiser: Denoiser) -> WeightGroups:
    """Weights by layer, and the others."""
    layers = tuple(sum(weight.numel() for weight in layer.parameters()) for layer in denoiser.model.base_model.layers)
    return WeightGroups(layers=layers, root=sum(weight.numel() for weight in denoiser.parameters()) - sum(layers))
