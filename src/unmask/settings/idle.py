"""Settings that others make idle: a flag that would be accepted and never read is refused by name. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from unmask.errors import UserError
from unmask.settings.reader import flag_of

if TYPE_CHECKING:
    from unmask.settings.commands import PretrainRecipe
    from unmask.settings.recipe import Recipe

_GIVEN_PAIRS = "the task gives pairs of completions, nothing is sampled or rewarded"
_SAMPLING = ("group_size", "block_length", "steps", "temperature", "guidance_scale", "stop_at_end", "schedule")
_NO_ADAPTERS = "there are no adapters with lora_rank 0"


def idle_in_recipe(recipe: Recipe) -> dict[str, str]:
    """Paths of settings, or of tables of them, that a training run does not read, and why."""
    train = recipe.train
    idle: dict[str, str] = {}
    if recipe.task.gives_pairs:
        sampling = [f"rollout.{name}" for name in (*_SAMPLING, "unmasking", "batch", "caching")]
        other = ("reward", "train.shuffle_rewards", "train.over_denoising_filter", "evaluation.greedy_steps")
        idle |= dict.fromkeys((*sampling, *other), _GIVEN_PAIRS)
    if not train.lora_rank:
        idle["train.lora_alpha"] = _NO_ADAPTERS
    if not train.reference_sync_steps:
        idle["train.reference_mixup"] = "the reference stays as it is with train.reference_sync_steps 0"
    if not any(spec.startswith("reward_model:") for spec in recipe.reward.specs):
        idle["reward.batch"] = "no reward model is among reward.functions"
    return idle


def idle_in_pretraining(recipe: PretrainRecipe) -> dict[str, str]:
    """As `idle_in_recipe`, of supervised training."""
    idle: dict[str, str] = {}
    if recipe.model is not None:
        sizes = ("hidden", "layers", "heads", "max_length")
        idle |= dict.fromkeys(sizes, f"the checkpoint {recipe.model!r} has sizes of its own")
    if not recipe.lora_rank:
        idle["lora_alpha"] = _NO_ADAPTERS
    if not recipe.validation_examples:
        idle["validate_every"] = "there is no validation with validation_examples 0"
    return idle


def check_read(idle: Mapping[str, str], paths: Iterable[str]) -> None:
    """Raise UserError where one of the settings given, by their paths, is idle."""
    for path in paths:
        for key, reason in idle.items():
            if f"{path}.".startswith(f"{key}."):
                raise UserError(f"{flag_of(path)} would not be read: {reason}; leave it out")
