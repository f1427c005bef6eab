"""What the policy learns from in a step: sampled completions, and what they earned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from unmask import distributed
from unmask.data import Examples, rollout_texts
from unmask.denoisers.base import Denoiser
from unmask.evaluate import Evaluator
from unmask.methods.base import Term, record_of
from unmask.policy import Policy
from unmask.recipe import Recipe
from unmask.rewards import Rewards
from unmask.sampling import Sampler
from unmask.types import Rollout
from unmask.uniforms import Uniforms


@dataclass(frozen=True, kw_only=True)
class Experience:
    """Completions of some examples, a group each."""

    rollout: Rollout
    texts: list[str]
    final_N: Tensor  # rewards of the finished completions
    read: list[Tensor]  # for each term, what its credit reads: rewards [P, G], of recorded guesses [P, G, S or Z]
    metrics: dict[str, float]


class Source(Protocol):
    """Where experience comes from."""

    @property
    def examples(self) -> Examples: ...

    def __call__(self, policy: Policy, indices: list[int], uniforms: Uniforms) -> Experience:
        """Experience with the examples at `indices`."""

    def evaluation(self, denoiser: Denoiser, held_out: Evaluator, count: int) -> dict[str, list[float]]:
        """Values of the first held-out examples by "NAME/METRIC"."""


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Completions sampled from the policy, scored by the reward functions."""

    recipe: Recipe
    examples: Examples
    sampler: Sampler
    rewards: Rewards
    terms: tuple[Term, ...]
    tokenizer: Any
    accelerator: Any

    def __call__(self, policy: Policy, indices: list[int], uniforms: Uniforms) -> Experience:
        """A group for each example. See Source."""
        rollout = self.rollout(policy, indices, uniforms)
        final_N, scores_NK, read = self.scored(rollout, indices, uniforms)
        texts = rollout_texts(self.tokenizer, rollout, self.examples)
        metrics = self._metrics(rollout, final_N.view(-1, rollout.group_size), texts)
        metrics |= self.rewards.metrics(scores_NK, self.accelerator)
        return Experience(rollout=rollout, texts=texts, final_N=final_N, read=read, metrics=metrics)

    def rollout(self, policy: Policy, indices: list[int], uniforms: Uniforms) -> Rollout:
        """The completions, with what the method's terms ask the sampler to record."""
        group_size = self.recipe.rollout.group_size
        prompts = self.examples.prompts(indices, group_size, self.accelerator.device)
        policy.denoiser.eval()
        with self.accelerator.autocast():
            record = record_of(self.terms)
            return self.sampler(policy.denoiser, prompts, uniforms, record=record, group_size=group_size)

    def scored(self, rollout: Rollout, indices: list[int], uniforms: Uniforms) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Final rewards [N], what each reward function gave [N, K], and for each term what its credit reads."""
        start = rollout.prompt_length
        guesses = [state.guesses_ZNL[..., start:] for state in rollout.snapshots]
        completions_ENC = torch.cat([rollout.tokens_NL[None, :, start:], *guesses])
        scored_NE, scores_NEK = self._score(completions_ENC.transpose(0, 1), indices)
        final_N = scored_NE[:, 0]
        if self.recipe.train.shuffle_rewards:
            scored_NE = scored_NE[uniforms.permutation(len(scored_NE))]
        grouped = scored_NE.view(len(indices), rollout.group_size, -1)
        read = [grouped[..., 0] if term.record is None else grouped[..., 1:] for term in self.terms]
        return final_N, scores_NEK[:, 0], read

    def _score(self, completions_NEC: Tensor, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Rewards [N, E] and scores [N, E, K] of completions, each distinct one of an example scored once."""
        samples, each, _ = completions_NEC.shape
        owners = [index for index in indices for _ in range(samples // len(indices) * each)]
        keys = list(zip(owners, map(tuple, completions_NEC.flatten(0, 1).tolist()), strict=True))
        distinct = list(dict.fromkeys(keys))
        asked = [index for index, _ in distinct]
        texts = self.examples.texts(self.tokenizer, asked, [list(row) for _, row in distinct])
        rewards, scores = self.rewards(asked, texts)
        place = {key: place for place, key in enumerate(distinct)}
        chosen = torch.tensor([place[key] for key in keys]).view(samples, each)
        device = completions_NEC.device
        return rewards[chosen].to(device), scores[chosen].to(device)

    def _metrics(self, rollout: Rollout, final_PG: Tensor, texts: list[str]) -> dict[str, float]:
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
        reward, spread, equal, logp, tokens, square, valid = distributed.total(self.accelerator, sums).tolist()
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

    def evaluation(self, denoiser: Denoiser, held_out: Evaluator, count: int) -> dict[str, list[float]]:
        """Sampled as in training, greedy in as many and in many steps. See Source."""
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
            for metric, values in held_out.metrics(denoiser, sampler, count).items()
        }
