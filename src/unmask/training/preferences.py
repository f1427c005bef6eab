"""Completions given in preference pairs in place of sampled ones: rollouts without a trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unmask.data.examples import Examples, completed, rollout_texts
from unmask.denoisers.base import Denoiser
from unmask.distributed import World
from unmask.distributed.sharding import gathered
from unmask.errors import UserError
from unmask.evaluation.evaluator import Evaluator
from unmask.objective.likelihood import row_logp
from unmask.objective.masks import through_first_eos
from unmask.objective.term import Term
from unmask.report.progress import advance
from unmask.training.dealing import dealt_groups, groups_of
from unmask.training.sources import Experience
from unmask.types import Rollout
from unmask.uniforms import Uniforms


def check_preferences(examples: Examples, terms: tuple[Term, ...], method: str, length: int) -> None:
    """Raise UserError where the method needs samples of its own, or a given completion exceeds `length` tokens."""
    if not examples.ranked_ids:
        return
    if not all(term.compares_pairs for term in terms):
        raise UserError(
            f"method {method} learns from completions that it has sampled, and this task gives pairs: "
            "give method vrpo, or a task with rewards"
        )
    lengths = [len(ids) for ranked in examples.ranked_ids for ids in ranked]
    long = [tokens for tokens in lengths if tokens > length]
    if long:
        raise UserError(
            f"{len(long)} of {len(lengths)} given completions exceed rollout.max_new_tokens {length} (the longest has "
            f"{max(long)} tokens): raise it or remove them"
        )


def preference_rollout(
    examples: Examples, numbers: Sequence[int], length: int, mask_id: int, device: torch.device | str = "cpu"
) -> Rollout:
    """The ranked completions of some examples as a rollout, padded to `length` with end-of-sequence tokens.

    `numbers`: of `Examples.numbered`.

    The samples of a group are in rank order, the best first. No token was revealed at a step (-1), nor sampled
    (log-prob 0); trajectories are refused as after remasking.
    """
    ranked = [ids for index in examples.indices(numbers) for ids in examples.ranked_ids[index]]
    group_size = len(ranked) // len(numbers)
    prompts = examples.prompts(numbers, group_size, device)
    tokens_NL, attention_NL = completed(prompts, ranked, length, examples.eos_id)
    start = prompts.tokens_NP.shape[1]
    region_L = torch.arange(tokens_NL.shape[1], device=device) >= start
    completion_NL = through_first_eos(tokens_NL, region_L, examples.eos_id)
    return Rollout.fake(
        tokens_NL,
        prompt_length=start,
        group_size=group_size,
        mask_id=mask_id,
        attention_NL=attention_NL,
        completion_NL=completion_NL,
        filled_NL=region_L & ~completion_NL,
        revealed_at_NL=torch.full_like(tokens_NL, -1),
        steps=0,
        prompt_N=prompts.prompt_N,
        sample_N=prompts.sample_N,
        remasking=True,  # there is no trajectory either
    )


def preference_rewards(rollout: Rollout) -> Tensor:
    """Rewards [N] of a preference rollout: 1 for the first of each group, the preferred one, 0 for the others."""
    return (rollout.sample_N == 0).float()


@dataclass(frozen=True, kw_only=True)
class PreferenceSource:
    """Takes the ranked completions that come with the examples; nothing is sampled. See Source."""

    examples: Examples
    terms: tuple[Term, ...]
    length: int  # tokens of every completion
    mask_id: int
    tokenizer: Any
    world: World

    def __call__(self, denoiser: Denoiser, numbers: list[int], uniforms: Uniforms) -> Experience:
        """The ranked completions of this rank's examples; `denoiser` and `uniforms` play no part."""
        groups = dealt_groups([1.0] * len(numbers), self.world.size)[self.world.rank]
        whole = preference_rollout(self.examples, numbers, self.length, self.mask_id, self.world.device)
        rollout = groups_of(whole, groups)
        reward_N = preference_rewards(rollout)
        lengths = torch.stack([rollout.completion_NL.sum(), reward_N.new_tensor(len(reward_N))])
        tokens, samples = self.world.sum(lengths).tolist()
        return Experience(
            rollout=rollout,
            texts=rollout_texts(self.tokenizer, rollout, self.examples),
            reward_N=reward_N,
            term_rewards=[reward_N.view(len(groups), rollout.group_size) for _ in self.terms],
            metrics={"completions/mean_length": tokens / samples},
        )

    @property
    def evaluation_passes(self) -> int:
        """One: every pair is scored."""
        return 1

    def evaluation(self, denoiser: Denoiser, held_out: Evaluator, count: int) -> dict[str, list[float]]:
        """pairs/preferred: how often the preferred completion is the likelier one."""
        return {"pairs/preferred": preferred(self.terms[0], denoiser, held_out, self.length, count)}


@torch.no_grad()
def preferred(term: Term, denoiser: Denoiser, held_out: Evaluator, length: int, count: int) -> list[float]:
    """For each of the first `count` held-out pairs, 1.0 if the preferred completion is the likelier one, else 0.0.

    By the term's own estimate of log p, its masks keyed by example.
    """
    was_training = denoiser.training
    denoiser.eval()
    indices = list(range(len(held_out.examples.items)))[:count]
    each = max(1, held_out.batch // 2)
    found: list[tuple[int, float]] = []
    with gathered(denoiser):
        for part, done in held_out.parts(indices, each):
            rollout = preference_rollout(held_out.examples, part, length, denoiser.mask_id, held_out.device)
            rewards, preferred = preference_rewards(rollout).view(len(part), -1), []
            for batch, _ in term.scoring_batch(rollout, rewards, held_out.uniforms, 0, 1).micro_batches(held_out.batch):
                with held_out.autocast():
                    margin_U = term.likelihood(row_logp(denoiser, batch), batch).value_UK[:, 0]
                preferred += (margin_U > 0).float().tolist()
            found += zip(part, preferred, strict=True)
            advance(done)
    denoiser.train(was_training)
    return held_out.in_order(found)
