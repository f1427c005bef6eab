"""Find reward functions by name: the task's, a file's, a module's, a reward model, a judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from unmask.rewards.faults import FaultRule
from unmask.rewards.functions import RewardFunction, is_cached, reads_raw
from unmask.tasks import TASKS, Task
from unmask.validation import load_named

if TYPE_CHECKING:
    from unmask.settings.recipe import RewardSettings

TASK = "task"
_FORMS = f"{TASK}, FILE.py:NAME, MODULE:NAME, reward_model:DIRECTORY or judge:FILE.toml"


def load_functions(
    settings: RewardSettings,
    task: Task,
    device: Any,
    given: Mapping[str, Callable[..., Any]] | None = None,
    *,
    owns_process: bool = True,
) -> tuple[RewardFunction, ...]:
    """The reward functions that the settings name. Raises UserError for what is not there or cannot be called.

    A function's name in metrics is its own, or all of its spec where two have the same. `given`: functions by their
    specs that need not be found. `owns_process`: a call that nothing interrupts may end the process.
    """
    specs = settings.specs
    names = [_name(spec) for spec in specs]
    known = given or {}
    calls = [known[spec] if spec in known else _find(spec, settings, task, device) for spec in specs]
    faults = FaultRule(
        timeout_seconds=settings.timeout_seconds,
        retries=settings.retries,
        gives_none=settings.on_fault == "none",
        ends_process=owns_process,
    )
    # What is the user's may use signals, and may have to be interrupted: only the main thread can do both.
    shipped = type(task) in TASKS.values()
    return tuple(
        RewardFunction(
            spec=spec,
            name=name if names.count(name) == 1 else spec,
            call=call,
            weight=weight,
            cached=spec == TASK or is_cached(call),
            ahead=spec == TASK and shipped and not reads_raw(call),
            faults=faults,
            is_only=len(specs) == 1,
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
    function: Callable[..., Any] = load_named(spec, "reward function", _FORMS)
    return function
