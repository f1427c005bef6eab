"""Denoiser: logits of the whole model, of a network that stays as it was; query columns and cache windows."""

import copy
import pickle

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    Olmo2Config,
    Qwen2Config,
    Qwen3Config,
)

from helpers.small import prompts_of, small_denoiser
from unmask.denoisers.base import Denoiser, mask_of
from unmask.denoisers.head.reducers import AllLogits
from unmask.denoisers.key_values import CacheWindow, KeyValues
from unmask.denoisers.layers.fast_layers import fast_layers_or_log, remove_fast_layers
from unmask.errors import UserError

VOCABULARY, LENGTH = 20, 9
SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "is_causal": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
KNOWN = {
    "llama": LlamaConfig(**SHARED, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SHARED, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SHARED, num_key_value_heads=2, head_dim=8),
}
OTHERS = {
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=3, n_head=4, n_positions=32, is_causal=False, eos_token_id=1
    ),
    "olmo2": Olmo2Config(**SHARED, num_key_value_heads=2),
    "gemma3": Gemma3TextConfig(**SHARED, num_key_value_heads=2, head_dim=8, layer_types=["full_attention"] * 3),
}


def denoiser_of(config, **options) -> Denoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config)
        for weight in network.parameters():
            weight.data += 0.2 * torch.randn_like(weight)
    fast_layers_or_log(network)
    return Denoiser(network, mask_id=2, eos_id=1, **options).eval()


def canvas():
    tokens_FL = torch.randint(3, VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    return tokens_FL, torch.arange(LENGTH) >= torch.tensor([[0], [2], [4]])


QUERY_FA = torch.tensor([[8, 5], [6, 7], [4, 4]])


@pytest.mark.parametrize(
    ("config", "value"),
    [
        (GraniteConfig(**SHARED, logits_scaling=8.0), "logits_scaling 8.0"),
        (CohereConfig(**SHARED, logit_scale=0.0625), "logit_scale 0.0625"),
        (Gemma2Config(**SHARED, final_logit_softcapping=30.0), "final_logit_softcapping 30.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_denoiser_refuses_logits_that_the_head_alone_does_not_give(config, value):
    with pytest.raises(UserError, match=f"^{value} .* in config.json"):
        denoiser_of(config)


@pytest.mark.parametrize(
    "config",
    [
        GraniteConfig(**SHARED, logits_scaling=1.0),
        CohereConfig(**SHARED, logit_scale=1.0),
        Gemma2Config(**SHARED, num_key_value_heads=2, final_logit_softcapping=None),
        *KNOWN.values(),
        *OTHERS.values(),
    ],
    ids=lambda config: config.model_type,
)
def test_denoiser_logits_equal_the_whole_model(config):
    denoiser = denoiser_of(config)
    tokens_FL, _ = canvas()
    with torch.no_grad():
        (ours,) = denoiser(tokens_FL, None, torch.arange(LENGTH).expand(3, -1), AllLogits())
        theirs = denoiser.model(input_ids=tokens_FL, use_cache=False).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# ---- the network is not changed ----


def bare(config=KNOWN["llama"]):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def test_denoiser_changes_nothing_of_its_network():
    network = bare()
    before = {name: (type(module), dict(vars(module))) for name, module in network.named_modules()}
    denoiser = Denoiser(network, mask_id=2, eos_id=1)
    tokens_FL, attention_FL = canvas()
    (logits,) = denoiser(tokens_FL, attention_FL, QUERY_FA, AllLogits())
    logits.sum().backward()
    assert not denoiser.queries_last_layer
    assert {name: (type(module), dict(vars(module))) for name, module in network.named_modules()} == before
    assert network.get_input_embeddings().padding_idx == 0


def test_denoiser_calls_hooks_on_every_part():
    network, called = bare(), []
    layer = network.base_model.layers[1]
    parts = {"layer": layer, "norm": layer.input_layernorm, "attention": layer.self_attn, "mlp": layer.mlp}
    for name, part in parts.items():
        part.register_forward_hook(lambda *given, name=name: called.append(name))
    tokens_FL, _ = canvas()
    Denoiser(network, mask_id=2, eos_id=1)(tokens_FL, None, QUERY_FA, AllLogits())
    assert sorted(called) == sorted(parts)


def test_denoiser_and_its_layers_can_be_pickled():
    denoiser = Denoiser(bare(), mask_id=2, eos_id=1)
    tokens_FL, _ = canvas()
    (first,) = denoiser(tokens_FL, None, QUERY_FA, AllLogits())
    again = pickle.loads(pickle.dumps(denoiser))  # noqa: S301
    assert torch.equal(again(tokens_FL, None, QUERY_FA, AllLogits())[0], first)
    pickle.dumps(denoiser.model.base_model.layers[0])


def pad_gradient(network, tokens_FL):
    (logits,) = Denoiser(network, mask_id=2, eos_id=1)(tokens_FL, None, QUERY_FA, AllLogits())
    gradients = torch.autograd.grad(logits.square().sum(), list(network.parameters()))
    return gradients, gradients[0][0]


@pytest.mark.parametrize("tied", [False, True])
def test_denoiser_pad_token_learns(tied):
    """As in a network whose embedding has no padding_idx, to the bit."""
    config = LlamaConfig(**SHARED, tie_word_embeddings=tied)
    tokens_FL, _ = canvas()
    tokens_FL[:, 4] = config.pad_token_id
    network, plain = bare(config), bare(config)
    assert network.get_input_embeddings().padding_idx == 0
    plain.get_input_embeddings().padding_idx = None
    (ours, of_pad), (theirs, _) = (pad_gradient(each, tokens_FL) for each in (network, plain))
    assert of_pad.abs().max() > 0
    assert all(torch.equal(our, their) for our, their in zip(ours, theirs, strict=True))


def test_denoiser_restores_padding_idx_after_an_error():
    network = bare()
    with pytest.raises(IndexError):
        Denoiser(network, mask_id=2, eos_id=1)(torch.full((1, 3), VOCABULARY), None, torch.tensor([[1]]), AllLogits())
    assert network.get_input_embeddings().padding_idx == 0


# ---- the last layer at query columns ----


@pytest.mark.parametrize("block_length", [None, 3])
@pytest.mark.parametrize("name", KNOWN)
def test_denoiser_with_fast_layers_equals_without(name, block_length):
    denoiser = denoiser_of(KNOWN[name], block_length=block_length)
    assert denoiser.queries_last_layer
    tokens_FL, attention_FL = canvas()
    (asked,) = denoiser(tokens_FL, attention_FL, QUERY_FA, AllLogits())
    ours = torch.autograd.grad(asked.square().sum(), list(denoiser.parameters()))
    remove_fast_layers(denoiser.model)
    (whole,) = denoiser(tokens_FL, attention_FL, QUERY_FA, AllLogits())
    torch.testing.assert_close(asked, whole, rtol=1e-4, atol=1e-5)
    theirs = torch.autograd.grad(whole.square().sum(), list(denoiser.parameters()))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-3, atol=1e-4 * float(their.abs().max() + 1))


@pytest.mark.parametrize("name", OTHERS)
def test_denoiser_of_unknown_layers_runs_the_whole_last_layer(name):
    denoiser = denoiser_of(OTHERS[name])
    assert not denoiser.queries_last_layer
    tokens_FL, attention_FL = canvas()
    (asked,) = denoiser(tokens_FL, attention_FL, QUERY_FA, AllLogits())
    assert asked.shape == (3, 2, VOCABULARY)


@pytest.mark.parametrize("block_length", [None, 3])
@pytest.mark.parametrize("name", [*KNOWN, "olmo2"])
def test_denoiser_masks_are_the_same_under_eager_attention(name, block_length):
    """transformers' eager attention adds masks, so True would mean 1 and False 0."""
    config = (KNOWN | OTHERS)[name]
    tokens_FL, attention_FL = canvas()
    reduced = []
    for kind in ("sdpa", "eager"):
        denoiser = denoiser_of(config, block_length=block_length)
        denoiser.model.set_attn_implementation(kind)
        reduced.append(denoiser(tokens_FL, mask_of(attention_FL), QUERY_FA, AllLogits())[0])
    torch.testing.assert_close(*reduced, rtol=1e-4, atol=1e-5)


def test_denoiser_copies_and_second_denoisers_have_fast_layers():
    denoiser = denoiser_of(KNOWN["llama"])
    again = Denoiser(denoiser.model, mask_id=2, eos_id=1)
    assert again.queries_last_layer
    copied = copy.deepcopy(denoiser)
    with torch.no_grad():
        copied.model.model.layers[-1].mlp.down_proj.weight.mul_(3)
    tokens_FL, attention_FL = canvas()
    (ours,), (theirs,) = (each(tokens_FL, attention_FL, QUERY_FA, AllLogits()) for each in (denoiser, copied))
    assert not torch.allclose(ours, theirs)


# ---- cache windows ----


@torch.no_grad()
@pytest.mark.parametrize(
    "columns", [slice(4, 7), torch.tensor([[4, 5, 8], [5, 6, 7], [4, 6, 7]])], ids=["slice", "own"]
)
@pytest.mark.parametrize("name", KNOWN)
def test_cache_window_rerun_on_the_same_tokens_changes_nothing(name, columns):
    denoiser = denoiser_of(KNOWN[name])
    tokens_FL, attention_FL = canvas()
    query_FA = torch.tensor([[4, 5], [5, 6], [6, 4]])
    mask, cache = mask_of(attention_FL), KeyValues()
    whole = CacheWindow(cache=cache, columns=slice(0, LENGTH), end=LENGTH)
    (first,) = denoiser(tokens_FL, mask, query_FA, AllLogits(), part=whole)
    (plain,) = denoiser(tokens_FL, mask, query_FA, AllLogits())
    again = CacheWindow(cache=cache, columns=columns, end=LENGTH)
    (second,) = denoiser(tokens_FL, mask, query_FA, AllLogits(), part=again)
    torch.testing.assert_close(first, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second, plain, rtol=1e-4, atol=1e-5)
    cache.take(torch.tensor([2, 0]))
    pair = torch.tensor([2, 0])
    kept = columns if isinstance(columns, slice) else columns[pair]
    part = CacheWindow(cache=cache, columns=kept, end=LENGTH)
    (third,) = denoiser(tokens_FL[pair], mask[pair], query_FA[pair], AllLogits(), part=part)
    torch.testing.assert_close(third, plain[pair], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_cache_window_keeps_keys_and_values_of_columns_that_are_not_run():
    """A changed token counts where its column is run, and not before."""
    denoiser = small_denoiser()
    tokens_FL = torch.nn.functional.pad(prompts_of([[1, 2, 3]]).tokens_NP, (0, 4), value=9)
    query_FA, cache = torch.tensor([[4, 5]]), KeyValues()
    (before,) = denoiser(
        tokens_FL, None, query_FA, AllLogits(), part=CacheWindow(cache=cache, columns=slice(0, 7), end=7)
    )
    changed_FL = tokens_FL.clone()
    changed_FL[:, 1] = 7
    (stale,) = denoiser(
        changed_FL, None, query_FA, AllLogits(), part=CacheWindow(cache=cache, columns=slice(3, 7), end=7)
    )
    (fresh,) = denoiser(
        changed_FL, None, query_FA, AllLogits(), part=CacheWindow(cache=cache, columns=slice(0, 7), end=7)
    )
    torch.testing.assert_close(stale, before, rtol=1e-4, atol=1e-4)
    assert (fresh - before).abs().max() > 0.1
