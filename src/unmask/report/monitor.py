"""Warnings of collapse while a run can still be saved: what is seen, the figures, and what to change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict
from typing import Any

from unmask.report.history import FAST_WINDOW_STEPS, WINDOW_STEPS, MetricsHistory, finite_number

QUIET_STEPS = 50
REWARD_DROP = 0.8
# Above 5.5 standard errors noise was told in 1 of 2,400 runs of 200 steps of constant mean: rewards of 0 or 1, means
# 0.01 to 0.5, 1 to 32 prompts of 4 or 8 completions, alike or uneven. A fall from 50 % to nothing within 20 steps is
# still told before its half.
REWARD_DROP_STANDARD_ERRORS = 5.5
ZERO_STD_LIMIT = 0.9
ENTROPY_LOW = 0.1
ENTROPY_HIGH = 2.5
VALID_DROP = 0.5
CLIP_RATIO_LIMIT = 0.5
APPROX_KL_LIMIT = 0.1

_VALID = "completions/valid_fraction"
_ZERO_STD = "frac_reward_zero_std"
_CLIP_RATIO = "clip_ratio/region_mean"
_STANDARD_ERROR = "reward_stderr"
_FOLLOWED = ("reward", _STANDARD_ERROR, "entropy", _VALID, _ZERO_STD, _CLIP_RATIO, "approx_kl")


class CollapseMonitor:
    """Follows the training metrics and warns of collapse, of each kind at most once in 50 steps."""

    def __init__(self) -> None:
        self._history = MetricsHistory()

    def update(self, metrics: Mapping[str, Any]) -> list[str]:
        """Add the metrics of one training step; returns the warnings that they cause."""
        history = self._history
        history.add(metrics, _FOLLOWED)
        warnings = []
        for kind, rule in _RULES.items():
            if history.steps - history.warned_at.get(kind, -QUIET_STEPS) < QUIET_STEPS:
                continue
            if (warning := rule(history, metrics)) is not None:
                history.warned_at[kind] = history.steps
                warnings.append(warning)
        return warnings

    def state(self) -> dict[str, object]:
        """The state as plain numbers, lists and dicts, for a checkpoint."""
        return asdict(self._history)

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self._history = MetricsHistory(**deepcopy(dict(state)))


def fast_standard_error(reward_stderr: float) -> float:
    """Standard error of the fast exponential mean, from that of a single step's reward."""
    # An exponential mean of weight a has the variance a / (2 - a) of one value: 1 / window.
    return reward_stderr / math.sqrt(FAST_WINDOW_STEPS)


def reward_collapses(fast: float, best: float, standard_error: float) -> bool:
    """Whether the recent reward is below its best by much more than noise explains.

    A best that is not positive has no share to lose and never counts as a collapse.
    """
    return best > 0 and fast < min(REWARD_DROP * best, best - REWARD_DROP_STANDARD_ERRORS * standard_error)


def _lower_rate(metrics: Mapping[str, Any]) -> str:
    rate = finite_number(metrics, "learning_rate")
    if not rate:
        return "lower learning_rate to a half or a third"
    return f"lower learning_rate from {rate:.2g} to {rate / 2:.2g} or {rate / 3:.2g}"


def _reward_falls(history: MetricsHistory, metrics: Mapping[str, Any]) -> str | None:
    # The figure of a few steps is itself noise: where rewards are rare, a batch that is all wrong looks certain.
    told = max(history.lately(_STANDARD_ERROR), history.root_mean_square(_STANDARD_ERROR))
    stderr = told or math.sqrt(max(history.reward_variance, history.mean_reward_variance))
    fast, best = history.fast_reward, history.best_reward
    if not reward_collapses(fast, best, fast_standard_error(stderr)):
        return None
    return (
        f"reward is collapsing: {fast:.3f} over the last {FAST_WINDOW_STEPS} steps, "
        f"{fast / best:.0%} of its best {best:.3f}; {_lower_rate(metrics)}, or take more prompts per step"
    )


def _groups_equal(history: MetricsHistory, _: Mapping[str, Any]) -> str | None:
    if (share := history.lately(_ZERO_STD)) <= ZERO_STD_LIMIT:
        return None
    mend = "give harder tasks" if history.lately("reward") > 0.5 else "give easier tasks"
    return (
        f"{share:.0%} of the groups have equal rewards over the last {WINDOW_STEPS} steps and teach nothing; "
        f"raise temperature, sample more completions per prompt, or {mend}"
    )


def _entropy_low(history: MetricsHistory, metrics: Mapping[str, Any]) -> str | None:
    start, now = history.start("entropy"), history.lately("entropy", FAST_WINDOW_STEPS)
    if start is None or now >= ENTROPY_LOW * start:
        return None
    return (
        f"entropy collapsed: {now:.3g}, it began at {start:.3g}, so samples hardly differ; "
        f"raise temperature or the KL weight, or {_lower_rate(metrics)}"
    )


def _entropy_high(history: MetricsHistory, metrics: Mapping[str, Any]) -> str | None:
    start, now = history.start("entropy"), history.lately("entropy", FAST_WINDOW_STEPS)
    reward = history.start("reward")
    if start is None or reward is None or now <= ENTROPY_HIGH * start or history.fast_reward >= reward:
        return None
    return (
        f"entropy exploded: {now:.3g}, it began at {start:.3g}, while the reward fell from {reward:.3f} "
        f"to {history.fast_reward:.3f}; {_lower_rate(metrics)}, or lower temperature"
    )


def _format_lost(history: MetricsHistory, metrics: Mapping[str, Any]) -> str | None:
    start, now = history.start(_VALID), history.lately(_VALID, FAST_WINDOW_STEPS)
    if start is None or now >= VALID_DROP * start:
        return None
    return (
        f"format lost: {now:.0%} of the completions are valid, {start:.0%} were at first; "
        f"{_lower_rate(metrics)}, or reward the format"
    )


def _step_too_long(name: str, limit: float) -> Callable[[MetricsHistory, Mapping[str, Any]], str | None]:
    def rule(history: MetricsHistory, metrics: Mapping[str, Any]) -> str | None:
        if (mean := history.lately(name)) <= limit:
            return None
        return (
            f"{name} is {mean:.2g} over the last {WINDOW_STEPS} steps, above {limit}: each update moves the "
            f"policy too far; {_lower_rate(metrics)}, or make fewer updates per batch"
        )

    return rule


_RULES: dict[str, Callable[[MetricsHistory, Mapping[str, Any]], str | None]] = {
    "reward": _reward_falls,
    "equal groups": _groups_equal,
    "entropy low": _entropy_low,
    "entropy high": _entropy_high,
    "format": _format_lost,
    _CLIP_RATIO: _step_too_long(_CLIP_RATIO, CLIP_RATIO_LIMIT),
    "approx_kl": _step_too_long("approx_kl", APPROX_KL_LIMIT),
}
