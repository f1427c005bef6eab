"""The denoising steps of one block. Within it no device is waited for, unless the rule is adaptive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unmask.denoisers.base import Attention, Denoiser, Guidance
from unmask.denoisers.key_values import CacheWindow, Columns, KeyValues
from unmask.sampling.caching import Caching
from unmask.sampling.proposals import Propose
from unmask.sampling.records import Record
from unmask.sampling.snapshots import SnapshotBuffer, SnapshotRequest, snapshot_requests
from unmask.sampling.state import SamplerState
from unmask.sampling.unmasking import Observation
from unmask.uniforms import Uniforms

if TYPE_CHECKING:
    from unmask.sampling.sampler import Sampler


@dataclass(frozen=True, kw_only=True)
class SamplingContext:
    """What stays the same in one call of a sampler."""

    sampler: Sampler
    denoiser: Denoiser
    core: Any  # the denoiser within a distributed wrapper
    start: int  # columns before the completion
    counts: tuple[int, ...]  # positions that each step of a block commits
    uniforms: Uniforms
    record: Record | None
    buffers: list[SnapshotBuffer]
    batch_multiple: int  # numbers of samples in a forward are its multiples
    watch: Callable[[Tensor], None] | None

    @property
    def shown_early(self) -> bool:
        """Whether columns of earlier blocks need not be run again: none attends to later ones, all are final."""
        return self.core.block_length is not None and not self.core.shift and not self.sampler.guidance_scale


@dataclass(kw_only=True)
class Block:
    """One block of each of some samples, and its steps."""

    context: SamplingContext
    canvas: SamplerState
    mask: Attention
    rows: Sequence[int]  # the samples among all
    blocks: Sequence[int]  # which block of each
    group: int  # neighbours whose canvases are equal at the first step; 1: none are
    cache: KeyValues
    held: int  # columns that the cache has as they will stay
    fresh_NL: Tensor | None = None  # columns that the last step changed
    here_NC: Tensor = field(init=False)  # canvas columns of the candidates
    candidate_NC: Tensor = field(init=False)
    block_N1: Tensor = field(init=False)
    wanted: dict[int, list[SnapshotRequest]] = field(init=False)  # by step, which is alike in all samples

    def __post_init__(self) -> None:
        context, block_NC = self.context, self.canvas.block_NC
        sampler, device = context.sampler, block_NC.device
        self.block_N1 = torch.tensor(self.blocks, device=device)[:, None]
        if getattr(sampler.unmasking, "scope", "block") == "completion":
            place_NC = torch.arange(sampler.max_new_tokens, device=device).expand_as(block_NC)
            self.candidate_NC = block_NC <= self.block_N1
        else:
            first_N1 = (block_NC < self.block_N1).sum(1, keepdim=True)
            first_N1 = first_N1.clamp(max=sampler.max_new_tokens - sampler.block_length)
            place_NC = first_N1 + torch.arange(sampler.block_length, device=device)
            self.candidate_NC = block_NC.gather(1, place_NC) == self.block_N1
        self.here_NC = context.start + place_NC
        self.first, self.last = min(self.blocks), max(self.blocks)
        begin = self.first * len(context.counts)
        steps = range(begin, begin + len(context.counts))
        self.wanted = snapshot_requests(context.buffers, steps, self.rows, context.batch_multiple, device)
        self.uniforms = context.uniforms.key("sample", self.canvas.prompt_N[:, None], self.canvas.sample_N[:, None])

    @property
    def final(self) -> int:
        """Columns that lie in earlier blocks in every sample, wherever its prompt ends in a block of the model's."""
        length = self.context.sampler.block_length
        return max(0, self.context.start + (self.first - 1) * length + 1) if self.context.shown_early else 0

    def denoise(self) -> None:
        """Steps as scheduled; where the rule is adaptive, until nothing is masked."""
        rule, counts = self.context.sampler.unmasking, self.context.counts
        if not rule.scheduled:
            counts = (0,) * self.context.sampler.block_length
        masked = before = self.context.sampler.block_length  # now, and a step before; at most, in any sample
        for index, count in enumerate(counts):
            remaining = sum(counts[index + 1 :])
            if not rule.adaptive:
                masked = count + remaining
                before = masked + (counts[index - 1] if index else 0)
            self._step(index, masked, before, count=count, remaining=remaining)
            if rule.adaptive:
                before, masked = masked, int(self._masked().sum(1).max())
                if not masked:
                    break

    def _masked(self) -> Tensor:
        masked_NC: Tensor = self.canvas.tokens.gather(1, self.here_NC) == self.context.core.mask_id
        return masked_NC & self.candidate_NC

    def _step(self, index: int, masked: int, before: int, *, count: int, remaining: int) -> None:
        """One step, in which at most `masked` candidates are masked in any sample, and `before` were a step before."""
        context, canvas = self.context, self.canvas
        wanted = self.wanted.get(self.first * len(context.counts) + index, [])
        if masked:
            masked_NC = self._masked()
            answers = self._answers(wanted, index, masked_NC, masked, before)
            self._commit(masked_NC, answers, count=count, remaining=remaining)
            canvas.step_N = canvas.step_N + (masked_NC.any(1) if context.sampler.unmasking.adaptive else 1)
        else:  # more steps than candidates
            for some in wanted:
                self._guess(some, self._later)
            canvas.step_N = canvas.step_N + 1
        if context.watch is not None:
            context.watch(canvas.tokens)

    # ---- what the denoiser is asked ----

    def _answers(
        self, wanted: list[SnapshotRequest], index: int, masked_NC: Tensor, most: int, before: int
    ) -> list[Tensor]:
        """Proposals, log-probs and confidences at the masked candidates, zeros elsewhere; wanted states remembered."""
        context, later = self.context, self._later
        own = context.record is not None and context.record.own
        # Everyone is asked about all that is masked: guesses are the sampler's own, or there is no more than the block.
        if wanted and (own or (later == 0 and context.sampler.caching is None)):
            masked_NL = self.canvas.tokens == context.core.mask_id
            column_NA = _first(masked_NL & self._behind_prompt(), most + later)
            part = self._everything() if context.shown_early else None
            tokens_NAZ, logp_NAZ, confidence_NA = self._propose(self.canvas, column_NA, index, guesses=True, part=part)
            for some in wanted:
                at = some.place_N
                self._remember(some, self.canvas.tokens[at], column_NA[at], tokens_NAZ[at], logp_NAZ[at])
            answers = (tokens_NAZ[..., 0], logp_NAZ[..., 0], confidence_NA)
            whole = [each.new_zeros(self.canvas.tokens.shape).scatter(1, column_NA, each) for each in answers]
            return [each.gather(1, self.here_NC) for each in whole]
        for some in wanted:
            self._guess(some, most + later)
        place_NA, part = _first(masked_NC, most), self._part(index, masked_NC, before)
        column_NA = self.here_NC.gather(1, place_NA)
        tokens_NAZ, logp_NAZ, confidence_NA = self._propose(self.canvas, column_NA, index, part=part)
        answers = (tokens_NAZ[..., 0], logp_NAZ[..., 0], confidence_NA)
        return [each.new_zeros(masked_NC.shape).scatter(1, place_NA, each) for each in answers]

    @property
    def _later(self) -> int:
        """Positions behind the block, at most, in any sample: all are masked."""
        length = self.context.sampler.max_new_tokens
        later = length - (self.first + 1) * self.context.sampler.block_length
        if self.context.core.block_length is not None:  # a prompt that ends within a block shifts them all
            later = min(length, later + self.context.core.block_length - 1)
        return max(0, later)

    def _behind_prompt(self) -> Tensor:
        columns = self.canvas.tokens.shape[1]
        return torch.arange(columns, device=self.here_NC.device) >= self.context.start

    def _guess(self, wanted: SnapshotRequest, most: int) -> None:
        """A forward of their own for the few samples whose state is remembered, about all that is masked there."""
        canvas = self.canvas.take(wanted.place_N)
        masked_NL = (canvas.tokens == self.context.core.mask_id) & self._behind_prompt()
        column_NA = _first(masked_NL, most)
        if most:
            tokens_NAZ, logp_NAZ, _ = self._propose(canvas, column_NA, -1, guesses=True, rows=wanted.place_N)
        else:  # nothing is masked any more: all guesses are the canvas
            tokens_NAZ = column_NA[..., None].expand(-1, -1, wanted.buffer.guesses.stop)
            logp_NAZ = tokens_NAZ.float()
        self._remember(wanted, canvas.tokens, column_NA, tokens_NAZ, logp_NAZ)

    def _remember(
        self, wanted: SnapshotRequest, canvas_NL: Tensor, column_NA: Tensor, tokens_NAZ: Tensor, logp_NAZ: Tensor
    ) -> None:
        """What was answered of the samples."""
        mask_id = self.context.core.mask_id
        wanted.buffer.remember(wanted.row_N, canvas_NL, column_NA, tokens_NAZ, logp_NAZ, mask_id)

    def _propose(
        self,
        canvas: SamplerState,
        column_NA: Tensor,
        index: int,
        *,
        guesses: bool = False,
        part: CacheWindow | None = None,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Answers at the asked columns: tokens and log-probs [N, A, Z], confidences of the first of them [N, A]."""
        context = self.context
        sampler = context.sampler
        more = context.record.guesses if guesses and context.record is not None and not context.record.own else 0
        group = self.group if index == 0 else 1  # the samples of a prompt begin alike, and share a forward
        uniform_NAZ = None
        if sampler.temperature:
            key = Uniforms(self.uniforms.state if rows is None else self.uniforms.state[rows])  # type: ignore[index]
            key = key.key(canvas.step_N[:, None])
            position_NA = column_NA - context.start
            uniform_NAZ = key.key("token", position_NA).draw()[..., None]
            if more:
                guess_Z = torch.arange(more, device=position_NA.device)
                guessed = Uniforms(key.key("guess").state[..., None]).key(guess_Z).key(position_NA[..., None])  # type: ignore[index]
                uniform_NAZ = torch.cat([uniform_NAZ, guessed.draw()], dim=-1)
        answer = Propose(
            temperature=sampler.temperature,
            mask_id=context.core.mask_id,
            measure=sampler.unmasking.measure,
            uniform_QZ=None if uniform_NAZ is None else _together(uniform_NAZ, group).flatten(0, 1),
            draws=group * (1 + more),
            stride=1 + more,
        )
        mask = self.mask if self.mask is None or rows is None else self.mask[rows]
        tokens_NL, attention = canvas.tokens[::group], None if mask is None else mask[::group]
        guidance = None
        if sampler.guidance_scale:
            prompt_L = torch.arange(tokens_NL.shape[1], device=tokens_NL.device) < context.start
            guidance = Guidance(scale=sampler.guidance_scale, prompt_FL=prompt_L.expand_as(tokens_NL))
        answers = context.denoiser(tokens_NL, attention, column_NA[::group], answer, guidance=guidance, part=part)
        if group > 1 and part is not None:
            part.cache.take(torch.arange(len(column_NA), device=column_NA.device) // group)
        tokens, logp, confidence = (_apart(each, group) for each in answers)
        return tokens, logp, confidence[..., 0]

    def _part(self, index: int, masked_NC: Tensor, most: int) -> CacheWindow | None:
        """What of the canvas is run; None: all of it. At most `most` candidates were masked a step before."""
        caching, length = self.context.sampler.caching, self.canvas.tokens.shape[1]
        if self.context.shown_early:
            stop = min(length, self.context.start + (self.last + 1) * self.context.sampler.block_length)
            # What the block before revealed last is run once more, at the first step.
            return CacheWindow(cache=self.cache, columns=slice(self.final if index else self.held, stop), end=stop)
        if caching is None:
            return None
        if index == 0:
            return self._everything()
        return CacheWindow(cache=self.cache, columns=self._again(caching, masked_NC, most), end=length)

    def _everything(self) -> CacheWindow:
        """All columns, kept for later steps."""
        length = self.canvas.tokens.shape[1]
        return CacheWindow(cache=self.cache, columns=slice(0, length), end=length)

    def _again(self, caching: Caching, masked_NC: Tensor, most: int) -> Columns:
        """The columns that a step runs again; with shifted logits those before them too."""
        context, length, shift = self.context, self.canvas.tokens.shape[1], int(self.context.core.shift)
        block = context.sampler.block_length
        first, behind = context.start + self.first * block, context.start + (self.first + 1) * block
        if caching.delayed:
            again_NL = torch.zeros_like(self.canvas.tokens, dtype=torch.bool).scatter(1, self.here_NC, masked_NC)
            if shift:
                again_NL = again_NL | again_NL.roll(-1, dims=1)
            if self.fresh_NL is not None:
                again_NL = again_NL | self.fresh_NL
            if caching.later:
                again_NL = again_NL | self._from(block)
            return _own_columns(again_NL, most * (1 + shift) + (length - behind if caching.later else 0))
        if self.first == self.last:
            return slice(max(0, first - shift), length if caching.later else behind)
        if caching.later:
            return _own_columns(self._from(-shift), length - first + shift)
        before_N1 = (self.here_NC[:, :1] - 1).clamp(min=0)
        return torch.cat([before_N1, self.here_NC], dim=1) if shift else self.here_NC

    def _from(self, offset: int) -> Tensor:
        """Columns that stand so far behind the first of the sample's block, and all after them."""
        column_L = torch.arange(self.canvas.tokens.shape[1], device=self.block_N1.device)
        return column_L >= self.context.start + self.block_N1 * self.context.sampler.block_length + offset

    # ---- what is made of the answers ----

    def _commit(self, masked_NC: Tensor, answers: list[Tensor], *, count: int, remaining: int) -> None:
        """Fill the candidates with the proposals that the rule commits; mask what it masks again."""
        canvas, rule, here_NC = self.canvas, self.context.sampler.unmasking, self.here_NC
        tokens, logp, confidence = answers
        held = canvas.running.gather(1, here_NC)
        running = torch.maximum(held, confidence) if getattr(rule, "statistic", "latest") == "max" else confidence
        running = torch.where(masked_NC, running, held)
        masked_after = self.candidate_NC & rule(
            Observation(
                masked_NC=masked_NC,
                confidence_NC=confidence,
                running_NC=running.masked_fill(~self.candidate_NC, float("inf")),
                position_NC=here_NC - self.context.start,
                count=count,
                remaining=remaining,
                uniforms=self.uniforms.key(canvas.step_N[:, None]),
            )
        )
        revealed = masked_NC & ~masked_after
        before = canvas.tokens.gather(1, here_NC)
        now = torch.where(revealed, tokens, before.masked_fill(masked_after, self.context.core.mask_id))
        canvas.running = canvas.running.scatter(1, here_NC, running)
        canvas.tokens = canvas.tokens.scatter(1, here_NC, now)
        for name, value in (("logp", logp), ("confidence", confidence), ("revealed_at", canvas.step_N[:, None])):
            whole = getattr(canvas, name)
            setattr(canvas, name, whole.scatter(1, here_NC, torch.where(revealed, value, whole.gather(1, here_NC))))
        if self.context.sampler.caching is not None and self.context.sampler.caching.delayed:
            self.fresh_NL = torch.zeros_like(canvas.tokens, dtype=torch.bool).scatter(1, here_NC, before != now)


def _first(flag_NL: Tensor, count: int) -> Tensor:
    """The first `count` columns with a flag, and behind them others where there are fewer."""
    return flag_NL.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]


def _own_columns(flag_NL: Tensor, most: int) -> Tensor:
    """Each row's columns with a flag, of which none has more than `most`; where there are fewer, one is named again.

    For what is run is kept: another column would change later steps of the sample by what its neighbours do.
    """
    column_NR = _first(flag_NL, most)
    flagged_NR = flag_NL.gather(1, column_NR)
    return torch.where(flagged_NR, column_NR, column_NR[:, :1]).sort(dim=1).values


def _together(value_NAZ: Tensor, group: int) -> Tensor:
    """Neighbours side by side: [N / group, A, group · Z]."""
    if group == 1:
        return value_NAZ
    samples, asked, draws = value_NAZ.shape
    return value_NAZ.view(-1, group, asked, draws).transpose(1, 2).reshape(samples // group, asked, group * draws)


def _apart(value_PAK: Tensor, group: int) -> Tensor:
    """The inverse: [N, A, Z]."""
    if group == 1:
        return value_PAK
    prompts, asked = value_PAK.shape[:2]
    return value_PAK.view(prompts, asked, group, -1).transpose(1, 2).reshape(prompts * group, asked, -1)
