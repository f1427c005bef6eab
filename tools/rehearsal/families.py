"""The families of published checkpoints that stand-ins are made of: special tokens, chat template, layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WIDTH, MLP, LAYERS, HEADS = 96, 192, 3, 6
MAX_LENGTH = 1024  # tokens: three solved puzzles before a prompt fit even where the tokenizer spells them out

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One published family, small.

    config: config.json for a vocabulary size and the ids of the special tokens. shapes: its tensors by name.
    """

    name: str
    specials: tuple[str, ...]  # every special token, in the tokenizer's order
    bos: str
    eos: str
    mask: str
    turn_end: str
    template: str
    words: tuple[str, ...]  # that the template writes between special tokens
    config: Callable[[int, dict[str, int]], dict[str, Any]]
    shapes: Callable[[int], Shapes]


# LLaDA-8B-Instruct: the template writes the assistant's header whether it is asked to or not -------------------------

_LLADA_TEMPLATE = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)


def _llada_config(vocabulary: int, ids: dict[str, int]) -> dict[str, Any]:
    return {
        "activation_type": "silu",
        "alibi": False,
        "alibi_bias_max": 8.0,
        "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "attention_layer_norm_with_affine": True,
        "auto_map": {
            "AutoConfig": "configuration_llada.LLaDAConfig",
            "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
            "AutoModel": "modeling_llada.LLaDAModelLM",
        },
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": WIDTH,
        "embedding_dropout": 0.0,
        "embedding_size": vocabulary,
        "eos_token_id": ids["<|endoftext|>"],
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "init_cutoff_factor": None,
        "init_device": "meta",
        "init_fn": "mitchell",
        "init_std": 0.02,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": ids["<|mdm_mask|>"],
        "max_sequence_length": MAX_LENGTH,
        "mlp_hidden_size": MLP,
        "mlp_ratio": 4,
        "model_type": "llada",
        "multi_query_attention": None,
        "n_heads": HEADS,
        "n_kv_heads": HEADS,
        "n_layers": LAYERS,
        "pad_token_id": ids["<|endoftext|>"],
        "precision": "amp_bf16",
        "residual_dropout": 0.0,
        "rms_norm_eps": 1e-05,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 500000.0,
        "scale_logits": False,
        "transformers_version": "4.46.3",
        "use_cache": False,
        "vocab_size": vocabulary,
        "weight_tying": False,
    }


def _llada_shapes(vocabulary: int) -> Shapes:
    shapes: Shapes = {
        "model.transformer.wte.weight": (vocabulary, WIDTH),
        "model.transformer.ff_out.weight": (vocabulary, WIDTH),
        "model.transformer.ln_f.weight": (WIDTH,),
    }
    for layer in range(LAYERS):
        block = f"model.transformer.blocks.{layer}"
        shapes |= {f"{block}.{name}.weight": (WIDTH, WIDTH) for name in ("q_proj", "k_proj", "v_proj", "attn_out")}
        shapes |= {f"{block}.{name}.weight": (MLP, WIDTH) for name in ("ff_proj", "up_proj")}
        shapes |= {f"{block}.{name}.weight": (WIDTH,) for name in ("attn_norm", "ff_norm")}
        shapes[f"{block}.ff_out.weight"] = (WIDTH, MLP)
    return shapes


LLADA = Family(
    name="llada",
    specials=(
        "<|startoftext|>",
        "<|endoftext|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|mdm_mask|>",
    ),
    bos="<|startoftext|>",
    eos="<|endoftext|>",
    mask="<|mdm_mask|>",
    turn_end="<|eot_id|>",
    template=_LLADA_TEMPLATE,
    words=("user", "assistant", "system", "\n\n"),
    config=_llada_config,
    shapes=_llada_shapes,
)

# Dream-v0-Instruct-7B: Qwen2.5's ChatML -----------------------------------------------------------------------------

_DREAM_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_DREAM_KEYS = 2


def _dream_config(vocabulary: int, ids: dict[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["DreamModel"],
        "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
        "bos_token_id": ids["<|beginoftext|>"],
        "eos_token_id": ids["<|endoftext|>"],
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": MLP,
        "mask_token_id": ids["<|mask|>"],
        "max_position_embeddings": MAX_LENGTH,
        "max_window_layers": LAYERS,
        "model_type": "Dream",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": _DREAM_KEYS,
        "pad_token_id": ids["<|endoftext|>"],
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.46.2",
        "use_cache": False,
        "use_sliding_window": False,
        "vocab_size": vocabulary,
    }


def _dream_shapes(vocabulary: int) -> Shapes:
    narrow = WIDTH // HEADS * _DREAM_KEYS
    shapes: Shapes = {
        "lm_head.weight": (vocabulary, WIDTH),
        "model.embed_tokens.weight": (vocabulary, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        for name, width in (("q", WIDTH), ("k", narrow), ("v", narrow)):
            shapes[f"{block}.self_attn.{name}_proj.weight"] = (width, WIDTH)
            shapes[f"{block}.self_attn.{name}_proj.bias"] = (width,)
        shapes[f"{block}.self_attn.o_proj.weight"] = (WIDTH, WIDTH)
        shapes |= {f"{block}.mlp.{name}_proj.weight": (MLP, WIDTH) for name in ("gate", "up")}
        shapes[f"{block}.mlp.down_proj.weight"] = (WIDTH, MLP)
        shapes |= {f"{block}.{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    return shapes


DREAM = Family(
    name="dream",
    specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>"),
    bos="<|beginoftext|>",
    eos="<|endoftext|>",
    mask="<|mask|>",
    turn_end="<|im_end|>",
    template=_DREAM_TEMPLATE,
    words=("user\n", "assistant\n", "system\nYou are a helpful assistant."),
    config=_dream_config,
    shapes=_dream_shapes,
)

# LLaDA2.0-mini: a mixture of experts that attends within blocks of 32 tokens and to earlier ones ---------------------

_LLADA2_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<role>SYSTEM</role>detailed thinking off<|role_end|>' }}{% endif %}"
    "{% for message in messages %}{% set role = {'user': 'HUMAN', 'system': 'SYSTEM', 'assistant': 'ASSISTANT'}"
    "[message['role']] %}{{ '<role>' + role + '</role>' + message['content'] + '<|role_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<role>ASSISTANT</role>' }}{% endif %}"
)
_HEAD, _KEYS, _EXPERTS, _EXPERT = 16, 2, 8, 48


def _llada2_config(vocabulary: int, ids: dict[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["LLaDA2MoeModelLM"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_llada2_moe.LLaDA2MoeConfig",
            "AutoModel": "modeling_llada2_moe.LLaDA2MoeModel",
            "AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM",
        },
        "embedding_dropout": 0.0,
        "eos_token_id": ids["<|endoftext|>"],
        "first_k_dense_replace": 1,
        "head_dim": _HEAD,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": MLP,
        "max_position_embeddings": MAX_LENGTH,
        "max_window_layers": LAYERS,
        "model_type": "llada2_moe",
        "moe_intermediate_size": _EXPERT,
        "moe_router_enable_expert_bias": True,
        "n_group": 4,
        "norm_head": False,
        "norm_topk_prob": True,
        "num_attention_heads": HEADS,
        "num_experts": _EXPERTS,
        "num_experts_per_tok": 2,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": _KEYS,
        "num_shared_experts": 1,
        "output_dropout": 0.0,
        "output_router_logits": False,
        "pad_token_id": ids["<|endoftext|>"],
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 600000,
        "routed_scaling_factor": 2.5,
        "router_dtype": "fp32",
        "score_function": "sigmoid",
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "topk_group": 2,
        "torch_dtype": "float32",
        "transformers_version": "4.57.1",
        "use_bias": False,
        "use_cache": False,
        "use_qk_norm": True,
        "use_qkv_bias": False,
        "use_sliding_window": False,
        "vocab_size": vocabulary,
    }


def _llada2_shapes(vocabulary: int) -> Shapes:
    shapes: Shapes = {
        "lm_head.weight": (vocabulary, WIDTH),
        "model.word_embeddings.weight": (vocabulary, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        shapes[f"{block}.attention.query_key_value.weight"] = ((HEADS + 2 * _KEYS) * _HEAD, WIDTH)
        shapes[f"{block}.attention.dense.weight"] = (WIDTH, HEADS * _HEAD)
        shapes |= {f"{block}.attention.{name}_layernorm.weight": (_HEAD,) for name in ("query", "key")}
        shapes |= {f"{block}.{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
        if layer == 0:
            shapes |= _gated(f"{block}.mlp", MLP)
            continue
        shapes[f"{block}.mlp.gate.weight"] = (_EXPERTS, WIDTH)
        shapes[f"{block}.mlp.gate.expert_bias"] = (_EXPERTS,)
        for expert in range(_EXPERTS):
            shapes |= _gated(f"{block}.mlp.experts.{expert}", _EXPERT)
        shapes |= _gated(f"{block}.mlp.shared_experts", _EXPERT)
    return shapes


def _gated(prefix: str, width: int) -> Shapes:
    shapes: Shapes = {f"{prefix}.{name}_proj.weight": (width, WIDTH) for name in ("gate", "up")}
    return shapes | {f"{prefix}.down_proj.weight": (WIDTH, width)}


LLADA2 = Family(
    name="llada2",
    specials=("<|startoftext|>", "<|endoftext|>", "<role>", "</role>", "<|role_end|>", "<|mask|>"),
    bos="<|startoftext|>",
    eos="<|endoftext|>",
    mask="<|mask|>",
    turn_end="<|role_end|>",
    template=_LLADA2_TEMPLATE,
    words=("HUMAN", "ASSISTANT", "SYSTEM", "detailed thinking off"),
    config=_llada2_config,
    shapes=_llada2_shapes,
)

FAMILIES = {family.name: family for family in (LLADA, DREAM, LLADA2)}
