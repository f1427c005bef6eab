"""A method's loss over a batch of completions, apart from any optimizer: its tensors, then its micro-losses."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from unmask.denoisers.adapters import AdaptersOff
from unmask.denoisers.base import Denoiser
from unmask.denoisers.head.reducers import TargetLogProb
from unmask.distributed import World
from unmask.distributed.sharding import gathered
from unmask.objective.likelihood import row_logp
from unmask.objective.term import Term, record_of
from unmask.sampling.records import Record
from unmask.types import Rollout, ScoringBatch
from unmask.uniforms import Uniforms


@dataclass(frozen=True, kw_only=True)
class UpdateBatch:
    """What one term of the loss trains on in one optimizer update.

    The scoring batch holds only units with a gradient; the log-probs are those of its rows under frozen policies.
    """

    term: Term
    batch: ScoringBatch
    normalizer: Tensor  # of the term's loss, over all micro-batches and ranks
    old_RL: Tensor | None = None  # None: the update starts from the weights that sampled, so old is now, detached
    reference_RL: Tensor | None = None  # None: the term has no reference policy
    old_model: Denoiser | None = None  # weights that sampled, for a term that blends logits; None: those of now


class MetricSums:
    """Running sums of a loss's detached metrics, on its device: reading `values` is the only host sync.

    "loss": the loss itself. "count": scores that carry a weight, what the other sums are divided by for a mean.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Add a micro-batch's sums, or those of a whole term."""
        for name, value in values.items():
            self.values[name] = self.values.get(name, torch.zeros_like(value)) + value


def frozen_copy(denoiser: Denoiser) -> Denoiser:
    """A copy of the weights that is never trained: a reference or an old policy."""
    return copy.deepcopy(denoiser).eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A method's loss on a denoiser: the sum of its terms, with the frozen policies that they compare with.

    It knows no optimizer. A training loop of one's own, `updates` optimizer steps on each batch of completions:

        objective = Objective(terms=DiffuGRPO().terms(denoiser.eos_id), denoiser=denoiser, reference=...)
        rollout = sampler(denoiser, prompts, uniforms, record=objective.record, group_size=8)
        for update in objective.prepare(rollout, rewards, uniforms, updates=2):
            for loss in objective.losses(update, micro_batch=16):
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    `micro_batch` forwards are made at a time, 0 for all at once: the gradient is the same. Several ranks each have
    their own completions and call `prepare` and `losses` equally often; their gradients are to be summed.
    """

    terms: tuple[Term, ...]
    denoiser: Denoiser
    reference: Denoiser | AdaptersOff | None = None
    old: Denoiser | None = None  # room for the weights that sampled: for terms that blend logits and several updates
    micro_batch: int = 0
    world: World = field(default_factory=World.single)

    @property
    def record(self) -> Record | None:
        """What the sampler must record for the terms."""
        return record_of(self.terms)

    def prepare(
        self, rollout: Rollout, rewards: Sequence[Tensor], uniforms: Uniforms, updates: int = 1
    ) -> list[list[UpdateBatch]]:
        """For each of the `updates`, the batches of those terms that have a gradient.

        Masks are drawn, and old and reference log-probs computed, before the first update. `rewards`: for each term,
        those of the finished completions [P, G], or of the recorded guesses [P, G, Z] where the term records some.
        Raises ValueError where a term compares with a frozen policy that is not there.
        """
        self._check(updates)
        if self.old is not None:
            self._copy_to(self.old)
        drawn = [
            [
                self._draw(term, rollout, reward, uniforms, update, updates)
                for term, reward in zip(self.terms, rewards, strict=True)
            ]
            for update in range(updates)
        ]
        prepared = [[batch for batch in batches if batch is not None] for batches in drawn]
        if updates > 1 and any(term.reads("old") for term in self.terms):
            with gathered(self.denoiser):
                prepared = [prepared[0], *([self._with_old(batch) for batch in batches] for batches in prepared[1:])]
        if self.reference is not None:
            with gathered(self.reference):
                prepared = [[self._with_reference(batch) for batch in batches] for batches in prepared]
        return prepared

    def losses(
        self, update: Sequence[UpdateBatch], micro_batch: int | None = None, sums: MetricSums | None = None
    ) -> Iterator[Tensor]:
        """The micro-losses of one update, scalars to call `.backward()` on; their sum is the loss.

        A generator: each forward is made when its loss is asked for, so one backward before the next keeps one graph
        in memory. `sums` takes the metrics. `micro_batch`: another than the objective's, that it was prepared with.
        """
        forwards = self.micro_batch if micro_batch is None else micro_batch
        final = self._with_final_advantages(update, forwards)
        with gathered(self.old):
            for update_batch in final:
                of_term = MetricSums()
                for loss, values in self._micro_losses(update_batch, forwards):
                    of_term.add(values | {"loss": loss.detach()})
                    yield loss
                if sums is not None:
                    sums.add(of_term.values)

    def passes(self, update: Sequence[UpdateBatch], micro_batch: int | None = None) -> int:
        """How many micro-losses `losses` gives for one update."""
        forwards = self.micro_batch if micro_batch is None else micro_batch
        return sum(update_batch.batch.count_micro_batches(forwards) for update_batch in update)

    def idle_loss(self) -> Tensor:
        """A loss of zero by one forward, for a rank that keeps others company where weights are sharded."""
        mask_11 = torch.full((1, 1), self.denoiser.mask_id, device=self.world.device)
        zero_11 = torch.zeros_like(mask_11)
        (logp,) = self.denoiser(mask_11, None, zero_11, TargetLogProb(zero_11))
        loss: Tensor = logp.sum() * 0
        return loss

    def _check(self, updates: int) -> None:
        if self.reference is None and any(term.reads("reference") for term in self.terms):
            raise ValueError("a term compares with the reference policy, and there is none")
        if self.old is None and updates > 1 and any(term.blend is not None for term in self.terms):
            raise ValueError("a term blends logits with those of the old policy in several updates: give a copy as old")

    @torch.no_grad()
    def _copy_to(self, old: Denoiser) -> None:
        for ours, theirs in zip(old.parameters(), self.denoiser.parameters(), strict=True):
            if theirs.requires_grad:
                ours.copy_(theirs)

    def _draw(
        self, term: Term, rollout: Rollout, rewards: Tensor, uniforms: Uniforms, update: int, updates: int
    ) -> UpdateBatch | None:
        """What is scored of one term; None where no unit has a gradient, or this rank has no group."""
        if not len(rollout.tokens_NL):
            self.world.sum(torch.zeros((), dtype=torch.float64, device=self.world.device))  # no share of the normalizer
            return None
        batch = term.scoring_batch(rollout, rewards, uniforms, update, updates)
        own = term.normalizer(batch)
        normalizer = self.world.sum(own.double()).to(own.dtype).clamp(min=1)
        trained_U = term.trained(batch)
        if not bool(trained_U.any()):
            return None
        old_model = self.old if update > 0 and term.blend is not None else None
        return UpdateBatch(term=term, batch=batch.take_units(trained_U), normalizer=normalizer, old_model=old_model)

    def _with_old(self, update_batch: UpdateBatch) -> UpdateBatch:
        if not update_batch.term.reads("old"):
            return update_batch
        batch = update_batch.batch
        recorded = batch.old_RL is not None
        return replace(update_batch, old_RL=batch.old_RL if recorded else self._logp(self.denoiser, batch))

    def _with_reference(self, update_batch: UpdateBatch) -> UpdateBatch:
        if self.reference is None or not update_batch.term.reads("reference"):
            return update_batch
        return replace(update_batch, reference_RL=self._logp(self.reference, update_batch.batch))

    @torch.no_grad()
    def _logp(self, denoiser: Denoiser | AdaptersOff, batch: ScoringBatch, micro_batch: int | None = None) -> Tensor:
        """log-probs of the rows' targets [R, L], without gradient."""
        forwards = self.micro_batch if micro_batch is None else micro_batch
        found: list[tuple[Tensor, Tensor]] = []
        for part, units_U in _parts(batch, forwards):
            with self.world.autocast():
                found.append((units_U[batch.unit_R], row_logp(denoiser, part)))
        logp_RL = found[0][1].new_zeros(batch.targets_RL.shape)
        for rows_R, logp in found:
            logp_RL[rows_R] = logp
        return logp_RL

    def _micro_losses(self, update_batch: UpdateBatch, forwards: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Each micro-batch's loss, and its metric sums."""
        term, batch, normalizer = update_batch.term, update_batch.batch, update_batch.normalizer
        for part, units_U in _parts(batch, forwards):
            rows_R = units_U[batch.unit_R]
            old_RL = None if update_batch.old_RL is None else update_batch.old_RL[rows_R]
            reference_RL = None if update_batch.reference_RL is None else update_batch.reference_RL[rows_R]
            grad_logp = term.grad_logp(part, old_RL, reference_RL, normalizer)
            with self.world.autocast():
                now_RL = term.answers(self.denoiser, part, update_batch.old_model, grad_logp)
            if old_RL is None and term.reads("old"):
                old_RL = now_RL.detach()
            if term.advantage_reads_scores and not self._scores_first(batch, forwards):  # the one part is the batch
                part = self._finished(term, update_batch, now_RL.detach()).batch
            yield term.loss(part, now_RL, old_RL, reference_RL, normalizer)

    def _scores_first(self, batch: ScoringBatch, forwards: int) -> bool:
        """Whether a pass for the scores of the whole batch comes before any part's loss."""
        return self.world.size > 1 or _splits(batch, forwards)

    def _with_final_advantages(self, update: Sequence[UpdateBatch], forwards: int) -> list[UpdateBatch]:
        """The update with the advantages that depend on its scores of now (RSPO), where these take a pass of their own.

        Such an advantage reads a mean over the batches of all ranks: a collective, which ranks without a batch join.
        """
        if not any(term.advantage_reads_scores for term in self.terms):
            return list(update)
        final, fault = [], None
        with gathered(self.denoiser):
            for term in self.terms:
                try:
                    final += self._finished_of(term, update, forwards)
                except torch.OutOfMemoryError as error:  # the terms after it are collectives too
                    fault = error.with_traceback(None)
        if fault is not None:
            raise fault
        return final

    def _finished_of(self, term: Term, update: Sequence[UpdateBatch], forwards: int) -> list[UpdateBatch]:
        """A term's batch, or none, finished where a pass of its own finishes it.

        Where memory is out, the other ranks, who wait for this one's share of the mean, get NaN: all then begin anew.
        """
        found = [update_batch for update_batch in update if update_batch.term is term]
        if not term.advantage_reads_scores:
            return found
        if not found:
            self._mean(torch.zeros(0, device=self.world.device))
        try:
            logps = [
                self._logp(self.denoiser, each.batch, forwards) if self._scores_first(each.batch, forwards) else None
                for each in found
            ]
        except torch.OutOfMemoryError:
            self._mean(torch.full((1,), torch.nan, device=self.world.device))
            raise
        pairs = zip(found, logps, strict=True)
        return [each if logp_RL is None else self._finished(term, each, logp_RL) for each, logp_RL in pairs]

    def _finished(self, term: Term, update_batch: UpdateBatch, now_RL: Tensor) -> UpdateBatch:
        batch = term.with_final_advantages(update_batch.batch, now_RL, update_batch.reference_RL, self._mean)
        return replace(update_batch, batch=batch)

    def _mean(self, value: Tensor) -> Tensor:
        """Mean over the values of all ranks."""
        own = value.double()
        sums = self.world.sum(torch.stack([own.sum(), own.new_tensor(float(value.numel()))]))
        return (sums[0] / sums[1]).to(value.dtype)


def _splits(batch: ScoringBatch, forwards: int) -> bool:
    return 0 < forwards < len(batch.inputs_FL)


def _parts(batch: ScoringBatch, forwards: int) -> Iterator[tuple[ScoringBatch, Tensor]]:
    """Micro-batches of about so many forwards, 0 for one of all, with the units that each holds [U] bool."""
    if not _splits(batch, forwards):
        yield batch, torch.ones_like(batch.advantage_U, dtype=torch.bool)
    else:
        yield from batch.micro_batches(forwards)
