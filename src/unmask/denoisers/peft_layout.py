"""Low-rank adapters in the files of peft, under the names of the published checkpoint that they belong to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from unmask.denoisers.formats import format_of
from unmask.denoisers.intact import read_json
from unmask.denoisers.plain import loader_of, read_config

_ADAPTER = re.compile(r"model\.(.+)\.lora_([AB])\.default\.weight")
_LAYER = re.compile(r".*?\.\d+\.")
Pair = tuple[Tensor, Tensor]  # A [rank, inputs] and B [outputs, rank] of a layer: alpha / rank · B A is added to it


def write_peft_files(
    adapters: Path, model: Path, directory: Path, *, rank: int, alpha: int, base: str | None, model_format: str | None
) -> None:
    """Write adapter_config.json and adapter_model.safetensors, which `peft.PeftModel.from_pretrained` reads.

    `adapters`: the file that a run wrote (`adapters_of`); `model`: the directory of the checkpoint around it, in the
    layout that its base has; `base`: what peft is told of that one's name. Layers that the published layout fuses have
    one adapter of all their ranks, with the same product.
    """
    from peft import LoraConfig

    pairs = published_pairs(load_file(adapters), described_network(model, model_format))
    ranks = {name: len(a) for name, (a, _) in pairs.items() if len(a) != rank}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=sorted(pairs),
        rank_pattern=ranks,
        alpha_pattern={name: alpha * own // rank for name, own in ranks.items()},
        base_model_name_or_path=base,
        inference_mode=True,
    )
    config.save_pretrained(str(directory))
    tensors = {}
    for name, (a, b) in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.contiguous()
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def described_network(model: Path, model_format: str | None) -> Any:
    """The network of a checkpoint without its weights, which knows by what names they are published."""
    published = read_json(model / "config.json")
    checkpoint_format = format_of(published, model_format)
    if checkpoint_format is not None:
        return checkpoint_format.described(published)
    with torch.device("meta"):
        return loader_of(published).from_config(read_config(model, model.name))


def published_pairs(adapters: Mapping[str, Tensor], network: Any) -> dict[str, Pair]:
    """A and B of each published layer; `adapters`: those of the network's, by the names that a run gives them."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in adapters.items():
        if match := _ADAPTER.fullmatch(name):
            found.setdefault(match[1], {})[match[2]] = tensor
    together: dict[str, dict[str, Pair]] = {}  # layers that a published one may be made of lie in one decoder layer
    for name, pair in found.items():
        layer = _LAYER.match(name)
        together.setdefault(layer[0] if layer else name, {})[name] = (pair["A"], pair["B"])
    return {name: pair for pairs in together.values() for name, pair in _fused(pairs, network).items()}


def _fused(pairs: dict[str, Pair], network: Any) -> dict[str, Pair]:
    """Pairs of the published layers that some of the network's become, whose rows published layouts put together.

    Each B stands in columns of its own, and where its mark comes to lie, that layer is a part.
    """
    ends = torch.tensor([len(a) for a, _ in pairs.values()]).cumsum(0).tolist()
    columns = {name: slice(end - len(pairs[name][0]), end) for name, end in zip(pairs, ends, strict=True)}
    placed, marks = {}, {}
    for name, (_, b) in pairs.items():
        placed[f"{name}.weight"], marks[f"{name}.weight"] = torch.zeros(2, len(b), ends[-1])
        placed[f"{name}.weight"][:, columns[name]] = b
        marks[f"{name}.weight"][:, columns[name]] = 1
    marked, published = revert_weight_conversion(network, marks), {}
    for name, b in revert_weight_conversion(network, placed).items():
        parts = [part for part in pairs if marked[name][:, columns[part]].any()]
        whole_a = torch.cat([pairs[part][0] for part in parts])
        whole_b = torch.cat([b[:, columns[part]] for part in parts], dim=1)
        published[name.removesuffix(".weight")] = (whole_a, whole_b)
    return published
