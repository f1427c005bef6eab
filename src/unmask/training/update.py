"""Optimizer updates: gradients of an objective's losses, summed over ranks, clipped and stepped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.objective.objective import MetricSums, Objective, UpdateBatch

_ALWAYS = ("loss", "count", "clip_ratio", "approx_kl")  # 0 where no term has them


@dataclass(frozen=True, kw_only=True)
class Updater:
    """Takes optimizer steps on an objective; its denoiser is the policy that is trained."""

    objective: Objective
    optimizer: torch.optim.Optimizer
    max_grad_norm: float

    def update(self, update_batches: Sequence[UpdateBatch], learning_rate: float) -> dict[str, float]:
        """One optimizer step on the update batches of `Objective.prepare`; its metrics, over all ranks.

        loss, grad_norm (before clipping), clip_ratio/region_mean, approx_kl (k3 of now and old), and what else the
        terms report, such as kl and rewards/margins. No step is taken where no rank has a batch, nor on a gradient that
        is not finite.
        """
        world, parameters = self.objective.world, self.objective.denoiser.parameters
        sums = MetricSums()
        self.optimizer.zero_grad()
        for loss in self.objective.losses(update_batches, sums=sums):
            loss.backward()  # type: ignore[no-untyped-call]
        waited = world.waiting("update")
        if world.sum(torch.tensor(float(len(update_batches)), device=world.device)) == 0:
            return {"loss": 0.0, "grad_norm": 0.0, "clip_ratio/region_mean": 0.0, "approx_kl": 0.0} | waited
        world.sum_gradients(parameters())
        norm = torch.nn.utils.clip_grad_norm_(parameters(), self.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if bool(torch.isfinite(norm)):  # a NaN is reported by the monitor, never stepped on
            self.optimizer.step()
        return self._metrics(sums, norm) | waited

    def _metrics(self, sums: MetricSums, norm: Tensor) -> dict[str, float]:
        world, found = self.objective.world, sums.values
        reported = dict.fromkeys(name for term in self.objective.terms for name in term.metric_names)
        further = [name for name in reported if name not in _ALWAYS]
        zero = torch.zeros((), device=world.device)
        there = [zero + (name in found) for name in further]  # on any rank
        stacked = world.sum(torch.stack([*(found.get(name, zero) for name in (*_ALWAYS, *further)), *there]))
        loss, count, clipped, approximate_kl, *rest = stacked.tolist()
        means, known = rest[: len(further)], rest[len(further) :]
        count = max(count, 1)
        metrics = {"loss": loss, "grad_norm": norm.item()}
        metrics |= {"clip_ratio/region_mean": clipped / count, "approx_kl": approximate_kl / count}
        shown = zip(further, means, known, strict=True)
        return metrics | {name: value / count for name, value, ranks in shown if ranks}

    @torch.no_grad()
    def sync_reference(self, mixup: float) -> None:
        """reference <- (1 - mixup) reference + mixup policy; nothing where there is no reference."""
        objective = self.objective
        if objective.reference is not None:
            for ours, theirs in zip(objective.reference.parameters(), objective.denoiser.parameters(), strict=True):
                ours.lerp_(theirs, mixup)
