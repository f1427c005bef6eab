"""Weights written tensor by tensor: the bytes of save_pretrained and of save_file, and few tensors at a time."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import ConversionOps, WeightConverter

from conftest import REFERENCE
from unmask.denoisers import streamed
from unmask.denoisers.loading import load_denoiser
from unmask.denoisers.streamed import save_module, save_network

MOST_TOGETHER = {"llada-tiny": 1, "dream-tiny": 1, "llada-moe-tiny": 1, "llada2-moe-tiny": 3}  # which fuses three


@pytest.fixture(scope="module")
def networks():
    return {name: load_denoiser(str(REFERENCE / "models" / name), mask_token_id=100).model for name in MOST_TOGETHER}


def files(directory):
    return {path.name: path.read_bytes() for path in directory.glob("model*")}


@pytest.mark.parametrize("name", MOST_TOGETHER)
@pytest.mark.parametrize("largest", ["50GB", "20KB"])
def test_save_network_writes_the_bytes_of_save_pretrained(largest, name, networks, tmp_path, monkeypatch):
    monkeypatch.setattr(streamed, "_LARGEST_FILE", largest)
    (tmp_path / "ours").mkdir()
    save_network(networks[name], networks[name].state_dict(keep_vars=True), tmp_path / "ours")
    networks[name].save_pretrained(tmp_path / "theirs", max_shard_size=largest)
    assert files(tmp_path / "ours") == files(tmp_path / "theirs")
    assert (len(files(tmp_path / "ours")) > 1) == (largest == "20KB")


def together(network, monkeypatch, tmp_path):
    """How many tensors are whole at once at most."""
    numbers = []
    revert = streamed.revert_weight_conversion

    def counting(network, tensors):
        numbers.extend([len(tensors)] if not any(tensor.is_meta for tensor in tensors.values()) else [])
        return revert(network, tensors)

    monkeypatch.setattr(streamed, "revert_weight_conversion", counting)
    save_network(network, network.state_dict(keep_vars=True), tmp_path)
    return max(numbers)


@pytest.mark.parametrize("name", MOST_TOGETHER)
def test_save_network_has_few_tensors_whole_at_a_time(name, networks, monkeypatch, tmp_path):
    assert together(networks[name], monkeypatch, tmp_path) == MOST_TOGETHER[name]


class Stacked(ConversionOps):
    """A tensor of each of two layers into one."""

    def convert(self, input_dict, source_patterns, target_patterns, **options):
        first, second = next(iter(input_dict.values()))
        return {target_patterns[0]: torch.stack([first, second])}


def test_save_network_takes_all_at_once_where_a_format_fuses_layers(networks, monkeypatch, tmp_path):
    network = networks["dream-tiny"]
    fused = WeightConverter(r"model.layers.\d+.input_layernorm.weight", "norms", operations=[Stacked()])
    monkeypatch.setattr(network, "_weight_conversions", [SimpleNamespace(reverse_transform=lambda: fused)])
    (tmp_path / "ours").mkdir()
    assert together(network, monkeypatch, tmp_path / "ours") == len(network.state_dict())
    network.save_pretrained(tmp_path / "theirs")
    assert files(tmp_path / "ours") == files(tmp_path / "theirs")
    assert len(load_file(tmp_path / "ours" / "model.safetensors")["norms"]) == 2


def test_save_module_writes_the_bytes_of_save_file(tmp_path):
    kinds = (torch.uint8, torch.bool, torch.bfloat16, torch.float16, torch.int8, torch.int16, torch.int32)
    module = torch.nn.Module()
    for place, kind in enumerate((*kinds, torch.float32, torch.int64, torch.float64)):
        module.register_buffer(f"{chr(ord('z') - place)} of {place}", torch.arange(6).view(2, 3).to(kind))
        module.register_buffer(f"ä{place}", torch.ones((), dtype=kind))
    module.register_buffer("none", torch.empty(0, 4))
    save_module(module, tmp_path / "ours")
    save_file(module.state_dict(), tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
