"""The nouns that pass between the rooms.

Dimension letters, used as suffixes of tensor names everywhere:
P prompts, G samples per prompt, N = P·G samples, S denoising steps, F forwards, R rows, U units, K scores a unit,
Z guesses, L positions (left-padded prompt, then completion), C completion positions, A asked positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """A batch of left-padded prompts, one row a sample, and the keys of their random draws."""

    tokens_NP: Int[Tensor, "N P"]
    attention_NP: Bool[Tensor, "N P"]
    prompt_N: Int[Tensor, "N"]  # index of the prompt in its data set
    sample_N: Int[Tensor, "N"]  # index of the sample among those of its prompt


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Partly masked canvases met by the sampler, with completions guessed there in passing; logits are never kept."""

    step_N: Int[Tensor, "N"]  # denoising step before which the canvas stood
    canvas_NL: Int[Tensor, "N L"]
    guesses_ZNL: Int[Tensor, "Z N L"]  # equal to the canvas where it is not masked
    logp_ZNL: Float[Tensor, "Z N L"]  # of the guessed tokens at the sampling temperature; 0 where not masked
    confidence_ZNL: Float[Tensor, "Z N L"]  # probability of the guessed tokens at that temperature; 0 where not masked


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Sampled completions and how they came about. Samples of one prompt are neighbours; no model inside."""

    tokens_NL: Int[Tensor, "N L"]
    attention_NL: Bool[Tensor, "N L"]
    completion_NL: Bool[Tensor, "N L"]  # completion positions through the first end-of-sequence token
    block_NL: Int[Tensor, "N L"]  # block of each completion position; -1 in the prompt
    revealed_at_NL: Int[Tensor, "N L"]  # step that last revealed the position; -1 in the prompt
    sampled_logp_NL: Float[Tensor, "N L"]  # at the sampling temperature, when revealed
    confidence_NL: Float[Tensor, "N L"]  # the unmasking rule's, when revealed
    prompt_N: Int[Tensor, "N"]
    sample_N: Int[Tensor, "N"]
    prompt_length: int  # columns before the completion, pads included
    group_size: int
    steps: int  # as scheduled; of an adaptive rule, the most that any sample took
    temperature: float
    mask_id: int
    remasking: bool
    adaptive: bool = False  # each sample took as many steps as the rule liked
    exact: bool = False  # at every position, what was recorded is what scoring the same canvas gives
    snapshots: tuple[Snapshot, ...] = ()
    policy_version: int = 0

    @property
    def region_L(self) -> Bool[Tensor, "L"]:
        """Columns of the completion, whatever its length."""
        return torch.arange(self.tokens_NL.shape[1], device=self.tokens_NL.device) >= self.prompt_length

    @property
    def position_L(self) -> Int[Tensor, "L"]:
        """Positions counted from the completion's start: what random draws are keyed by."""
        return torch.arange(self.tokens_NL.shape[1], device=self.tokens_NL.device) - self.prompt_length

    @property
    def trajectory_NL(self) -> Int[Tensor, "N L"]:
        """`revealed_at_NL` as the whole trajectory. Raises ValueError after a sampler that remasks."""
        if self.remasking:
            raise ValueError("a remasking sampler does not leave its canvases in revealed_at: use recorded snapshots")
        return self.revealed_at_NL

    @property
    def steps_N(self) -> Int[Tensor, "N"]:
        """Steps of each sample's trajectory, whatever the others took."""
        if self.adaptive:
            return self.trajectory_NL.amax(1) + 1
        return torch.full_like(self.prompt_N, self.steps)

    def canvas(self, step: int) -> Int[Tensor, "N L"]:
        """The canvas before `step`: where(revealed_at >= step, MASK, tokens). Refused after a sampler that remasks."""
        return torch.where(self.trajectory_NL >= step, self.mask_id, self.tokens_NL)


@dataclass(frozen=True, kw_only=True)
class ScoringBatch:
    """Questions to the denoiser: rows (of one forward if inputs are equal) that make up units (one advantage each)."""

    inputs_FL: Int[Tensor, "F L"]
    attention_FL: Bool[Tensor, "F L"]
    forward_R: Int[Tensor, "R"]
    targets_RL: Int[Tensor, "R L"]
    scored_RL: Bool[Tensor, "R L"]
    token_weight_RL: Float[Tensor, "R L"]  # as the likelihood reads it; 0 where not scored
    unit_R: Int[Tensor, "R"]
    advantage_U: Float[Tensor, "U"]
    length_U: Int[Tensor, "U"]  # tokens that the unit speaks for
    temperature: float = 1.0  # of the log-softmax that scores
    old_RL: Float[Tensor, "R L"] | None = None  # log-probs recorded by the sampler, where they are those of these rows

    @property
    def scored_U(self) -> Bool[Tensor, "U"]:
        """Units in which something is scored."""
        counts_U = torch.zeros(len(self.advantage_U), dtype=torch.long, device=self.advantage_U.device)
        return counts_U.index_add(0, self.unit_R, self.scored_RL.sum(1)) > 0

    def take_units(self, keep_U: Bool[Tensor, "U"]) -> ScoringBatch:
        """The batch of some units alone, with the forwards and rows that they need: the only way to micro-batch."""
        keep_R = keep_U[self.unit_R]
        keep_F = torch.zeros(len(self.inputs_FL), dtype=torch.bool, device=keep_U.device)
        keep_F[self.forward_R[keep_R]] = True
        new_forward_F, new_unit_U = keep_F.cumsum(0) - 1, keep_U.cumsum(0) - 1
        return replace(
            self,
            inputs_FL=self.inputs_FL[keep_F],
            attention_FL=self.attention_FL[keep_F],
            forward_R=new_forward_F[self.forward_R[keep_R]],
            targets_RL=self.targets_RL[keep_R],
            scored_RL=self.scored_RL[keep_R],
            token_weight_RL=self.token_weight_RL[keep_R],
            unit_R=new_unit_U[self.unit_R[keep_R]],
            advantage_U=self.advantage_U[keep_U],
            length_U=self.length_U[keep_U],
            old_RL=None if self.old_RL is None else self.old_RL[keep_R],
        )

    def micro_batches(self, forwards: int) -> Iterator[tuple[ScoringBatch, Bool[Tensor, "U"]]]:
        """ScoringBatch of about `forwards` forwards each (units stay whole), with the units that each holds."""
        first_forward_U = torch.full_like(self.advantage_U, len(self.inputs_FL), dtype=torch.long)
        first_forward_U = first_forward_U.scatter_reduce(0, self.unit_R, self.forward_R, "amin")
        for start in range(0, len(self.inputs_FL), forwards):
            keep_U = (first_forward_U >= start) & (first_forward_U < start + forwards)
            if bool(keep_U.any()):
                yield self.take_units(keep_U), keep_U
