"""The plan of a recipe: how GPUs share it, what each holds at its worst moments, what a training step costs."""

from __future__ import annotations

from dataclasses import dataclass

from unmask.errors import UserError
from unmask.methods.base import Method
from unmask.plan.gpus import GIBIBYTE, GPUs, gpus_of
from unmask.plan.layout import Layout, choose_layout, gathered_bytes, layouts
from unmask.plan.memory import Memory, computing_dtype, memory_of, saved_bytes
from unmask.plan.networks import Size, size_of
from unmask.plan.traffic import Transfer, transfers_of
from unmask.plan.work import Work, work_of
from unmask.sampling.columns import CanvasLayout
from unmask.settings.commands import PlanSettings

_PROMPT = 256  # tokens, where nothing is said


@dataclass(frozen=True, kw_only=True)
class Parts:
    """An amount of one training step (forwards, FLOPs, predicted seconds) by part."""

    rollout: float
    trained: float
    other: float

    @property
    def step(self) -> float:
        """The amount of the whole training step."""
        return self.rollout + self.trained + self.other

    @property
    def rows(self) -> tuple[float, float, float, float]:
        """The parts in their order, then the whole step."""
        return self.rollout, self.trained, self.other, self.step


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Forwards and FLOPs of a whole training step, all GPUs together."""

    forwards: Parts
    flops: Parts


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe on given GPUs: how they share it, sizes, memory, work, messages, FLOPs and time."""

    settings: PlanSettings
    gpus: GPUs
    layout: Layout
    size: Size
    work: Work
    memory: Memory
    flops: Parts  # of the GPU with the most, as are the seconds
    seconds: Parts
    totals: Totals
    transfers: tuple[Transfer, ...]  # messages of a training step
    prompt: int

    @property
    def communication(self) -> float:
        """Seconds of all messages of a training step, with nothing beside them."""
        return sum(transfer.seconds(self.gpus.network) for transfer in self.transfers)

    @property
    def saved(self) -> int:
        """Bytes of a machine's own memory for the copy of a checkpoint that is being written."""
        return saved_bytes(self.settings, self.size, self.layout)

    @property
    def usable(self) -> float:
        """Bytes of a GPU that may be used."""
        return _usable(self.settings, self.gpus)

    @property
    def fits(self) -> bool:
        """Whether the peak stays within the usable bytes."""
        return self.memory.peak <= self.usable


def make_plan(settings: PlanSettings) -> Plan:
    """The Plan of a recipe. Raises UserError where model, GPUs or settings do not go together."""
    gpus = gpus_of(settings)
    train = settings.train
    size = size_of(settings.model, train.param_dtype, train.lora_rank, settings.model_format, four_bit=train.four_bit)
    prompt, work = work_on(settings, settings.method, gpus, size)
    flops, seconds = costs(settings, work, size, gpus)
    layout = _layout(settings, work, size, gpus)
    return Plan(
        settings=settings,
        gpus=gpus,
        layout=layout,
        size=size,
        work=work,
        memory=memory_of(settings, work, size, layout),
        flops=flops,
        seconds=seconds,
        totals=totals_of(work, size, flops),
        transfers=transfers_of(layout, size, work, computing_dtype(settings)),
        prompt=prompt,
    )


def _usable(settings: PlanSettings, gpus: GPUs) -> float:
    return gpus.memory * (1 - settings.headroom)


def _layout(settings: PlanSettings, work: Work, size: Size, gpus: GPUs) -> Layout:
    """The layout that train.shard names, or the first that fits; adapters and their base are whole on every GPU."""
    train = settings.train
    if train.shard != "auto" or train.lora_rank:
        return Layout(ranks=gpus.count, shard=train.shard_size or 1, node=gpus.node)

    def peak(layout: Layout) -> float:
        return memory_of(settings, work, size, layout).peak

    tried = layouts(gpus.count, gpus.node, nodes_replicate=train.nodes_replicate)
    return choose_layout(tried, peak, _usable(settings, gpus))


def method_costs(plan: Plan, method: Method) -> tuple[Totals, Parts]:
    """Another method's (totals, seconds) with the settings of a plan."""
    _, work = work_on(plan.settings, method, plan.gpus, plan.size)
    flops, seconds = costs(plan.settings, work, plan.size, plan.gpus)
    return totals_of(work, plan.size, flops), seconds


def work_on(settings: PlanSettings, method: Method, gpus: GPUs, size: Size) -> tuple[int, Work]:
    """Prompt tokens, and the Work of a GPU of a method with a recipe's settings. Raises UserError for wrong lengths."""
    sampler = settings.rollout.sampler(settings.task)
    length, max_length = sampler.max_new_tokens, size.max_length
    prompt = settings.prompt_tokens or min(_PROMPT, max_length - length)
    if prompt < 1 or prompt + length > max_length:
        raise UserError(
            f"prompt of {prompt} and completion of {length} tokens exceed the {max_length} that the model takes: "
            "give a smaller prompt_tokens or rollout.max_new_tokens"
        )
    canvas = CanvasLayout(
        start=prompt,
        length=prompt + length,
        block_length=settings.rollout.block_length or length,
        shift=size.shift,
        block_causal=size.block_length is not None,
    )
    return prompt, work_of(
        method,
        settings.rollout,
        canvas,
        updates=settings.train.num_iterations,
        micro_batch=settings.train.micro_batch,
        ranks=gpus.count,
    )


def costs(settings: PlanSettings, work: Work, size: Size, gpus: GPUs) -> tuple[Parts, Parts]:
    """(FLOPs of the GPU with the most in a training step, predicted seconds), each by part."""
    flops = Parts(
        rollout=work.rollout_flops(size),
        trained=work.trained_flops(size, recompute=settings.train.gradient_checkpointing),
        other=work.other_flops(size),
    )
    rate = gpus.peak * settings.utilisation
    return flops, Parts(rollout=flops.rollout / rate, trained=flops.trained / rate, other=flops.other / rate)


def totals_of(work: Work, size: Size, flops: Parts) -> Totals:
    """The Totals of all GPUs, given Work and FLOPs of the one with the most."""
    return Totals(
        forwards=Parts(
            rollout=work.all_rollouts(lambda gpu: gpu.rollout_forwards),
            trained=work.all_groups(work.trained_forwards),
            other=work.all_groups(work.other_forwards),
        ),
        flops=Parts(
            rollout=work.all_rollouts(lambda gpu: gpu.rollout_flops(size)),
            trained=work.all_groups(flops.trained),
            other=work.all_groups(flops.other),
        ),
    )


def advice(plan: Plan) -> list[str]:
    """What to change where the recipe does not fit, the most effective first."""
    train, memory, usable = plan.settings.train, plan.memory, plan.usable
    state = memory.held + memory.gradients + memory.optimizer + memory.records + memory.batches
    if state > usable and not train.lora_rank:
        return [_on_state(plan, state)]
    if memory.gathered > usable:
        return [_on_gathered(plan)]
    said = []
    if train.lora_rank and train.param_dtype == "fp32" and train.precision == "bf16":
        said.append("hold the frozen base in bf16: train.param_dtype bf16")
    moments = memory.bytes_by_moment
    if moments["update"] > usable and not train.gradient_checkpointing:
        said.append("recompute activations in the backward pass: train.gradient_checkpointing true")
    batch = max(term.batch for term in plan.work.terms)
    if moments["update"] > usable and batch > 1:
        before = memory.gradients + memory.blended
        left = max(0.0, usable - memory.held - before - memory.records - memory.batches)
        fewer = max(1, int(0.9 * batch * left / memory.update))
        said.append(f"fewer forwards at a time: train.micro_batch {fewer} (now {batch})")
    if moments["rollout"] > usable:
        said.append(_on_rollout(plan))
    return said or ["GPUs with more memory"]


def _on_rollout(plan: Plan) -> str:
    memory, at_once = plan.memory, plan.work.at_once
    left = plan.usable - (memory.bytes_by_moment["rollout"] - memory.rollout)
    fewer = int(0.9 * at_once * left / memory.rollout)
    if fewer > 0:
        return f"fewer completions at a time: rollout.batch {fewer} (now {at_once})"
    return "records and weights leave no room for a completion: fewer rollout.prompts, or more GPUs"


def _on_state(plan: Plan, state: int) -> str:
    adapters = "train adapters (train.lora_rank 128), with their frozen base in bf16 (train.param_dtype bf16)"
    taken = f"the model's own state takes {state / GIBIBYTE:.0f} GiB on every GPU"
    if not plan.layout.sharded:
        return f"{taken}, however many there are: {adapters}, or split it over several GPUs (train.shard auto)"
    return f"{taken}, split over {plan.layout.shard}: more GPUs, or {adapters}"


def _on_gathered(plan: Plan) -> str:
    size, dtype = plan.size, computing_dtype(plan.settings)
    whole = gathered_bytes(size.groups, dtype) / GIBIBYTE
    experts = size.experts * dtype.itemsize / GIBIBYTE
    mend = f"expert parallelism would split {experts:.0f} GiB of them, and there is none here" if experts else "none is"
    return f"weights are gathered whole for the rollout, {whole:.0f} GiB on every GPU: {mend}; take a smaller model"
