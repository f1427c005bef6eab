"""What the record of a run costs: seconds of recording beside seconds of all training steps, of the default recipe.

    python benchmarks/record.py                                # sudoku-dispo, 20 steps; --recipe, --steps

CPU time is judged, for it is the same on a busy machine; the clock's, with the disk in it, is told. Exit code 1 where
recording takes 2 % of the steps or more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import allocator

LIMIT = 0.02


def measured(recipe: str, steps: int, run: Path) -> dict[str, tuple[float, float]]:
    """Seconds of recording, and of whole steps, by clock: "CPU" and "wall"."""
    from unmask.settings.reader import build, merged
    from unmask.settings.recipe import Recipe
    from unmask.settings.recipe_files import recipe_layers
    from unmask.training.build import build_trainer
    from unmask.training.recording import Recorder

    document: dict[str, object] = {}
    for layer in recipe_layers(recipe):
        document = merged(document, layer)
    settings = build(Recipe, merged(document, {"train": {"threads": 1}}))
    trainer = build_trainer(settings)
    objective, examples = trainer.objective, trainer.source.examples
    recorder = Recorder(
        run=run,
        recipe=settings,
        tokenizer=trainer.tokenizer,
        terms=objective.terms,
        examples=examples,
        world=objective.world,
    )
    trainer.recorder = recorder
    clocks = {"CPU": time.process_time, "wall": time.monotonic}
    spent, write = dict.fromkeys(clocks, 0.0), recorder.write_step

    def timed(*words: object) -> None:
        begin = {name: clock() for name, clock in clocks.items()}
        write(*words)  # type: ignore[arg-type]
        for name, clock in clocks.items():
            spent[name] += clock() - begin[name]

    recorder.write_step = timed  # type: ignore[method-assign]
    trainer.step(1)  # what is made once, such as kernels; recorded steps are 1 and every so many
    spent.update(dict.fromkeys(clocks, 0.0))
    begin = {name: clock() for name, clock in clocks.items()}
    for step in range(2, 2 + steps):
        trainer.step(step)
    return {name: (spent[name], clock() - begin[name]) for name, clock in clocks.items()}


def main() -> int:
    """Exit code: 0 where recording takes less than the limit, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="sudoku-dispo")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    allocator.tune()
    from rich.console import Console

    with tempfile.TemporaryDirectory() as place:
        found = measured(options.recipe, options.steps, Path(place))
    for name, (recording, whole) in found.items():
        Console(soft_wrap=True, highlight=False).print(
            f"record of {options.recipe}, {name} time: {1000 * recording:.1f} ms of {1000 * whole:.0f} ms in "
            f"{options.steps} steps, {recording / whole:.2%} (limit {LIMIT:.0%})"
        )
    recording, whole = found["CPU"]
    return int(recording >= LIMIT * whole)


if __name__ == "__main__":
    sys.exit(main())
