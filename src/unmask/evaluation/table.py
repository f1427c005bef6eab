"""The table of `unmask evaluate`: solve rates by unmasking rule, length and number of steps."""

from __future__ import annotations

from typing import Any

import torch

from unmask.data.examples import Examples
from unmask.denoisers.base import Denoiser
from unmask.denoisers.loading import load_denoiser, load_tokenizer
from unmask.distributed import best_device
from unmask.errors import UserError
from unmask.evaluation.evaluator import Evaluator, mean_metrics
from unmask.evaluation.kept_rows import KeptRows, identity
from unmask.report.progress import advance, message, phase
from unmask.sampling.records import EveryStep
from unmask.sampling.sampler import Sampler
from unmask.settings.commands import EvaluateSettings
from unmask.uniforms import Uniforms

_COLUMNS = {"unmasking": "unmasking", "tokens": "tokens", "steps": "steps", "solved": "solved (95 %)"}


def evaluation_table(settings: EvaluateSettings, kept: KeptRows | None = None) -> list[dict[str, Any]]:
    """Rows of the table, one for each rule, length and number of steps: see `mean_metrics`.

    `kept`: where each is kept once it is finished; those that are there already are not measured again.

    Raises UserError for a task that compares no answers, and settings that do not go with the model.
    """
    settings.check()
    device, samplers = best_device(), settings.samplers()
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    with phase(f"loading {settings.model}"):
        tokenizer = load_tokenizer(settings.model)
        denoiser = load_denoiser(settings.model, dtype, model_format=settings.model_format).to(device)
    for _, sampler in samplers:  # before the first of them has run
        sampler.check(denoiser, EveryStep() if settings.over_denoising else None)
    longest = max(sampler.max_new_tokens for _, sampler in samplers)
    room = denoiser.max_length - longest
    if room <= 0:
        raise UserError(
            f"lengths: completions of {longest} tokens do not fit, the model takes {denoiser.max_length} with the "
            "prompt: give fewer"
        )
    with phase(f"preparing the {settings.split} examples"):
        items = settings.task.examples(settings.split, settings.examples, settings.seed)
        examples = Examples.of(items, tokenizer, denoiser.eos_id, room, settings.chat, denoiser.other_end_ids)
    evaluator = Evaluator(
        task=settings.task,
        tokenizer=tokenizer,
        examples=examples,
        uniforms=Uniforms().key("evaluation", settings.seed),
        batch=settings.batch,
        device=device,
    )
    kept = kept or KeptRows()
    kept.begin(identity(settings))
    for place, (rule, sampler) in enumerate(samplers):
        title = f"{rule}, {sampler.max_new_tokens} tokens, {sampler.steps_taken} steps:"
        if place < len(kept.rows):
            message(f"{title} {_solved(kept.rows[place])}, kept from before")
        else:
            kept.add(_row(settings, evaluator, denoiser, rule, sampler, title))
    return kept.finish()


def _row(
    settings: EvaluateSettings, evaluator: Evaluator, denoiser: Denoiser, rule: str, sampler: Sampler, title: str
) -> dict[str, Any]:
    count = len(evaluator.examples.items)
    with phase(title, count * settings.samples, unit="completion"):
        metrics = mean_metrics(evaluator, denoiser, sampler, settings.samples, over_denoising=settings.over_denoising)
        advance(0, _solved(metrics))
    return {
        "unmasking": rule,
        "tokens": sampler.max_new_tokens,
        "steps": sampler.steps_taken,
        "examples": count,
    } | metrics


def print_table(rows: list[dict[str, Any]], settings: EvaluateSettings) -> None:
    """Print the rows to the terminal as a table."""
    from rich.table import Table

    from unmask.report.terminal import terminal_console

    how = "greedy" if settings.temperature == 0 else f"temperature {settings.temperature}"
    table = Table(
        title=f"{settings.model} on {settings.task.name} ({settings.split}, {rows[0]['examples']} items, {how})"
    )
    others = [name for name in rows[0] if name not in (*_COLUMNS, "examples", "solved_low", "solved_high")]
    for name in (*_COLUMNS.values(), *others):
        left = name == "unmasking"
        table.add_column(name.replace("_", " "), justify="left" if left else "right", overflow="fold")
    for row in rows:
        cells = [row["unmasking"], str(row["tokens"]), str(row["steps"]), _interval(row)]
        table.add_row(*cells, *(_cell(name, row[name]) for name in others))
    terminal_console().print(table)


def _cell(name: str, value: float) -> str:
    return f"{value:.2f}" if name == "tokens_a_step" else f"{value:.1%}"


def _interval(row: dict[str, Any]) -> str:
    return f"{row['solved']:.1%} ({row['solved_low']:.1%} – {row['solved_high']:.1%})"


def _solved(row: dict[str, Any]) -> str:
    return f"solved {_interval(row)}"
