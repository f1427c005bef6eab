"""Training with several reward functions: what is learnt from, what is written down, how a run goes on."""

import json
import shutil

import pytest

from unmask.cli.main import main
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.training.build import build_trainer

FILE = """
from unmask.rewards import cached

CALLS = []

@cached
def ones(completions, puzzle, **rest):
    CALLS.append(len(completions))
    return [text.count("1") / 16 for text in completions]

async def four_threes(prompts, completions, **columns):
    return [1.0 if text.count("3") == 4 else None for text in completions]
"""
SMALL = {
    "rollout": {"prompts": 2, "num_generations": 4},
    "train": {"examples": 8, "threads": 1, "max_steps": 4, "save_steps": 2},
    "evaluation": {"examples": 4, "examples_during": 4, "greedy_steps": 8},
}


@pytest.fixture
def spec(tmp_path):
    """The functions of a file beside the task's."""
    path = tmp_path / "my_rewards.py"
    path.write_text(FILE)
    return f"task,{path}:ones,{path}:four_threes"


def trained(**sections):
    """The trainer, the metrics of its first step, and the completions that it showed."""
    trainer = build_trainer(build(Recipe, SMALL | sections))
    return trainer, *trainer.step(0)


def test_on_policy_source_learns_from_the_weighted_sum_and_reports_each_part(spec):
    trainer, metrics, shown = trained(reward={"funcs": spec, "weights": "1,0.5,0.25"})
    parts = {name: metrics[f"rewards/{name}/mean"] for name in ("task", "ones", "four_threes")}
    share = 1 - metrics["rewards/four_threes/none_fraction"]
    assert 0 < share < 1
    assert parts["four_threes"] == 1
    assert 0 < parts["ones"] < 1
    assert metrics["reward"] == pytest.approx(parts["task"] + 0.5 * parts["ones"] + 0.25 * share, rel=1e-5)
    assert metrics["rewards/task/none_fraction"] == metrics["rewards/four_threes/std"] == 0
    assert metrics["grad_norm"] > 0
    prompt, texts = shown["prompt"], [sample["text"] for sample in shown["completions"]]
    solved = trainer.recipe.task.rewards([prompt] * len(texts), texts, puzzle=[prompt] * len(texts))
    expected = [
        right + 0.5 * text.count("1") / 16 + 0.25 * (text.count("3") == 4)
        for right, text in zip(solved, texts, strict=True)
    ]
    assert [sample["reward"] for sample in shown["completions"]] == pytest.approx(expected)


def test_on_policy_source_with_the_task_alone_reports_no_parts():
    _, plain, _ = trained()
    _, weighed, _ = trained(reward={"funcs": "task", "weights": "2"})
    assert not [name for name in plain if name.startswith("rewards/")]
    assert plain.keys() == weighed.keys()
    assert weighed["reward"] == 2 * plain["reward"]


def test_score_rewards_guesses_by_the_same_functions_once(spec):
    trainer, metrics, _ = trained(method={"name": "mdpo"}, reward={"funcs": spec})
    calls = trainer.source.rewards.functions[1].call.__globals__["CALLS"]
    asked_before, of_rollout = calls
    assert asked_before == 1  # completion, before the run begins
    assert of_rollout > 8  # the eight completions, and distinct guesses on the way to them
    assert metrics["rewards/ones/mean"] > 0
    indices = trainer._prompts_of(0)
    uniforms = trainer.uniforms.key("iteration", 1)
    rollout = trainer.source.rollout(trainer.objective.denoiser, indices, uniforms)
    owners = [index for index in indices for _ in range(4)]
    first = trainer.source.score(rollout, owners)
    again = trainer.source.score(rollout, owners)
    assert len(calls) == 3
    assert first.reward_NE.equal(again.reward_NE)
    assert first.reward_NE.shape == (8, 1 + rollout.steps)


def test_resume_run_with_two_functions_gives_the_same_metrics(spec, tmp_path):
    directory = tmp_path / "run"
    flags = [
        f"--{section}.{key.replace('_', '-')}={value}" for section in SMALL for key, value in SMALL[section].items()
    ]
    flags += [f"--reward.funcs={spec}", "--reward.weights=1,0.5,0.25", f"--output={directory}"]

    def rows():
        lines = (directory / "metrics.jsonl").read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if "_seconds" not in key} for line in lines]

    assert main(["train", *flags]) == 0
    whole = rows()
    assert sum("rewards/ones/mean" in row for row in whole) == 4
    shutil.rmtree(directory / "checkpoints" / "step_000004")
    assert main(["train", "--resume", str(directory)]) == 0
    assert rows() == whole


@pytest.mark.parametrize(("steps", "greedy_steps", "named"), [(4, 128, (4, 16)), (32, 128, (16, 16)), (8, 12, (8, 12))])
def test_evaluations_are_named_after_the_steps_that_are_taken(steps, greedy_steps, named):
    rollout = SMALL["rollout"] | {"steps": steps}
    recipe = build(Recipe, SMALL | {"rollout": rollout, "evaluation": {"examples": 4, "greedy_steps": greedy_steps}})
    names = {name.partition("/")[0] for name in build_trainer(recipe).evaluation(2)}
    assert names == {f"sampled_{named[0]}", f"greedy_{named[0]}", f"greedy_{named[1]}"}
