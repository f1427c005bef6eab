"""From a recipe to a trainer: model, frozen policies, optimizer, examples, rewards, evaluators."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from unmask.data.examples import Examples
from unmask.denoisers.adapters import AdaptersOff, add_adapters, load_adapters
from unmask.denoisers.base import Denoiser
from unmask.denoisers.layers.compiled import compile_layers
from unmask.denoisers.layers.recompute import recompute_layers
from unmask.denoisers.load_errors import memory_errors
from unmask.denoisers.loading import load_denoiser, load_tokenizer
from unmask.distributed import World
from unmask.distributed.sharding import layers_of, shard, shard_mesh
from unmask.errors import UserError
from unmask.evaluation.evaluator import Evaluator, over_denoised_examples
from unmask.objective.objective import Objective, frozen_copy
from unmask.report.progress import phase
from unmask.rewards import Rewards, load_functions
from unmask.sampling.records import EveryStep
from unmask.sampling.sampler import Sampler
from unmask.settings.recipe import Recipe, TrainSettings
from unmask.training.checkpoint import load_optimizer, load_reference
from unmask.training.given import NOTHING_GIVEN, Given
from unmask.training.on_policy import OnPolicySource
from unmask.training.preferences import PreferenceSource, check_preferences
from unmask.training.sources import Source
from unmask.training.trainer import Trainer
from unmask.training.update import Updater
from unmask.uniforms import Uniforms


def build_trainer(
    recipe: Recipe, checkpoint: Path | None = None, shard_size: int | None = None, given: Given = NOTHING_GIVEN
) -> Trainer:
    """The trainer of a recipe, with weights from `checkpoint` where given. Raises UserError for what cannot work.

    `shard_size`: ranks that hold the weights together, 0 for all on each; None: by train.shard, where auto is 0.
    `given`: Python objects in the place of what the recipe names.
    """
    settings = recipe.train
    recipe.check_blocks()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    sampler = recipe.rollout.sampler(recipe.task)
    world = World.start(settings.precision, telling=phase)
    if (completions := recipe.rollout.prompts * recipe.rollout.num_generations) < world.size:
        raise UserError(
            f"{world.size} ranks sample {completions} completions a step: start {completions} ranks at most, or a new "
            "run with more rollout.prompts"
        )
    place = _placing(settings, world, ranks_together(settings, shard_size))
    if place.mesh is not None and given.denoiser is not None:
        raise UserError(f"train.shard {settings.shard} loads a model by slices: give it by its name, or set it to 0")
    if place.mesh is not None:
        world = replace(world, precision="fp32")  # the network itself computes in bf16 then, nothing is cast for it
    with phase(f"loading {checkpoint or recipe.model}"):
        tokenizer = given.tokenizer or load_tokenizer(recipe.model)
        updater = _load_updater(recipe, world, checkpoint, place, given)
    terms, denoiser = updater.objective.terms, updater.objective.denoiser
    room = denoiser.max_length - sampler.max_new_tokens

    def encoded(split: str, count: int, seed: int) -> Examples:
        with phase(f"preparing the {split} examples"):
            items = recipe.task.examples(split, count, seed)
            examples = Examples.of(items, tokenizer, denoiser.eos_id, room, recipe.chat, denoiser.other_end_ids)
        check_preferences(examples, terms, recipe.method.name, sampler.max_new_tokens)
        return examples

    held_out = recipe.evaluation
    examples = encoded("train", settings.examples, settings.seed)
    return Trainer(
        recipe=recipe,
        updater=updater,
        tokenizer=tokenizer,
        source=_source(recipe, examples, sampler, tokenizer, updater.objective, given),
        order=list(range(len(examples.items))),
        sampler=sampler,
        uniforms=Uniforms().key(settings.seed),
        evaluators={
            split: Evaluator(
                task=recipe.task,
                tokenizer=tokenizer,
                examples=encoded(split, held_out.examples, held_out.seed),
                uniforms=Uniforms().key("evaluation", held_out.seed),
                batch=held_out.batch,
                device=world.device,
                precision=world.precision,
                world=world,
            )
            for split in recipe.task.splits
            if split != "train"
        },
    )


def _source(
    recipe: Recipe, examples: Examples, sampler: Sampler, tokenizer: Any, objective: Objective, given: Given
) -> Source:
    """The task's own ranked completions where it has some, else sampled ones and the recipe's rewards."""
    terms, world = objective.terms, objective.world
    if examples.ranked_ids:
        return PreferenceSource(
            examples=examples,
            terms=terms,
            length=sampler.max_new_tokens,
            mask_id=objective.denoiser.mask_id,
            tokenizer=tokenizer,
            world=world,
        )
    # At the first call the sampler would say so itself, but then a run directory and an evaluation are there.
    if sampler.unmasking.remasks and any(term.reads_trajectory for term in terms):
        raise UserError(
            f"unmasking {sampler.unmasking.name} masks tokens again, so it leaves no trajectory, which method "
            f"{recipe.method.name} reads: set rollout.unmasking low_confidence"
        )
    for record in (objective.record, EveryStep() if recipe.train.over_denoising_filter else None):
        sampler.check(objective.denoiser, record)
    with phase("loading the rewards"):
        functions = load_functions(
            recipe.reward, recipe.task, world.device, given.reward_functions, owns_process=given.owns_process
        )
        rewards = Rewards(functions=functions, examples=examples)
    with phase("asking the rewards once"):
        rewards.ask_once()
    return OnPolicySource(
        recipe=recipe,
        examples=examples,
        sampler=sampler,
        rewards=rewards,
        terms=terms,
        tokenizer=tokenizer,
        world=world,
    )


def _load_trained(
    recipe: Recipe, checkpoint: Path | None, mesh: DeviceMesh | None, given: Given = NOTHING_GIVEN
) -> Denoiser:
    """The denoiser that is trained, adapters on its base where the recipe wants them; by slices on a mesh."""
    settings = recipe.train
    if (own := given.trained(settings, checkpoint)) is not None:
        return own
    if not settings.lora_rank:
        model = recipe.model if checkpoint is None else str(checkpoint)
        return load_denoiser(model, model_format=recipe.model_format, mesh=mesh)
    dtype = torch.bfloat16 if settings.param_dtype == "bf16" else torch.float32
    denoiser = load_denoiser(recipe.model, dtype, four_bit=settings.four_bit, model_format=recipe.model_format)
    add_adapters(denoiser, settings.lora_rank, settings.lora_alpha)
    if checkpoint is not None:
        load_adapters(denoiser, checkpoint)
    return denoiser


@dataclass(frozen=True, kw_only=True)
class _Placing:
    """Where the weights go: whole to the device, or sharded over a mesh of ranks."""

    world: World
    precision: str
    mesh: DeviceMesh | None

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser there. Raises UserError where its network has no layers to shard."""
        with memory_errors(f"the model, on {self.world.device},"):
            if self.mesh is None:
                return denoiser.to(self.world.device)
            shard(denoiser, layers_of(denoiser.model), self.mesh, self.precision)
        return denoiser


def ranks_together(settings: TrainSettings, shard_size: int | None) -> int:
    """Ranks that hold the weights together, 0 where each holds all: `shard_size`, by train.shard where it is None."""
    return settings.shard_size if shard_size is None else shard_size


def _placing(settings: TrainSettings, world: World, shard_size: int) -> _Placing:
    if shard_size and world.size % shard_size:
        raise UserError(f"train.shard {shard_size} does not divide {world.size} ranks: give {world.size}, or 0")
    mesh = shard_mesh(world, shard_size) if shard_size else None
    return _Placing(world=world, precision=settings.precision, mesh=mesh)


def _frozen(recipe: Recipe, denoiser: Denoiser, place: _Placing, checkpoint: Path | None) -> Denoiser:
    """A copy of the denoiser that is never trained; loaded again where the denoiser is sharded."""
    if place.mesh is None:
        return place(frozen_copy(denoiser))
    return place(_load_trained(recipe, checkpoint, place.mesh).eval().requires_grad_(False))


def _load_reference(
    recipe: Recipe, denoiser: Denoiser, place: _Placing, checkpoint: Path | None, given: Given
) -> Denoiser | AdaptersOff:
    """The reference policy: adapters off, a frozen copy of the base, or what it had become at the checkpoint."""
    if recipe.train.lora_rank:
        return AdaptersOff(denoiser)
    if checkpoint is None:
        return _frozen(recipe, denoiser, place, None)
    reference = given.base or load_denoiser(recipe.model, model_format=recipe.model_format, mesh=place.mesh)
    reference = place(reference.eval().requires_grad_(False))
    if recipe.train.ref_model_sync_steps:
        load_reference(checkpoint, reference)
    return reference


def _load_objective(recipe: Recipe, world: World, checkpoint: Path | None, place: _Placing, given: Given) -> Objective:
    """The method's terms on the denoiser that is trained, with the frozen weights that they read."""
    settings = recipe.train
    denoiser = place(_load_trained(recipe, checkpoint, place.mesh, given))
    terms = recipe.method.terms(denoiser.eos_id)
    reference = old = None
    if any(term.reads("reference") for term in terms):
        reference = _load_reference(recipe, denoiser, place, checkpoint, given)
    elif settings.ref_model_sync_steps:
        raise UserError(
            f"train.ref_model_sync_steps {settings.ref_model_sync_steps} moves a reference that method "
            f"{recipe.method.name} with these settings does not read: set it to 0"
        )
    if settings.num_iterations > 1 and any(term.blend is not None for term in terms):
        old = _frozen(recipe, denoiser, place, checkpoint)
    return Objective(
        terms=terms,
        denoiser=denoiser,
        reference=reference,
        old=old,
        micro_batch=settings.micro_batch,
        world=world,
    )


def _load_updater(recipe: Recipe, world: World, checkpoint: Path | None, place: _Placing, given: Given) -> Updater:
    """The objective with its optimizer, moments from the checkpoint."""
    settings = recipe.train
    objective = _load_objective(recipe, world, checkpoint, place, given)
    denoiser = objective.denoiser
    optimizer = torch.optim.AdamW(
        [weight for weight in denoiser.parameters() if weight.requires_grad],
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.weight_decay,
    )
    if checkpoint is not None:
        load_optimizer(checkpoint, denoiser, optimizer)
    if settings.gradient_checkpointing:
        recompute_layers(denoiser)
    if settings.torch_compile:
        compile_layers(denoiser)
    return Updater(objective=objective, optimizer=optimizer, max_grad_norm=settings.max_grad_norm)


def filtered_order(trainer: Trainer) -> list[int]:
    """Indices of training examples that the model over-denoises (MDPO 2508.13148). Raises UserError where none is."""
    recipe = trainer.recipe
    evaluator = replace(trainer.evaluators["test"], examples=trainer.source.examples)
    sampler = recipe.rollout.sampler(recipe.task, temperature=0.0)
    with phase("over-denoising filter", len(evaluator.examples.items), unit="completion"):
        flags = over_denoised_examples(evaluator, trainer.objective.denoiser, sampler)
    kept = [index for index, flag in enumerate(flags) if flag]
    if not kept:
        raise UserError(
            f"train.over_denoising_filter kept none of {len(flags)} examples: "
            "raise train.examples or set the filter to false"
        )
    return kept
