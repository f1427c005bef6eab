"""Load and save denoisers as Hugging Face checkpoints: config.json, safetensors, tokenizer. Nothing is unpickled."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import HFValidationError
from torch.distributed.device_mesh import DeviceMesh
from transformers import GenerationConfig, PreTrainedTokenizerFast

from unmask.denoisers.adapters import MergedWeights
from unmask.denoisers.base import Denoiser
from unmask.denoisers.directories import check_model, find_model
from unmask.denoisers.formats import FORMATS, format_of
from unmask.denoisers.formats.base import CheckpointFormat
from unmask.denoisers.four_bit import forget_quantization, four_bit_options
from unmask.denoisers.intact import check_text, read_json
from unmask.denoisers.layers.fast_layers import fast_layers_or_log
from unmask.denoisers.load_errors import config_errors, memory_errors
from unmask.denoisers.plain import MASKED, load_plain
from unmask.denoisers.probe import check_masks, needs_trial
from unmask.denoisers.streamed import save_network
from unmask.distributed.slices import slices_kept
from unmask.errors import UserError

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# What may be wrong with tensors, by transformers' names, and how it is said of a model.
_MISFITS = {"missing": "lacks", "unexpected": "has no use for", "mismatched": "shapes otherwise"}
_READ_AHEAD_OFF = "HF_DEACTIVATE_ASYNC_LOAD"
# Of the top folder alone. Code comes along for the original loaders, and is never run here.
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.py"]


def resolve(model: str) -> Path:
    """The directory of a model: a path, `embedded:NAME` for one that ships with the package, or org/name on the Hub.

    A training run's directory means its newest checkpoint.

    Raises UserError.
    """
    directory = find_model(model)
    if directory is None:
        directory = _downloaded(model)
        check_model(directory, model)
    return directory


@cache
def _downloaded(name: str) -> Path:
    """The snapshot of a Hub model in the local cache. Raises UserError where there is none and none can be had."""
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]))
    except (OSError, HFValidationError) as error:
        if is_offline_mode():
            raise UserError(
                f"model {name!r}: there is no such directory, the Hub's cache does not hold it whole, and "
                "HF_HUB_OFFLINE is set: unset it, or give a directory"
            ) from None
        why = shorten(str(error), 200, placeholder=" ...")
        raise UserError(
            f"model {name!r}: there is no such directory, and the Hub does not give it ({why}): "
            "check name, network and access rights (hf auth login), or give a directory"
        ) from None


def load_denoiser(
    model: str,
    dtype: torch.dtype = torch.float32,
    *,
    mask_token_id: int | None = None,
    four_bit: bool = False,
    model_format: str | None = None,
    mesh: DeviceMesh | None = None,
) -> Denoiser:
    """The denoiser of a checkpoint (see `resolve`), on the CPU; with fast layers, or a log line that says why not.

    `dtype`: of the weights.
    `mask_token_id`: where config.json names none, or another one is wanted.
    `four_bit`: linear layers in 4 bits, to be frozen, on the GPU.
    `model_format`: the user's own checkpoint format, FILE.py:NAME or MODULE:NAME (see `format_of`); None: known ones.
    `mesh`: of ranks that hold the weights together: the denoiser has this rank's slices, for `distributed.sharding`'s
    `shard`, which must follow. A network that is tried before it is trained (see `needs_trial`) is whole all the same.

    Raises UserError for missing files, tensors or special tokens, and for unknown formats.

        denoiser = load_denoiser("embedded:sudoku").eval()
    """
    directory = resolve(model)
    published = read_json(directory / "config.json")
    if not any(directory.glob("*.safetensors")):
        raise UserError(
            f"model {model!r} has no *.safetensors file: convert its weights (pickled weights are not opened)"
        )
    tokenizer = load_tokenizer(model) if (directory / "tokenizer.json").exists() else None
    mask_id, eos_id = _mask_and_end(model, directory, published, tokenizer, mask_token_id)
    checkpoint_format = format_of(published, model_format)
    block_length, shift = None, False
    if checkpoint_format is not None:
        block_length, shift = checkpoint_format.block_length, checkpoint_format.shift
    load = partial(_load_network, directory, published, checkpoint_format, dtype, four_bit, mesh is not None)
    with memory_errors(f"model {model!r}"):
        network = _loaded_on(mesh, load)
    if not 0 <= mask_id < network.config.vocab_size:
        raise UserError(
            f"mask_token_id {mask_id} of {model!r} lies outside its vocabulary of {network.config.vocab_size}"
        )
    network.config.mask_token_id = mask_id
    spelt, holes = (None, ()) if tokenizer is None else spelt_ids(tokenizer, eos_id)
    denoiser = Denoiser(
        network,
        mask_id=mask_id,
        eos_id=eos_id,
        shift=bool(published.get("logits_shift", shift)),
        block_length=published.get("block_length", block_length),
        other_end_ids=_other_ends(directory, published, (eos_id, mask_id)),
        spelt=spelt,
        holes=holes,
    )
    check_masks(denoiser, model)
    return denoiser


def _mask_and_end(
    model: str,
    directory: Path,
    published: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast | None,
    mask_token_id: int | None,
) -> tuple[int, int]:
    """Ids of the mask token and of the end of a sequence. Raises UserError where the model names none."""
    mask_id = _token_id(directory, published, tokenizer, "mask") if mask_token_id is None else mask_token_id
    if mask_id is None:
        raise UserError(
            f"model {model!r} names no mask token: add mask_token_id to its config.json, or give mask_token_id (in "
            "Python); of an autoregressive model, unmask convert makes one that has it"
        )
    eos_id = _token_id(directory, published, tokenizer, "eos")
    if eos_id is None:
        raise UserError(
            f"model {model!r} names no end-of-sequence token: add eos_token_id (one integer) to its config.json"
        )
    return mask_id, eos_id


def _loaded_on(mesh: DeviceMesh | None, load: Callable[[], Any]) -> Any:
    """What `load` gives; on a mesh this rank's slices of it, or all of a network that is tried first."""
    if mesh is None:
        return load()
    with slices_kept(mesh), _one_after_another():
        network = load()
    return load() if needs_trial(network) else network


def _other_ends(directory: Path, published: dict[str, Any], known: Collection[int]) -> tuple[int, ...]:
    """Tokens that config.json or generation_config.json name as ends of a sequence beside those that are known."""
    found: set[int] = set()
    for value in (published.get("eos_token_id"), _generation_config(directory).get("eos_token_id")):
        found |= {token for token in (value if isinstance(value, list) else [value]) if type(token) is int}
    return tuple(sorted(found.difference(known)))


def _generation_config(directory: Path) -> dict[str, Any]:
    path = directory / "generation_config.json"
    return read_json(path) if path.exists() else {}


def spelt_ids(tokenizer: PreTrainedTokenizerFast, eos_id: int) -> tuple[int, tuple[range, ...]]:
    """The first id behind those that the tokenizer knows and the end token's; runs of ids before it that it lacks."""
    known = sorted({eos_id, *tokenizer.get_vocab().values()})
    gaps = (range(before + 1, token) for before, token in pairwise([-1, *known]))
    return known[-1] + 1, tuple(gap for gap in gaps if gap)


def _token_id(
    directory: Path, published: dict[str, Any], tokenizer: PreTrainedTokenizerFast | None, name: str
) -> int | None:
    """The "eos" or "mask" token by config.json, else generation_config.json, else the tokenizer; of several the first.

    Warns where there are several.
    """
    key = f"{name}_token_id"
    value = published.get(key)
    if value is None:
        value = _generation_config(directory).get(key)
    if value is None and tokenizer is not None:
        value = getattr(tokenizer, key)
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
    sharded: bool,
) -> Any:
    """The network of a checkpoint, every tensor in its place; of a published format, with the files it came with."""
    # Misfits are reported below, with the mend.
    options = {"dtype": dtype, "use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    options |= four_bit_options() if four_bit else {}
    if checkpoint_format is not None:
        own = checkpoint_format not in FORMATS  # what is the user's code shows where it fails
        with nullcontext() if own else config_errors(directory.name):
            network, report = checkpoint_format.load(directory, published, **options)
        network.published_files = _published_files(directory)
        network.generation_config = GenerationConfig()  # theirs is for their sampler: kept as a file, never read
    elif published.get("is_causal") is False or published.get("model_type") == MASKED:
        with config_errors(directory.name):
            network, report = load_plain(directory, published, sharded, **options)
    else:
        raise UserError(
            f"model {directory.name!r} attends causally: make a masked diffusion model of it with unmask convert, or "
            "set is_causal = false in its config.json if it is one"
        )
    refuse_misfits(directory.name, report, _MISFITS)
    if four_bit:
        forget_quantization(network)
    fast_layers_or_log(network)
    return network


@contextmanager
def _one_after_another() -> Iterator[None]:
    """Have transformers read a tensor when it has placed the one before: its threads read ahead, at worst all."""
    before = os.environ.get(_READ_AHEAD_OFF)
    os.environ[_READ_AHEAD_OFF] = "1"
    try:
        yield
    finally:
        os.environ.pop(_READ_AHEAD_OFF)
        if before is not None:
            os.environ[_READ_AHEAD_OFF] = before


def refuse_misfits(model: str, report: dict[str, Any], kinds: Iterable[str]) -> None:
    """Raise UserError where transformers' report of loading names tensors of these kinds (of `_MISFITS`)."""
    for kind in kinds:
        if names := sorted(map(str, report[f"{kind}_keys"])):
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise UserError(
                f"model {model!r} {_MISFITS[kind]} {shown}: do its config.json and *.safetensors belong together?"
            )


def _published_files(directory: Path) -> dict[str, bytes]:
    """Files that the original loaders read beside the weights: settings, and code that we carry and never run."""
    paths = [directory / "config.json", directory / "generation_config.json", *sorted(directory.glob("*.py"))]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def save_denoiser(
    denoiser: Denoiser,
    tokenizer: PreTrainedTokenizerFast,
    directory: Path,
    source: Path | None = None,
    *,
    writes: bool = True,
) -> None:
    """Write config.json, model.safetensors (adapters merged in) and tokenizer to a directory.

    A published format keeps its tensor names and the files it was loaded with, or those of `source`. Its config.json
    differs only where it names another mask token, or none. Where the weights are sharded all ranks call it, and one
    `writes`, tensor by tensor.
    """
    if writes:
        save_settings(denoiser, tokenizer, directory, source)
    save_network(denoiser.model, MergedWeights(denoiser), directory, writes=writes)


def save_settings(
    denoiser: Denoiser, tokenizer: PreTrainedTokenizerFast, directory: Path, source: Path | None = None
) -> None:
    """Write all of `save_denoiser` but the weights."""
    denoiser.model.save_pretrained(directory, state_dict={})
    tokenizer.save_pretrained(directory)
    _write_published_files(denoiser, directory, source)


def _write_published_files(denoiser: Denoiser, directory: Path, source: Path | None) -> None:
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
    for path in directory.glob("*.jinja"):
        check_text(path)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        tokenizer.batch_decode(tokenizer(["0"], return_special_tokens_mask=True)["input_ids"])  # settings may be odd
        return tokenizer
    except Exception as error:  # the tokenizers library raises nothing more special
        detail = " ".join(str(error).split())[:200]
        raise UserError(f"the tokenizer of model {model!r} cannot be read ({detail}): copy its files again") from error
