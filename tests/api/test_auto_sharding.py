"""train.shard auto: the layout of a run is that of its plan on the GPUs that are there."""

from contextlib import nullcontext
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch

from unmask.api.sharding import shard_size
from unmask.distributed import World
from unmask.plan.estimate import make_plan
from unmask.settings.commands import PlanSettings
from unmask.settings.recipe import Recipe, TrainSettings


def of(**train) -> Recipe:
    return replace(Recipe(), train=TrainSettings(**train))


@pytest.fixture
def ranks(monkeypatch):
    """Makes the process one of several with GPUs of some memory; the first rank's word is its own."""

    def start(size, gibibytes, of_node):
        device = torch.device("cuda", 0)
        world = SimpleNamespace(size=size, local_size=of_node, device=device, first=lambda work: work())
        monkeypatch.setattr(World, "start", lambda precision, telling: world)
        monkeypatch.setattr("unmask.api.sharding.Watch.of", lambda world: nullcontext())
        memory = SimpleNamespace(total_memory=int(gibibytes * 2**30))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)

    return start


def test_shard_size_is_what_is_set_or_none_on_one_process():
    assert shard_size(of(shard="4")) == 4
    assert shard_size(of(shard="0")) == shard_size(of()) == 0


@pytest.mark.parametrize(
    ("gibibytes", "train", "expected"),
    [
        (800, {}, 0),
        (80, {}, 8),
        (80, {"nodes_replicate": False}, 16),
        (24, {}, 16),  # more than a node's eighth
        (8, {"lora_rank": 4}, 0),
    ],
)
def test_shard_size_of_auto_is_that_of_the_plan(gibibytes, train, expected, ranks, monkeypatch):
    monkeypatch.setattr("unmask.plan.memory.peak_bytes", lambda *arguments: 0)  # slow, and tested with the plan
    ranks(16, gibibytes, 8)
    recipe = replace(of(**train), model="GSAI-ML/LLaDA-8B-Base")
    assert shard_size(recipe) == expected
    settings = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    assert make_plan(PlanSettings(**settings, gpus=f"16x{gibibytes}GB")).layout.shard == max(expected, 1)


def test_shard_size_of_auto_keeps_a_small_model_whole(ranks):
    ranks(16, 1, 8)
    assert shard_size(of()) == 0
