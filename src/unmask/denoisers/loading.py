"""Load and save denoisers as Hugging Face checkpoints: config.json, safetensors, tokenizer. Nothing is unpickled."""

from __future__ import annotations

import json
import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from unmask.denoisers.adapters import merged_state
from unmask.denoisers.base import Denoiser
from unmask.denoisers.directories import ASSETS, EMBEDDED, local_directory
from unmask.denoisers.formats import FORMATS, format_of
from unmask.denoisers.formats.base import CheckpointFormat
from unmask.denoisers.four_bit import forget_quantization, four_bit_options
from unmask.denoisers.intact import check_weights, read_json
from unmask.denoisers.layers.fast_layers import fast_layers_or_log
from unmask.denoisers.probe import check_masks
from unmask.errors import UserError

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_MASKED = "bert"  # masked language models attend both ways as they are
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# Of the top folder alone. Code comes along for the original loaders, and is never run here.
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.py"]


def resolve(model: str) -> Path:
    """The directory of a model: a path, `embedded:NAME` for one that ships with the package, or org/name on the Hub.

    A training run's directory means its newest checkpoint.

    Raises UserError.
    """
    directory = local_directory(model)
    if model.startswith(EMBEDDED):
        if not (directory / "config.json").exists():
            names = sorted(path.name for path in ASSETS.iterdir() if (path / "config.json").exists())
            raise UserError(f"model {model!r} does not ship with unmask: the embedded models are {', '.join(names)}")
        return directory
    if not directory.exists() and _HUB_NAME.fullmatch(model):
        directory = _downloaded(model)
    if not (directory / "config.json").exists():
        raise UserError(f"model {model!r} has no config.json: give a checkpoint directory or {EMBEDDED}NAME")
    read_json(directory / "config.json")
    check_weights(directory)
    return directory


@cache
def _downloaded(name: str) -> Path:
    """The snapshot of a Hub model in the local cache. Raises UserError where there is none and none can be had."""
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]))
    except (OSError, HFValidationError) as error:
        raise UserError(
            f"model {name!r} is no directory, and the Hub does not give it ({' '.join(str(error).split())[:200]}): "
            "check name, network and access rights (hf auth login), or give a directory"
        ) from None


def load_denoiser(
    model: str,
    dtype: torch.dtype = torch.float32,
    *,
    mask_token_id: int | None = None,
    four_bit: bool = False,
    model_format: str | None = None,
) -> Denoiser:
    """The denoiser of a checkpoint (see `resolve`), on the CPU; with fast layers, or a log line that says why not.

    `dtype`: of the weights.
    `mask_token_id`: where config.json names none, or another one is wanted.
    `four_bit`: linear layers in 4 bits, to be frozen, on the GPU.
    `model_format`: the user's own checkpoint format, FILE.py:NAME or MODULE:NAME (see `format_of`); None: known ones.

    Raises UserError for missing files, tensors or special tokens, and for unknown formats.

        denoiser = load_denoiser("embedded:sudoku").eval()
    """
    directory = resolve(model)
    published = read_json(directory / "config.json")
    if not any(directory.glob("*.safetensors")):
        raise UserError(
            f"model {model!r} has no *.safetensors file: convert its weights (pickled weights are not opened)"
        )
    mask_id = _token_id(directory, published, "mask") if mask_token_id is None else mask_token_id
    if mask_id is None:
        raise UserError(
            f"model {model!r} names no mask token: add mask_token_id to its config.json, or give mask_token_id"
        )
    eos_id = _token_id(directory, published, "eos")
    if eos_id is None:
        raise UserError(
            f"model {model!r} names no end-of-sequence token: add eos_token_id (one integer) to its config.json"
        )
    checkpoint_format = format_of(published, model_format)
    block_length, shift = None, False
    if checkpoint_format is not None:
        block_length, shift = checkpoint_format.block_length, checkpoint_format.shift
    network = _load_network(directory, published, checkpoint_format, dtype, four_bit)
    if not 0 <= mask_id < network.config.vocab_size:
        raise UserError(
            f"mask_token_id {mask_id} of {model!r} lies outside its vocabulary of {network.config.vocab_size}"
        )
    network.config.mask_token_id = mask_id
    fast_layers_or_log(network)
    denoiser = Denoiser(
        network,
        mask_id=mask_id,
        eos_id=eos_id,
        shift=bool(published.get("logits_shift", shift)),
        block_length=published.get("block_length", block_length),
        spelt=_spelt(directory, eos_id),
    )
    check_masks(denoiser, model)
    return denoiser


def _spelt(directory: Path, eos_id: int) -> int | None:
    """The first id behind those that the tokenizer knows and behind the end token's; None without a tokenizer."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        return None
    return 1 + max(eos_id, *Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True).values())


def _token_id(directory: Path, published: dict[str, Any], name: str) -> int | None:
    """The "eos" or "mask" token by config.json, else generation_config.json, else the tokenizer; of several the first.

    Warns where there are several.
    """
    key, generation = f"{name}_token_id", directory / "generation_config.json"
    value = published.get(key)
    if value is None and generation.is_file():
        value = read_json(generation).get(key)
    if value is None and (directory / "tokenizer.json").is_file():
        value = getattr(load_tokenizer(str(directory)), key)
    if isinstance(value, list) and value:
        if len(value) > 1:
            warnings.warn(f"{directory.name} names {key} {value}: {value[0]} is taken", stacklevel=3)
        value = value[0]
    return value if isinstance(value, int) else None


def _load_network(
    directory: Path,
    published: dict[str, Any],
    checkpoint_format: CheckpointFormat | None,
    dtype: torch.dtype,
    four_bit: bool,
) -> Any:
    """The network of a checkpoint, every tensor in its place; of a published format, with the files it came with."""
    # Misfits are reported below, with the mend.
    options = {"dtype": dtype, "use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    options |= four_bit_options() if four_bit else {}
    if checkpoint_format is not None:
        network, report = checkpoint_format.load(directory, published, **options)
        network.published_files = _published_files(directory)
        network.generation_config = GenerationConfig()  # theirs is for their sampler: kept as a file, never read
    elif published.get("is_causal") is False or published.get("model_type") == _MASKED:
        network, report = _load_plain(directory, published, **options)
    else:
        raise UserError(
            f"model {directory.name!r} attends causally: make a masked diffusion model of it with unmask convert, or "
            "set is_causal = false in its config.json if it is one"
        )
    for fault, key in (("lacks", "missing"), ("has no use for", "unexpected"), ("shapes otherwise", "mismatched")):
        if names := sorted(map(str, report[f"{key}_keys"])):
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise UserError(
                f"model {directory.name!r} {fault} {shown}: do its config.json and *.safetensors belong together?"
            )
    if four_bit:
        forget_quantization(network)
    return network


def _load_plain(directory: Path, published: dict[str, Any], **options: Any) -> Any:
    """A checkpoint in transformers' own format; code beside it is never run."""
    if published.get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        known = ", ".join(known.name for known in FORMATS)
        raise UserError(
            f"model {directory.name!r} has model_type {published.get('model_type')!r}: use a causal language model "
            f"of transformers (with is_causal = false), or a checkpoint of {known}"
        )
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    network = AutoModelForMaskedLM if published["model_type"] == _MASKED else AutoModelForCausalLM
    return network.from_pretrained(directory, config=config, trust_remote_code=False, **options)


def _published_files(directory: Path) -> dict[str, bytes]:
    """Files that the original loaders read beside the weights: settings, and code that we carry and never run."""
    paths = [directory / "config.json", directory / "generation_config.json", *sorted(directory.glob("*.py"))]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def save_denoiser(
    denoiser: Denoiser, tokenizer: PreTrainedTokenizerFast, directory: Path, source: Path | None = None
) -> None:
    """Write config.json, model.safetensors (adapters merged in) and tokenizer to a directory.

    A published format keeps its tensor names and the files it was loaded with, or those of `source`. Its config.json
    differs only where it names another mask token, or none.
    """
    denoiser.model.save_pretrained(directory, state_dict=merged_state(denoiser))
    tokenizer.save_pretrained(directory)
    files = getattr(denoiser.model, "published_files", {})
    if files and source is not None:
        files = _published_files(source)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    if files and (config := read_json(directory / "config.json")).get("mask_token_id") != denoiser.mask_id:
        (directory / "config.json").write_text(json.dumps(config | {"mask_token_id": denoiser.mask_id}, indent=2))


def load_tokenizer(model: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint (see `resolve`), whatever its format. Raises UserError if there is none."""
    directory = resolve(model)
    if not (directory / "tokenizer.json").exists():
        raise UserError(f"model {model!r} has no tokenizer.json: copy it from the model's base checkpoint")
    for name in _TOKENIZER_FILES:
        if (directory / name).exists():
            read_json(directory / name)
    try:
        return PreTrainedTokenizerFast.from_pretrained(directory)
    except Exception as error:  # the tokenizers library raises nothing more special
        detail = " ".join(str(error).split())[:200]
        raise UserError(f"the tokenizer of model {model!r} cannot be read ({detail}): copy its files again") from error
