"""Checkpoints of a run: written whole or not at all, resumed from bit for bit, and nothing in them is pickled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatch
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from safetensors.torch import load_file

from unmask.denoisers.base import Denoiser
from unmask.denoisers.digests import STATE, check_digests, read_state, with_digests
from unmask.denoisers.directories import checkpoint_name, checkpoints, partial, step_of
from unmask.denoisers.intact import check_model_files, check_tensors, read_json
from unmask.denoisers.loading import save_settings
from unmask.denoisers.streamed import save_module, save_network
from unmask.distributed import World
from unmask.distributed.sharding import as_sharded, is_sharded, load_shards, names_in_shards
from unmask.distributed.slices import read_into
from unmask.errors import UserError
from unmask.report.durable import sync, tensor_errors, writing
from unmask.settings.recipe import TrainSettings
from unmask.training.contents import MOMENTS, SHARDS, Contents, Parts
from unmask.training.saving import Saving


def save_checkpoint(
    folder: Path,
    step: int,
    contents: Contents,
    state: dict[str, Any],
    saving: Saving,
    world: World,
    keep: int | None = None,
) -> None:
    """Have `folder`/step_NNNNNN written: model (Hugging Face layout), optimizer moments, random and run state.

    What it holds is taken now, and written while training goes on; then all but the newest `keep` are deleted. Where
    the weights are sharded all ranks call it: each writes its shards of the moments to a folder of them; the model is
    written before this returns, by the first, of which it has a tensor whole at a time. Else the first alone calls it.

    `state` becomes state.json, with `step` and the digests by which resuming notices damage within tensors.
    """
    final, sharded = folder / checkpoint_name(step), is_sharded(contents.denoiser)
    written = partial(final)
    saving.wait()
    with _whole_or_gone(final, world):
        if world.is_main:
            shutil.rmtree(written, ignore_errors=True)
            folder.mkdir(exist_ok=True)  # where the run's own directory is gone, nothing would find the checkpoint
            written.mkdir()
            save_settings(contents.denoiser, contents.tokenizer, written)
        if sharded:
            saving.meet(world)
            _save_whole(contents, written, world)
        parts = Parts.of(contents, world)

    def write() -> None:
        with _whole_or_gone(final, world):
            with saving.together(final) if sharded else nullcontext():
                parts.write(contents.denoiser.model, written, saving)
            if world.is_main:
                _complete(written, final, state | {"step": step})
        if world.is_main and keep is not None:
            drop_old(folder, keep)

    saving.begin(write, at_once=not parts.are_copies)


@contextmanager
def _whole_or_gone(final: Path, world: World) -> Iterator[None]:
    """Remove what was written of a checkpoint where it fails. Raises DiskError where the system refuses a write."""
    with writing(final), tensor_errors():
        try:
            yield
        except BaseException:
            if world.is_main:  # on a full disk the room that it takes may be all that others need
                shutil.rmtree(partial(final), ignore_errors=True)
            raise


def _save_whole(contents: Contents, written: Path, world: World) -> None:
    """Write the weights that ranks hold together, tensor by tensor: all of them call it, and the first writes."""
    if world.is_main:
        (written / SHARDS).mkdir()
    world.barrier()  # the first has made the folders
    network = contents.denoiser.model
    save_network(network, network.state_dict(keep_vars=True), written, writes=world.is_main)
    if contents.reference is not None:
        save_module(contents.reference, written / "reference.safetensors", writes=world.is_main)


def _complete(written: Path, final: Path, state: dict[str, Any]) -> None:
    """Write state.json, have all on disk, and give the checkpoint its name."""
    (written / STATE).write_text(json.dumps(with_digests(written, state), indent=1))
    for path in (*written.rglob("*"), written):
        sync(path)
    set_aside(final)
    written.rename(final)
    sync(final.parent)


def load_optimizer(directory: Path, denoiser: Denoiser, optimizer: torch.optim.Optimizer) -> None:
    """Load AdamW's moments into `optimizer`, and the global random state (dropout alone draws from it)."""
    shards = directory / SHARDS
    moments = _from_shards(shards, denoiser) if shards.is_dir() else load_file(directory / "optimizer.safetensors")
    for name, parameter in denoiser.named_parameters():
        if f"{name}/step" in moments:
            found = {moment: moments[f"{name}/{moment}"] for moment in MOMENTS}
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
        for moment in MOMENTS
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
    shards = [f"{SHARDS}/{path.name}" for path in (directory / SHARDS).glob("*.safetensors")]
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
