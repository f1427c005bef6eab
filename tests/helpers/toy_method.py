"""Toy method. Provenance: written for the tests, as a user would write a method outside the package.

two rows a sample: a random half of the completion masked; the other half
L = -mean over samples of A exp(score - old),  score = mean of logp over the completion;  A = r - mean of the group
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from unmask.methods.base import Method
from unmask.objective import Term, advantages
from unmask.objective.likelihood import Likelihood, Scores, unit_count
from unmask.objective.losses import Surrogate
from unmask.objective.masks import Masking
from unmask.objective.masks.base import position_draws, row_draws, sample_rows
from unmask.validation import setting


@dataclass(frozen=True, kw_only=True)
class Halves(Masking):
    """Two complementary rows a sample."""

    rows: ClassVar[str] = "a random half of the completion, and the other half"
    unit: ClassVar[str] = "sample"
    share: float = 0.5

    def __call__(self, rollout, advantage, uniforms, update, updates):
        draw_N1L = position_draws(rollout, row_draws(rollout, uniforms.key("halves", update), 1))
        first_N1L, span_N1L = draw_N1L < self.share, rollout.completion_NL[:, None]
        scored_NRL = torch.cat([first_N1L, ~first_N1L], dim=1) & span_N1L
        return sample_rows(
            rollout,
            masked_NRL=scored_NRL | (rollout.region_L & ~span_N1L),
            scored_NRL=scored_NRL,
            token_weight_NRL=scored_NRL.double(),
            length_N=rollout.completion_NL.sum(1),
            advantage=advantage,
        )


@dataclass(frozen=True)
class MeanOfSpan(Likelihood):
    """Mean of logp over the span."""

    linear: ClassVar[bool] = True

    def __call__(self, logp_RL, batch):
        sum_U = torch.zeros_like(batch.advantage_U, dtype=logp_RL.dtype).index_add(0, batch.unit_R, logp_RL.sum(1))
        score_U1 = (sum_U / batch.length_U.clamp(min=1))[:, None]
        return Scores(score_U1, torch.ones_like(score_U1))


@dataclass(frozen=True)
class Ratio(Surrogate):
    """-sum_uk w A exp(score - old score) / normalizer."""

    against: ClassVar[str | None] = "old"
    elementwise: ClassVar[bool] = True
    trains_zero_advantage: ClassVar[bool] = False
    metric_names: ClassVar[tuple[str, ...]] = ("ratio",)

    def __call__(self, score_UK, old_score_UK, advantage_U, loss_weight_UK, normalizer):
        return -(loss_weight_UK * advantage_U[:, None] * (score_UK - old_score_UK).exp()).sum() / normalizer

    def has_constant_gradient(self, *, old_is_now):
        return old_is_now

    def metrics(self, score_UK, old_score_UK, advantage_U):
        return {"ratio": (score_UK - old_score_UK).exp()}


@dataclass(frozen=True, kw_only=True)
class Toy(Method):
    """Unclipped policy gradient on two random halves."""

    name: ClassVar[str] = "toy"
    paper: ClassVar[str] = "0000.00000"
    provenance: ClassVar[str] = "tests"
    share: float = setting(0.5, "share of the first half")

    def terms(self, eos_id: int) -> tuple[Term, ...]:
        return (
            Term(
                masking=Halves(share=self.share),
                advantage=advantages.centered,
                likelihood=MeanOfSpan(),
                surrogate=Ratio(),
                normalizer=unit_count,
            ),
        )
