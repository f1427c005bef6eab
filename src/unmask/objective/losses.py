"""Surrogates: what is minimised.

Pure; the normaliser is an argument, so that accumulation and ranks equal one large batch.
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
    """(now_UK, other_UK, credit_U, weight_UK, normaliser) -> loss."""

    against: ClassVar[str | None]  # whose scores `other` are: "old", "reference" or nobody's
    trains_all: ClassVar[bool]  # whether units without credit have a gradient

    def __call__(self, now_UK: Any, other_UK: Any, credit_U: Any, weight_UK: Any, normaliser: Any, /) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Clipped:
    """-sum_uk w min(rho A, clip(rho, 1 ± epsilon) A) / normaliser, rho = exp(now - old) (PPO 1707.06347).

    The ratio is a token's where scores are tokens', a sequence's where they are sequences'.
    """

    against: ClassVar[str | None] = "old"
    trains_all: ClassVar[bool] = False
    epsilon: float

    def __call__(
        self,
        now_UK: Float[Tensor, "U K"],
        old_UK: Float[Tensor, "U K"],
        credit_U: Float[Tensor, "U"],
        weight_UK: Float[Tensor, "U K"],
        normaliser: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        credit_U1 = credit_U[:, None]
        ratio_UK = (now_UK - old_UK).exp()
        clipped_UK = ratio_UK.clamp(1 - self.epsilon, 1 + self.epsilon)
        gain_UK = torch.minimum(ratio_UK * credit_U1, clipped_UK * credit_U1)
        return -(weight_UK * gain_UK).sum() / normaliser

    def clipped(
        self, now_UK: Float[Tensor, "U K"], old_UK: Float[Tensor, "U K"], credit_U: Float[Tensor, "U"]
    ) -> Tensor:
        """Where the gradient is cut off: [U, K] bool."""
        ratio_UK, credit_U1 = (now_UK - old_UK).exp(), credit_U[:, None]
        return ((ratio_UK > 1 + self.epsilon) & (credit_U1 > 0)) | ((ratio_UK < 1 - self.epsilon) & (credit_U1 < 0))


@dataclass(frozen=True)
class WeightedLikelihood:
    """-sum_uk w A now / normaliser: no ratio, no clip (REINFORCE)."""

    against: ClassVar[str | None] = None
    trains_all: ClassVar[bool] = False

    def __call__(
        self,
        now_UK: Float[Tensor, "U K"],
        other_UK: Float[Tensor, "U K"] | None,
        credit_U: Float[Tensor, "U"],
        weight_UK: Float[Tensor, "U K"],
        normaliser: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        return -(weight_UK * credit_U[:, None] * now_UK).sum() / normaliser


@dataclass(frozen=True, kw_only=True)
class RelativeScore:
    """-sum_u w (A - strength dhat) now / normaliser, dhat = d - mean of the batch, d = now - reference (RSPO).

    The gradient of strength/2 · mean (dhat - A / strength)². `credit` gives the detached bracket: the mean is over the
    whole optimizer batch, so it comes before any loss.
    """

    against: ClassVar[str | None] = "reference"
    trains_all: ClassVar[bool] = True
    strength: float

    def credit(
        self,
        now_UK: Float[Tensor, "U K"],
        reference_UK: Float[Tensor, "U K"],
        credit_U: Float[Tensor, "U"],
        mean: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "U"]:
        difference_U = (now_UK - reference_UK)[:, 0].detach()
        return credit_U - self.strength * (difference_U - mean(difference_U))

    def __call__(
        self,
        now_UK: Float[Tensor, "U K"],
        other_UK: Float[Tensor, "U K"] | None,
        credit_U: Float[Tensor, "U"],
        weight_UK: Float[Tensor, "U K"],
        normaliser: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        return WeightedLikelihood()(now_UK, None, credit_U, weight_UK, normaliser)


@dataclass(frozen=True)
class Contrastive:
    """-sum_u w (r now_u0 + (1 - r) now_u1) / normaliser, r = (1 + A) / 2 (LFPO 2603.01563).

    Scores: mean log-probs under the logits pulled towards now (0) and mirrored away from it (1).
    """

    against: ClassVar[str | None] = None
    trains_all: ClassVar[bool] = True

    def __call__(
        self,
        now_UK: Float[Tensor, "U 2"],
        other_UK: Float[Tensor, "U 2"] | None,
        credit_U: Float[Tensor, "U"],
        weight_UK: Float[Tensor, "U 2"],
        normaliser: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        share_U2 = torch.stack([1 + credit_U, 1 - credit_U], dim=1) / 2
        return -(weight_UK * share_U2 * now_UK).sum() / normaliser


@dataclass(frozen=True, kw_only=True)
class Preference:
    """-sum_u w A log sigmoid(beta (now - reference)) / normaliser: DPO on margins of pairs (2305.18290)."""

    against: ClassVar[str | None] = "reference"
    trains_all: ClassVar[bool] = False
    beta: float

    def __call__(
        self,
        now_UK: Float[Tensor, "U K"],
        other_UK: Float[Tensor, "U K"],
        credit_U: Float[Tensor, "U"],
        weight_UK: Float[Tensor, "U K"],
        normaliser: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        gain_UK = torch.nn.functional.logsigmoid(self.beta * (now_UK - other_UK))
        return -(weight_UK * credit_U[:, None] * gain_UK).sum() / normaliser
