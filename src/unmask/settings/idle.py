"""Settings that others make idle: what would be accepted and never read is refused by name. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from unmask.errors import UserError
from unmask.settings.reader import Document, build, document_of, flag_of, leaves
from unmask.validation import other_names

if TYPE_CHECKING:
    from unmask.settings.commands import EvaluateSettings
    from unmask.settings.recipe import Recipe

Settings = TypeVar("Settings")

_GIVEN_PAIRS = "the task gives pairs of completions, nothing is sampled or rewarded"
_SAMPLING = ("num_generations", "block_length", "steps", "temperature", "guidance_scale", "stop_at_end", "schedule")


def declared_idle(settings: Any, prefix: str = "") -> dict[str, str]:
    """Paths of settings that one beside them makes idle, as `setting(idle=)` declares, and why."""
    idle: dict[str, str] = {}
    for field in fields(settings) if is_dataclass(settings) else ():
        value, path = getattr(settings, field.name), prefix + field.name
        if {"choices", "section"} & set(field.metadata):
            idle |= declared_idle(value, path + ".")
        elif (why := field.metadata.get("idle")) is not None and (reason := why(settings)) is not None:
            idle[path] = prefix + reason
    return idle


def idle_in_recipe(recipe: Recipe) -> dict[str, str]:
    """Paths of settings, or of tables of them, that settings of other tables keep a training run from reading."""
    idle: dict[str, str] = {}
    task, rollout = recipe.task, recipe.rollout
    if task.gives_pairs:
        sampling = [f"rollout.{name}" for name in (*_SAMPLING, "unmasking", "batch", "caching")]
        idle |= dict.fromkeys((*sampling, "reward", "train.shuffle_rewards", "evaluation.greedy_steps"), _GIVEN_PAIRS)
    elif not task.verifies:
        of_evaluation = [f"evaluation.{name}" for name in ("examples_during", "greedy_steps", "batch")]
        why = f"task {task.name} compares no answers, so nothing is evaluated"
        idle |= dict.fromkeys(("train.eval_steps", *of_evaluation), why)
    if not rollout.unmasking.scheduled:
        counts = ("rollout.steps", "rollout.schedule", "evaluation.greedy_steps")
        idle |= dict.fromkeys(counts, f"unmasking {rollout.unmasking.name} takes as many steps as it needs")
    if rollout.max_new_tokens not in (None, task.max_new_tokens):
        idle["task.max_new_tokens"] = f"rollout.max_new_tokens is {rollout.max_new_tokens}"
    if not any(spec.startswith("reward_model:") for spec in recipe.reward.specs):
        idle["reward.batch"] = "no reward model is among reward.funcs"
    return idle


def idle_in_evaluation(settings: EvaluateSettings) -> dict[str, str]:
    """As `idle_in_recipe`, of `unmask evaluate`."""
    if settings.lengths in ("", str(settings.task.max_new_tokens)):
        return {}
    return {"task.max_new_tokens": f"lengths is {settings.lengths}"}


def check_read(idle: Mapping[str, str], given: Iterable[str], shown: Callable[[str], str] = flag_of) -> None:
    """Raise UserError where one of the settings given, by their paths, is idle; `shown`: how the user writes them."""
    for path in given:
        if (reason := _reason(idle, path)) is not None:
            raise UserError(f"{shown(path)} would not be read: {reason}; leave it out")


def check_values_read(idle: Mapping[str, str], settings: Any, document: Document) -> None:
    """Raise UserError where a table of a recipe gives an idle setting another value than its default.

    Defaults may stand there: the recipe that a run writes holds every setting.
    """
    said, now = _changed(settings, without_idle(settings, idle)), other_names(settings)
    for given in flat(document):
        if (path := now.get(given, given)) in said:
            raise UserError(f"{path} {said[path]!r} would not be read: {_reason(idle, path)}; leave it out")


def without_idle(settings: Settings, idle: Iterable[str]) -> Settings:
    """The settings with their defaults at these paths."""
    document = document_of(settings)
    for path in idle:
        *tables, name = path.split(".")
        table: Any = document
        for key in tables:
            table = table.get(key, {})
        table.pop(name, None)
    return build(type(settings), document)


def _reason(idle: Mapping[str, str], path: str) -> str | None:
    return next((reason for key, reason in idle.items() if f"{path}.".startswith(f"{key}.")), None)


def _changed(settings: Any, others: Any) -> dict[str, Any]:
    """Path and value of each setting that is another in `others`, or is not there."""
    before, after = ({leaf.path: leaf.default for leaf in leaves(each)} for each in (settings, others))
    return {path: value for path, value in before.items() if path not in after or after[path] != value}


def flat(document: Document, prefix: str = "") -> Document:
    """The values of a table by dotted paths, as `nested` takes them: the name of a choice at the path of its table."""
    values: Document = {}
    for key, value in document.items():
        if isinstance(value, dict):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}".removesuffix(".name")] = value
    return values
