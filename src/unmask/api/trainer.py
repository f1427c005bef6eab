"""Training from Python: the same machine as `unmask train`, with objects where flags can only name things."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unmask.api.config import TrainingConfig
from unmask.api.model import Model, load_model, without_bars
from unmask.api.recipes import RewardFunc, Rewarding, Rows, method_of, recipe_named, recipe_of, task_of
from unmask.api.run import Run
from unmask.api.sampler import Sampler
from unmask.api.sharding import shard_size
from unmask.denoisers.adapters import has_adapters, merge_adapters
from unmask.denoisers.wrapping import as_it_was
from unmask.errors import UserError
from unmask.methods import Method
from unmask.objective.objective import frozen_copy
from unmask.settings.idle import flat
from unmask.settings.inputs import with_absolute_paths
from unmask.settings.objects import object_name
from unmask.settings.reader import document_of
from unmask.settings.recipe import Recipe
from unmask.settings.recipe_files import read_recipe
from unmask.settings.resume import MAY_CHANGE, check_resumable, locate_run
from unmask.tasks import Task
from unmask.training.callbacks import Callback
from unmask.training.given import Given
from unmask.training.starting import resume_run, start_run
from unmask.validation import other_names


class Trainer:
    """Trains a model with a method on prompts and their rewards; `train()` gives the `Run`.

    `model`: a checkpoint's name, or a transformers model with its `tokenizer`, whose weights are then trained.
    `method`: a method of `unmask.methods`, its name ("d2"), or your own. `reward_funcs`: functions in TRL's
    signature, or names as `--reward-funcs` takes them; unset: the task's own. `train_dataset`: rows with a "prompt" (a
    list, a `datasets.Dataset`, a file, org/name on the Hub), or a task by its name or as an object; `eval_dataset`:
    held-out rows, unset: a tenth of them. `sampler`: how completions are sampled. `args`: everything else.
    `callbacks`: what is called while it goes on. What is unset is as in the command.
    Raises UserError where this does not go together.

        args = unmask.TrainingConfig(max_steps=20)
        run = unmask.Trainer("embedded:sudoku", method=methods.SPG(), args=args).train()
    """

    def __init__(
        self,
        model: str | nn.Module | None = None,
        *,
        method: str | Method | None = None,
        reward_funcs: RewardFunc | Sequence[RewardFunc] | None = None,
        train_dataset: str | Task | Rows | None = None,
        eval_dataset: str | Rows | None = None,
        sampler: Sampler | None = None,
        args: TrainingConfig | None = None,
        tokenizer: Any = None,
        callbacks: Sequence[Callback] = (),
        model_format: str | None = None,
    ) -> None:
        settings, rewarding = args or TrainingConfig(), Rewarding.of(reward_funcs)
        named = model if model is None or isinstance(model, str) else object_name(model)
        task = task_of(train_dataset, eval_dataset)
        self.recipe = recipe_of(named, method_of(method), task, rewarding, sampler, settings, model_format)
        self._model = self._own(model, tokenizer)
        self._functions = rewarding.functions
        self._callbacks = tuple(callbacks)
        self._output = None if settings.output_dir is None else str(settings.output_dir)

    @classmethod
    def from_recipe(
        cls,
        recipe: str,
        settings: Mapping[str, Any] | None = None,
        *,
        output_dir: str | Path | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Trainer:
        """The trainer of a recipe, shipped or a .toml file, with some settings by the command's words.

        unmask.Trainer.from_recipe("sudoku-mdpo", {"train.max_steps": 20, "method.steps": 2})
        """
        trainer = cls(callbacks=callbacks, args=TrainingConfig(output_dir=output_dir))
        trainer.recipe = recipe_named(recipe, settings or {})
        return trainer

    def train(self, resume_from: str | Path | None = None) -> Run:
        """Train to the last step and evaluate; or go on with the run in a directory, at its newest or that checkpoint.

        A run that goes on must be given what it was begun with, and goes on bit for bit; train.max_steps may be more.
        With `output_dir` it does so in a copy there. Ctrl-C ends it after the step, saved. Raises UserError.
        """
        recipe, name = self.recipe, f"{self.recipe.method.name}-{self.recipe.task.name}"
        recipe.check_blocks()
        resume = None if resume_from is None else str(resume_from)
        if resume is not None:
            check_resumable(resume, self._output, recipe.train.max_steps)
            _check_unchanged(recipe, resume)
        with _in_your_process(), self._given(resume) as given:
            joins = not torch.distributed.is_initialized()
            shard = shard_size(recipe)
            if resume is None:
                run = start_run(recipe, self._output, name, shard, given)
            else:
                run = resume_run(recipe, resume, self._output, shard, given)
            run.finish()
            if joins:
                run.trainer.objective.world.leave()
        return Run(run.directory)

    def _own(self, model: str | nn.Module | None, tokenizer: Any) -> Model | None:
        if model is None or isinstance(model, str):
            if tokenizer is not None:
                raise UserError("tokenizer is given, and the model's name brings one: leave it out")
            return None
        return load_model(model, tokenizer, chat=self.recipe.chat)

    @contextmanager
    def _given(self, resume: str | None) -> Iterator[Given]:
        """The objects of a run; a model of one's own is given back as it came, but for its weights."""
        given = Given(reward_functions=self._functions, callbacks=self._callbacks, owns_process=False)
        if self._model is None:
            yield given
            return
        denoiser, lora_rank = self._model.denoiser, self.recipe.train.lora_rank
        base = frozen_copy(denoiser) if resume is not None and not lora_rank else None
        with as_it_was(self._model.network):
            denoiser.model.config.mask_token_id = denoiser.mask_id  # which its checkpoints name
            try:
                yield replace(given, denoiser=denoiser, tokenizer=self._model.tokenizer, base=base)
            finally:
                if has_adapters(denoiser):
                    merge_adapters(denoiser)


@contextmanager
def _in_your_process() -> Iterator[None]:
    """Random state, threads and transformers' bars are yours again behind it."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(), without_bars():
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _check_unchanged(recipe: Recipe, resume: str) -> None:
    """Raise UserError where a run was begun with other settings than these, in others than may change."""
    path = str(locate_run(resume)[0] / "recipe.toml")
    now = other_names(recipe)
    before = {now.get(name, name): value for name, value in flat(read_recipe(path)).items()}
    after = flat(document_of(with_absolute_paths(recipe)))
    for name in sorted((before.keys() | after.keys()) - set(MAY_CHANGE)):
        if before.get(name) != after.get(name):
            raise UserError(
                f"{name} is {after.get(name, 'unset')!r}, and the run that goes on was begun with "
                f"{before.get(name, 'unset')!r}: give that, or train anew without resume_from"
            )
