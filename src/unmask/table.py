"""The table of `unmask evaluate`: solve rates by unmasking rule and number of steps."""

from __future__ import annotations

from typing import Any

from unmask.config import build
from unmask.data import Examples
from unmask.denoisers.pretrained import load_denoiser, load_tokenizer
from unmask.environment import best_device
from unmask.errors import UserError
from unmask.evaluate import Evaluator, solved_summary
from unmask.recipe import EvaluateSettings, RolloutSettings
from unmask.tasks.base import verifies
from unmask.uniforms import Uniforms
from unmask.unmasking import RULES


def evaluation_table(settings: EvaluateSettings) -> list[dict[str, Any]]:
    """A row for each rule and number of steps: every metric of the task, with intervals on the solve rate."""
    if not verifies(settings.task):
        raise UserError(f"task {settings.task.name} compares no answers: nothing can be measured by sampling")
    device = best_device()
    tokenizer, denoiser = load_tokenizer(settings.model), load_denoiser(settings.model).to(device)
    samplers = [
        (
            rule,
            steps,
            RolloutSettings(steps=steps, block_length=settings.block_length, unmasking=build(RULES[rule], {})).sampler(
                settings.task, temperature=settings.temperature
            ),
        )
        for rule in settings.rules
        for steps in settings.step_counts
    ]
    items = settings.task.examples(settings.split, settings.examples, settings.seed)
    room = denoiser.max_length - samplers[0][2].max_new_tokens
    evaluator = Evaluator(
        task=settings.task,
        tokenizer=tokenizer,
        examples=Examples.of(items, tokenizer, denoiser.eos_id, room, settings.chat),
        uniforms=Uniforms().key("evaluation", settings.seed),
        batch=settings.batch,
        device=device,
    )
    rows = []
    for rule, steps, sampler in samplers:
        values = evaluator.metrics(denoiser, sampler)
        others = {name: sum(numbers) / len(numbers) for name, numbers in values.items() if name != "solved"}
        row = {"unmasking": rule, "steps": steps, "examples": len(items), **solved_summary(values["solved"]), **others}
        rows.append(row)
    return rows


def print_table(rows: list[dict[str, Any]], settings: EvaluateSettings) -> None:
    """The rows for a person."""
    from rich.console import Console
    from rich.table import Table

    how = "greedy" if settings.temperature == 0 else f"temperature {settings.temperature}"
    table = Table(
        title=f"{settings.model} on {settings.task.name} ({settings.split}, {rows[0]['examples']} items, {how})"
    )
    shown = ("unmasking", "steps", "solved", "95 % interval")
    others = [name for name in rows[0] if name not in (*shown, "examples", "solved_low", "solved_high")]
    for name in (*shown, *others):
        table.add_column(name, justify="left" if name == "unmasking" else "right")
    for row in rows:
        interval = f"{row['solved_low']:.1%} – {row['solved_high']:.1%}"
        cells = [row["unmasking"], str(row["steps"]), f"{row['solved']:.1%}", interval]
        table.add_row(*cells, *(f"{row[name]:.1%}" for name in others))
    Console().print(table)
