"""Reward functions, the task's and the user's own: loading, calling, weighting, caching. See docs/rewards.md."""

from __future__ import annotations

from unmask.rewards.functions import RewardFunction, cached
from unmask.rewards.load import load_functions
from unmask.rewards.scoring import Rewards

__all__ = ["RewardFunction", "Rewards", "cached", "load_functions"]
