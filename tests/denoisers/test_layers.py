"""Layers with fewer passes over memory: the function, the gradients and the precision of transformers' own."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, Glm4MoeConfig, LlamaConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig
from transformers.models.glm4_moe.modeling_glm4_moe import apply_rotary_pos_emb
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from unmask.denoisers.adapters import add_adapters
from unmask.denoisers.base import Denoiser
from unmask.denoisers.layers import fast as layers
from unmask.denoisers.layers.elementwise import gated, rms_norm, rotate

SHARED = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "is_causal": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
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
    denoiser = Denoiser(ours, mask_id=2, eos_id=1)
    assert denoiser.queries_last_layer
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


# ---- element by element ----


@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 4), (1, 1)])
def test_norms_are_those_of_transformers(shape):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    norm = LlamaRMSNorm(shape[-1], eps=1e-5).double()
    norm.weight.data = torch.randn(shape[-1], generator=generator, dtype=torch.float64)
    ours = rms_norm(x, norm.weight, norm.variance_epsilon)
    torch.testing.assert_close(ours, norm(x), rtol=1e-6, atol=1e-6)  # theirs has its mean in float32
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-5), (x, norm.weight))


def test_a_norm_of_nothing_is_nothing_and_has_a_gradient():
    x = torch.zeros(2, 4, requires_grad=True)
    rms_norm(x, torch.ones(4), 1e-6).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((2, 4), 1e3))


@pytest.mark.parametrize("width", [8, 4])
def test_rotations_are_those_of_transformers(width):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 5, 3, 8, generator=generator, dtype=torch.float64).transpose(1, 2).requires_grad_()
    angle = torch.randn(2, 5, width // 2, generator=generator, dtype=torch.float64).repeat(1, 1, 2)
    cos, sin = angle.cos(), angle.sin()
    theirs, _ = apply_rotary_pos_emb(x, x, cos, sin)
    torch.testing.assert_close(rotate(x, cos[:, None], sin[:, None]), theirs)
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos[:, None], sin[:, None]), (x,))


def test_half_precision_is_that_of_transformers_or_better():
    generator = torch.Generator().manual_seed(3)
    x = (3 * torch.randn(64, 256, generator=generator)).bfloat16()
    norm = LlamaRMSNorm(256).bfloat16()
    norm.weight.data = torch.rand(256, generator=generator).bfloat16()
    true = rms_norm(x.double(), norm.weight.double(), 1e-6)
    ours = rms_norm(x, norm.weight, 1e-6)
    assert ours.dtype == torch.bfloat16
    assert (ours - true).abs().max() <= 1.01 * (norm(x) - true).abs().max()
    angle = (6 * torch.rand(64, 128, generator=generator)).repeat(1, 2)
    cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()
    (true,), _ = apply_rotary_pos_emb(x[None].double(), x[None].double(), cos.double(), sin.double(), unsqueeze_dim=0)
    (theirs,), _ = apply_rotary_pos_emb(x[None], x[None], cos, sin, unsqueeze_dim=0)
    ours = rotate(x, cos, sin)
    assert ours.dtype == torch.bfloat16
    assert (ours - true).abs().max() <= 1.01 * (theirs - true).abs().max()


@pytest.mark.parametrize(
    ("x_type", "weight_type"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float16),
    ],
)
def test_gradients_of_norms_in_half_precision_are_those_in_double(x_type, weight_type):
    generator = torch.Generator().manual_seed(5)
    x, grad_logp = torch.randn(2, 64, 256, generator=generator).to(x_type)
    x[0] *= 3e4 / x[0].abs().max()  # a massive activation; times its grad_logp it is beyond float16
    grad_logp = (30 * grad_logp).to(torch.promote_types(x_type, weight_type))
    weight = torch.rand(256, generator=generator).to(weight_type)
    given = (x.requires_grad_(), weight.requires_grad_())
    exact = tuple(each.detach().double().requires_grad_() for each in given)
    ours = rms_norm(*given, 1e-6)
    assert ours.dtype == grad_logp.dtype
    found = torch.autograd.grad(ours, given, grad_logp)
    expected = torch.autograd.grad(rms_norm(*exact, 1e-6), exact, grad_logp.double())
    for our, true, each in zip(found, expected, given, strict=True):
        assert our.dtype == each.dtype
        assert (our - true).norm() <= 0.01 * true.norm()


@torch.no_grad()
def test_gates_are_the_formula_with_and_without_gradient():
    gate, up = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = gate * gate.sigmoid() * up
    torch.testing.assert_close(gated(gate.clone(), up), expected)
    with torch.enable_grad():
        torch.testing.assert_close(gated(gate, up), expected)
        assert torch.autograd.gradcheck(gated, (gate.requires_grad_(), up.requires_grad_()))


# ---- layers ----


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_and_gradients_are_those_of_transformers(name, padded):
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
def test_nothing_changes_without_gradient(name):
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
def test_asked_nothing_layers_are_those_of_transformers_to_the_bit(name):
    theirs, ours = networks(name, torch.float32)
    tokens_FL, attention_FL = canvas()
    assert torch.equal(hidden(ours, tokens_FL, attention_FL), hidden(theirs, tokens_FL, attention_FL))


def test_known_layers_run_as_here(monkeypatch):
    """All but those with a window; else the tests above would compare transformers with itself."""
    ran = []
    kept = layers._attend
    monkeypatch.setattr(layers, "_attend", lambda *given: (ran.append(given[0].layer_idx), kept(*given))[1])
    for name in CONFIGS:
        ran.clear()
        tokens_FL, _ = canvas()
        hidden(networks(name)[1], tokens_FL, None, query_columns=every_column(tokens_FL))
        assert ran == ([0, 2] if name == "one sliding" else [0, 1, 2])


def test_other_attention_and_wrapped_layers_are_left_alone():
    network = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS["llama"]))
    network.config._attn_implementation = "flex_attention"
    assert not layers.use_fast_layers(network)
    network.config._attn_implementation = "sdpa"
    last = network.base_model.layers[-1]
    last.forward = last.forward
    assert not layers.use_fast_layers(network)


def test_alike_layers_share_a_class_under_its_own_name():
    _, ours = networks("llama")
    first, second, last = (type(layer) for layer in ours.base_model.layers)
    assert first is second is not last
    assert {kind.__name__ for kind in (first, last)} == {"LlamaDecoderLayer"}  # by which layers are told to be split


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_autocast_is_that_of_transformers(name):
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


def test_adapters_are_trained_beside_frozen_layers():
    _, ours = networks("llama", torch.float32)
    denoiser = Denoiser(ours, mask_id=2, eos_id=1)
    add_adapters(denoiser, rank=2, alpha=4)
    tokens_FL, attention_FL = canvas()
    (logits,) = denoiser(tokens_FL, attention_FL, every_column(tokens_FL), lambda logits, _: (logits,))
    logits.square().mean().backward()
    trained = {name: weight for name, weight in denoiser.named_parameters() if weight.requires_grad}
    assert any("lora_B" in name for name in trained)
    assert all(bool(weight.grad.any()) for name, weight in trained.items() if "lora_B" in name)


def test_less_is_kept_for_the_gradient():
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
