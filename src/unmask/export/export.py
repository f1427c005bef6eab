"""A checkpoint written to a new directory, as it is shared: whole under its name, or not there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tomli_w

from unmask.denoisers.directories import check_new, partial
from unmask.export.card import ADAPTER_FOLDER, CURVE, model_card
from unmask.export.citation import bibtex
from unmask.export.evaluation import measured_of
from unmask.export.source import ExportSource
from unmask.report.curve import draw_curve
from unmask.report.durable import sync, tensor_errors, writing
from unmask.report.metrics import read_metrics
from unmask.report.progress import phase
from unmask.settings.inputs import shareable_document, without_directories


def export(source: ExportSource, output: Path, name: str) -> None:
    """Write the checkpoint to `output`, a new directory, with card, citation, recipe, curve and adapters.

    `name`: what the card calls it. Raises UserError where `output` holds something, DiskError where it cannot be
    written.
    """
    check_new(output)
    measured = measured_of(source)
    with phase(f"writing {output}"), _written_whole(output) as directory, tensor_errors():
        for path in source.files:
            shutil.copyfile(path, directory / path.name)
        if source.adapters is not None:
            _write_adapters(source, source.adapters, directory / ADAPTER_FOLDER)
        has_curve = _draw_curve(source, directory)
        if source.recipe is not None:
            (directory / "recipe.toml").write_text(tomli_w.dumps(shareable_document(source.recipe)))
        (directory / "CITATION.bib").write_text(bibtex(source) + "\n")
        model_card(source, name, measured, has_curve=has_curve).save(directory / "README.md")


@contextmanager
def _written_whole(output: Path) -> Iterator[Path]:
    """A hidden directory to write to, which becomes `output` at the end, synced; none is left of what fails."""
    written = partial(output)
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(written, ignore_errors=True)  # of an export that was killed
        written.mkdir()
        try:
            yield written
            for path in (*written.rglob("*"), written):
                sync(path)
            written.rename(output)  # where something has come there meanwhile, the system refuses
        except BaseException:
            shutil.rmtree(written, ignore_errors=True)
            raise
        sync(output.parent)


def _write_adapters(source: ExportSource, adapters: Path, directory: Path) -> None:
    from unmask.denoisers.peft_layout import write_peft_files  # torch and peft

    rank, alpha = source.lora
    recipe = source.recipe
    directory.mkdir()
    write_peft_files(
        adapters,
        source.directory,
        directory,
        rank=rank,
        alpha=alpha,
        base=None if recipe is None or recipe.model is None else without_directories(recipe.model),
        model_format=None if recipe is None else recipe.model_format,
    )


def _draw_curve(source: ExportSource, directory: Path) -> bool:
    """Draw the run's curve up to the checkpoint; whether there is one."""
    trained, run, step = source.trained, source.run, source.step
    if trained is None or run is None or step is None:
        return False
    metrics = [row for row in read_metrics(run / "metrics.jsonl") if row.get("step", 0) <= step]
    title = f"{trained.method.name} on {trained.task.name}, seed {trained.train.seed}"
    draw_curve(metrics, directory / CURVE, title)
    return True
