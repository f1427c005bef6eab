"""The sampler: its settings, their checks, and the call that completes prompts block by block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from unmask.denoisers.base import Denoiser, mask_of
from unmask.errors import UserError
from unmask.sampling.batching import Batching
from unmask.sampling.block import Block
from unmask.sampling.caching import Caching
from unmask.sampling.columns import CANDIDATES, CanvasLayout, steps_with_masks
from unmask.sampling.context import SamplingContext
from unmask.sampling.records import Record
from unmask.sampling.schedules import Schedule, check_blocks, uniform_schedule
from unmask.sampling.snapshots import SnapshotBuffer
from unmask.sampling.state import SamplerState
from unmask.sampling.unmasking import STATISTICS, LowConfidence, Unmasking
from unmask.types import Prompts, Rollout
from unmask.uniforms import Uniforms
from unmask.validation import one_of

# (samples, completions [N, E, C]): tokens of E completions of each that are known by now, a finished one or guesses.
OnFinished = Callable[[list[int], Tensor], None]

_BATCH_SIZES = 16  # numbers of samples that a forward may have, so that compiled kernels and CUDA graphs are few


def batch_multiple(size: int) -> int:
    """What the samples of a forward are padded to a multiple of, where `size` run at once at most."""
    return max(1, size // _BATCH_SIZES)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Sampler of completions: fills `max_new_tokens` masks after each prompt, block by block, in `steps` steps in all.

    `reference.sample` is its specification. temperature 0 is greedy (log-probs are then recorded at temperature 1).
    Adaptive unmasking rules take as many steps as they need. Draws are keyed by prompt, sample, step and position, so
    tokens do not depend on the batch or its padding.
    `stop_at_end`: a sample is done with the block that holds a token that ends it (`Denoiser.ends`); the rest is filled
    with the end-of-sequence token, as if revealed at the last step taken. Recorded states need every step of every
    sample.
    `batch`: samples at a time, 0 for all; where some are done, others begin in their places.
    `caching`: None is exact; else keys and values are kept within a block, and tokens are those of another sampler.
    Raises UserError for settings that do not fit one another. Example:

        sampler = Sampler(max_new_tokens=64, block_length=16, steps=32, temperature=1.0)
        rollout = sampler(denoiser, prompts, Uniforms().key(seed))
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
        check_blocks(self.max_new_tokens, self.block_length, self.steps if self.unmasking.scheduled else None)
        if self.temperature < 0:
            raise UserError(f"temperature {self.temperature} is negative: give 0 (greedy) or more")
        if self.caching is not None and self.guidance_scale:
            raise UserError(f"caching {self.caching.name} has no guidance: set guidance_scale 0 or caching none")
        if self.caching is not None and self.unmasking.remasks:
            raise UserError(
                f"caching {self.caching.name} keeps tokens that unmasking {self.unmasking.name} may mask again: set "
                "caching none or a rule such as low_confidence"
            )
        one_of(f"candidates of unmasking {self.unmasking.name}", self.unmasking.candidates, tuple(CANDIDATES))
        one_of(f"statistic of unmasking {self.unmasking.name}", self.unmasking.statistic, tuple(STATISTICS))

    @property
    def steps_taken(self) -> int:
        """The steps that a completion takes: `steps`, without those at a block's end to which the schedule leaves none.

        With one step a token, the uniform schedule has nothing left for more. Adaptive rules take `steps` at most.
        """
        if self.unmasking.adaptive:
            return self.steps
        counts = self._counts
        last = max(step for step, count in enumerate(counts, 1) if count)
        return last * (self.max_new_tokens // self.block_length)

    @property
    def _counts(self) -> tuple[int, ...]:
        """Positions that each step of a block commits."""
        # A rule that reads no schedule may go with fewer steps than blocks.
        return self.schedule(self.block_length, max(1, self.steps * self.block_length // self.max_new_tokens))

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

        `watch` sees the canvas [N, L] of all samples after each step, `on_finished` the completions as they are done.
        Raises UserError if the model is too short, or does not go with the settings.
        """
        self._check_length(denoiser, prompts)
        self.check(denoiser, record)
        batching = self._begin(denoiser, prompts, uniforms, record, group_size)
        context, active = batching.context, batching.active
        while active.rows:
            block = Block.begin(batching, None if watch is None else lambda tokens: watch(batching.all_tokens(tokens)))
            block.denoise()
            done = batching.advance(block.finished_columns)
            if on_finished is not None:
                _hand_on_guesses(on_finished, context, active.rows, block.active.first)
                if done:
                    on_finished(done, batching.whole.tokens[done, None, context.layout.start :])
            active = batching.active
        return self._rollout(batching, prompts)

    def _check_length(self, denoiser: Denoiser, prompts: Prompts) -> None:
        length = prompts.tokens_NP.shape[1] + self.max_new_tokens
        if length > denoiser.max_length:
            raise UserError(
                f"prompt of {prompts.tokens_NP.shape[1]} and completion of {self.max_new_tokens} tokens exceed the "
                f"{denoiser.max_length} that the model takes: shorten max_new_tokens or drop the longest prompts"
            )

    def check(self, denoiser: Denoiser, record: Record | None) -> None:
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
        if denoiser.block_length not in (None, self.block_length):
            raise UserError(
                f"block_length {self.block_length} is not the {denoiser.block_length} of the model's own blocks: "
                "give that"
            )
        if denoiser.block_length is not None and self.caching is not None:
            raise UserError(
                f"caching {self.caching.name} approximates, and this model attends in blocks: its keys and values are "
                "kept exactly with caching none"
            )

    def _most_blocks(self, denoiser: Denoiser) -> int:
        """Blocks of a completion, at most: in blocks of the model's own it may begin, and so end, within one."""
        return self.max_new_tokens // self.block_length + (denoiser.block_length is not None)

    def _begin(
        self, denoiser: Denoiser, prompts: Prompts, uniforms: Uniforms, record: Record | None, group_size: int
    ) -> Batching:
        """All samples, blank, and the first of them about to run."""
        samples = len(prompts.tokens_NP)
        size = min(samples, self.batch or samples)
        whole = self._blank(denoiser, prompts, uniforms)
        buffers: tuple[SnapshotBuffer, ...] = ()
        counts = self._counts
        if record is not None:
            blocks, remasks = self._most_blocks(denoiser), self.unmasking.remasks
            masked_NS = steps_with_masks(whole.block_NC.cpu(), blocks, counts, remasks=remasks)
            steps = record.steps(uniforms, prompts.prompt_N, prompts.sample_N, masked_NS)
            buffers = tuple(SnapshotBuffer(step_N, record, whole.tokens) for step_N in steps)
        context = SamplingContext(
            denoiser=denoiser,
            layout=self._layout(denoiser, prompts),
            counts=counts,
            temperature=self.temperature,
            unmasking=self.unmasking,
            guidance_scale=self.guidance_scale,
            stop_at_end=self.stop_at_end,
            caching=self.caching,
            record=record,
            buffers=buffers,
            batch_multiple=batch_multiple(size),
        )
        last_block = self._last_block(denoiser, whole, record)
        return Batching.begin(context, whole, last_block=last_block, size=size, group_size=group_size)

    def _last_block(self, denoiser: Denoiser, whole: SamplerState, record: Record | None) -> list[int]:
        """The last block of each sample."""
        if denoiser.block_length is None or record is not None:  # records are of every step, so nobody is done early
            return [self._most_blocks(denoiser) - 1] * len(whole.tokens)
        last: list[int] = whole.block_NC[:, -1].tolist()
        return last

    def _layout(self, denoiser: Denoiser, prompts: Prompts) -> CanvasLayout:
        start = prompts.tokens_NP.shape[1]
        return CanvasLayout(
            start=start,
            length=start + self.max_new_tokens,
            block_length=self.block_length,
            shift=denoiser.shift,
            block_causal=denoiser.block_length is not None,
        )

    def _blank(self, denoiser: Denoiser, prompts: Prompts, uniforms: Uniforms) -> SamplerState:
        """The prompts, masks behind them, and nothing known of them yet."""
        new, device = self.max_new_tokens, prompts.tokens_NP.device
        tokens = pad(prompts.tokens_NP, (0, new), value=denoiser.mask_id)
        zeros = torch.zeros(tokens.shape, device=device)
        # Where the model itself attends in blocks, they are those, counted from the prompt's first token: a prompt that
        # ends within a block leaves the rest of it to the completion, and the last block may be cut short.
        offset_N1 = prompts.attention_NP.sum(1, keepdim=True) % self.block_length
        if denoiser.block_length is None:
            offset_N1 = torch.zeros_like(offset_N1)
        return SamplerState(
            tokens=tokens,
            mask=mask_of(_attention(prompts, new)),
            block_NC=(torch.arange(new, device=device) + offset_N1) // self.block_length,
            running=zeros - float("inf"),
            confidence=zeros,
            logp=zeros.clone(),
            revealed_at=torch.full_like(tokens, -1),
            step_N=torch.zeros_like(prompts.prompt_N),
            key_N=torch.as_tensor(uniforms.key("sample", prompts.prompt_N, prompts.sample_N).state),
            rule_state=self.unmasking.initial_state(len(tokens), new, device),
        )

    def _rollout(self, batching: Batching, prompts: Prompts) -> Rollout:
        """What has become of all samples."""
        state, context = batching.whole, batching.context
        start, steps = context.layout.start, len(context.counts) * self._most_blocks(context.denoiser)
        end_NC = context.denoiser.ends(state.tokens[:, start:])
        ended_before_NC = end_NC.long().cumsum(1) - end_NC.long() > 0
        adaptive = self.unmasking.adaptive
        return Rollout(
            tokens_NL=state.tokens,
            attention_NL=_attention(prompts, self.max_new_tokens),
            completion_NL=pad(~ended_before_NC, (start, 0), value=False),
            block_NL=pad(state.block_NC, (start, 0), value=-1),
            revealed_at_NL=state.revealed_at,
            sampled_logp_NL=state.logp,
            confidence_NL=state.confidence,
            prompt_N=prompts.prompt_N,
            sample_N=prompts.sample_N,
            prompt_length=start,
            group_size=batching.group_size,
            steps=int(state.step_N.max()) if adaptive else steps,
            adaptive=adaptive,
            temperature=self.temperature,
            mask_id=context.denoiser.mask_id,
            remasking=self.unmasking.remasks,
            exact=self.caching is None and not self.guidance_scale and not batching.stopped_early,
            snapshots=tuple(buffer.snapshot for buffer in context.buffers),
            filled_NL=batching.filled_NL,
        )


def _attention(prompts: Prompts, completion: int) -> Tensor:
    return pad(prompts.attention_NP, (0, completion), value=True)


def _hand_on_guesses(on_finished: OnFinished, context: SamplingContext, rows: list[int], block: int) -> None:
    """Hand on the guesses of the samples `rows` that were recorded in the block just done."""
    steps = range(block * len(context.counts), (block + 1) * len(context.counts))
    for buffer in context.buffers:
        recorded = [row for row in rows if buffer.steps[row] in steps]
        if recorded:
            guesses_ZNC = buffer.snapshot.guesses_ZNL[:, recorded, context.layout.start :]
            on_finished(recorded, guesses_ZNC.transpose(0, 1))
