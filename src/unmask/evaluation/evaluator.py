"""Held-out measurement: metrics per example under a sampler, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import fmean
from typing import Any

import torch

from unmask.data.examples import Examples, guess_texts, rollout_texts
from unmask.denoisers.base import Denoiser
from unmask.sampling.records import EveryStep, Record
from unmask.sampling.sampler import Sampler
from unmask.tasks import Task
from unmask.types import Rollout
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
    precision: str = "fp32"  # fp32, or bf16 autocast

    def metrics(self, denoiser: Denoiser, sampler: Sampler, count: int | None = None) -> dict[str, list[float]]:
        """Each of the task's metrics for each of the first `count` examples, one completion each."""
        values: dict[str, list[float]] = {}
        if not self.task.verifies:  # why sample?
            return values
        for indices, rollout in self.rollouts(denoiser, sampler, count=count):
            texts = rollout_texts(self.tokenizer, rollout, self.examples)
            for name, numbers in self.scored(indices, texts).items():
                values.setdefault(name, []).extend(numbers)
        return values

    def rollouts(
        self,
        denoiser: Denoiser,
        sampler: Sampler,
        *,
        samples: int = 1,
        count: int | None = None,
        record: Record | None = None,
    ) -> Iterator[tuple[list[int], Rollout]]:
        """Completions of the first `count` examples, `samples` each as neighbours, with the examples' indices."""
        was_training = denoiser.training
        denoiser.eval()
        wanted = list(range(len(self.examples.items)))[:count]
        each = max(1, self.batch // samples)
        for start in range(0, len(wanted), each):
            part = wanted[start : start + each]
            prompts = self.examples.prompts(part, samples, self.device)
            with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16"):
                rollout = sampler(denoiser, prompts, self.uniforms, record=record, group_size=samples)
            yield [index for index in part for _ in range(samples)], rollout
        denoiser.train(was_training)

    def scored(self, indices: Sequence[int], texts: list[str]) -> dict[str, list[float]]:
        """The task's metrics of texts, one for each index of an example."""
        prompts = [self.examples.items[index].prompt for index in indices]
        return self.task.metrics(prompts, texts, **self.examples.columns(indices, 1))

    def slid_back(self, indices: Sequence[int], rollout: Rollout, solved: Sequence[float]) -> list[bool]:
        """Completions whose recorded guess was right at some step, and which are wrong at the end.

        "Answer backslide" or over-denoising, MDPO 2508.13148.
        """
        guesses = guess_texts(self.tokenizer, rollout, self.examples)
        each = len(guesses[0])
        rows = [text for texts in guesses for text in texts]
        right = self.scored([index for index in indices for _ in range(each)], rows)["solved"]
        ever = [max(right[start : start + each]) == 1.0 for start in range(0, len(right), each)]
        return [was and final < 1.0 for was, final in zip(ever, solved, strict=True)]


def solved_summary(solved: Sequence[float]) -> dict[str, float]:
    """Solve rate with its 95 % interval."""
    low, high = wilson_interval(sum(solved), len(solved))
    return {"solved": sum(solved) / len(solved), "solved_low": low, "solved_high": high}


def pass_at(k: int, right: int, samples: int) -> float:
    """1 - C(n-c, k) / C(n, k): the chance that one of k out of n samples is right, c of them being so (2107.03374)."""
    return 1 - comb(samples - right, k) / comb(samples, k)


def measured(
    evaluator: Evaluator, denoiser: Denoiser, sampler: Sampler, samples: int = 1, *, over_denoising: bool = False
) -> dict[str, float]:
    """Means over the examples: the task's metrics, pass@1, 2, 4... of `samples`, tokens a step, over-denoising.

    The interval of the solve rate is over examples. Raises UserError where the rule's steps cannot be recorded.
    """
    values: dict[str, list[float]] = {}
    record = EveryStep() if over_denoising else None
    for indices, rollout in evaluator.rollouts(denoiser, sampler, samples=samples, record=record):
        texts = rollout_texts(evaluator.tokenizer, rollout, evaluator.examples)
        scored = evaluator.scored(indices, texts) | {"tokens_a_step": tokens_a_step(rollout)}
        if over_denoising:
            scored["over_denoised"] = list(map(float, evaluator.slid_back(indices, rollout, scored["solved"])))
        for name, numbers in scored.items():
            values.setdefault(name, []).extend(numbers)
    solved = values.pop("solved")
    groups = [solved[start : start + samples] for start in range(0, len(solved), samples)]
    row = solved_summary([sum(group) / samples for group in groups])
    ks = [2**power for power in range(1, samples.bit_length()) if 2**power <= samples]
    row |= {f"pass@{k}": fmean(pass_at(k, round(sum(group)), samples) for group in groups) for k in ks}
    return row | {name: fmean(numbers) for name, numbers in values.items()}


def tokens_a_step(rollout: Rollout) -> list[float]:
    """Completion positions for each denoising step in which the sample got some: what a parallel rule gains."""
    steps_NC = rollout.revealed_at_NL[:, rollout.prompt_length :]
    length = steps_NC.shape[1]
    if rollout.remasking:
        return [length / rollout.steps] * len(steps_NC)
    return [length / len(set(row)) for row in steps_NC.tolist()]


@torch.no_grad()
def over_denoised(evaluator: Evaluator, denoiser: Denoiser, sampler: Sampler) -> list[bool]:
    """Examples of the evaluator right at some greedy intermediate guess and wrong at the end."""
    flags: list[bool] = []
    for indices, rollout in evaluator.rollouts(denoiser, sampler, record=EveryStep()):
        finals = rollout_texts(evaluator.tokenizer, rollout, evaluator.examples)
        flags += evaluator.slid_back(indices, rollout, evaluator.scored(indices, finals)["solved"])
    return flags
