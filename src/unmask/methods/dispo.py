"""DiSPO (arXiv 2602.06462). Provenance: paper (no code exists); what the paper leaves open is marked reconstructed.

    L = L_base + alpha L_step;  x_t of every trajectory, p(t) ∝ t^4, its masked positions filled at once Z times: R_z
    A_z = R_z - mean_z R;  L_step = clipped token surrogate on the filled tokens of x_t, prompt masked as in the base

Reconstructed: fills drawn once, scored to their first EOS; token mean over branches (the paper sums states); clip and
KL of the base if it clips tokens, else 0.5 and none.
"""

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

    def terms(self, eos_id: int) -> tuple[Term, ...]:
        from unmask.objective import advantages, likelihood, losses, masks

        first, *others = self.base.terms(eos_id)
        clips, mask = first.likelihood.elementwise, first.masking.prompt_mask
        branch = replace(
            first,
            record=OneStep(guesses=self.branches, degree=self.degree, shared=self.shared_step),
            masking=masks.Branches(eos_id=eos_id, prompt_mask_prob=mask.prob, shared=mask.shared),
            advantage=advantages.centered_per_state,
            likelihood=likelihood.per_token,
            surrogate=first.surrogate if clips else losses.ClippedSurrogate(epsilon=0.5),
            normalizer=likelihood.token_count,
            penalty=first.penalty if clips else None,
            coefficient=self.alpha,
        )
        return (first, *others, branch)
