"""Optimizer updates: gradients of an objective's losses, summed over ranks, clipped and stepped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from unmask.distributed.sharding import is_sharded, reduce_over_copies, whole
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
        idle = self._backward(update_batches, sums)
        waited = idle | world.waiting("update")
        if world.sum(torch.tensor(float(len(update_batches)), device=world.device)) == 0:
            return {"loss": 0.0, "grad_norm": 0.0, "clip_ratio/region_mean": 0.0, "approx_kl": 0.0} | waited
        if not is_sharded(self.objective.denoiser):
            world.sum_gradients(parameters())
        norm = whole(torch.nn.utils.clip_grad_norm_(parameters(), self.max_grad_norm))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if bool(torch.isfinite(norm)):  # a NaN is reported by the monitor, never stepped on
            self.optimizer.step()
        return self._metrics(sums, norm) | waited

    def _backward(self, update_batches: Sequence[UpdateBatch], sums: MetricSums) -> dict[str, float]:
        """Gradients of the losses; where weights are sharded, in as many passes on every rank: metrics of those."""
        objective, denoiser = self.objective, self.objective.denoiser
        own = objective.passes(update_batches) if is_sharded(denoiser) else 0
        most = objective.world.most(own) if is_sharded(denoiser) else 0
        for number, loss in enumerate(objective.losses(update_batches, sums=sums), start=1):
            reduce_over_copies(denoiser, now=number == most)
            loss.backward()  # type: ignore[no-untyped-call]
        for number in range(own + 1, most + 1):
            loss = objective.idle_loss()
            reduce_over_copies(denoiser, now=number == most)
            loss.backward()  # type: ignore[no-untyped-call]
        if not most or objective.world.size == 1:
            return {}
        return {"idle_forwards": fmean(objective.world.everyone(most - own))}

    def _metrics(self, sums: MetricSums, norm: Tensor) -> dict[str, float]:
        world, found = self.objective.world, sums.values
        reported = dict.fromkeys(name for term in self.objective.terms for name in term.metric_names)
        further = [name for name in reported if name not in _ALWAYS]
        zero = torch.zeros((), dtype=torch.float64, device=world.device)
        there = [zero + (name in found) for name in further]  # on any rank
        values = [found.get(name, zero).double() for name in (*_ALWAYS, *further)]
        stacked = world.sum(torch.stack([*values, *there]))
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
