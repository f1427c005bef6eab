"""Find reward functions by name: the task's, a file's, a module's, a reward model, a judge."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from unmask.data.example import digest
from unmask.errors import UserError
from unmask.rewards.functions import RewardFunction
from unmask.tasks import Task
from unmask.validation import did_you_mean

if TYPE_CHECKING:
    from unmask.settings.recipe import RewardSettings

TASK = "task"
_FORMS = f"{TASK}, FILE.py:NAME, MODULE:NAME, reward_model:DIRECTORY or judge:FILE.toml"


def load_functions(settings: RewardSettings, task: Task, device: Any) -> tuple[RewardFunction, ...]:
    """The reward functions of a run. Raises UserError for what is not there or cannot be called.

    A function's name in metrics is its own, or all of its spec where two have the same.
    """
    specs = settings.specs
    names = [_name(spec) for spec in specs]
    calls = [_find(spec, settings, task, device) for spec in specs]
    return tuple(
        RewardFunction(
            spec=spec,
            name=name if names.count(name) == 1 else spec,
            call=call,
            weight=weight,
            cached=spec == TASK or getattr(call, "cached", False),
            ahead=spec == TASK,  # a user's own may use signals, which only the main thread can
        )
        for spec, name, call, weight in zip(specs, names, calls, settings.function_weights, strict=True)
    )


def _name(spec: str) -> str:
    kind = spec.partition(":")[0]
    return kind if kind in ("reward_model", "judge") else spec.rpartition(":")[2]


def _find(spec: str, settings: RewardSettings, task: Task, device: Any) -> Callable[..., Any]:
    if spec == TASK:
        return task.rewards
    kind, _, path = spec.partition(":")
    if kind == "reward_model":
        from unmask.rewards.reward_model import load_reward_model

        return load_reward_model(path, settings.batch, device)
    if kind == "judge":
        from unmask.rewards.judge import load_judge

        return load_judge(path)
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise UserError(f"reward function {spec!r} is unknown: give {_FORMS}")
    module = _import_file(where) if where.endswith(".py") else _import_module(where)
    found = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    if not hasattr(module, name):
        raise UserError(f"{where!r} has no reward function {name!r}{did_you_mean(name, found)}")
    function = getattr(module, name)
    if not callable(function):
        raise UserError(f"{spec!r} is a {type(function).__name__} and cannot be called{did_you_mean(name, found)}")
    return function  # type: ignore[no-any-return]


def _import_file(where: str) -> ModuleType:
    """The module in a file, run once a process however many functions are taken from it."""
    path = Path(where).expanduser().resolve()
    name = f"unmask_rewards_{path.stem}_{digest(str(path)):x}"
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None or not path.is_file():
        raise UserError(f"{where!r} is not a file: give the path of a Python file with reward functions")
    sys.modules[name] = module = importlib.util.module_from_spec(found)
    try:
        with _noted(where):
            found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(where: str) -> ModuleType:
    if not all(part.isidentifier() for part in where.split(".")):
        raise UserError(f"{where!r} is neither a module nor a Python file: give {_FORMS}")
    try:
        with _noted(where):
            return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise  # the module is there, and one that it imports is not
        raise UserError(
            f"there is no module {where!r}: install it, name its directory in PYTHONPATH, or give FILE.py:NAME"
        ) from error


@contextmanager
def _noted(where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"raised while importing reward functions from {where!r}")
        raise
