"""What a training step learns from: completions with their rewards, and the protocol of where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from unmask.data.examples import Examples
from unmask.denoisers.base import Denoiser
from unmask.evaluation.evaluator import Evaluator
from unmask.types import Rollout
from unmask.uniforms import Uniforms


@dataclass(frozen=True, kw_only=True)
class Experience:
    """Completions of this rank's examples, a group of G each (P groups, N = P·G, maybe none), and what they earned.

    The first group of all ranks is the first of the first rank.
    """

    rollout: Rollout
    texts: list[str]  # of the N finished completions
    reward_N: Tensor  # of the finished completions
    # For each term, what its advantage reads: rewards of finished completions [P, G], of recorded guesses [P, G, Z].
    term_rewards: list[Tensor]
    metrics: dict[str, float]  # over all ranks


class Source(Protocol):
    """Where completions come from: sampled from the policy (OnPolicySource) or given in pairs (PreferenceSource)."""

    @property
    def examples(self) -> Examples:
        """The training examples, which indices count."""

    def __call__(self, denoiser: Denoiser, numbers: list[int], uniforms: Uniforms) -> Experience:
        """This rank's groups of completions of the examples with these numbers (`Examples.numbered`).

        By the policy as it is now; draws are keyed by `uniforms` and the numbers. All ranks call it alike.
        """

    @property
    def evaluation_passes(self) -> int:
        """How often `evaluation` goes over the held-out examples."""

    def evaluation(self, denoiser: Denoiser, held_out: Evaluator, count: int) -> dict[str, list[float]]:
        """Values of the first `count` held-out examples, one each, by "NAME/METRIC"."""
