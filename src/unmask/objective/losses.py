"""Surrogates: what is minimised.

Pure; the normalizer is an argument, so that accumulation and ranks equal one large batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Surrogate(Protocol):
    """(now_UK, other_UK, advantage_U, loss_weight_UK, normalizer) -> loss."""

    against: ClassVar[str | None]  # whose scores `other` are: "old", "reference" or nobody's
    trains_all: ClassVar[bool]  # whether units without advantage have a gradient

    def __call__(
        self, now_UK: Any, other_UK: Any, advantage_U: Any, loss_weight_UK: Any, normalizer: Any, /
    ) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class ClippedSurrogate:
    """-sum_uk w min(rho A, clip(rho, 1 ± epsilon) A) / normalizer, rho = exp(now - old) (PPO 1707.06347).

    The ratio is a token's where scores are tokens', a sequence's where they are sequences'.
    """

    against: ClassVar[str | None] = "old"
    trains_all: ClassVar[bool] = False
    epsilon: float

    def __call__(
        self,
        now_UK: Float[Tensor, "U K"],
        old_UK: Float[Tensor, "U K"],
        advantage_U: Float[Tensor, "U"],
        loss_weight_UK: Float[Tensor, "U K"],
        normalizer: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        advantage_U1 = advantage_U[:, None]
        ratio_UK = (now_UK - old_UK).exp()
        clipped_UK = ratio_UK.clamp(1 - self.epsilon, 1 + self.epsilon)
        gain_UK = torch.minimum(ratio_UK * advantage_U1, clipped_UK * advantage_U1)
        return -(loss_weight_UK * gain_UK).sum() / normalizer

    def clipped(
        self, now_UK: Float[Tensor, "U K"], old_UK: Float[Tensor, "U K"], advantage_U: Float[Tensor, "U"]
    ) -> Tensor:
        """Where the gradient is cut off: [U, K] bool."""
        ratio_UK, advantage_U1 = (now_UK - old_UK).exp(), advantage_U[:, None]
        return ((ratio_UK > 1 + self.epsilon) & (advantage_U1 > 0)) | (
            (ratio_UK < 1 - self.epsilon) & (advantage_U1 < 0)
        )


@dataclass(frozen=True)
class PolicyGradient:
    """-sum_uk w A now / normalizer: no ratio, no clip (REINFORCE)."""

    against: ClassVar[str | None] = None
    trains_all: ClassVar[bool] = False

    def __call__(
        self,
        now_UK: Float[Tensor, "U K"],
        other_UK: Float[Tensor, "U K"] | None,
        advantage_U: Float[Tensor, "U"],
        loss_weight_UK: Float[Tensor, "U K"],
        normalizer: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        return -(loss_weight_UK * advantage_U[:, None] * now_UK).sum() / normalizer


@dataclass(frozen=True, kw_only=True)
class CenteredRegression:
    """-sum_u w (A - strength dhat) now / normalizer, dhat = d - mean of the batch, d = now - reference (RSPO).

    The gradient of strength/2 · mean (dhat - A / strength)². `advantage` gives the detached bracket: the mean is over
    the whole optimizer batch, so it comes before any loss.
    """

    against: ClassVar[str | None] = "reference"
    trains_all: ClassVar[bool] = True
    strength: float

    def advantage(
        self,
        now_UK: Float[Tensor, "U K"],
        reference_UK: Float[Tensor, "U K"],
        advantage_U: Float[Tensor, "U"],
        mean: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "U"]:
        difference_U = (now_UK - reference_UK)[:, 0].detach()
        return advantage_U - self.strength * (difference_U - mean(difference_U))

    def __call__(
        self,
        now_UK: Float[Tensor, "U K"],
        other_UK: Float[Tensor, "U K"] | None,
        advantage_U: Float[Tensor, "U"],
        loss_weight_UK: Float[Tensor, "U K"],
        normalizer: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        return PolicyGradient()(now_UK, None, advantage_U, loss_weight_UK, normalizer)


@dataclass(frozen=True)
class Contrastive:
    """-sum_u w (r now_u0 + (1 - r) now_u1) / normalizer, r = (1 + A) / 2 (LFPO 2603.01563).

    Scores: mean log-probs under the logits pulled towards now (0) and mirrored away from it (1).
    """

    against: ClassVar[str | None] = None
    trains_all: ClassVar[bool] = True

    def __call__(
        self,
        now_UK: Float[Tensor, "U 2"],
        other_UK: Float[Tensor, "U 2"] | None,
        advantage_U: Float[Tensor, "U"],
        loss_weight_UK: Float[Tensor, "U 2"],
        normalizer: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        share_U2 = torch.stack([1 + advantage_U, 1 - advantage_U], dim=1) / 2
        return -(loss_weight_UK * share_U2 * now_UK).sum() / normalizer


@dataclass(frozen=True, kw_only=True)
class Preference:
    """-sum_u w A log sigmoid(beta (now - reference)) / normalizer: DPO on margins of pairs (2305.18290)."""

    against: ClassVar[str | None] = "reference"
    trains_all: ClassVar[bool] = False
    beta: float

    def __call__(
        self,
        now_UK: Float[Tensor, "U K"],
        other_UK: Float[Tensor, "U K"],
        advantage_U: Float[Tensor, "U"],
        loss_weight_UK: Float[Tensor, "U K"],
        normalizer: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        gain_UK = torch.nn.functional.logsigmoid(self.beta * (now_UK - other_UK))
        return -(loss_weight_UK * advantage_U[:, None] * gain_UK).sum() / normalizer
