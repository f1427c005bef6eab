"""Preference pairs: VRPO learns from given completions; its loss is DPO's; other methods refuse."""

import json
from dataclasses import replace

import pytest
import torch

from unmask.cli.main import main
from unmask.data.tokenization import encode
from unmask.errors import UserError
from unmask.methods import METHODS
from unmask.objective.likelihood import row_logp
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.tasks import Sudoku
from unmask.training import preferences
from unmask.training.build import build_trainer
from unmask.training.preferences import preference_rollout

ITEMS = Sudoku().examples("train", 24, 0)
LENGTH = Sudoku().max_new_tokens


def pairs(path, items, length=LENGTH):
    """The right grid was chosen, the same moved by a cell rejected."""
    rows = [
        {"prompt": item.prompt, "chosen": item.solution[:length], "rejected": (item.solution[1:] + "1")[:length]}
        for item in items
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def document(tmp_path):
    files = {
        "data": pairs(tmp_path / "train.jsonl", ITEMS[:20]),
        "test_data": pairs(tmp_path / "test.jsonl", ITEMS[20:]),
    }
    return {
        "task": {"name": "pairs", "max_new_tokens": LENGTH, **files},
        "method": {"name": "vrpo", "num_masks": 2},
        "rollout": {"prompts": 10},
        "train": {"max_steps": 4, "learning_rate": 1e-3, "warmup_steps": 0, "threads": 1},
        "evaluation": {"batch": 3},
    }


def update_batch(trainer, indices):
    objective, uniforms = trainer.objective, trainer.uniforms
    experience = trainer.source(objective.denoiser, indices, uniforms)
    ((update_batch,),) = objective.prepare(experience.rollout, experience.term_rewards, uniforms)
    return experience.rollout, update_batch


def moved(trainer):
    """Its policy away from its reference, or all margins would be 0."""
    with torch.no_grad():
        for number, parameter in enumerate(trainer.objective.denoiser.parameters()):
            parameter.mul_(1.1 if number % 2 else 0.95)


def logp(denoiser, inputs, targets):
    """By the network alone: [rows, L]."""
    with torch.no_grad():
        logits = denoiser.model(input_ids=inputs).logits
    return logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]


def test_preference_source_steps_make_the_chosen_likelier(document):
    trainer = build_trainer(build(Recipe, document))
    before = trainer.evaluation(9)
    rows = [trainer.step(step)[0] for step in range(4)]
    assert rows[0]["loss"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-5)
    assert rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert rows[-1]["rewards/margins"] > 1
    assert rows[-1]["rewards/accuracies"] > 0.9
    assert rows[-1]["loss"] < 0.6
    assert "reward" not in rows[0]
    assert before.keys() == {"pairs/preferred"}
    assert trainer.evaluation(9) == {"pairs/preferred": [1.0] * 4}
    assert trainer.evaluation(3) == {"pairs/preferred": [1.0] * 3}


def test_vrpo_loss_of_one_token_is_that_of_dpo_by_hand(document, tmp_path):
    document["task"] |= {
        "max_new_tokens": 1,
        "data": pairs(tmp_path / "one.jsonl", [ITEMS[0]], length=1),
        "test_data": pairs(tmp_path / "other.jsonl", [ITEMS[20]], length=1),
    }
    document["rollout"] = {"prompts": 1, "steps": 1}
    document["evaluation"] = {"greedy_steps": 1}
    trainer = build_trainer(build(Recipe, document))
    moved(trainer)
    _, prepared = update_batch(trainer, [0])
    loss = trainer.updater.update([prepared], 0.0)["loss"]
    tokenizer, objective = trainer.tokenizer, trainer.objective
    ids = encode(tokenizer, [ITEMS[0].prompt, *ITEMS[0].solution[:2]])
    inputs = torch.tensor([[*ids[0], objective.denoiser.mask_id]])
    ratio = {}
    for side, target in zip(("chosen", "rejected"), ids[1:], strict=True):
        targets = torch.tensor([[*ids[0], *target]])
        ratio[side] = (logp(objective.denoiser, inputs, targets) - logp(objective.reference, inputs, targets))[0, -1]
    by_hand = -torch.nn.functional.logsigmoid(0.2 * (ratio["chosen"] - ratio["rejected"]))
    assert abs(by_hand - torch.log(torch.tensor(2.0))) > 1e-3
    assert loss == pytest.approx(by_hand.item(), rel=1e-5)


def test_vrpo_loss_of_a_pair_is_that_of_dpo_on_its_masks(document):
    trainer = build_trainer(build(Recipe, document))
    moved(trainer)
    rollout, prepared = update_batch(trainer, [7])
    batch, mask = prepared.batch, trainer.objective.denoiser.mask_id
    bounds = {}
    for name, model in (("now", trainer.objective.denoiser), ("reference", trainer.objective.reference)):
        masked = batch.inputs_FL == mask
        sums = (logp(model, batch.inputs_FL, batch.targets_RL) * masked).sum(1) * LENGTH / masked.sum(1)
        bounds[name] = sums.view(2, 2).mean(1)  # two completions, two batch each
    assert torch.equal(batch.targets_RL[::2], rollout.tokens_NL)
    ratio = bounds["now"] - bounds["reference"]
    by_hand = -torch.nn.functional.logsigmoid(0.2 * (ratio[0] - ratio[1]))
    assert trainer.updater.update([prepared], 0.0)["loss"] == pytest.approx(by_hand.item(), rel=1e-4)


def test_preference_rollout_holds_the_texts_and_no_trajectory(document):
    trainer = build_trainer(build(Recipe, document))
    examples = trainer.source.examples
    short = replace(examples, ranked_ids=[(ids[0][:5], ids[1]) for ids in examples.ranked_ids])
    rollout = preference_rollout(short, [3, 1], LENGTH, trainer.objective.denoiser.mask_id)
    assert rollout.group_size == 2
    assert rollout.prompt_N.tolist() == [3, 3, 1, 1]
    assert rollout.completion_NL.sum(1).tolist() == [6, LENGTH, 6, LENGTH]  # with the first end token
    assert rollout.tokens_NL[0, rollout.prompt_length :].tolist() == [*short.ranked_ids[3][0], *[examples.eos_id] * 11]
    assert not bool((rollout.tokens_NL == rollout.mask_id).any())
    with pytest.raises(ValueError, match="recorded snapshots"):
        rollout.canvas(0)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "vrpo"])
def test_check_preferences_refuses_methods_that_need_their_own_samples(document, method):
    document["method"] = {"name": method}
    if method == "just-grpo":
        document["rollout"] |= {"steps": 16, "unmasking": {"name": "left_to_right"}}
    with pytest.raises(
        UserError, match=f"method {method} learns from completions that it has sampled.*give method vrpo"
    ):
        build_trainer(build(Recipe, document))


def test_check_preferences_refuses_completions_that_do_not_fit(document):
    document["task"]["max_new_tokens"] = 8
    with pytest.raises(UserError, match=r"40 of 40 given completions exceed rollout.max_new_tokens 8 .*has 16 tokens"):
        build_trainer(build(Recipe, document))


def test_run_on_pairs_reports_preferred(document, tmp_path, capsys):
    task = document["task"]
    flags = ["--model", "embedded:sudoku", "--method", "vrpo", "--task", "pairs", "--train.max-steps", "2"]
    flags += ["--task.max-new-tokens", str(LENGTH)]
    flags += ["--task.data", task["data"], "--task.test-data", task["test_data"], "--train.threads", "1"]
    assert main(["train", *flags, "--output", str(tmp_path / "run")]) == 0
    assert "held-out pairs: " in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 <= summary["pairs"]["after"]["solved"] <= 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "eval/pairs/preferred" in rows[0]
    assert {"loss", "rewards/margins", "completions/mean_length"} <= rows[1].keys()
    assert (tmp_path / "run" / "curve.png").stat().st_size > 1000


def test_preferred_scores_in_the_precision_of_training(document, monkeypatch):
    seen = []

    def spy(denoiser, batch):
        seen.append(torch.is_autocast_enabled("cpu"))
        return row_logp(denoiser, batch)

    monkeypatch.setattr(preferences, "row_logp", spy)
    for precision in ("fp32", "bf16"):
        train = document["train"] | {"precision": precision}
        build_trainer(build(Recipe, document | {"train": train})).evaluation(2)
    assert seen == [False] * (len(seen) // 2) + [True] * (len(seen) // 2)
