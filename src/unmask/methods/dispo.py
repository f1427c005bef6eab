"""DiSPO (arXiv 2602.06462 v4). Provenance: paper (no code exists).

    L = L_base + alpha L_step;  x_t of every trajectory, p(t) ∝ t^4, its masked positions filled at once Z times: R_z
    L_step = mean over branches z of all states of the mean over a branch's scored tokens of
        -min(rho A_z, clip(rho, 1 ± epsilon) A_z) + beta k3(reference);  A_z = R_z - mean_z R

Scored: masked positions through a fill's first EOS; a branch without any does not count. epsilon 0.5 and beta 0.04, or
those of a base that clips tokens. Reconstructed: p(t)'s formula; fills drawn once, at the rollout's temperature."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from unmask.methods.base import Method
from unmask.methods.diffu_grpo import DiffuGRPO
from unmask.methods.espo import ESPO
from unmask.methods.gdpo import GDPO
from unmask.methods.spg import SPG
from unmask.methods.wd1 import WD1
from unmask.sampling.records import OneStep
from unmask.validation import choice, setting

if TYPE_CHECKING:
    from unmask.objective import Term
BASES = {method.name: method for method in (DiffuGRPO, SPG, GDPO, ESPO, WD1)}


@dataclass(frozen=True, kw_only=True)
class DiSPO(Method):
    """Any terminal method, plus a policy gradient on single-state branches."""

    name: ClassVar[str] = "dispo"
    paper: ClassVar[str] = "2602.06462"
    provenance: ClassVar[str] = "paper"
    base: Method = choice(BASES, DiffuGRPO, "the terminal method that it extends")
    alpha: float = setting(0.5, "weight of the branch term")
    branches: int = setting(2, "fills of each state, Z", low=1)
    degree: float = setting(4.0, "of the polynomial that favours late steps; 0 is uniform")
    shared_step: bool = setting(False, "one step for all samples of a prompt, else one for each")
    prompt_mask_prob: float = setting(0.15, "probability that a prompt token is masked in the branch term")
    token_mean: bool = setting(False, "mean over all branch tokens, else over branches of their means")

    def terms(self, eos_id: int) -> tuple[Term, ...]:
        from unmask.objective import advantages, divergences, likelihood, losses, masks

        first, *others = self.base.terms(eos_id)
        clip, to_base = losses.ClippedSurrogate(epsilon=0.5), divergences.penalty(divergences.k3, 0.04)
        clipped = first if first.clips_tokens else replace(first, surrogate=clip, penalty=to_base)
        shared, prob = first.masking.prompt_mask.shared, self.prompt_mask_prob
        branch = replace(
            clipped,
            record=OneStep(guesses=self.branches, degree=self.degree, shared=self.shared_step),
            masking=masks.Branches(eos_id=eos_id, prompt_mask_prob=prob, shared=shared, per_row=not self.token_mean),
            advantage=advantages.centered_per_state,
            likelihood=likelihood.per_token,
            normalizer=likelihood.token_count if self.token_mean else likelihood.scored_unit_count,
            coefficient=self.alpha,
        )
        return (first, *others, branch)
