"""Training steps that are skipped because a number is not finite: which, why, and when a run ends for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import torch

from unmask.denoisers.directories import checkpoints, step_of
from unmask.errors import UserError

MOST_IN_A_ROW = 3

# Metrics of a step, from the first that a number passes through to the last, and what it is called.
_ROLLOUT = {"reward": "the reward", "entropy": "a log-probability of the sampled tokens"}
_UPDATE = {"loss": "the loss", "grad_norm": "the norm of the gradient"}


def unusable(metrics: Mapping[str, float]) -> bool:
    """Whether nothing can be learnt from a rollout: a reward or a log-prob of a sampled token is not finite."""
    return any(not math.isfinite(metrics.get(name, 0.0)) for name in _ROLLOUT)


@dataclass(kw_only=True)
class SkippedSteps:
    """Counts training steps of which an update was skipped, one after another."""

    in_a_row: int = 0

    def see(self, metrics: Mapping[str, float]) -> str | None:
        """Add the metrics of a training step; why it was skipped, or None where it was not."""
        if not metrics["skipped"]:
            self.in_a_row = 0
            return None
        self.in_a_row += 1
        names = _ROLLOUT | _UPDATE
        found = next(((name, metrics[name]) for name in names if not math.isfinite(metrics.get(name, 0.0))), None)
        return "an update was skipped" if found is None else f"{names[found[0]]} is {found[1]}"


def ends_for_skipped(skipped: SkippedSteps, step: int, why: str, mend: str) -> UserError:
    """What ends a run after so many skipped steps, the last of them number `step`; `mend`: how to go on."""
    first = step - skipped.in_a_row + 1
    return UserError(
        f"steps {first} to {step} were skipped, one after another: {why}; the weights are as step {first - 1} left "
        f"them; {mend}"
    )


def lower_rate(directory: Path, last: int, rate: float) -> str:
    """How to go on at a lower learning rate with the run in a directory, whose last good step was number `last`.

    The checkpoint of that step itself may already be one that no step can be made from: those before it are good.
    """
    good = [path for path in checkpoints(directory / "checkpoints") if (step_of(path) or 0) < last]
    lower = f"--train.learning-rate {rate / 3:.2g}"
    if not good:
        return f"there is no good checkpoint yet: start again with a lower rate, such as {lower}"
    recipe, model = quote(str(directory / "recipe.toml")), quote(str(good[-1]))
    return (
        f"the last good checkpoint is {good[-1].name}: start from it with a lower rate, "
        f"`unmask train --recipe {recipe} --model {model} {lower}`"
    )


def check_finite(parameters: Iterable[torch.nn.Parameter], step: int, mend: str) -> None:
    """Raise UserError where a weight is NaN or infinite; `mend`: how to go on."""
    if not all(bool(torch.isfinite(weight).all()) for weight in parameters):
        raise UserError(f"a weight is not finite after step {step}, which is not saved; {mend}")
