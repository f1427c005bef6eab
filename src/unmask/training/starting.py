"""Starts a run in a new directory, or goes on with one: what cannot work is told before anything is loaded."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from unmask.distributed import World
from unmask.distributed.watch import Watch
from unmask.report.progress import phase
from unmask.settings.inputs import with_absolute_paths
from unmask.settings.ownership import owned_new
from unmask.settings.recipe import Recipe
from unmask.settings.resume import how_to_go_on
from unmask.settings.trackers import check_trackers, tracker_names
from unmask.training.build import build_trainer, ranks_together
from unmask.training.given import NOTHING_GIVEN, Given
from unmask.training.run import Run
from unmask.training.run_directory import check_seen, describe, look, take_over


def start_run(
    recipe: Recipe, output: str | None, name: str, shard_size: int | None = None, given: Given = NOTHING_GIVEN
) -> Run:
    """A new run in a new directory, which the first rank chooses, owns and writes for all.

    `shard_size`, `given`: see `build_trainer`. Raises UserError, with nothing written, for what cannot work.
    """
    check_trackers(tracker_names(recipe.track))
    world = World.start(recipe.train.precision, telling=phase)
    recipe = with_absolute_paths(recipe)
    with ExitStack() as stack:  # what is taken is said before anything is loaded
        watch = stack.enter_context(Watch.of(world))
        directory = Path(world.first(lambda: str(stack.enter_context(owned_new(output, name)))))
        watch.how_to_go_on = lambda: how_to_go_on("train", directory)
        if ranks_together(recipe.train, shard_size):  # each writes of a checkpoint
            check_seen(world, directory)
        trainer = build_trainer(recipe, shard_size=shard_size, given=given)
        world.first(lambda: describe(directory, recipe))
        return Run(directory=directory, trainer=trainer, ownership=stack.pop_all(), callbacks=given.callbacks)


def resume_run(
    recipe: Recipe,
    resume: str,
    output: str | None = None,
    shard_size: int | None = None,
    given: Given = NOTHING_GIVEN,
) -> Run:
    """The run that `resume` (a run's directory, or a checkpoint's) names, to go on at its newest or that checkpoint.

    `recipe` is the run's own, but for settings that may change. With `output` the run goes on in a copy there, else
    later checkpoints are set aside. The first rank looks, owns and writes for all; their number may be another than
    before. Raises UserError where there is no run, another process is at it, or a checkpoint is damaged.
    """
    check_trackers(tracker_names(recipe.track))
    world = World.start(recipe.train.precision, telling=phase)
    with ExitStack() as stack:
        watch = stack.enter_context(Watch.of(world))
        found = world.first(lambda: look(recipe, resume, output, stack))
        source, directory = Path(found["source"]), Path(found["directory"])
        watch.how_to_go_on = lambda: how_to_go_on("train", directory)
        checkpoint, state = found["checkpoint"] and Path(found["checkpoint"]), found["state"]
        if checkpoint is not None:
            check_seen(world, checkpoint)
        if ranks_together(recipe.train, shard_size):  # each writes of a checkpoint
            check_seen(world, directory)
        trainer = build_trainer(recipe, checkpoint, shard_size, given)
        world.first(lambda: take_over(recipe, source, directory, checkpoint, state.get("step", 0)))
        ownership = stack.pop_all()
        return Run(directory=directory, trainer=trainer, state=state, ownership=ownership, callbacks=given.callbacks)
