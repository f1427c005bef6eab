"""Surrogates: loss functions of the scores (log-probs of tokens or of sequences) and the advantages.

Pure functions of tensors. The normalizer is an argument, so that micro-batches and ranks add up to one large batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@runtime_checkable
class Surrogate(Protocol):
    """(score_UK, other_score_UK, advantage_U, loss_weight_UK, normalizer) -> scalar loss, and what a Term must know.

    Implement it explicitly, and set the traits that differ from these defaults, which are safe: at worst slower.

        @dataclass(frozen=True, kw_only=True)
        class Squared(Surrogate):
            elementwise: ClassVar[bool] = True

            def __call__(self, score_UK, other_score_UK, advantage_U, loss_weight_UK, normalizer):
                return (loss_weight_UK * (score_UK - advantage_U[:, None]).square()).sum() / normalizer
    """

    against: ClassVar[str | None] = None  # policy whose scores other_score_UK are: "old", "reference", or none's
    elementwise: ClassVar[bool] = False  # d loss / d score depends on no other score, so the head makes it by chunks
    trains_zero_advantage: ClassVar[bool] = True  # units of advantage 0 have a gradient too
    compares_pairs: ClassVar[bool] = False  # units are pairs of completions, whoever wrote them (DPO)
    centers_over_batch: ClassVar[bool] = False  # `final_advantages` must be called on the whole optimizer batch first
    metric_names: ClassVar[tuple[str, ...]] = ()  # what `metrics` reports

    def __call__(
        self, score_UK: Any, other_score_UK: Any, advantage_U: Any, loss_weight_UK: Any, normalizer: Any, /
    ) -> Tensor: ...

    def has_constant_gradient(self, *, old_is_now: bool) -> bool:
        """Whether d loss / d score does not depend on the scores.

        `old_is_now`: in the first update after sampling, where the old policy's scores are the detached scores.
        """
        return False

    def final_advantages(
        self, score_UK: Tensor, other_score_UK: Tensor, advantage_U: Tensor, mean: Callable[[Tensor], Tensor], /
    ) -> Tensor:
        """The advantages [U] that the loss reads; differs from `advantage_U` where `centers_over_batch`."""
        return advantage_U

    def metrics(self, score_UK: Any, other_score_UK: Any, advantage_U: Any, /) -> dict[str, Tensor]:
        """[U, K] tensors to be averaged over the scores that count, by metric name."""
        return {}


@dataclass(frozen=True, kw_only=True)
class ClippedSurrogate(Surrogate):
    """-sum_uk w min(rho A, clip(rho, 1 ± epsilon) A) / normalizer, rho = exp(score - old score) (PPO 1707.06347).

    The ratio is a token's where scores are tokens', a sequence's where they are sequences'.
    """

    against: ClassVar[str | None] = "old"
    elementwise: ClassVar[bool] = True
    trains_zero_advantage: ClassVar[bool] = False
    metric_names: ClassVar[tuple[str, ...]] = ("clip_ratio",)
    epsilon: float

    def __call__(
        self,
        score_UK: Float[Tensor, "U K"],
        old_score_UK: Float[Tensor, "U K"],
        advantage_U: Float[Tensor, "U"],
        loss_weight_UK: Float[Tensor, "U K"],
        normalizer: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        advantage_U1 = advantage_U[:, None]
        ratio_UK = (score_UK - old_score_UK).exp()
        clipped_UK = ratio_UK.clamp(1 - self.epsilon, 1 + self.epsilon)
        gain_UK = torch.minimum(ratio_UK * advantage_U1, clipped_UK * advantage_U1)
        return -(loss_weight_UK * gain_UK).sum() / normalizer

    def has_constant_gradient(self, *, old_is_now: bool) -> bool:
        """True on policy: every ratio is 1 there, and the gradient -w A / normalizer."""
        return old_is_now

    def clipped(
        self, score_UK: Float[Tensor, "U K"], old_score_UK: Float[Tensor, "U K"], advantage_U: Float[Tensor, "U"]
    ) -> Bool[Tensor, "U K"]:
        """Scores whose gradient the clip cuts off."""
        ratio_UK, advantage_U1 = (score_UK - old_score_UK).exp(), advantage_U[:, None]
        return ((ratio_UK > 1 + self.epsilon) & (advantage_U1 > 0)) | (
            (ratio_UK < 1 - self.epsilon) & (advantage_U1 < 0)
        )

    def metrics(
        self, score_UK: Float[Tensor, "U K"], old_score_UK: Float[Tensor, "U K"], advantage_U: Float[Tensor, "U"]
    ) -> dict[str, Tensor]:
        """`clip_ratio`: the share of scores that the clip cuts off."""
        return {"clip_ratio": self.clipped(score_UK, old_score_UK, advantage_U)}


@dataclass(frozen=True)
class PolicyGradient(Surrogate):
    """-sum_uk w A score / normalizer: no ratio, no clip (REINFORCE)."""

    elementwise: ClassVar[bool] = True
    trains_zero_advantage: ClassVar[bool] = False

    def __call__(
        self,
        score_UK: Float[Tensor, "U K"],
        other_score_UK: Float[Tensor, "U K"] | None,
        advantage_U: Float[Tensor, "U"],
        loss_weight_UK: Float[Tensor, "U K"],
        normalizer: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        return -(loss_weight_UK * advantage_U[:, None] * score_UK).sum() / normalizer

    def has_constant_gradient(self, *, old_is_now: bool) -> bool:
        """True: the loss is linear in the scores."""
        return True


@dataclass(frozen=True, kw_only=True)
class CenteredRegression(Surrogate):
    """-sum_u w (A - strength dhat) score / normalizer, dhat = d - mean of the batch, d = score - reference (RSPO).

    The gradient of strength/2 · mean (dhat - A / strength)² (2605.10218). `final_advantages` gives the detached
    bracket, which the loss then takes as its advantages: the mean is over the whole optimizer batch.
    """

    against: ClassVar[str | None] = "reference"
    elementwise: ClassVar[bool] = True
    centers_over_batch: ClassVar[bool] = True
    strength: float

    def final_advantages(
        self,
        score_UK: Float[Tensor, "U K"],
        reference_score_UK: Float[Tensor, "U K"],
        advantage_U: Float[Tensor, "U"],
        mean: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "U"]:
        """A - strength dhat, detached; `mean` is over the whole optimizer batch, of all ranks."""
        difference_U = (score_UK - reference_score_UK)[:, 0].detach()
        return advantage_U - self.strength * (difference_U - mean(difference_U))

    def __call__(
        self,
        score_UK: Float[Tensor, "U K"],
        reference_score_UK: Float[Tensor, "U K"] | None,
        advantage_U: Float[Tensor, "U"],
        loss_weight_UK: Float[Tensor, "U K"],
        normalizer: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        return PolicyGradient()(score_UK, None, advantage_U, loss_weight_UK, normalizer)

    def has_constant_gradient(self, *, old_is_now: bool) -> bool:
        """True, the final advantages given."""
        return True


@dataclass(frozen=True)
class Contrastive(Surrogate):
    """-sum_u w (r score_u0 + (1 - r) score_u1) / normalizer, r = (1 + A) / 2 (LFPO 2603.01563).

    Scores: mean log-probs under the logits pulled towards the policy (0) and mirrored away from it (1).
    """

    elementwise: ClassVar[bool] = True

    def __call__(
        self,
        score_UK: Float[Tensor, "U 2"],
        other_score_UK: Float[Tensor, "U 2"] | None,
        advantage_U: Float[Tensor, "U"],
        loss_weight_UK: Float[Tensor, "U 2"],
        normalizer: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        share_U2 = torch.stack([1 + advantage_U, 1 - advantage_U], dim=1) / 2
        return -(loss_weight_UK * share_U2 * score_UK).sum() / normalizer

    def has_constant_gradient(self, *, old_is_now: bool) -> bool:
        """True: the loss is linear in the scores."""
        return True


@dataclass(frozen=True, kw_only=True)
class Preference(Surrogate):
    """-sum_u w A log sigmoid(beta (score - reference score)) / normalizer: DPO on margins of pairs (2305.18290)."""

    against: ClassVar[str | None] = "reference"
    elementwise: ClassVar[bool] = True
    trains_zero_advantage: ClassVar[bool] = False
    compares_pairs: ClassVar[bool] = True
    metric_names: ClassVar[tuple[str, ...]] = ("rewards/margins", "rewards/accuracies")
    beta: float

    def __call__(
        self,
        score_UK: Float[Tensor, "U K"],
        reference_score_UK: Float[Tensor, "U K"],
        advantage_U: Float[Tensor, "U"],
        loss_weight_UK: Float[Tensor, "U K"],
        normalizer: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        gain_UK = torch.nn.functional.logsigmoid(self.beta * (score_UK - reference_score_UK))
        return -(loss_weight_UK * advantage_U[:, None] * gain_UK).sum() / normalizer

    def metrics(
        self, score_UK: Float[Tensor, "U K"], reference_score_UK: Float[Tensor, "U K"], advantage_U: Float[Tensor, "U"]
    ) -> dict[str, Tensor]:
        """TRL's `rewards/margins`, beta (score - reference score), and `rewards/accuracies`, how many are positive."""
        margin_UK = self.beta * (score_UK - reference_score_UK)
        return {"rewards/margins": margin_UK, "rewards/accuracies": margin_UK > 0}
