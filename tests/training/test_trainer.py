"""The training loop: which examples a step draws, and under which keys."""

import pytest
import torch

from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.training.build import build_trainer

SMALL = {
    "rollout": {"prompts": 4, "group_size": 4},
    "train": {"examples": 2, "threads": 1, "steps": 4},
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
