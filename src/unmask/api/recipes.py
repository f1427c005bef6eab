"""The recipe of a run that is started from Python: the one that flags would make, with objects where there are some."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from unmask.api.config import TrainingConfig
from unmask.api.sampler import Sampler
from unmask.data.chat import ChatSettings
from unmask.data.readers.tables import is_on_hub
from unmask.errors import UserError
from unmask.methods import METHODS, Method
from unmask.settings.idle import check_read, declared_idle, flat, idle_in_recipe
from unmask.settings.objects import check_no_objects, is_found_by_place, is_opaque, object_name
from unmask.settings.reader import Document, build, merged, nested
from unmask.settings.recipe import (
    EvaluationSettings,
    Recipe,
    ReportSettings,
    RewardSettings,
    RolloutSettings,
    SamplerSettings,
)
from unmask.settings.recipe_files import recipe_layers
from unmask.settings.starting import with_model_and_task
from unmask.tasks import TASKS, Dataset, Task
from unmask.validation import did_you_mean, other_names

RewardFunc = str | Callable[..., Any]
Rows = Iterable[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Rewarding:
    """Reward functions as a recipe names them, and those that are objects by these names."""

    specs: str = RewardSettings.funcs
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, given: RewardFunc | Sequence[RewardFunc] | None) -> Rewarding:
        """Of functions, or specs as `--reward-funcs` takes them; None: the task's own."""
        if given is None:
            return cls()
        found: dict[str, RewardFunc] = {}
        for function in [given] if isinstance(given, str) or callable(given) else given:
            if not (isinstance(function, str) or callable(function)):
                raise UserError(f"reward_funcs holds {function!r:.60}: give functions, or names such as 'task'")
            for spec in function.split(",") if isinstance(function, str) else [_spec(function, found)]:
                found[spec.strip()] = function
        return cls(specs=",".join(found), functions={spec: each for spec, each in found.items() if callable(each)})


def _spec(function: Callable[..., Any], taken: Mapping[str, Any]) -> str:
    """MODULE:NAME where another process finds the function so, else `python:NAME`; each its own."""
    if is_found_by_place(function):
        return f"{function.__module__}:{function.__qualname__}"
    name, number = object_name(function), 1
    spec = name
    while spec in taken:
        number += 1
        spec = f"{name}-{number}"
    return spec


def task_of(data: str | Task | Rows | None, held_out: Rows | str | None) -> Document | Task | None:
    """The task of `train_dataset`: an object, the table of a named one, or the user's rows; None where none is given.

    Raises UserError for a held-out set beside a task, which has its own.
    """
    if isinstance(data, str) and (":" in data or not (Path(data).suffix or is_on_hub(data))):
        found: Document | Task | None = {"name": data}
    elif isinstance(data, str) or (data is not None and not hasattr(data, "rewards")):
        if isinstance(data, Mapping):
            raise UserError("train_dataset is one mapping: give a list of rows, such as one split of a data set")
        return Dataset(data=data, test_data=held_out)  # type: ignore[arg-type]
    else:
        found = data  # type: ignore[assignment]
    if held_out is not None:
        raise UserError("eval_dataset is given, and train_dataset is a task, which has held-out prompts: leave it out")
    return found


def method_of(given: str | Method | None) -> Method | None:
    """The method of `method`: an object, or a shipped one by its name, with the paper's settings; None for none."""
    if not isinstance(given, str):
        return given
    if given not in METHODS:
        raise UserError(f"method is {given!r}{did_you_mean(given, METHODS)}, or an object of unmask.methods")
    return METHODS[given]()


def recipe_of(
    model: str | None,
    method: Method | None,
    task: Document | Task | None,
    rewarding: Rewarding,
    sampler: Sampler | None,
    args: TrainingConfig,
    model_format: str | None,
) -> Recipe:
    """The recipe of what a Trainer is given. Raises UserError where it does not go together, or would not be read."""
    named: Document = {} if model is None else {"model": model}
    if isinstance(task, dict):
        named["task"] = task
    elif task is not None and model is None:
        named["task"] = {"name": _shipped_name(task)}
    start = build(Recipe, with_model_and_task(named, {}, needs_model=True))
    recipe = replace(
        start,
        method=method or start.method,
        task=start.task if task is None or isinstance(task, dict) else task,
        model_format=model_format,
        rollout=_rollout(sampler, args),
        reward=RewardSettings(
            funcs=rewarding.specs,
            weights=_weights(args.reward_weights),
            **{name: value for name, value in args.table("reward", RewardSettings).items() if name != "weights"},
        ),
        train=args.train_settings(),
        evaluation=EvaluationSettings(**args.table("evaluation", EvaluationSettings)),
        chat=replace(start.chat, **args.table("chat", ChatSettings)),
        report=ReportSettings(**args.table("report", ReportSettings)),
        track=args.track,
    )
    idle = {**declared_idle(recipe), **idle_in_recipe(recipe)}
    check_read(idle, changed_settings(recipe), shown=str)
    return recipe


def _shipped_name(task: Task) -> str:
    """The name of the shipped task that an object is, or extends. Raises UserError where there is none."""
    name = next((name for name, shipped in TASKS.items() if isinstance(task, shipped)), None)
    if name is None:
        raise UserError(f"no embedded model knows task {task.name!r}: give model, a checkpoint's name or a network")
    return name


def recipe_named(name: str, settings: Mapping[str, Any]) -> Recipe:
    """A shipped recipe, or one in a file, with some settings by the command's words ("train.max_steps")."""
    texts = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in settings.items()}
    layers = recipe_layers(name)
    for layer in layers:
        check_no_objects(flat(layer), name)
    document = reduce(merged, layers)
    recipe = build(Recipe, merged(with_model_and_task(document, nested(texts), needs_model=True), nested(texts)))
    now = other_names(recipe)
    check_read({**declared_idle(recipe), **idle_in_recipe(recipe)}, [now.get(key, key) for key in texts], shown=str)
    return recipe


def _rollout(sampler: Sampler | None, args: TrainingConfig) -> RolloutSettings:
    chosen = sampler or Sampler()
    length, other = chosen.max_new_tokens, args.max_completion_length
    if None not in (length, other) and length != other:
        raise UserError(f"max_completion_length {other} contradicts the sampler's max_new_tokens {length}: give one")
    settings = {each.name: getattr(chosen, each.name) for each in fields(SamplerSettings)}
    settings["max_new_tokens"] = length or other
    return RolloutSettings(**settings, prompts=args.prompts, num_generations=args.num_generations)


def _weights(weights: Sequence[float] | str | None) -> str | None:
    return weights if weights is None or isinstance(weights, str) else ",".join(map(str, weights))


def changed_settings(settings: Any, prefix: str = "") -> list[str]:
    """Paths of the settings that are not at their defaults, in all tables."""
    paths: list[str] = []
    for each in fields(settings) if is_dataclass(settings) else ():
        value, path = getattr(settings, each.name), prefix + each.name
        if "section" in each.metadata:
            paths += changed_settings(value, path + ".")
        elif "choices" in each.metadata:
            usual: Any = each.default_factory
            paths += [path] if type(value) is not usual else []
            paths += [] if is_opaque(each, value) else changed_settings(value, path + ".")
        elif each.default is not MISSING and value is not each.default and value != each.default:
            paths.append(path)
    return paths
