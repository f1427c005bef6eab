"""What a step takes, measured beside `unmask plan`: FLOPs as PyTorch counts them, bytes as its allocator reports."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unmask.plan.estimate import make_plan
from unmask.settings.commands import PlanSettings
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.settings.recipe_files import read_recipe
from unmask.training.build import build_trainer
from unmask.types import Prompts
from unmask.uniforms import Uniforms

_UPDATES, _SAMPLES = 2, 24  # further ones of a step cost what these do; of fewer, small tensors tell
WITHIN = 0.05  # of the plan, as tests/plan/test_measured.py asks


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Planned and measured amounts by name."""

    planned: dict[str, float]
    measured: dict[str, float]

    def misses(self) -> list[str]:
        """What lies further apart than the tolerance."""
        return [
            f"{name} planned {planned:.4g}, measured {self.measured[name]:.4g}"
            for name, planned in self.planned.items()
            if abs(self.measured[name] - planned) > WITHIN * planned
        ]


class MeasuredStep:
    """One training step of a recipe on its stand-in: full completions, every group trained, as the plan assumes."""

    def __init__(self, path: str) -> None:
        document = read_recipe(path)
        document["train"]["num_iterations"] = min(_UPDATES, document["train"]["num_iterations"])
        document["rollout"]["prompts"] = max(2, _SAMPLES // document["rollout"]["num_generations"])
        self.trainer = build_trainer(build(Recipe, document))
        denoiser = self.trainer.objective.denoiser
        # An end that is never written: completions fill what they have.
        denoiser.eos_id = denoiser.mask_id
        self.terms = self.trainer.recipe.method.terms(denoiser.mask_id)
        self.objective = replace(self.trainer.objective, terms=self.terms)
        self.updater = replace(self.trainer.updater, objective=self.objective)
        self.width = self.trainer.source.examples.longest
        self.pads = 1  # columns of every other prompt
        if denoiser.block_length is not None:  # all prompts end at the same place of a block, and not at its end
            self.pads, self.width = 0, self.width + (self.width % denoiser.block_length == 0)
        settings = build(PlanSettings, document | {"prompt_tokens": self.width})
        self.plan = make_plan(settings)

    def sample(self) -> None:
        """The rollout, of random prompts some of which are padded."""
        rollout = self.trainer.recipe.rollout
        count = rollout.prompts * rollout.num_generations
        index = torch.arange(count)
        tokens = torch.randint(20, 400, (count, self.width), generator=torch.Generator().manual_seed(0))
        prompts = Prompts(
            tokens_NP=tokens,
            attention_NP=torch.arange(self.width) >= self.pads * (index // rollout.num_generations % 2)[:, None],
            prompt_N=index // rollout.num_generations,
            sample_N=index % rollout.num_generations,
        )
        with self.objective.world.autocast():
            self.rollout = self.trainer.sampler(
                self.objective.denoiser, prompts, Uniforms(), self.objective.record, group_size=rollout.num_generations
            )

    def prepare(self) -> None:
        """Batches of all updates, with random rewards."""
        recipe = self.trainer.recipe
        rewards = []
        for term in self.terms:
            extra = () if term.record is None else (len(self.rollout.snapshots) * term.record.guesses,)
            shape = torch.Size((recipe.rollout.prompts, recipe.rollout.num_generations, *extra))
            rewards.append(Uniforms().key(torch.arange(shape.numel())).draw().float().view(shape))
        self.batches = self.objective.prepare(self.rollout, rewards, Uniforms(), recipe.train.num_iterations)

    def update(self) -> None:
        """All updates."""
        for batches in self.batches:
            self.updater.update(batches, learning_rate=1e-6)

    def backward(self) -> None:
        """Gradients of the first update."""
        for loss in self.objective.losses(self.batches[0]):
            loss.backward()


def compare(path: str) -> Comparison:
    """A step of the recipe at `path` beside its plan."""
    step = MeasuredStep(path)
    planned_flops, memory = step.plan.flops, step.plan.memory
    measured = {"rollout bytes": float(peak(step.sample))}
    rollout = float(flops(step.sample))
    prepared = float(flops(step.prepare))
    denoiser = step.objective.denoiser
    denoiser.workspace = type(denoiser.workspace)()  # the plan counts its memory in each pass
    measured["update bytes"] = float(peak(step.backward))
    step.updater.optimizer.zero_grad()
    measured["rollout FLOPs"] = rollout
    measured["update FLOPs"] = prepared + float(flops(step.update))
    planned = {
        "rollout FLOPs": planned_flops.rollout,
        "update FLOPs": planned_flops.trained + planned_flops.other,
        "rollout bytes": float(memory.rollout + memory.records),
        "update bytes": float(memory.update + (memory.gradients if memory.accumulates else 0)),
    }
    return Comparison(planned=planned, measured=measured)


def write_misses(path: str, output: str) -> int:
    """Write what of the plan does not hold, as JSON; 0."""
    Path(output).write_text(json.dumps(compare(path).misses()))
    return 0


def _of_experts(left: tuple[int, ...], right: tuple[int, ...], *_: Any, **__: Any) -> int:
    """FLOPs of a product of tokens, sorted by their experts, which PyTorch leaves out of its count."""
    return 2 * left[0] * left[1] * right[-1]


def flops(action: Callable[[], object]) -> int:
    """Of matrix products and attention; the fused attention of CPUs is not counted, so it is taken apart."""
    experts = {torch.ops.aten._grouped_mm: _of_experts}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=experts) as counter:
        action()
    return int(counter.get_total_flops())


def peak(action: Callable[[], object]) -> int:
    """The most bytes that the allocator had given out at once."""
    gc.collect()  # or what was made before is given back in the middle
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    events: Any = profiler.profiler
    changes = [event for event in events.kineto_results.events() if event.name() == "[memory]"]
    alive = highest = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        alive += change.nbytes()
        highest = max(highest, alive)
    return highest
