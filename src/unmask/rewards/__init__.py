"""Reward functions of the user's own beside the task's: found, called, weighed, remembered. See docs/rewards.md."""

from __future__ import annotations

from unmask.rewards.functions import RewardFunction, cached
from unmask.rewards.load import load_functions
from unmask.rewards.scoring import Rewards

__all__ = ["RewardFunction", "Rewards", "cached", "load_functions"]
