"""LLaDA-MoE with an expert bias: its router against one written out here, its tensors back as they were read."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import REFERENCE
from unmask.denoisers.head.reducers import AllLogits
from unmask.denoisers.layers.fast_layers import has_fast_layers, remove_fast_layers
from unmask.denoisers.loading import load_denoiser, save_denoiser
from unmask.errors import UserError
from unmask.plan.networks import size_of

PUBLISHED = REFERENCE / "models" / "llada-moe-tiny"
MASK = 159
LAYERS, EXPERTS, CHOSEN, HIDDEN = 2, 8, 2, 48


class NoTokenizer:
    def save_pretrained(self, directory):
        pass


def biases(scale):
    generator = torch.Generator().manual_seed(0)
    return {
        f"model.layers.{layer}.mlp.expert_bias": scale * torch.randn(EXPERTS, generator=generator)
        for layer in range(LAYERS)
    }


def checkpoint(directory, extra, **changes):
    """The published checkpoint with further tensors and an expert bias."""
    directory.mkdir(exist_ok=True)
    config = json.loads((PUBLISHED / "config.json").read_text())
    config |= {"moe_router_enable_expert_bias": True, "mask_token_id": MASK} | changes
    (directory / "config.json").write_text(json.dumps(config))
    save_file(load_file(PUBLISHED / "model.safetensors") | extra, directory / "model.safetensors")
    return directory


def logits(denoiser):
    tokens = load_file(PUBLISHED / "logits.safetensors")["input_ids"]
    with torch.no_grad():
        return denoiser(tokens, None, torch.arange(tokens.shape[1]).expand_as(tokens), AllLogits())[0]


def mixed_by_hand(tensors, layer, hidden_D):
    """Output of the experts for one token: bias added to the probabilities, and kept in the weights of the mixture."""
    at = f"model.layers.{layer}.mlp."
    score_E = torch.softmax(tensors[at + "gate.weight"] @ hidden_D, 0) + tensors[at + "expert_bias"]
    output_D = torch.zeros_like(hidden_D)
    for expert in sorted(range(EXPERTS), key=lambda expert: float(score_E[expert]))[-CHOSEN:]:
        gate, up, down = (tensors[f"{at}experts.{expert}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        output_D += score_E[expert] * (down @ (torch.nn.functional.silu(gate @ hidden_D) * (up @ hidden_D)))
    return output_D


@pytest.mark.parametrize("scale", [0.02, 0.5])
def test_experts_with_a_bias_are_chosen_and_mixed_by_probability_plus_bias(scale, tmp_path):
    source = checkpoint(tmp_path / "source", biases(scale))
    tensors, denoiser = load_file(source / "model.safetensors"), load_denoiser(str(source)).eval()
    hidden_1TD = torch.randn(1, 30, HIDDEN, generator=torch.Generator().manual_seed(1))
    for layer in range(LAYERS):
        with torch.no_grad():
            ours = denoiser.model.model.layers[layer].mlp(hidden_1TD)[0]
        expected = torch.stack([mixed_by_hand(tensors, layer, hidden_D) for hidden_D in hidden_1TD[0]])
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_expert_bias_of_zero_gives_the_published_logits(tmp_path):
    denoiser = load_denoiser(str(checkpoint(tmp_path, biases(0.0)))).eval()
    expected = load_file(PUBLISHED / "logits.safetensors")["logits"]
    torch.testing.assert_close(logits(denoiser), expected, atol=1e-4, rtol=0)
    biased = load_denoiser(str(checkpoint(tmp_path, biases(0.5)))).eval()
    assert (logits(biased) - expected).abs().max() > 0.1


def test_expert_bias_is_the_same_with_and_without_fast_layers(tmp_path):
    denoiser = load_denoiser(str(checkpoint(tmp_path, biases(0.2)))).eval()
    assert has_fast_layers(denoiser.model)
    fast = logits(denoiser)
    remove_fast_layers(denoiser.model)
    torch.testing.assert_close(logits(denoiser), fast, atol=1e-4, rtol=0)


def test_save_denoiser_writes_the_expert_bias_where_it_was(tmp_path):
    source = checkpoint(tmp_path / "source", biases(0.2))
    denoiser = load_denoiser(str(source)).eval()
    assert not any("expert_bias" in name for name, _ in denoiser.named_parameters())  # it is not trained
    save_denoiser(denoiser, NoTokenizer(), tmp_path)
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path, source))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert (tmp_path / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert torch.equal(logits(load_denoiser(str(tmp_path)).eval()), logits(denoiser))


def test_expert_bias_stays_float32_in_bf16(tmp_path):
    denoiser = load_denoiser(str(checkpoint(tmp_path, biases(0.2))), dtype=torch.bfloat16)
    exact = {name for name, tensor in denoiser.state_dict().items() if tensor.dtype == torch.float32}
    assert len(exact) == LAYERS
    assert all(name.endswith("expert_bias") for name in exact)
    assert logits(denoiser.eval()).isfinite().all()


def test_expert_bias_and_config_belong_together(tmp_path):
    with pytest.raises(UserError, match=r"lacks .*expert_bias"):
        load_denoiser(str(checkpoint(tmp_path, {})))
    with pytest.raises(UserError, match=r"has no use for .*expert_bias"):
        load_denoiser(str(checkpoint(tmp_path, biases(0.1), moe_router_enable_expert_bias=False)))


def test_expert_bias_of_dense_layers_is_none(tmp_path):
    changed = {f"model.layers.0.mlp.{part}.weight": torch.rand(96, 48) for part in ("gate_proj", "up_proj")}
    changed |= {"model.layers.0.mlp.down_proj.weight": torch.rand(48, 96)}
    directory = checkpoint(tmp_path, biases(0.2), moe_layer_freq=[0, 1])
    tensors = load_file(directory / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layers.0.mlp" not in name}
    save_file(kept | changed, directory / "model.safetensors")
    assert logits(load_denoiser(str(directory)).eval()).isfinite().all()


def test_plan_of_an_expert_bias_counts_no_parameters(tmp_path):
    plain = size_of(str(PUBLISHED), "fp32", 0)
    assert size_of(str(checkpoint(tmp_path, biases(0.2))), "fp32", 0).parameters == plain.parameters
