"""Bytes on one GPU at the worst moments of a training step, whole or sharded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from unmask.denoisers.head.chunks import chunk_positions
from unmask.distributed.host_memory import pinned_bytes
from unmask.plan.denoising import DenoisingForwards
from unmask.plan.dry_run import Pass, peak_bytes
from unmask.plan.layout import (
    Layout,
    frozen_bytes,
    gathered_bytes,
    gradients_bytes,
    masters_bytes,
    moments_bytes,
    optimizer_bytes,
    working_bytes,
)
from unmask.plan.networks import Size
from unmask.plan.work import TermWork, Work
from unmask.settings.commands import PlanSettings


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one GPU: what is always held, and what comes on top in rollout, update and optimizer step."""

    weights: int
    reference: int
    old: int
    moments: int
    gradients: int
    records: int  # rollout, recorded states
    batches: int  # what is scored in the updates
    rollout: int
    update: int  # gradients are part of it where the first backward pass makes them
    optimizer: int
    accumulates: bool
    answers: int = 0  # a pass without gradient, where that may be the worst moment: weights are gathered for it
    gathered: int = 0  # all weights, while it samples or answers
    working: int = 0  # of `update`, gathered weights
    blended: int = 0  # the old policy's, gathered during an update

    @property
    def held(self) -> int:
        """Bytes always held, gradients apart."""
        return self.weights + self.reference + self.old + self.moments

    @property
    def bytes_by_moment(self) -> dict[str, int]:
        """Bytes in all at each moment."""
        before = self.gradients if self.accumulates else 0
        sampled = self.held + self.records
        made = sampled + self.batches
        return {
            "rollout": sampled + self.gradients + self.gathered + self.rollout,
            "frozen answers": made + self.gradients + self.gathered + self.answers if self.answers else 0,
            "update": made + before + self.blended + self.update,
            "optimizer step": made + self.gradients + self.optimizer,
        }

    @property
    def peak(self) -> int:
        """The largest sum of bytes at any moment."""
        return max(self.bytes_by_moment.values())


def memory_of(settings: PlanSettings, work: Work, size: Size, layout: Layout) -> Memory:
    """The Memory of a recipe in a layout."""
    accumulates = any(term.batch < term.forwards for term in work.terms) or len(work.terms) > 1
    scratch = size.dequantized * torch.bfloat16.itemsize
    passes = [_update_pass(term, work, layout, accumulates=accumulates) for term in work.terms]
    shared: dict[str, Any] = {
        "records": work.record_bytes,
        "batches": sum(term.batch_bytes for term in work.terms) * work.updates,
        "rollout": max(_bytes(settings, each) for each in _denoising_passes(settings, work, layout)) + scratch,
        "update": max(
            _bytes(settings, each) + _kept_logits(term, size) for each, term in zip(passes, work.terms, strict=True)
        )
        + scratch,
        "accumulates": accumulates,
    }
    state = _sharded_state if layout.sharded else _whole_state
    return Memory(**shared, **state(settings, work, size, layout))


def _bytes(settings: PlanSettings, work: Pass) -> int:
    return peak_bytes(settings.model, settings.train, work, settings.model_format)


def _whole_state(settings: PlanSettings, work: Work, size: Size, layout: Layout) -> dict[str, Any]:
    """Every GPU has all; adapters are their own reference."""
    copied = not settings.train.lora_rank and any(term.reference for term in work.terms)
    # AdamW takes all weights at once and holds a root of their moments; several ranks send one flat copy of a copy.
    return {
        "weights": size.weight_bytes,
        "reference": size.weight_bytes if copied else 0,
        "old": size.weight_bytes if _keeps_old(work) else 0,
        "moments": 2 * size.trained_bytes,
        "gradients": size.trained_bytes,
        "optimizer": size.trained_bytes * (2 if layout.ranks > 1 else 1),
    }


def _sharded_state(settings: PlanSettings, work: Work, size: Size, layout: Layout) -> dict[str, Any]:
    """Every GPU has a piece of all, and gathers what it computes with."""
    weights, dtype = size.groups, computing_dtype(settings)
    answered = [term for term in work.terms if term.passes(work.updates)]
    answers = (replace(_scoring_pass(term, work, layout), answers=True) for term in answered)
    return {
        "weights": masters_bytes(weights, layout),
        "reference": frozen_bytes(weights, layout) if any(term.reference for term in work.terms) else 0,
        "old": frozen_bytes(weights, layout) if _keeps_old(work) else 0,
        "moments": moments_bytes(weights, layout),
        "gradients": gradients_bytes(weights, layout),
        "optimizer": optimizer_bytes(weights, layout),
        "answers": max((_bytes(settings, each) for each in answers), default=0),
        "gathered": gathered_bytes(weights, dtype),
        "working": working_bytes(weights, dtype),
        "blended": gathered_bytes(weights, dtype) if _keeps_old(work) else 0,
    }


def saved_bytes(settings: PlanSettings, size: Size, layout: Layout) -> int:
    """Bytes of a machine's own memory for the copy of a checkpoint that is written while training goes on.

    Weights, moments and a reference that moves, of the first rank; of sharded weights every rank's moments: the weights
    themselves are written tensor by tensor. Pinned, so that a GPU need not wait: each tensor takes a power of two.
    """
    if layout.sharded:
        pieces = (layout.piece(count) * torch.float32.itemsize for count in size.trained_tensors)
        return 2 * sum(map(pinned_bytes, pieces)) * min(layout.ranks, layout.node)
    dtype = torch.bfloat16 if settings.train.param_dtype == "bf16" else torch.float32
    models = 2 if settings.train.ref_model_sync_steps else 1
    weights = sum(pinned_bytes(count * dtype.itemsize) for count in size.tensors)
    trained_itemsize = size.trained_bytes // size.trained
    trained = sum(pinned_bytes(count * trained_itemsize) for count in size.trained_tensors)
    return models * weights + (3 if settings.train.lora_rank else 2) * trained  # adapters, and two moments


def computing_dtype(settings: PlanSettings) -> torch.dtype:
    """What gathered weights are: the precision that computes."""
    return torch.bfloat16 if settings.train.precision == "bf16" else torch.float32


def _keeps_old(work: Work) -> bool:
    return work.updates > 1 and any(term.blended for term in work.terms)


def _scoring_pass(term: TermWork, work: Work, layout: Layout) -> Pass:
    """The rows of a term that are scored at a time."""
    return Pass(
        forwards=term.batch,
        length=work.length,
        queries=term.widest,
        scored=term.most,
        targets=term.targets,
        layout=layout,
    )


def _update_pass(term: TermWork, work: Work, layout: Layout, *, accumulates: bool) -> Pass:
    return replace(
        _scoring_pass(term, work, layout),
        blended=term.blended,
        separable=all(term.separable[: work.updates]),
        accumulates=accumulates,
    )


def _denoising_passes(settings: PlanSettings, work: Work, layout: Layout) -> list[Pass]:
    """The steps that ask most: by columns run, logits made and tokens drawn; and what is scored again of a rollout."""

    def columns(step: DenoisingForwards) -> tuple[int, int]:
        return step.at_once * step.columns, step.positions

    def logits(step: DenoisingForwards) -> int:
        return step.at_once * step.positions

    def draws(step: DenoisingForwards) -> int:
        return logits(step) * step.tokens

    return [
        Pass(
            forwards=step.at_once,
            length=work.length,
            queries=step.positions,
            scored=step.at_once * step.positions,
            targets=step.tokens,
            samples=True,
            temperature=settings.rollout.temperature,
            measure=settings.rollout.unmasking.measure,
            guided=work.guided,
            cached=step.columns if work.cached else 0,
            layout=layout,
        )
        for step in {max(work.denoising, key=key) for key in (columns, logits, draws)}
    ] + _rescoring(work, layout)


def _rescoring(work: Work, layout: Layout) -> list[Pass]:
    """The pass that tells what a cache has changed, where there is one: also before the updates' batches are there."""
    forwards, tokens = work.rescored
    if not forwards:
        return []
    scored = forwards * tokens
    return [Pass(forwards=forwards, length=work.length, queries=tokens, scored=scored, answers=True, layout=layout)]


def _kept_logits(term: TermWork, size: Size) -> int:
    """Bytes of logits of the pass before the micro-batches, beside those that a micro-batch keeps for its gradient."""
    if not term.scores_first or all(term.separable):
        return 0
    return min(term.most, chunk_positions(size.vocabulary)) * size.vocabulary * torch.float32.itemsize
