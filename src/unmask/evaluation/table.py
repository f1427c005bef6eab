"""The table of `unmask evaluate`: solve rates by unmasking rule, length and number of steps."""

from __future__ import annotations

from typing import Any

import torch

from unmask.data.examples import Examples
from unmask.denoisers.loading import load_denoiser, load_tokenizer
from unmask.distributed import best_device
from unmask.errors import UserError
from unmask.evaluation.evaluator import Evaluator, mean_metrics
from unmask.sampling.records import EveryStep
from unmask.settings.commands import EvaluateSettings
from unmask.uniforms import Uniforms

_COLUMNS = {"unmasking": "unmasking", "tokens": "tokens", "steps": "steps", "solved": "solved (95 %)"}


def evaluation_table(settings: EvaluateSettings) -> list[dict[str, Any]]:
    """Rows of the table, one for each rule, length and number of steps: see `mean_metrics`.

    Raises UserError for a task that compares no answers, and settings that do not go with the model.
    """
    if not settings.task.verifies:
        raise UserError(f"task {settings.task.name} compares no answers: nothing can be measured by sampling")
    device, samplers = best_device(), settings.samplers()
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    tokenizer = load_tokenizer(settings.model)
    denoiser = load_denoiser(settings.model, dtype, model_format=settings.model_format).to(device)
    items = settings.task.examples(settings.split, settings.examples, settings.seed)
    for _, sampler in samplers:  # before the first of them has run
        sampler.check(denoiser, EveryStep() if settings.over_denoising else None)
    longest = max(sampler.max_new_tokens for _, sampler in samplers)
    room = denoiser.max_length - longest
    if room <= 0:
        raise UserError(
            f"lengths: completions of {longest} tokens do not fit, the model takes {denoiser.max_length} with the "
            "prompt: give fewer"
        )
    evaluator = Evaluator(
        task=settings.task,
        tokenizer=tokenizer,
        examples=Examples.of(items, tokenizer, denoiser.eos_id, room, settings.chat, denoiser.other_end_ids),
        uniforms=Uniforms().key("evaluation", settings.seed),
        batch=settings.batch,
        device=device,
    )
    return [
        {"unmasking": rule, "tokens": sampler.max_new_tokens, "steps": sampler.steps, "examples": len(items)}
        | mean_metrics(evaluator, denoiser, sampler, settings.samples, over_denoising=settings.over_denoising)
        for rule, sampler in samplers
    ]


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
        solved = f"{row['solved']:.1%} ({row['solved_low']:.1%} – {row['solved_high']:.1%})"
        cells = [row["unmasking"], str(row["tokens"]), str(row["steps"]), solved]
        table.add_row(*cells, *(_cell(name, row[name]) for name in others))
    terminal_console().print(table)


def _cell(name: str, value: float) -> str:
    return f"{value:.2f}" if name == "tokens_a_step" else f"{value:.1%}"
