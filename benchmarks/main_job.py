"""The main job's training step beside the bare forwards and backwards that it needs, and where the rest goes.

    python benchmarks/main_job.py [--recipe sudoku-dispo] [--steps 20] [--markdown FILE]

Each step is followed by its own forwards once more, at the same shapes and with nothing around them: the network and
its head without gradient for the rollout, and with gradient, down to all weights, for the update. One thread, CPU time,
medians over steps. Exit code 1 where the step takes more than 1.5 times as long as they do.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import allocator

BAR = 1.5
_PARTS = ("rollout", "scoring in a thread", "scoring", "update batches", "update", "the rest")
_WITHIN = {  # what is not a forward or backward, and where it is called
    "rollout: draws": ("unmask.sampling.proposals", "Propose", "_propose"),
    "rollout: unmasking rule": ("unmask.sampling", "block", "commit"),
    "rollout: guesses kept": ("unmask.sampling.snapshots", "SnapshotBuffer", "remember"),
    "update: loss": ("unmask.objective.term", "Term", "loss"),
    "update: optimizer": ("torch.optim", "AdamW", "step"),
}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="sudoku-dispo", help="name or file of a recipe")
    parser.add_argument("--steps", type=int, default=20, help="training steps, after two to warm up")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there, too")
    return parser.parse_args()


@dataclass(kw_only=True)
class Watch:
    """CPU seconds of the parts of a training step, and the forwards that it made."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    forwards: list[tuple[Any, ...]] = field(default_factory=list)

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, its time counted."""

        def counted(*arguments: Any, **options: Any) -> Any:
            start = time.thread_time()  # for rewards are scored in another
            result = call(*arguments, **options)
            self.seconds[part] += time.thread_time() - start
            return result

        return counted

    @contextmanager
    def on(self, trainer: Any) -> Iterator[None]:
        """While it is on, parts are timed and forwards noted; everything is then put back."""
        import torch

        from unmask.training.on_policy import BackgroundScoring

        source, objective, updater = type(trainer.source), type(trainer.objective), type(trainer.updater)
        denoiser = type(trainer.objective.denoiser)
        whole = denoiser.forward

        def noted(module: Any, tokens: Any, attention: Any, query: Any, *others: Any, **options: Any) -> Any:
            self.forwards.append((tokens, attention, query, torch.is_grad_enabled()))
            return whole(module, tokens, attention, query, *others, **options)

        changed = [
            (source, "rollout", "rollout"),
            (BackgroundScoring, "_score", "scoring in a thread"),
            (source, "score", "scoring"),
            (objective, "prepare", "update batches"),
            (updater, "update", "update"),
            *((getattr(import_module(module), owner), name, part) for part, (module, owner, name) in _WITHIN.items()),
        ]
        kept = [(owner, name, getattr(owner, name)) for owner, name, _ in changed] + [(denoiser, "forward", whole)]
        for owner, name, part in changed:
            setattr(owner, name, self.timed(part, getattr(owner, name)))
        denoiser.forward = noted
        try:
            yield
        finally:
            for owner, name, value in kept:
                setattr(owner, name, value)


def bare(denoiser: Any, forwards: list[tuple[Any, ...]]) -> dict[str, float]:
    """CPU seconds of the forwards alone: those without gradient, and those with, their backward passes included."""
    import torch

    from unmask.denoisers.head.reducers import AllLogits

    seconds = {"rollout": 0.0, "update": 0.0}
    for tokens, attention, query, trained in forwards:
        start = time.process_time()
        with torch.set_grad_enabled(trained):
            (logits,) = denoiser(tokens, attention, query, AllLogits())
            if trained:
                logits.sum().backward()
        seconds["update" if trained else "rollout"] += time.process_time() - start
    denoiser.zero_grad()
    return seconds


def measured(trainer: Any, steps: int) -> list[dict[str, float]]:
    """For each step: the seconds of its parts, of all of it, and of its bare forwards."""
    rows = []
    for step in range(steps + 2):
        watch = Watch()
        with watch.on(trainer):
            start = time.process_time()
            trainer.step(step)
            whole = time.process_time() - start
        alone = bare(trainer.objective.denoiser, watch.forwards)
        row = {part: watch.seconds[part] for part in _PARTS[:-1]}
        row |= {"the rest": whole - sum(row.values()), "step": whole}
        row |= {part: watch.seconds[part] for part in _WITHIN}
        rows.append(row | {f"bare {part}": seconds for part, seconds in alone.items()})
    return rows[2:]


def table(rows: list[dict[str, float]]) -> tuple[list[tuple[str, ...]], float]:
    """Lines of the table (part, seconds, share, bare seconds), and the ratio of the step to its bare forwards."""
    typical = {name: median(row[name] for row in rows) for name in rows[0]}
    alone = typical["bare rollout"] + typical["bare update"]
    lines = [
        (
            part,
            f"{1000 * typical[part]:.1f}",
            f"{100 * typical[part] / typical['step']:.0f} %",
            f"{1000 * typical[f'bare {part}']:.1f}" if f"bare {part}" in typical else "",
        )
        for part in sorted((*_PARTS, *_WITHIN), key=lambda part: _PARTS.index(part.split(":")[0]))
    ]
    lines.append(("training step", f"{1000 * typical['step']:.1f}", "100 %", f"{1000 * alone:.1f}"))
    return lines, median(row["step"] / (row["bare rollout"] + row["bare update"]) for row in rows)


def main() -> int:
    """Exit code: 0 where the bar is met."""
    options = _options()
    allocator.tune()
    import torch
    from rich.console import Console
    from rich.table import Table

    from unmask.settings.reader import build
    from unmask.settings.recipe import Recipe
    from unmask.settings.recipe_files import read_recipe
    from unmask.training.build import build_trainer

    document = read_recipe(options.recipe)
    document["train"] = document.get("train", {}) | {"threads": 1}
    document["evaluation"] = document.get("evaluation", {}) | {"examples": 8, "examples_during": 8}
    trainer = build_trainer(build(Recipe, document))
    torch.set_num_threads(1)
    lines, ratio = table(measured(trainer, options.steps))
    header = ("part", "ms of CPU", "share", "bare forwards and backwards, ms")
    shown = Table(*header, title=f"a training step of {options.recipe}, medians of {options.steps}")
    for line in lines:
        shown.add_row(*line)
    console = Console()
    console.print(shown)
    verdict = f"{ratio:.2f} times its bare forwards and backwards (bar: at most {BAR})"
    console.print(verdict)
    if options.markdown:
        rows = [header, ("---",) * len(header), *lines]
        text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        options.markdown.write_text(f"{text}\n\nThe step takes {verdict}.\n")
    return int(ratio > BAR)


if __name__ == "__main__":
    sys.exit(main())
