"""Which phases the commands tell of: every one that may take long, and what is counted is counted to its end."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from unmask.cli.main import main
from unmask.report.progress import Progress
from unmask.tasks import Sudoku

TRAIN = [
    *("train", "--train.threads", "1", "--train.max-steps", "4", "--train.eval-steps", "2", "--train.examples", "40"),
    *("--train.save-steps", "2", "--rollout.prompts", "2", "--rollout.num-generations", "4"),
    *("--evaluation.examples", "6", "--evaluation.examples-during", "5", "--evaluation.batch", "4"),
]


@pytest.fixture
def phases(monkeypatch):
    """Name, total, what was done before, and what is done at the end, of each phase of the commands that are run."""
    ended = []

    class Recorder(Progress):
        def __init__(self, **options):
            super().__init__(Console(file=io.StringIO()), **options)

        def _end(self, phase, succeeded):
            ended.append(replace(phase))
            super()._end(phase, succeeded)

    monkeypatch.setattr("unmask.cli.main.Progress", Recorder)
    return ended


def counted(phases) -> dict[str, int]:
    """Totals by name, of phases that can be counted; each has come to its end."""
    found = [phase for phase in phases if phase.total is not None]
    assert [(phase.name, phase.done) for phase in found] == [(phase.name, phase.total) for phase in found]
    return {phase.name: phase.total for phase in found}


def test_train_tells_of_loading_examples_evaluations_steps_and_saving(phases, tmp_path):
    assert main([*TRAIN, "--output", str(tmp_path / "run")]) == 0
    names = [phase.name for phase in phases]
    assert names == [
        *("unmask train: sudoku-dispo", "loading embedded:sudoku", "preparing the train examples"),
        *(
            "loading the rewards",
            "asking the rewards once",
            "preparing the test examples",
            "preparing the test_unseen_grids examples",
        ),
        *("base evaluation", "evaluation after step 2:", "saving the checkpoint of step 2"),
        *("saving the checkpoint of step 4", "step", "final evaluation"),
    ]
    three = 3 * 6 + 6  # three ways on the test items, as in training on those of unseen grids
    totals = {"base evaluation": three, "evaluation after step 2:": 3 * 5, "step": 4, "final evaluation": three}
    assert counted(phases) == totals


@pytest.mark.long
def test_train_that_goes_on_counts_the_steps_that_are_left(phases, tmp_path):
    assert main([*TRAIN, "--output", str(tmp_path / "run")]) == 0
    phases.clear()
    assert main(["train", "--resume", str(tmp_path / "run" / "checkpoints" / "step_000002")]) == 0
    assert counted(phases) == {"step": 4, "final evaluation": 24}
    (steps,) = [phase for phase in phases if phase.name == "step"]
    assert (steps.done_before, steps.figures[:6]) == (2, "reward")


@pytest.mark.long
def test_train_with_a_filter_tells_of_it(phases, tmp_path):
    flags = ("--method", "diffu-grpo", "--train.over-denoising-filter", "true", "--train.examples", "200")
    assert main([*TRAIN, *flags, "--output", str(tmp_path / "run")]) == 0
    assert counted(phases)["over-denoising filter"] == 200


def test_train_on_pairs_counts_them(phases, tmp_path):
    items = Sudoku().examples("train", 12, 0)
    rows = [{"prompt": item.prompt, "chosen": item.solution, "rejected": "1" * 16} for item in items]
    for name, part in (("train", rows[:8]), ("test", rows[8:])):
        (tmp_path / name).with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    flags = ["--model", "embedded:sudoku", "--method", "vrpo", "--task", "pairs", "--task.max-new-tokens", "16"]
    flags += ["--train.max-steps", "2"]
    flags += ["--task.data", str(tmp_path / "train.jsonl"), "--task.test-data", str(tmp_path / "test.jsonl")]
    assert main(["train", *flags, "--train.threads", "1", "--output", str(tmp_path / "run")]) == 0
    assert counted(phases) == {"base evaluation": 4, "step": 2, "final evaluation": 4}


def test_train_on_a_task_that_compares_nothing_counts_no_evaluation(phases, tmp_path):
    rows = [json.dumps({"prompt": item.prompt}) + "\n" for item in Sudoku().examples("train", 60, 0)]
    (tmp_path / "rows.jsonl").write_text("".join(rows[8:]))
    (tmp_path / "test.jsonl").write_text("".join(rows[:8]))
    (tmp_path / "ones.py").write_text(
        "def ones(completions, **rest):\n    return [c.count('1') for c in completions]\n"
    )
    flags = ["--task", "dataset", "--task.data", str(tmp_path / "rows.jsonl"), "--task.max-new-tokens", "16"]
    flags += ["--task.test-data", str(tmp_path / "test.jsonl"), "--model", "embedded:sudoku", "--train.max-steps", "4"]
    flags += ["--reward.funcs", f"{tmp_path / 'ones.py'}:ones", "--rollout.steps", "4", "--train.threads", "1"]
    assert main(["train", *flags, "--output", str(tmp_path / "run")]) == 0
    assert counted(phases) == {"step": 4}
    assert "base evaluation" in [phase.name for phase in phases]


def test_pretrain_tells_of_steps_validation_and_saving(phases, tmp_path):
    sizes = ("--max-steps", "4", "--examples", "40", "--batch", "8", "--validation-examples", "10", "--threads", "1")
    model = tmp_path / "model"
    assert main(["pretrain", *sizes, "--eval-steps", "2", "--output", str(model)]) == 0
    assert counted(phases) == {"step": 4, "validation after step 2:": 10, "validation after step 4:": 10}
    names = [phase.name for phase in phases]
    assert {"loading a new model", "preparing the examples", f"saving {model}"} <= set(names)


def test_evaluate_tells_of_every_row(phases):
    flags = ("--samples", "3", "--temperature", "1", "--batch", "5", "--examples", "7", "--threads", "1")
    assert main(["evaluate", "--lengths", "8,16", "--steps", "2,/2", *flags]) == 0
    rows = [(8, 2), (8, 4), (16, 2), (16, 8)]
    assert counted(phases) == {f"low_confidence, {length} tokens, {steps} steps:": 21 for length, steps in rows}
    assert {"loading embedded:sudoku", "preparing the test examples"} <= {phase.name for phase in phases}


def test_sample_tells_of_its_steps(phases, capsys):
    assert main(["sample", "--steps", "8", "--block-length", "4"]) == 0
    assert counted(phases) == {"sampling": 8}


@pytest.mark.long
def test_oracle_tells_of_every_gradient_and_estimate(phases, monkeypatch, capsys):
    monkeypatch.setattr("unmask.report.oracle_table._BATCHES", 3)
    assert main(["oracle", "--groups", "24", "--num-generations", "3", "--masks", "5"]) == 0
    totals = counted(phases)
    assert totals["gradients of methods under samplers"] % 3 == 0
    assert totals["likelihood estimates"] > 5


def test_plan_tells_of_the_try(phases, capsys):
    assert main(["plan"]) == 0
    assert [phase.name for phase in phases][1:] == ["trying embedded:sudoku without weights"]
