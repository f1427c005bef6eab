"""Checkpoints of a run: written whole or not at all, resumed from bit for bit, and nothing in them is pickled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from unmask.denoisers.adapters import has_adapters, save_adapters
from unmask.denoisers.base import Denoiser
from unmask.denoisers.digests import STATE, check_digests, read_state, with_digests
from unmask.denoisers.directories import checkpoint_name, checkpoints, partial, step_of
from unmask.denoisers.intact import check_model_files, check_tensors, read_json
from unmask.denoisers.loading import save_denoiser
from unmask.denoisers.streamed import save_module
from unmask.distributed.sharding import as_sharded, is_sharded, load_shards, names_in_shards, save_shards
from unmask.distributed.slices import read_into
from unmask.errors import UserError
from unmask.report.durable import sync, tensor_errors, writing
from unmask.settings.recipe import TrainSettings

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_SHARDS = "optimizer"  # folder of the moments where the weights are sharded


def save_checkpoint(
    folder: Path,
    step: int,
    denoiser: Denoiser,
    tokenizer: Any,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    reference: nn.Module | None = None,
    writes: bool = True,
    further: Mapping[str, dict[str, torch.Tensor]] | None = None,
) -> Path:
    """Write `folder`/step_NNNNNN and return it: model (Hugging Face layout), optimizer moments, random and run state.

    All ranks call it where the weights are sharded: each writes its shards of the moments to a folder of them, and the
    one that `writes` the model, of which it has a tensor whole at a time.

    `state` becomes state.json, with `step` and the digests by which resuming notices damage within tensors.
    `reference`: frozen weights that have moved since the start. `further`: more files of tensors, by their names.
    """
    final = folder / checkpoint_name(step)
    written = partial(final)
    with writing(final), tensor_errors():
        if writes:
            shutil.rmtree(written, ignore_errors=True)
            folder.mkdir(exist_ok=True)  # where the run's own directory is gone, nothing would find the checkpoint
            written.mkdir()
        try:
            if sharded := is_sharded(denoiser):
                torch.distributed.barrier()  # the first has made the folder
                save_shards(_moments(denoiser, optimizer), written / _SHARDS)
            save_denoiser(denoiser, tokenizer, written, writes=writes)
            if reference is not None:
                save_module(reference, written / "reference.safetensors", writes=writes)
            if not writes:
                return final
            if has_adapters(denoiser):
                save_adapters(denoiser, written)
            tensors = {"random_state": {"cpu": torch.get_rng_state()}, **(further or {})}
            tensors |= {} if sharded else {"optimizer": _moments(denoiser, optimizer)}
            for name, named in tensors.items():
                save_file(named, written / f"{name}.safetensors")
            (written / STATE).write_text(json.dumps(with_digests(written, state | {"step": step}), indent=1))
            for path in (*written.rglob("*"), written):
                sync(path)
        except BaseException:
            if writes:
                shutil.rmtree(written)  # on a full disk the room that it takes may be all that others need
            raise
        set_aside(final)
        written.rename(final)
        sync(folder)
    return final


def _moments(denoiser: Denoiser, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state
    return {
        f"{name}/{moment}": state[parameter][moment].contiguous()
        for name, parameter in denoiser.named_parameters()
        if parameter in state
        for moment in _MOMENTS
    }


def load_optimizer(directory: Path, denoiser: Denoiser, optimizer: torch.optim.Optimizer) -> None:
    """Load AdamW's moments into `optimizer`, and the global random state (dropout alone draws from it)."""
    shards = directory / _SHARDS
    moments = _from_shards(shards, denoiser) if shards.is_dir() else load_file(directory / "optimizer.safetensors")
    for name, parameter in denoiser.named_parameters():
        if f"{name}/step" in moments:
            found = {moment: moments[f"{name}/{moment}"] for moment in _MOMENTS}
            optimizer.state[parameter] = {
                moment: tensor if moment == "step" else as_sharded(tensor, parameter)
                for moment, tensor in found.items()
            }
    torch.set_rng_state(load_file(directory / "random_state.safetensors")["cpu"])


def _from_shards(shards: Path, denoiser: Denoiser) -> dict[str, torch.Tensor]:
    saved = names_in_shards(shards)
    moments = {
        f"{name}/{moment}": torch.zeros(()) if moment == "step" else torch.zeros_like(parameter)
        for name, parameter in denoiser.named_parameters()
        for moment in _MOMENTS
        if f"{name}/{moment}" in saved
    }
    load_shards(moments, shards)
    return moments


def load_reference(directory: Path, reference: Denoiser) -> None:
    """Load the reference weights of a run that mixes the policy into them, sharded or not."""
    read_into(reference, directory / "reference.safetensors")


def check_whole(directory: Path, settings: TrainSettings) -> None:
    """Raise UserError where a file that resuming needs is damaged or missing; it names a whole checkpoint before."""
    fault = _fault(directory, settings)
    if fault is None:
        return
    earlier = [path for path in checkpoints(directory.parent) if (step_of(path) or 0) < (step_of(directory) or 0)]
    whole = next((path for path in reversed(earlier) if _fault(path, settings) is None), None)
    mend = "no earlier one is whole" if whole is None else f"or go on from the one before, --resume {quote(str(whole))}"
    raise UserError(f"checkpoint {directory.name} is damaged: {fault}; {mend}")


def _fault(directory: Path, settings: TrainSettings) -> str | None:
    """What is wrong with the files of a checkpoint."""
    shards = [f"{_SHARDS}/{path.name}" for path in (directory / _SHARDS).glob("*.safetensors")]
    names = [*(shards or ["optimizer.safetensors"]), "random_state.safetensors"]
    names += ["adapters.safetensors"] if settings.lora_rank else []
    names += ["reference.safetensors"] if settings.ref_model_sync_steps else []
    names += [] if any(directory.glob("model*.safetensors*")) or settings.lora_rank else ["model.safetensors"]
    try:
        if type(read_state(directory).get("step")) is not int:
            return f"{directory / STATE} has no step: restore the file"
        for name in names:
            check_tensors(directory / name)
        if not settings.lora_rank:
            read_json(directory / "config.json")
            check_model_files(directory)
        # Of a run with adapters the merged weights beside them are not read.
        check_digests(directory, reads=lambda name: not settings.lora_rank or not fnmatch(name, "model*.safetensors*"))
    except UserError as error:
        return str(error)
    return None


def set_aside(path: Path) -> None:
    """Rename what is at `path`, if anything: to NAME.aside, NAME.aside-2 and so on; it no longer counts."""
    number, aside = 1, path.with_name(f"{path.name}.aside")
    while aside.exists() or aside.is_symlink():
        number += 1
        aside = path.with_name(f"{path.name}.aside-{number}")
    if path.exists() or path.is_symlink():
        path.rename(aside)


def drop_old(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints in `folder`, and nothing that is not one."""
    for directory in [path for path in checkpoints(folder) if (path / STATE).is_file()][:-keep]:
        passing = partial(directory)  # or a kill would leave a part of it under its name
        with writing(directory):
            directory.rename(passing)
            shutil.rmtree(passing)
