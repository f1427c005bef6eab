"""Block-wise denoising of a batch of left-padded prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from unmask.denoisers.base import Denoiser, Guidance, Window, mask_of
from unmask.errors import UserError
from unmask.proposals import Propose
from unmask.records import Record
from unmask.samples import Samples
from unmask.snapshots import Slot
from unmask.types import Prompts, Rollout
from unmask.uniforms import Uniforms
from unmask.unmasking import LowConfidence, Schedule, Seen, Unmasking, uniform_schedule


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Fill `max_new_tokens` masks after each prompt, block by block, in `steps` denoising steps in all.

    temperature 0 is greedy (log-probs are then recorded at temperature 1). Adaptive unmasking rules take as many steps
    as they need. Draws are keyed by prompt, sample, step and position, so tokens do not depend on the batch or its
    padding. `stop_at_end`: a sample is done with the block that holds its end-of-sequence token; the rest is filled
    with that token, as if revealed at the last step taken. Recorded states need every step of every sample.
    """

    max_new_tokens: int
    block_length: int
    steps: int
    temperature: float = 0.0
    unmasking: Unmasking = field(default_factory=LowConfidence)
    schedule: Schedule = uniform_schedule
    guidance_scale: float = 0.0
    stop_at_end: bool = False

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

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        prompts: Prompts,
        uniforms: Uniforms,
        record: Record | None = None,
        watch: Callable[[int, Tensor], None] | None = None,
        group_size: int = 1,
    ) -> Rollout:
        """Complete the prompts; `watch` sees (step, canvas) after each step.

        Raises UserError if the model is too short.
        """
        if record is not None and self.unmasking.adaptive:
            raise UserError(
                f"unmasking {self.unmasking.name} takes as many steps as it likes, so its steps cannot be recorded: "
                "train with a scheduled rule such as low_confidence"
            )
        loop = _Loop(self, denoiser, prompts, uniforms, record, watch)
        for block in range(loop.blocks):
            loop.denoise_block(block)
            if not loop.goes_on(block):
                break
        return loop.rollout(group_size)


class _Loop:
    """One call of a sampler: the canvas, and what has been remembered of it."""

    def __init__(
        self,
        sampler: Sampler,
        denoiser: Denoiser,
        prompts: Prompts,
        uniforms: Uniforms,
        record: Record | None,
        watch: Callable[[int, Tensor], None] | None,
    ) -> None:
        self.sampler, self.denoiser, self.prompts, self.watch = sampler, denoiser, prompts, watch
        self.core: Any = getattr(denoiser, "module", denoiser)  # what a distributed wrapper holds
        core = self.core
        self.mask_id, self.eos_id = core.mask_id, core.eos_id
        self.start = prompts.tokens_NP.shape[1]
        length = self.start + sampler.max_new_tokens
        if length > core.max_length:
            raise UserError(
                f"prompt of {self.start} and completion of {sampler.max_new_tokens} tokens exceed the "
                f"{core.max_length} that the model takes: shorten max_new_tokens or drop the longest prompts"
            )
        self.position = torch.arange(sampler.max_new_tokens, device=prompts.tokens_NP.device)
        self.whole = self.canvas = self._blank(length)  # all samples, and those that are not done
        self.rows = torch.arange(len(prompts.tokens_NP), device=self.position.device)  # of the latter among the former
        self.mask = mask_of(self.canvas.attention)
        self.all_uniforms, self.uniforms = uniforms, self._keyed(uniforms)
        self.blocks = int(self.whole.block_NC.max()) + 1
        self.counts = sampler.schedule(
            sampler.block_length, sampler.steps // (sampler.max_new_tokens // sampler.block_length)
        )
        self.step = 0
        # A model that attends in blocks need not run again the `held` columns whose tokens are final.
        self.windowed = core.block_length is not None and not core.shift and not sampler.guidance_scale
        self.cache, self.held = DynamicCache(), 0
        self.record = record
        self.slots: list[Slot] = []
        if record is not None:
            steps = record.steps(uniforms, prompts.prompt_N, prompts.sample_N, self.blocks * len(self.counts))
            self.slots = [Slot(step_N, record, self.canvas.tokens) for step_N in steps]

    def _blank(self, length: int) -> Samples:
        prompts = self.prompts
        tokens = prompts.tokens_NP.new_full((len(prompts.tokens_NP), length), self.mask_id)
        tokens[:, : self.start] = prompts.tokens_NP
        zeros = torch.zeros(tokens.shape, device=tokens.device)
        return Samples(
            tokens=tokens,
            attention=torch.nn.functional.pad(prompts.attention_NP, (0, self.sampler.max_new_tokens), value=True),
            block_NC=self._blocks(self.core.block_length),
            running=zeros - float("inf"),
            confidence=zeros,
            logp=zeros.clone(),
            revealed_at=torch.full_like(tokens, -1),
            prompt_N=prompts.prompt_N,
            sample_N=prompts.sample_N,
        )

    def _keyed(self, uniforms: Uniforms) -> Uniforms:
        """By sample."""
        return uniforms.key("sample", self.canvas.prompt_N[:, None], self.canvas.sample_N[:, None])

    def goes_on(self, block: int) -> bool:
        """Leave out the samples that have ended in a finished block; whether any are left."""
        if not self.sampler.stop_at_end or self.record is not None or block + 1 == self.blocks:
            return True
        canvas = self.canvas
        end_NC = (canvas.tokens[:, self.start :] == self.eos_id) & (canvas.block_NC <= block)
        going = torch.nonzero(~end_NC.any(1))[:, 0]
        if len(going) == len(self.rows):
            return True
        rows, left = self.rows[going], canvas.take(going)
        self._fill_up()
        self.rows, self.canvas = rows, left
        self.mask = None if self.mask is None else self.mask[going]
        self.uniforms = self._keyed(self.all_uniforms)
        if self.held:
            self.cache.batch_select_indices(going)
        return len(going) > 0

    def _fill_up(self) -> None:
        """The samples back among all; where they are masked still, those that go on will overwrite it."""
        self.whole.put(self.rows, self.canvas)
        masked_NL = self.whole.tokens == self.mask_id
        masked_NL[:, : self.start] = False
        self.whole.tokens.masked_fill_(masked_NL, self.eos_id)
        self.whole.revealed_at.masked_fill_(masked_NL, self.step - 1)

    def _blocks(self, model_block: int | None) -> Tensor:
        """Block of each completion position [N, C].

        Where the model itself attends in blocks, they are those, counted from the prompt's first token: a prompt that
        ends within a block leaves the rest of it to the completion, and the last block may be cut short.
        """
        length = self.sampler.block_length
        if model_block is None:
            block_C = self.position // length
            return block_C.repeat(len(self.prompts.tokens_NP), 1)
        if length != model_block:
            raise UserError(f"block_length {length} is not the {model_block} of the model's own blocks: give that")
        offset_N1 = self.prompts.attention_NP.sum(1, keepdim=True) % length
        return (self.position + offset_N1) // length

    def denoise_block(self, block: int) -> None:
        """Steps of one block: as scheduled; where the rule is adaptive, until nothing is masked."""
        sampler, rule = self.sampler, self.sampler.unmasking
        candidate_NC = self.canvas.block_NC == block
        start, stop = block * sampler.block_length, (block + 1) * sampler.block_length
        if self.core.block_length is not None:  # rows may be in different places of a block
            start, stop = max(0, start - sampler.block_length + 1), min(stop, sampler.max_new_tokens)
            self._hold_before(block)
        if getattr(rule, "scope", "block") == "completion":
            candidate_NC, start = self.canvas.block_NC <= block, 0
        candidate_NC = candidate_NC[:, start:stop]
        counts = self.counts if rule.scheduled else (0,) * sampler.block_length
        masked = sampler.block_length  # at most, in any row
        for index, count in enumerate(counts):
            remaining = sum(counts[index + 1 :])
            if not rule.adaptive:  # known to the host, no device is waited for
                masked = count + remaining
            self._denoise(start, stop, candidate_NC, masked, count=count, remaining=remaining)
            if rule.adaptive:
                masked = int(self._masked(start, stop, candidate_NC).sum(1).max())
                if not masked:
                    break

    def _hold_before(self, block: int) -> None:
        """Run once, and cache, the columns that lie in earlier blocks in every row."""
        length, canvas = self.sampler.block_length, self.canvas.tokens
        end = self.start + block * length  # behind all blocks that begin before `keep`
        keep = end - length + 1
        if keep > self.held and self.windowed:
            nothing = torch.empty((len(canvas), 0), dtype=torch.long, device=canvas.device)
            window = Window(cache=self.cache, start=self.held, stop=end, keep=keep)
            self.denoiser(canvas, self.mask, nothing, _no_answer, window=window)
            self.held = keep

    def _masked(self, start: int, stop: int, candidate_NC: Tensor) -> Tensor:
        masked_NC: Tensor = self.canvas.tokens[:, self.start + start : self.start + stop] == self.mask_id
        return masked_NC & candidate_NC

    def _denoise(self, start: int, stop: int, candidate_NC: Tensor, masked: int, *, count: int, remaining: int) -> None:
        """One denoising step over the candidates among positions [start, stop) of the completion.

        Of the candidates, at most `masked` are masked in any row; those alone go through the head.
        """
        recording = [slot for slot in self.slots if slot.wants(self.step)]
        if recording or masked:
            masked_NC = self._masked(start, stop, candidate_NC)
            if recording:
                answers = self._recorded(recording, start, stop)
            else:
                answers = self._answers(start, stop, masked_NC, masked)
            self._commit(start, stop, candidate_NC, masked_NC, answers, count=count, remaining=remaining)
        if self.watch is not None:
            self.watch(self.step, self.canvas.tokens)
        self.step += 1

    def _recorded(self, slots: list[Slot], start: int, stop: int) -> list[Tensor]:
        """As `_answers`, but asked everywhere, so that the states are remembered whole."""
        everywhere_NC = self.position.expand(len(self.canvas.tokens), -1)
        tokens_NCZ, logp_NCZ, confidence_NC = self._propose(everywhere_NC, stop, guesses=True)
        for slot in slots:
            slot.remember(self.step, self.canvas.tokens, self.start, tokens_NCZ, logp_NCZ, self.mask_id)
        return [part[:, start:stop] for part in (tokens_NCZ[..., 0], logp_NCZ[..., 0], confidence_NC)]

    def _answers(self, start: int, stop: int, masked_NC: Tensor, most: int) -> list[Tensor]:
        """Proposals, log-probs and confidences at the masked positions, `most` in a row; zeros elsewhere."""
        place_NA = masked_NC.long().argsort(dim=1, descending=True, stable=True)[:, :most]
        tokens_NAZ, logp_NAZ, confidence_NA = self._propose(start + place_NA, stop, guesses=False)
        parts = (tokens_NAZ[..., 0], logp_NAZ[..., 0], confidence_NA)
        return [part_NA.new_zeros(masked_NC.shape).scatter(1, place_NA, part_NA) for part_NA in parts]

    def _propose(self, asked_NA: Tensor, stop: int, *, guesses: bool) -> tuple[Tensor, ...]:
        """Answers at the asked positions; those of a recorded state lie behind `stop` too."""
        sampler, canvas = self.sampler, self.canvas.tokens
        key = self.uniforms.key(self.step)
        draws = [key.key("token", asked_NA).draw()]
        if guesses and self.record is not None and not self.record.own:
            draws += [key.key("guess", guess).key(asked_NA).draw() for guess in range(self.record.guesses)]
        answer = Propose(
            temperature=sampler.temperature,
            mask_id=self.mask_id,
            measure=sampler.unmasking.measure,
            uniform_QZ=torch.stack(draws, dim=-1).flatten(0, 1),
        )
        guidance = None
        if sampler.guidance_scale:
            prompt = torch.arange(canvas.shape[1], device=canvas.device) < self.start
            guidance = Guidance(scale=sampler.guidance_scale, prompt_FL=prompt.expand_as(canvas))
        window = None
        if self.windowed and not guesses:
            window = Window(cache=self.cache, start=self.held, stop=self.start + stop, keep=self.held)
        answers: tuple[Tensor, ...] = self.denoiser(
            canvas, self.mask, self.start + asked_NA, answer, guidance=guidance, window=window
        )
        return answers

    def _commit(
        self,
        start: int,
        stop: int,
        candidate: Tensor,
        masked: Tensor,
        answers: list[Tensor],
        *,
        count: int,
        remaining: int,
    ) -> None:
        """Fill the candidates with the proposals that the rule commits; mask what it masks again."""
        canvas, rule = self.canvas, self.sampler.unmasking
        tokens, logp, confidence = answers
        here = (slice(None), slice(self.start + start, self.start + stop))
        running = confidence
        if getattr(rule, "statistic", "latest") == "max":
            running = torch.maximum(canvas.running[here], confidence)
        canvas.running[here] = torch.where(masked, running, canvas.running[here])
        masked_after = candidate & rule(
            Seen(
                masked_NC=masked,
                confidence_NC=confidence,
                running_NC=canvas.running[here].masked_fill(~candidate, float("inf")),
                position_C=self.position[start:stop],
                count=count,
                remaining=remaining,
                uniforms=self.uniforms.key(self.step),
            )
        )
        revealed = masked & ~masked_after
        canvas.tokens[here] = torch.where(revealed, tokens, canvas.tokens[here].masked_fill(masked_after, self.mask_id))
        canvas.logp[here] = torch.where(revealed, logp, canvas.logp[here])
        canvas.confidence[here] = torch.where(revealed, confidence, canvas.confidence[here])
        canvas.revealed_at[here] = canvas.revealed_at[here].masked_fill(revealed, self.step)

    def rollout(self, group_size: int) -> Rollout:
        self.whole.put(self.rows, self.canvas)
        sampler, canvas = self.sampler, self.whole
        region = canvas.tokens[:, self.start :]
        ended_before = (region == self.eos_id).long().cumsum(1) - (region == self.eos_id).long() > 0
        return Rollout(
            tokens_NL=canvas.tokens,
            attention_NL=canvas.attention,
            completion_NL=torch.nn.functional.pad(~ended_before, (self.start, 0), value=False),
            block_NL=torch.nn.functional.pad(canvas.block_NC, (self.start, 0), value=-1),
            revealed_at_NL=canvas.revealed_at,
            sampled_logp_NL=canvas.logp,
            confidence_NL=canvas.confidence,
            prompt_N=self.prompts.prompt_N,
            sample_N=self.prompts.sample_N,
            prompt_length=self.start,
            group_size=group_size,
            steps=self.step,
            temperature=sampler.temperature,
            mask_id=self.mask_id,
            remasking=sampler.unmasking.remasks,
            snapshots=tuple(slot.snapshot for slot in self.slots),
        )


def _no_answer(logits_CV: Tensor, chunk: slice) -> tuple[Tensor, ...]:
    """Where a forward is made for the cache alone."""
    return ()
