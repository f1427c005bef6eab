"""Rows along the recorded trajectory: what was masked before a step, and what was revealed there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.objective.masks.base import Masking, Span, row_draws, single_rows
from unmask.objective.masks.random import MaskDistribution, Masks, uniform_weights
from unmask.types import Rollout, ScoringBatch
from unmask.uniforms import Uniforms


@runtime_checkable
class Grouping(Protocol):
    """(rollout) -> the segment of steps that revealed each position [N, L], and the number of segments. Subclass it."""

    def __call__(self, rollout: Rollout, /) -> tuple[Tensor, int]: ...

    def is_one_step(self, rollout: Rollout) -> bool:
        """Whether a segment is one denoising step, so that its masked input is a canvas that the sampler saw."""
        return False


@dataclass(frozen=True, kw_only=True)
class ShrunkSteps(Grouping):
    """`shrink` consecutive steps, of those that revealed something, make a segment (TraceRL 2509.06949)."""

    shrink: int = 8

    def __call__(self, rollout: Rollout) -> tuple[Int[Tensor, "N L"], int]:
        step_NL = rollout.trajectory_NL
        happened_NS = torch.zeros(len(step_NL), rollout.steps, dtype=torch.long, device=step_NL.device)
        happened_NS = happened_NS.scatter(1, step_NL[:, rollout.prompt_length :], 1)
        place_NL = (happened_NS.cumsum(1) - 1).gather(1, step_NL.clamp(min=0))
        return place_NL // self.shrink, -(-rollout.steps // self.shrink)

    def is_one_step(self, rollout: Rollout) -> bool:
        """True where `shrink`, or the whole trajectory, is one step."""
        return self.shrink == 1 or rollout.steps == 1


@dataclass(frozen=True, kw_only=True)
class EqualSegments(Grouping):
    """All steps in `count` equal segments: 1 is the fully masked row, S the trajectory (d2-StepMerge 2509.21474)."""

    count: int = 8

    def __call__(self, rollout: Rollout) -> tuple[Int[Tensor, "N L"], int]:
        count = self._segments(rollout)
        return rollout.trajectory_NL.clamp(min=0) * count // rollout.steps_N[:, None], count

    def is_one_step(self, rollout: Rollout) -> bool:
        """True where there are as many segments as steps."""
        return self._segments(rollout) == rollout.steps

    def _segments(self, rollout: Rollout) -> int:
        return self.count if rollout.adaptive else min(self.count, rollout.steps)


@dataclass(frozen=True, kw_only=True)
class Segments(Masking):
    """One row a (sample, segment of steps): all revealed from its first step on masked, what it revealed scored.

    `per_row`: a token weighs 1 / (scored tokens of its row), else segments / L. Refused after a sampler that remasks.
    """

    rows: ClassVar[str] = "segments of the recorded trajectory"
    unit: ClassVar[str] = "(sample, segment)"
    grouping: Grouping
    span: Span
    per_row: bool

    @property
    def reads_trajectory(self) -> bool:
        """True: rows follow the steps that revealed the tokens."""
        return True

    def __call__(
        self, rollout: Rollout, advantage: Float[Tensor, "P G"], uniforms: Uniforms, update: int, updates: int
    ) -> ScoringBatch:
        segment_NL, count = self.grouping(rollout)
        undrawn_NL = rollout.region_L & ~rollout.drawn_NL  # masked in every canvas that the sampler saw
        index_S11 = torch.arange(count, device=advantage.device)[:, None, None]
        masked_NSL = (((segment_NL >= index_S11) & rollout.region_L) | undrawn_NL).transpose(0, 1)
        scored_NSL = ((segment_NL == index_S11) & self.span(rollout)).transpose(0, 1)
        scored_RL = scored_NSL.flatten(0, 1)
        tokens_R1 = scored_RL.sum(1, keepdim=True).clamp(min=1)
        share = 1 / tokens_R1 if self.per_row else count / rollout.region_L.sum()
        sample_R = torch.arange(len(advantage.flatten()), device=advantage.device).repeat_interleave(count)
        return single_rows(
            rollout,
            sample_R,
            masked_RL=masked_NSL.flatten(0, 1),
            scored_RL=scored_RL,
            token_weight_RL=scored_RL * share,
            advantage=advantage,
            recorded=self.grouping.is_one_step(rollout),
        )


@dataclass(frozen=True, kw_only=True)
class Prefixes(Masking):
    """One row a (sample, position): everything from the position on masked, its token scored (JustGRPO 2601.15165).

    `fraction`: only that share of a sample's drawn positions, those where the sampler was least sure.
    """

    rows: ClassVar[str] = "left-to-right prefixes"
    unit: ClassVar[str] = "(sample, position)"
    fraction: float = 1.0

    def __call__(
        self, rollout: Rollout, advantage: Float[Tensor, "P G"], uniforms: Uniforms, update: int, updates: int
    ) -> ScoringBatch:
        start, length = rollout.prompt_length, rollout.tokens_NL.shape[1]
        count = max(1, round(self.fraction * (length - start)))
        drawn_NC = rollout.drawn_NL[:, start:]
        count_N1 = (self.fraction * drawn_NC.sum(1, keepdim=True).double()).round().clamp(min=1)
        unsure_NC = rollout.confidence_NL[:, start:].masked_fill(~drawn_NC, float("inf")).argsort(dim=1, stable=True)
        column_NK, place_NK = unsure_NC[:, :count].sort(dim=1)
        chosen_R1 = (place_NK < count_N1).reshape(-1, 1)
        column_NK = column_NK + start
        sample_R = torch.arange(len(column_NK), device=advantage.device).repeat_interleave(count)
        column_R1 = column_NK.reshape(-1, 1)
        position_L = torch.arange(length, device=advantage.device)
        scored_RL = (position_L == column_R1) & chosen_R1 & rollout.drawn_NL[sample_R]
        return single_rows(
            rollout,
            sample_R,
            masked_RL=position_L >= column_R1,
            scored_RL=scored_RL,
            token_weight_RL=scored_RL.to(advantage.dtype),
            advantage=advantage,
            recorded=_left_to_right(rollout),
        )


def _left_to_right(rollout: Rollout) -> bool:
    """Whether each step revealed one position, the leftmost."""
    return not rollout.remasking and bool((rollout.revealed_at_NL == rollout.position_L.clamp(min=-1)).all())


@dataclass(frozen=True, kw_only=True)
class RecordedTimes(MaskDistribution):
    """Rows are `count` states of the sample's own trajectory, steps drawn one in each stratum of the trajectory.

    It ends with the step that reveals the last token of the span, so that no row is without a masked token.
    """

    reads_trajectory: ClassVar[bool] = True
    count: int

    def __call__(
        self, rollout: Rollout, span_NL: Bool[Tensor, "N L"], uniforms: Uniforms, update: int, updates: int
    ) -> Masks:
        key_NR = row_draws(rollout, uniforms.key("state", update), self.count)
        stratum_R = torch.arange(self.count, device=span_NL.device)
        steps_N1 = rollout.trajectory_NL.masked_fill(~span_NL, 0).amax(1, keepdim=True) + 1
        step_NR = ((stratum_R + key_NR.draw()) / self.count * steps_N1).long()
        masked_NRL = (rollout.trajectory_NL[:, None] >= step_NR[..., None]) & span_NL[:, None]
        return uniform_weights(masked_NRL)
