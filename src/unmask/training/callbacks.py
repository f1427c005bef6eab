"""What a run tells of itself while it goes on, and how it is asked to end early. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


class StopTraining(Exception):
    """Raised by a callback: the run ends after this step, saved and evaluated, as if it had been the last.

    raise unmask.StopTraining("the reward is high enough")
    """


class Callback:
    """What is called while a run goes on. Subclass it and define those that you want; all see plain numbers.

    With several processes, that of the first rank is called. An exception ends the run, and is yours.

        class Patience(unmask.Callback):
            def on_step(self, step, metrics):
                if metrics["reward"] > 0.9:
                    raise unmask.StopTraining("good enough")
    """

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        """After training step number `step`, counted from 1, with its line of metrics.jsonl."""

    def on_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """After an evaluation of the model as it was after `step` steps: names begin with eval/."""

    def on_checkpoint(self, step: int, directory: Path) -> None:
        """After the checkpoint of a step was written to a directory."""


@dataclass(kw_only=True)
class Callbacks:
    """The callbacks of a run: tells them, notes when one asks for the end, and says whose an exception is."""

    given: Sequence[Callback] = ()
    wanted_end: str | None = None  # why a callback asked for the end; None: none did

    def tell(self, what: str, step: int, call: Callable[[Callback], None]) -> None:
        """Have each called. An exception has a note of the callback and the step."""
        for callback in self.given:
            try:
                call(callback)
            except StopTraining as stop:
                self.wanted_end = str(stop) or type(callback).__name__
            except Exception as error:
                error.add_note(f"raised by {type(callback).__name__}.{what} after step {step}")
                raise
