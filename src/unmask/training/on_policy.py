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
from unmask.distributed.sharding import gathered
from unmask.evaluation.evaluator import Evaluator
from unmask.objective.term import Term, record_of
from unmask.report.progress import doing
from unmask.rewards import Rewards
from unmask.rewards.functions import NotFiniteError
from unmask.sampling.sampler import OnFinished, Sampler
from unmask.settings.recipe import Recipe
from unmask.training.dealing import Dealing, dealt_groups
from unmask.training.mismatch import sampling_mismatch
from unmask.training.sources import Experience
from unmask.types import Rollout
from unmask.uniforms import Uniforms

# An example's index, and the bytes of a completion's token row: a dictionary key that needs no text yet. A completion
# is met several times (while sampled, at the end, among recorded guesses) and is decoded and scored once.
CompletionKey = tuple[int, bytes]


@dataclass(frozen=True, kw_only=True)
class ScoredRollout:
    """What a rollout has earned. E: completions of a sample, the finished one and then the guesses; K: functions."""

    reward_NE: Tensor
    scores_NK: Tensor  # what each reward function gave the finished completions


class BackgroundScoring:
    """Scores completions in a thread as the sampler finishes them, while the device goes on sampling.

    A context manager to pass to the sampler as `on_finished`; leaving it waits for the scores, and raises what failed.
    """

    def __init__(self, source: OnPolicySource, owners: list[int]) -> None:
        self._source, self._owners = source, owners  # the example of each sample
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._pending: list[Future[None]] = []
        self.texts: dict[CompletionKey, str] = {}  # of completions so far

    def __enter__(self) -> BackgroundScoring:
        return self

    def __call__(self, rows: list[int], completions_NEC: Tensor) -> None:
        """Take E completions of each of some samples of the rollout. See OnFinished."""
        owners = [self._owners[row] for row in rows]
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
        """Sampled and scored completions: each rank samples and scores its share, and gets groups of all of them."""
        dealing = Dealing(world=self.world, groups=len(numbers), group_size=self.recipe.rollout.num_generations)
        indices = self.examples.indices(numbers)
        owners = [indices[row // dealing.group_size] for row in dealing.rows]
        fault = None
        try:
            with BackgroundScoring(self, owners) as scoring:
                sampled = self.rollout(denoiser, numbers, uniforms, scoring)
                doing("rewards")
            scored = self.score(sampled, owners, scoring.texts)
        except NotFiniteError as error:
            fault = str(error)
        for each in self.world.everyone(fault):  # the step is skipped by all ranks alike
            if each is not None:
                raise NotFiniteError(each)
        metrics = self.rewards.metrics(scored.scores_NK, self.world) | self.world.waiting("rollout")
        reward_NE = dealing.gathered(scored.reward_NE)
        learnt_NE = reward_NE
        if self.recipe.train.shuffle_rewards:  # over the whole batch, the same on any number of ranks
            learnt_NE = reward_NE[uniforms.permutation(len(reward_NE))]
        term_rewards = self._read(learnt_NE.view(dealing.groups, dealing.group_size, -1))
        groups = dealt_groups(self._work(dealing, sampled, term_rewards), self.world.size)[self.world.rank]
        rollout = dealing.of_groups(sampled, groups)
        reward_PG = reward_NE[:, 0].view(dealing.groups, -1)[groups]
        texts = self._final_texts(rollout, scoring.texts)
        metrics = self._metrics(rollout, reward_PG, texts) | metrics
        if self.sampler.caching is not None:
            with gathered(denoiser), self.world.autocast():
                metrics |= sampling_mismatch(denoiser, rollout, uniforms, self.world)
        return Experience(
            rollout=rollout,
            texts=texts,
            reward_N=reward_PG.flatten(),
            term_rewards=[reward[groups] for reward in term_rewards],
            metrics=metrics,
        )

    def _work(self, dealing: Dealing, sampled: Rollout, term_rewards: list[Tensor]) -> list[float]:
        """What training on each group will take, about: the columns of its forwards and the tokens scored there.

        None for groups whose rewards are all equal, where no term is pulled elsewhere.
        """
        tokens_N = dealing.gathered(sampled.completion_NL.sum(1)) + sampled.tokens_NL.shape[1]
        work_P = tokens_N.view(dealing.groups, -1).sum(1)
        if not any(term.trains_all for term in self.terms):
            rewards = [reward.flatten(1) for reward in term_rewards]
            work_P = work_P * torch.stack([reward.amax(1) > reward.amin(1) for reward in rewards]).any(0)
        work: list[float] = work_P.tolist()
        return work

    def _final_texts(self, rollout: Rollout, texts: dict[CompletionKey, str]) -> list[str]:
        """Texts of the finished completions; `texts`: those that are decoded already."""
        owners = self.examples.indices(rollout.prompt_N.tolist())
        keys = _keys_of(owners, rollout.tokens_NL[:, None, rollout.prompt_length :].cpu())
        self.decode_new(keys, texts)
        return [texts[key] for key in keys]

    def rollout(
        self, denoiser: Denoiser, numbers: list[int], uniforms: Uniforms, on_finished: OnFinished | None = None
    ) -> Rollout:
        """This rank's sampled completions of numbered examples, with what the terms ask the sampler to record."""
        dealing = Dealing(world=self.world, groups=len(numbers), group_size=self.recipe.rollout.num_generations)
        prompts = self.examples.prompts(numbers, dealing.group_size, self.world.device)
        denoiser.eval()
        with gathered(denoiser), self.world.autocast():
            return self.sampler(
                denoiser,
                dealing.prompts(prompts),
                uniforms,
                record=record_of(self.terms),
                group_size=dealing.neighbours,
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
        self, rollout: Rollout, owners: list[int], texts: dict[CompletionKey, str] | None = None
    ) -> ScoredRollout:
        """Rewards of finished completions and of recorded guesses, by the example of each sample.

        `texts`: of those that are decoded already.
        """
        start = rollout.prompt_length
        guesses = [state.guesses_ZNL[..., start:] for state in rollout.snapshots]
        completions_ENC = torch.cat([rollout.tokens_NL[None, :, start:], *guesses])
        reward_NE, scores_NEK = self._score(completions_ENC.transpose(0, 1), owners, {} if texts is None else texts)
        return ScoredRollout(reward_NE=reward_NE, scores_NK=scores_NEK[:, 0])

    def _read(self, reward_PGE: Tensor) -> list[Tensor]:
        """For each term, what its advantage reads: see Experience."""
        return [reward_PGE[..., 0] if term.record is None else reward_PGE[..., 1:] for term in self.terms]

    def _score(
        self, completions_NEC: Tensor, owners: list[int], texts: dict[CompletionKey, str]
    ) -> tuple[Tensor, Tensor]:
        """Rewards [N, E] and scores [N, E, K], each distinct completion scored once."""
        samples, each, _ = completions_NEC.shape
        keys = _keys_of(owners, completions_NEC.cpu())
        self.decode_new(keys, texts)
        distinct = list(dict.fromkeys(keys))
        raw = self._raw_texts(distinct) if self.rewards.reads_raw else None
        rewards, scores = self.rewards([index for index, _ in distinct], [texts[key] for key in distinct], raw)
        place = {key: place for place, key in enumerate(distinct)}
        chosen = torch.tensor([place[key] for key in keys]).view(samples, each)
        device = completions_NEC.device
        return rewards[chosen].to(device), scores[chosen].to(device)

    def _metrics(self, rollout: Rollout, reward_PG: Tensor, texts: list[str]) -> dict[str, float]:
        """Rewards, entropy and lengths over all ranks, names as in TRL."""
        completion = rollout.completion_NL
        well_formed = sum(map(self.recipe.task.well_formed, texts))
        ends = torch.tensor([self.examples.eos_id, *self.examples.other_end_ids], device=completion.device)
        ended_N = (torch.isin(rollout.tokens_NL, ends) & rollout.region_L).any(1)
        equal_P = reward_PG.amax(1) == reward_PG.amin(1)  # a rounded deviation of equal rewards is noise, not 0
        spread_P = reward_PG.std(1) if len(reward_PG) else reward_PG.sum(1)  # a rank may have no group
        sums = torch.stack(
            [
                reward_PG.sum(),
                spread_P.masked_fill(equal_P, 0.0).sum(),
                equal_P.sum(),
                (rollout.sampled_logp_NL * completion).sum(),
                completion.sum(),
                reward_PG.mean(1).square().sum(),
                reward_PG.new_tensor(well_formed),
                (~ended_N).sum(),
            ]
        )
        reward, spread, equal, logp, tokens, square, valid, clipped = self.world.sum(sums).tolist()
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
            "completions/clipped_ratio": clipped / samples,
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
