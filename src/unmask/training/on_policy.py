"""What the policy learns from in a step: sampled completions, and what they earned."""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from unmask import distributed
from unmask.data.examples import Examples
from unmask.denoisers.base import Denoiser
from unmask.evaluation.evaluator import Evaluator
from unmask.objective.term import Term, record_of
from unmask.rewards import Rewards
from unmask.sampling.sampler import OnFinished, Sampler
from unmask.settings.recipe import Recipe
from unmask.training.mismatch import sampling_mismatch
from unmask.training.policy import Policy
from unmask.types import Rollout
from unmask.uniforms import Uniforms


@dataclass(frozen=True, kw_only=True)
class Experience:
    """Completions of some examples, a group each."""

    rollout: Rollout
    texts: list[str]
    final_N: Tensor  # rewards of the finished completions
    term_rewards: list[
        Tensor
    ]  # for each term, what its advantage reads: rewards [P, G], of recorded guesses [P, G, S or Z]
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ScoredRollout:
    """What a rollout has earned."""

    final_N: Tensor  # rewards of the finished completions
    scores_NK: Tensor  # what each reward function gave them
    term_rewards: list[Tensor]  # for each term, what its advantage reads
    texts: list[str]  # of the finished completions


class Source(Protocol):
    """Where experience comes from."""

    @property
    def examples(self) -> Examples: ...

    def __call__(self, policy: Policy, indices: list[int], uniforms: Uniforms) -> Experience:
        """Experience with the examples at `indices`."""

    def evaluation(self, denoiser: Denoiser, held_out: Evaluator, count: int) -> dict[str, list[float]]:
        """Values of the first held-out examples by "NAME/METRIC"."""


Key = tuple[int, bytes]  # example, tokens of a completion


class _Ahead:
    """Has completions scored as the sampler is done with them, in a thread, while the device goes on sampling."""

    def __init__(self, source: OnPolicySource, indices: list[int]) -> None:
        self._source, self._indices = source, indices
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._asked: list[Future[None]] = []
        self.texts: dict[Key, str] = {}  # of completions so far

    def __enter__(self) -> _Ahead:
        return self

    def __call__(self, rows: list[int], completions_NEC: Tensor) -> None:
        """Completions of some samples, any number of each. See OnFinished."""
        group_size = self._source.recipe.rollout.group_size
        owners = [self._indices[row // group_size] for row in rows]
        self._asked.append(self._pool.submit(self._score, owners, completions_NEC.cpu()))

    def _score(self, owners: list[int], completions_NEC: Tensor) -> None:
        new = self._source.decoded(_keyed(owners, completions_NEC), self.texts)
        self._source.rewards.ask_ahead([index for index, _ in new], list(new.values()))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        for asked in self._asked if kind is None else ():
            asked.result()


def _keyed(owners: list[int], completions_NEC: Tensor) -> list[Key]:
    """The example and the tokens of every completion."""
    rows = completions_NEC.flatten(0, 1).contiguous().numpy()
    each = completions_NEC.shape[1]
    return [(owners[place // each], row.tobytes()) for place, row in enumerate(rows)]


@dataclass(frozen=True, kw_only=True)
class OnPolicySource:
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
        with _Ahead(self, indices) as ahead:
            rollout = self.rollout(policy, indices, uniforms, ahead)
        scored = self.scored(rollout, indices, uniforms, ahead.texts)
        metrics = self._metrics(rollout, scored.final_N.view(-1, rollout.group_size), scored.texts)
        metrics |= self.rewards.metrics(scored.scores_NK, self.accelerator)
        if self.sampler.caching is not None:
            with self.accelerator.autocast():
                metrics |= sampling_mismatch(policy.denoiser, rollout, uniforms, self.accelerator)
        return Experience(
            rollout=rollout,
            texts=scored.texts,
            final_N=scored.final_N,
            term_rewards=scored.term_rewards,
            metrics=metrics,
        )

    def rollout(
        self, policy: Policy, indices: list[int], uniforms: Uniforms, on_finished: OnFinished | None = None
    ) -> Rollout:
        """The completions, with what the method's terms ask the sampler to record."""
        group_size = self.recipe.rollout.group_size
        prompts = self.examples.prompts(indices, group_size, self.accelerator.device)
        policy.denoiser.eval()
        with self.accelerator.autocast():
            return self.sampler(
                policy.denoiser,
                prompts,
                uniforms,
                record=record_of(self.terms),
                group_size=group_size,
                on_finished=on_finished,
            )

    def decoded(self, keys: list[Key], texts: dict[Key, str]) -> dict[Key, str]:
        """Texts of those completions that are not among `texts`, added there."""
        new = [key for key in dict.fromkeys(keys) if key not in texts]
        rows = [np.frombuffer(tokens, dtype=np.int64).tolist() for _, tokens in new]
        added = dict(zip(new, self.examples.texts(self.tokenizer, [index for index, _ in new], rows), strict=True))
        texts |= added
        return added

    def scored(
        self, rollout: Rollout, indices: list[int], uniforms: Uniforms, texts: dict[Key, str] | None = None
    ) -> ScoredRollout:
        """Rewards of the completions and of what was recorded on the way; `texts`: of some that are decoded already."""
        start = rollout.prompt_length
        guesses = [state.guesses_ZNL[..., start:] for state in rollout.snapshots]
        completions_ENC = torch.cat([rollout.tokens_NL[None, :, start:], *guesses])
        scored_NE, scores_NEK, written = self._score(completions_ENC.transpose(0, 1), indices, texts or {})
        final_N = scored_NE[:, 0]
        if self.recipe.train.shuffle_rewards:
            scored_NE = scored_NE[uniforms.permutation(len(scored_NE))]
        grouped = scored_NE.view(len(indices), rollout.group_size, -1)
        read = [grouped[..., 0] if term.record is None else grouped[..., 1:] for term in self.terms]
        return ScoredRollout(final_N=final_N, scores_NK=scores_NEK[:, 0], term_rewards=read, texts=written)

    def _score(
        self, completions_NEC: Tensor, indices: list[int], texts: dict[Key, str]
    ) -> tuple[Tensor, Tensor, list[str]]:
        """Rewards [N, E] and scores [N, E, K] of completions, each distinct one of an example scored once.

        And the texts of the first of each sample.
        """
        samples, each, _ = completions_NEC.shape
        keys = _keyed([index for index in indices for _ in range(samples // len(indices))], completions_NEC.cpu())
        self.decoded(keys, texts)
        distinct = list(dict.fromkeys(keys))
        rewards, scores = self.rewards([index for index, _ in distinct], [texts[key] for key in distinct])
        place = {key: place for place, key in enumerate(distinct)}
        chosen = torch.tensor([place[key] for key in keys]).view(samples, each)
        device = completions_NEC.device
        return rewards[chosen].to(device), scores[chosen].to(device), [texts[key] for key in keys[::each]]

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
