"""unmask: reinforcement-learning post-training of masked diffusion language models.

    import unmask
    from unmask import methods

    run = unmask.Trainer("embedded:sudoku", method=methods.SPG()).train()

What stands in `__all__` is public, and so is what `methods`, `rules`, `tasks`, `rewards` and `functional` list; see
docs/python.md. Nothing is imported before it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmask import functional, methods, rewards, rules, tasks
    from unmask.api.batch import Batch, BatchRewards
    from unmask.api.config import TrainingConfig
    from unmask.api.model import Model, load_model
    from unmask.api.objective import Objective
    from unmask.api.run import Run
    from unmask.api.sampler import Sampler
    from unmask.api.trainer import Trainer
    from unmask.data.chat import ChatSettings
    from unmask.errors import UserError
    from unmask.training.callbacks import Callback, StopTraining

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "BatchRewards",
    "Callback",
    "ChatSettings",
    "Model",
    "Objective",
    "Run",
    "Sampler",
    "StopTraining",
    "Trainer",
    "TrainingConfig",
    "UserError",
    "__version__",
    "functional",
    "load_model",
    "methods",
    "rewards",
    "rules",
    "tasks",
]

_MODULES = ("functional", "methods", "rewards", "rules", "tasks")
_PLACES = {
    "Batch": "unmask.api.batch",
    "BatchRewards": "unmask.api.batch",
    "Callback": "unmask.training.callbacks",
    "ChatSettings": "unmask.data.chat",
    "Model": "unmask.api.model",
    "Objective": "unmask.api.objective",
    "Run": "unmask.api.run",
    "Sampler": "unmask.api.sampler",
    "StopTraining": "unmask.training.callbacks",
    "Trainer": "unmask.api.trainer",
    "TrainingConfig": "unmask.api.config",
    "UserError": "unmask.errors",
    "load_model": "unmask.api.model",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name in _MODULES:
        return import_module(f"unmask.{name}")
    if name in _PLACES:
        found = getattr(import_module(_PLACES[name]), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module 'unmask' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
