"""Column indices of the sampler, as pure functions of sizes and flags: candidates of a block, and what a cache reruns.

No model and no loop: every function here is tested against plain Python loops. No function waits for the device: shapes
follow from numbers known to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unmask.denoisers.key_values import Columns
from unmask.sampling.caching import Caching


@dataclass(frozen=True, kw_only=True)
class CanvasLayout:
    """Sizes of a canvas and the traits of the model that columns depend on.

    `start` prompt columns (pads included), then completion positions up to column `length`, in blocks of
    `block_length`. `shift`: the network's output at column i-1 predicts column i. `block_causal`: the model attends in
    blocks of its own; they are counted from the prompt's first token, so samples' blocks begin at different columns.
    """

    start: int
    length: int
    block_length: int
    shift: bool = False
    block_causal: bool = False

    @property
    def completion(self) -> int:
        """Completion positions."""
        return self.length - self.start

    def block_start(self, block: int) -> int:
        """First column of a block (of the earliest possible one, plus up to block_length - 1, if block-causal)."""
        return self.start + block * self.block_length


@dataclass(frozen=True, kw_only=True)
class ActiveBlocks:
    """The block that each sample is on: [N, 1] on the device, and the first and last of them as known to the host."""

    block_N1: Tensor
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Positions that a block's steps may commit: canvas columns [N, C'], and which of them are candidates."""

    column_NC: Tensor
    candidate_NC: Tensor


@dataclass(frozen=True, kw_only=True)
class StepFlags:
    """What a step finds: the masked candidates, the columns that the step before changed, and bounds on their number.

    `most_masked_before`: masked candidates before the previous step, at most, in any sample.
    """

    masked_NC: Tensor
    changed_NL: Tensor | None
    most_masked_before: int


class Window(NamedTuple):
    """Columns that a forward runs, and the end of those that it attends to."""

    columns: Columns
    end: int


# ---- candidates ----


def block_candidates(layout: CanvasLayout, block_NC: Tensor, block_N1: Tensor) -> Candidates:
    """The positions of each sample's own block; block_NC is the block of every completion position."""
    first_N1 = (block_NC < block_N1).sum(1, keepdim=True).clamp(max=layout.completion - layout.block_length)
    position_NC = first_N1 + torch.arange(layout.block_length, device=block_NC.device)
    return Candidates(column_NC=layout.start + position_NC, candidate_NC=block_NC.gather(1, position_NC) == block_N1)


def completion_candidates(layout: CanvasLayout, block_NC: Tensor, block_N1: Tensor) -> Candidates:
    """The positions of each sample's own block and of those before it."""
    position_NC = torch.arange(layout.completion, device=block_NC.device).expand_as(block_NC)
    return Candidates(column_NC=layout.start + position_NC, candidate_NC=block_NC <= block_N1)


# By the rule's trait `candidates`.
CANDIDATES: dict[str, Callable[[CanvasLayout, Tensor, Tensor], Candidates]] = {
    "block": block_candidates,
    "completion": completion_candidates,
}


def suffix_positions(layout: CanvasLayout, first_block: int) -> int:
    """Positions behind the block, at most, in any sample: all are masked."""
    suffix = layout.completion - (first_block + 1) * layout.block_length
    if layout.block_causal:  # a prompt that ends within a block shifts them all
        suffix = min(layout.completion, suffix + layout.block_length - 1)
    return max(0, suffix)


def steps_with_masks(block_NC: Tensor, blocks: int, counts: Sequence[int], *, remasks: bool) -> Tensor:
    """Which of all steps find something masked in a sample's own block, as the schedule has it: [N, blocks * counts].

    All do where blocks are whole and each step commits something. A block that a prompt shares, or that is cut short,
    is full before its last step. `remasks`: what is committed may be masked again, so it is not full for good.
    """
    device = block_NC.device
    size_NB = torch.zeros((len(block_NC), blocks), dtype=torch.long, device=device)
    size_NB = size_NB.scatter_add(1, block_NC, torch.ones_like(block_NC))
    left_S = torch.tensor([sum(counts[index:]) for index in range(len(counts))], device=device)
    masked_NBS = (left_S > 0).expand(*size_NB.shape, -1) if remasks else size_NB[..., None] > sum(counts) - left_S
    return masked_NBS.flatten(1)


# ---- what a forward runs ----


def finished_columns(layout: CanvasLayout, first_block: int) -> int:
    """Columns that lie in earlier blocks in every sample, wherever its prompt ends in a block of the model's own."""
    return max(0, layout.block_start(first_block - 1) + 1)


def all_columns(layout: CanvasLayout) -> Window:
    """The whole canvas."""
    return Window(slice(0, layout.length), layout.length)


def prefix_window(layout: CanvasLayout, active: ActiveBlocks, *, index: int, cached_columns: int) -> Window:
    """Exact prefix cache of a block-causal model: from the first column that may have changed to the block's end.

    Step 0 also runs what the block before revealed last: all from `cached_columns`, the columns cached in final form.
    """
    end = min(layout.length, layout.block_start(active.last + 1))
    return Window(slice(finished_columns(layout, active.first) if index else cached_columns, end), end)


def recompute_window(
    caching: Caching, layout: CanvasLayout, active: ActiveBlocks, column_NC: Tensor, flags: StepFlags
) -> Window:
    """Columns that a step after a block's first recomputes under a cache policy; it attends to all.

    With shifted logits the columns before them too. A slice where all samples' columns are neighbours and the same;
    else each sample's own [N, R], ascending, some named twice: a sample's columns never depend on the other samples.
    """
    if caching.delayed:
        return Window(_delayed_columns(caching, layout, active, column_NC, flags), layout.length)
    first, behind, shift = layout.block_start(active.first), layout.block_start(active.first + 1), int(layout.shift)
    if active.first == active.last:
        return Window(slice(max(0, first - shift), layout.length if caching.suffix else behind), layout.length)
    if caching.suffix:
        from_block_NL = _columns_from(layout, active, -shift)
        return Window(_own_columns(from_block_NL, layout.length - first + shift), layout.length)
    before_N1 = (column_NC[:, :1] - 1).clamp(min=0)
    return Window(torch.cat([before_N1, column_NC], dim=1) if shift else column_NC, layout.length)


def _delayed_columns(
    caching: Caching, layout: CanvasLayout, active: ActiveBlocks, column_NC: Tensor, flags: StepFlags
) -> Tensor:
    """Masked candidates, what the step before changed, and the suffix where the policy recomputes it: [N, R]."""
    shape, device = (len(column_NC), layout.length), column_NC.device
    run_NL = torch.zeros(shape, dtype=torch.bool, device=device).scatter(1, column_NC, flags.masked_NC)
    most = flags.most_masked_before
    if layout.shift:
        run_NL = run_NL | run_NL.roll(-1, dims=1)
        most = most * 2
    if flags.changed_NL is not None:
        run_NL = run_NL | flags.changed_NL
    if caching.suffix:
        run_NL = run_NL | _columns_from(layout, active, layout.block_length)
        most += layout.length - layout.block_start(active.first + 1)
    return _own_columns(run_NL, most)


def _columns_from(layout: CanvasLayout, active: ActiveBlocks, offset: int) -> Tensor:
    """Flags [N, L] of the columns that stand `offset` behind the first of the sample's block, and of all after them."""
    column_L = torch.arange(layout.length, device=active.block_N1.device)
    return column_L >= layout.start + active.block_N1 * layout.block_length + offset


def first_flagged(flag_NL: Tensor, count: int) -> Tensor:
    """The first `count` columns with a flag [N, count], and behind them others where there are fewer."""
    return flag_NL.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]


def _own_columns(flag_NL: Tensor, most: int) -> Tensor:
    """Each row's flagged columns [N, most], of which no row has more; where there are fewer, one is named again.

    For what is run is kept: another column would change later steps of the sample by what its neighbours do.
    """
    column_NR = first_flagged(flag_NL, most)
    flagged_NR = flag_NL.gather(1, column_NR)
    return torch.where(flagged_NR, column_NR, column_NR[:, :1]).sort(dim=1).values
