"""SPG (arXiv 2510.09541). Provenance: authors' code.

    rows: a block masked at random, earlier blocks clean, later ones masked; clean tokens masked w.p. 0.15
    A >= 0: score = mean over rows of the mean of logp over masked tokens (a lower bound, up to its weights)
    A < 0: score = mix EUBO + (1 - mix) of that;  EUBO = (1/beta) mean_k log mean_rows p_k^beta 1[k masked] / t
    L = -sum_j A_j score_j len_j / sum_j len_j;  A = r - mean of the group;  t = masked fraction of the row

No ratio, no clip, no frozen policy; rows are drawn afresh each update. The published Sudoku runs have beta = 1.
EUBO is above log p for beta >= L only.
Deviations: none known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unmask.methods.base import Method
from unmask.validation import setting, where

if TYPE_CHECKING:
    from unmask.objective import Term


@dataclass(frozen=True, kw_only=True)
class SPG(Method):
    """Policy gradient squeezed between a lower bound for good samples and an upper one for bad ones."""

    name: ClassVar[str] = "spg"
    paper: ClassVar[str] = "2510.09541"
    provenance: ClassVar[str] = "code"
    num_masks: int = setting(2, "rows a completion", was="views", low=1)
    prompt_mask_prob: float = setting(0.15, "probability that a clean token is masked", high=1)
    beta: float = setting(1.5, "order of the upper bound", idle=where("mix", 0))
    mix: float = setting(0.5, "share of the upper bound in the score of bad samples", high=1)

    def terms(self, eos_id: int) -> tuple[Term, ...]:
        from unmask.objective import Term, advantages, likelihood, losses, masks

        return (
            Term(
                masking=masks.BlockRandom(count=self.num_masks, prompt_mask_prob=self.prompt_mask_prob),
                advantage=advantages.centered,
                likelihood=likelihood.Sandwich(beta=self.beta, mix=self.mix),
                surrogate=losses.PolicyGradient(),
                normalizer=likelihood.token_count,
            ),
        )
