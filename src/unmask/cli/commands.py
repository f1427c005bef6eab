"""What each subcommand does. Nothing heavy is imported before it runs."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.denoisers.directories import check_new, find_model
from unmask.errors import UserError
from unmask.evaluation.statistics import figure_label
from unmask.report.progress import message, phase, watch_completions
from unmask.settings.inputs import check_data
from unmask.settings.resume import check_resumable, new_directory
from unmask.settings.trackers import check_trackers, tracker_names
from unmask.tasks.sources import check_named
from unmask.validation.user_files import user_path

if TYPE_CHECKING:
    from unmask.settings.commands import (
        EvaluateSettings,
        OracleSettings,
        PlanSettings,
        PretrainRecipe,
        SampleSettings,
    )
    from unmask.settings.recipe import Recipe
    from unmask.tasks import Task


def train(recipe: Recipe, options: Namespace) -> None:
    """Train a new run, or resume that of --resume; print solve rates before and after and where the result lies."""
    name = Path(options.recipe or "sudoku-dispo").stem
    if options.names_the_job:
        name = f"{recipe.method.name}-{recipe.task.name}"
    if options.resume:
        check_resumable(options.resume, options.output, recipe.train.max_steps)
    else:
        new_directory(options.output, name)
    recipe.check_blocks()
    check_trackers(tracker_names(recipe.track))
    _check_inputs(recipe.model, recipe.task, recipe.task.splits)
    if options.watch:
        watch_completions()
    with phase(f"unmask train: {f'{options.resume} goes on' if options.resume else name}"):
        from unmask.api.sharding import shard_size
        from unmask.cli.environment import give_back_freed_memory, prepare
        from unmask.training.starting import resume_run, start_run

        prepare(recipe.train.threads)
    _tell_of_task(recipe.model, recipe.task, options)
    if shard := shard_size(recipe):
        give_back_freed_memory()
    if options.resume:
        run = resume_run(recipe, options.resume, options.output, shard)
    else:
        run = start_run(recipe, options.output, name, shard)
    _say(run.is_main, f"run directory: {run.directory}")
    try:
        summary = run.finish()
    except KeyboardInterrupt as interrupt:
        raise type(interrupt)(*([run.how_to_go_on] if run.is_main else [])) from None
    run.trainer.objective.world.leave()
    if run.is_main:
        _print_summary(summary, run.directory)


def _check_inputs(model: str | None, task: Task, splits: Collection[str]) -> None:
    """Raise UserError, before torch is imported, where the model on disk or a file of data is not there, or not named.

    `splits`: those of the task that are read; where there are none, its files need not be there.
    """
    if model is not None:
        find_model(model)
    if splits:
        check_data(task)
    check_named(task, splits)


def _tell_of_task(model: str | None, task: Task, options: Namespace) -> None:
    if options.task_is_missing:
        message(f"{model} brings no task, so this is {task.name}: --task names another")


def _print_summary(summary: dict[str, Any], directory: Path) -> None:
    for name, figures in summary.items():
        if isinstance(figures, dict):
            before, after = figures["before"]["solved"], figures["after"]["solved"]
            gain = f"{figures['gain']:+.1%}, 95 % interval {figures['gain_low']:+.1%} to {figures['gain_high']:+.1%}"
            what = "ranked as given" if name == "pairs" else "solved"
            _say(True, f"{figure_label(name)}: {before:.1%} {what} before, {after:.1%} after ({gain})")
    _say(True, f"model: {directory / 'checkpoints'}/step_{summary['steps']:06d}")
    _say(True, f"curve: {directory / 'curve.png'}")


def report(settings: object, options: Namespace) -> None:
    """Write the page of a run, or of several compared."""
    runs = [user_path(run) for run in options.runs]
    if not runs:
        raise UserError("report needs the directory of a run, or of several to compare them")
    output = _given_page(options.output) if options.output else _default_page(runs)
    from unmask.page import write_report

    _say(True, f"page: {write_report(runs, output)}")


def _given_page(given: str) -> Path:
    output = user_path(given)
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"output {given!r} is no file that can be written: give one in a directory that is there")
    return output


def _default_page(runs: list[Path]) -> Path:
    return runs[0] / "report.html" if len(runs) == 1 else Path("comparison.html")


def watch(settings: object, options: Namespace) -> None:
    """Serve the page of a run until it is interrupted."""
    if not options.run:
        raise UserError("watch needs the directory of a run")
    port = options.port or "0"
    if not (port.isdecimal() and len(port) < 6):
        raise UserError(f"--port is {port!r}: give a number, such as 8008, or 0 for a free one")
    from unmask.page.watch import listening

    with listening(user_path(options.run), int(port)) as server:
        _say(True, f"watching {options.run} at {server.address} (on this machine alone; Ctrl-C ends it)")
        server.serve_forever()


def sample(settings: SampleSettings, options: Namespace) -> None:
    """Print how a model fills one completion, step by step."""
    settings.check()
    _check_inputs(settings.model, settings.task, () if settings.prompt is not None else ("test",))
    with phase(f"unmask sample: {settings.model}"):
        from unmask.cli.environment import prepare
        from unmask.evaluation.show import show_sample

        prepare(None)
    _tell_of_task(settings.model, settings.task, options)
    show_sample(settings)


def convert(settings: object, options: Namespace) -> None:
    """Write a masked diffusion model made of an autoregressive checkpoint."""
    if not options.model or not options.output:
        raise UserError("convert needs --model, the directory of a checkpoint, and --output, that of the new model")
    directory = user_path(options.output)
    check_new(directory)
    find_model(options.model)
    with phase(f"unmask convert: {options.model}"):
        from unmask.cli.environment import prepare
        from unmask.denoisers.convert import convert_to

        prepare(None)
        mask_token, mask_id = convert_to(options.model, directory, options.mask_token)
    _say(True, f"model: {directory}\nmask token: {mask_token} (id {mask_id})")


def export(settings: object, options: Namespace) -> None:
    """Write a checkpoint as it is shared to --output, and with --push send it to the Hub."""
    if not options.source or not options.output:
        raise UserError("export needs the directory of a run or of a checkpoint, and --output, a new directory")
    output = user_path(options.output)
    check_new(output)
    with phase(f"unmask export: {options.source}"):
        from unmask.export.export import export as write
        from unmask.export.push import check_push, push
        from unmask.export.source import find_source

        source = find_source(options.source)
        if options.push is not None:
            check_push(options.push)
    write(source, output, options.push or output.absolute().name)
    _say(True, f"model: {output}")
    if options.push is not None:
        _say(True, f"on the Hub: {push(output, options.push)}")


def evaluate(settings: EvaluateSettings, options: Namespace) -> None:
    """Print a table of solve rates on held-out items; write it as JSON to --output, row by row."""
    output = user_path(options.output) if options.output else None
    if output is not None and not output.parent.is_dir():
        raise UserError(f"output {options.output!r} lies in no directory: make {str(output.parent)!r} first")
    if output is not None and output.is_dir():
        raise UserError(
            f"output {options.output!r} is a directory: give a file, such as {str(output / 'table.json')!r}"
        )
    settings.check()
    _check_inputs(settings.model, settings.task, (settings.split,))
    with phase(f"unmask evaluate: {settings.model} on {settings.task.name}"):
        from unmask.cli.environment import prepare
        from unmask.evaluation.kept_rows import KeptRows
        from unmask.evaluation.table import evaluation_table, print_table

        prepare(settings.threads)
    _tell_of_task(settings.model, settings.task, options)
    kept = KeptRows(output)
    try:
        rows = evaluation_table(settings, kept)
    except KeyboardInterrupt as interrupt:
        raise type(interrupt)(*kept.how_to_go_on) from None
    print_table(rows, settings)


def pretrain(recipe: PretrainRecipe, options: Namespace) -> None:
    """Train a base model, supervised, and write it to --output, or go on with that of --resume."""
    if bool(options.output) == bool(options.resume):
        raise UserError("pretrain needs --output, a directory for the model, or --resume, one to go on with")
    recipe.check_spelling()
    if options.output:
        new_directory(options.output, "")
    _check_inputs(recipe.model, recipe.task, ("train",))
    what = f"{options.resume} goes on" if options.resume else f"{recipe.model or 'a new model'} on {recipe.task.name}"
    with phase(f"unmask pretrain: {what}"):
        from unmask.cli.environment import prepare
        from unmask.training.pretraining import resume_pretraining, start_pretraining

        prepare(recipe.threads)
    _tell_of_task(recipe.model, recipe.task, options)
    run = resume_pretraining(recipe, options.resume) if options.resume else start_pretraining(recipe, options.output)
    try:
        digest = run.finish()
    except KeyboardInterrupt as interrupt:
        raise type(interrupt)(run.how_to_go_on) from None
    _say(True, f"model: {run.directory}\nsha256 of model.safetensors: {digest}")


def plan(settings: PlanSettings, options: Namespace) -> None:
    """Print memory, forwards, FLOPs and time that a recipe is predicted to take on GPUs."""
    from unmask.plan.gpus import gpus_of
    from unmask.plan.published import model_config

    gpus_of(settings)
    model_config(settings.model)
    settings.rollout.check_blocks(settings.task, ("max_new_tokens", "rollout.block_length", "rollout.steps"))
    with phase(f"unmask plan: {settings.method.name} on {settings.model}"):
        from unmask.cli.environment import prepare
        from unmask.plan.page import print_plan

        prepare(settings.train.threads)
    print_plan(settings, all_methods=options.all_methods)


def oracle(settings: OracleSettings, options: Namespace) -> None:
    """Print bias and noise of every method's gradient estimate on the enumerable toy."""
    with phase("unmask oracle: every method on a toy that can be enumerated"):
        from unmask.cli.environment import prepare
        from unmask.report.oracle_table import print_oracle

        prepare(settings.threads)
    print_oracle(settings)


def recipes(settings: object, options: Namespace) -> None:
    """Print the names of the shipped recipes, each with the first sentence of its file."""
    from unmask.settings.recipe_files import recipe_summaries

    for command in ("train", "pretrain"):
        _say(True, f"unmask {command} --recipe")
        for name, summary in recipe_summaries(command).items():
            _say(True, f"  {name:40} {summary}")


def methods(settings: object, options: Namespace) -> None:
    """Print the table of all methods, or all about the one named (or FILE.py:NAME), as text or Markdown."""
    from unmask.methods import METHODS
    from unmask.settings.reader import chosen

    with nullcontext() if options.markdown else phase(f"unmask methods: {options.name or 'all of them'}"):
        method = chosen(METHODS, options.name, "method")() if options.name is not None else None
        from unmask.report.methods_page import document, print_method, print_methods, section

    if options.markdown:
        _say(True, document() if method is None else section(method))
    elif method is not None:
        print_method(method)
    else:
        print_methods()


def _say(speaks: bool, text: str) -> None:
    if speaks:
        print(text, flush=True)  # noqa: T201
