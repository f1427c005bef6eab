"""The settings of a training run from Python: one flat table, with TRL's words where TRL has one. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from unmask.data.chat import ChatSettings
from unmask.settings.recipe import EvaluationSettings, ReportSettings, RewardSettings, RolloutSettings, TrainSettings


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(TrainSettings):
    """How a model is trained: every `--train.` flag of the command by its own word, and those of other tables below.

    A flag's table comes before its word here: `--evaluation.examples` is `evaluation_examples`. What says how
    completions are sampled is the `Sampler`'s, what is optimised the method's.

        args = unmask.TrainingConfig(max_steps=300, num_generations=8, learning_rate=1e-5, reward_weights=[1.0, 0.2])
    """

    output_dir: str | Path | None = None  # a new directory for the run; None: runs/METHOD-TASK-NNN
    prompts: int = RolloutSettings.prompts
    num_generations: int = RolloutSettings.num_generations
    max_completion_length: int | None = None  # the sampler's max_new_tokens, by TRL's word
    reward_weights: Sequence[float] | str | None = None
    reward_batch: int = RewardSettings.batch
    reward_timeout_seconds: float = RewardSettings.timeout_seconds
    reward_retries: int = RewardSettings.retries
    reward_on_fault: str = RewardSettings.on_fault
    evaluation_examples: int = EvaluationSettings.examples
    evaluation_examples_during: int = EvaluationSettings.examples_during
    evaluation_greedy_steps: int = EvaluationSettings.greedy_steps
    evaluation_batch: int = EvaluationSettings.batch
    evaluation_seed: int = EvaluationSettings.seed
    chat_template: str = ChatSettings.template
    chat_system: str | None = ChatSettings.system
    chat_prefill: str = ChatSettings.prefill
    report_every: int = ReportSettings.every
    report_prompts: int = ReportSettings.prompts
    track: str = ""  # trackers by commas: wandb, tensorboard, trackio, mlflow

    def train_settings(self) -> TrainSettings:
        """The table [train] of a recipe."""
        return TrainSettings(**{each.name: getattr(self, each.name) for each in fields(TrainSettings)})

    def table(self, prefix: str, settings: type[Any]) -> dict[str, Any]:
        """The fields of another table by their own names: those here that begin with its name."""
        names = (each.name for each in fields(settings))
        return {name: getattr(self, f"{prefix}_{name}") for name in names if hasattr(self, f"{prefix}_{name}")}
