"""What a run records: the numbers of the step itself, whatever the method; and the run is the same without it."""

import numpy as np
import pytest
import torch

from unmask.methods import METHODS
from unmask.report.record import read_groups, record_path
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.training.build import build_trainer
from unmask.training.recording import Recorder, to_host

CELLS, STEPS, GROUP = 16, 4, 4


def trainer_of(method="dispo", run=None, prompts=1, **sections):
    rule = {"unmasking": {"name": "left_to_right"}, "steps": CELLS} if method == "just-grpo" else {"steps": STEPS}
    document = {
        "method": {"name": method},
        "rollout": {"prompts": 3, "num_generations": GROUP} | rule,
        "train": {"examples": 32, "threads": 1},
        "evaluation": {"examples": 6, "greedy_steps": 8},
        "report": {"every": 2, "prompts": prompts} if prompts else {"prompts": 0},
    }
    for name, values in sections.items():
        document[name] = document.get(name, {}) | values
    trainer = build_trainer(build(Recipe, document))
    if run is not None:
        objective, source = trainer.objective, trainer.source
        trainer.recorder = Recorder(
            run=run,
            recipe=trainer.recipe,
            tokenizer=trainer.tokenizer,
            terms=objective.terms,
            examples=source.examples,
            world=objective.world,
        )
    return trainer


def spied(trainer):
    """What the trainer's recorder is given, call by call."""
    given, write = [], trainer.recorder.write_step
    trainer.recorder.write_step = lambda *words: (given.append(words), write(*words))
    return given


def bits(array, columns=CELLS):
    return np.unpackbits(array, axis=1, count=columns, bitorder="little").astype(bool)


def test_run_is_the_same_bit_for_bit_with_the_record_and_without(tmp_path):
    plain, recorded = trainer_of("mdpo"), trainer_of("mdpo", tmp_path, prompts=2)
    for step in range(3):
        assert plain.step(step) == recorded.step(step)
    weights = zip(*(trainer.objective.denoiser.parameters() for trainer in (plain, recorded)), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)
    assert sorted(path.name for path in (tmp_path / "record").iterdir()) == [
        "step_000001.safetensors",
        "step_000002.safetensors",
    ]
    assert len(read_groups(record_path(tmp_path, "step", 2))) == 2


@pytest.mark.parametrize("method", METHODS)
def test_record_has_the_rollout_and_every_row_with_gradient(method, tmp_path):
    trainer = trainer_of(method, tmp_path)
    given = spied(trainer)
    step = 0
    while not given or not any((update.batch.sample_R < GROUP).any() for update in given[0][3]):  # until it trains some
        given.clear()
        trainer.step(step)
        step += 1 if step == 0 else 2
    done, numbers, experience, batches = given[0]
    (group,) = read_groups(record_path(tmp_path, "step", done))
    arrays, rollout = group.arrays, experience.rollout
    start = rollout.prompt_length
    ids = arrays["token_id_V"]
    assert (ids[arrays["token_NC"]] == rollout.tokens_NL[:GROUP, start:].numpy()).all()
    assert (arrays["revealed_at_NC"] == rollout.revealed_at_NL[:GROUP, start:].numpy()).all()
    assert (arrays["reward_N"] == experience.reward_N[:GROUP].numpy()).all()
    assert group.about["texts"] == experience.texts[:GROUP]
    assert group.about["prompt"] == trainer.source.examples.items[numbers[0] % 32].prompt
    mine = [
        (update.batch, row) for update in batches for row in (update.batch.sample_R < GROUP).nonzero()[:, 0].tolist()
    ]
    assert len(arrays.get("row_sample_R", ())) == len(mine)
    place = 0
    for number, (batch, row) in enumerate(mine):
        scored = batch.scored_RL[row, start:]
        count, canvas = int(scored.sum()), batch.inputs_FL[batch.forward_R[row], start:]
        assert arrays["row_sample_R"][number] == batch.sample_R[row]
        assert arrays["row_advantage_R"][number] == batch.advantage_U[batch.unit_R[row]]
        assert (bits(arrays["row_masked_RB"])[number] == (canvas == rollout.mask_id).numpy()).all()
        assert (bits(arrays["row_scored_RB"])[number] == scored.numpy()).all()
        weight, target = (arrays[name][place : place + count] for name in ("row_weight_W", "row_target_W"))
        assert (weight == batch.token_weight_RL[row, start:][scored].float().numpy()).all()
        assert (ids[target] == batch.targets_RL[row, start:][scored].numpy()).all()
        place += count
    assert place == len(arrays.get("row_weight_W", ()))


def test_record_marks_completions_that_were_right_on_the_way_and_wrong_at_the_end(tmp_path):
    trainer = trainer_of("mdpo", tmp_path, report={"every": 1})
    found = 0
    for step in range(6):
        trainer.step(step)
        (group,) = read_groups(record_path(tmp_path, "step", step + 1))
        arrays, about = group.arrays, group.about
        item = next(item for item in trainer.source.examples.items if item.prompt == about["prompt"])
        columns = {name: [value] for name, value in item.columns.items()}

        def solved(row, about=about, columns=columns):
            text = "".join(about["vocabulary"][token] for token in row)
            return trainer.recipe.task.metrics([about["prompt"]], [text], **columns)["solved"] == [1.0]

        for sample, marked in enumerate(about["over_denoised"]):
            ever = any(solved(row) for row in arrays["guess_SZNC"][:, 0, sample])
            assert marked == (ever and not solved(arrays["token_NC"][sample]))
            found += marked
        assert (arrays["guess_reward_NE"].shape, arrays["step_SN"].shape) == ((GROUP, STEPS), (STEPS, GROUP))
        assert (arrays["canvas_SNC"][0] == about["mask"]).all()
    assert found > 0


def test_evaluations_record_one_held_out_prompt_each_way_of_sampling(tmp_path):
    trainer = trainer_of("dispo", tmp_path)
    item = trainer.evaluators["test"].examples.items[0]
    plain = trainer_of("dispo").evaluation(6)
    assert trainer.evaluation(6) == plain
    trainer.recorder.write_evaluation(0, item.prompt)
    groups = read_groups(record_path(tmp_path, "evaluation", 0))
    assert [group.about["label"] for group in groups] == [
        "temperature 1, 4 steps",
        "greedy, 4 steps",
        "greedy, 8 steps",
    ]
    assert {group.about["prompt"] for group in groups} == {item.prompt}
    rates = [plain[name][0] for name in ("sampled_4/solved", "greedy_4/solved", "greedy_8/solved")]
    assert [group.arrays["reward_N"].tolist() for group in groups] == [[rate] for rate in rates]


def test_recorded_evaluations_are_called_by_the_steps_taken_as_their_figures_are(tmp_path):
    """Of 32 steps a schedule of one token a step leaves 16 none."""
    trainer = trainer_of("dispo", tmp_path, rollout={"steps": 8}, evaluation={"greedy_steps": 32})
    figures = trainer.evaluation(1)
    trainer.recorder.write_evaluation(0, "a prompt")
    groups = read_groups(record_path(tmp_path, "evaluation", 0))
    steps = [name.partition("/")[0].rpartition("_")[2] for name in figures if name.endswith("/solved")]
    assert steps == ["8", "8", "16"]
    assert [group.about["label"].rpartition(", ")[2] for group in groups] == [f"{each} steps" for each in steps]


def test_to_host_copies_once_and_keeps_every_kind_and_shape(monkeypatch):
    tensors = {
        "flag_RC": torch.tensor([[True, False, True] * 4]),
        "half": torch.tensor([0.5, -2.0]).half(),
        "empty_RC": torch.zeros((0, 12), dtype=torch.bool),
        "long": torch.tensor([[1], [2**40]]),
        "float": torch.tensor(0.25),
    }
    copies, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: copies.append(1) or cpu(tensor))
    found = to_host(tensors)
    assert len(copies) == 1
    assert bits(found["flag_RB"], 12).tolist() == tensors["flag_RC"].tolist()
    assert found["empty_RB"].shape == (0, 2)
    for name in ("half", "long", "float"):
        assert found[name].tolist() == tensors[name].tolist()
