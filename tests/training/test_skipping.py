"""Numbers that are not finite skip a step, three end the run; memory that is out leaves gradients as they are."""

import json
import math
import shlex

import pytest
import torch

from helpers.long import long_unless
from unmask.cli.main import main
from unmask.denoisers.directories import checkpoints
from unmask.distributed.sharding import whole
from unmask.errors import UserError
from unmask.objective.objective import Objective
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.training.build import build_trainer
from unmask.training.skipping import SkippedSteps, check_finite
from unmask.training.trainer import Trainer

SMALL = {
    "rollout": {"prompts": 4, "num_generations": 4},
    "train": {"examples": 40, "threads": 1, "max_steps": 6, "save_steps": 1, "save_total_limit": 9},
    "evaluation": {"examples": 2, "examples_during": 2},
}
FLAGS = [
    word
    for section, values in SMALL.items()
    for name, value in values.items()
    for word in (f"--{section}.{name.replace('_', '-')}", str(value))
]


def inf_gradient(loss, objective):
    weight = next(objective.denoiser.parameters()).sum()
    return loss + torch.sqrt((weight - weight.detach()).clamp(min=0))  # 0, and rising infinitely fast


SPOILT_LOSSES = {
    "the loss is nan": lambda loss, _: loss * math.nan,
    "the loss is inf": lambda loss, _: loss + math.inf,
    "the norm of the gradient is": inf_gradient,
}


@pytest.fixture
def spoil(monkeypatch):
    """A function that spoils what is named at some steps of every run."""

    def in_steps(what, steps):
        at, step, losses = [], Trainer.step, Objective._micro_losses

        def watched(trainer, number):
            at[:] = [number + 1]
            weight = trainer.objective.denoiser.model.get_input_embeddings().weight
            mask_id, kept = trainer.objective.denoiser.mask_id, weight.detach().clone()
            if what == "a log-probability of the sampled tokens is nan" and number + 1 in steps:
                weight.data[mask_id] = math.nan
                result = step(trainer, number)
                weight.data.copy_(kept)
                return result
            return step(trainer, number)

        def spoilt(objective, *arguments, **options):
            for loss, values in losses(objective, *arguments, **options):
                spoils = what in SPOILT_LOSSES and at[0] in steps
                yield SPOILT_LOSSES[what](loss, objective) if spoils else loss, values

        monkeypatch.setattr(Trainer, "step", watched)
        monkeypatch.setattr(Objective, "_micro_losses", spoilt)

    return in_steps


EVERYTHING = [*SPOILT_LOSSES, "a log-probability of the sampled tokens is nan"]


@pytest.mark.parametrize("what", EVERYTHING)
def test_a_step_with_a_number_that_is_not_finite_is_skipped_and_says_which_came_first(what, spoil):
    spoil(what, {1, 3})
    trainer, skipped = build_trainer(build(Recipe, SMALL)), SkippedSteps()
    weights = list(trainer.objective.denoiser.parameters())
    for number in range(3):
        before = [weight.detach().clone() for weight in weights]
        metrics, _ = trainer.step(number)
        why = skipped.see(metrics)
        assert metrics["skipped"] == (number != 1)
        assert all(map(torch.equal, before, weights)) == (number != 1)
        assert why is None if number == 1 else why.startswith(what)
        assert skipped.in_a_row == (number != 1)


def test_three_skipped_steps_end_the_run_with_what_was_wrong_and_the_last_good_checkpoint(
    tmp_path, spoil, capsys, monkeypatch
):
    spoil("the loss is inf", {2, 4, 5, 6})
    run = tmp_path / "my run"
    capsys.readouterr()
    assert main(["train", *FLAGS, "--output", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "steps 4 to 6 were skipped, one after another: the loss is inf" in line
    assert "the weights are as step 3 left them; the last good checkpoint is step_000001" in line
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["step_000001", "step_000003"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows if "skipped" in row] == [0, 1, 0, 1, 1, 1]
    warnings = [row for row in rows if "its update was skipped: the loss is inf" in row.get("warning", "")]
    assert [row["step"] for row in warnings] == [2, 4, 5, 6]
    monkeypatch.undo()
    words = shlex.split(line.split("`")[1])[1:]
    assert main([*words, "--train.max-steps", "1", "--output", str(tmp_path / "lower")]) == 0


def test_scores_that_are_not_finite_skip_steps_and_three_of_them_end_the_run(tmp_path, capsys):
    (tmp_path / "flaky.py").write_text(  # the first call comes before the run begins
        "CALLS = []\n"
        "def score(completions, **columns):\n"
        "    CALLS.append(1)\n"
        "    return [float('nan') if len(CALLS) in (3, 5, 6, 7) else len(text) for text in completions]\n"
    )
    run = tmp_path / "run"
    reward = ("--reward.funcs", f"{tmp_path / 'flaky.py'}:score")
    assert main(["train", *FLAGS, *reward, "--output", str(run)]) == 2
    printed = capsys.readouterr()
    assert printed.out.count("gave nan: return finite numbers, or None where it does not apply") == 4
    assert "steps 4 to 6 were skipped, one after another: the reward is nan" in printed.err
    assert f"mend the reward, then `unmask train --resume {run}` goes on from its newest checkpoint" in printed.err
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["step_000001", "step_000003"]
    (tmp_path / "flaky.py").write_text(
        "def score(completions, **columns):\n    return [len(text) for text in completions]\n"
    )
    assert main(["train", "--resume", str(run)]) == 0


def test_a_reward_that_is_not_finite_changes_no_weight(monkeypatch):
    trainer = build_trainer(build(Recipe, SMALL))
    source = type(trainer.source)
    rewards = source.score

    def infinite(self, *arguments):
        scored = rewards(self, *arguments)
        scored.reward_NE[0, 0] = math.inf
        return scored

    monkeypatch.setattr(source, "score", infinite)
    before = [weight.detach().clone() for weight in trainer.objective.denoiser.parameters()]
    assert trainer.step(0)[0]["skipped"] == 1
    assert all(map(torch.equal, before, trainer.objective.denoiser.parameters()))


def test_check_finite_refuses_a_weight_that_is_not():
    weight = torch.nn.Parameter(torch.ones(3))
    check_finite([weight], 7, "mend")
    weight.data[1] = math.inf
    with pytest.raises(UserError, match="a weight is not finite after step 7, which is not saved; mend"):
        check_finite([weight], 7, "mend")


def limited(trainer, most, tries):
    """Have forwards with a gradient fail for want of memory where they are more than `most`."""

    def check(module, arguments):
        if torch.is_grad_enabled():
            tries.append(len(arguments[0]))
            if tries[-1] > most:
                raise torch.OutOfMemoryError("CUDA out of memory")

    trainer.objective.denoiser.register_forward_pre_hook(check)


@pytest.mark.parametrize("method", long_unless({"rspo"}, ["dispo", "rspo"]))
@pytest.mark.parametrize("micro_batch", [0, 5])
def test_memory_that_is_out_halves_the_micro_batch_and_keeps_the_gradient(method, micro_batch, monkeypatch):
    said = []
    monkeypatch.setattr("unmask.training.update.message", said.append)
    recipe = build(Recipe, SMALL | {"method": {"name": method}, "train": SMALL["train"] | {"micro_batch": micro_batch}})
    whole, tight = build_trainer(recipe), build_trainer(recipe)
    tries = []
    limited(tight, 2, tries)
    for step in range(2):
        expected, found = whole.step(step)[0], tight.step(step)[0]
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-6)
        assert found["approx_kl"] == pytest.approx(expected["approx_kl"], abs=1e-6)
    assert sum(count > 2 for count in tries) == len(said) > 0
    assert said[-1].startswith("out of memory in an update: 2 forwards at a time from here on, in place of ")


class Narrow(torch.autograd.Function):
    """Nothing, whose backward fails for want of memory where there are more than two rows."""

    @staticmethod
    def forward(context, rows):
        return rows.clone()

    @staticmethod
    def backward(context, gradient):
        if len(gradient) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gradient


def test_memory_that_is_out_in_a_backward_of_weights_sharded_on_one_rank_keeps_the_gradient():
    """FSDP2 does not finish a backward that was broken off: unless it is told, nor the one after it."""
    document = SMALL | {"train": SMALL["train"] | {"micro_batch": 5}}
    found = []
    started = not torch.distributed.is_initialized()
    try:
        for shard_size in (0, 1):
            trainer = build_trainer(build(Recipe, document), shard_size=shard_size)
            if shard_size:
                layer = trainer.objective.denoiser.model.base_model.layers[1]
                layer.register_forward_hook(lambda _, __, rows: Narrow.apply(rows) if torch.is_grad_enabled() else rows)
            metrics = [trainer.step(step)[0] for step in range(2)]
            weights = [whole(weight) for weight in trainer.objective.denoiser.parameters()]
            found.append((metrics, torch.cat([weight.flatten() for weight in weights])))
        assert trainer.updater.micro_batch == 2
    finally:
        if started and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    (expected, alone), (metrics, sharded) = found
    torch.testing.assert_close(sharded, alone, rtol=0, atol=1e-6)
    for ours, theirs in zip(metrics, expected, strict=True):
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


def test_memory_that_is_out_for_one_forward_is_said_with_the_mend():
    trainer = build_trainer(build(Recipe, SMALL))
    limited(trainer, 0, [])
    with pytest.raises(UserError, match=r"with one forward at a time: set train\.gradient_checkpointing true"):
        trainer.step(0)
