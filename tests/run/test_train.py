"""Training runs: what a run directory holds; rewards matter, collapse is warned of, two ranks equal one."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from unmask.cli import main
from unmask.config import build
from unmask.recipe import Recipe
from unmask.train import build_trainer

SMALL = {
    "rollout": {"prompts": 4, "group_size": 4},
    "train": {"steps": 3, "examples": 32, "threads": 1},
    "evaluation": {"examples": 8, "examples_during": 4, "greedy_steps": 8},
}


def recipe(**sections) -> Recipe:
    document = {name: dict(values) for name, values in SMALL.items()}
    for name, values in sections.items():
        document[name] = document.get(name, {}) | values
    return build(Recipe, document)


def weights(trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.policy.denoiser.parameters()])


def run_flags(**sections) -> list[str]:
    merged = {name: values | sections.get(name, {}) for name, values in SMALL.items()}
    return [
        word
        for section, values in merged.items()
        for key, value in values.items()
        for word in (f"--{section}.{key.replace('_', '-')}", str(value))
    ]


def test_run_directory_explains_itself(tmp_path, capsys):
    directory = tmp_path / "run"
    assert main(["train", *run_flags(), "--output", str(directory)]) == 0
    printed = capsys.readouterr().out
    assert str(directory / "curve.png") in printed
    assert "sampled in 4 steps" in printed
    names = {path.name for path in directory.iterdir()}
    about = (directory / "README.txt").read_text()
    assert names == {
        *("README.txt", "recipe.toml", "metrics.jsonl", "completions.jsonl", "before.json", "after.json"),
        *("curve.png", "checkpoints", "summary.json"),
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


def test_trained_checkpoint_is_a_model_for_the_other_commands(tmp_path, capsys):
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


@pytest.mark.parametrize("method", ["diffu-grpo", "mdpo", "dispo"])
def test_every_method_moves_the_weights(method):
    trainer = build_trainer(recipe(method={"name": method}, train={"updates": 2}))
    before = weights(trainer)
    metrics, _ = trainer.step(0)
    assert not torch.equal(weights(trainer), before)
    assert metrics["grad_norm"] > 0


def test_equal_rewards_without_divergence_move_nothing(monkeypatch):
    trainer = build_trainer(recipe(method={"name": "dispo", "base": {"name": "diffu-grpo", "beta": 0.0}}))
    monkeypatch.setattr(
        type(trainer.recipe.task), "rewards", lambda self, prompts, completions, **columns: [1.0] * len(completions)
    )
    before = weights(trainer)
    metrics, _ = trainer.step(0)
    assert torch.equal(weights(trainer), before)
    assert metrics["frac_reward_zero_std"] == 1


def test_steps_do_not_depend_on_micro_batches():
    whole = build_trainer(recipe())
    parts = build_trainer(recipe(train={"micro_batch": 3}))
    first, second = whole.step(0)[0], parts.step(0)[0]
    assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-4)
    assert first["loss"] == pytest.approx(second["loss"], abs=1e-6)


def test_shuffled_rewards_keep_the_rollouts_and_change_the_update():
    plain, shuffled = build_trainer(recipe()), build_trainer(recipe(train={"shuffle_rewards": True}))
    first, second = plain.step(0)[0], shuffled.step(0)[0]
    assert first["reward"] == second["reward"]
    assert first["grad_norm"] != second["grad_norm"]


def test_over_denoising_filter_keeps_prompts_that_slide_back():
    from unmask.train import filtered_order

    trainer = build_trainer(recipe(train={"examples": 200}))
    kept = filtered_order(trainer)
    assert 0 < len(kept) < 200
    assert kept == sorted(set(kept))


def test_two_ranks_equal_one(tmp_path):
    """The same step with its prompts shared by two processes: metrics and weights agree."""
    script = tmp_path / "step.py"
    script.write_text(
        "import sys, json, torch\n"
        "from unmask.config import build\nfrom unmask.recipe import Recipe\nfrom unmask.train import build_trainer\n"
        "torch.set_num_threads(1)\n"
        "trainer = build_trainer(build(Recipe, json.loads(sys.argv[1])))\n"
        "metrics = [trainer.step(step)[0] for step in range(2)]\n"
        "total = sum(float(p.double().abs().sum()) for p in trainer.policy.denoiser.parameters())\n"
        "if trainer.policy.accelerator.is_main_process:\n"
        "    print('RESULT', json.dumps([metrics, total]))\n"
        "if trainer.policy.accelerator.num_processes > 1:\n"
        "    torch.distributed.destroy_process_group()\n"
    )
    document = json.dumps(SMALL | {"method": {"name": "dispo"}, "train": SMALL["train"] | {"updates": 2}})
    results = []
    for launcher in ([], ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29611"]):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
        done = subprocess.run(
            [sys.executable, *launcher, str(script), document],
            capture_output=True,
            text=True,
            env=environment,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
        results.append(json.loads(line.removeprefix("RESULT ")))
    (one, one_total), (two, two_total) = results
    for first, second in zip(one, two, strict=True):
        assert first == pytest.approx(second, rel=2e-4, abs=1e-6)
    assert one_total == pytest.approx(two_total, rel=1e-7)
