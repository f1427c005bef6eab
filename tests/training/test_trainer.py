"""The training loop: which examples a step draws, and under which keys."""

import pytest
import torch

from unmask.distributed import World
from unmask.errors import UserError
from unmask.objective.objective import Objective
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.training.build import build_trainer
from unmask.training.given import NOTHING_GIVEN, Given

SMALL = {
    "rollout": {"prompts": 4, "num_generations": 4},
    "train": {"examples": 2, "threads": 1, "max_steps": 4},
    "evaluation": {"examples": 4, "examples_during": 4, "greedy_steps": 8},
}


@pytest.fixture
def sampled(monkeypatch):
    """Rollouts of trainer.step(0) with the settings, and the masked inputs that it scored."""

    def run(**sections):
        trainer = build_trainer(build(Recipe, SMALL | sections))
        seen, prepare = [], type(trainer.objective).prepare

        def spy(objective, rollout, *rest):
            seen.append((rollout, prepare(objective, rollout, *rest)))
            return seen[-1][1]

        monkeypatch.setattr(type(trainer.objective), "prepare", spy)
        trainer.step(0)
        return seen[0]

    return run


def test_trainer_step_draws_different_groups_for_an_example_that_occurs_twice(sampled):
    rollout, ((update, *_),) = sampled()
    prompts_PL = rollout.tokens_NL[:: rollout.group_size, : rollout.prompt_length]
    groups_PGL = rollout.tokens_NL.view(4, rollout.group_size, -1)
    pairs = [(i, j) for i in range(4) for j in range(i) if torch.equal(prompts_PL[i], prompts_PL[j])]
    assert len(pairs) == 2  # each example twice
    for i, j in pairs:
        assert not torch.equal(groups_PGL[i], groups_PGL[j])
    inputs = [tuple(row) for row in update.batch.inputs_FL.tolist()]
    assert len(set(inputs)) == len(inputs)  # nor do they share a prompt mask


def test_trainer_step_keys_an_example_that_occurs_once_by_its_index(sampled):
    rollout, _ = sampled(train=SMALL["train"] | {"examples": 8})
    assert len(set(rollout.prompt_N.tolist())) == 4
    assert max(rollout.prompt_N.tolist()) < 8


def test_build_trainer_refuses_to_sync_a_reference_that_nothing_reads():
    train = SMALL["train"] | {"ref_model_sync_steps": 2}
    with pytest.raises(UserError, match="ref_model_sync_steps 2 moves a reference that method wd1"):
        build_trainer(build(Recipe, SMALL | {"method": {"name": "wd1"}, "train": train}))


def test_on_policy_source_metrics_of_equal_rewards_are_no_noise(tmp_path):
    path = tmp_path / "same.py"
    path.write_text("def same(completions, **rest):\n    return [0.1] * len(completions)\n")
    for prompts in (1, 3):
        sizes = {"rollout": {"prompts": prompts, "num_generations": 7}, "reward": {"funcs": f"{path}:same"}}
        metrics, _ = build_trainer(build(Recipe, SMALL | sizes)).step(0)
        assert metrics["frac_reward_zero_std"] == 1
        assert metrics["reward_std"] == 0
        assert ("reward_stderr" in metrics) == (prompts > 1)  # unknown of one prompt


@pytest.mark.parametrize("trained", [0, 1])
def test_step_whose_updates_have_different_metrics_has_all_of_them(trained, monkeypatch):
    """Masks are drawn anew for each update, and may leave one of them without a unit to train on any rank."""
    document = {
        "method": {"name": "diffu-grpo"},
        "rollout": {"prompts": 2, "num_generations": 4},
        "train": {"examples": 8, "threads": 1, "num_iterations": 2},
    }
    trainer = build_trainer(build(Recipe, document))
    prepare = Objective.prepare

    def with_one(*words):
        return [batches if number == trained else [] for number, batches in enumerate(prepare(*words))]

    monkeypatch.setattr(Objective, "prepare", with_one)
    metrics, _ = trainer.step(0)
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["skipped"] == 0


@pytest.mark.parametrize(
    ("ranks", "shard_size", "given", "line"),
    [
        (3, 2, NOTHING_GIVEN, "train.shard 2 does not divide 3 ranks: give 3, or 0"),
        (99, 0, NOTHING_GIVEN, "99 ranks sample 16 completions a step: start 16 ranks at most, or a new run"),
        (
            1,
            1,
            Given(denoiser=object()),
            "train.shard auto loads a model by slices: give it by its name, or set it to 0",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_before_anything_is_loaded(ranks, shard_size, given, line, monkeypatch):
    world = World(device=torch.device("cpu"), size=ranks)
    monkeypatch.setattr(World, "start", lambda *_, **__: world)
    monkeypatch.setattr("unmask.training.build.shard_mesh", lambda *_: object())
    for name in ("load_denoiser", "load_tokenizer"):
        monkeypatch.setattr(f"unmask.training.build.{name}", lambda *_, **__: pytest.fail("it is loaded"))
    with pytest.raises(UserError, match=line):
        build_trainer(build(Recipe, SMALL), shard_size=shard_size, given=given)
