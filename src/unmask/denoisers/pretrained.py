"""Load and save denoisers in the Hugging Face layout: config.json, safetensors, tokenizer. Nothing is unpickled."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from unmask.denoisers.adapters import merged_state
from unmask.denoisers.base import Denoiser
from unmask.denoisers.llada import KEY_MAPPING, llama_config
from unmask.errors import UserError

EMBEDDED = "embedded:"


def resolve(model: str) -> Path:
    """The directory of a model: a path, or `embedded:NAME` for one that ships with the package. Raises UserError."""
    if model.startswith(EMBEDDED):
        assets = Path(str(files("unmask").joinpath("assets")))
        directory = assets / model.removeprefix(EMBEDDED)
        names = sorted(path.name for path in assets.iterdir() if (path / "config.json").exists())
        if not (directory / "config.json").exists():
            raise UserError(f"model {model!r} does not ship with unmask: the embedded models are {', '.join(names)}")
        return directory
    directory = Path(model).expanduser()
    if not (directory / "config.json").is_file():
        raise UserError(f"model {model!r} has no config.json: give a checkpoint directory or {EMBEDDED}NAME")
    return directory


def load_denoiser(model: str, dtype: torch.dtype = torch.float32) -> Denoiser:
    """The denoiser in a checkpoint directory. Raises UserError for missing files or special tokens, unknown layouts."""
    directory = resolve(model)
    published = _read_config(directory)
    if not any(directory.glob("*.safetensors")):
        raise UserError(
            f"model {model!r} has no *.safetensors file: convert its weights (pickled weights are not opened)"
        )
    mask_id = published.get("mask_token_id")
    if not isinstance(mask_id, int):
        raise UserError(f"model {model!r} names no mask token: add mask_token_id to its config.json")
    eos_id = published.get("eos_token_id")
    if not isinstance(eos_id, int):
        raise UserError(
            f"model {model!r} names no end-of-sequence token: add eos_token_id (one integer) to its config.json"
        )
    network = _load_network(directory, published, dtype)
    if not 0 <= mask_id < network.config.vocab_size:
        raise UserError(
            f"mask_token_id {mask_id} of {model!r} lies outside its vocabulary of {network.config.vocab_size}"
        )
    network.config.mask_token_id = mask_id
    return Denoiser(network, mask_id=mask_id, eos_id=eos_id)


def _read_config(directory: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{directory / 'config.json'} is not JSON ({error}): restore the file") from error
    return config


def _load_network(directory: Path, published: dict[str, Any], dtype: torch.dtype) -> Any:
    if published.get("model_type") == "llada":
        config = llama_config(published)
        return LlamaForCausalLM.from_pretrained(
            directory, config=config, key_mapping=KEY_MAPPING, dtype=dtype, use_safetensors=True
        )
    if published.get("is_causal") is not False:
        raise UserError(
            f"model {directory.name!r} attends causally: a masked diffusion model has is_causal = false in config.json"
        )
    config = AutoConfig.from_pretrained(directory)
    return AutoModelForCausalLM.from_pretrained(directory, config=config, dtype=dtype, use_safetensors=True)


def save_denoiser(
    denoiser: Denoiser, tokenizer: PreTrainedTokenizerFast, directory: Path, source: Path | None = None
) -> None:
    """Write config.json, model.safetensors, tokenizer; a published layout keeps its config.json and tensor names."""
    denoiser.model.save_pretrained(directory, state_dict=merged_state(denoiser))
    tokenizer.save_pretrained(directory)
    if source is not None and _read_config(source).get("model_type") == "llada":
        (directory / "config.json").write_bytes((source / "config.json").read_bytes())


def load_tokenizer(model: str) -> PreTrainedTokenizerFast:
    """The tokenizer beside a checkpoint. Raises UserError if there is none."""
    directory = resolve(model)
    if not (directory / "tokenizer.json").is_file():
        raise UserError(f"model {model!r} has no tokenizer.json: copy it from the model's base checkpoint")
    return PreTrainedTokenizerFast.from_pretrained(directory)
