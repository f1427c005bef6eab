"""A training step of many settings on ranks that share it, to be compared with one process that does all of it."""

import json
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from unmask.denoisers.layers.compiled import compile_layers
from unmask.denoisers.loading import load_denoiser
from unmask.distributed.sharding import placement, whole
from unmask.sampling.sampler import Sampler
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.training import on_policy
from unmask.training.build import build_trainer
from unmask.training.dealing import Dealing
from unmask.training.update import Updater

DYNAMO_WARNING = "The .grad attribute of a Tensor"  # of what it compiles


@dataclass(frozen=True, kw_only=True)
class Case:
    """Settings of a step of 3 prompts with 4 completions; as lists and texts, to be sent to processes."""

    document: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float64"  # of the weights
    rewarded: str = "task"  # by the task; by texts, which differ; only the first group's by texts; none's
    tied: bool = False  # embedding and head are one tensor
    evaluated: bool = False  # after the step

    def recipe(self) -> Recipe:
        method = self.document.get("method", {}).get("name", "diffu-grpo")
        steps = {"steps": 16, "unmasking": {"name": "left_to_right"}} if method == "just-grpo" else {}
        document = {
            "method": {"name": method},
            "rollout": {"prompts": 3, "num_generations": 4} | steps,
            "train": {"examples": 32, "threads": 1, "num_iterations": 2},
            "evaluation": {"examples": 7, "greedy_steps": 4, "batch": 2},
        }
        for section, values in self.document.items():
            document[section] = document.get(section, {}) | values if isinstance(values, dict) else values
        return build(Recipe, document)


@dataclass(kw_only=True)
class Step:
    """A step that was made: metrics, tokens of this rank's groups, weights, and what crossed between ranks."""

    metrics: dict[str, float]
    tokens: list[tuple[int, int, list[int]]]  # of each completion, by prompt and sample
    weights: torch.Tensor
    # Calls of all_gather and reduce_scatter in each rollout, and in each update; forwards in each rollout.
    crossed: dict[str, list[int]]
    evaluation: dict[str, list[float]]
    whole_bytes: int  # of sharded weights that are still gathered after the step and the evaluation
    sharded: bool  # whether all parameters are, then
    placement: str  # of the weights, in words


def step_of(case: Case, shard_size: int) -> Step:
    """One step and an evaluation of a trainer of the case."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("unmask.training.build.compile_layers", partial(compile_layers, backend="aot_eager"))
        patch.setattr("unmask.training.build.load_denoiser", lambda *words, **options: _loaded(case, *words, **options))
        calls: list[str] = []
        crossed, kept = _counted(patch, calls), _kept(patch)
        recipe, target = case.recipe(), []
        if case.rewarded != "task":

            def rewards(_: Any, prompts: list[str], completions: list[str], **__: Any) -> list[float]:
                return _rewards(prompts, completions, None if case.rewarded == "texts" else target)

            patch.setattr(type(recipe.task), "rewards", rewards)
        trainer = build_trainer(recipe, shard_size=shard_size)
        if case.rewarded == "first":
            target.append(trainer.source.examples.items[trainer._prompts_of(0)[0]].prompt)
        trainer.objective.denoiser.register_forward_hook(lambda *_: calls.append("forward"))
        metrics, _ = trainer.step(0)
        if recipe.train.ref_model_sync_steps:
            metrics["reference"] = _checksum(trainer.objective.reference)
        evaluation = trainer.evaluation(7) if case.evaluated else {}
        rollouts = [rollout for rollout in kept for rollout in _rows(rollout)]
        denoiser = trainer.objective.denoiser
        return Step(
            metrics={name: value for name, value in metrics.items() if "_seconds" not in name},
            tokens=rollouts,
            weights=torch.cat([whole(parameter).flatten() for parameter in denoiser.parameters()]),
            crossed=crossed,
            evaluation=evaluation,
            whole_bytes=_whole_bytes(denoiser),
            sharded=all(isinstance(parameter, DTensor) for parameter in denoiser.parameters()),
            placement=placement(denoiser)["weights"],
        )


def _loaded(case: Case, *words: Any, **options: Any) -> Any:
    options |= {"dtype": torch.bfloat16} if case.dtype == "bfloat16" else {}  # which keeps float32 buffers, .to() not
    denoiser = load_denoiser(*words, **options)
    denoiser = denoiser.double() if case.dtype == "float64" else denoiser
    if case.tied:
        denoiser.model.config.tie_word_embeddings = True
        denoiser.model.lm_head.weight = denoiser.model.get_input_embeddings().weight
    return denoiser


def _rewards(prompts: list[str], texts: list[str], target: list[str] | None) -> list[float]:
    by_text = [float(sum(place * ord(letter) for place, letter in enumerate(text)) % 3) for text in texts]
    pairs = zip(prompts, by_text, strict=True)
    return [value if target is None or prompt in target else 1.0 for prompt, value in pairs]


def _counted(patch: pytest.MonkeyPatch, calls: list[str]) -> dict[str, list[int]]:
    """Calls of the collectives of sharded weights, in each call of the sampler, and in each update."""
    crossed: dict[str, list[int]] = {"rollout": [], "forwards": [], "gathers": [], "scatters": []}
    for name in ("all_gather_single", "reduce_scatter_single"):
        original = getattr(torch.distributed, name)

        def counting(*words: Any, name: str = name, original: Any = original, **options: Any) -> Any:
            calls.append(name)
            return original(*words, **options)

        patch.setattr(torch.distributed, name, counting)
    sample, update = Sampler.__call__, Updater._backward

    def sampled(sampler: Sampler, *words: Any, **options: Any) -> Any:
        calls.clear()
        rollout = sample(sampler, *words, **options)
        crossed["forwards"].append(calls.count("forward"))
        crossed["rollout"].append(len(calls) - crossed["forwards"][-1])
        return rollout

    def updated(updater: Updater, *words: Any) -> Any:
        calls.clear()
        metrics = update(updater, *words)
        crossed["gathers"].append(calls.count("all_gather_single"))
        crossed["scatters"].append(calls.count("reduce_scatter_single"))
        return metrics

    patch.setattr(Sampler, "__call__", sampled)
    patch.setattr(Updater, "_backward", updated)
    return crossed


def _kept(patch: pytest.MonkeyPatch) -> list[Any]:
    kept: list[Any] = []
    of_groups = Dealing.of_groups

    def keeping(*words: Any) -> Any:
        kept.append(of_groups(*words))
        return kept[-1]

    patch.setattr(on_policy.Dealing, "of_groups", keeping)
    return kept


def _rows(rollout: Any) -> list[tuple[int, int, list[int]]]:
    columns = (rollout.prompt_N.tolist(), rollout.sample_N.tolist(), rollout.tokens_NL.tolist())
    return list(zip(*columns, strict=True))


def _whole_bytes(denoiser: Any) -> int:
    groups = [
        module._get_fsdp_state()._fsdp_param_group for module in denoiser.modules() if isinstance(module, FSDPModule)
    ]
    outputs = [output for group in groups for weight in group.fsdp_params for output in weight.all_gather_outputs]
    return sum(output.untyped_storage().size() for output in outputs)


def _checksum(module: Any) -> float:
    return sum(float(whole(parameter).double().sum()) for parameter in module.parameters())


def run_cases(cases: list[tuple[str, Case, int]], place: Path) -> int:
    """What a rank does: the steps by name, case and shard size; the first rank writes down what all have seen."""
    from unmask.distributed import World

    torch.set_num_threads(1)
    warnings.simplefilter("error")  # as in the tests themselves
    warnings.filterwarnings("ignore", DYNAMO_WARNING)
    weights, seen = {}, {}
    for name, case, shard_size in cases:
        step = step_of(case, shard_size)
        world = World.start()
        held = [step.sharded, step.whole_bytes, step.placement]
        ranks = world.everyone([step.tokens, step.metrics, step.crossed, step.evaluation, held])
        seen[name] = {
            "tokens": sorted(row for rank in ranks for row in rank[0]),
            "metrics": [rank[1] for rank in ranks],
            "crossed": [rank[2] for rank in ranks],
            "evaluation": [rank[3] for rank in ranks],
            "held": [rank[4] for rank in ranks],
        }
        weights[name] = step.weights
    if world.is_main:
        save_file(weights, place / "weights.safetensors")
        (place / "seen.json").write_text(json.dumps(seen))
    world.leave()
    return 0
