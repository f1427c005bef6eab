"""The policy: trainable denoiser, frozen reference, optimizer. Old is numbers, never a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unmask import distributed
from unmask.denoisers.adapters import AdaptersOff
from unmask.denoisers.base import Denoiser
from unmask.objective.likelihood import row_logp
from unmask.objective.term import Term
from unmask.types import Rollout, ScoringBatch
from unmask.uniforms import Uniforms

# Metrics of methods that compare with a reference; names as in TRL.
_OPTIONAL = ("kl", "rewards/margins", "rewards/accuracies")


@dataclass(frozen=True, kw_only=True)
class UpdateBatch:
    """What one term asks in one inner update: its trained batch, their old and reference answers, its normalizer."""

    term: Term
    batch: ScoringBatch
    normalizer: Tensor
    old_RL: Tensor | None  # None: the update starts from the weights that sampled, so old is now
    reference_RL: Tensor | None
    blended: Denoiser | None  # the old weights, where a term blends their logits and they differ from those of now


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Answers update_batches and takes optimizer steps; `micro_batch` forwards at a time, 0 for all at once."""

    denoiser: Denoiser
    optimizer: torch.optim.Optimizer
    reference: Denoiser | AdaptersOff | None
    accelerator: Any
    max_grad_norm: float
    micro_batch: int = 0
    old: Denoiser | None = None  # copy of the weights that sampled, for terms that blend logits and several updates

    def prepare(
        self, terms: tuple[Term, ...], rollout: Rollout, rewards: list[Tensor], uniforms: Uniforms, updates: int
    ) -> list[list[UpdateBatch]]:
        """All update_batches of all inner updates, drawn and answered by the old policy before the first of them."""
        if self.old is not None:
            self._copy_to(self.old)
        return [
            [
                update_batch
                for term, reward in zip(terms, rewards, strict=True)
                if (update_batch := self._update_batch(term, rollout, reward, uniforms, update, updates)) is not None
            ]
            for update in range(updates)
        ]

    @torch.no_grad()
    def _copy_to(self, old: Denoiser) -> None:
        """The weights that are trained, into a copy made at the start."""
        for ours, theirs in zip(old.parameters(), self.denoiser.parameters(), strict=True):
            if theirs.requires_grad:
                ours.copy_(theirs)

    def _update_batch(
        self, term: Term, rollout: Rollout, rewards: Tensor, uniforms: Uniforms, update: int, updates: int
    ) -> UpdateBatch | None:
        batch = term.scoring_batch(rollout, rewards, uniforms, update, updates)
        normalizer = distributed.total(self.accelerator, term.normalizer(batch)).clamp(min=1)
        trained_U = term.trained(batch)
        if not bool(trained_U.any()):
            return None
        batch = batch.take_units(trained_U)
        old_RL = None
        if update > 0 and term.reads("old"):
            old_RL = batch.old_RL if batch.old_RL is not None else self._answers(self.denoiser, batch)
        reference_RL = None
        if term.reads("reference"):
            if self.reference is None:
                raise ValueError("a term compares with the reference policy, and there is none")
            reference_RL = self._answers(self.reference, batch)
        return UpdateBatch(
            term=term,
            batch=batch,
            normalizer=normalizer,
            old_RL=old_RL,
            reference_RL=reference_RL,
            blended=self.old if update > 0 and term.blend is not None else None,
        )

    @torch.no_grad()
    def _answers(self, denoiser: Denoiser | AdaptersOff, batch: ScoringBatch) -> Tensor:
        answers = torch.zeros(batch.targets_RL.shape, device=batch.targets_RL.device)
        for part, units_U in self._parts(batch):
            with self.accelerator.autocast():
                answers[units_U[batch.unit_R]] = row_logp(denoiser, part)
        return answers

    def _splits(self, batch: ScoringBatch) -> bool:
        return 0 < self.micro_batch < len(batch.inputs_FL)

    def _parts(self, batch: ScoringBatch) -> Iterator[tuple[ScoringBatch, Tensor]]:
        if not self._splits(batch):
            yield batch, torch.ones_like(batch.advantage_U, dtype=torch.bool)
        else:
            yield from batch.micro_batches(self.micro_batch)

    def update(self, update_batches: list[UpdateBatch], learning_rate: float) -> dict[str, float]:
        """One optimizer step on the sum of the terms' losses; metrics of it. Nothing moves where nothing is asked."""
        self.optimizer.zero_grad()
        sums: dict[str, Tensor] = {"loss": torch.zeros((), device=self.accelerator.device)}
        for update_batch in update_batches:
            for name, value in self.backward(update_batch).items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
        asked = distributed.total(
            self.accelerator, torch.tensor(float(len(update_batches)), device=sums["loss"].device)
        )
        if asked == 0:
            return {"loss": 0.0, "grad_norm": 0.0, "clip_ratio/region_mean": 0.0, "approx_kl": 0.0}
        distributed.sum_gradients(self.accelerator, self.denoiser.parameters())
        norm = torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), self.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if bool(torch.isfinite(norm)):  # a NaN is reported by the monitor, never stepped on
            self.optimizer.step()
        names = ("loss", "count", "clip_ratio", "approx_kl", *_OPTIONAL)
        zero = torch.zeros_like(sums["loss"])
        stacked = distributed.total(self.accelerator, torch.stack([sums.get(name, zero) for name in names]))
        loss, weight, clipped, approximate_kl, *optional = stacked.tolist()
        metrics = {"loss": loss, "grad_norm": norm.item()}
        metrics |= {"clip_ratio/region_mean": clipped / max(weight, 1), "approx_kl": approximate_kl / max(weight, 1)}
        shown = zip(_OPTIONAL, optional, strict=True)
        return metrics | {name: value / max(weight, 1) for name, value in shown if name in sums}

    def _with_final_advantages(self, update_batch: UpdateBatch) -> ScoringBatch:
        """The batch, its advantages final: another pass before its parts where they read scores."""
        if not update_batch.term.advantage_reads_scores or not self._splits(update_batch.batch):
            return update_batch.batch
        now_RL = self._answers(self.denoiser, update_batch.batch)
        return update_batch.term.with_final_advantages(
            update_batch.batch, now_RL, update_batch.reference_RL, self._mean
        )

    def _mean(self, value: Tensor) -> Tensor:
        """Mean over the elements of all ranks."""
        sums = torch.stack([value.sum(), value.new_tensor(float(value.numel()))])
        summed = distributed.total(self.accelerator, sums)
        return summed[0] / summed[1]

    def sync_reference(self, mixup: float) -> None:
        """reference <- (1 - mixup) reference + mixup policy."""
        if self.reference is not None:
            with torch.no_grad():
                for ours, theirs in zip(self.reference.parameters(), self.denoiser.parameters(), strict=True):
                    ours.lerp_(theirs, mixup)

    def backward(self, update_batch: UpdateBatch) -> dict[str, Tensor]:
        """Gradients of one term, micro-batch by micro-batch; sums of its metrics."""
        sums: dict[str, Tensor] = {}
        term, batch = update_batch.term, self._with_final_advantages(update_batch)
        for part, units_U in self._parts(batch):
            rows_R = units_U[batch.unit_R]
            old_RL = None if update_batch.old_RL is None else update_batch.old_RL[rows_R]
            reference_RL = None if update_batch.reference_RL is None else update_batch.reference_RL[rows_R]
            grad_logp = term.grad_logp(part, old_RL, reference_RL, update_batch.normalizer)
            with self.accelerator.autocast():
                now_RL = term.answers(self.denoiser, part, update_batch.blended, grad_logp)
            if old_RL is None and term.reads("old"):
                old_RL = now_RL.detach()
            if not self._splits(batch):
                part = term.with_final_advantages(part, now_RL.detach(), reference_RL, self._mean)
            loss, part_sums = term.loss(part, now_RL, old_RL, reference_RL, update_batch.normalizer)
            loss.backward()  # type: ignore[no-untyped-call]
            for name, value in (part_sums | {"loss": loss.detach()}).items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
        return sums
