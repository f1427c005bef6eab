"""Forwards and FLOPs of a training step, counted on the scoring batches that a method makes of a dry rollout.

Upper bounds: completions fill their length, no group has equal rewards (such a group is not trained), and a rule that
takes as many steps as it likes reveals one token in each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from unmask.denoisers.head.chunks import chunk_positions
from unmask.methods.base import Method
from unmask.methods.describe import EOS, DryShape, dry_rewards, dry_rollout, passes_without_gradient
from unmask.objective.likelihood import query_columns
from unmask.objective.term import Term, record_of
from unmask.plan.denoising import DenoisingForwards, block_offset, denoising_of, is_exact, step_counts
from unmask.plan.networks import Size
from unmask.plan.shares import Shares
from unmask.sampling.caching import CACHINGS
from unmask.sampling.columns import CanvasLayout
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
class Work:
    """What one GPU computes in one training step: the one that samples most, and trains on most groups."""

    shares: Shares  # of the step, among all GPUs
    at_once: int  # completions sampled in one batch
    length: int  # prompt and completion
    denoising: tuple[DenoisingForwards, ...]  # one a step; recorded states apart
    fewer: tuple[DenoisingForwards, ...]  # the same of a GPU that samples fewest
    guided: bool
    cached: bool  # keys and values are kept
    terms: tuple[TermWork, ...]
    updates: int
    record_bytes: int  # the rollout and its recorded states, of the groups: never less than of what it samples
    rescored: tuple[int, int] = (0, 0)  # forwards that tell what a cache changes, and tokens scored in each

    @property
    def samples(self) -> int:
        """Completions that it samples."""
        return self.shares.most

    def all_rollouts(self, amount: Callable[[Work], float]) -> float:
        """An amount of the rollout, summed over all GPUs."""
        more = self.shares.with_more
        return more * amount(self) + (self.shares.ranks - more) * amount(replace(self, denoising=self.fewer))

    def all_groups(self, amount: float) -> float:
        """An amount that grows with the groups of this GPU, of all groups."""
        return amount * self.shares.prompts / self.shares.groups

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
    """The Work of the rank with the most on canvases of these sizes."""
    terms = method.terms(EOS)
    record = record_of(terms)
    length, blocks = canvas.completion, canvas.completion // canvas.block_length
    steps = blocks * len(step_counts(rollout, length))
    group, offset = rollout.num_generations, block_offset(canvas)
    shares = Shares(prompts=rollout.prompts, group_size=group, ranks=ranks)
    shape = DryShape(prompt=canvas.start, length=length, blocks=blocks, steps=steps, group=group, offset=offset)

    def dry(count: int) -> Rollout:
        return replace(dry_rollout(record, replace(shape, prompts=count)), adaptive=rollout.unmasking.adaptive)

    approximate = CACHINGS[rollout.caching] is not None

    def denoising(samples: int) -> tuple[DenoisingForwards, ...]:
        return tuple(denoising_of(rollout, record, samples, shares.alike, canvas))

    most = denoising(shares.most)
    return Work(
        shares=shares,
        at_once=min(shares.most, rollout.batch or shares.most),
        length=canvas.length,
        denoising=most,
        fewer=denoising(shares.fewest) if shares.with_more else most,
        guided=rollout.guidance_scale != 0,
        cached=is_exact(rollout, canvas) or approximate,
        terms=tuple(_term_work(term, dry, shares.groups, micro_batch, ranks) for term in terms),
        updates=updates,
        record_bytes=shares.groups * _bytes_of(dry(1)),
        rescored=(shares.groups, max(step_counts(rollout, length))) if approximate else (0, 0),
    )


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
