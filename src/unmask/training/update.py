"""Optimizer updates: gradients of an objective's losses, summed over ranks, clipped and stepped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from unmask.distributed.sharding import begin_anew, is_sharded, reduce_over_copies, whole
from unmask.errors import UserError
from unmask.objective.objective import MetricSums, Objective, UpdateBatch
from unmask.report.progress import message

_ALWAYS = ("loss", "count", "clip_ratio", "approx_kl")  # 0 where no term has them
_NOTHING_TRAINED = ("loss", "grad_norm", "clip_ratio/region_mean", "approx_kl", "skipped")


@dataclass(kw_only=True)
class Updater:
    """Takes optimizer steps on an objective; its denoiser is the policy that is trained."""

    objective: Objective
    optimizer: torch.optim.Optimizer
    max_grad_norm: float
    micro_batch: int | None = None  # forwards at a time, fewer than the objective's once memory was out

    def update(self, update_batches: Sequence[UpdateBatch], learning_rate: float) -> dict[str, float]:
        """One optimizer step on the update batches of `Objective.prepare`; its metrics, over all ranks.

        loss, grad_norm (before clipping), clip_ratio/region_mean, approx_kl (k3 of now and old), skipped, and what else
        the terms report, such as kl and rewards/margins. No step is taken where no rank has a batch, nor (skipped 1)
        where loss or gradient is not finite. Raises UserError where memory does not suffice for one forward.
        """
        parameters = self.objective.denoiser.parameters
        sums, waited = self._backward(update_batches)
        if sums is None:
            return dict.fromkeys(_NOTHING_TRAINED, 0.0) | waited
        if not is_sharded(self.objective.denoiser):
            self.objective.world.sum_gradients(parameters())
        norm = whole(torch.nn.utils.clip_grad_norm_(parameters(), self.max_grad_norm))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        metrics = self._metrics(sums, norm)
        skipped = not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]))
        if not skipped:
            self.optimizer.step()
        return metrics | {"skipped": float(skipped)} | waited

    def _backward(self, update_batches: Sequence[UpdateBatch]) -> tuple[MetricSums | None, dict[str, float]]:
        """Accumulate the gradients, in smaller micro-batches where memory is out; None where no rank has a batch.

        Beside it metrics of what ranks have done for one another: seconds waited, forwards without work.
        """
        world = self.objective.world
        while True:
            sums = MetricSums()
            idle = self._tried(update_batches, sums)
            shared = (idle or {}) | world.waiting("update")
            counts = torch.tensor([float(idle is None), float(len(update_batches))], device=world.device)
            ranks_full, batches = world.sum(counts).tolist()
            if not ranks_full:
                return (sums if batches else None), shared
            self._halve(update_batches)

    def _tried(self, update_batches: Sequence[UpdateBatch], sums: MetricSums) -> dict[str, float] | None:
        """Accumulate gradients and metrics; None where memory is out: the graph, too large, ends with this call."""
        self.optimizer.zero_grad()
        try:
            return self._passes(update_batches, sums)
        except torch.OutOfMemoryError as error:
            if self.objective.world.size > 1 and is_sharded(self.objective.denoiser):
                # The other ranks are within a forward or backward, for which all hold the weights together.
                raise UserError(
                    "out of memory in an update of sharded weights, which cannot be begun anew: start again with a "
                    "smaller train.micro_batch, train.gradient_checkpointing true or more ranks (train.shard)"
                ) from error
            for policy in (self.objective.denoiser, self.objective.old):  # what may have been at a forward
                begin_anew(policy)
            return None

    def _passes(self, update_batches: Sequence[UpdateBatch], sums: MetricSums) -> dict[str, float]:
        """Gradients of the losses; where weights are sharded, in as many passes on every rank: metrics of those."""
        objective, denoiser = self.objective, self.objective.denoiser
        own = objective.passes(update_batches, self.micro_batch) if is_sharded(denoiser) else 0
        most = objective.world.most(own) if is_sharded(denoiser) else 0
        for number, loss in enumerate(objective.losses(update_batches, self.micro_batch, sums), start=1):
            reduce_over_copies(denoiser, now=number == most)
            loss.backward()  # type: ignore[no-untyped-call]
        for number in range(own + 1, most + 1):
            loss = objective.idle_loss()
            reduce_over_copies(denoiser, now=number == most)
            loss.backward()  # type: ignore[no-untyped-call]
        if not most or objective.world.size == 1:
            return {}
        return {"idle_forwards": fmean(objective.world.everyone(most - own))}

    def _halve(self, update_batches: Sequence[UpdateBatch]) -> None:
        self.optimizer.zero_grad()
        if self.objective.world.device.type == "cuda":
            torch.cuda.empty_cache()
        own = max((len(each.batch.inputs_FL) for each in update_batches), default=1)
        whole = self.objective.world.most(own)  # ranks go on alike, also in steps that deal the work otherwise
        tried = min(self.micro_batch or self.objective.micro_batch or whole, whole)
        if tried == 1:
            raise UserError(
                "out of memory in an update with one forward at a time: set train.gradient_checkpointing true, train "
                "adapters (train.lora_rank), or shorten the completions (rollout.max_new_tokens)"
            )
        self.micro_batch = max(1, tried // 2)
        message(f"out of memory in an update: {self.micro_batch} forwards at a time from here on, in place of {tried}")

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
