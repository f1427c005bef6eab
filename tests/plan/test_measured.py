"""Plans against measurements: FLOPs as PyTorch counts them, bytes as its allocator reports them, of a real step."""

import gc

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from helpers.small_run import SmallRun, settings_of

METHODS = {
    "diffu-grpo": {"name": "diffu-grpo"},
    "mdpo": {"name": "mdpo", "steps": 2},
    "spg": {"name": "spg"},
    "dispo": {"name": "dispo"},
    "just-grpo": {"name": "just-grpo", "fraction": 0.5},
}
ADAPTERS = {"lora_rank": 8, "gradient_checkpointing": True}


def flops(action) -> int:
    """Of matrix products and attention; the fused attention of CPUs is not counted, so it is taken apart."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("method", "train"),
    [("diffu-grpo", {"num_iterations": 2}), *((name, {}) for name in list(METHODS)[1:]), ("spg", ADAPTERS)],
    ids=[*METHODS, "spg with adapters, recomputed"],
)
def test_flops(method, train, tmp_path, monkeypatch):
    monkeypatch.setattr("unmask.plan.estimate.peak_bytes", lambda *arguments: 0)  # slow, and of no account here
    run = SmallRun(settings_of(tmp_path, METHODS[method], train=train, shape={"num_hidden_layers": 2}))
    planned = run.plan.flops
    assert planned.rollout == pytest.approx(flops(run.sample), rel=0.05)
    answered = flops(run.ask)
    assert planned.trained + planned.other == pytest.approx(answered + flops(run.update), rel=0.05)


def peak(action) -> int:
    """The most bytes that the allocator had given out at once."""
    gc.collect()  # or what earlier tests left is given back in the middle
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = highest = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        alive += change.nbytes()
        highest = max(highest, alive)
    return highest


WIDE = {"hidden_size": 96, "num_key_value_heads": 4, "vocab_size": 200}
CASES = {
    "all at once": ("diffu-grpo", {}, {}),
    "layers recomputed": ("spg", {"micro_batch": 8, "gradient_checkpointing": True}, WIDE),
    "adapters in bf16": ("dispo", {"micro_batch": 4, "lora_rank": 8, "precision": "bf16", "param_dtype": "bf16"}, {}),
}


@pytest.mark.parametrize(("method", "train", "shape"), CASES.values(), ids=CASES)
def test_peak_of_rollout_and_of_update(method, train, shape, tmp_path):
    run = SmallRun(settings_of(tmp_path, METHODS[method], train=train, shape=shape))
    memory = run.plan.memory
    # Recorded states are there while it samples, as the plan's moments say; of the smallest runs they are 3 %.
    assert memory.rollout + memory.records == pytest.approx(peak(run.sample), rel=0.05)
    run.ask()

    def backward():
        for update_batch in run.update_batches[0]:
            run.policy.backward(update_batch)

    planned = memory.update + (memory.gradients if memory.accumulates else 0)
    assert planned == pytest.approx(peak(backward), rel=0.05)


def test_peak_of_rollout_at_another_temperature(tmp_path):
    """Scaled logits are a copy."""
    rollout, shape = {"temperature": 0.9}, {"hidden_size": 96, "num_key_value_heads": 4, "vocab_size": 1280}
    run = SmallRun(settings_of(tmp_path, METHODS["diffu-grpo"], rollout=rollout, shape=shape))
    assert run.plan.memory.rollout + run.plan.memory.records == pytest.approx(peak(run.sample), rel=0.05)


def test_peak_of_a_whole_step(tmp_path):
    """Everything from the weights on, with the optimizer that GPUs have."""
    settings = settings_of(tmp_path, METHODS["diffu-grpo"], train={"micro_batch": 4, "num_iterations": 2})
    made = []

    def step():
        run = SmallRun(settings)
        run.policy.optimizer.defaults["foreach"] = run.policy.optimizer.param_groups[0]["foreach"] = True
        run.sample()
        run.ask()
        run.update()
        made.append(run)

    assert peak(step) == pytest.approx(made[0].plan.memory.peak, rel=0.05)
