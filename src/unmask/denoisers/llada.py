"""LLaDA's layout (GSAI-ML/LLaDA-8B, LLaDA-1.5): a Llama that attends both ways, under other names (2502.09992)."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig

from unmask.errors import UserError

# Published tensor name -> name in transformers' Llama; regular expressions for `from_pretrained(key_mapping=...)`.
KEY_MAPPING = {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
    r"^model\.transformer\.blocks\.(\d+)\.q_proj\.": r"model.layers.\1.self_attn.q_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.k_proj\.": r"model.layers.\1.self_attn.k_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.v_proj\.": r"model.layers.\1.self_attn.v_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_out\.": r"model.layers.\1.self_attn.o_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.up_proj\.": r"model.layers.\1.mlp.up_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_out\.": r"model.layers.\1.mlp.down_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_norm\.": r"model.layers.\1.input_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
}

# Settings that the Llama architecture has fixed; a checkpoint that differs is another architecture.
_REQUIRED = {
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
}


def llama_config(published: dict[str, Any]) -> LlamaConfig:
    """The Llama configuration of a LLaDA config.json. Raises UserError where the architecture is not Llama's."""
    for key, value in _REQUIRED.items():
        if published.get(key, value) != value:
            raise UserError(
                f"LLaDA config has {key} = {published[key]!r}, only {value!r} is known: is this a LLaDA-8B layout?"
            )
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
