"""Term and objective: a method is a tuple of terms, each one pick of masking, credit, likelihood and surrogate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.likelihood import Scores
from unmask.records import Record
from unmask.surrogate import ClippedToken, Penalty, k3
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
    surrogate: ClippedToken
    normaliser: Callable[[Views], Tensor]
    reference: Penalty | None = None
    weight: float = 1.0
    record: Record | None = None

    def views(self, rollout: Rollout, rewards: Tensor, uniforms: Uniforms, update: int, updates: int) -> Views:
        """The questions of one of the `updates` inner updates; rewards as `credit` reads them."""
        return self.masking(rollout, self.credit(rewards), uniforms, update, updates)

    def loss(
        self,
        views: Views,
        now_RL: Float[Tensor, "R L"],
        old_RL: Float[Tensor, "R L"],
        reference_RL: Float[Tensor, "R L"] | None,
        normaliser: Float[Tensor, ""],
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The term's share of the loss, and detached sums for the metrics (divide by `weight` for means)."""
        now, old = self.likelihood(now_RL, views), self.likelihood(old_RL, views)
        loss = self.surrogate(now.value_UK, old.value_UK, views.credit_U, now.weight_UK, normaliser)
        counted_UK = now.weight_UK > 0
        sums = {
            "weight": counted_UK.sum(),
            "clip_ratio": (self.surrogate.clipped(now.value_UK, old.value_UK, views.credit_U) & counted_UK).sum(),
            "approx_kl": (k3(now.value_UK, old.value_UK) * counted_UK).sum(),
        }
        if self.reference is not None and reference_RL is not None:
            reference = self.likelihood(reference_RL, views)
            loss = loss + self.reference(now.value_UK, reference.value_UK, now.weight_UK, normaliser)
            divergence_UK = self.reference.estimate(now.value_UK, reference.value_UK)
            sums["kl"] = (divergence_UK * counted_UK).sum()
        return self.weight * loss, {name: value.detach().float() for name, value in sums.items()}

    def trained(self, views: Views) -> Tensor:
        """Units that carry a gradient: those with credit, or all where a divergence is paid. [U] bool."""
        if self.reference is not None:
            return torch.ones_like(views.credit_U, dtype=torch.bool)
        return views.credit_U != 0


class Method(Protocol):
    """Settings of a published method; `terms` composes it. Settings import no torch."""

    name: ClassVar[str]

    def terms(self, eos_id: int) -> tuple[Term, ...]:
        """The objective, the sum of these terms."""


def record_of(terms: tuple[Term, ...]) -> Record | None:
    """What the sampler must record for all terms. Raises ValueError where two terms want different things."""
    records = {term.record for term in terms if term.record is not None}
    if len(records) > 1:
        raise ValueError(f"terms want different records of one rollout: {records}")
    return records.pop() if records else None
