"""Block-wise denoising of left-padded prompts: which samples are at work, and on which block."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unmask.denoisers.base import Denoiser, mask_of
from unmask.denoisers.key_values import KeyValues
from unmask.errors import UserError
from unmask.sampling.block import Block, SamplingContext
from unmask.sampling.caching import Caching
from unmask.sampling.records import Record
from unmask.sampling.schedules import Schedule, uniform_schedule
from unmask.sampling.snapshots import SnapshotBuffer
from unmask.sampling.state import SamplerState, pad_to_multiple
from unmask.sampling.unmasking import LowConfidence, Unmasking
from unmask.types import Prompts, Rollout
from unmask.uniforms import Uniforms

# (samples, completions [N, E, C]): tokens of E completions of each that are known by now, a finished one or guesses.
OnFinished = Callable[[list[int], Tensor], None]

_SHAPES = 16  # numbers of samples that a forward may have, so that compiled kernels and CUDA graphs are few


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Fill `max_new_tokens` masks after each prompt, block by block, in `steps` denoising steps in all.

    temperature 0 is greedy (log-probs are then recorded at temperature 1). Adaptive unmasking rules take as many steps
    as they need. Draws are keyed by prompt, sample, step and position, so tokens do not depend on the batch or its
    padding. `stop_at_end`: a sample is done with the block that holds its end-of-sequence token; the rest is filled
    with that token, as if revealed at the last step taken. Recorded states need every step of every sample.
    `batch`: samples at a time, 0 for all; where some are done, others begin in their places.
    `caching`: None is exact; else keys and values are kept within a block, and tokens are those of another sampler.
    """

    max_new_tokens: int
    block_length: int
    steps: int
    temperature: float = 0.0
    unmasking: Unmasking = field(default_factory=LowConfidence)
    schedule: Schedule = uniform_schedule
    guidance_scale: float = 0.0
    stop_at_end: bool = False
    batch: int = 0
    caching: Caching | None = None

    def __post_init__(self) -> None:
        if self.block_length < 1 or self.max_new_tokens % self.block_length:
            raise UserError(
                f"block_length {self.block_length} does not divide max_new_tokens {self.max_new_tokens}: "
                f"give a divisor such as {self.max_new_tokens}"
            )
        blocks = self.max_new_tokens // self.block_length
        if self.steps < blocks or self.steps % blocks:
            raise UserError(
                f"steps {self.steps} is not a multiple of the {blocks} blocks ({self.max_new_tokens} tokens in blocks "
                f"of {self.block_length}): give a multiple such as {blocks * max(1, round(self.steps / blocks))}"
            )
        if self.temperature < 0:
            raise UserError(f"temperature {self.temperature} is negative: give 0 (greedy) or more")
        if self.caching is not None and self.guidance_scale:
            raise UserError(f"caching {self.caching.name} has no guidance: set guidance_scale 0 or caching none")
        if self.caching is not None and self.unmasking.remasks:
            raise UserError(
                f"caching {self.caching.name} keeps tokens that unmasking {self.unmasking.name} may mask again: set "
                "caching none or a rule such as low_confidence"
            )

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        prompts: Prompts,
        uniforms: Uniforms,
        record: Record | None = None,
        watch: Callable[[Tensor], None] | None = None,
        group_size: int = 1,
        on_finished: OnFinished | None = None,
    ) -> Rollout:
        """Complete the prompts, of which `group_size` neighbours are equal.

        `watch` sees the canvas after each step, `finished` the completions as they are done. Raises UserError if the
        model is too short, or does not go with the settings.
        """
        self._check(denoiser, prompts, record)
        loop = _Loop(self, denoiser, prompts, uniforms, record, watch, group_size, on_finished)
        while loop.rows:
            block = loop.block()
            block.denoise()
            loop.refill(block)
        return loop.rollout()

    def _check(self, denoiser: Denoiser, prompts: Prompts, record: Record | None) -> None:
        core = getattr(denoiser, "module", denoiser)
        length = prompts.tokens_NP.shape[1] + self.max_new_tokens
        if length > core.max_length:
            raise UserError(
                f"prompt of {prompts.tokens_NP.shape[1]} and completion of {self.max_new_tokens} tokens exceed the "
                f"{core.max_length} that the model takes: shorten max_new_tokens or drop the longest prompts"
            )
        self.check(core, record)

    def check(self, core: Denoiser, record: Record | None) -> None:
        """Raise UserError where the settings do not go with the model, or with what is to be recorded."""
        if record is not None and self.unmasking.adaptive:
            raise UserError(
                f"unmasking {self.unmasking.name} takes as many steps as it likes, so its steps cannot be recorded: "
                "train with a scheduled rule such as low_confidence"
            )
        if record is not None and record.own and self.caching is not None:
            raise UserError(
                f"caching {self.caching.name} leaves out what the method records, guesses of whole completions: "
                "set rollout.caching none"
            )
        if core.block_length not in (None, self.block_length):
            raise UserError(
                f"block_length {self.block_length} is not the {core.block_length} of the model's own blocks: give that"
            )
        if core.block_length is not None and self.caching is not None:
            raise UserError(
                f"caching {self.caching.name} approximates, and this model attends in blocks: its keys and values are "
                "kept exactly with caching none"
            )


class _Loop:
    """One call of a sampler: all samples, and those at work."""

    def __init__(
        self,
        sampler: Sampler,
        denoiser: Denoiser,
        prompts: Prompts,
        uniforms: Uniforms,
        record: Record | None,
        watch: Callable[[Tensor], None] | None,
        group_size: int,
        on_finished: OnFinished | None,
    ) -> None:
        self.sampler, self.prompts, self.group_size, self.on_finished = sampler, prompts, group_size, on_finished
        core = getattr(denoiser, "module", denoiser)
        blocks = sampler.max_new_tokens // sampler.block_length
        samples = len(prompts.tokens_NP)
        self.size = size = min(samples, sampler.batch or samples)
        self.context = SamplingContext(
            sampler=sampler,
            denoiser=denoiser,
            core=core,
            start=prompts.tokens_NP.shape[1],
            counts=sampler.schedule(sampler.block_length, sampler.steps // blocks),
            uniforms=uniforms,
            record=record,
            buffers=[],
            batch_multiple=max(1, size // _SHAPES),
            watch=None if watch is None else lambda tokens_NL: watch(self._all(tokens_NL)),
        )
        self.whole = self._blank()
        self.mask = mask_of(self.whole.attention)
        self.last = [blocks - 1] * samples if core.block_length is None else self.whole.block_NC[:, -1].tolist()
        # In blocks of the model's own a completion may begin, and so end, within one. The same for every batch.
        most = blocks + (core.block_length is not None)
        self.steps = most * self.steps_each
        if record is not None:  # of every step, so nobody is done before the others
            self.last = [most - 1] * samples
            steps = record.steps(uniforms, prompts.prompt_N, prompts.sample_N, self.steps)
            self.context.buffers.extend(SnapshotBuffer(step_N, record, self.whole.tokens) for step_N in steps)
        self.waiting = deque(range(samples))
        self.rows: list[int] = []  # samples at work, and which block of each
        self.blocks: list[int] = []
        self.filled_up = False
        self._admit([])

    def _all(self, tokens_NL: Tensor) -> Tensor:
        """The canvases of all samples, given those at work."""
        row_N = torch.tensor(self.rows, device=tokens_NL.device)
        return self.whole.tokens.index_copy(0, row_N, tokens_NL[: len(row_N)])

    @property
    def steps_each(self) -> int:
        """Scheduled steps of a block."""
        return len(self.context.counts)

    def _blank(self) -> SamplerState:
        prompts, new, device = self.prompts, self.sampler.max_new_tokens, self.prompts.tokens_NP.device
        tokens = torch.nn.functional.pad(prompts.tokens_NP, (0, new), value=self.context.core.mask_id)
        zeros = torch.zeros(tokens.shape, device=device)
        # Where the model itself attends in blocks, they are those, counted from the prompt's first token: a prompt that
        # ends within a block leaves the rest of it to the completion, and the last block may be cut short.
        offset_N1 = prompts.attention_NP.sum(1, keepdim=True) % self.sampler.block_length
        if self.context.core.block_length is None:
            offset_N1 = torch.zeros_like(offset_N1)
        block_NC = (torch.arange(new, device=device) + offset_N1) // self.sampler.block_length
        return SamplerState(
            tokens=tokens,
            attention=torch.nn.functional.pad(prompts.attention_NP, (0, new), value=True),
            block_NC=block_NC,
            running=zeros - float("inf"),
            confidence=zeros,
            logp=zeros.clone(),
            revealed_at=torch.full_like(tokens, -1),
            step_N=torch.zeros_like(prompts.prompt_N),
            prompt_N=prompts.prompt_N,
            sample_N=prompts.sample_N,
        )

    def block(self) -> Block:
        """The next block of the samples at work."""
        context, group = self.context, self.group_size
        whole_groups = self.rows[0] % group == 0 and len(self.canvas.tokens) == len(self.rows)
        alike = whole_groups and len(self.rows) % group == 0 and not any(self.blocks)
        return Block(
            context=context,
            canvas=self.canvas,
            mask=self.mask_now,
            rows=self.rows,
            blocks=pad_to_multiple(self.blocks, context.batch_multiple),
            group=group if alike else 1,
            cache=self.cache,
            held=self.held,
        )

    def refill(self, block: Block) -> None:
        """After a block: put away the samples that are done, and let others begin in their places."""
        self.held = block.final
        self._tell_guesses()
        ended = self._ended(block)
        going = [
            place
            for place, (row, number) in enumerate(zip(self.rows, self.blocks, strict=True))
            if number < self.last[row] and not ended[place]
        ]
        if len(going) == len(self.rows) and not (self.waiting and len(going) < self.size):
            self.blocks = [number + 1 for number in self.blocks]
            return
        device = self.whole.tokens.device
        self.whole.put(torch.tensor(self.rows, device=device), self.canvas)
        kept = set(going)
        done = [row for place, row in enumerate(self.rows) if place not in kept]
        self._retire(torch.tensor(done, device=device), any(ended))
        if self.on_finished is not None and done:
            self.on_finished(done, self.whole.tokens[done, None, self.context.start :])
        self.blocks = [self.blocks[place] + 1 for place in going]
        self.rows = [self.rows[place] for place in going]
        self._admit(going)

    def _tell_guesses(self) -> None:
        """Hand on the guesses that were recorded in the block just done."""
        if self.on_finished is None:
            return
        first = self.blocks[0] * self.steps_each  # recorded samples are all on the same block
        for buffer in self.context.buffers:
            rows = [row for row in self.rows if first <= buffer.steps[row] < first + self.steps_each]
            if rows:
                self.on_finished(rows, buffer.snapshot.guesses_ZNL[:, rows, self.context.start :].transpose(0, 1))

    def _ended(self, block: Block) -> list[bool]:
        """Which samples have their end of sequence in a finished block."""
        final = all(self.last[row] == number for row, number in zip(self.rows, self.blocks, strict=True))
        if not self.sampler.stop_at_end or self.context.record is not None or final:
            return [False] * len(self.rows)
        canvas, count = self.canvas, len(self.rows)
        end_NC = (canvas.tokens[:, self.context.start :] == self.context.core.eos_id) & (
            canvas.block_NC <= block.block_N1
        )
        ended: list[bool] = end_NC.any(1)[:count].tolist()
        return ended

    def _retire(self, done_N: Tensor, ended: bool) -> None:
        """Fill up the samples that stopped early."""
        if not ended:
            return
        self.filled_up = True
        tokens_NL = self.whole.tokens[done_N]
        masked_NL = tokens_NL == self.context.core.mask_id
        masked_NL[:, : self.context.start] = False
        self.whole.tokens[done_N] = tokens_NL.masked_fill(masked_NL, self.context.core.eos_id)
        step_N1 = self.whole.step_N[done_N, None] - 1
        self.whole.revealed_at[done_N] = torch.where(masked_NL, step_N1, self.whole.revealed_at[done_N])

    def _admit(self, going: list[int]) -> None:
        """Work on with the samples at the places `going`, and begin new ones."""
        new = [self.waiting.popleft() for _ in range(min(len(self.waiting), self.size - len(self.rows)))]
        self.rows, self.blocks = self.rows + new, self.blocks + [0] * len(new)
        if not self.rows:
            return
        device = self.whole.tokens.device
        row_N = torch.tensor(pad_to_multiple(self.rows, self.context.batch_multiple), device=device)
        self.canvas = self.whole.take(row_N)
        self.mask_now = None if self.mask is None else self.mask[row_N]
        if new or not self.context.shown_early:
            self.cache, self.held = KeyValues(), 0
        else:
            self.cache.take(torch.tensor(pad_to_multiple(going, self.context.batch_multiple), device=device))

    def rollout(self) -> Rollout:
        """What has become of all samples."""
        sampler, canvas, context, pad = self.sampler, self.whole, self.context, torch.nn.functional.pad
        end = canvas.tokens[:, context.start :] == context.core.eos_id
        ended_before = end.long().cumsum(1) - end.long() > 0
        return Rollout(
            tokens_NL=canvas.tokens,
            attention_NL=canvas.attention,
            completion_NL=pad(~ended_before, (context.start, 0), value=False),
            block_NL=pad(canvas.block_NC, (context.start, 0), value=-1),
            revealed_at_NL=canvas.revealed_at,
            sampled_logp_NL=canvas.logp,
            confidence_NL=canvas.confidence,
            prompt_N=self.prompts.prompt_N,
            sample_N=self.prompts.sample_N,
            prompt_length=context.start,
            group_size=self.group_size,
            steps=int(canvas.step_N.max()) if sampler.unmasking.adaptive else self.steps,
            adaptive=sampler.unmasking.adaptive,
            temperature=sampler.temperature,
            mask_id=context.core.mask_id,
            remasking=sampler.unmasking.remasks,
            exact=sampler.caching is None and not sampler.guidance_scale and not self.filled_up,
            snapshots=tuple(buffer.snapshot for buffer in context.buffers),
        )
