"""The metric history of the collapse monitor, in plain numbers that a checkpoint can hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

WINDOW_STEPS = 10
FAST_WINDOW_STEPS = 5
SLOW_WINDOW_STEPS = 20
NOISE_WINDOW_STEPS = 50


@dataclass(kw_only=True)
class MetricsHistory:
    """First and latest values of each metric, and exponential means of the reward."""

    steps: int = 0
    rewards: int = 0
    fast_reward: float = 0.0
    slow_reward: float = 0.0
    best_reward: float = 0.0
    last_reward: float = 0.0
    reward_variance: float = 0.0
    mean_reward_variance: float = 0.0
    first: dict[str, list[float]] = field(default_factory=dict)
    recent: dict[str, list[float]] = field(default_factory=dict)
    warned_at: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    mean_squares: dict[str, float] = field(default_factory=dict)

    def add(self, metrics: Mapping[str, Any], names: Iterable[str]) -> None:
        """Add the finite ones among the named metrics of one training step."""
        self.steps += 1
        for name in names:
            value = finite_number(metrics, name)
            if value is None:
                continue
            self.counts[name] = count = self.counts.get(name, 0) + 1
            mean_square = self.mean_squares.get(name, 0.0)
            self.mean_squares[name] = mean_square + (value**2 - mean_square) / count
            first = self.first.setdefault(name, [])
            if len(first) < WINDOW_STEPS:
                first.append(value)
            self.recent[name] = [*self.recent.get(name, []), value][-WINDOW_STEPS:]
            if name == "reward":
                self._add_reward(value)

    def start(self, name: str) -> float | None:
        """Mean over the first 10 values; None before there are that many."""
        first = self.first.get(name, [])
        return fmean(first) if len(first) == WINDOW_STEPS else None

    def lately(self, name: str, steps: int = WINDOW_STEPS) -> float:
        """Mean over the last `steps` values; 0 before there are that many."""
        recent = self.recent.get(name, [])[-steps:]
        return fmean(recent) if len(recent) == steps else 0.0

    def root_mean_square(self, name: str) -> float:
        """Root of the mean square of all values; 0 before there is one."""
        return math.sqrt(self.mean_squares.get(name, 0.0))

    def _add_reward(self, reward: float) -> None:
        self.rewards += 1
        self.fast_reward = exponential_mean(self.fast_reward, reward, self.rewards, FAST_WINDOW_STEPS)
        self.slow_reward = exponential_mean(self.slow_reward, reward, self.rewards, SLOW_WINDOW_STEPS)
        if self.rewards > 1:
            # Neighbouring rewards differ by noise; the run's trend hardly shows between two steps.
            variance = (reward - self.last_reward) ** 2 / 2
            count = self.rewards - 1
            self.mean_reward_variance += (variance - self.mean_reward_variance) / count
            self.reward_variance = exponential_mean(self.reward_variance, variance, count, NOISE_WINDOW_STEPS)
        self.last_reward = reward
        # A mean of only a few rewards is too noisy to count as the best.
        if self.rewards >= WINDOW_STEPS:
            self.best_reward = max(self.best_reward, self.slow_reward)


def exponential_mean(mean: float, value: float, count: int, window: int) -> float:
    """The exponential moving average after its `count`-th value; a plain mean until the window is full."""
    return mean + (value - mean) * max(1 / count, 2 / (window + 1))


def finite_number(metrics: Mapping[str, Any], name: str) -> float | None:
    """The named metric as a float, or None where it is missing, null or not finite."""
    value = metrics.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
