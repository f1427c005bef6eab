"""Supervised training in a directory: checkpoints while it goes on, in the end the model alone with its log."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from safetensors.torch import load_file

from unmask.data.tokenization import task_tokenizer
from unmask.denoisers.digests import read_state, sha256_of
from unmask.denoisers.directories import newest_checkpoint, partial
from unmask.denoisers.intact import read_json
from unmask.denoisers.loading import load_tokenizer, save_denoiser
from unmask.distributed import World
from unmask.errors import UserError
from unmask.report.durable import DiskError, sync, write_durably, writing
from unmask.report.metrics import MetricsLog, check_length
from unmask.report.progress import message, phase, telling
from unmask.settings.commands import PretrainRecipe
from unmask.settings.inputs import input_digests, tell_changed_inputs, with_absolute_paths
from unmask.settings.ownership import owned, owned_new
from unmask.settings.reader import document_of
from unmask.settings.recipe import TrainSettings
from unmask.settings.resume import check_steps, how_to_go_on, locate_run
from unmask.training.checkpoint import check_whole, load_optimizer, save_checkpoint
from unmask.training.contents import Contents
from unmask.training.saving import Saving
from unmask.training.skipping import MOST_IN_A_ROW, SkippedSteps, ends_for_skipped
from unmask.training.stopping import Stopping
from unmask.training.supervised import Pretraining

_KEPT = 2  # newest checkpoints: were one damaged, the other is there
_BEST = "best"


def start_pretraining(recipe: PretrainRecipe, output: str) -> PretrainingRun:
    """Supervised training in a new directory. Raises UserError, with nothing written, for what cannot work."""
    recipe.check_spelling()
    recipe = with_absolute_paths(recipe)
    with ExitStack() as stack:
        directory = stack.enter_context(owned_new(output, ""))
        training = Pretraining.of(recipe, _tokenizer(recipe))
        _describe(directory, recipe)
        return PretrainingRun(directory=directory, training=training, ownership=stack.pop_all())


def _describe(directory: Path, recipe: PretrainRecipe) -> None:
    """Write what there is before the first update; first recipe.toml, by which one that is killed here goes on."""
    write_durably(directory / "recipe.toml", tomli_w.dumps(document_of(recipe)))
    if digests := input_digests(recipe):
        write_durably(directory / "inputs.json", json.dumps(digests, indent=1))


def resume_pretraining(recipe: PretrainRecipe, resume: str) -> PretrainingRun:
    """The training in a directory, to go on at its newest checkpoint, or at that which `resume` names.

    Raises UserError where it is done, another process is at it, or the checkpoint is damaged.
    """
    directory, checkpoint = locate_run(resume)
    with ExitStack() as stack:
        stack.enter_context(owned(directory))
        if (directory / "config.json").exists():
            _delete_checkpoints(directory)  # it may have been killed before it did
            raise UserError(f"{directory} holds the model of a training that is done: give it as --model to train more")
        checkpoint = checkpoint or newest_checkpoint(directory / "checkpoints")
        state: dict[str, Any] = {}
        if checkpoint is not None:
            check_whole(checkpoint, TrainSettings(lora_rank=recipe.lora_rank))
            state = read_state(checkpoint)
            check_length(directory / "metrics.jsonl", state["metrics_bytes"])
            check_steps(directory, state["step"], recipe.max_steps)
        if (directory / "inputs.json").is_file():
            tell_changed_inputs(read_json(directory / "inputs.json"))
        training = Pretraining.of(recipe, _tokenizer(recipe), checkpoint)
        if checkpoint is None:
            _describe(directory, recipe)
        else:
            load_optimizer(checkpoint, training.denoiser, training.optimizer)
            if "best_loss" in state:
                training.best.load(state["best_loss"], load_file(checkpoint / f"{_BEST}.safetensors"))
        return PretrainingRun(directory=directory, training=training, state=state, ownership=stack.pop_all())


def _tokenizer(recipe: PretrainRecipe) -> Any:
    return task_tokenizer(recipe.task.vocabulary) if recipe.model is None else load_tokenizer(recipe.model)


@dataclass(kw_only=True)
class PretrainingRun:
    """Supervised training in a directory, from `state` (empty: from the start) to its last update."""

    directory: Path
    training: Pretraining
    state: dict[str, Any] = field(default_factory=dict)
    ownership: ExitStack = field(default_factory=ExitStack)  # of the directory, given back in the end
    _skipped: SkippedSteps = field(default_factory=SkippedSteps)

    @property
    def how_to_go_on(self) -> str:
        """What to say when it is interrupted now: the command that goes on with it, or starts it again."""
        return how_to_go_on("pretrain", self.directory)

    def finish(self) -> str:
        """Train, and write the model; the SHA-256 of its weights.

        SIGINT and SIGTERM end it after the update, saved. Raises UserError, with what there is to go on from, where the
        disk takes no more or three updates one after another were not finite.
        """
        try:
            with self.ownership, telling(), Stopping(World.single()) as stopping:
                with Saving(stopping.was_asked) as saving:
                    self._train(stopping, saving)
                return self._write()
        except DiskError as error:
            raise UserError(f"{error}, then {self.how_to_go_on}") from error

    def _train(self, stopping: Stopping, saving: Saving) -> None:
        kept_bytes = self.state.get("metrics_bytes", 0)
        with MetricsLog(self.directory / "metrics.jsonl", keep_bytes=kept_bytes) as metrics:

            def after(done: int, figures: dict[str, float]) -> None:
                saving.check()
                metrics.write({"step": done, **figures})
                self._see(done, figures)
                recipe, ends = self.training.recipe, stopping.is_asked()
                due = done % recipe.save_steps == 0 or done == recipe.max_steps
                if ends or (due and not self._skipped.in_a_row):
                    self._save(done, metrics, saving)
                if ends:
                    saving.wait()
                    raise stopping.interrupt()

            self.training.run(after, self.state.get("step", 0))

    def _see(self, done: int, figures: dict[str, float]) -> None:
        """Tell of an update that was skipped. Raises UserError after the third, one after another."""
        why = self._skipped.see(figures)
        if why is None:
            return
        message(f"warning at step {done}: its update was skipped: {why}")
        if self._skipped.in_a_row == MOST_IN_A_ROW:
            rate = self.training.recipe.learning_rate
            mend = f"start again with a lower rate, such as --learning-rate {rate / 3:.2g}"
            raise ends_for_skipped(self._skipped, done, why, mend)

    def _save(self, done: int, metrics: MetricsLog, saving: Saving) -> None:
        training, folder = self.training, self.directory / "checkpoints"
        state: dict[str, Any] = {"metrics_bytes": metrics.position()}
        further = {}
        if best := training.best.tensors():
            state["best_loss"], further = training.best.value, {_BEST: best}
        with phase(f"saving the checkpoint of step {done}"):
            contents = Contents(
                denoiser=training.denoiser,
                tokenizer=training.tokenizer,
                optimizer=training.optimizer,
                further=further,
            )
            save_checkpoint(folder, done, contents, state, saving, World.single(), _KEPT)

    def _write(self) -> str:
        """Write the model, whole before config.json makes the directory a model's, and delete the checkpoints."""
        directory, written = self.directory, partial(self.directory / "model")
        with phase(f"saving {directory}"), writing(directory):
            shutil.rmtree(written, ignore_errors=True)
            written.mkdir()
            save_denoiser(self.training.denoiser, self.training.tokenizer, written)
            digest = sha256_of(written / "model.safetensors")
            for path in sorted(written.iterdir(), key=lambda path: path.name == "config.json"):
                sync(path)
                path.rename(directory / path.name)
            sync(directory)
            written.rmdir()
            _delete_checkpoints(directory)
        return digest


def _delete_checkpoints(directory: Path) -> None:
    """Delete the checkpoints of a training that is done, none of which is ever there in part."""
    folder = directory / "checkpoints"
    if folder.exists():
        folder.rename(partial(folder))
        shutil.rmtree(partial(folder))
