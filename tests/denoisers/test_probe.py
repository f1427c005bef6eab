"""Sampler and scorer see the same law whatever the mask, or the network is refused in one line."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from test_convert import VOCABULARY, autoregressive

from unmask.data.tokenization import left_pad
from unmask.denoisers.base import Denoiser, mask_of
from unmask.denoisers.convert import convert
from unmask.denoisers.head.reducers import TargetLogProb
from unmask.denoisers.loading import load_denoiser, save_denoiser
from unmask.denoisers.probe import causal_parts, check_masks, mask_difference
from unmask.errors import UserError

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "pad_token_id": 5,
    "eos_token_id": 5,
    "bos_token_id": None,
    "tie_word_embeddings": False,
}
WINDOWS = {
    "Mistral": {"sliding_window": 4},
    "Qwen2": {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1},
    "Qwen3": {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1},
    "Gemma2": {"sliding_window": 4, "final_logit_softcapping": None, "query_pre_attn_scalar": 8},
    "Gemma3": {"sliding_window": 4, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "Phi3": {"sliding_window": 4},
    "GptOss": {"sliding_window": 4, "num_local_experts": 2, "num_experts_per_tok": 1},
    "Starcoder2": {"sliding_window": 4},
    "Mixtral": {"sliding_window": 4, "num_local_experts": 2},
    "Olmo3": {"sliding_window": 4},
    "SmolLM3": {"sliding_window": 4, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2},
    "Cohere2": {"sliding_window": 4, "logit_scale": 1.0},
    "Exaone4": {"sliding_window": 4, "layer_types": ["sliding_attention"] * 2},
}


def network_of(name, **changes):
    prefix = "Gemma3Text" if name == "Gemma3" else name
    config = getattr(transformers, f"{prefix}Config")(**(SHAPE | changes))
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(config)


def write(directory, network):
    """A causal checkpoint, with the tokenizer of `autoregressive`."""
    autoregressive(directory)
    (directory / "config.json").unlink()
    network.save_pretrained(directory)


def log_probs(denoiser, tokens, mask):
    query = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
    with torch.no_grad():
        (logp,) = denoiser(tokens, mask, query, TargetLogProb(torch.arange(4).expand(tokens.numel(), -1)))
    return logp


@pytest.mark.parametrize("name", WINDOWS)
def test_convert_of_a_network_with_windows_gives_one_law(name, tmp_path, caplog):
    write(tmp_path, network_of(name, **WINDOWS[name]))
    denoiser, tokenizer = convert(str(tmp_path))
    save_denoiser(denoiser, tokenizer, tmp_path / "diffusion")
    denoiser = load_denoiser(str(tmp_path / "diffusion")).eval()
    assert "windows of 4 tokens are left out" in caplog.text
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, VOCABULARY, (length,), generator=draw).tolist() for length in (40, 31, 9)]
    tokens, attention = left_pad(rows, denoiser.eos_id)
    scorer, sampler = log_probs(denoiser, tokens, attention), log_probs(denoiser, tokens, mask_of(attention))
    torch.testing.assert_close(scorer[attention], sampler[attention], atol=1e-4, rtol=0)
    for row, ids in enumerate(rows):
        alone = log_probs(denoiser, torch.tensor([ids]), None)[0]
        torch.testing.assert_close(alone, scorer[row, -len(ids) :], atol=1e-4, rtol=0)


def test_mask_difference_sees_a_window(tmp_path):
    denoiser = Denoiser(network_of("Mistral", sliding_window=4, is_causal=False), mask_id=5, eos_id=4).eval()
    assert mask_difference(denoiser) < 1e-4
    denoiser.sees_all = False  # as it was
    assert mask_difference(denoiser) > 0.1


HYBRIDS = {
    "Lfm2": {"layer_types": ["full_attention", "conv"], "block_ff_dim": 32},
    "Jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 0,
        "num_experts": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 2,
        "use_mamba_kernels": False,
    },
    "FalconH1": {
        "mamba_d_ssm": 16,
        "mamba_n_heads": 2,
        "mamba_d_head": 8,
        "mamba_d_state": 4,
        "lm_head_multiplier": 1.0,
    },
    "Bamba": {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "attn_layer_indices": [0]},
    "GraniteMoeHybrid": {
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 4,
        "layer_types": ["attention", "mamba"],
        "shared_intermediate_size": 32,
        "num_local_experts": 0,
    },
    "Qwen3Next": {
        "layer_types": ["full_attention", "linear_attention"],
        "num_experts": 0,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
}


@pytest.mark.parametrize("name", HYBRIDS)
def test_hybrid_with_causal_layers_is_refused(name, tmp_path):
    write(tmp_path, network_of(name, **HYBRIDS[name]))
    with pytest.raises(UserError, match="stays causal"):
        convert(str(tmp_path))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    config.is_causal, config.mask_token_id = False, 5
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="stays causal"):
        load_denoiser(str(tmp_path))


class Layer(torch.nn.Module):
    """Each token feels, as much as `share`, the mean of itself and those before it."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, hidden_states):
        count = torch.arange(1, hidden_states.shape[1] + 1)[:, None]
        return hidden_states + self.share * hidden_states.cumsum(1) / count


class Body(torch.nn.Module):
    def __init__(self, share):
        super().__init__()
        self.layer = Layer(share)

    def forward(self, input_ids, use_cache):
        return self.layer(input_ids[..., None].expand(-1, -1, 4) / 20)


@pytest.mark.parametrize(("share", "parts"), [(0.01, ["Layer"]), (1e-7, [])])
def test_causal_parts_count_no_rounding(share, parts):
    """Routed to another expert, one token may change the shape of a product, and with it the rounding of others."""
    network = SimpleNamespace(base_model=Body(share), config=SimpleNamespace(vocab_size=20), device="cpu")
    assert causal_parts(network) == parts


def test_check_masks_refuses_a_network_that_does_not_run_as_a_denoiser(tmp_path):
    config = transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=1, n_head=2)
    config.max_position_embeddings, config.is_causal = 64, False
    with pytest.raises(UserError, match=r"'bloom' (does not run as a denoiser|cannot)"):
        check_masks(Denoiser(transformers.BloomForCausalLM(config).eval(), mask_id=3, eos_id=5), "bloom")


def test_check_masks_refuses_what_is_no_number():
    network = network_of("Gemma3", **WINDOWS["Gemma3"], is_causal=False).eval()
    torch.nn.init.constant_(network.model.layers[1].mlp.down_proj.weight, float("nan"))
    with pytest.raises(UserError, match="differ by nan nats"):
        check_masks(Denoiser(network, mask_id=3, eos_id=5), "broken")


def test_causal_parts_of_a_network_that_attends_both_ways_are_none():
    assert causal_parts(network_of("Llama", is_causal=False).eval()) == []
    assert "LlamaAttention" in causal_parts(network_of("Llama").eval())
