"""Inside a block the denoising loop never waits for the device: no value is read back, no shape depends on one."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.small import prompts_of, small_denoiser
from helpers.stable_rule import StableFirst
from unmask.sampling.block import Block
from unmask.sampling.caching import CACHINGS
from unmask.sampling.records import EveryStep, OneStep
from unmask.sampling.sampler import Sampler
from unmask.sampling.unmasking import RULES
from unmask.uniforms import Uniforms

# Values read back, shapes that depend on them; and lists made tensors (lift_fresh), whose copy to a GPU is waited for.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal", "lift_fresh")


class NoWaiting(TorchDispatchMode):
    """Fails on operators for which a GPU would be waited for."""

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        name = operator.overloadpacket.__name__
        assert name not in WAITS, f"{name} waits for the device"
        return operator(*arguments, **(keywords or {}))


def watch_blocks(monkeypatch):
    """Let no block wait from now on; a list that grows by the numbers of those denoised."""
    whole = Block.denoise
    blocks = []

    def watched(block):
        blocks.append(block.blocks)
        with NoWaiting():
            whole(block)

    monkeypatch.setattr(Block, "denoise", watched)
    return blocks


PLAIN = [*(rule() for rule in RULES.values() if not rule.adaptive), StableFirst()]
WITH_CACHES = [(rule, name) for rule in PLAIN for name in CACHINGS if name == "none" or not rule.remasks]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("rule", "caching"), WITH_CACHES, ids=lambda value: getattr(value, "name", value))
def test_block_does_not_wait_for_the_device(rule, temperature, caching, monkeypatch):
    blocks = watch_blocks(monkeypatch)
    sampler = Sampler(
        max_new_tokens=8,
        block_length=4,
        steps=4,
        temperature=temperature,
        unmasking=rule,
        caching=CACHINGS[caching],
    )
    sampler(small_denoiser(), prompts_of([[1, 2, 3], [4]]), Uniforms())
    assert blocks == [[0, 0], [1, 1]]


def variant(name):
    """A denoiser, and settings of the sampler."""
    denoiser, settings = small_denoiser(), {}
    if name == "shift":
        denoiser.shift = True
    elif name == "blocks of the model":
        denoiser.block_length = 4
    elif name == "guidance":
        settings["guidance_scale"] = 1.0
    elif name == "a few at a time":
        settings |= {"batch": 3, "stop_at_end": True}
    elif name != "plain":
        settings["caching"] = CACHINGS[name]
    return denoiser, settings


RECORDS = {"nothing": None, "one": OneStep(degree=0.0), "every": EveryStep()}
EXACT = ("plain", "shift", "blocks of the model", "guidance", "a few at a time")
VARIANTS = [(kind, name) for kind in RECORDS for name in EXACT]
# A cache refuses to record every step.
VARIANTS += [(kind, name) for kind in ("nothing", "one") for name in ("dual", "prefix_delayed")]


@pytest.mark.parametrize(("kind", "name"), VARIANTS)
def test_block_does_not_wait_for_the_device_when_recording(kind, name, monkeypatch):
    record = RECORDS[kind]
    watch_blocks(monkeypatch)
    denoiser, settings = variant(name)
    sampler = Sampler(max_new_tokens=8, block_length=4, steps=4, temperature=1.0, **settings)
    prompts = prompts_of([[1, 2, 3], [4]], samples=range(2))
    rollout = sampler(denoiser, prompts, Uniforms(), record, group_size=2)
    assert bool(rollout.snapshots) == (record is not None)


def test_no_waiting_notices_a_wait():
    with NoWaiting(), pytest.raises(AssertionError, match="_local_scalar_dense waits"):
        bool(torch.ones(1).any())
