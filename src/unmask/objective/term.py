"""Term: one additive part of a method's loss, put together from a masking, advantages, a likelihood and a surrogate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.denoisers.base import Denoiser
from unmask.errors import UserError
from unmask.objective.divergences import Penalty, k3
from unmask.objective.likelihood import Likelihood, row_contrast, row_logp
from unmask.objective.losses import Surrogate
from unmask.objective.masks import Masking
from unmask.sampling.records import Record
from unmask.types import Rollout, ScoringBatch
from unmask.uniforms import Uniforms


@dataclass(frozen=True, kw_only=True)
class Term:
    """One additive part of a method's loss: coefficient · (surrogate + penalty).

    The loss is computed in four steps: `masking` makes a scoring batch of a rollout and its advantages; the denoiser
    gives log-probs of the targets; `likelihood` turns them into scores; `surrogate` and `penalty` turn scores into a
    loss, divided by `normalizer` of the whole optimizer batch.

        Term(
            masking=masks.FullyMasked(),
            advantage=advantages.centered,
            likelihood=likelihood.per_token,
            surrogate=losses.ClippedSurrogate(epsilon=0.2),
            normalizer=likelihood.token_count,
        )

    Raises UserError for a piece that does not declare the traits of its protocol, such as a plain function.
    """

    masking: Masking
    advantage: Callable[[Tensor], Tensor]  # reads final rewards [P, G], or with `record` those of guesses [P, G, Z]
    likelihood: Likelihood
    surrogate: Surrogate
    normalizer: Callable[[ScoringBatch], Tensor]
    penalty: Penalty | None = None
    coefficient: float = 1.0
    record: Record | None = None  # what the sampler must record for this term, its guesses rewarded each
    blend: float | None = (
        None  # set: targets are scored by two blends of the logits of the trained and of the old policy
    )

    def __post_init__(self) -> None:
        _check_traits(self.masking, Masking, "subclass it")
        _check_traits(self.likelihood, Likelihood, "subclass it, or wrap a function in likelihood.FromFunction")
        _check_traits(self.surrogate, Surrogate, "subclass it")

    def scoring_batch(
        self, rollout: Rollout, rewards: Tensor, uniforms: Uniforms, update: int, updates: int
    ) -> ScoringBatch:
        """What is scored in inner update `update` of `updates`; `rewards` [P, G] or [P, G, Z], as `advantage` reads."""
        return self.masking(rollout, self.advantage(rewards), uniforms, update, updates)

    def answers(
        self,
        denoiser: Denoiser,
        batch: ScoringBatch,
        old: Denoiser | None = None,
        grad_logp: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """log-probs of the batch's targets: [R, L], or [R, L, 2] where two blends score.

        `old`: the old policy of blends; None: the denoiser itself, detached. `grad_logp`: see `row_logp`.
        """
        if self.blend is None:
            return row_logp(denoiser, batch, grad_logp)
        return row_contrast(denoiser, batch, old, self.blend)

    def is_elementwise(self, *, old_is_now: bool) -> bool:
        """Whether d loss / d log-prob depends on no other log-prob, so that the head can make it chunk by chunk.

        So it is where a score is a token's and the loss is elementwise in the scores, or where all derivatives are
        constant: scores linear in the log-probs, the loss linear in the scores. `old_is_now`: in the first update.
        """
        if self.blend is not None or self.advantage_reads_scores:
            return False
        if self.likelihood.elementwise and self.surrogate.elementwise:
            return True
        constant = self.surrogate.has_constant_gradient(old_is_now=old_is_now) and self.penalty is None
        return constant and self.likelihood.linear

    def grad_logp(
        self, batch: ScoringBatch, old_RL: Tensor | None, reference_RL: Tensor | None, normalizer: Tensor
    ) -> Callable[[Tensor], Tensor] | None:
        """logp_RL -> d loss / d logp_RL, of elementwise terms (`old_RL` None: old is now); None for others."""
        if not self.is_elementwise(old_is_now=old_RL is None):
            return None

        def derivative(logp_RL: Tensor) -> Tensor:
            with torch.enable_grad():
                logp_RL = logp_RL.detach().requires_grad_()
                old = logp_RL.detach() if old_RL is None and self.reads("old") else old_RL
                loss, _ = self.loss(batch, logp_RL, old, reference_RL, normalizer)
                (grad_RL,) = torch.autograd.grad(loss, logp_RL)
            return grad_RL

        return derivative

    def reads(self, policy: str) -> bool:
        """Whether the loss compares with log-probs of the frozen policy "old" or "reference"."""
        return policy in (self.surrogate.against, self.penalty and self.penalty.against)

    @property
    def advantage_reads_scores(self) -> bool:
        """Whether final advantages depend on the scores of the whole optimizer batch (RSPO)."""
        return self.surrogate.centers_over_batch

    @property
    def clips_tokens(self) -> bool:
        """Whether the loss clips ratios to the old policy, token by token."""
        return self.likelihood.elementwise and self.surrogate.against == "old"

    @property
    def reads_trajectory(self) -> bool:
        """Whether rows are states of the recorded trajectory, which a sampler that remasks does not leave."""
        return self.masking.reads_trajectory

    @property
    def compares_pairs(self) -> bool:
        """Whether the loss compares pairs of completions whoever wrote them, as of a preference data set (VRPO)."""
        return self.surrogate.compares_pairs

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the sums that `loss` returns after `count`, in order, given all log-probs that the term reads."""
        kept = {"approx_kl": self.reads("old"), "kl": self.penalty is not None}
        names = ("approx_kl", *self.surrogate.metric_names, "kl")
        return tuple(name for name in names if kept.get(name, True))

    def with_final_advantages(
        self, batch: ScoringBatch, logp_RL: Tensor, reference_RL: Tensor | None, mean: Callable[[Tensor], Tensor]
    ) -> ScoringBatch:
        """The batch with the advantages that depend on scores (RSPO); `mean` is over the whole optimizer batch."""
        if not self.advantage_reads_scores or reference_RL is None:
            return batch
        score, reference = self.likelihood(logp_RL, batch), self.likelihood(reference_RL, batch)
        advantage_U = self.surrogate.final_advantages(score.value_UK, reference.value_UK, batch.advantage_U, mean)
        return replace(batch, advantage_U=advantage_U)

    def loss(
        self,
        batch: ScoringBatch,
        logp_RL: Float[Tensor, "R L *two"],
        old_RL: Float[Tensor, "R L"] | None,
        reference_RL: Float[Tensor, "R L"] | None,
        normalizer: Float[Tensor, ""],
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The term's share of the loss, and detached sums for the metrics (divide by `count` for means).

        `logp_RL`: of the trained policy, as `answers` gives them; `old_RL`, `reference_RL`: of the policies that the
        term `reads`.
        """
        score, advantage_U = self.likelihood(logp_RL, batch), batch.advantage_U
        logps = {"old": old_RL, "reference": reference_RL}
        other = {  # scores of the frozen policies that are read
            name: self.likelihood(logp, batch).value_UK
            for name, logp in logps.items()
            if logp is not None and self.reads(name)
        }
        compared_UK = other.get(self.surrogate.against) if self.surrogate.against else None
        loss = self.surrogate(score.value_UK, compared_UK, advantage_U, score.loss_weight_UK, normalizer)
        counted_UK = score.loss_weight_UK > 0 if score.counted_UK is None else score.counted_UK
        sums = {"count": counted_UK.sum()}
        if "old" in other:
            sums["approx_kl"] = (k3(score.value_UK, other["old"]) * counted_UK).sum()
        for name, value_UK in self.surrogate.metrics(score.value_UK, compared_UK, advantage_U).items():
            sums[name] = (value_UK * counted_UK).sum()
        if self.penalty is not None and self.penalty.against in other:
            other_UK = other[self.penalty.against]
            loss = loss + self.penalty(score.value_UK, other_UK, score.loss_weight_UK, batch.length_U, normalizer)
            sums["kl"] = (self.penalty.estimate(score.value_UK, other_UK) * counted_UK).sum()
        return self.coefficient * loss, {name: value.detach().float() for name, value in sums.items()}

    @property
    def trains_all(self) -> bool:
        """Whether units without advantage have a gradient too."""
        pulled = self.penalty is not None and self.penalty.against == "reference"
        return self.surrogate.trains_zero_advantage or pulled

    def trained(self, batch: ScoringBatch) -> Bool[Tensor, "U"]:
        """Units that have a gradient: something is scored, and the advantage, or a pull to the reference, is not 0."""
        return batch.scored_U if self.trains_all else batch.scored_U & (batch.advantage_U != 0)


def _check_traits(piece: object, protocol: type, mend: str) -> None:
    """Raise UserError for a piece without the attributes of its protocol: no trait is guessed."""
    traits = {*protocol.__annotations__, *(name for name in vars(protocol) if not name.startswith("_"))}
    missing = sorted(name for name in traits if not hasattr(piece, name))
    if missing:
        where = f"{protocol.__module__}.{protocol.__name__}"
        raise UserError(f"{piece!r} is no {where}, it declares no {', '.join(missing)}: {mend}")


def record_of(terms: tuple[Term, ...]) -> Record | None:
    """What the sampler must record for all terms; None: nothing. Raises ValueError where two want different records."""
    records = {term.record for term in terms if term.record is not None}
    if len(records) > 1:
        raise ValueError(f"terms want different records of one rollout: {records}")
    return records.pop() if records else None
