"""Data that passes between the packages: prompts, rollouts, scoring batches. Tensors and numbers, no model.

Dimension letters, used as suffixes of tensor names everywhere, in the order of the dimensions:

    P  prompts; in prompt tensors [N, P], prompt columns
    G  samples of a prompt
    N  samples, N = P·G, those of a prompt next to each other
    S  denoising steps
    L  positions: left-padded prompt, then completion
    C  completion positions; in a denoising step, the masked positions that may be revealed
    F  forwards: masked inputs of the denoiser
    R  rows: targets scored on one input; rows with equal inputs may share a forward. In masks, rows of a sample
    U  units: rows whose log-probs are combined, with one advantage
    K  scores of a unit: 1, or one a position; in denoisers, targets of a query position
    Z  guesses: completions drawn at one recorded state
    A  query positions of a forward, Q of all forwards together
    V  vocabulary
    D  hidden size of the denoiser
    1, 2, 3: dimensions of that size; *two, *rest: further dimensions
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """A batch of left-padded prompts, each repeated for its samples, with the numbers that key the random draws."""

    tokens_NP: Int[Tensor, "N P"]
    attention_NP: Bool[Tensor, "N P"]
    prompt_N: Int[Tensor, "N"]  # number of the prompt, distinct in a step: see Examples.numbered
    sample_N: Int[Tensor, "N"]  # index of the sample among those of its prompt


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The sampler's canvases before one denoising step of each sample, and Z completions drawn for each canvas."""

    step_N: Int[Tensor, "N"]  # denoising step before which the canvas stood
    canvas_NL: Int[Tensor, "N L"]
    guesses_ZNL: Int[Tensor, "Z N L"]  # equal to the canvas where it is not masked
    logp_ZNL: Float[Tensor, "Z N L"]  # of the guessed tokens at the sampling temperature; 0 where not masked
    confidence_ZNL: Float[Tensor, "Z N L"]  # probability of the guessed tokens at that temperature; 0 where not masked


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Sampled completions with their trajectories: which step revealed each token, and at what log-prob.

    Samples of one prompt are neighbours, so that [N] views as [P, G]. `Rollout.fake` makes one by hand.
    """

    tokens_NL: Int[Tensor, "N L"]
    attention_NL: Bool[Tensor, "N L"]
    completion_NL: Bool[Tensor, "N L"]  # completion positions through the first token that ends it
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
    filled_NL: Bool[Tensor, "N L"] | None = None  # filled up behind an end of sequence, never drawn; None: nothing is

    @staticmethod
    def fake(
        tokens_NL: Int[Tensor, "N L"], *, prompt_length: int, group_size: int, mask_id: int, **fields: Any
    ) -> Rollout:
        """A rollout made by hand: prompt and completion tokens, and any other field that is not at its default.

        By default nothing is padded, every completion goes on to the last column, in one block, and was revealed in
        one step; log-probs and confidences are 0; `steps` is what `revealed_at_NL` takes.

            Rollout.fake(torch.tensor([[5, 6, 7], [5, 8, 9]]), prompt_length=1, group_size=2, mask_id=0)
        """
        sample_N = torch.arange(len(tokens_NL), device=tokens_NL.device)
        region_L = torch.arange(tokens_NL.shape[1], device=tokens_NL.device) >= prompt_length
        first_NL = (region_L.long() - 1).expand_as(tokens_NL)  # 0 in the completion, -1 in the prompt
        zeros_NL = torch.zeros(tokens_NL.shape, device=tokens_NL.device)
        rollout = Rollout(
            tokens_NL=tokens_NL,
            attention_NL=torch.ones_like(tokens_NL, dtype=torch.bool),
            completion_NL=region_L.expand_as(tokens_NL),
            block_NL=first_NL,
            revealed_at_NL=first_NL,
            sampled_logp_NL=zeros_NL,
            confidence_NL=zeros_NL,
            prompt_N=sample_N // group_size,
            sample_N=sample_N % group_size,
            prompt_length=prompt_length,
            group_size=group_size,
            steps=1,
            temperature=1.0,
            mask_id=mask_id,
            remasking=False,
            filled_NL=torch.zeros_like(tokens_NL, dtype=torch.bool),
        )
        if "revealed_at_NL" in fields and "steps" not in fields:
            fields["steps"] = int(fields["revealed_at_NL"].max()) + 1
        return replace(rollout, **fields)

    @property
    def region_L(self) -> Bool[Tensor, "L"]:
        """Columns of the completion, whatever its length."""
        return torch.arange(self.tokens_NL.shape[1], device=self.tokens_NL.device) >= self.prompt_length

    @property
    def drawn_NL(self) -> Bool[Tensor, "N L"]:
        """Completion positions whose tokens were drawn: the others are not scored, counted or credited."""
        region_NL = self.region_L.expand_as(self.tokens_NL)
        return region_NL if self.filled_NL is None else region_NL & ~self.filled_NL

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
    """What a denoiser is asked to score: F masked inputs, R rows of targets on them, U units of rows with advantages.

    A row is a set of target tokens scored on one input; rows that share an input share its forward (`forward_R`). A
    unit is the rows whose log-probs a likelihood combines before ratio and clip, with one advantage (`unit_R`).

        A group of two samples of one prompt, each scored on the same fully masked completion and on a mask of its own:
        F = 3  forwards: all masked (shared); sample 0 partly masked; sample 1 partly masked
        R = 4  rows: forward_R = [0, 0, 1, 2], the samples' tokens are their targets_RL
        U = 2  units, one a sample: unit_R = [0, 1, 0, 1], with advantage_U = [1, -1]
    """

    inputs_FL: Int[Tensor, "F L"]  # tokens, some masked
    attention_FL: Bool[Tensor, "F L"]
    forward_R: Int[Tensor, "R"]  # input of each row; rows of a forward are neighbours
    targets_RL: Int[Tensor, "R L"]  # tokens whose log-prob is taken
    scored_RL: Bool[Tensor, "R L"]  # positions where it is: masked in the input
    token_weight_RL: Float[Tensor, "R L"]  # as the likelihood reads it; 0 where not scored
    unit_R: Int[Tensor, "R"]  # unit of each row
    advantage_U: Float[Tensor, "U"]
    length_U: Int[Tensor, "U"]  # tokens of the span that the unit's score is of
    temperature: float = 1.0  # of the log-softmax that scores
    old_RL: Float[Tensor, "R L"] | None = None  # log-probs recorded by the sampler, where they are those of these rows
    sample_R: Int[Tensor, "R"] | None = None  # the rollout's sample that each row is of, for whoever shows it

    @property
    def scored_U(self) -> Bool[Tensor, "U"]:
        """Units of which some token is scored."""
        counts_U = torch.zeros(len(self.advantage_U), dtype=torch.long, device=self.advantage_U.device)
        return counts_U.index_add(0, self.unit_R, self.scored_RL.sum(1)) > 0

    def take_units(self, keep_U: Bool[Tensor, "U"]) -> ScoringBatch:
        """The batch of some units alone, with the rows and forwards that they need."""
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
            sample_R=None if self.sample_R is None else self.sample_R[keep_R],
        )

    def count_micro_batches(self, forwards: int) -> int:
        """How many batches `micro_batches` makes; 1 of all where `forwards` is 0."""
        if not 0 < forwards < len(self.inputs_FL):
            return 1
        return len(set((self._first_forward_U // forwards).tolist()))

    @property
    def _first_forward_U(self) -> Int[Tensor, "U"]:
        first_forward_U = torch.full_like(self.advantage_U, len(self.inputs_FL), dtype=torch.long)
        return first_forward_U.scatter_reduce(0, self.unit_R, self.forward_R, "amin")

    def micro_batches(self, forwards: int) -> Iterator[tuple[ScoringBatch, Bool[Tensor, "U"]]]:
        """Batches of about `forwards` forwards each (units stay whole), with the units [U] that each holds."""
        first_forward_U = self._first_forward_U
        for start in range(0, len(self.inputs_FL), forwards):
            keep_U = (first_forward_U >= start) & (first_forward_U < start + forwards)
            if bool(keep_U.any()):
                yield self.take_units(keep_U), keep_U
