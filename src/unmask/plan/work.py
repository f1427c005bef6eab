"""Forwards and FLOPs of a training step, counted on the scoring batches that a method makes of a dry rollout.

Upper bounds: completions fill their length, no group has equal rewards (such a group is not trained), and a rule that
takes as many steps as it likes reveals one token in each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from unmask.denoisers.head.chunks import chunk_positions
from unmask.methods.base import Method
from unmask.methods.describe import EOS, DryShape, dry_rewards, dry_rollout, passes_without_gradient
from unmask.objective.likelihood import query_columns
from unmask.objective.term import Term, record_of
from unmask.plan.networks import Size
from unmask.sampling.caching import CACHINGS
from unmask.sampling.columns import CanvasLayout, finished_columns, steps_with_masks, suffix_positions
from unmask.sampling.records import Record
from unmask.sampling.sampler import batch_multiple
from unmask.sampling.schedules import SCHEDULES
from unmask.settings.recipe import RolloutSettings
from unmask.types import Rollout, ScoringBatch
from unmask.uniforms import Uniforms

_DRY_FORWARDS = 256  # of a dry batch, at most, where one prompt makes fewer


@dataclass(frozen=True, kw_only=True)
class TermWork:
    """Forwards of one Term in one optimizer update on one GPU."""

    forwards: int
    batch: int  # forwards at a time
    queries: float  # query positions of a forward, on average
    scored: float  # positions of a forward whose logits are made, on average
    widest: int  # query positions of a forward in the widest batch
    most: int  # positions that the head answers in the largest batch
    targets: int  # tokens that are scored at a position: rows of a forward
    without_gradient: tuple[int, int]  # passes of other policies over the same rows: in the first update, in later ones
    reference: bool  # one of those passes is the reference's, in every update
    old: bool  # it compares with the old policy
    scores_first: bool  # one is that of now, before the micro-batches, whose logits' memory stays
    blended: bool
    separable: tuple[bool, bool]  # is the head's gradient made with its logits: in the first update, in later ones
    batch_bytes: int

    def passes(self, updates: int) -> int:
        """The most passes without gradient over the same rows, in any of so many updates."""
        first, later = self.without_gradient
        return max(first, later) if updates > 1 else first


@dataclass(frozen=True, kw_only=True)
class DenoisingForwards:
    """Forwards of a rollout with equally many query positions each."""

    forwards: int
    at_once: int  # of these, in one batch
    positions: int
    columns: int  # that are run; the others' keys and values come from the cache
    end: int  # columns before it are attended to
    tokens: int = 1  # drawn at each position


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one GPU computes in one training step."""

    samples: int
    at_once: int  # of these, sampled in one batch
    length: int  # prompt and completion
    denoising: tuple[DenoisingForwards, ...]  # one a step; recorded states apart
    guided: bool
    cached: bool  # keys and values are kept
    terms: tuple[TermWork, ...]
    updates: int
    record_bytes: int  # the rollout and its recorded states
    rescored: tuple[int, int] = (0, 0)  # forwards that tell what a cache changes, and tokens scored in each

    @property
    def rollout_forwards(self) -> int:
        """Of each sample and step (in the first, each prompt), twice with guidance, and of each recorded state."""
        return sum(step.forwards for step in self.denoising) * (2 if self.guided else 1)

    @property
    def trained_forwards(self) -> int:
        """Forwards with gradient."""
        return self.updates * sum(term.forwards for term in self.terms)

    @property
    def other_forwards(self) -> int:
        """Forwards without gradient, of the reference, the old policy and that of now."""
        return self.rescored[0] + sum(self._other(term) for term in self.terms)

    def _other(self, term: TermWork) -> int:
        first, later = term.without_gradient
        return term.forwards * (first + later * (self.updates - 1))

    def rollout_flops(self, size: Size) -> float:
        """FLOPs of all denoising steps."""
        total = 0.0
        for step in self.denoising:
            run = forward_flops(size, step.columns, step.positions, step.positions, step.end)
            blank = forward_flops(size, self.length, step.positions, step.positions) if self.guided else 0
            total += step.forwards * (run + blank)
        return total

    def other_flops(self, size: Size) -> float:
        """FLOPs of the forwards without gradient; the reference of trained adapters is the model without them."""
        bare = replace(size, adapters=0, last_adapters=0)
        forwards, tokens = self.rescored
        total = forwards * forward_flops(size, self.length, tokens, tokens)
        for term in self.terms:
            reference = self.updates * term.forwards * term.reference
            total += reference * forward_flops(bare, self.length, term.queries, term.scored)
            total += (self._other(term) - reference) * forward_flops(size, self.length, term.queries, term.scored)
        return total

    def trained_flops(self, size: Size, *, recompute: bool) -> float:
        """FLOPs of the forwards with gradient and their backward passes."""
        return sum(
            term.forwards * _trained_flops(size, self.length, term, separable, recompute=recompute)
            for term in self.terms
            for separable in (term.separable[:1] + term.separable[1:] * (self.updates - 1))
        )


def _layer_flops(size: Size, length: int, queries: float, keys: int | None = None) -> tuple[float, float, float]:
    """A forward: weights of the layers, adapters (2 FLOPs each and token), attention scores and their use.

    The last layer's queries, and what follows them, at query positions only. `length` columns are run and attend to
    `keys`, unset: to each other.
    """
    keys = length if keys is None else keys
    weights = 2 * ((size.active - size.last) * length + size.last * queries)
    adapters = 2 * ((size.adapters - size.last_adapters) * length + size.last_adapters * queries)
    attention = 4 * keys * ((size.attention - size.last_attention) * length + size.last_attention * queries)
    return weights, adapters, attention


def forward_flops(size: Size, length: int, queries: float, scored: float, keys: int | None = None) -> float:
    """FLOPs of a forward: the layers, and the head at scored positions."""
    return sum(_layer_flops(size, length, queries, keys)) + 2 * size.head * scored


def _trained_flops(size: Size, length: int, term: TermWork, separable: bool, *, recompute: bool) -> float:
    """A forward, the gradient of what comes in (as much again), and that of trained weights (as much again).

    Once more what is recomputed: the layers with gradient checkpointing, the head where its logits come in chunks and
    are not used up at once.
    """
    again, frozen = (1 if recompute else 0), size.adapters > 0
    weights, adapters, attention = _layer_flops(size, length, term.queries)
    body = weights * ((2 if frozen else 3) + again) + (adapters + attention) * (3 + again)
    chunked = 1 if _in_chunks(size, term) and not separable else 0
    return body + 2 * size.head * term.scored * ((2 if frozen else 3) + chunked)


def _in_chunks(size: Size, term: TermWork) -> bool:
    return term.most > chunk_positions(size.vocabulary)


def work_of(
    method: Method,
    rollout: RolloutSettings,
    canvas: CanvasLayout,
    *,
    updates: int,
    micro_batch: int,
    ranks: int,
) -> Work:
    """The Work of one rank on canvases of these sizes."""
    terms = method.terms(EOS)
    record = record_of(terms)
    length = canvas.completion
    blocks = length // canvas.block_length
    steps = blocks * len(_step_counts(rollout, length))
    prompts = -(-rollout.prompts // ranks)  # of the rank with the most
    group, offset = rollout.num_generations, _offset(canvas)
    shape = DryShape(prompt=canvas.start, length=length, blocks=blocks, steps=steps, group=group, offset=offset)

    def dry(count: int) -> Rollout:
        return replace(dry_rollout(record, replace(shape, prompts=count)), adaptive=rollout.unmasking.adaptive)

    return Work(
        samples=prompts * rollout.num_generations,
        at_once=min(prompts * rollout.num_generations, rollout.batch or prompts * rollout.num_generations),
        length=canvas.length,
        denoising=tuple(_denoising(rollout, record, prompts, canvas)),
        guided=rollout.guidance_scale != 0,
        cached=_is_exact(rollout, canvas) or CACHINGS[rollout.caching] is not None,
        terms=tuple(_term_work(term, dry, prompts, micro_batch, ranks) for term in terms),
        updates=updates,
        record_bytes=prompts * _bytes_of(dry(1)),
        rescored=(prompts, max(_step_counts(rollout, length))) if CACHINGS[rollout.caching] is not None else (0, 0),
    )


def _step_counts(rollout: RolloutSettings, length: int) -> tuple[int, ...]:
    """Positions that each step of a block reveals; of an adaptive rule that reads no schedule, the fewest it may."""
    block = rollout.block_length or length
    if not rollout.unmasking.scheduled:
        return (1,) * block
    return SCHEDULES[rollout.schedule](block, rollout.steps // (length // block))


def _offset(canvas: CanvasLayout) -> int:
    """Positions of the completion's first block that are the prompt's: those of a model's own begin with the prompt."""
    return canvas.start % canvas.block_length if canvas.block_causal else 0


def _most_blocks(canvas: CanvasLayout) -> int:
    """Blocks of a completion, at most, whatever the lengths of other prompts: as `Sampler` has them."""
    return canvas.completion // canvas.block_length + int(canvas.block_causal)


def _rows_of_steps(rollout: RolloutSettings, samples: int) -> tuple[int, int, int]:
    """Rows of all samples' forwards, at most: in their first step, where prompts share theirs; in a later one; at once.

    The sampler pads batches to a multiple; those that it refills have no first step in common.
    """
    size = min(samples, rollout.batch or samples)
    multiple = batch_multiple(size)
    padding = -size % multiple
    refilled = samples > size and (rollout.stop_at_end or samples % size > 0)
    later = -(-samples * (size + padding) // size) + (multiple - 1 if refilled else 0)
    shared = not refilled and not padding and size % rollout.num_generations == 0
    return samples // rollout.num_generations if shared else later, later, size + padding


def _is_exact(rollout: RolloutSettings, canvas: CanvasLayout) -> bool:
    """Whether keys and values of earlier blocks are kept whatever is set, as `SamplingContext.exact_prefix_cache`."""
    return canvas.block_causal and not canvas.shift and not rollout.guidance_scale


def _window(
    rollout: RolloutSettings, canvas: CanvasLayout, *, block: int, index: int, masked_before: int
) -> tuple[int, int]:
    """Columns that a step of a block runs, and the end of those that it attends to: see `sampling.columns`."""
    length, caching = canvas.length, CACHINGS[rollout.caching]
    if _is_exact(rollout, canvas):
        end = min(length, canvas.block_start(block + 1))
        done = block if index else block - 1
        return end - (finished_columns(canvas, done) if done >= 0 else 0), end
    if caching is None or index == 0:
        return length, length
    behind = length - canvas.block_start(block + 1) if caching.suffix else 0
    if caching.delayed:
        return min(length, masked_before * (2 if canvas.shift else 1) + behind), length
    return canvas.block_length + int(canvas.shift) + behind, length


def _denoising(
    rollout: RolloutSettings, record: Record | None, prompts: int, canvas: CanvasLayout
) -> Iterator[DenoisingForwards]:
    """Query positions: what is masked in the block, and all that is masked where states are recorded."""
    length, whole = canvas.completion, {"columns": canvas.length, "end": canvas.length}
    counts, blocks = _step_counts(rollout, length), _most_blocks(canvas)
    first, samples, at_once = _rows_of_steps(rollout, prompts * rollout.num_generations)
    guesses = 0 if record is None or record.own else record.guesses
    wanted: Counter[int] = Counter()
    if record is not None:
        prompt_N = torch.arange(prompts).repeat_interleave(rollout.num_generations)
        sample_N = torch.arange(rollout.num_generations).repeat(prompts)
        block_NC = ((torch.arange(length) + _offset(canvas)) // canvas.block_length).expand(len(prompt_N), -1)
        masked_NS = steps_with_masks(block_NC, blocks, counts, remasks=rollout.unmasking.remasks)
        wanted.update(torch.cat(record.steps(Uniforms(), prompt_N, sample_N, masked_NS)).tolist())
    for step in range(len(counts) * blocks):
        block, index = divmod(step, len(counts))
        later = suffix_positions(canvas, block)
        masked, before = sum(counts[index:]), sum(counts[max(0, index - 1) :])
        here = not later and rollout.caching == "none"
        everything = step in wanted and record is not None and (record.own or here)
        columns, end = _window(rollout, canvas, block=block, index=index, masked_before=before)
        run = whole if everything else {"columns": columns, "end": end}
        anywhere = min(length, masked + later)
        positions = anywhere if everything else masked
        tokens = 1 + (guesses if everything else 0)
        if step == 0:  # the samples of a prompt begin alike
            drawn = tokens * (rollout.num_generations if first < samples else 1)
            alike = at_once // rollout.num_generations if first < samples else at_once
            yield DenoisingForwards(forwards=first, at_once=alike, positions=positions, tokens=drawn, **run)
        else:
            yield DenoisingForwards(forwards=samples, at_once=at_once, positions=positions, tokens=tokens, **run)
        if step in wanted and not everything:
            most, drawn = min(wanted[step], at_once), 1 + guesses
            yield DenoisingForwards(forwards=wanted[step], at_once=most, positions=anywhere, tokens=drawn, **whole)


def _term_work(term: Term, dry: Callable[[int], Rollout], prompts: int, micro_batch: int, ranks: int) -> TermWork:
    batch, drawn = _dry_batch(term, dry, prompts)
    forwards = len(batch.inputs_FL) * prompts // drawn
    parts = [(len(part.inputs_FL), *query_columns(part)) for part in _parts(batch, micro_batch)]
    dry_forwards = sum(count for count, _, _ in parts)
    micro = max(count for count, _, _ in parts) if len(parts) > 1 else min(micro_batch or forwards, forwards)
    scored = sum(int(counted_FA.sum()) for _, _, counted_FA in parts) / dry_forwards
    first, later = passes_without_gradient(term, batch)
    again = 1 if term.advantage_reads_scores and (micro < forwards or ranks > 1) else 0
    return TermWork(
        forwards=forwards,
        batch=micro,
        queries=sum(count * query_FA.shape[1] for count, query_FA, _ in parts) / dry_forwards,
        scored=scored,
        widest=max(query_FA.shape[1] for _, query_FA, _ in parts),
        most=max(round(int(counted_FA.sum()) * max(1, micro / count)) for count, _, counted_FA in parts),
        targets=int(torch.bincount(batch.forward_R).max()),
        without_gradient=(first + again, later + again),
        reference=term.reads("reference"),
        old=term.reads("old"),
        scores_first=bool(again),
        blended=term.blend is not None,
        separable=(term.is_elementwise(old_is_now=True), term.is_elementwise(old_is_now=False)),
        batch_bytes=_bytes_of(batch) * prompts // drawn,
    )


def _dry_batch(term: Term, dry: Callable[[int], Rollout], prompts: int) -> tuple[ScoringBatch, int]:
    """A scoring batch without a model, and of how many prompts: as many as it takes to average over random masks."""

    def batch_of(count: int) -> ScoringBatch:
        rollout = dry(count)
        batch = term.scoring_batch(rollout, dry_rewards(term, rollout), Uniforms(), 0, 1)
        return batch.take_units(term.trained(batch))

    batch = batch_of(1)
    drawn = max(1, min(prompts, _DRY_FORWARDS // len(batch.inputs_FL)))
    return (batch_of(drawn) if drawn > 1 else batch), drawn


def _parts(batch: ScoringBatch, micro_batch: int) -> Iterator[ScoringBatch]:
    if 0 < micro_batch < len(batch.inputs_FL):
        yield from (part for part, _ in batch.micro_batches(micro_batch))
    else:
        yield batch


def _bytes_of(piece: Rollout | ScoringBatch) -> int:
    """Bytes of the tensors in it, recorded states included."""
    values = [getattr(piece, field.name) for field in fields(piece)]
    tensors = [value for value in values if isinstance(value, Tensor)]
    for snapshot in getattr(piece, "snapshots", ()):
        tensors += [getattr(snapshot, field.name) for field in fields(snapshot)]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)
