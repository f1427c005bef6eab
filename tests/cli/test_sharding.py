"""train.shard auto: weights are sharded over GPUs only where the plan says that replicas do not fit."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from unmask.cli.sharding import shard_size
from unmask.distributed import World
from unmask.plan.fit import replicas_fit
from unmask.settings.recipe import Recipe, TrainSettings


def of(**train) -> Recipe:
    return replace(Recipe(), train=TrainSettings(**train))


@pytest.fixture
def ranks(monkeypatch):
    """Makes the process one of several with GPUs of some memory; the first rank's word is its own."""

    def start(size, gibibytes, of_node):
        world = SimpleNamespace(size=size, device=torch.device("cuda", 0), first=lambda work: work())
        monkeypatch.setattr(World, "start", lambda precision: world)
        memory = SimpleNamespace(total_memory=int(gibibytes * 2**30))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(of_node))

    return start


def test_shard_size_is_what_is_set_or_none_on_one_process():
    assert shard_size(of(shard="4")) == 4
    assert shard_size(of(shard="0")) == shard_size(of()) == 0


@pytest.mark.parametrize(
    ("gibibytes", "train", "expected"),
    [
        (80, {}, 0),  # the embedded model
        (0, {}, 8),
        (0, {"nodes_replicate": False}, 16),
        (0, {"lora_rank": 4}, 0),
    ],
)
def test_shard_size_of_auto_asks_the_plan(gibibytes, train, expected, ranks, monkeypatch):
    ranks(16, gibibytes, 8)
    fits = replicas_fit(of(), 16, 80 * 2**30)
    assert fits
    asked = []

    def fit(recipe, count, memory):
        asked.append(count)
        return bool(memory) and fits

    monkeypatch.setattr("unmask.cli.sharding.replicas_fit", fit)
    assert shard_size(of(**train)) == expected
    assert asked == ([] if "lora_rank" in train else [16])


def test_replicas_of_a_model_of_8_billion_do_not_fit_80_gigabytes(tmp_path):
    recipe = replace(of(), model="GSAI-ML/LLaDA-8B-Base")
    assert not replicas_fit(recipe, 8, 80 * 2**30)
    assert replicas_fit(recipe, 8, 800 * 2**30)
