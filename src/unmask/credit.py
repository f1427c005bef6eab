"""Credit: from rewards to advantages of the same shape. Groups lie along dimension 1 (G); nothing crosses prompts."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

STD_EPSILON = 1e-4


def centered(rewards: Float[Tensor, "P G *rest"]) -> Float[Tensor, "P G *rest"]:
    """A = r - mean of the group (d1 2504.12216)."""
    return rewards - rewards.mean(dim=1, keepdim=True)


def z_score(rewards: Float[Tensor, "P G *rest"]) -> Float[Tensor, "P G *rest"]:
    """A = (r - mean) / (std + 1e-4) over the group, unbiased std (GRPO 2402.03300)."""
    if rewards.shape[1] == 1:
        return torch.zeros_like(rewards)
    return centered(rewards) / (rewards.std(dim=1, keepdim=True) + STD_EPSILON)


def centered_per_state(rewards: Float[Tensor, "P G Z"]) -> Float[Tensor, "P G Z"]:
    """A_z = R_z - mean over the Z branches of that one state (DiSPO 2602.06462)."""
    return rewards - rewards.mean(dim=2, keepdim=True)


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
