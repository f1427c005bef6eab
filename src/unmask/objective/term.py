"""Term and objective: a method is a tuple of terms, each one pick of masking, advantage, likelihood and surrogate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.denoisers.base import Denoiser
from unmask.objective.divergences import Penalty, k3
from unmask.objective.likelihood import LINEAR, Scores, per_token, row_contrast, row_logp
from unmask.objective.losses import CenteredRegression, ClippedSurrogate, PolicyGradient, Preference, Surrogate
from unmask.objective.masks import RecordedTimes, Segments
from unmask.sampling.records import Record
from unmask.types import Rollout, ScoringBatch
from unmask.uniforms import Uniforms

Masking = Callable[[Rollout, Tensor, Uniforms, int, int], ScoringBatch]


@dataclass(frozen=True, kw_only=True)
class Term:
    """One additive part of a method's loss.

    `advantage` reads final rewards [P, G], or those of recorded guesses [P, G, Z] ([P, G, S] for one guess a step).
    """

    masking: Masking
    advantage: Callable[[Tensor], Tensor]
    likelihood: Callable[[Tensor, ScoringBatch], Scores]
    surrogate: Surrogate
    normalizer: Callable[[ScoringBatch], Tensor]
    penalty: Penalty | None = None
    coefficient: float = 1.0
    record: Record | None = None
    blend: float | None = None  # set: rows are answered by two blends of the logits of now and of the old policy

    def scoring_batch(
        self, rollout: Rollout, rewards: Tensor, uniforms: Uniforms, update: int, updates: int
    ) -> ScoringBatch:
        """The questions of one of the `updates` inner updates; rewards as `advantage` reads them."""
        return self.masking(rollout, self.advantage(rewards), uniforms, update, updates)

    def answers(
        self,
        denoiser: Denoiser,
        batch: ScoringBatch,
        old: Denoiser | None = None,
        grad_logp: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The answers to all rows: [R, L], or [R, L, 2] where they blend (`old` None: now, detached).

        `grad_logp`: see `row_logp`.
        """
        if self.blend is None:
            return row_logp(denoiser, batch, grad_logp)
        return row_contrast(denoiser, batch, old, self.blend)

    def is_separable(self, *, old_is_now: bool) -> bool:
        """Whether d loss / d log-prob depends on that log-prob alone: before the others are known, the gradient is."""
        if self.blend is not None:
            return False
        if self.likelihood is per_token and isinstance(self.surrogate, ClippedSurrogate | PolicyGradient):
            return True
        constant = isinstance(self.surrogate, PolicyGradient) or (
            isinstance(self.surrogate, ClippedSurrogate) and old_is_now
        )
        return constant and self.penalty is None and self.likelihood in LINEAR

    def grad_logp(
        self, batch: ScoringBatch, old_RL: Tensor | None, reference_RL: Tensor | None, normalizer: Tensor
    ) -> Callable[[Tensor], Tensor] | None:
        """now_RL -> d loss / d now_RL, of terms that are separable (`old_RL` None: old is now); None of others."""
        if not self.is_separable(old_is_now=old_RL is None):
            return None

        def derivative(now_RL: Tensor) -> Tensor:
            with torch.enable_grad():
                now_RL = now_RL.detach().requires_grad_()
                old = now_RL.detach() if old_RL is None and self.reads("old") else old_RL
                loss, _ = self.loss(batch, now_RL, old, reference_RL, normalizer)
                (grad_RL,) = torch.autograd.grad(loss, now_RL)
            return grad_RL

        return derivative

    def reads(self, policy: str) -> bool:
        """Whether the loss compares with the answers of the "old" or the "reference" policy."""
        return policy in (self.surrogate.against, self.penalty and self.penalty.against)

    @property
    def advantage_reads_scores(self) -> bool:
        """Whether advantage depends on scores, those of the whole optimizer batch (RSPO)."""
        return isinstance(self.surrogate, CenteredRegression)

    @property
    def reads_trajectory(self) -> bool:
        """Whether rows are states of the recorded trajectory, which a sampler that remasks does not leave."""
        return isinstance(self.masking, Segments) or isinstance(
            getattr(self.masking, "distribution", None), RecordedTimes
        )

    @property
    def compares_pairs(self) -> bool:
        """Whether the loss compares two completions whoever wrote them, so that given ones will do (VRPO)."""
        return isinstance(self.surrogate, Preference)

    def with_final_advantages(
        self, batch: ScoringBatch, now_RL: Tensor, reference_RL: Tensor | None, mean: Callable[[Tensor], Tensor]
    ) -> ScoringBatch:
        """The batch with the advantage that depends on scores (RSPO); `mean` is over the whole optimizer batch."""
        if not isinstance(self.surrogate, CenteredRegression) or reference_RL is None:
            return batch
        now, reference = self.likelihood(now_RL, batch), self.likelihood(reference_RL, batch)
        advantage_U = self.surrogate.advantage(now.value_UK, reference.value_UK, batch.advantage_U, mean)
        return replace(batch, advantage_U=advantage_U)

    def loss(
        self,
        batch: ScoringBatch,
        now_RL: Float[Tensor, "R L *two"],
        old_RL: Float[Tensor, "R L"] | None,
        reference_RL: Float[Tensor, "R L"] | None,
        normalizer: Float[Tensor, ""],
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The term's share of the loss, and detached sums for the metrics (divide by `count` for means)."""
        now, advantage_U = self.likelihood(now_RL, batch), batch.advantage_U
        answers = {"old": old_RL, "reference": reference_RL}
        other = {  # scores of the frozen policies that are read
            name: self.likelihood(answer, batch).value_UK
            for name, answer in answers.items()
            if answer is not None and self.reads(name)
        }
        compared_UK = other.get(self.surrogate.against) if self.surrogate.against else None
        loss = self.surrogate(now.value_UK, compared_UK, advantage_U, now.loss_weight_UK, normalizer)
        counted_UK = now.loss_weight_UK > 0
        sums = {"count": counted_UK.sum()}
        if "old" in other:
            sums["approx_kl"] = (k3(now.value_UK, other["old"]) * counted_UK).sum()
        if isinstance(self.surrogate, ClippedSurrogate):
            sums["clip_ratio"] = (self.surrogate.clipped(now.value_UK, other["old"], advantage_U) & counted_UK).sum()
        if isinstance(self.surrogate, Preference):
            margin_UK = self.surrogate.beta * (now.value_UK - other["reference"])
            sums["rewards/margins"] = (margin_UK * counted_UK).sum()
            sums["rewards/accuracies"] = ((margin_UK > 0) & counted_UK).sum()
        if self.penalty is not None and self.penalty.against in other:
            other_UK = other[self.penalty.against]
            loss = loss + self.penalty(now.value_UK, other_UK, now.loss_weight_UK, batch.length_U, normalizer)
            sums["kl"] = (self.penalty.estimate(now.value_UK, other_UK) * counted_UK).sum()
        return self.coefficient * loss, {name: value.detach().float() for name, value in sums.items()}

    def trained(self, batch: ScoringBatch) -> Tensor:
        """Units that carry a gradient: scored, with advantage unless more than advantage moves them. [U] bool."""
        moves_all = self.surrogate.trains_all or (self.penalty is not None and self.penalty.against == "reference")
        return batch.scored_U if moves_all else batch.scored_U & (batch.advantage_U != 0)


def record_of(terms: tuple[Term, ...]) -> Record | None:
    """What the sampler must record for all terms. Raises ValueError where two terms want different things."""
    records = {term.record for term in terms if term.record is not None}
    if len(records) > 1:
        raise ValueError(f"terms want different records of one rollout: {records}")
    return records.pop() if records else None
