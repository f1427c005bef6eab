"""The small commands that faults are tried on: what each leaves, and what must hold after every kill."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.children import Ended, Fault, run
from unmask.denoisers.directories import LOCK, checkpoints, newest_checkpoint
from unmask.errors import UserError
from unmask.settings.recipe import TrainSettings
from unmask.training.checkpoint import check_whole

TRAIN = [
    *(
        "train",
        "--recipe",
        "sudoku-dispo",
        "--train.threads",
        "1",
        "--train.max-steps",
        "6",
        "--train.num-iterations",
        "2",
    ),
    *("--train.save-steps", "2", "--train.eval-steps", "3", "--train.examples", "40"),
    *("--rollout.prompts", "3", "--rollout.num-generations", "4", "--method.base.beta", "0.01"),
    *("--evaluation.examples", "12", "--evaluation.examples-during", "6", "--evaluation.greedy-steps", "8"),
]


PRETRAIN = [
    *("pretrain", "--hidden", "16", "--layers", "1", "--heads", "2", "--max-length", "32", "--batch", "16"),
    *("--examples", "64", "--max-steps", "40", "--threads", "1", "--validation-examples", "8", "--eval-steps", "5"),
    *("--save-steps", "5"),
]
EVALUATE = [
    *("evaluate", "--examples", "12", "--threads", "1", "--steps", "1,2,4,8"),
    *("--unmasking", "low_confidence,random,margin"),
]


def left_by_training(directory: Path) -> dict[str, Any]:
    """All that a finished run leaves, but for times and checkpoints before the last: a signal saves one more."""
    last = newest_checkpoint(directory / "checkpoints") or directory / "none"
    files = sorted(path for path in last.rglob("*") if path.is_file())
    found: dict[str, Any] = {
        str(path.relative_to(directory)): path.read_bytes() for path in files if path.name != "state.json"
    }
    for name in ("metrics", "completions"):
        lines = (directory / f"{name}.jsonl").read_text().splitlines()
        found[name] = [_timeless(json.loads(line)) for line in lines]
    found["after"] = (directory / "after.json").read_bytes()
    found["names"] = sorted(path.name for path in directory.iterdir())
    return found


def left_by_pretraining(directory: Path) -> dict[str, Any]:
    """All that a finished training leaves."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def left_by_evaluation(file: Path) -> dict[str, Any]:
    """The table, and what lies hidden beside it."""
    hidden = {path.name.replace(file.name, ""): "" for path in file.parent.glob(f".{file.name}*")}
    return {"table": file.read_bytes(), **hidden}


@dataclass(frozen=True, kw_only=True)
class Small:
    """A small command and the directory, or file, that it writes; it goes on where it has begun."""

    directory: Path
    command: Sequence[str] = tuple(TRAIN)
    left: Callable[[Path], dict[str, Any]] = left_by_training

    @property
    def folder(self) -> Path:
        """Where the words of its commands go."""
        return self.directory.with_name(f"{self.directory.name}-said")

    @property
    def words(self) -> list[str]:
        """What starts it, or goes on with it where it has begun."""
        if (self.directory / "recipe.toml").is_file():
            return [self.command[0], "--resume", str(self.directory)]
        return [*self.command, "--output", str(self.directory)]

    def go(self, fault: Fault | None = None) -> Ended:
        """Start it, or go on with it where it has begun, with a fault or without."""
        return run(self.words, self.folder, fault)

    def remove(self) -> None:
        """Delete what it has written."""
        shutil.rmtree(self.directory) if self.directory.is_dir() else self.directory.unlink()

    def is_done(self) -> bool:
        """Whether it has written its model, and only deletes what that was made of: nothing is left to go on with."""
        return (self.directory / "config.json").is_file()

    def go_on_as_told(self, line: str) -> Ended:
        """Run the command that stands between the marks of a line."""
        words = line.split("`")
        return run(shlex.split(words[1])[1:], self.folder) if len(words) > 1 else Ended(code=1, errors=[line])

    def torn(self) -> list[str]:
        """What is wrong with what lies under a final name."""
        wrong = []
        for path in checkpoints(self.directory / "checkpoints"):
            try:
                check_whole(path, TrainSettings())
            except UserError as error:
                wrong.append(str(error))
        return wrong

    def outcome(self) -> dict[str, Any]:
        """What it leaves when it is done."""
        return self.left(self.directory)

    def lost(self, whole: dict[str, Any]) -> list[str]:
        """What of the whole run it lacks or has otherwise, and what it leaves lying about."""
        left = [str(path) for path in self.directory.rglob(".*") if path.name == LOCK or ".partial" in path.name]
        try:
            found = self.outcome()
        except (OSError, ValueError) as error:
            return [*left, str(error)]
        return [
            *left,
            *(f"{name} differs" for name in whole.keys() | found.keys() if whole.get(name) != found.get(name)),
        ]


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if "_seconds" not in key}


def undisturbed(small: Small, fault: Fault | None = None) -> dict[str, Any]:
    """What a command leaves that nothing happens to, but for a fault that only looks on."""
    end = small.go(fault)
    if end.code != 0:
        raise RuntimeError(f"the command fails without a fault: {end}")
    return small.outcome()
