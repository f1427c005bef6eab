"""Training runs: what a run directory holds; rewards matter, collapse is warned of."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from helpers.long import long_unless
from unmask import tasks
from unmask.cli.main import main
from unmask.methods import METHODS
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.training.build import build_trainer

SMALL = {
    "rollout": {"prompts": 4, "num_generations": 4},
    "train": {"max_steps": 3, "examples": 32, "threads": 1},
    "evaluation": {"examples": 8, "examples_during": 4, "greedy_steps": 8},
}


def recipe(**sections) -> Recipe:
    document = {name: dict(values) for name, values in SMALL.items()}
    for name, values in sections.items():
        document[name] = document.get(name, {}) | values
    return build(Recipe, document)


def weights(trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.objective.denoiser.parameters()])


def run_flags(**sections) -> list[str]:
    merged = {name: values | sections.get(name, {}) for name, values in SMALL.items()}
    return [
        word
        for section, values in merged.items()
        for key, value in values.items()
        for word in (f"--{section}.{key.replace('_', '-')}", str(value))
    ]


@pytest.mark.parametrize("kind", ["none", "text"])
def test_run_says_once_that_held_out_answers_are_not_compared(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sudokus = tasks.Sudoku().examples("train", 8, 0)
    rows = [{"prompt": each.prompt, "answer": each.solution} for each in sudokus]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "pay.py").write_text(
        "def pay(completions, **columns):\n    return [text.count('1') for text in completions]\n"
    )
    task = ["--model", "embedded:sudoku", "--task", "dataset", "--task.data", "rows.jsonl", "--task.answer-kind", kind]
    few = ["--rollout.prompts", "2", "--rollout.num-generations", "2", "--rollout.max-new-tokens", "16"]
    more = ["--reward.funcs", "pay.py:pay", "--train.max-steps", "2", "--train.threads", "1"]
    assert main(["train", *task, *few, *more, "--output", "run"]) == 0
    told = "held-out answers are not compared by task dataset: no figure is measured"
    assert capsys.readouterr().out.count(told) == (kind == "none")


def test_start_run_directory_explains_itself_and_repeats(tmp_path, capsys):
    directory = tmp_path / "run"
    assert main(["train", *run_flags(), "--output", str(directory)]) == 0
    printed = capsys.readouterr().out
    assert str(directory / "curve.png") in printed
    assert "sampled in 4 steps" in printed
    names = {path.name for path in directory.iterdir()}
    about = (directory / "README.txt").read_text()
    assert names == {
        *("README.txt", "recipe.toml", "metrics.jsonl", "completions.jsonl", "before.json", "after.json"),
        *("curve.png", "checkpoints", "summary.json", "ranks.jsonl", "record"),
    }
    assert all(name in about for name in names - {"README.txt"})
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 3]
    trained = {
        "loss",
        "grad_norm",
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "entropy",
        "clip_ratio/region_mean",
        "approx_kl",
        "completions/valid_fraction",
        "learning_rate",
    }
    assert trained <= rows[1].keys()
    assert {"eval/sampled_4/solved", "eval/greedy_4/solved_low", "eval/greedy_8/correct_cells"} <= rows[0].keys()
    group = json.loads((directory / "completions.jsonl").read_text().splitlines()[0])
    assert len(group["completions"]) == 4
    assert max(group["completions"][0]["revealed_at"]) == 3
    assert (
        main(["train", *run_flags(), "--recipe", str(directory / "recipe.toml"), "--output", str(tmp_path / "again")])
        == 0
    )
    first, again = (
        load_file(tmp_path / name / "checkpoints/step_000003/model.safetensors") for name in ("run", "again")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_save_checkpoint_is_a_model_for_the_other_commands(tmp_path, capsys):
    directory = tmp_path / "run"
    assert main(["train", *run_flags(), "--output", str(directory)]) == 0
    model = str(directory / "checkpoints" / "step_000003")
    capsys.readouterr()
    assert main(["sample", "--model", model, "--item", "2"]) == 0
    assert "reward" in capsys.readouterr().out
    table = tmp_path / "table.json"
    flags = ("--examples", "6", "--steps", "4,8", "--unmasking", "low_confidence,rcr", "--output", str(table))
    assert main(["evaluate", "--model", model, *flags]) == 0
    rows = json.loads(table.read_text())
    assert [(row["unmasking"], row["steps"]) for row in rows] == [
        *(("low_confidence", 4), ("low_confidence", 8), ("rcr", 4), ("rcr", 8))
    ]
    assert all(row["solved_low"] <= row["solved"] <= row["solved_high"] for row in rows)


def document_of(method: str, **train) -> dict:
    """Settings for a step of the method, a unit in each of whose groups has advantage."""
    document = SMALL | {"method": {"name": method}, "train": SMALL["train"] | train}
    if method == "just-grpo":
        document["rollout"] = SMALL["rollout"] | {"steps": 16, "unmasking": {"name": "left_to_right"}}
    return document


@pytest.mark.parametrize("method", long_unless({"dispo", "mdpo", "spg", "d2", "tracerl", "vrpo"}, METHODS))
def test_trainer_step_of_every_method_moves_the_weights(method):
    trainer = build_trainer(build(Recipe, document_of(method, updates=2)))
    before = weights(trainer)
    metrics, _ = trainer.step(0)
    assert not torch.equal(weights(trainer), before)
    assert metrics["grad_norm"] > 0


def test_build_trainer_refuses_just_grpo_without_left_to_right(capsys, tmp_path):
    assert main(["train", "--method", "just-grpo", "--output", str(tmp_path / "run")]) == 2
    assert "give --rollout.unmasking left_to_right" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_sync_reference_follows_the_policy_and_is_resumed(tmp_path):
    directory, train = tmp_path / "run", {"max_steps": 4, "save_steps": 2, "ref_model_sync_steps": 2}
    flags = run_flags(train=SMALL["train"] | train, rollout=SMALL["rollout"])
    assert main(["train", "--method", "coupled-grpo", *flags, "--output", str(directory)]) == 0
    last = directory / "checkpoints" / "step_000004"
    whole = {name: load_file(last / name) for name in ("model.safetensors", "reference.safetensors")}
    early = load_file(directory / "checkpoints/step_000002/reference.safetensors")
    assert any(not torch.equal(early[name], moved) for name, moved in whole["reference.safetensors"].items())
    shutil.rmtree(last)
    assert main(["train", "--resume", str(directory)]) == 0
    for name, tensors in whole.items():
        resumed = load_file(last / name)
        assert all(torch.equal(resumed[key], tensor) for key, tensor in tensors.items())


def test_sync_reference_mixes_it_with_the_policy():
    trainer = build_trainer(recipe(method={"name": "coupled-grpo"}))
    objective = trainer.objective
    base = torch.cat([p.flatten() for p in objective.reference.parameters()])
    trainer.step(0)
    trainer.updater.sync_reference(0.6)
    mixed = torch.cat([p.flatten() for p in objective.reference.parameters()])
    torch.testing.assert_close(mixed, 0.4 * base + 0.6 * weights(trainer), rtol=1e-6, atol=1e-7)


def test_objective_old_weights_are_those_that_sampled():
    trainer = build_trainer(build(Recipe, document_of("lfpo", updates=2)))
    before = weights(trainer)
    trainer.step(0)
    old = torch.cat([p.flatten() for p in trainer.objective.old.parameters()])
    assert torch.equal(old, before)
    assert build_trainer(recipe(method={"name": "lfpo"})).objective.old is None


def test_trainer_step_of_equal_rewards_moves_nothing(monkeypatch):
    settings = recipe(method={"name": "dispo", "base": {"name": "diffu-grpo", "beta": 0.0}})
    monkeypatch.setattr(
        type(settings.task), "rewards", lambda self, prompts, completions, **columns: [1.0] * len(completions)
    )
    trainer = build_trainer(settings)
    before = weights(trainer)
    metrics, _ = trainer.step(0)
    assert torch.equal(weights(trainer), before)
    assert metrics["frac_reward_zero_std"] == 1


@pytest.mark.parametrize("method", ["diffu-grpo", "gdpo"])
def test_update_reports_a_nan_and_never_steps_on_it(method):
    """Where the head's gradient is made with its logits, of a loss whose grad_logp is known token by token or not."""
    trainer = build_trainer(recipe(method={"name": method}))
    objective, uniforms = trainer.objective, trainer.uniforms
    rollout = trainer.source(objective.denoiser, [0, 1], uniforms).rollout
    rewards = torch.arange(8.0).view(2, 4)  # so that every completion has advantage
    (update_batches,) = objective.prepare(rollout, [rewards], uniforms)
    assert [update_batch.term.is_elementwise(old_is_now=True) for update_batch in update_batches] == [True]
    with torch.no_grad():
        objective.denoiser.model.get_input_embeddings().weight[objective.denoiser.mask_id] = math.nan
    before = weights(trainer)
    metrics = trainer.updater.update(update_batches, 1e-4)
    assert math.isnan(metrics["loss"])
    assert metrics["skipped"] == 1
    torch.testing.assert_close(weights(trainer), before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("method", ["dispo", "rspo"])
def test_trainer_step_does_not_depend_on_micro_batch(method):
    whole = build_trainer(recipe(method={"name": method}))
    parts = build_trainer(recipe(method={"name": method}, train={"micro_batch": 3}))
    first, second = whole.step(0)[0], parts.step(0)[0]
    assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-4)
    assert first["loss"] == pytest.approx(second["loss"], abs=1e-6)


def test_shuffle_rewards_keeps_the_rollouts_and_changes_the_update():
    plain, shuffled = build_trainer(recipe()), build_trainer(recipe(train={"shuffle_rewards": True}))
    first, second = plain.step(0)[0], shuffled.step(0)[0]
    assert first["reward"] == second["reward"]
    assert first["grad_norm"] != second["grad_norm"]


def test_filtered_order_keeps_over_denoised_examples():
    from unmask.training.build import filtered_order

    trainer = build_trainer(recipe(train={"examples": 200}))
    kept = filtered_order(trainer)
    assert 0 < len(kept) < 200
    assert kept == sorted(set(kept))
