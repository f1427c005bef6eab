"""Term and objective: a method is a tuple of terms, each one pick of masking, credit, likelihood and surrogate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.denoisers.base import Denoiser
from unmask.objective.divergences import Penalty, k3
from unmask.objective.likelihood import LINEAR, Scores, per_token, row_contrast, row_logp
from unmask.objective.losses import Clipped, Preference, RelativeScore, Surrogate, WeightedLikelihood
from unmask.objective.masks import RecordedTimes, Segments
from unmask.sampling.records import Record
from unmask.types import Rollout, Views
from unmask.uniforms import Uniforms

Masking = Callable[[Rollout, Tensor, Uniforms, int, int], Views]


@dataclass(frozen=True, kw_only=True)
class Term:
    """One additive part of a method's loss.

    Credit reads the final rewards [P, G], or those of the recorded guesses [P, G, Z] ([P, G, S] for one guess a step).
    """

    masking: Masking
    credit: Callable[[Tensor], Tensor]
    likelihood: Callable[[Tensor, Views], Scores]
    surrogate: Surrogate
    normaliser: Callable[[Views], Tensor]
    penalty: Penalty | None = None
    weight: float = 1.0
    record: Record | None = None
    blend: float | None = None  # set: rows are answered by two blends of the logits of now and of the old policy

    def views(self, rollout: Rollout, rewards: Tensor, uniforms: Uniforms, update: int, updates: int) -> Views:
        """The questions of one of the `updates` inner updates; rewards as `credit` reads them."""
        return self.masking(rollout, self.credit(rewards), uniforms, update, updates)

    def answers(
        self,
        denoiser: Denoiser,
        views: Views,
        old: Denoiser | None = None,
        slope: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The answers to all rows: [R, L], or [R, L, 2] where they blend (`old` None: now, detached).

        `slope`: see `row_logp`.
        """
        if self.blend is None:
            return row_logp(denoiser, views, slope)
        return row_contrast(denoiser, views, old, self.blend)

    def is_separable(self, *, old_is_now: bool) -> bool:
        """Whether d loss / d log-prob depends on that log-prob alone: before the others are known, the gradient is."""
        if self.blend is not None:
            return False
        if self.likelihood is per_token and isinstance(self.surrogate, Clipped | WeightedLikelihood):
            return True
        constant = isinstance(self.surrogate, WeightedLikelihood) or (
            isinstance(self.surrogate, Clipped) and old_is_now
        )
        return constant and self.penalty is None and self.likelihood in LINEAR

    def slope(
        self, views: Views, old_RL: Tensor | None, reference_RL: Tensor | None, normaliser: Tensor
    ) -> Callable[[Tensor], Tensor] | None:
        """now_RL -> d loss / d now_RL, of terms that are separable (`old_RL` None: old is now); None of others."""
        if not self.is_separable(old_is_now=old_RL is None):
            return None

        def derivative(now_RL: Tensor) -> Tensor:
            with torch.enable_grad():
                now_RL = now_RL.detach().requires_grad_()
                old = now_RL.detach() if old_RL is None and self.reads("old") else old_RL
                loss, _ = self.loss(views, now_RL, old, reference_RL, normaliser)
                (slope_RL,) = torch.autograd.grad(loss, now_RL)
            return slope_RL

        return derivative

    def reads(self, policy: str) -> bool:
        """Whether the loss compares with the answers of the "old" or the "reference" policy."""
        return policy in (self.surrogate.against, self.penalty and self.penalty.against)

    @property
    def credits_scores(self) -> bool:
        """Whether credit depends on scores, those of the whole optimizer batch (RSPO)."""
        return isinstance(self.surrogate, RelativeScore)

    @property
    def reads_trajectory(self) -> bool:
        """Whether rows are states of the recorded trajectory, which a sampler that remasks does not leave."""
        return isinstance(self.masking, Segments) or isinstance(getattr(self.masking, "law", None), RecordedTimes)

    @property
    def compares_pairs(self) -> bool:
        """Whether the loss compares two completions whoever wrote them, so that given ones will do (VRPO)."""
        return isinstance(self.surrogate, Preference)

    def credited(
        self, views: Views, now_RL: Tensor, reference_RL: Tensor | None, mean: Callable[[Tensor], Tensor]
    ) -> Views:
        """The views with the credit that depends on scores (RSPO); `mean` is over the whole optimizer batch."""
        if not isinstance(self.surrogate, RelativeScore) or reference_RL is None:
            return views
        now, reference = self.likelihood(now_RL, views), self.likelihood(reference_RL, views)
        credit_U = self.surrogate.credit(now.value_UK, reference.value_UK, views.credit_U, mean)
        return replace(views, credit_U=credit_U)

    def loss(
        self,
        views: Views,
        now_RL: Float[Tensor, "R L *two"],
        old_RL: Float[Tensor, "R L"] | None,
        reference_RL: Float[Tensor, "R L"] | None,
        normaliser: Float[Tensor, ""],
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The term's share of the loss, and detached sums for the metrics (divide by `weight` for means)."""
        now, credit_U = self.likelihood(now_RL, views), views.credit_U
        answers = {"old": old_RL, "reference": reference_RL}
        other = {  # scores of the frozen policies that are read
            name: self.likelihood(answer, views).value_UK
            for name, answer in answers.items()
            if answer is not None and self.reads(name)
        }
        compared_UK = other.get(self.surrogate.against) if self.surrogate.against else None
        loss = self.surrogate(now.value_UK, compared_UK, credit_U, now.weight_UK, normaliser)
        counted_UK = now.weight_UK > 0
        sums = {"weight": counted_UK.sum()}
        if "old" in other:
            sums["approx_kl"] = (k3(now.value_UK, other["old"]) * counted_UK).sum()
        if isinstance(self.surrogate, Clipped):
            sums["clip_ratio"] = (self.surrogate.clipped(now.value_UK, other["old"], credit_U) & counted_UK).sum()
        if isinstance(self.surrogate, Preference):
            margin_UK = self.surrogate.beta * (now.value_UK - other["reference"])
            sums["rewards/margins"] = (margin_UK * counted_UK).sum()
            sums["rewards/accuracies"] = ((margin_UK > 0) & counted_UK).sum()
        if self.penalty is not None and self.penalty.against in other:
            other_UK = other[self.penalty.against]
            loss = loss + self.penalty(now.value_UK, other_UK, now.weight_UK, views.length_U, normaliser)
            sums["kl"] = (self.penalty.estimate(now.value_UK, other_UK) * counted_UK).sum()
        return self.weight * loss, {name: value.detach().float() for name, value in sums.items()}

    def trained(self, views: Views) -> Tensor:
        """Units that carry a gradient: scored, with credit unless more than credit moves them. [U] bool."""
        moves_all = self.surrogate.trains_all or (self.penalty is not None and self.penalty.against == "reference")
        return views.scored_U if moves_all else views.scored_U & (views.credit_U != 0)


def record_of(terms: tuple[Term, ...]) -> Record | None:
    """What the sampler must record for all terms. Raises ValueError where two terms want different things."""
    records = {term.record for term in terms if term.record is not None}
    if len(records) > 1:
        raise ValueError(f"terms want different records of one rollout: {records}")
    return records.pop() if records else None
