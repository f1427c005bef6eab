"""Completions sampled from the policy of now, and scored by reward functions while others are being sampled."""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmask.data.examples import Examples
from unmask.denoisers.base import Denoiser
from unmask.distributed import World
from unmask.evaluation.evaluator import Evaluator
from unmask.objective.term import Term, record_of
from unmask.report.progress import doing
from unmask.rewards import Rewards
from unmask.sampling.sampler import OnFinished, Sampler
from unmask.settings.recipe import Recipe
from unmask.training.mismatch import sampling_mismatch
from unmask.training.sources import Experience
from unmask.types import Rollout
from unmask.uniforms import Uniforms

# An example's index, and the bytes of a completion's token row: a dictionary key that needs no text yet. A completion
# is met several times (while sampled, at the end, among recorded guesses) and is decoded and scored once.
CompletionKey = tuple[int, bytes]


@dataclass(frozen=True, kw_only=True)
class ScoredRollout:
    """What a rollout has earned. K: reward functions."""

    reward_N: Tensor  # of the finished completions
    scores_NK: Tensor  # what each reward function gave them
    term_rewards: list[Tensor]  # for each term, what its advantage reads: see Experience
    texts: list[str]  # of the finished completions


class BackgroundScoring:
    """Scores completions in a thread as the sampler finishes them, while the device goes on sampling.

    A context manager to pass to the sampler as `on_finished`; leaving it waits for the scores, and raises what failed.
    """

    def __init__(self, source: OnPolicySource, indices: list[int]) -> None:
        self._source, self._indices = source, indices
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._pending: list[Future[None]] = []
        self.texts: dict[CompletionKey, str] = {}  # of completions so far

    def __enter__(self) -> BackgroundScoring:
        return self

    def __call__(self, rows: list[int], completions_NEC: Tensor) -> None:
        """Take E completions of each of some samples of the rollout. See OnFinished."""
        group_size = self._source.recipe.rollout.group_size
        owners = [self._indices[row // group_size] for row in rows]
        self._pending.append(self._pool.submit(self._score, owners, completions_NEC.cpu()))

    def _score(self, owners: list[int], completions_NEC: Tensor) -> None:
        new = self._source.decode_new(_keys_of(owners, completions_NEC), self.texts)
        self._source.rewards.score_ahead([index for index, _ in new], list(new.values()))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        for pending in self._pending if kind is None else ():
            pending.result()


def _keys_of(owners: list[int], completions_NEC: Tensor) -> list[CompletionKey]:
    """Keys of all completions, E of each owner."""
    rows = completions_NEC.flatten(0, 1).contiguous().numpy()
    each = completions_NEC.shape[1]
    return [(owners[place // each], row.tobytes()) for place, row in enumerate(rows)]


def _rows_of(keys: list[CompletionKey]) -> tuple[list[int], list[list[int]]]:
    """The example and the tokens of each completion."""
    return [index for index, _ in keys], [np.frombuffer(tokens, dtype=np.int64).tolist() for _, tokens in keys]


@dataclass(frozen=True, kw_only=True)
class OnPolicySource:
    """Samples a group of completions for each example and scores them by the reward functions. See Source."""

    recipe: Recipe
    examples: Examples
    sampler: Sampler
    rewards: Rewards
    terms: tuple[Term, ...]
    tokenizer: Any
    world: World

    def __call__(self, denoiser: Denoiser, numbers: list[int], uniforms: Uniforms) -> Experience:
        """Sampled and scored completions, a group for each of this rank's examples."""
        indices = self.examples.indices(numbers)
        with BackgroundScoring(self, indices) as scoring:
            rollout = self.rollout(denoiser, numbers, uniforms, scoring)
            doing("rewards")
        scored = self.score(rollout, indices, uniforms, scoring.texts)
        metrics = self._metrics(rollout, scored.reward_N.view(-1, rollout.group_size), scored.texts)
        metrics |= self.rewards.metrics(scored.scores_NK, self.world)
        if self.sampler.caching is not None:
            with self.world.autocast():
                metrics |= sampling_mismatch(denoiser, rollout, uniforms, self.world)
        return Experience(
            rollout=rollout,
            texts=scored.texts,
            reward_N=scored.reward_N,
            term_rewards=scored.term_rewards,
            metrics=metrics,
        )

    def rollout(
        self, denoiser: Denoiser, numbers: list[int], uniforms: Uniforms, on_finished: OnFinished | None = None
    ) -> Rollout:
        """Sampled completions of numbered examples, with what the method's terms ask the sampler to record."""
        group_size = self.recipe.rollout.group_size
        prompts = self.examples.prompts(numbers, group_size, self.world.device)
        denoiser.eval()
        with self.world.autocast():
            return self.sampler(
                denoiser,
                prompts,
                uniforms,
                record=record_of(self.terms),
                group_size=group_size,
                on_finished=on_finished,
            )

    def decode_new(self, keys: list[CompletionKey], texts: dict[CompletionKey, str]) -> dict[CompletionKey, str]:
        """Decode the completions that are not in `texts` yet: their texts, which are added to `texts` too."""
        new = [key for key in dict.fromkeys(keys) if key not in texts]
        added = dict(zip(new, self.examples.texts(self.tokenizer, *_rows_of(new)), strict=True))
        texts |= added
        return added

    def _raw_texts(self, keys: list[CompletionKey]) -> list[str]:
        return self.examples.raw_texts(self.tokenizer, *_rows_of(keys))

    def score(
        self, rollout: Rollout, indices: list[int], uniforms: Uniforms, texts: dict[CompletionKey, str] | None = None
    ) -> ScoredRollout:
        """Rewards of the finished completions and of recorded guesses; `texts`: of those that are decoded already."""
        start = rollout.prompt_length
        guesses = [state.guesses_ZNL[..., start:] for state in rollout.snapshots]
        completions_ENC = torch.cat([rollout.tokens_NL[None, :, start:], *guesses])
        reward_NE, scores_NEK, final_texts = self._score(completions_ENC.transpose(0, 1), indices, texts or {})
        reward_N = reward_NE[:, 0]
        if self.recipe.train.shuffle_rewards:
            reward_NE = self._shuffled(reward_NE, uniforms)
        reward_PGE = reward_NE.view(len(indices), rollout.group_size, -1)
        read = [reward_PGE[..., 0] if term.record is None else reward_PGE[..., 1:] for term in self.terms]
        return ScoredRollout(reward_N=reward_N, scores_NK=scores_NEK[:, 0], term_rewards=read, texts=final_texts)

    def _shuffled(self, reward_NE: Tensor, uniforms: Uniforms) -> Tensor:
        """This rank's part of the rewards of all ranks, permuted over the whole batch: the same on any number."""
        everyone = self.world.gather(reward_NE)
        order = self.world.share(uniforms.permutation(len(everyone)))
        return everyone[order]

    def _score(
        self, completions_NEC: Tensor, indices: list[int], texts: dict[CompletionKey, str]
    ) -> tuple[Tensor, Tensor, list[str]]:
        """Rewards [N, E] and scores [N, E, K], each distinct completion scored once; texts of each sample's first."""
        samples, each, _ = completions_NEC.shape
        keys = _keys_of([index for index in indices for _ in range(samples // len(indices))], completions_NEC.cpu())
        self.decode_new(keys, texts)
        distinct = list(dict.fromkeys(keys))
        owners = [index for index, _ in distinct]
        raw = self._raw_texts(distinct) if self.rewards.reads_raw else None
        rewards, scores = self.rewards(owners, [texts[key] for key in distinct], raw)
        place = {key: place for place, key in enumerate(distinct)}
        chosen = torch.tensor([place[key] for key in keys]).view(samples, each)
        device = completions_NEC.device
        return rewards[chosen].to(device), scores[chosen].to(device), [texts[key] for key in keys[::each]]

    def _metrics(self, rollout: Rollout, reward_PG: Tensor, texts: list[str]) -> dict[str, float]:
        """Rewards, entropy and lengths over all ranks, names as in TRL."""
        completion = rollout.completion_NL
        well_formed = sum(map(self.recipe.task.well_formed, texts))
        equal_P = reward_PG.amax(1) == reward_PG.amin(1)  # a rounded deviation of equal rewards is noise, not 0
        sums = torch.stack(
            [
                reward_PG.sum(),
                reward_PG.std(1).masked_fill(equal_P, 0.0).sum(),
                equal_P.sum(),
                (rollout.sampled_logp_NL * completion).sum(),
                completion.sum(),
                reward_PG.mean(1).square().sum(),
                reward_PG.new_tensor(well_formed),
            ]
        )
        reward, spread, equal, logp, tokens, square, valid = self.world.sum(sums).tolist()
        prompts = self.recipe.rollout.prompts
        samples = prompts * rollout.group_size
        mean = reward / samples
        metrics = {
            "reward": mean,
            "reward_std": spread / prompts,
            "frac_reward_zero_std": equal / prompts,
            "entropy": -logp / tokens,
            "completions/mean_length": tokens / samples,
            "completions/valid_fraction": valid / samples,
        }
        if prompts > 1:  # completions of one prompt are alike: the batch is as uncertain as its prompts are few
            variance = max(square / prompts - mean**2, 0.0) / (prompts - 1)
            metrics["reward_stderr"] = math.sqrt(variance)
        return metrics

    @property
    def evaluation_passes(self) -> int:
        """One for each way of sampling; none where the task compares no answers."""
        return len(self._evaluation_samplers) if self.recipe.task.verifies else 0

    @property
    def _evaluation_samplers(self) -> dict[str, Sampler]:
        task, settings = self.recipe.task, self.recipe.rollout
        few = settings.sampler(task, temperature=0.0)
        many = settings.sampler(task, steps=self.recipe.evaluation.greedy_steps, temperature=0.0)
        return {
            f"sampled_{self.sampler.steps_taken}": self.sampler,
            f"greedy_{few.steps_taken}": few,
            f"greedy_{many.steps_taken}": many,
        }

    def evaluation(self, denoiser: Denoiser, held_out: Evaluator, count: int) -> dict[str, list[float]]:
        """The task's metrics: sampled as in training, greedy in as many steps, and greedy in many."""
        return {
            f"{name}/{metric}": values
            for name, sampler in self._evaluation_samplers.items()
            for metric, values in held_out.metrics(denoiser, sampler, count).items()
        }
