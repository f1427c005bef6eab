"""A run and its directory: recipe.toml, metrics.jsonl, completions.jsonl, curve.png, checkpoints/, summary.json."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unmask.denoisers.directories import checkpoint_name
from unmask.distributed.sharding import is_sharded, placement
from unmask.errors import UserError
from unmask.page import write_report
from unmask.report.curve import draw_curve, is_drawn
from unmask.report.durable import DiskError, write_durably
from unmask.report.environment import environment
from unmask.report.live import watch_completion
from unmask.report.metrics import MetricsLog, MetricsReader
from unmask.report.monitor import CollapseMonitor
from unmask.report.progress import advance, message, phase, telling
from unmask.report.record import cut_record
from unmask.report.tracking import PAGE, Trackers
from unmask.settings.reader import leaves
from unmask.settings.resume import how_to_go_on
from unmask.settings.trackers import tracker_names
from unmask.training.build import filtered_order
from unmask.training.callbacks import Callback, Callbacks
from unmask.training.checkpoint import save_checkpoint
from unmask.training.contents import Contents
from unmask.training.run_directory import results_of
from unmask.training.saving import Saving
from unmask.training.shown_answers import tell_shown_answers
from unmask.training.skipping import MOST_IN_A_ROW, SkippedSteps, check_finite, ends_for_skipped, lower_rate
from unmask.training.stopping import Stopping
from unmask.training.summary import summarise
from unmask.training.trainer import Trainer, evaluation_row


@dataclass(frozen=True, kw_only=True)
class _Course:
    """What a run keeps from step to step, beside the trainer."""

    metrics: MetricsLog
    completions: MetricsLog
    monitor: CollapseMonitor
    stopping: Stopping
    saving: Saving
    callbacks: Callbacks
    skipped: SkippedSteps = field(default_factory=SkippedSteps)


@dataclass(kw_only=True)
class Run:
    """A training run in a directory: trains from `state` (None or empty: from the start) to the last step."""

    directory: Path
    trainer: Trainer
    state: dict[str, Any] | None = None
    ownership: ExitStack = field(default_factory=ExitStack)  # of the directory, and the watch of ranks: until the end
    callbacks: Sequence[Callback] = ()

    def __post_init__(self) -> None:
        self._drawn = MetricsReader(self.directory / "metrics.jsonl", is_drawn)

    @property
    def is_main(self) -> bool:
        """Whether this rank writes."""
        return self.trainer.objective.world.is_main

    @property
    def how_to_go_on(self) -> str:
        """What to say when the run is interrupted now: the command that goes on with it, or starts it again."""
        return how_to_go_on("train", self.directory)

    def how_to_mend(self, metrics: dict[str, float], last: int) -> str:
        """What to say where numbers are no longer finite, with these metrics; `last`: the last step that was good."""
        if not math.isfinite(metrics.get("reward", 0.0)):
            return f"mend the reward, then {self.how_to_go_on}"
        return lower_rate(self.directory, last, self.trainer.recipe.train.learning_rate)

    def finish(self) -> dict[str, Any]:
        """Train to the last step, evaluating and saving on the way; the contents of summary.json.

        Where all steps are made and measured, it says so and does no more.
        SIGINT and SIGTERM end it after the step, saved, with KeyboardInterrupt or Terminated. Raises UserError, with
        what there is to go on from, where the disk takes no more, or numbers are no longer finite.
        """
        try:
            with self.ownership, telling():
                found = self.trainer.objective.world.first(self._results)
                return self._summary() if found is None else found
        except DiskError as error:
            raise UserError(f"{error}, then {self.how_to_go_on}") from error

    def _results(self) -> dict[str, Any] | None:
        """The contents of summary.json where there is nothing left to do, which is told."""
        state, steps = self.state or {}, self.trainer.recipe.train.max_steps
        found = results_of(self.directory, state) if state.get("step") == steps else None
        if found is not None:
            message(f"all {steps} steps are made; give --train.max-steps for more")
        return found

    def _summary(self) -> dict[str, Any]:
        world = self.trainer.objective.world
        with Stopping(world) as stopping, self._trackers() as trackers:
            with Saving(stopping.was_asked) as saving:
                last = self._finish(stopping, saving, trackers)
            return world.first(lambda: self._summarise(last))

    def _trackers(self) -> Trackers:
        """Those that the recipe names, on the rank that writes."""
        recipe, first_step = self.trainer.recipe, (self.state or {}).get("step", 0)
        return Trackers(
            tracker_names(recipe.track) if self.is_main else (),
            self.directory,
            {leaf.path: leaf.default for leaf in leaves(recipe)},
            first_step,
            on_cpu=self.trainer.objective.world.device.type == "cpu",
        )

    def _finish(self, stopping: Stopping, saving: Saving, trackers: Trackers) -> int:
        """The last step that was trained."""
        recipe, state = self.trainer.recipe, self.state or {}
        first, steps = state.get("step", 0), recipe.train.max_steps
        monitor = CollapseMonitor()
        if "monitor" in state:
            monitor.load(state["monitor"])
        self._tell_ranks(first)
        self._tell_unmeasured()
        if self.is_main:
            cut_record(self.directory, first)  # what was recorded later is recorded again
        self.trainer.record_to(self.directory)
        # Ranks share evaluations, and each knows all figures; the first writes.
        metrics = self._log("metrics", state, trackers.scalars)
        completions = self._log("completions", state, trackers.completions)
        with metrics, completions:
            course = _Course(
                metrics=metrics,
                completions=completions,
                monitor=monitor,
                stopping=stopping,
                saving=saving,
                callbacks=Callbacks(given=self.callbacks if self.is_main else ()),
            )
            stopping.obey()
            if recipe.train.over_denoising_filter:
                with stopping.at_once():
                    self.trainer.order = state.get("order") or filtered_order(self.trainer)
            if first == 0:
                self._tell_shown_answers()
                self._evaluate_all("base evaluation", 0, course, "before.json")
            elif state.get("evaluation_due"):
                self._write_evaluation(first, self._evaluated_during(first, course), course)
            with phase("step", steps, done=first):
                last = self._train_steps(first, course)
            saving.wait()  # of what is evaluated now
            self._evaluate_all("final evaluation", last, course, "after.json")
            return last

    def _train_steps(self, first: int, course: _Course) -> int:
        """Train from the first step to the last, or to one after which a callback asks for the end: its number."""
        done, steps = first, self.trainer.recipe.train.max_steps
        while done < steps and not self._is_ended(course.callbacks):
            self._train_step(done, course)
            done += 1
            self._pause(done, course)
        if course.callbacks.wanted_end is not None:
            message(f"ended after step {done}: {course.callbacks.wanted_end}")
        return done

    def _is_ended(self, callbacks: Callbacks) -> bool:
        """Whether a callback of the first rank asked for the end; all ranks ask alike."""
        wanted = callbacks.wanted_end is not None
        return bool(self.trainer.objective.world.most(int(wanted))) if self.callbacks else wanted

    def _tell_ranks(self, first_step: int) -> None:
        """Say what is truly active, and keep it in the run: a run may go on with other ranks."""
        objective = self.trainer.objective
        active = objective.world.active | placement(objective.denoiser)
        if self.is_main:
            message(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in active.items()))
            with MetricsLog(self.directory / "ranks.jsonl") as log:
                log.write({"first_step": first_step, **active, "environment": environment()})

    def _tell_shown_answers(self) -> None:
        if self.is_main:
            held_out = self.trainer.evaluators
            splits = [self.trainer.source.examples, *(each.examples for each in held_out.values())]
            tell_shown_answers(held_out["test"], splits)

    def _tell_unmeasured(self) -> None:
        """Say where no evaluation will have a figure."""
        if self.is_main and not self.trainer.source.evaluation_passes:
            name = self.trainer.recipe.task.name
            message(f"held-out answers are not compared by task {name}: no figure is measured")

    def _log(self, name: str, state: dict[str, Any], then: Callable[[Mapping[str, Any]], None]) -> MetricsLog:
        if not self.is_main:
            return MetricsLog(Path("/dev/null"))
        return MetricsLog(self.directory / f"{name}.jsonl", state.get(f"{name}_bytes", 0), then)

    def _train_step(self, step: int, course: _Course) -> None:
        course.saving.check()
        started, saving_seconds = time.monotonic(), course.saving.waited_seconds()
        row, sample = self.trainer.step(step)
        done = step + 1
        seconds = {"step_seconds": time.monotonic() - started, "saving_seconds": saving_seconds}
        seconds |= {f"step_seconds/{part}": value for part, value in self.trainer.part_seconds.items()}
        line = {"step": done, **row, **seconds}
        course.metrics.write(line)
        course.completions.write({"step": done, **sample})
        watch_completion(done, sample)
        advance(figures=f"reward {row['reward']:.3f}" if "reward" in row else f"loss {row['loss']:.3f}")
        why = course.skipped.see(row)
        warnings = ([] if why is None else [f"its update was skipped: {why}"]) + course.monitor.update(row)
        for warning in warnings:
            course.metrics.write({"step": done, "warning": warning})
            message(f"warning at step {done}: {warning}")
        if why is not None and course.skipped.in_a_row == MOST_IN_A_ROW:
            course.saving.wait()  # the newest checkpoint is named
            raise ends_for_skipped(course.skipped, done, why, self.how_to_mend(row, done - course.skipped.in_a_row))
        course.callbacks.tell("on_step", done, lambda callback: callback.on_step(done, dict(line)))

    def _pause(self, done: int, course: _Course) -> None:
        """What lies between two steps: an evaluation, a checkpoint, and the end where it was asked for."""
        settings, stopping = self.trainer.recipe.train, course.stopping
        due = done % settings.eval_steps == 0 and done < settings.max_steps
        if due and not stopping.is_asked():
            try:
                values = self._evaluated_during(done, course)
            except KeyboardInterrupt:
                if not stopping.was_asked():  # else it is the second, and other ranks may be elsewhere
                    self._save(done, course, evaluation_due=True)
                raise
            self._write_evaluation(done, values, course)
            due = False
        ends, wanted = stopping.is_asked(), self._is_ended(course.callbacks)
        if ends or wanted or done % settings.save_steps == 0 or done == settings.max_steps:
            self._save(done, course, evaluation_due=due)
        if ends:
            course.saving.wait()
            self.trainer.objective.world.barrier()  # torchrun ends all when one rank has: the first may still be saving
            raise stopping.interrupt()

    def _save(self, done: int, course: _Course, evaluation_due: bool) -> None:
        """Write a checkpoint, but for steps that were skipped: the newest is one from which training went on."""
        if course.skipped.in_a_row and done < self.trainer.recipe.train.max_steps:
            return
        with course.saving.standing_still(), phase(f"saving the checkpoint of step {done}"):
            course.saving.wait()
            check_finite(self.trainer.objective.denoiser.parameters(), done, self.how_to_mend({}, done))
            self._checkpoint(done, course, {"evaluation_due": True} if evaluation_due else {})

    def _checkpoint(self, done: int, course: _Course, further: dict[str, Any]) -> None:
        trainer, objective, settings = self.trainer, self.trainer.objective, self.trainer.recipe.train
        if not self.is_main and not is_sharded(objective.denoiser):  # else it has a part of what is saved
            return
        contents = Contents(
            denoiser=objective.denoiser,
            tokenizer=trainer.tokenizer,
            optimizer=trainer.updater.optimizer,
            reference=objective.reference if settings.ref_model_sync_steps else None,
        )
        state = self._state(course, further) if self.is_main else {}
        folder, keep = self.directory / "checkpoints", settings.save_total_limit
        save_checkpoint(folder, done, contents, state, course.saving, objective.world, keep)
        if self.is_main:
            self._draw()
        if course.callbacks.given:
            course.saving.wait()  # they are told of what lies there
            path = folder / checkpoint_name(done)
            course.callbacks.tell("on_checkpoint", done, lambda callback: callback.on_checkpoint(done, path))

    def _state(self, course: _Course, further: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint says of the run beside its tensors."""
        state: dict[str, Any] = further | {
            "metrics_bytes": course.metrics.position(),
            "completions_bytes": course.completions.position(),
            "monitor": course.monitor.state(),
        }
        if self.trainer.recipe.train.over_denoising_filter:
            state["order"] = self.trainer.order
        return state

    def _evaluated_during(self, done: int, course: _Course) -> dict[str, list[float]]:
        """The figures of an evaluation between two steps, which an interrupt ends at once."""
        count = self.trainer.recipe.evaluation.examples_during
        size = self.trainer.evaluation_size(count, further=False)
        with course.stopping.at_once(), phase(f"evaluation after step {done}:", size or None, unit="completion"):
            return self.trainer.evaluation(count)

    def _evaluate_all(self, title: str, step: int, course: _Course, name: str) -> None:
        """Evaluate before or after training, on all splits; `name`: the file of the figures, example by example."""
        count = self.trainer.recipe.evaluation.examples
        size = self.trainer.evaluation_size(count, further=True)
        with course.stopping.at_once(), phase(title, size or None, unit="completion"):
            course.stopping.obey()  # one that came before
            values = self.trainer.evaluation(count) | self.trainer.further_evaluation()
        if self.is_main:
            write_durably(self.directory / name, json.dumps(values))
        self._write_evaluation(step, values, course)

    def _write_evaluation(self, step: int, values: dict[str, list[float]], course: _Course) -> None:
        """Write down what was found; an interrupt waits, or it would be written twice."""
        row = evaluation_row(values)
        course.metrics.write({"step": step, **row})
        if self.trainer.recorder is not None:
            self.trainer.recorder.write_evaluation(step, self.trainer.evaluators["test"].examples.items[0].prompt)
        course.callbacks.tell("on_evaluation", step, lambda callback: callback.on_evaluation(step, dict(row)))

    def _draw(self) -> None:
        recipe = self.trainer.recipe
        title = f"{recipe.method.name} on {recipe.task.name}, seed {recipe.train.seed}"
        draw_curve(self._drawn.rows(), self.directory / "curve.png", title)

    def _summarise(self, steps: int) -> dict[str, Any]:
        summary = summarise(self.directory, self.trainer.recipe.method.name, steps)
        self._draw()
        if self.trainer.recipe.track and find_spec("bokeh"):  # which the extra `report` brings; trackers take the page
            write_report([self.directory], self.directory / PAGE)
        return summary
