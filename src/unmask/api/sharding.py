"""How many ranks of a training run hold the weights together."""

from __future__ import annotations

from dataclasses import fields

import torch

from unmask.distributed import World
from unmask.distributed.watch import Watch
from unmask.plan.estimate import make_plan
from unmask.plan.gpus import GIBIBYTE
from unmask.report.progress import phase
from unmask.settings.commands import PlanSettings
from unmask.settings.recipe import Recipe


def shard_size(recipe: Recipe) -> int:
    """What train.shard says, 0: every rank holds all; auto: by the plan of `unmask plan` on the GPUs that are there."""
    train = recipe.train
    if train.shard != "auto":
        return train.shard_size
    world = World.start(train.precision, telling=phase)
    if world.size == 1 or world.device.type != "cuda" or train.lora_rank:
        return 0
    memory_bytes = torch.cuda.get_device_properties(world.device).total_memory
    with Watch.of(world), phase("planning whether all weights fit a GPU"):
        return world.first(lambda: _planned(recipe, world, memory_bytes))


def _planned(recipe: Recipe, world: World, memory_bytes: int) -> int:
    """The same of the layout that is planned for so many GPUs of this memory, each machine with as many as here."""
    settings = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    gpus = f"{world.size}x{memory_bytes // GIBIBYTE}GB"
    layout = make_plan(PlanSettings(**settings, gpus=gpus, node_gpus=world.local_size)).layout
    return layout.shard if layout.sharded else 0
