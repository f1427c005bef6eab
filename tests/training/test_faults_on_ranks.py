"""What goes wrong on one of two ranks is met by both alike: numbers that are not finite, memory that is out."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from faults.launch import torchrun_environment
from helpers.long import long_unless
from helpers.processes import finish, start
from unmask.denoisers.loading import load_denoiser
from unmask.distributed import World
from unmask.distributed.sharding import whole
from unmask.errors import UserError
from unmask.objective.objective import Objective
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.training.build import build_trainer
from unmask.training.on_policy import OnPolicySource

SMALL = {
    "rollout": {"prompts": 2, "num_generations": 4},
    "train": {"examples": 8, "threads": 1},
    "evaluation": {"examples": 2, "examples_during": 2},
}
NUMBERS = ["reward is nan", "score is nan", "loss is nan", "score is nan and weights sharded"]
MEMORY = {"memory, parts, rspo": "rspo", "memory for scores, rspo": "rspo", "memory, diffu-grpo": "diffu-grpo"}
LONG = {"reward is nan", "score is nan and weights sharded", "memory for scores, rspo"}  # of `make long`
MOST = 2  # forwards for which there is memory
FUNCTION = """
import os
CALLS = []
def score(completions, **columns):
    CALLS.append(1)
    odd = os.environ.get("RANK") == "1" and len(CALLS) == 2  # the first call comes before the first step
    return [float("nan") if odd else float(len(text) + ord(text[0])) for text in completions]
"""


def trainer_of(name: str, place: Path):
    document = {section: dict(values) for section, values in SMALL.items()}
    document["method"] = {"name": MEMORY.get(name, "diffu-grpo")}
    if "parts" in name:
        document["train"]["micro_batch"] = 5
    if name.startswith("score"):
        document["reward"] = {"funcs": f"{place / name}.py:score"}
    return build_trainer(build(Recipe, document), shard_size=2 if "sharded" in name else 0)


def spoil(name: str, patch: pytest.MonkeyPatch, tries: list[int]) -> None:
    """What goes wrong on the second rank in its first step."""
    losses, score, logp = Objective._micro_losses, OnPolicySource.score, Objective._logp

    def spoilt_losses(objective, batch, forwards):
        for loss, values in losses(objective, batch, forwards):
            if name.startswith("memory,"):
                tries.append(len(batch.batch.inputs_FL) if forwards == 0 else forwards)
                if tries[-1] > MOST:
                    raise torch.OutOfMemoryError("CUDA out of memory")
            yield loss * math.nan if name == "loss is nan" else loss, values

    def spoilt_score(source, *arguments):
        scored = score(source, *arguments)
        if name == "reward is nan":
            scored.reward_NE[0, 0] = math.nan
        return scored

    def spoilt_logp(objective, denoiser, batch, micro_batch=None):
        if name == "memory for scores, rspo" and micro_batch is not None:
            tries.append(micro_batch or len(batch.inputs_FL))
            if tries[-1] > MOST:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return logp(objective, denoiser, batch, micro_batch)

    patch.setattr(Objective, "_micro_losses", spoilt_losses)
    patch.setattr(OnPolicySource, "score", spoilt_score)
    patch.setattr(Objective, "_logp", spoilt_logp)


def stepped(name: str, place: Path, rank: int) -> tuple[dict, torch.Tensor]:
    """Two steps, the first of which goes wrong on the second rank: what is seen of them, and the weights."""
    tries: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "unmask.training.build.load_denoiser", lambda *words, **more: load_denoiser(*words, **more).double()
        )
        trainer = trainer_of(name, place)
        parameters = list(trainer.objective.denoiser.parameters())
        before = [whole(parameter).clone() for parameter in parameters]
        with pytest.MonkeyPatch.context() as spoilt:
            if rank == 1:
                spoil(name, spoilt, tries)
            first, _ = trainer.step(0)
        changed = not all(map(torch.equal, before, map(whole, parameters)))
        second, _ = trainer.step(1)
    seen = {"skipped": [first["skipped"], second["skipped"]], "changed": changed, "tries": tries}
    seen["micro_batch"] = trainer.updater.micro_batch
    seen["figures"] = [[row[key] for key in ("loss", "grad_norm", "reward")] for row in (first, second)]
    return seen, torch.cat([whole(parameter).flatten() for parameter in parameters])


def both_steps(names: list[str], place: Path) -> int:
    torch.set_num_threads(1)
    world = World.start()
    seen, weights = {}, {}
    for name in names:
        found, weights[name] = stepped(name, place, world.rank)
        seen[name] = world.everyone(found)
    save_file(weights, place / f"{world.rank}.safetensors")
    if world.is_main:
        (place / "seen.json").write_text(json.dumps(seen))
    world.leave()
    return 0


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, request):
    """By case, what both ranks saw, and their weights."""
    place = tmp_path_factory.mktemp("ranks")
    wanted = {item.callspec.id for item in request.session.items if hasattr(item, "callspec")}
    names, log = [name for name in (*NUMBERS, *MEMORY) if name in wanted], place / "log"
    for name in names:
        (place / f"{name}.py").write_text(FUNCTION)
    for rank in [start(both_steps, names, place, log=log, environment=each) for each in torchrun_environment(2)]:
        finish(rank, log)
    seen = json.loads((place / "seen.json").read_text())
    both = [load_file(place / f"{rank}.safetensors") for rank in (0, 1)]
    return {name: (seen[name], [weights[name] for weights in both]) for name in names}


@pytest.mark.parametrize("name", long_unless({*NUMBERS} - {*LONG}, NUMBERS))
def test_a_number_that_is_not_finite_on_one_rank_skips_the_step_on_all(name, ranks):
    seen, (first, second) = ranks[name]
    assert [each["skipped"] for each in seen] == [[1, 0], [1, 0]]
    assert [each["changed"] for each in seen] == [False, False]
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", long_unless({*MEMORY} - {*LONG}, MEMORY))
def test_memory_that_is_out_on_one_rank_halves_the_micro_batch_of_all_and_keeps_the_gradient(name, ranks, tmp_path):
    seen, (first, second) = ranks[name]
    alone, expected = stepped(name, tmp_path, 0)
    assert seen[0]["micro_batch"] == seen[1]["micro_batch"] in (1, 2)
    assert any(count > MOST for count in seen[1]["tries"])
    assert torch.equal(first, second)
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-12)
    for each in seen:
        assert each["skipped"] == [0, 0]
        for ours, theirs in zip(each["figures"], alone["figures"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-7)


def test_memory_that_is_out_for_sharded_weights_ends_with_the_mend(tmp_path, monkeypatch):
    trainer = trainer_of("plain", tmp_path)
    updater = trainer.updater
    monkeypatch.setattr("unmask.training.update.is_sharded", lambda _: True)
    monkeypatch.setattr(World, "most", lambda world, number: number)
    two = replace(updater.objective, world=replace(updater.objective.world, size=2))
    experience = trainer.source(two.denoiser, [0, 1, 2], trainer.uniforms)
    (update,) = updater.objective.prepare(experience.rollout, experience.term_rewards, trainer.uniforms)
    spoil("memory,", monkeypatch, [])
    with pytest.raises(UserError, match=r"of sharded weights.* start again with a smaller train\.micro_batch"):
        replace(updater, objective=two).update(update, 1e-4)
