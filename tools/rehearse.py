"""Dress rehearsal: every shipped recipe for a real model, run on a stand-in of its family.

`python tools/rehearse.py [--stand-ins DIR] [--only PART_OF_A_NAME]` makes the stand-ins where DIR has none, runs each
recipe at the sizes of tools/rehearsal/overlay.toml, prints a table, and exits with 1 where one fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rehearsal import checks
from rehearsal.commands import CommandFailed, finish, run, start, unmask
from rehearsal.families import DREAM, FAMILIES, LLADA, LLADA2
from rehearsal.measured import write_misses
from rehearsal.references import reference_rewards
from rehearsal.sizes import write_rehearsal
from stand_ins import being_taught, careless
from unmask.settings.reader import document_of
from unmask.settings.recipe import Recipe
from unmask.settings.recipe_files import recipe_names

# One recipe of each benchmark on the other families, and one of each that is to learn.
OTHERS = (
    "countdown-words-llada8b-diffu-grpo",
    "gsm8k-llada8b-dispo",
    "math500-llada8b-mdpo",
    "sudoku-llada8b-dispo-spg",
)
IMPROVE = (
    ("countdown-words-llada8b-tracerl", LLADA),
    ("sudoku-llada8b-tracerl", LLADA),
    ("gsm8k-llada8b-tracerl", DREAM),
    ("math500-llada8b-tracerl", DREAM),
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One recipe on one stand-in."""

    recipe: str
    family: str
    table: str = "sizes"

    @property
    def stand_in(self) -> str:
        """The directory of its model."""
        return self.family if self.table == "sizes" else careless(self.family)

    @property
    def name(self) -> str:
        """In the table and on disk."""
        suffix = "" if self.family == LLADA.name else f" on {self.family}"
        return f"{self.recipe}{suffix}{', to learn' if self.table != 'sizes' else ''}"


@dataclass(kw_only=True)
class Outcome:
    """What a part showed."""

    part: Part
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def parts(only: str) -> list[Part]:
    """All parts of a rehearsal whose names hold one of the words of `only`."""
    recipes = [name for name in recipe_names("train") if "llada8b" in name]
    listed = [Part(recipe=name, family=family.name, table="improve") for name, family in IMPROVE]
    listed += [Part(recipe=name, family=LLADA.name) for name in recipes]
    listed += [Part(recipe=name, family=family.name) for family in (DREAM, LLADA2) for name in OTHERS]
    listed += [Part(recipe=name, family=LLADA2.name) for name in recipe_names("train") if "llada2mini" in name]
    return [part for part in listed if any(word in part.name for word in only.split(","))]


class Rehearsal:
    """Runs parts in a folder of its own."""

    def __init__(self, stand_ins: Path, folder: Path, taught: Mapping[str, Future[None]]) -> None:
        self.stand_ins, self.folder, self.taught = stand_ins, folder, taught

    def __call__(self, part: Part) -> Outcome:
        """All checks of a part, once its stand-in is taught; a failing command ends it."""
        if part.family in self.taught:
            self.taught[part.family].result()
        outcome, started = Outcome(part=part), time.monotonic()
        folder = self.folder / part.name.replace(" ", "_").replace(",", "")
        stand_in, path = self.stand_ins / part.stand_in, folder / "recipe.toml"
        try:
            recipe = write_rehearsal(part.recipe, stand_in, self.stand_ins / "data", path, table=part.table)
            checked = self._checks if part.table == "sizes" else self._improves
            for check in checked(recipe, path, stand_in, folder):
                try:
                    outcome.figures |= check() or {}
                except checks.Failed as fault:
                    outcome.faults.append(str(fault))
        except CommandFailed as fault:
            outcome.faults.append(str(fault))
        outcome.seconds = time.monotonic() - started
        print(line(outcome), flush=True)
        return outcome

    def _improves(self, recipe: Recipe, path: Path, stand_in: Path, folder: Path) -> list[Callable[[], Any]]:
        def improves() -> dict[str, Any]:
            unmask("train", {"recipe": path, "output": folder / "whole"}, log=folder / "log")
            before, after, low, high = checks.gain(folder / "whole")
            if low <= 0:
                raise checks.Failed(f"held out {before:.1%} -> {after:.1%}, gain {low:+.1%} to {high:+.1%}")
            return {"held out": f"{before:.1%} -> {after:.1%} ({low:+.1%} to {high:+.1%})"}

        return [improves]

    def _checks(self, recipe: Recipe, path: Path, stand_in: Path, folder: Path) -> list[Callable[[], Any]]:
        whole, killed, log = folder / "whole", folder / "killed", folder / "log"

        def trains() -> dict[str, Any]:
            unmask("train", {"recipe": path, "output": whole}, log=log)
            return dict(checks.check_updates(whole))

        def resumes() -> None:
            kill_after_a_checkpoint(path, killed, log)
            unmask("train", {"resume": killed}, log=log)
            checks.check_resumed(whole, killed)

        def evaluates() -> None:
            unmask("evaluate", evaluation(recipe, checks.last_checkpoint(whole), folder), log=log)
            rows = json.loads((folder / "evaluation.json").read_text())
            if not rows:
                raise checks.Failed("evaluate wrote no row")

        def planned() -> dict[str, Any]:
            found = folder / "plan.json"
            run(write_misses, (str(path), str(found)), log=log)
            misses = json.loads(found.read_text())
            if misses:
                raise checks.Failed("; ".join(misses))
            return {}

        return [
            lambda: references(recipe, stand_in),
            trains,
            lambda: checks.check_moved(whole, stand_in),
            lambda: checks.check_layout(whole, stand_in),
            resumes,
            evaluates,
            planned,
        ]


def kill_after_a_checkpoint(path: Path, killed: Path, log: Path) -> None:
    """Start a run and kill -9 it while it goes on from its first checkpoint."""
    process = start("train", {"recipe": path, "output": killed}, log=log)
    while not (killed / "checkpoints" / "step_000001").exists():
        if not process.is_alive():
            finish(process, log)
        time.sleep(0.01)
    process.kill()
    process.join()
    if (killed / "summary.json").exists():
        raise checks.Failed("the run ended before it could be killed")


def evaluation(recipe: Recipe, checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Settings of `unmask evaluate` for the task of a recipe."""
    task = document_of(recipe.task)
    settings = {"model": checkpoint, "task": recipe.task.name, "threads": 1, "examples": 8, "steps": 16}
    settings |= {"lengths": recipe.rollout.max_new_tokens, "block-length": recipe.rollout.block_length}
    settings |= {f"task.{name.replace('_', '-')}": value for name, value in task.items()}
    return settings | {"output": folder / "evaluation.json"}


def references(recipe: Recipe, stand_in: Path) -> dict[str, Any]:
    """The task's own solutions, as the model would write them, are right."""
    rewards = reference_rewards(recipe, stand_in)
    if min(rewards) < 1:
        raise checks.Failed(f"reference answers are rewarded {min(rewards):g} to {max(rewards):g}")
    return {}


def line(outcome: Outcome) -> str:
    """A row of the table."""
    figures = ", ".join(
        f"{name} {value:.2g}" if isinstance(value, float) else value for name, value in outcome.figures.items()
    )
    said = "ok  " if not outcome.faults else "FAIL"
    return f"{said} {outcome.part.name:45} {outcome.seconds:5.0f} s  {figures}" + "".join(
        f"\n       {fault}" for fault in outcome.faults
    )


def main() -> int:
    """0 where every part is as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stand-ins", type=Path, default=Path("runs/stand-ins"))
    parser.add_argument("--only", default="", help="parts of names, by commas: what is rehearsed")
    parser.add_argument("--jobs", type=int, default=2, help="recipes at a time, one thread each")
    parser.add_argument("--keep", type=Path, help="folder that keeps the runs")
    options = parser.parse_args()
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as temporary,
        ThreadPoolExecutor(options.jobs) as pool,
        being_taught(options.stand_ins, 0, list(FAMILIES), pool) as taught,
    ):
        rehearsal = Rehearsal(options.stand_ins.resolve(), options.keep or Path(temporary), taught)
        outcomes = list(pool.map(rehearsal, parts(options.only)))
    failed = [outcome for outcome in outcomes if outcome.faults]
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} as they must be, {time.monotonic() - started:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
