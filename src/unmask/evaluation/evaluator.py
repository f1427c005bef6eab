"""Held-out measurement: a task's metrics, example by example, of completions by a sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, TypeVar

import torch

from unmask.data.examples import Examples, guess_texts, rollout_texts
from unmask.denoisers.base import Denoiser
from unmask.distributed import World
from unmask.distributed.sharding import gathered
from unmask.evaluation.statistics import pass_at, solved_summary
from unmask.report.progress import advance
from unmask.sampling.records import EveryStep, Record
from unmask.sampling.sampler import Sampler
from unmask.tasks import Task
from unmask.types import Rollout
from unmask.uniforms import Uniforms

Value = TypeVar("Value", float, bool, dict[str, float])
# (sampler, example of each completion, rollout, texts, whether each is solved)
Seen = Callable[[Sampler, list[int], Rollout, list[str], list[float]], None]


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Samples and scores held-out examples; draws are keyed by example, so two models are compared in pairs."""

    task: Task
    tokenizer: Any
    examples: Examples
    uniforms: Uniforms
    batch: int  # completions at a time
    device: Any = "cpu"
    precision: str = "fp32"  # fp32, or bf16 autocast
    world: World = field(default_factory=World.single)  # the ranks, which share the examples
    see: Seen | None = None  # shown each batch of completions that `metrics` has scored

    def metrics(self, denoiser: Denoiser, sampler: Sampler, count: int | None = None) -> dict[str, list[float]]:
        """By name, each of the task's metrics of the first `count` examples (None: all), one completion each.

        Of all ranks' examples. Nothing, and nothing is sampled, where the task compares no answers.
        """
        if not self.task.verifies:  # why sample?
            return {}
        found: list[tuple[int, dict[str, float]]] = []
        for indices, rollout in self.rollouts(denoiser, sampler, count=count):
            texts = rollout_texts(self.tokenizer, rollout, self.examples)
            scored = self.scored(indices, texts)
            if self.see is not None:
                self.see(sampler, indices, rollout, texts, scored["solved"])
            rows = [dict(zip(scored, values, strict=True)) for values in zip(*scored.values(), strict=True)]
            found += zip(indices, rows, strict=True)
        rows = self.in_order(found)
        return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}

    def rollouts(
        self,
        denoiser: Denoiser,
        sampler: Sampler,
        *,
        samples: int = 1,
        count: int | None = None,
        record: Record | None = None,
    ) -> Iterator[tuple[list[int], Rollout]]:
        """Batches of (example index of each completion, rollout): `samples` neighbouring completions an example.

        Of this rank's share of the first `count` examples, None for all. `record`: what the sampler is to record on the
        way. The phase that goes on (see report.progress) advances by the completions of a batch when the next is asked
        for.
        """
        was_training = denoiser.training
        denoiser.eval()
        chosen = list(range(len(self.examples.items)))[:count]
        with gathered(denoiser):
            for part, done in self.parts(chosen, max(1, self.batch // samples)):
                prompts = self.examples.prompts(part, samples, self.device)
                with self.autocast():
                    rollout = sampler(denoiser, prompts, self.uniforms, record=record, group_size=samples)
                yield [index for index in part for _ in range(samples)], rollout
                advance(done * samples)
        denoiser.train(was_training)

    def parts(self, indices: Sequence[int], each: int) -> Iterator[tuple[list[int], int]]:
        """This rank's share of the indices, `each` at a time, and how many all ranks are through with then."""
        size, share = self.world.size, indices[self.world.rank :: self.world.size]
        for start in range(0, len(share), each):
            part = list(share[start : start + each])
            yield part, min(len(indices), (start + len(part)) * size) - start * size

    def in_order(self, found: Sequence[tuple[int, Value]]) -> list[Value]:
        """What all ranks have found, each a number or names of numbers for an index, in the order of the indices."""
        pairs = [pair for rank in self.world.everyone(found) for pair in rank]
        return [value for _, value in sorted(pairs, key=lambda pair: pair[0])]

    def autocast(self) -> AbstractContextManager[None]:
        """Autocast to `precision`, in which the denoiser is to be called."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16")

    def scored(self, indices: Sequence[int], texts: list[str]) -> dict[str, list[float]]:
        """By name, the task's metrics of texts, one text for each index of an example."""
        prompts = [self.examples.items[index].prompt for index in indices]
        values = self.task.metrics(prompts, texts, **self.examples.columns(indices, 1))
        return {name: [float(value) for value in each] for name, each in values.items()}

    def over_denoised(self, indices: Sequence[int], rollout: Rollout, solved: Sequence[float]) -> list[bool]:
        """For each completion, whether its guess was right at some recorded step and its end is wrong.

        Over-denoising or "answer backslide" (MDPO 2508.13148). `solved`: the metric of the finished completions.
        """
        guesses = guess_texts(self.tokenizer, rollout, self.examples)
        each = len(guesses[0])
        rows = [text for texts in guesses for text in texts]
        right = self.scored([index for index in indices for _ in range(each)], rows)["solved"]
        ever = [max(right[start : start + each]) == 1.0 for start in range(0, len(right), each)]
        return [was and final < 1.0 for was, final in zip(ever, solved, strict=True)]


def mean_metrics(
    evaluator: Evaluator, denoiser: Denoiser, sampler: Sampler, samples: int = 1, *, over_denoising: bool = False
) -> dict[str, float]:
    """Means over the evaluator's examples, `samples` completions each, a row of the table of `unmask evaluate`.

    The task's metrics, the solve rate with its 95 % interval over examples, pass@2, 4, ... up to `samples`,
    tokens_a_step, and over_denoised where it is asked for. Raises UserError where the rule's steps cannot be recorded.
    """
    values: dict[str, list[float]] = {}
    record = EveryStep() if over_denoising else None
    for indices, rollout in evaluator.rollouts(denoiser, sampler, samples=samples, record=record):
        texts = rollout_texts(evaluator.tokenizer, rollout, evaluator.examples)
        scored = evaluator.scored(indices, texts) | {"tokens_a_step": tokens_a_step(rollout)}
        if over_denoising:
            scored["over_denoised"] = list(map(float, evaluator.over_denoised(indices, rollout, scored["solved"])))
        for name, numbers in scored.items():
            values.setdefault(name, []).extend(numbers)
    solved = values.pop("solved")
    groups = [solved[start : start + samples] for start in range(0, len(solved), samples)]
    row = solved_summary([sum(group) / samples for group in groups], samples)
    ks = [2**power for power in range(1, samples.bit_length()) if 2**power <= samples]
    row |= {f"pass@{k}": fmean(pass_at(k, round(sum(group)), samples) for group in groups) for k in ks}
    return row | {name: fmean(numbers) for name, numbers in values.items()}


def tokens_a_step(rollout: Rollout) -> list[float]:
    """For each sample, the positions that it drew a denoising step that revealed any: 1 is one at a time."""
    rows = zip(rollout.revealed_at_NL.tolist(), rollout.drawn_NL.tolist(), strict=True)
    drawn = [[step for step, is_drawn in zip(*row, strict=True) if is_drawn] for row in rows]
    if not rollout.remasking:
        return [len(steps) / len(set(steps)) for steps in drawn]
    length = rollout.tokens_NL.shape[1] - rollout.prompt_length
    return [len(steps) / (rollout.steps if len(steps) == length else max(steps) + 1) for steps in drawn]


@torch.no_grad()
def over_denoised_examples(evaluator: Evaluator, denoiser: Denoiser, sampler: Sampler) -> list[bool]:
    """For each of the evaluator's examples, whether its completion is over-denoised: see Evaluator.over_denoised."""
    flags: list[tuple[int, bool]] = []
    for indices, rollout in evaluator.rollouts(denoiser, sampler, record=EveryStep()):
        finals = rollout_texts(evaluator.tokenizer, rollout, evaluator.examples)
        solved = evaluator.scored(indices, finals)["solved"]
        flags += zip(indices, evaluator.over_denoised(indices, rollout, solved), strict=True)
    return evaluator.in_order(flags)
