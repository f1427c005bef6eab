"""A frozen base in 4 bits (NF4 of QLoRA, 2305.14314): linear layers but the head, an eighth of float32's memory."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from unmask.errors import UserError


def check_four_bit() -> None:
    """Raise UserError where bitsandbytes or a CUDA GPU is missing."""
    if find_spec("bitsandbytes") is None:
        raise UserError("four_bit needs bitsandbytes: pip install 'unmask[four-bit]', or set four_bit to false")
    if not torch.cuda.is_available():
        raise UserError("four_bit needs a CUDA GPU, and there is none: set four_bit to false")


def four_bit_options() -> dict[str, Any]:
    """Keyword arguments of `from_pretrained` that load linear layers in NF4, computing in bfloat16."""
    from transformers import BitsAndBytesConfig

    check_four_bit()
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    }


def forget_quantization(network: Any) -> None:
    """Drop the quantization from the network's config, so that it is saved as an ordinary one with merged weights."""
    network.hf_quantizer.remove_quantization_config(network)


def dense(layer: Any) -> Tensor:
    """The weight matrix of a linear layer, dequantized where it is in 4 bits."""
    weight: Tensor = layer.weight
    if (state := getattr(weight, "quant_state", None)) is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    written: Tensor = dequantize_4bit(weight.data, state)
    return written
