"""The plan of a recipe: what each GPU holds at its worst moments, and what a training step costs.

Data parallel as `distributed` does it: every GPU holds the whole model and its optimizer, and gradients are summed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unmask.denoisers.head.chunks import chunk_positions
from unmask.errors import UserError
from unmask.methods.base import Method
from unmask.methods.describe import EOS
from unmask.objective.term import Term
from unmask.plan.dry_run import Pass, peak_bytes
from unmask.plan.gpus import GIBIBYTE, GPUs, gpus_of
from unmask.plan.networks import Size, size_of
from unmask.plan.work import TermWork, Work, work_of
from unmask.settings.commands import PlanSettings

_PROMPT = 256  # tokens, where nothing is said


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one GPU: what is always held, and what comes on top in rollout, update and optimizer step."""

    weights: int
    reference: int
    old: int
    moments: int
    gradients: int
    records: int  # rollout, recorded states
    batches: int  # what is scored in the updates
    rollout: int
    update: int  # gradients are part of it where the first backward pass makes them
    optimizer: int
    accumulates: bool

    @property
    def held(self) -> int:
        """Bytes always held, gradients apart."""
        return self.weights + self.reference + self.old + self.moments

    @property
    def bytes_by_moment(self) -> dict[str, int]:
        """Bytes in all at each moment."""
        before = self.gradients if self.accumulates else 0
        made = self.records + self.batches
        return {
            "rollout": self.held + self.gradients + self.rollout + self.records,
            "update": self.held + before + self.update + made,
            "optimizer step": self.held + self.gradients + self.optimizer + made,
        }

    @property
    def peak(self) -> int:
        """The largest sum of bytes at any moment."""
        return max(self.bytes_by_moment.values())


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Predicted seconds of one training step by part."""

    rollout: float
    trained: float
    other: float

    @property
    def step(self) -> float:
        """Seconds of the whole training step."""
        return self.rollout + self.trained + self.other


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe on given GPUs: sizes, memory, work, FLOPs and time."""

    settings: PlanSettings
    gpus: GPUs
    size: Size
    work: Work
    memory: Memory
    flops: Seconds  # FLOPs of one GPU by the same parts
    seconds: Seconds
    prompt: int

    @property
    def usable(self) -> float:
        """Bytes of a GPU that may be used."""
        return self.gpus.memory * (1 - self.settings.headroom)

    @property
    def fits(self) -> bool:
        """Whether the peak stays within the usable bytes."""
        return self.memory.peak <= self.usable


def make_plan(settings: PlanSettings) -> Plan:
    """The Plan of a recipe. Raises UserError where model, GPUs or settings do not go together."""
    gpus = gpus_of(settings)
    size = size_of(settings.model, settings.train.param_dtype, settings.train.lora_rank, settings.model_format)
    prompt, work = _work(settings, settings.method, gpus, size.max_length)
    flops, seconds = costs(settings, work, size, gpus)
    terms = settings.method.terms(EOS)
    return Plan(
        settings=settings,
        gpus=gpus,
        size=size,
        work=work,
        memory=_memory(settings, terms, work, size, gpus),
        flops=flops,
        seconds=seconds,
        prompt=prompt,
    )


def method_costs(plan: Plan, method: Method) -> tuple[Work, Seconds, Seconds]:
    """Another method's (work, FLOPs, seconds) with the settings of a plan."""
    _, work = _work(plan.settings, method, plan.gpus, plan.prompt + plan.work.length)
    return work, *costs(plan.settings, work, plan.size, plan.gpus)


def _work(settings: PlanSettings, method: Method, gpus: GPUs, max_length: int) -> tuple[int, Work]:
    sampler = settings.rollout.sampler(settings.task)
    length = sampler.max_new_tokens
    prompt = settings.prompt_tokens or min(_PROMPT, max_length - length)
    if prompt < 1 or prompt + length > max_length:
        raise UserError(
            f"prompt of {prompt} and completion of {length} tokens exceed the {max_length} that the model takes: "
            "give a smaller prompt_tokens or rollout.max_new_tokens"
        )
    return prompt, work_of(
        method,
        settings.rollout,
        prompt=prompt,
        length=length,
        updates=settings.train.num_iterations,
        micro_batch=settings.train.micro_batch,
        ranks=gpus.count,
    )


def costs(settings: PlanSettings, work: Work, size: Size, gpus: GPUs) -> tuple[Seconds, Seconds]:
    """(FLOPs of one GPU in a training step, predicted seconds), each by part."""
    flops = Seconds(
        rollout=work.rollout_flops(size),
        trained=work.trained_flops(size, recompute=settings.train.gradient_checkpointing),
        other=work.other_flops(size),
    )
    rate = gpus.peak * settings.utilisation
    return flops, Seconds(rollout=flops.rollout / rate, trained=flops.trained / rate, other=flops.other / rate)


def _memory(settings: PlanSettings, terms: tuple[Term, ...], work: Work, size: Size, gpus: GPUs) -> Memory:
    train = settings.train
    copied = size.weight_bytes if not train.lora_rank and any(term.reads("reference") for term in terms) else 0
    keeps_old = train.num_iterations > 1 and any(term.blend is not None for term in terms)
    accumulates = any(term.batch < term.forwards for term in work.terms) or len(work.terms) > 1
    passes = [
        Pass(
            forwards=term.batch,
            length=work.length,
            queries=term.widest,
            scored=term.most,
            targets=term.targets,
            blended=term.blended,
            separable=all(term.separable[: work.updates]),
            accumulates=accumulates,
        )
        for term in work.terms
    ]
    # The steps that ask most: of all samples, and by the logits that they need.
    largest = {max(work.denoising, key=lambda step: (step.forwards, step.positions))}
    largest |= {max(work.denoising, key=lambda step: step.forwards * step.positions * step.tokens)}
    denoising = [
        Pass(
            forwards=step.forwards,
            length=work.length,
            queries=step.positions,
            scored=step.forwards * step.positions,
            targets=step.tokens,
            samples=True,
            temperature=settings.rollout.temperature,
            guided=work.guided,
        )
        for step in largest
    ]
    # AdamW takes all weights at once and holds a root of their moments; several ranks send one flat copy of a copy.
    temporary = size.trained_bytes * (2 if gpus.count > 1 else 1)
    return Memory(
        weights=size.weight_bytes,
        reference=copied,
        old=size.weight_bytes if keeps_old else 0,
        moments=2 * size.trained_bytes,
        gradients=size.trained_bytes,
        records=work.record_bytes,
        batches=sum(term.batch_bytes for term in work.terms) * work.updates,
        rollout=max(peak_bytes(settings.model, train, each, settings.model_format) for each in denoising),
        update=max(
            peak_bytes(settings.model, train, each, settings.model_format) + _kept_logits(term, size)
            for each, term in zip(passes, work.terms, strict=True)
        ),
        optimizer=temporary,
        accumulates=accumulates,
    )


def _kept_logits(term: TermWork, size: Size) -> int:
    """Bytes of logits of the pass before the micro-batches, beside those that a micro-batch keeps for its gradient."""
    if not term.scores_first or all(term.separable):
        return 0
    return min(term.most, chunk_positions(size.vocabulary)) * size.vocabulary * torch.float32.itemsize


def advice(plan: Plan) -> list[str]:
    """What to change where the recipe does not fit, the most effective first."""
    train, memory, usable = plan.settings.train, plan.memory, plan.usable
    state = memory.held + memory.gradients + memory.optimizer + memory.records + memory.batches
    if state > usable and not train.lora_rank:
        return [
            f"the model's own state takes {state / GIBIBYTE:.0f} GiB on every GPU, however many there are: train "
            "adapters (train.lora_rank 128), with their frozen base in bf16 (train.param_dtype bf16)"
        ]
    said = []
    if train.lora_rank and train.param_dtype == "fp32" and train.precision == "bf16":
        said.append("hold the frozen base in bf16: train.param_dtype bf16")
    moments = memory.bytes_by_moment
    if moments["update"] > usable and not train.gradient_checkpointing:
        said.append("recompute activations in the backward pass: train.gradient_checkpointing true")
    batch = max(term.batch for term in plan.work.terms)
    if moments["update"] > usable and batch > 1:
        left = max(0.0, usable - memory.held - memory.gradients - memory.records - memory.batches)
        fewer = max(1, int(0.9 * batch * left / memory.update))
        said.append(f"fewer forwards at a time: train.micro_batch {fewer} (now {batch})")
    if moments["rollout"] > usable:
        said.append(
            f"a GPU samples {plan.work.samples} completions at once: more GPUs, fewer rollout.prompts or a smaller "
            "rollout.group_size"
        )
    return said or ["GPUs with more memory"]
