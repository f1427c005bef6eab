"""The mathematics of the methods as pure functions: tensors in, tensors out, no model and no settings.

Every loss takes scores [U, K] (log-probs), U units of K scores: U completions of K tokens each, or of one score where
K = 1; advantages [U]; the weight of each score in the loss [U, K], 0 where a position is not scored; and the normalizer
that the sum is divided by, of the whole optimizer batch, so that micro-batches and ranks add up to one batch. Frozen
log-probs (`old_...`, `reference_...`) are constants: detach them.

    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0]])                      # one prompt, four completions
    advantages = unmask.functional.centered(rewards).flatten()          # [4]
    weights = completion_mask.float()                                   # [4, tokens]
    loss = unmask.functional.clipped_surrogate(logp, old_logp, advantages, weights, weights.sum(), epsilon=0.2)

Advantages take rewards [P, G], the G completions of each of P prompts. Divergences take scores [U, K] and give one
estimate for each. Likelihoods turn the log-probs of several masked rows into one score.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.objective.advantages import (
    PopulationZScore,
    bounded_z_score,
    centered,
    centered_per_state,
    difference_and_future,
    future_mean,
    leave_one_out,
    softmax_pair,
    softmax_positive,
    step_difference,
    z_score,
)
from unmask.objective.divergences import Penalty, k1, k2, k3
from unmask.objective.losses import CenteredRegression, ClippedSurrogate, Contrastive, PolicyGradient, Preference

__all__ = [
    "bounded_z_score",
    "centered",
    "centered_per_state",
    "centered_regression",
    "clip_ratio",
    "clipped_surrogate",
    "contrastive",
    "difference_and_future",
    "divergence_penalty",
    "future_mean",
    "k1",
    "k2",
    "k3",
    "leave_one_out",
    "policy_gradient",
    "population_z_score",
    "preference",
    "softmax_pair",
    "softmax_positive",
    "step_difference",
    "z_score",
]


def clipped_surrogate(
    logp: Float[Tensor, "U K"],
    old_logp: Float[Tensor, "U K"],
    advantages: Float[Tensor, "U"],
    weights: Float[Tensor, "U K"],
    normalizer: Float[Tensor, ""] | float,
    epsilon: float = 0.2,
) -> Float[Tensor, ""]:
    """-sum_uk w min(rho A, clip(rho, 1 ± epsilon) A) / normalizer, rho = exp(logp - old_logp) (PPO 1707.06347)."""
    return ClippedSurrogate(epsilon=epsilon)(logp, old_logp, advantages, weights, _scalar(normalizer, logp))


def clip_ratio(
    logp: Float[Tensor, "U K"],
    old_logp: Float[Tensor, "U K"],
    advantages: Float[Tensor, "U"],
    weights: Float[Tensor, "U K"],
    epsilon: float = 0.2,
) -> Float[Tensor, ""]:
    """Share of the scores with a weight whose gradient the clip of `clipped_surrogate` cuts off, from 0 to 1."""
    counted = weights > 0
    clipped = ClippedSurrogate(epsilon=epsilon).clipped(logp, old_logp, advantages) & counted
    return clipped.sum() / counted.sum().clamp(min=1)


def policy_gradient(
    logp: Float[Tensor, "U K"],
    advantages: Float[Tensor, "U"],
    weights: Float[Tensor, "U K"],
    normalizer: Float[Tensor, ""] | float,
) -> Float[Tensor, ""]:
    """-sum_uk w A logp / normalizer: no ratio, no clip (REINFORCE)."""
    return PolicyGradient()(logp, None, advantages, weights, _scalar(normalizer, logp))


def centered_regression(
    logp: Float[Tensor, "U K"],
    reference_logp: Float[Tensor, "U K"],
    advantages: Float[Tensor, "U"],
    weights: Float[Tensor, "U K"],
    normalizer: Float[Tensor, ""] | float,
    strength: float = 0.01,
) -> Float[Tensor, ""]:
    """-sum_u w (A - strength dhat) logp / normalizer, d = logp - reference_logp, dhat = d - mean of d (RSPO).

    arXiv 2605.10218. The bracket is detached; the mean is over the units given, which must be the whole
    optimizer batch. K = 1.
    """
    surrogate = CenteredRegression(strength=strength)
    final = surrogate.final_advantages(logp, reference_logp, advantages, torch.mean)
    return surrogate(logp, reference_logp, final, weights, _scalar(normalizer, logp))


def contrastive(
    logp: Float[Tensor, "U 2"],
    advantages: Float[Tensor, "U"],
    weights: Float[Tensor, "U 2"],
    normalizer: Float[Tensor, ""] | float,
) -> Float[Tensor, ""]:
    """-sum_u w (r logp_u0 + (1 - r) logp_u1) / normalizer, r = (1 + A) / 2 (LFPO 2603.01563).

    The two scores are those under logits pulled towards the policy (0) and mirrored away from it (1).
    """
    return Contrastive()(logp, None, advantages, weights, _scalar(normalizer, logp))


def preference(
    margin: Float[Tensor, "U K"],
    reference_margin: Float[Tensor, "U K"],
    weights: Float[Tensor, "U K"],
    normalizer: Float[Tensor, ""] | float,
    beta: float = 0.1,
) -> Float[Tensor, ""]:
    """-sum_uk w log sigmoid(beta (margin - reference_margin)) / normalizer (DPO 2305.18290).

    A margin is the log-prob of the chosen completion minus that of the rejected one, of one pair.
    """
    ones = torch.ones_like(margin[:, 0])
    return Preference(beta=beta)(margin, reference_margin, ones, weights, _scalar(normalizer, margin))


def divergence_penalty(
    logp: Float[Tensor, "U K"],
    other_logp: Float[Tensor, "U K"],
    weights: Float[Tensor, "U K"],
    normalizer: Float[Tensor, ""] | float,
    beta: float = 0.04,
) -> Float[Tensor, ""]:
    """beta sum_uk w k3(logp, other_logp) / normalizer: the KL term of a loss, to the reference or the old policy."""
    length = torch.ones_like(logp[:, 0], dtype=torch.long)
    return Penalty(estimate=k3, coefficient=beta)(logp, other_logp, weights, length, _scalar(normalizer, logp))


def population_z_score(
    rewards: Float[Tensor, "P G"], lowest: float = -float("inf"), highest: float = float("inf")
) -> Float[Tensor, "P G"]:
    """A = (r - mean) / population std of the group; 0 where its mean lies outside [lowest, highest] (TraceRL)."""
    return PopulationZScore(lowest=lowest, highest=highest)(rewards)


def _scalar(normalizer: Tensor | float, like: Tensor) -> Tensor:
    return torch.as_tensor(normalizer, dtype=like.dtype, device=like.device)
