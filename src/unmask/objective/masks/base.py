"""The protocol of maskings, and what they share: spans, prompt masks, and the rows of samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.types import Rollout, ScoringBatch
from unmask.uniforms import Uniforms


def through_first_eos(
    tokens: Int[Tensor, "*rows L"], region_L: Bool[Tensor, "L"], eos_id: int
) -> Bool[Tensor, "*rows L"]:
    """Completion positions through the first end-of-sequence token, itself included."""
    ends = ((tokens == eos_id) & region_L).long()
    return region_L & (ends.cumsum(-1) - ends == 0)


# ---- the protocol ----


class PromptMask(NamedTuple):
    """Prompt tokens masked with probability `prob`, drawn once a group if `shared`, else once a sample."""

    prob: float = 0.0
    shared: bool = False


@runtime_checkable
class Masking(Protocol):
    """(rollout, advantage, uniforms, update, updates) -> ScoringBatch: which tokens are scored on which masked inputs.

    `advantage`: of the samples [P, G], or of recorded guesses [P, G, Z]; `update` counts the `updates` inner updates.
    Pure: every draw is keyed by `uniforms`. Implement it explicitly; a masking that reads nothing special declares
    `rows` and `unit` alone.
    """

    rows: ClassVar[str]  # in words, for `unmask methods`: what one row is
    unit: ClassVar[str]  # and what one unit is

    def __call__(
        self, rollout: Rollout, advantage: Any, uniforms: Uniforms, update: int, updates: int, /
    ) -> ScoringBatch: ...

    @property
    def reads_trajectory(self) -> bool:
        """Whether rows are states of the recorded trajectory, which a sampler that remasks does not leave."""
        return False

    @property
    def prompt_mask(self) -> PromptMask:
        """How it masks prompt tokens, so that another term can mask them alike."""
        return PromptMask()


# ---- spans: which positions of a rollout count as its completion ----

Span = Callable[[Rollout], Bool[Tensor, "N L"]]


def through_eos(rollout: Rollout) -> Bool[Tensor, "N L"]:
    """Completion positions through the first end-of-sequence token."""
    return rollout.completion_NL


def all_completion(rollout: Rollout) -> Bool[Tensor, "N L"]:
    """All completion positions that were drawn, those after the end of the sequence included."""
    return rollout.drawn_NL


@dataclass(frozen=True, kw_only=True)
class EosTokens:
    """Drawn completion positions that hold no end-of-sequence token, and the first `count` that hold one."""

    eos_id: int
    count: int

    def __call__(self, rollout: Rollout) -> Bool[Tensor, "N L"]:
        ends_NL = (rollout.tokens_NL == self.eos_id) & rollout.region_L
        return rollout.drawn_NL & (~ends_NL | (ends_NL.long().cumsum(1) <= self.count))


# ---- rows ----


def mask_prompt(rollout: Rollout, prob: float, uniforms: Uniforms, update: int, *, shared: bool) -> Bool[Tensor, "N L"]:
    """Prompt tokens to mask with probability `prob`, drawn afresh each update; pads are never masked.

    One draw a group if `shared`, else one a sample.
    """
    key = uniforms.key("prompt mask", update).key(rollout.prompt_N[:, None])
    if not shared:
        key = key.key(rollout.sample_N[:, None])
    return (key.key(rollout.position_L).draw() < prob) & rollout.attention_NL & ~rollout.region_L


def row_draws(rollout: Rollout, uniforms: Uniforms, rows: int) -> Uniforms:
    """Random keys of `rows` rows of each sample, by prompt, sample and row: [N, rows]."""
    key = uniforms.key(rollout.prompt_N[:, None]).key(rollout.sample_N[:, None])
    return key.key(torch.arange(rows, device=rollout.tokens_NL.device))


def position_draws(rollout: Rollout, key_NR: Uniforms) -> Float[Tensor, "N R L"]:
    """A uniform in [0, 1) for each position of each row, keyed by its distance from the completion's start."""
    state = key_NR.state
    return Uniforms(state[..., None] if isinstance(state, Tensor) else state).key(rollout.position_L).draw()


def smallest(
    draw_NRL: Float[Tensor, "N R L"], eligible_NRL: Bool[Tensor, "N R L"], count_NR: Int[Tensor, "N R"]
) -> Bool[Tensor, "N R L"]:
    """The `count` eligible positions with the smallest draws: a uniform subset of exactly that size."""
    rank_NRL = draw_NRL.masked_fill(~eligible_NRL, float("inf")).argsort(dim=2).argsort(dim=2)
    return eligible_NRL & (rank_NRL < count_NR[..., None])


def single_rows(
    rollout: Rollout,
    sample_R: Int[Tensor, "R"],
    *,
    masked_RL: Bool[Tensor, "R L"],
    scored_RL: Bool[Tensor, "R L"],
    token_weight_RL: Float[Tensor, "R L"],
    advantage: Float[Tensor, "P G"],
    recorded: bool = False,
) -> ScoringBatch:
    """A batch of rows that each are a unit, with a forward of its own and the advantage of its sample.

    `sample_R`: the sample of each row; `masked_RL`: positions masked in its input. `recorded`: inputs are canvases of
    the sampler, whose log-probs then are the old ones where they are exact.
    """
    recorded = recorded and rollout.exact and rollout.temperature in (0.0, 1.0)
    row_R = torch.arange(len(sample_R), device=sample_R.device)
    tokens_RL = rollout.tokens_NL[sample_R]
    return ScoringBatch(
        inputs_FL=tokens_RL.masked_fill(masked_RL, rollout.mask_id),
        attention_FL=rollout.attention_NL[sample_R],
        forward_R=row_R,
        targets_RL=tokens_RL,
        scored_RL=scored_RL,
        token_weight_RL=token_weight_RL.to(advantage.dtype),
        unit_R=row_R,
        advantage_U=advantage.flatten()[sample_R],
        length_U=scored_RL.sum(1),
        old_RL=rollout.sampled_logp_NL[sample_R] * scored_RL if recorded else None,
        sample_R=sample_R,
    )


def sample_rows(
    rollout: Rollout,
    *,
    masked_NRL: Bool[Tensor, "N R L"],
    scored_NRL: Bool[Tensor, "N R L"],
    token_weight_NRL: Float[Tensor, "N R L"],
    length_N: Int[Tensor, "N"],
    advantage: Float[Tensor, "P G"],
) -> ScoringBatch:
    """A batch of R rows a sample that together make one unit; `length_N`: tokens of the sample's span."""
    samples, rows, _ = masked_NRL.shape
    sample_R = torch.arange(samples, device=masked_NRL.device).repeat_interleave(rows)
    batch = single_rows(
        rollout,
        sample_R,
        masked_RL=masked_NRL.flatten(0, 1),
        scored_RL=scored_NRL.flatten(0, 1),
        token_weight_RL=token_weight_NRL.flatten(0, 1),
        advantage=advantage,
    )
    return replace(batch, unit_R=sample_R, advantage_U=advantage.flatten(), length_U=length_N)


@dataclass(frozen=True, kw_only=True)
class FullyMasked(Masking):
    """One row a sample: the whole completion masked, prompt tokens masked with probability p (d1 2504.12216).

    `shared`: the prompt mask is one a group; then all samples of a prompt share one forward.
    """

    rows: ClassVar[str] = "completion fully masked, prompt tokens masked at random"
    unit: ClassVar[str] = "sample"
    prompt_mask_prob: float = 0.15
    shared: bool = False

    @property
    def prompt_mask(self) -> PromptMask:
        """Prompt tokens masked with `prompt_mask_prob`."""
        return PromptMask(self.prompt_mask_prob, self.shared)

    def __call__(
        self, rollout: Rollout, advantage: Float[Tensor, "P G"], uniforms: Uniforms, update: int, updates: int
    ) -> ScoringBatch:
        masked_NL = rollout.region_L | mask_prompt(rollout, self.prompt_mask_prob, uniforms, update, shared=self.shared)
        inputs_NL = rollout.tokens_NL.masked_fill(masked_NL, rollout.mask_id)
        row_N = torch.arange(len(inputs_NL), device=inputs_NL.device)
        size = rollout.group_size if self.shared else 1
        return ScoringBatch(
            inputs_FL=inputs_NL[::size],
            attention_FL=rollout.attention_NL[::size],
            forward_R=row_N // size,
            targets_RL=rollout.tokens_NL,
            scored_RL=rollout.completion_NL,
            token_weight_RL=rollout.completion_NL.to(advantage.dtype),
            unit_R=row_N,
            advantage_U=advantage.flatten(),
            length_U=rollout.completion_NL.sum(1),
            sample_R=row_N,
        )
