"""A run and its directory: recipe.toml, metrics.jsonl, completions.jsonl, curve.png, checkpoints/, summary.json."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import tomli_w

from unmask.denoisers.directories import checkpoints, newest_checkpoint
from unmask.denoisers.intact import read_json
from unmask.distributed import World
from unmask.distributed.sharding import is_sharded, placement
from unmask.errors import UserError
from unmask.evaluation.statistics import paired_interval, solved_summary
from unmask.report.curve import draw_curve
from unmask.report.durable import write_durably
from unmask.report.metrics import MetricsLog, check_length, read_metrics
from unmask.report.monitor import CollapseMonitor
from unmask.report.progress import advance, message, phase, telling
from unmask.settings.inputs import input_digests, tell_changed_inputs, with_absolute_paths
from unmask.settings.reader import document_of
from unmask.settings.recipe import Recipe
from unmask.settings.resume import changed_schedule, check_steps, locate_run, new_directory
from unmask.training.build import build_trainer, filtered_order
from unmask.training.checkpoint import (
    check_whole,
    drop_old,
    read_state,
    save_checkpoint,
    set_aside,
)
from unmask.training.trainer import Trainer, evaluation_row

_ABOUT = """This directory holds one training run of unmask.

recipe.toml         every setting of the run; `unmask train --recipe recipe.toml` repeats it
inputs.json         digests of your own files that it reads, if any
metrics.jsonl       one line a training step or evaluation (names as in TRL where TRL has one)
completions.jsonl   one prompt a step: its completions, their rewards, the step that revealed each token
before.json         held-out results of the base model, example by example; after.json: of the trained model
curve.png           reward and solve rates over the run
ranks.jsonl         one line a start: how many ranks, on what devices, what each of them holds
checkpoints/        models in the Hugging Face layout, with what `unmask train --resume` needs
summary.json        solve rates before and after, with 95 % intervals
"""


def start_run(recipe: Recipe, output: str | None, name: str, shard_size: int | None = None) -> Run:
    """A new run in a new directory, which the first rank chooses and writes for all.

    `shard_size`: see `build_trainer`. Raises UserError, with nothing written, for what cannot work.
    """
    world = World.start(recipe.train.precision)
    world.first(lambda: str(new_directory(output, name)))  # what is taken is said before anything is loaded
    recipe = with_absolute_paths(recipe)
    trainer = build_trainer(recipe, shard_size=shard_size)
    return Run(directory=Path(world.first(lambda: _begin(recipe, output, name))), trainer=trainer)


def _begin(recipe: Recipe, output: str | None, name: str) -> str:
    """Make the directory of a new run, with what it is a run of; its path."""
    directory = new_directory(output, name)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "README.txt").write_text(_ABOUT)
    write_durably(directory / "recipe.toml", tomli_w.dumps(document_of(recipe)))
    if digests := input_digests(recipe):
        write_durably(directory / "inputs.json", json.dumps(digests, indent=1))
    return str(directory)


def resume_run(recipe: Recipe, resume: str, output: str | None = None, shard_size: int | None = None) -> Run:
    """The run that `resume` (a run's directory, or a checkpoint's) names, to go on at its newest or that checkpoint.

    `recipe` is the run's own, but for settings that may change. With `output` the run goes on in a copy there, else
    later checkpoints are set aside. The first rank looks and writes for all; their number may be another than before.
    Raises UserError where there is no run, or a checkpoint is damaged.
    """
    world = World.start(recipe.train.precision)
    found = world.first(lambda: _look(recipe, resume, output))
    source, directory = Path(found["source"]), Path(found["directory"])
    checkpoint, state = found["checkpoint"] and Path(found["checkpoint"]), found["state"]
    trainer = build_trainer(recipe, checkpoint, shard_size)

    def take_over() -> None:
        if state.get("step", 0) and (changed := changed_schedule(source, recipe.train)) is not None:
            message(changed)
        _take_over(source, directory, checkpoint)
        write_durably(directory / "recipe.toml", tomli_w.dumps(document_of(recipe)))

    world.first(take_over)
    return Run(directory=directory, trainer=trainer, state=state)


def _look(recipe: Recipe, resume: str, output: str | None) -> dict[str, Any]:
    """What a run that goes on is found to be: its source, checkpoint and state, and the directory where it goes on."""
    source, checkpoint = locate_run(resume)
    checkpoint = checkpoint or newest_checkpoint(source / "checkpoints")
    directory = source if output is None else new_directory(output, "")
    state: dict[str, Any] = {}
    if checkpoint is not None:
        check_whole(checkpoint, recipe.train)
        state = read_state(checkpoint)
        _check_written(source, state)
    check_steps(source, state.get("step", 0), recipe.train.steps)
    if (source / "inputs.json").is_file():
        tell_changed_inputs(read_json(source / "inputs.json"))
    places = {"source": source, "directory": directory, "checkpoint": checkpoint}
    return {name: path and str(path) for name, path in places.items()} | {"state": state}


def _check_written(source: Path, state: dict[str, Any]) -> None:
    """Raise UserError where a file that the run had written by its checkpoint, and needs to go on, is damaged."""
    read_json(source / "before.json")
    for log in ("metrics", "completions"):
        check_length(source / f"{log}.jsonl", state.get(f"{log}_bytes", 0))


def _take_over(source: Path, directory: Path, checkpoint: Path | None) -> None:
    """Make `directory` that of a run whose newest checkpoint is this one: a copy, or with later ones set aside."""
    if directory != source:
        kept = None if checkpoint is None else checkpoint.name
        others = [path.name for path in checkpoints(source / "checkpoints") if path.name != kept]
        ended = ("after.json", "summary.json", "curve.png", "*.partial", "*.aside*")
        shutil.copytree(source, directory, ignore=shutil.ignore_patterns(*others, *ended), dirs_exist_ok=True)
    elif checkpoint is not None:
        places = [path.name for path in checkpoints(source / "checkpoints")]
        for name in places[places.index(checkpoint.name) + 1 :]:
            set_aside(source / "checkpoints" / name)


@dataclass(kw_only=True)
class Run:
    """A training run in a directory: trains from `state` (None or empty: from the start) to the last step."""

    directory: Path
    trainer: Trainer
    state: dict[str, Any] | None = None

    @property
    def is_main(self) -> bool:
        """Whether this rank writes."""
        return self.trainer.objective.world.is_main

    @property
    def how_to_go_on(self) -> str:
        """What to say when the run is interrupted now: the command that goes on with it, or starts it again."""
        newest = newest_checkpoint(self.directory / "checkpoints")
        command = f"`unmask train --resume {quote(str(self.directory))}`"
        if newest is None:
            return f"{self.directory} has no checkpoint yet: {command} starts it again"
        return f"{command} goes on from its newest checkpoint, {newest.name}"

    def finish(self) -> dict[str, Any]:
        """Train to the last step, evaluating and saving on the way; the contents of summary.json."""
        with telling():
            return self._finish()

    def _finish(self) -> dict[str, Any]:
        recipe, state = self.trainer.recipe, self.state or {}
        monitor = CollapseMonitor()
        if "monitor" in state:
            monitor.load(state["monitor"])
        if recipe.train.over_denoising_filter:
            self.trainer.order = state.get("order") or filtered_order(self.trainer)
        first = state.get("step", 0)
        self._tell_ranks(first)
        # Ranks share evaluations, and each knows all figures; the first writes.
        metrics, completions = (self._log(name, state) for name in ("metrics", "completions"))
        with metrics, completions:
            if first == 0:
                self._evaluate("base evaluation", 0, recipe.evaluation.examples, metrics, "before.json")
            with phase("step", recipe.train.steps, done=first):
                for step in range(first, recipe.train.steps):
                    self._train_step(step, metrics, completions, monitor)
            steps = recipe.train.steps
            self._evaluate("final evaluation", steps, recipe.evaluation.examples, metrics, "after.json")
        return self.trainer.objective.world.first(self._summarise)

    def _tell_ranks(self, first_step: int) -> None:
        """Say what is truly active, and keep it in the run: a run may go on with other ranks."""
        objective = self.trainer.objective
        active = objective.world.active | placement(objective.denoiser)
        if self.is_main:
            message(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in active.items()))
            with MetricsLog(self.directory / "ranks.jsonl") as log:
                log.write({"first_step": first_step, **active})

    def _log(self, name: str, state: dict[str, Any]) -> MetricsLog:
        if not self.is_main:
            return MetricsLog(Path("/dev/null"))
        return MetricsLog(self.directory / f"{name}.jsonl", keep_bytes=state.get(f"{name}_bytes", 0))

    def _train_step(
        self,
        step: int,
        metrics: MetricsLog,
        completions: MetricsLog,
        monitor: CollapseMonitor,
    ) -> None:
        settings = self.trainer.recipe.train
        started = time.monotonic()
        row, sample = self.trainer.step(step)
        done = step + 1
        metrics.write({"step": done, **row, "step_seconds": time.monotonic() - started})
        completions.write({"step": done, **sample})
        advance(figures=f"reward {row['reward']:.3f}" if "reward" in row else f"loss {row['loss']:.3f}")
        for warning in monitor.update(row):
            metrics.write({"step": done, "warning": warning})
            message(f"warning at step {done}: {warning}")
        if done % settings.evaluate_every == 0 and done < settings.steps:
            count = self.trainer.recipe.evaluation.examples_during
            self._evaluate(f"evaluation after step {done}:", done, count, metrics)
        if done % settings.checkpoint_every == 0 or done == settings.steps:
            with phase(f"saving the checkpoint of step {done}"):
                self._checkpoint(done, metrics, completions, monitor)

    def _checkpoint(self, done: int, metrics: MetricsLog, completions: MetricsLog, monitor: CollapseMonitor) -> None:
        trainer, folder = self.trainer, self.directory / "checkpoints"
        objective, optimizer = trainer.objective, trainer.updater.optimizer
        moved = objective.reference if trainer.recipe.train.reference_sync_steps else None
        saved = (objective.denoiser, trainer.tokenizer, optimizer)
        if not self.is_main:
            if is_sharded(objective.denoiser):  # it has a part of what the first writes
                save_checkpoint(folder, done, *saved, {}, moved, writes=False)
            return
        state: dict[str, Any] = {
            "metrics_bytes": metrics.position(),
            "completions_bytes": completions.position(),
            "monitor": monitor.state(),
        }
        if trainer.recipe.train.over_denoising_filter:
            state["order"] = trainer.order
        save_checkpoint(folder, done, *saved, state, moved)
        drop_old(folder, trainer.recipe.train.keep_checkpoints)
        self._draw()

    def _evaluate(self, title: str, step: int, count: int, metrics: MetricsLog, name: str | None = None) -> None:
        size = self.trainer.evaluation_size(count, further=name is not None)
        with phase(title, size or None, unit="completion"):
            values = self.trainer.evaluation(count)
            if name is not None:
                values |= self.trainer.further_evaluation()
        metrics.write({"step": step, **evaluation_row(values)})
        if name is not None and self.is_main:
            write_durably(self.directory / name, json.dumps(values))

    def _draw(self) -> None:
        recipe = self.trainer.recipe
        title = f"{recipe.method.name} on {recipe.task.name}, seed {recipe.train.seed}"
        draw_curve(read_metrics(self.directory / "metrics.jsonl"), self.directory / "curve.png", title)

    def _summarise(self) -> dict[str, Any]:
        before, after = (json.loads((self.directory / name).read_text()) for name in ("before.json", "after.json"))
        summary: dict[str, Any] = {"method": self.trainer.recipe.method.name, "steps": self.trainer.recipe.train.steps}
        for name in after:
            measured, _, metric = name.rpartition("/")
            if metric in ("solved", "preferred"):
                count = len(before.get(name, []))
                if count != len(after[name]):
                    raise UserError(
                        f"the held-out data changed during the run: before.json has {count} results "
                        f"of {name}, after.json {len(after[name])}; the trained model lies in its checkpoints"
                    )
                gain, low, high = paired_interval(before[name], after[name])
                summary[measured] = {
                    "before": solved_summary(before[name]),
                    "after": solved_summary(after[name]),
                    "gain": gain,
                    "gain_low": low,
                    "gain_high": high,
                }
        write_durably(self.directory / "summary.json", json.dumps(summary, indent=1))
        self._draw()
        return summary
