"""Fast layers: function, gradients and precision of transformers' own, in any order with others that change layers."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Glm4MoeConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from helpers.shapes import SHARED
from unmask.denoisers.adapters import add_adapters
from unmask.denoisers.base import Denoiser
from unmask.denoisers.head.reducers import AllLogits
from unmask.denoisers.layers import fast_layers as layers
from unmask.denoisers.layers.fast_layers import (
    fast_layers,
)

EXPERTS = {"moe_intermediate_size": 12, "num_experts_per_tok": 2, "norm_topk_prob": True}
CONFIGS = {
    "llama": LlamaConfig(**SHARED, attention_bias=True, mlp_bias=True),
    "qwen2": Qwen2Config(**SHARED),
    "qwen3": Qwen3Config(**SHARED),
    "qwen3_moe": Qwen3MoeConfig(**SHARED, **EXPERTS, num_experts=4),
    "glm4_moe": Glm4MoeConfig(
        **SHARED,
        **EXPERTS,
        n_routed_experts=4,
        n_shared_experts=1,
        first_k_dense_replace=1,
        use_qk_norm=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    ),
    "gelu": LlamaConfig(**SHARED, hidden_act="gelu"),
    "eager": Qwen3Config(**SHARED, attn_implementation="eager"),
    "one sliding": Qwen2Config(
        **SHARED,
        use_sliding_window=True,
        sliding_window=2,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
    ),
}


def networks(name, dtype=None):
    """A network of transformers, and the same as a denoiser's; in float64 where experts do not forbid it."""
    dtype = dtype or (torch.float32 if "moe" in name else torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = AutoModelForCausalLM.from_config(CONFIGS[name]).to(dtype).eval()
        for weight in theirs.parameters():
            weight.data += 0.2 * torch.randn_like(weight)
    ours = copy.deepcopy(theirs)
    fast_layers(ours)
    return theirs, ours


def canvas():
    tokens_FL = torch.randint(3, 20, (3, 9), generator=torch.Generator().manual_seed(0))
    return tokens_FL, torch.arange(9) >= torch.tensor([[0], [2], [4]])


def hidden(network, tokens_FL, attention_FL, **options):
    """Last hidden states of the tokens that are not pads."""
    mask = None if attention_FL is None else attention_FL.long()
    found = network.base_model(input_ids=tokens_FL, attention_mask=mask, use_cache=False, **options).last_hidden_state
    return found if attention_FL is None else found[attention_FL]


def every_column(tokens_FL):
    return torch.arange(tokens_FL.shape[1]).expand_as(tokens_FL)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_fast_layers_hidden_states_and_gradients_equal_transformers(name, padded):
    theirs, ours = networks(name)
    tokens_FL, attention_FL = canvas()
    attention_FL = attention_FL if padded else None
    found = hidden(ours, tokens_FL, attention_FL, query_columns=every_column(tokens_FL))
    expected = hidden(theirs, tokens_FL, attention_FL)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # norms of transformers are float32
    found, expected = (
        torch.autograd.grad(each.square().sum(), list(network.parameters()), allow_unused=True, materialize_grads=True)
        for each, network in ((found, ours), (expected, theirs))
    )
    for our, their in zip(found, expected, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-5 * float(their.abs().max() + 1e-3))


@pytest.mark.parametrize("name", CONFIGS)
def test_fast_layers_without_gradient_overwrite_no_input(name):
    """What is written over is not what was given."""
    _, ours = networks(name)
    tokens_FL, _ = canvas()
    expected = hidden(ours, tokens_FL, None, query_columns=every_column(tokens_FL)).detach()
    embedded_FLD = ours.get_input_embeddings()(tokens_FL).detach()
    before = embedded_FLD.clone()
    with torch.no_grad():
        found = ours.base_model(
            inputs_embeds=embedded_FLD, use_cache=False, query_columns=every_column(tokens_FL)
        ).last_hidden_state
    assert torch.equal(embedded_FLD, before)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-12 if found.dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_fast_layers_without_query_columns_are_transformers_to_the_bit(name):
    theirs, ours = networks(name, torch.float32)
    tokens_FL, attention_FL = canvas()
    assert torch.equal(hidden(ours, tokens_FL, attention_FL), hidden(theirs, tokens_FL, attention_FL))


def test_fast_layers_run_every_known_layer(monkeypatch):
    """All but those with a window; else the tests above would compare transformers with itself."""
    ran = []
    kept = layers._attend
    monkeypatch.setattr(layers, "_attend", lambda *given: (ran.append(given[0].layer_idx), kept(*given))[1])
    for name in CONFIGS:
        ran.clear()
        tokens_FL, _ = canvas()
        hidden(networks(name)[1], tokens_FL, None, query_columns=every_column(tokens_FL))
        assert ran == ([0, 2] if name == "one sliding" else [0, 1, 2])


def test_fast_layers_share_classes_that_keep_their_name():
    _, ours = networks("llama")
    first, second, last = (type(layer) for layer in ours.base_model.layers)
    assert first is second is not last
    assert {kind.__name__ for kind in (first, last)} == {"LlamaDecoderLayer"}  # by which layers are told to be split


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_fast_layers_under_autocast_equal_transformers(name):
    theirs, ours = networks(name, torch.float32)
    tokens_FL, attention_FL = canvas()
    results = []
    for network, options in ((ours, {"query_columns": every_column(tokens_FL)}), (theirs, {})):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = hidden(network, tokens_FL, attention_FL, **options)
            with torch.inference_mode():
                torch.testing.assert_close(hidden(network, tokens_FL, attention_FL, **options), found.detach())
        gradients = torch.autograd.grad(found.float().square().sum(), list(network.base_model.parameters()))
        results.append((found, gradients))
    (found, ours_all), (expected, theirs_all) = results
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.1)
    for our, their in zip(ours_all, theirs_all, strict=True):
        assert our.dtype == their.dtype
        assert (our - their).norm() <= 0.05 * their.norm()


def test_fast_layers_pass_gradients_to_adapters():
    _, ours = networks("llama", torch.float32)
    denoiser = Denoiser(ours, mask_id=2, eos_id=1)
    add_adapters(denoiser, rank=2, alpha=4)
    tokens_FL, attention_FL = canvas()
    (logits,) = denoiser(tokens_FL, attention_FL, every_column(tokens_FL), AllLogits())
    logits.square().mean().backward()
    trained = {name: weight for name, weight in denoiser.named_parameters() if weight.requires_grad}
    assert any("lora_B" in name for name in trained)
    assert all(bool(weight.grad.any()) for name, weight in trained.items() if "lora_B" in name)


def test_fast_layers_keep_less_for_the_gradient():
    """Of a norm its input alone, of a gate not what it makes of it: two widths and an MLP's less in every layer but the
    last, which gathers."""

    def kept(network, **options):
        weights = {weight.untyped_storage()._cdata for weight in network.parameters()}
        sizes = {}

        def note(tensor):
            if tensor.untyped_storage()._cdata not in weights:
                sizes[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            found = hidden(network, tokens_FL, None, **options)
        assert found.grad_fn is not None  # and what is kept still is, so no storage is counted under another's name
        return sum(sizes.values())

    tokens_FL, _ = canvas()
    theirs, ours = networks("llama", torch.float32)
    less = kept(theirs) - kept(ours, query_columns=every_column(tokens_FL))
    floats = tokens_FL.numel() * (2 * SHARED["hidden_size"] + SHARED["intermediate_size"])
    assert less >= 4 * (SHARED["num_hidden_layers"] - 1) * floats
