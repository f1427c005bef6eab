"""Checkpoints in transformers' own format: what config.json says, and the network that it makes."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from unmask.denoisers.formats import FORMATS
from unmask.denoisers.load_errors import config_errors
from unmask.denoisers.proportion import check_proportion
from unmask.distributed.sharding import layers_of
from unmask.errors import UserError

MASKED = "bert"  # masked language models attend both ways as they are


def read_config(directory: Path, model: str) -> Any:
    """The configuration that transformers makes of a config.json. Raises UserError where it makes none."""
    with config_errors(model):
        return AutoConfig.from_pretrained(directory, trust_remote_code=False)


def loader_of(published: dict[str, Any]) -> Any:
    """The class of transformers that makes the network of a config.json in transformers' own format."""
    return AutoModelForMaskedLM if published.get("model_type") == MASKED else AutoModelForCausalLM


def load_plain(directory: Path, published: dict[str, Any], sharded: bool, **options: Any) -> Any:
    """A checkpoint in transformers' own format; code beside it is never run."""
    if published.get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        known = ", ".join(known.name for known in FORMATS)
        raise UserError(
            f"model {directory.name!r} has model_type {published.get('model_type')!r}: use a causal language model "
            f"of transformers (with is_causal = false), or a checkpoint of {known}"
        )
    config = read_config(directory, directory.name)
    network = loader_of(published)
    check_proportion(directory, config, network.from_config)
    if sharded:
        with torch.device("meta"):
            layers_of(network.from_config(deepcopy(config)))  # before anything is loaded
    return network.from_pretrained(directory, config=config, trust_remote_code=False, **options)
