"""Advantages: functions of the rewards, of the same shape. Groups lie along dimension 1; nothing crosses prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

STD_EPSILON = 1e-4


def _centered(rewards: Tensor, dim: int) -> Tensor:
    # A rounded mean of equal rewards would leave advantage, and forwards, to noise.
    varied = rewards.amax(dim, keepdim=True) > rewards.amin(dim, keepdim=True)
    return torch.where(varied, rewards - rewards.mean(dim, keepdim=True), 0.0)


def centered(rewards: Float[Tensor, "P G *rest"]) -> Float[Tensor, "P G *rest"]:
    """A = r - mean of the group, exactly 0 where its rewards are equal (d1 2504.12216)."""
    return _centered(rewards, dim=1)


def z_score(rewards: Float[Tensor, "P G *rest"]) -> Float[Tensor, "P G *rest"]:
    """A = (r - mean) / (std + 1e-4) over the group, unbiased std (GRPO 2402.03300)."""
    if rewards.shape[1] == 1:
        return torch.zeros_like(rewards)
    return centered(rewards) / (rewards.std(dim=1, keepdim=True) + STD_EPSILON)


def leave_one_out(rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """A = r - mean of the others in the group = G/(G-1) (r - mean) (RLOO 2402.14740)."""
    return centered(rewards) * rewards.shape[1] / (rewards.shape[1] - 1)


def softmax_pair(rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """G (softmax(A) - softmax(-A)) over the group, A centered (wd1 2507.08838).

    Times G, so that the mean over samples is the mean over groups of the published sums.
    """
    advantage = centered(rewards)
    return rewards.shape[1] * (advantage.softmax(1) - (-advantage).softmax(1))


def softmax_positive(rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """G softmax(A) over the group, A centered: equal rewards keep equal weights (wd1-P 2507.08838)."""
    return rewards.shape[1] * centered(rewards).softmax(1)


def bounded_z_score(rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """The z-score, clipped to [-1, 1] (LFPO 2603.01563)."""
    return z_score(rewards).clamp(-1, 1)


def as_given(rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """The rewards themselves (preference pairs)."""
    return rewards


@dataclass(frozen=True, kw_only=True)
class PopulationZScore:
    """A = (r - mean) / population std, no epsilon; 0 where std is 0 or the mean outside [lowest, highest] (TraceRL)."""

    lowest: float = -float("inf")
    highest: float = float("inf")

    def __call__(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        advantage, mean_P1 = centered(rewards), rewards.mean(1, keepdim=True)
        std_P1 = advantage.square().mean(1, keepdim=True).sqrt()
        kept_P1 = (mean_P1 >= self.lowest) & (mean_P1 <= self.highest)
        return torch.where(kept_P1, advantage / torch.where(std_P1 > 0, std_P1, 1.0), 0.0)


def centered_per_state(rewards: Float[Tensor, "P G Z"]) -> Float[Tensor, "P G Z"]:
    """A_z = R_z - mean over the Z branches of that one state (DiSPO 2602.06462)."""
    return _centered(rewards, dim=2)


@dataclass(frozen=True, kw_only=True)
class ZScoreOf:
    """A_s = z-score over the group of `score`, which turns the rewards of the guesses into one number a step (MDPO)."""

    score: Callable[[Tensor], Tensor]

    def __call__(self, rewards: Float[Tensor, "P G S"]) -> Float[Tensor, "P G S"]:
        return z_score(self.score(rewards))


def step_outcome(rewards: Float[Tensor, "P G S"]) -> Float[Tensor, "P G S"]:
    """S_s = r_last: the outcome for every step (ablation of MDPO)."""
    return rewards[..., -1:].expand_as(rewards)


def step_reward(rewards: Float[Tensor, "P G S"]) -> Float[Tensor, "P G S"]:
    """S_s = r_s: the reward of the step's own guess (ablation of MDPO)."""
    return rewards


def step_difference(rewards: Float[Tensor, "P G S"]) -> Float[Tensor, "P G S"]:
    """S_s = r_s - r_{s-1}, with r_{-1} = 0 (ablation of MDPO)."""
    return rewards.diff(dim=2, prepend=torch.zeros_like(rewards[..., :1]))


def _mean_from(rewards: Float[Tensor, "P G S"]) -> Float[Tensor, "P G S"]:
    """mean over u >= s of r_u."""
    sums = rewards.flip(2).cumsum(2).flip(2)
    return sums / torch.arange(rewards.shape[2], 0, -1, device=rewards.device)


def future_mean(rewards: Float[Tensor, "P G S"]) -> Float[Tensor, "P G S"]:
    """S_s = mean over u >= s of r_u (ablation of MDPO)."""
    return _mean_from(rewards)


def difference_and_future(rewards: Float[Tensor, "P G S"]) -> Float[Tensor, "P G S"]:
    """S_s = (r_s - r_{s-1}) + mean over u > s of r_u; r_last in its place in the last step (MDPO 2508.13148)."""
    following = torch.cat([_mean_from(rewards)[..., 1:], rewards[..., -1:]], dim=2)
    return step_difference(rewards) + following


STEP_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "difference_and_future": difference_and_future,
    "future_mean": future_mean,
    "step_difference": step_difference,
    "step_reward": step_reward,
    "step_outcome": step_outcome,
}
