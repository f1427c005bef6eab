"""Low-rank adapters (LoRA 2106.09685): only they train, and without them the denoiser is its own reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unmask.denoisers.base import Denoiser
from unmask.denoisers.four_bit import dense

ADAPTERS_FILE = "adapters.safetensors"


def add_adapters(denoiser: Denoiser, rank: int, alpha: int) -> None:
    """Adapters alpha/rank · B A on every linear layer but the head, B = 0 at first; all other weights are frozen.

    Adapters are float32, whatever the frozen weights are: small updates must not be lost.
    """
    from peft import LoraConfig, inject_adapter_in_model

    denoiser.requires_grad_(False)
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=alpha, target_modules=_linear_names(denoiser)), denoiser.model
    )
    for weight in denoiser.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def _linear_names(denoiser: Denoiser) -> list[str]:
    """Linear layers of the network but its head.

    peft's own "all-linear" takes experts and routers too where it knows the network, in a way that merges differently.
    """
    head = denoiser.model.get_output_embeddings()
    return [
        name for name, module in denoiser.model.named_modules() if isinstance(module, nn.Linear) and module is not head
    ]


def _layers(denoiser: Denoiser) -> Iterator[tuple[str, Any]]:
    """Adapted layers of the network by name."""
    from peft.tuners.lora import LoraLayer

    for name, module in denoiser.model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


class AdaptersOff(nn.Module):
    """The denoiser without its adapters: the base model, at no cost in memory."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self._adapted = [denoiser]  # in a list: its weights are not this module's own

    def forward(self, *arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        """As `Denoiser.forward`."""
        (denoiser,) = self._adapted
        layers = [layer for _, layer in _layers(denoiser)]
        try:
            for layer in layers:
                layer.enable_adapters(enabled=False)
            reduced: tuple[Tensor, ...] = denoiser(*arguments, **options)
        finally:
            for layer in layers:
                layer.enable_adapters(enabled=True)
        return reduced


def has_adapters(denoiser: Denoiser) -> bool:
    """Whether `add_adapters` was called; does not import peft."""
    return hasattr(denoiser.model, "peft_config")


class MergedWeights(Mapping[str, Tensor]):
    """Weights and buffers of the network by name; adapters are added into those that they adapt, when one is asked for.

    Of a base in 4 bits it is that base as it computes, written out: what was trained, not the checkpoint it came from.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        adapted = dict(_layers(denoiser)) if has_adapters(denoiser) else {}
        self._found: dict[str, Any] = {}  # a layer where there are adapters, else the tensor
        for name, weight in denoiser.model.state_dict(keep_vars=True).items():
            layer, _, kind = name.rpartition(".base_layer.")
            if kind == "weight":
                self._found[f"{layer}.weight"] = adapted[layer]
            elif ".lora_" not in name and not kind.startswith("weight."):  # scales of 4-bit weights
                self._found[name.replace(".base_layer.", ".")] = weight

    @torch.no_grad()
    def __getitem__(self, name: str) -> Tensor:
        found: Any = self._found[name]
        if isinstance(found, Tensor):
            return found
        base = dense(found.get_base_layer())
        merged: Tensor = (base + found.get_delta_weight("default")).to(base.dtype)
        return merged

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


@torch.no_grad()
def merge_adapters(denoiser: Denoiser) -> None:
    """Add the adapters into the network's weights and take them out of it: it has its own layers again."""
    for name, layer in list(_layers(denoiser)):
        base = layer.get_base_layer()
        base.weight += layer.get_delta_weight("default").to(base.weight.dtype)
        above, _, last = name.rpartition(".")
        setattr(denoiser.model.get_submodule(above), last, base)
    del denoiser.model.peft_config


def adapters_of(denoiser: Denoiser) -> dict[str, Tensor]:
    """The adapters' weights, for ADAPTERS_FILE; none where there are no adapters."""
    if not has_adapters(denoiser):
        return {}
    trained = {name: weight for name, weight in denoiser.named_parameters() if weight.requires_grad}
    return {name: weight.detach().contiguous() for name, weight in trained.items()}


def load_adapters(denoiser: Denoiser, directory: Path) -> None:
    """Load what `adapters_of` gave, from a checkpoint, into a denoiser with adapters of the same rank."""
    denoiser.load_state_dict(load_file(directory / ADAPTERS_FILE), strict=False)
