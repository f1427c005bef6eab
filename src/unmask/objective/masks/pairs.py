"""Pairs of completions, the best and the worst of a group: the unit of preference methods."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.objective.masks.base import Masking
from unmask.objective.masks.random import RandomMasks
from unmask.types import Rollout, ScoringBatch
from unmask.uniforms import Uniforms


@dataclass(frozen=True, kw_only=True)
class BestAndWorst(Masking):
    """A unit a group: rows of its best completion with their weights, of its worst with their weights negated.

    Then the weighted sum is the margin B(best) - B(worst). Advantage 1, or 0 where all rewards are equal.
    """

    rows: ClassVar[str] = "random masks of a group's best and worst completion"
    unit: ClassVar[str] = "pair"
    masks: RandomMasks = field(metadata={"inline": True})  # `unmask methods` shows its settings as this masking's

    @property
    def reads_trajectory(self) -> bool:
        """As the masks do."""
        return self.masks.reads_trajectory

    def __call__(
        self, rollout: Rollout, advantage: Float[Tensor, "P G"], uniforms: Uniforms, update: int, updates: int
    ) -> ScoringBatch:
        every = self.masks(rollout, advantage, uniforms, update, updates)
        group_P = torch.arange(len(advantage), device=advantage.device) * rollout.group_size
        pair_P2 = torch.stack([group_P + advantage.argmax(1), group_P + advantage.argmin(1)], dim=1)
        sign_N = torch.zeros_like(every.advantage_U)
        sign_N[pair_P2[:, 1]] = -1
        sign_N[pair_P2[:, 0]] = 1
        taken = every.take_units(sign_N != 0)
        kept_N = sign_N != 0
        pair_U = (torch.arange(len(sign_N), device=advantage.device) // rollout.group_size)[kept_N]
        return replace(
            taken,
            token_weight_RL=taken.token_weight_RL * sign_N[kept_N][taken.unit_R][:, None],
            unit_R=pair_U[taken.unit_R],
            advantage_U=(advantage.amax(1) > advantage.amin(1)).to(advantage.dtype),
            length_U=taken.length_U.new_zeros(len(advantage)).index_add(0, pair_U, taken.length_U),
        )
