"""LLaDA's checkpoint format (GSAI-ML/LLaDA-8B, LLaDA-1.5): a Llama that attends both ways (2502.09992).

Settings and tensors have names of their own.
"""

from __future__ import annotations

from transformers import LlamaConfig, LlamaForCausalLM

from unmask.denoisers.formats.base import CheckpointFormat, Published

_BLOCK = r"^model\.transformer\.blocks\.(\d+)\."


def _config(published: Published) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=published.get("embedding_size") or published["vocab_size"],
        hidden_size=published["d_model"],
        intermediate_size=published["mlp_hidden_size"],
        num_hidden_layers=published["n_layers"],
        num_attention_heads=published["n_heads"],
        num_key_value_heads=published.get("n_kv_heads") or published["n_heads"],
        max_position_embeddings=published["max_sequence_length"],
        rms_norm_eps=published["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": published["rope_theta"]},
        tie_word_embeddings=published["weight_tying"],
        pad_token_id=published.get("pad_token_id"),
        eos_token_id=published.get("eos_token_id"),
        bos_token_id=None,
        attention_bias=False,
        mlp_bias=False,
        is_causal=False,
        use_cache=False,
    )


LLADA = CheckpointFormat(
    name="LLaDA",
    matches=lambda published: published.get("model_type") == "llada",
    network=LlamaForCausalLM,
    config=_config,
    fixed={
        "block_type": "llama",
        "layer_norm_type": "rms",
        "activation_type": "silu",
        "rope": True,
        "alibi": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "attention_layer_norm": False,
        "input_emb_norm": False,
        "scale_logits": False,
    },
    renaming={
        r"^model\.transformer\.wte\.": "model.embed_tokens.",
        r"^model\.transformer\.ln_f\.": "model.norm.",
        r"^model\.transformer\.ff_out\.": "lm_head.",
        _BLOCK + r"q_proj\.": r"model.layers.\1.self_attn.q_proj.",
        _BLOCK + r"k_proj\.": r"model.layers.\1.self_attn.k_proj.",
        _BLOCK + r"v_proj\.": r"model.layers.\1.self_attn.v_proj.",
        _BLOCK + r"attn_out\.": r"model.layers.\1.self_attn.o_proj.",
        _BLOCK + r"ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
        _BLOCK + r"up_proj\.": r"model.layers.\1.mlp.up_proj.",
        _BLOCK + r"ff_out\.": r"model.layers.\1.mlp.down_proj.",
        _BLOCK + r"attn_norm\.": r"model.layers.\1.input_layernorm.",
        _BLOCK + r"ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
    },
)
