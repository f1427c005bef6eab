"""Whether GPUs that each hold all weights can train a recipe."""

from __future__ import annotations

from dataclasses import fields

from unmask.plan.estimate import make_plan
from unmask.plan.gpus import GIBIBYTE
from unmask.settings.commands import PlanSettings
from unmask.settings.recipe import Recipe


def replicas_fit(recipe: Recipe, count: int, memory_bytes: int) -> bool:
    """Whether the recipe fits `count` GPUs of this memory, weights whole on each, by the plan of `unmask plan`."""
    settings = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    return make_plan(PlanSettings(**settings, gpus=f"{count}x{memory_bytes // GIBIBYTE}GB")).fits
