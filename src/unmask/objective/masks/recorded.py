"""Rows at states that the sampler recorded, with completions guessed there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.objective.masks.base import Masking, PromptMask, mask_prompt, through_first_eos
from unmask.types import Rollout, ScoringBatch, Snapshot
from unmask.uniforms import Uniforms


@dataclass(frozen=True, kw_only=True)
class Branches(Masking):
    """Z rows a recorded state, one forward: the state's masked positions as filled by each guess (DiSPO 2602.06462).

    Scored: masked positions up to the first end-of-sequence token of each filled completion.
    `per_row`: a token weighs 1 / (scored tokens of its row), else 1.
    `shared`: the prompt mask is one a group. It is the draw that FullyMasked has in the same update: terms add up, so
    their gradients are right in expectation whether their masks are the same or not.
    """

    rows: ClassVar[str] = "guesses at a recorded state"
    unit: ClassVar[str] = "branch"
    eos_id: int
    prompt_mask_prob: float = 0.0
    shared: bool = False
    per_row: bool = False

    @property
    def prompt_mask(self) -> PromptMask:
        """Prompt tokens masked with `prompt_mask_prob`."""
        return PromptMask(self.prompt_mask_prob, self.shared)

    def __call__(
        self, rollout: Rollout, advantage: Float[Tensor, "P G Z"], uniforms: Uniforms, update: int, updates: int
    ) -> ScoringBatch:
        (snapshot,) = rollout.snapshots
        hidden_NL = mask_prompt(rollout, self.prompt_mask_prob, uniforms, update, shared=self.shared)
        guesses, rows = snapshot.guesses_ZNL.transpose(0, 1), advantage.shape[2]
        masked_N1L = (snapshot.canvas_NL == rollout.mask_id)[:, None] & rollout.region_L
        scored_RL = (masked_N1L & through_first_eos(guesses, rollout.region_L, self.eos_id)).flatten(0, 1)
        token_weight_RL = scored_RL.to(advantage.dtype)
        if self.per_row:
            token_weight_RL = token_weight_RL / scored_RL.sum(1, keepdim=True).clamp(min=1)
        row_R = torch.arange(len(scored_RL), device=scored_RL.device)
        return ScoringBatch(
            inputs_FL=snapshot.canvas_NL.masked_fill(hidden_NL, rollout.mask_id),
            attention_FL=rollout.attention_NL,
            forward_R=row_R // rows,
            targets_RL=guesses.flatten(0, 1),
            scored_RL=scored_RL,
            token_weight_RL=token_weight_RL,
            unit_R=row_R,
            advantage_U=advantage.flatten(),
            length_U=scored_RL.sum(1),
            old_RL=snapshot.logp_ZNL.transpose(0, 1).flatten(0, 1) if self._recorded(rollout) else None,
            sample_R=row_R // rows,
        )

    def _recorded(self, rollout: Rollout) -> bool:
        """Whether the sampler's log-probs are those of these rows."""
        return rollout.exact and rollout.temperature in (0.0, 1.0) and self.prompt_mask_prob == 0


# ---- MDPO: which recorded steps are trained, and which of their masked positions ----

# (advantage, count, uniforms, rollout) -> step_Pk, the trained steps of each group
StepChoice = Callable[[Float[Tensor, "P G S"], int, Uniforms, Rollout], Int[Tensor, "P k"]]


def largest_advantages(advantage: Float[Tensor, "P G S"], count: int, uniforms: Uniforms, rollout: Rollout) -> Tensor:
    """The steps with the largest sum of |A| over the group."""
    return advantage.abs().sum(1).argsort(dim=1, descending=True, stable=True)[:, :count]


def random_steps(advantage: Float[Tensor, "P G S"], count: int, uniforms: Uniforms, rollout: Rollout) -> Tensor:
    """The denoising steps trained of each group, [P, k]: drawn at random without replacement, once a group."""
    prompt_P1 = rollout.prompt_N[:: rollout.group_size, None]
    steps = torch.arange(advantage.shape[2], device=advantage.device)
    return uniforms.key("trained steps", prompt_P1).key(steps).draw().argsort(dim=1)[:, :count]


def spread_steps(advantage: Float[Tensor, "P G S"], count: int, uniforms: Uniforms, rollout: Rollout) -> Tensor:
    """Steps equally far apart, the last included."""
    steps = advantage.shape[2]
    chosen = torch.arange(1, count + 1, device=advantage.device) * steps // count - 1
    return chosen.expand(len(advantage), -1)


STEP_CHOICES: dict[str, StepChoice] = {
    "largest_advantages": largest_advantages,
    "random_steps": random_steps,
    "spread_steps": spread_steps,
}

# (rollout, snapshot, step, eos_id) -> scored_NL
Positions = Callable[[Rollout, Snapshot, int, int], Bool[Tensor, "N L"]]


def all_masked(rollout: Rollout, snapshot: Snapshot, step: int, eos_id: int) -> Tensor:
    """All masked positions of the state, those after the end of the sequence included."""
    return (snapshot.canvas_NL == rollout.mask_id) & rollout.region_L


def committed(rollout: Rollout, snapshot: Snapshot, step: int, eos_id: int) -> Tensor:
    """The positions that this step revealed for good."""
    return all_masked(rollout, snapshot, step, eos_id) & (rollout.revealed_at_NL == step)


def masked_through_eos(rollout: Rollout, snapshot: Snapshot, step: int, eos_id: int) -> Tensor:
    """Masked positions up to the first end-of-sequence token of the step's own guess."""
    return all_masked(rollout, snapshot, step, eos_id) & through_first_eos(
        snapshot.guesses_ZNL[0], rollout.region_L, eos_id
    )


POSITIONS: dict[str, Positions] = {
    "all_masked": all_masked,
    "committed": committed,
    "masked_through_eos": masked_through_eos,
}


@dataclass(frozen=True, kw_only=True)
class OwnGuesses(Masking):
    """One row a (sample, trained step): the recorded state, its target that step's own guess (MDPO 2508.13148).

    weight_i = c_i / |x_s|, c_i the guessed token's probability (1 without `confidence_weight`), |x_s| the positions
    trained; advantage = lambda A, lambda = L / |x_s| (1 without `length_weight`). Scored at the sampling temperature;
    old = as recorded.
    """

    rows: ClassVar[str] = "recorded states, each with its own guess"
    unit: ClassVar[str] = "(sample, step)"
    eos_id: int
    steps: int = 8
    choose: StepChoice = largest_advantages
    positions: Positions = all_masked
    confidence_weight: bool = True
    length_weight: bool = True

    def __call__(
        self, rollout: Rollout, advantage: Float[Tensor, "P G S"], uniforms: Uniforms, update: int, updates: int
    ) -> ScoringBatch:
        count = min(self.steps, advantage.shape[2])
        step_Nk = self.choose(advantage, count, uniforms, rollout).repeat_interleave(rollout.group_size, dim=0)
        snapshots = rollout.snapshots
        sample_R = torch.arange(len(step_Nk), device=advantage.device).repeat_interleave(count)
        step_R = step_Nk.flatten()
        scored = [self.positions(rollout, state, step, self.eos_id) for step, state in enumerate(snapshots)]
        scored_RL = torch.stack(scored)[step_R, sample_R]
        masked_R1 = scored_RL.sum(1, keepdim=True).clamp(min=1)
        token_weight_RL = scored_RL / masked_R1
        if self.confidence_weight:
            token_weight_RL = (
                token_weight_RL * torch.stack([state.confidence_ZNL[0] for state in snapshots])[step_R, sample_R]
            )
        advantage_R = advantage.flatten(0, 1)[sample_R, step_R]
        if self.length_weight:
            advantage_R = advantage_R * rollout.region_L.sum() / masked_R1[:, 0]
        row_R = torch.arange(len(step_R), device=advantage.device)
        return ScoringBatch(
            inputs_FL=torch.stack([state.canvas_NL for state in snapshots])[step_R, sample_R],
            attention_FL=rollout.attention_NL[sample_R],
            forward_R=row_R,
            targets_RL=torch.stack([state.guesses_ZNL[0] for state in snapshots])[step_R, sample_R],
            scored_RL=scored_RL,
            token_weight_RL=token_weight_RL,
            unit_R=row_R,
            advantage_U=advantage_R,
            length_U=scored_RL.sum(1),
            temperature=rollout.temperature or 1.0,
            old_RL=torch.stack([state.logp_ZNL[0] for state in snapshots])[step_R, sample_R] if rollout.exact else None,
            sample_R=sample_R,
        )
