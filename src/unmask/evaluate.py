"""Held-out measurement: metrics per example under a sampler, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch

from unmask.data import Examples, guess_texts, rollout_texts
from unmask.denoisers.base import Denoiser
from unmask.records import EveryStep
from unmask.sampling import Sampler
from unmask.tasks import Task
from unmask.tasks.base import verifies
from unmask.uniforms import Uniforms

Z_95 = 1.959963984540054


def wilson_interval(successes: float, count: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    rate, z2 = successes / count, Z_95**2 / count
    centre, half = rate + z2 / 2, Z_95 * sqrt(rate * (1 - rate) / count + z2 / (4 * count))
    return max(0.0, (centre - half) / (1 + z2)), min(1.0, (centre + half) / (1 + z2))


def paired_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """Mean gain of the same examples, and its 95 % interval."""
    gains = [late - early for early, late in zip(before, after, strict=True)]
    mean = sum(gains) / len(gains)
    variance = sum((gain - mean) ** 2 for gain in gains) / max(1, len(gains) - 1)
    half = Z_95 * sqrt(variance / len(gains))
    return mean, mean - half, mean + half


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Held-out examples and how they are scored; draws are keyed by example, so two policies are compared in pairs."""

    task: Task
    tokenizer: Any
    examples: Examples
    uniforms: Uniforms
    batch: int
    device: Any = "cpu"

    def metrics(self, denoiser: Denoiser, sampler: Sampler, count: int | None = None) -> dict[str, list[float]]:
        """Each of the task's metrics for each of the first `count` examples, one completion each."""
        if not verifies(self.task):  # why sample?
            return {}
        was_training = denoiser.training
        denoiser.eval()
        indices = list(range(len(self.examples.items)))[:count]
        values: dict[str, list[float]] = {}
        for start in range(0, len(indices), self.batch):
            part = indices[start : start + self.batch]
            rollout = sampler(denoiser, self.examples.prompts(part, 1, self.device), self.uniforms)
            texts = rollout_texts(self.tokenizer, rollout, self.examples)
            prompts = [self.examples.items[index].prompt for index in part]
            scored = self.task.metrics(prompts, texts, **self.examples.columns(part, 1))
            for name, numbers in scored.items():
                values.setdefault(name, []).extend(numbers)
        denoiser.train(was_training)
        return values


def solved_summary(solved: Sequence[float]) -> dict[str, float]:
    """Solve rate with its 95 % interval."""
    low, high = wilson_interval(sum(solved), len(solved))
    return {"solved": sum(solved) / len(solved), "solved_low": low, "solved_high": high}


@torch.no_grad()
def over_denoised(
    denoiser: Denoiser,
    tokenizer: Any,
    task: Task,
    examples: Examples,
    sampler: Sampler,
    batch: int,
    device: Any = "cpu",
) -> list[bool]:
    """Examples right at some greedy intermediate guess and wrong at the end ("answer backslide", MDPO 2508.13148)."""
    flags: list[bool] = []
    for start in range(0, len(examples.items), batch):
        part = list(range(len(examples.items)))[start : start + batch]
        rollout = sampler(denoiser, examples.prompts(part, 1, device), Uniforms(), record=EveryStep())
        guesses = guess_texts(tokenizer, rollout, examples)
        finals = rollout_texts(tokenizer, rollout, examples)
        for index, texts, final in zip(part, guesses, finals, strict=True):
            rows = [*texts, final]
            item = examples.items[index]
            rewards = task.rewards([item.prompt] * len(rows), rows, **examples.columns([index], len(rows)))
            flags.append(max(rewards[:-1]) == 1.0 and rewards[-1] < 1.0)
    return flags
