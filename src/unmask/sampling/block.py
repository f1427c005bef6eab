"""The denoising steps of one block. Within it no device is waited for, unless the rule is adaptive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from unmask.denoisers.key_values import CacheWindow, KeyValues
from unmask.errors import UserError
from unmask.sampling.batching import Batching
from unmask.sampling.columns import (
    CANDIDATES,
    ActiveBlocks,
    Candidates,
    StepFlags,
    Window,
    all_columns,
    finished_columns,
    first_flagged,
    prefix_window,
    recompute_window,
    suffix_positions,
)
from unmask.sampling.context import SamplingContext
from unmask.sampling.recording import propose_and_record, record_apart, records_with_step
from unmask.sampling.snapshots import SnapshotRequest, snapshot_requests
from unmask.sampling.state import SamplerState
from unmask.sampling.step import StepPlan, StepProposal, commit, masked_candidates, propose


@dataclass(kw_only=True)
class Block:
    """One block of each of the samples that run: `denoise` takes its steps, which change `canvas`."""

    context: SamplingContext
    canvas: SamplerState
    blocks: Sequence[int]  # which block of each sample
    active: ActiveBlocks  # the same on the device
    candidates: Candidates
    requests: dict[int, list[SnapshotRequest]]  # by the step's index in the block, which is alike in all samples
    group: int  # neighbours whose canvases are equal at the first step; 1: none are
    cache: KeyValues
    cached_columns: int  # columns that the cache has in final form when the block begins
    on_step: Callable[[Tensor], None] | None  # is given the canvases after each step
    changed_NL: Tensor | None = None  # columns that the last step changed; only noted for a delayed cache

    @classmethod
    def begin(cls, batching: Batching, on_step: Callable[[Tensor], None] | None) -> Block:
        """The next block of the samples that run."""
        context, batch = batching.context, batching.active
        first, device = min(batch.blocks), batch.block_N1.device
        steps = range(first * len(context.counts), (first + 1) * len(context.counts))
        requests = snapshot_requests(context.buffers, steps, batch.rows, context.batch_multiple, device)
        return cls(
            context=context,
            canvas=batch.canvas,
            blocks=batch.blocks,
            active=ActiveBlocks(block_N1=batch.block_N1, first=first, last=max(batch.blocks)),
            candidates=CANDIDATES[context.unmasking.candidates](context.layout, batch.canvas.block_NC, batch.block_N1),
            requests={step - steps.start: some for step, some in requests.items()},
            group=batching.equal_neighbours,
            cache=batch.cache,
            cached_columns=batch.cached_columns,
            on_step=on_step,
        )

    @property
    def finished_columns(self) -> int:
        """Columns that an exact cache has in final form after the block: those of earlier blocks; 0 without one."""
        return finished_columns(self.context.layout, self.active.first) if self.context.exact_prefix_cache else 0

    def denoise(self) -> None:
        """Steps as scheduled; where the rule is adaptive, until nothing is masked.

        Raises UserError where an adaptive rule leaves masks after its last step.
        """
        if self.context.unmasking.adaptive:
            self._denoise_adaptively()
        else:
            self._denoise_as_scheduled()

    def _denoise_as_scheduled(self) -> None:
        counts = self.context.counts
        for index, count in enumerate(counts):
            masked, before = sum(counts[index:]), sum(counts[max(0, index - 1) :])
            remaining = masked - count
            self._step(
                StepPlan(index=index, count=count, remaining=remaining, most_masked=masked, most_masked_before=before)
            )

    def _denoise_adaptively(self) -> None:
        rule, length = self.context.unmasking, self.context.layout.block_length
        counts = self.context.counts if rule.scheduled else (0,) * length
        masked = before = length  # now, and a step before; at most, in any sample
        for index, count in enumerate(counts):
            remaining = sum(counts[index + 1 :])
            self._step(
                StepPlan(index=index, count=count, remaining=remaining, most_masked=masked, most_masked_before=before)
            )
            masked_NC = masked_candidates(self.context, self.canvas, self.candidates)
            before, masked = masked, int(masked_NC.sum(1).max())
            if not masked:
                return
        raise UserError(
            f"unmasking {rule.name} left {masked} positions of a block masked after {len(counts)} steps: let it commit "
            "at least the scheduled number in each step, or one if it reads no schedule"
        )

    def _step(self, plan: StepPlan) -> None:
        context, canvas = self.context, self.canvas
        requests = self.requests.get(plan.index, [])
        if plan.most_masked:
            masked_NC = masked_candidates(context, canvas, self.candidates)
            proposal = self._propose(requests, masked_NC, plan)
            before_NL = canvas.tokens
            commit(context, canvas, self.candidates, masked_NC, proposal, plan)
            if context.caching is not None and context.caching.delayed:
                self.changed_NL = before_NL != canvas.tokens
            canvas.step_N = canvas.step_N + (masked_NC.any(1) if context.unmasking.adaptive else 1)
        else:  # more steps than candidates
            for request in requests:
                record_apart(context, canvas, request, suffix_positions(context.layout, self.active.first))
            canvas.step_N = canvas.step_N + 1
        if self.on_step is not None:
            self.on_step(canvas.tokens)

    def _propose(self, requests: list[SnapshotRequest], masked_NC: Tensor, plan: StepPlan) -> StepProposal:
        """Proposals at the masked candidates, zeros elsewhere [N, C]; requested states are recorded."""
        context, canvas, column_NC = self.context, self.canvas, self.candidates.column_NC
        suffix = suffix_positions(context.layout, self.active.first)
        group = self.group if plan.index == 0 else 1  # the samples of a prompt begin alike, and share a forward
        most = min(context.layout.completion, plan.most_masked + suffix)
        if requests and records_with_step(context, suffix):
            window = self._window(all_columns(context.layout)) if context.exact_prefix_cache else None
            everywhere = propose_and_record(context, canvas, requests, most, group=group, window=window)
            return everywhere.gather(column_NC)
        for request in requests:
            record_apart(context, canvas, request, most)
        place_NA = first_flagged(masked_NC, plan.most_masked)
        window = self._step_window(masked_NC, plan)
        proposals = propose(context, canvas, column_NC.gather(1, place_NA), group=group, window=window)
        return proposals.scatter(place_NA, masked_NC.shape[1])

    def _step_window(self, masked_NC: Tensor, plan: StepPlan) -> CacheWindow | None:
        """The columns that a step runs; None: all of them, and nothing is kept."""
        context, layout, active = self.context, self.context.layout, self.active
        if context.exact_prefix_cache:
            return self._window(prefix_window(layout, active, index=plan.index, cached_columns=self.cached_columns))
        if context.caching is None:
            return None
        if plan.index == 0:
            return self._window(all_columns(layout))
        flags = StepFlags(masked_NC=masked_NC, changed_NL=self.changed_NL, most_masked_before=plan.most_masked_before)
        column_NC = self.candidates.column_NC
        return self._window(recompute_window(context.caching, layout, active, column_NC, flags))

    def _window(self, window: Window) -> CacheWindow:
        return CacheWindow(cache=self.cache, columns=window.columns, end=window.end)
