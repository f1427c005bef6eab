"""The training loop: prompts → rollouts → rewards → updates. Blind to the method."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask import distributed
from unmask.checkpoint import load_optimizer, load_reference
from unmask.data import Examples, completion_texts, rollout_texts
from unmask.denoisers.adapters import AdaptersOff, add_adapters, load_adapters
from unmask.denoisers.base import Denoiser
from unmask.denoisers.pretrained import load_denoiser, load_tokenizer
from unmask.denoisers.recompute import recompute_layers
from unmask.errors import UserError
from unmask.evaluate import Evaluator, over_denoised, solved_summary
from unmask.methods.base import Term, record_of
from unmask.policy import Policy
from unmask.recipe import Recipe
from unmask.sampling import Sampler
from unmask.types import Rollout
from unmask.uniforms import Uniforms


@dataclass(kw_only=True)
class Trainer:
    """A policy, its prompts and its objective; `step` is one batch of rollouts and its updates."""

    recipe: Recipe
    policy: Policy
    tokenizer: Any
    examples: Examples
    order: list[int]  # examples that are trained on
    sampler: Sampler
    terms: tuple[Term, ...]
    uniforms: Uniforms
    evaluators: dict[str, Evaluator]  # by held-out split, "test" first
    device: Any

    def step(self, step: int) -> tuple[dict[str, float], dict[str, Any]]:
        """Training step number `step` (from 0): its metrics, and one prompt's completions to look at."""
        settings = self.recipe.train
        uniforms = self.uniforms.key("iteration", step)
        indices = distributed.own_share(self.policy.accelerator, self._prompts_of(step))
        rollout = self.rollout(indices, uniforms)
        solved, rewards = self._rewards(rollout, indices, uniforms)
        questions = self.policy.questions(self.terms, rollout, rewards, uniforms, settings.updates)
        rate = settings.learning_rate_at(step)
        updates = [self.policy.update(question, rate) for question in questions]
        if settings.reference_sync_steps and (step + 1) % settings.reference_sync_steps == 0:
            self.policy.sync_reference(settings.reference_mixup)
        metrics = {name: sum(update[name] for update in updates) / len(updates) for name in updates[0]}
        texts = rollout_texts(self.tokenizer, rollout, self.examples.eos_id)
        seen = self._rollout_metrics(rollout, solved.view(-1, rollout.group_size), texts)
        return metrics | {"learning_rate": rate} | seen, self._sample(rollout, indices, solved, texts)

    def rollout(self, indices: list[int], uniforms: Uniforms) -> Rollout:
        """A group of completions for each example."""
        group_size = self.recipe.rollout.group_size
        prompts = self.examples.prompts(indices, group_size, self.device)
        self.policy.denoiser.eval()
        with self.policy.accelerator.autocast():
            return self.sampler(
                self.policy.denoiser, prompts, uniforms, record=record_of(self.terms), group_size=group_size
            )

    def _prompts_of(self, step: int) -> list[int]:
        """The step's examples: epochs of a keyed order."""
        count, size = self.recipe.rollout.prompts, len(self.order)
        chosen = []
        for place in range(step * count, (step + 1) * count):
            epoch = self.uniforms.key("epoch", place // size)
            chosen.append(self.order[_permutation(epoch, size)[place % size]])
        return chosen

    def _rewards(self, rollout: Rollout, indices: list[int], uniforms: Uniforms) -> tuple[Tensor, list[Tensor]]:
        """Final rewards [N], and for each term what its credit reads."""
        start = rollout.prompt_length
        guesses = [state.guesses_ZNL[..., start:] for state in rollout.snapshots]
        completions_ENC = torch.cat([rollout.tokens_NL[None, :, start:], *guesses])
        scored_NE = self._score(completions_ENC.transpose(0, 1), indices)
        solved = scored_NE[:, 0]
        if self.recipe.train.shuffle_rewards:
            scored_NE = scored_NE[uniforms.permutation(len(scored_NE))]
        grouped = scored_NE.view(len(indices), rollout.group_size, -1)
        return solved, [grouped[..., 0] if term.record is None else grouped[..., 1:] for term in self.terms]

    def _score(self, completions_NEC: Tensor, indices: list[int]) -> Tensor:
        """Rewards [N, E] of completions, each distinct one of an example decoded and scored once."""
        samples, each, _ = completions_NEC.shape
        owners = [index for index in indices for _ in range(samples // len(indices) * each)]
        keys = list(zip(owners, map(tuple, completions_NEC.flatten(0, 1).tolist()), strict=True))
        distinct = list(dict.fromkeys(keys))
        texts = completion_texts(self.tokenizer, [list(row) for _, row in distinct], self.examples.eos_id)
        asked = [index for index, _ in distinct]
        prompts = [self.examples.items[index].prompt for index in asked]
        rewards = self.recipe.task.rewards(prompts, texts, **self.examples.columns(asked, 1))
        reward_of = dict(zip(distinct, rewards, strict=True))
        return torch.tensor([reward_of[key] for key in keys], device=self.device).view(samples, each)

    def _rollout_metrics(self, rollout: Rollout, final_PG: Tensor, texts: list[str]) -> dict[str, float]:
        completion = rollout.completion_NL
        well_formed = sum(map(self.recipe.task.well_formed, texts))
        sums = torch.stack(
            [
                final_PG.sum(),
                final_PG.std(1).sum(),
                (final_PG.std(1) == 0).sum(),
                (rollout.sampled_logp_NL * completion).sum(),
                completion.sum(),
                final_PG.mean(1).square().sum(),
                final_PG.new_tensor(well_formed),
            ]
        )
        reward, spread, equal, logp, tokens, square, valid = distributed.total(self.policy.accelerator, sums).tolist()
        prompts = self.recipe.rollout.prompts
        samples = prompts * rollout.group_size
        mean = reward / samples
        # Completions of one prompt are alike: the batch is as uncertain as its prompts are few.
        variance = max(square / prompts - mean**2, 0.0) / max(1, prompts - 1)
        return {
            "reward": mean,
            "reward_std": spread / prompts,
            "reward_stderr": math.sqrt(variance),
            "frac_reward_zero_std": equal / prompts,
            "entropy": -logp / tokens,
            "completions/mean_length": tokens / samples,
            "completions/valid_fraction": valid / samples,
        }

    def _sample(self, rollout: Rollout, indices: list[int], solved: Tensor, texts: list[str]) -> dict[str, Any]:
        """The first prompt's group, with the step that revealed each token."""
        group = (slice(rollout.group_size), slice(rollout.prompt_length, None))
        tokens = [self.tokenizer.convert_ids_to_tokens(row) for row in rollout.tokens_NL[group].tolist()]
        columns = (texts[: rollout.group_size], solved.tolist()[: rollout.group_size], tokens)
        revealed_at = rollout.revealed_at_NL[group].tolist()
        return {
            "prompt": self.examples.items[indices[0]].prompt,
            "completions": [
                {"text": text, "reward": reward, "tokens": words, "revealed_at": steps}
                for text, reward, words, steps in zip(*columns, revealed_at, strict=True)
            ],
        }

    def evaluation(self, count: int) -> dict[str, list[float]]:
        """Values of test examples by "NAME/METRIC": sampled as in training, greedy in as many and in many steps."""
        task, settings = self.recipe.task, self.recipe.rollout
        few, many = settings.steps, self.recipe.evaluation.greedy_steps
        samplers = {
            f"sampled_{few}": self.sampler,
            f"greedy_{few}": settings.sampler(task, temperature=0.0),
            f"greedy_{many}": settings.sampler(task, steps=many, temperature=0.0),
        }
        return {
            f"{name}/{metric}": values
            for name, sampler in samplers.items()
            for metric, values in self.evaluators["test"].metrics(self.policy.denoiser, sampler, count).items()
        }

    def further_evaluation(self) -> dict[str, list[float]]:
        """Values of the task's further held-out splits by "SPLIT/METRIC", sampled as in training."""
        return {
            f"{split}/{metric}": values
            for split, evaluator in self.evaluators.items()
            if split != "test"
            for metric, values in evaluator.metrics(self.policy.denoiser, self.sampler).items()
        }


_PERMUTATIONS: dict[Any, list[int]] = {}


def _permutation(key: Uniforms, size: int) -> list[int]:
    """A keyed permutation, the last one remembered."""
    if (key, size) not in _PERMUTATIONS:
        _PERMUTATIONS.clear()
        _PERMUTATIONS[key, size] = key.permutation(size)
    return _PERMUTATIONS[key, size]


def evaluation_row(values: dict[str, list[float]]) -> dict[str, float]:
    """Metrics of an evaluation: means, and 95 % intervals of solve rates."""
    row: dict[str, float] = {}
    for name, numbers in values.items():
        if name.endswith("/solved"):
            prefix = "eval/" + name.removesuffix("solved")
            row |= {prefix + key: value for key, value in solved_summary(numbers).items()}
        else:
            row[f"eval/{name}"] = sum(numbers) / len(numbers)
    return row


def build_trainer(recipe: Recipe, checkpoint: Path | None = None) -> Trainer:
    """All that a run needs, its weights from `checkpoint` where given. Raises UserError before anything is written."""
    settings = recipe.train
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    sampler = recipe.rollout.sampler(recipe.task)
    recipe.rollout.sampler(recipe.task, steps=recipe.evaluation.greedy_steps)
    accelerator = distributed.make_accelerator(settings.precision)
    if recipe.rollout.prompts % accelerator.num_processes:
        raise UserError(
            f"rollout.prompts {recipe.rollout.prompts} cannot be shared by {accelerator.num_processes} ranks: "
            "give a multiple"
        )
    tokenizer = load_tokenizer(recipe.model)
    terms, policy = _load_policy(recipe, accelerator, checkpoint)
    denoiser = policy.denoiser
    room = denoiser.max_length - sampler.max_new_tokens

    def encoded(split: str, count: int, seed: int) -> Examples:
        return Examples.of(recipe.task.examples(split, count, seed), tokenizer, denoiser.eos_id, room)

    held_out = recipe.evaluation
    return Trainer(
        recipe=recipe,
        policy=policy,
        tokenizer=tokenizer,
        examples=(examples := encoded("train", settings.examples, settings.seed)),
        order=list(range(len(examples.items))),
        sampler=sampler,
        terms=terms,
        uniforms=Uniforms().key(settings.seed),
        evaluators={
            split: Evaluator(
                task=recipe.task,
                tokenizer=tokenizer,
                examples=encoded(split, held_out.examples, held_out.seed),
                uniforms=Uniforms().key("evaluation", held_out.seed),
                batch=held_out.batch,
                device=accelerator.device,
            )
            for split in recipe.task.splits
            if split != "train"
        },
        device=accelerator.device,
    )


def _load_trained(recipe: Recipe, checkpoint: Path | None) -> Denoiser:
    """The denoiser that is trained, adapters on its base where the recipe wants them."""
    settings = recipe.train
    if not settings.lora_rank:
        return load_denoiser(recipe.model if checkpoint is None else str(checkpoint))
    denoiser = load_denoiser(recipe.model, torch.bfloat16 if settings.weights == "bf16" else torch.float32)
    add_adapters(denoiser, settings.lora_rank, settings.lora_alpha)
    if checkpoint is not None:
        load_adapters(denoiser, checkpoint)
    return denoiser


def _load_reference(recipe: Recipe, denoiser: Denoiser, checkpoint: Path | None) -> Denoiser | AdaptersOff:
    """The reference policy: adapters off, a frozen copy of the base, or what it had become at the checkpoint."""
    if recipe.train.lora_rank:
        return AdaptersOff(denoiser)
    reference = load_denoiser(recipe.model) if checkpoint else copy.deepcopy(denoiser)
    if checkpoint is not None and recipe.train.reference_sync_steps:
        load_reference(checkpoint, reference)
    return reference.eval().requires_grad_(False)


def _load_policy(recipe: Recipe, accelerator: Any, checkpoint: Path | None) -> tuple[tuple[Term, ...], Policy]:
    """The method's terms, and the policy with the frozen weights that they read."""
    settings = recipe.train
    denoiser = _load_trained(recipe, checkpoint).to(accelerator.device)
    terms = recipe.method.terms(denoiser.eos_id)
    reference = old = None
    if any(term.reads("reference") for term in terms):
        reference = _load_reference(recipe, denoiser, checkpoint).to(accelerator.device)
    if settings.updates > 1 and any(term.blend is not None for term in terms):
        old = copy.deepcopy(denoiser).eval().requires_grad_(False)
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
    return terms, Policy(
        denoiser=denoiser,
        optimizer=optimizer,
        reference=reference,
        accelerator=accelerator,
        max_grad_norm=settings.max_grad_norm,
        micro_batch=settings.micro_batch,
        old=old,
    )


def filtered_order(trainer: Trainer) -> list[int]:
    """Examples that the base model over-denoises. Raises UserError where there are none."""
    recipe = trainer.recipe
    flags = over_denoised(
        trainer.policy.denoiser,
        trainer.tokenizer,
        recipe.task,
        trainer.examples,
        recipe.rollout.sampler(recipe.task, temperature=0.0),
        recipe.evaluation.batch,
        trainer.device,
    )
    kept = [index for index, flag in enumerate(flags) if flag]
    if not kept:
        raise UserError(
            f"train.over_denoising_filter kept none of {len(flags)} examples: "
            "raise train.examples or set the filter to false"
        )
    return kept
