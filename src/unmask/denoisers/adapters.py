"""Low-rank adapters (LoRA 2106.09685): only they train, and without them the denoiser is its own reference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unmask.denoisers.base import Denoiser
from unmask.denoisers.four_bit import dense

_FILE = "adapters.safetensors"


def add_adapters(denoiser: Denoiser, rank: int, alpha: int) -> None:
    """Adapters alpha/rank · B A on every linear layer but the head, B = 0 at first; all other weights are frozen.

    Adapters are float32, whatever the frozen weights are: small updates must not be lost.
    """
    from peft import LoraConfig, inject_adapter_in_model

    denoiser.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear"), denoiser.model)
    for weight in denoiser.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


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


def merged_state(denoiser: Denoiser) -> dict[str, Tensor] | None:
    """The network's weights with the adapters added in, under their own names; None where there are no adapters.

    Of a base in 4 bits it is that base as it computes, written out: what was trained, not the checkpoint it came from.
    """
    if not has_adapters(denoiser):
        return None
    adapted, state = dict(_layers(denoiser)), {}
    for name, weight in denoiser.model.state_dict().items():
        layer, _, kind = name.rpartition(".base_layer.")
        if kind == "weight":
            base = dense(adapted[layer].get_base_layer())
            state[f"{layer}.weight"] = (base + adapted[layer].get_delta_weight("default")).to(base.dtype)
        elif ".lora_" not in name and not kind.startswith("weight."):  # scales of 4-bit weights
            state[name.replace(".base_layer.", ".")] = weight
    return state


@torch.no_grad()
def merge_adapters(denoiser: Denoiser) -> None:
    """Add the adapters into the network's weights and take them out of it: it has its own layers again."""
    for name, layer in list(_layers(denoiser)):
        base = layer.get_base_layer()
        base.weight += layer.get_delta_weight("default").to(base.weight.dtype)
        above, _, last = name.rpartition(".")
        setattr(denoiser.model.get_submodule(above), last, base)
    del denoiser.model.peft_config


def save_adapters(denoiser: Denoiser, directory: Path) -> None:
    """Write the adapters' weights to adapters.safetensors in a directory, for `load_adapters`."""
    trained = {name: weight for name, weight in denoiser.named_parameters() if weight.requires_grad}
    save_file({name: weight.detach().contiguous() for name, weight in trained.items()}, directory / _FILE)


def load_adapters(denoiser: Denoiser, directory: Path) -> None:
    """Load adapters that `save_adapters` wrote into a denoiser with adapters of the same rank."""
    denoiser.load_state_dict(load_file(directory / _FILE), strict=False)
