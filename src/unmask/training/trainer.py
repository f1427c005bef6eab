"""The training loop: prompts, their completions and rewards, optimizer updates. It knows no method."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unmask.data.tokenization import token_names
from unmask.evaluation.evaluator import Evaluator
from unmask.evaluation.statistics import solved_summary
from unmask.objective.objective import Objective, UpdateBatch
from unmask.report.progress import doing, message
from unmask.rewards.functions import NotFiniteError
from unmask.sampling.sampler import Sampler
from unmask.settings.recipe import Recipe
from unmask.training.recording import Recorder
from unmask.training.skipping import unusable
from unmask.training.sources import Experience, Source
from unmask.training.update import Updater
from unmask.uniforms import Uniforms

_SKIPPED = {"loss": math.nan, "grad_norm": math.nan, "skipped": 1.0}  # metrics of an update that was not made


@dataclass(kw_only=True)
class Trainer:
    """Trains an objective on completions of a source; `step` is one batch of completions and its optimizer updates."""

    recipe: Recipe
    updater: Updater
    tokenizer: Any
    source: Source
    order: list[int]  # examples that are trained on
    sampler: Sampler
    uniforms: Uniforms
    evaluators: dict[str, Evaluator]  # by held-out split, "test" first
    recorder: Recorder | None = None  # of what the run's page shows
    part_seconds: dict[str, float] = field(default_factory=dict)  # of the last step's parts, by their names

    @property
    def objective(self) -> Objective:
        """The loss, with the model that is trained, its frozen policies and the ranks."""
        return self.updater.objective

    def record_to(self, run: Path) -> None:
        """Have recorded in a run what its page shows, as far as the recipe wants that."""
        if self.recipe.report.prompts:
            self.recorder = Recorder(
                run=run,
                recipe=self.recipe,
                tokenizer=self.tokenizer,
                terms=self.objective.terms,
                examples=self.source.examples,
                world=self.objective.world,
            )

    def step(self, step: int) -> tuple[dict[str, float], dict[str, Any]]:
        """Training step number `step` (from 0): metrics (means over its updates), and the first prompt's group.

        The group on the first rank alone.
        """
        settings = self.recipe.train
        uniforms = self.uniforms.key("iteration", step)
        numbers = self.source.examples.numbered(self._prompts_of(step))
        doing("sampling")
        rate = settings.learning_rate_at(step)
        self.part_seconds = {}
        try:
            with self._timed("rollout"):
                experience = self.source(self.objective.denoiser, numbers, uniforms)
        except NotFiniteError as error:
            message(f"step {step + 1}: {error}")
            return {"reward": math.nan, "learning_rate": rate, **_SKIPPED}, {}
        doing("updates")
        prepared = self._prepared(experience, uniforms)
        with self._timed("update"):
            updates = [self.updater.update(update_batches, rate) for update_batches in prepared] or [_SKIPPED]
        if self.recorder is not None and self.recorder.is_due(step + 1):
            with self._timed("record"):
                self.recorder.write_step(step + 1, numbers, experience, prepared[0] if prepared else [])
        if settings.ref_model_sync_steps and (step + 1) % settings.ref_model_sync_steps == 0:
            self.updater.sync_reference(settings.ref_model_mixup_alpha)
        metrics = _means(updates)
        index = self.source.examples.indices(numbers)[0]
        shown = self._sample(experience, index) if self.objective.world.is_main else {}
        return metrics | {"learning_rate": rate} | experience.metrics, shown

    def _prepared(self, experience: Experience, uniforms: Uniforms) -> list[list[UpdateBatch]]:
        """What each optimizer update on a batch of completions trains on; none where a number of it is not finite."""
        if unusable(experience.metrics):
            return []
        iterations = self.recipe.train.num_iterations
        with self._timed("scoring"):
            return self.objective.prepare(experience.rollout, experience.term_rewards, uniforms, iterations)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        """Keep the seconds that a part of the step takes; the device, for which nothing waits, may be behind."""
        begin_seconds = time.monotonic()
        yield
        self.part_seconds[part] = time.monotonic() - begin_seconds

    def _prompts_of(self, step: int) -> list[int]:
        """The step's examples: epochs of a keyed order."""
        count, size = self.recipe.rollout.prompts, len(self.order)
        chosen = []
        for place in range(step * count, (step + 1) * count):
            epoch = self.uniforms.key("epoch", place // size)
            chosen.append(self.order[_permutation(epoch, size)[place % size]])
        return chosen

    def _sample(self, experience: Experience, index: int) -> dict[str, Any]:
        """The first prompt's group, with the step that revealed each token."""
        rollout = experience.rollout
        group = (slice(rollout.group_size), slice(rollout.prompt_length, None))
        tokens = [token_names(self.tokenizer, row) for row in rollout.tokens_NL[group].tolist()]
        first = slice(rollout.group_size)
        columns = (experience.texts[first], experience.reward_N[first].tolist(), tokens)
        revealed_at = rollout.revealed_at_NL[group].tolist()
        return {
            "prompt": self.source.examples.items[index].prompt,
            "completions": [
                {"text": text, "reward": reward, "tokens": words, "revealed_at": steps}
                for text, reward, words, steps in zip(*columns, revealed_at, strict=True)
            ],
        }

    def evaluation(self, count: int) -> dict[str, list[float]]:
        """Values of the first `count` test examples, one each, by "NAME/METRIC"."""
        evaluator = replace(self.evaluators["test"], see=None if self.recorder is None else self.recorder.see)
        return self.source.evaluation(self.objective.denoiser, evaluator, count)

    def evaluation_size(self, count: int, *, further: bool) -> int:
        """Completions that `evaluation` goes through, and with `further` those of `further_evaluation` too."""
        sizes = {split: len(evaluator.examples.items) for split, evaluator in self.evaluators.items()}
        size = self.source.evaluation_passes * min(count, sizes.pop("test"))
        return size + (sum(sizes.values()) if further and self.recipe.task.verifies else 0)

    def further_evaluation(self) -> dict[str, list[float]]:
        """Values of the task's further held-out splits by "SPLIT/METRIC", sampled as in training."""
        return {
            f"{split}/{metric}": values
            for split, evaluator in self.evaluators.items()
            if split != "test"
            for metric, values in evaluator.metrics(self.objective.denoiser, self.sampler).items()
        }


def _means(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of metrics over the updates that have them: one in which no rank had a unit to train has fewer."""
    found: dict[str, list[float]] = {}
    for update in updates:
        for name, value in update.items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


_PERMUTATIONS: dict[Any, list[int]] = {}


def _permutation(key: Uniforms, size: int) -> list[int]:
    """A keyed permutation, the last one remembered."""
    if (key, size) not in _PERMUTATIONS:
        _PERMUTATIONS.clear()
        _PERMUTATIONS[key, size] = key.permutation(size)
    return _PERMUTATIONS[key, size]


def evaluation_row(values: dict[str, list[float]]) -> dict[str, float]:
    """A line of metrics.jsonl: means of an evaluation's values, and 95 % intervals of solve rates."""
    row: dict[str, float] = {}
    for name, numbers in values.items():
        if name.endswith("/solved"):
            prefix = "eval/" + name.removesuffix("solved")
            row |= {prefix + key: value for key, value in solved_summary(numbers).items()}
        else:
            row[f"eval/{name}"] = sum(numbers) / len(numbers)
    return row
