"""How many ranks of a training run hold the weights together."""

from __future__ import annotations

import os

import torch

from unmask.distributed import World
from unmask.plan.fit import replicas_fit
from unmask.report.progress import phase
from unmask.settings.recipe import Recipe


def shard_size(recipe: Recipe) -> int:
    """What train.shard says, 0: every rank holds all; auto: more only where the plan says that all do not fit a GPU.

    Then each node holds the weights once, or without train.nodes_replicate all ranks together.
    """
    train = recipe.train
    if train.shard != "auto":
        return train.shard_size
    world = World.start(train.precision)
    if world.size == 1 or world.device.type != "cuda" or train.lora_rank:
        return 0
    memory_bytes = torch.cuda.get_device_properties(world.device).total_memory
    with phase("planning whether all weights fit a GPU"):
        if world.first(lambda: replicas_fit(recipe, world.size, memory_bytes)):
            return 0
    of_node = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    return of_node if train.nodes_replicate and world.size % of_node == 0 else world.size
