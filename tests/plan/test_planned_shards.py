"""Plans of sharded training beside two ranks that hold a piece each: bytes held, bytes at the peaks, bytes sent."""

import gc
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed

from faults.launch import torchrun_environment
from helpers.processes import finish, start
from helpers.small_run import SmallRun, settings_of
from rehearsal.measured import peak
from unmask.denoisers.head.workspace import Workspace
from unmask.distributed import World
from unmask.distributed.host_memory import pinned_bytes
from unmask.distributed.sharding import gathered, shard, shard_mesh
from unmask.plan.estimate import make_plan
from unmask.settings.commands import PlanSettings
from unmask.settings.reader import build, document_of
from unmask.training.contents import Contents, Parts

SHAPE = {"hidden_size": 128, "intermediate_size": 352, "vocab_size": 1200}
# Method, train and rollout settings.
CASES = {
    "float32, all at once": ("diffu-grpo", {}, {}),
    "bf16 in micro-batches, recomputed": (
        "diffu-grpo",
        {"precision": "bf16", "micro_batch": 4, "gradient_checkpointing": True},
        {},
    ),
    "rspo, which scores the whole batch first": ("rspo", {"precision": "bf16", "micro_batch": 4}, {}),
    "a cache, whose rollout is scored again": ("diffu-grpo", {}, {"caching": "dual"}),
}
WITHIN = 0.05
pytestmark = pytest.mark.long
LET_GO_SECONDS = 0.003  # gloo's threads hold a buffer a little longer than the message takes


def counted(sizes):
    """Have the bytes of whole messages added up in `sizes`, by kind."""
    whole = distributed.all_gather_single

    def all_gather(output, *arguments, **options):
        sizes["gathered"] += output.nbytes
        work = whole(output, *arguments, **options)
        if work is not None:
            work.wait()
        time.sleep(LET_GO_SECONDS)
        return work

    def reduce_scatter(output, input, **options):
        """In the memory of the input: gloo's own takes as much again, which NCCL does not."""
        sizes["summed"] += input.nbytes
        distributed.all_reduce(input)
        time.sleep(LET_GO_SECONDS)
        output.copy_(input.chunk(2)[distributed.get_rank()])

    distributed.all_gather_single, distributed.reduce_scatter_single = all_gather, reduce_scatter


def held(tensors) -> int:
    return sum(tensor.to_local().nbytes for tensor in tensors)


def rollout_bytes(run) -> int:
    return sum(value.nbytes for value in vars(run.rollout).values() if isinstance(value, torch.Tensor))


def measure(directory, method, train, rollout, sizes):
    run = SmallRun(settings_of(directory, {"name": method}, train=train, rollout=rollout, shape=SHAPE))
    denoiser, reference, optimizer = run.objective.denoiser, run.objective.reference, run.updater.optimizer
    world = World(device=torch.device("cpu"), rank=distributed.get_rank(), size=2)
    for policy in (denoiser, reference):
        shard(policy, policy.model.base_model.layers, shard_mesh(world, 2), run.settings.train.precision)
    optimizer.param_groups[0]["params"] = list(denoiser.parameters())
    run.objective = replace(run.objective, world=World.single())  # its network is in bf16, nothing is cast

    def backward():
        for loss in run.objective.losses(run.prepared[0]):
            loss.backward()

    def whole(policy, work):
        """Bytes at the peak of the work, with the policy's weights gathered, and the bytes of those."""
        seen = []
        with gathered(policy):
            seen.extend((peak(work), sum(weight.nbytes for weight in policy.parameters())))
        return seen

    with gathered(denoiser):  # updates come after a rollout
        pass
    sizes.update(gathered=0, summed=0)
    with gathered(denoiser):
        run.sample()
    if run.settings.rollout.caching != "none":
        with gathered(denoiser):
            run.rescore()
    run.prepare()  # which gathers the reference
    backward()
    found, kept = dict(sizes), run.prepared
    run.prepared, denoiser.workspace, reference.workspace = None, Workspace(), Workspace()
    found["rollout"], found["whole"] = whole(denoiser, run.sample)
    if run.settings.rollout.caching != "none":
        found["rollout"] = max(found["rollout"], whole(denoiser, run.rescore)[0] + rollout_bytes(run))
    found["answers"], _ = whole(reference, run.prepare)
    run.prepared, peaks = kept, []
    for _ in range(3):  # gloo's threads may hold a buffer a little longer
        denoiser.workspace = Workspace()
        peaks.append(peak(backward))
    found["update"] = min(peaks)
    optimizer.step()
    averages = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    found["weights"], found["moments"] = held(denoiser.parameters()), held(averages)
    found["gradients"] = held(weight.grad for weight in denoiser.parameters())
    found["reference"] = held(reference.parameters())
    parts = Parts.of(Contents(denoiser=denoiser, tokenizer=None, optimizer=optimizer), world)
    found["saved"] = 2 * sum(pinned_bytes(tensor.nbytes) for tensor in parts.tensors.values() if tensor.ndim)
    return found


def _rank(directory: Path) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # what was imported, which `peak` would look through each time
    distributed.init_process_group("gloo")
    found = {}
    for name, case in CASES.items():
        sizes = {"gathered": 0, "summed": 0}
        counted(sizes)
        own = directory / f"{distributed.get_rank()}"
        own.mkdir(exist_ok=True)
        found[name] = measure(own, *case, sizes)
    if distributed.get_rank() == 0:
        (directory / "found.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ranks")
    log = directory / "log"
    for rank in [start(_rank, directory, log=log, environment=each) for each in torchrun_environment(2)]:
        finish(rank, log)
    return json.loads((directory / "found.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_plan_of_a_sharded_step_is_what_two_ranks_hold_and_send(name, two_ranks, tmp_path):
    method, train, rollout = CASES[name]
    small = settings_of(tmp_path, {"name": method}, rollout={"prompts": 4, **rollout}, train=train, shape=SHAPE)
    plan = make_plan(build(PlanSettings, document_of(small) | {"gpus": "2x1GB", "train": train | {"shard": "2"}}))
    memory, found = plan.memory, two_ranks[name]
    found["saved"] -= 2 * pinned_bytes(torch.get_rng_state().nbytes)  # the first rank's, beside its moments
    planned = {
        "saved": plan.saved,
        **{part: getattr(memory, part) for part in ("weights", "moments", "gradients", "reference")},
        "whole": memory.gathered,
        "rollout": memory.gathered + memory.rollout + memory.records,
        "update": max(memory.update, memory.gathered + memory.answers if method == "rspo" else 0),
    }
    found["rollout"] += found["whole"]
    answers = found.pop("answers")
    if plan.settings.train.precision == "fp32":  # products in bf16 take scratch memory of the CPU's own
        assert memory.answers + memory.batches == pytest.approx(answers, rel=WITHIN)
    gathered_first, by_layer, gradients = plan.transfers
    planned |= {"gathered": gathered_first.size + by_layer.size, "summed": gradients.size}
    assert planned == pytest.approx(found, rel=WITHIN)
