"""Every task through every family's chat template: the reference answer, worded, encoded, decoded, is right."""

import json

import pytest

from helpers.sandboxes import needs_sandbox
from rehearsal.benchmarks import corpus, task_of, write_problems
from rehearsal.checkpoints import make_tokenizer
from rehearsal.families import FAMILIES
from rehearsal.references import round_trip_rewards
from unmask.data.chat import PLAIN, render_completion
from unmask.tasks import TASKS, Arithmetic, Code, Countdown, Dataset, Sudoku

ROWS = [
    {"prompt": "What is 1 + 2?", "completion": "It is 3.", "answer": "3"},
    {"prompt": "What is 2 + 2?", "completion": "It is 4.", "answer": "4"},
]
PROGRAM = {
    "text": "Write a function to add two numbers.",
    "code": "def add(a, b):\n    return a + b",
    "test_list": ["assert add(1, 2) == 3"],
}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stand_in_data")
    write_problems(folder, 0)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "held_out.jsonl").write_text(json.dumps(ROWS[0] | {"prompt": "held out"}) + "\n")
    (folder / "programs.jsonl").write_text(json.dumps(PROGRAM) + "\n")
    return folder


@pytest.fixture(scope="session")
def tokenizers(data):
    texts = corpus(data, 0)
    return {name: make_tokenizer(family, texts) for name, family in FAMILIES.items()}


def made(name, folder):
    """A task with something to read."""
    rows = {"data": str(folder / "rows.jsonl"), "test_data": str(folder / "held_out.jsonl")}
    others = {
        "sudoku": lambda: Sudoku(),
        "countdown": lambda: Countdown(),
        "arithmetic": lambda: Arithmetic(),
        "code": lambda: Code(train_data=str(folder / "programs.jsonl")),
        "dataset": lambda: Dataset(answer_kind="number", **rows),
    }
    return others[name]() if name in others else task_of(name, folder)


def cases():
    for task in TASKS:
        for family in FAMILIES:
            if task != "pairs":  # nothing is verified there
                marks = [needs_sandbox] if task == "code" else []
                yield pytest.param(task, family, id=f"{task}-{family}", marks=marks)


@pytest.mark.parametrize(("task", "family"), list(cases()))
def test_round_trip_rewards_of_reference_answers_are_one(task, family, data, tokenizers):
    assert set(round_trip_rewards(made(task, data), tokenizers[family])) == {1.0}


@pytest.mark.parametrize("family", FAMILIES)
def test_render_completion_is_the_completion_and_the_end_of_turn(family, data, tokenizers):
    example = made("dataset", data).examples("train", 1, 0)[0]
    written = render_completion(tokenizers[family], example, example.solution, PLAIN)
    assert written.strip() == example.solution + FAMILIES[family].turn_end


def test_make_tokenizer_keeps_digits_apart(tokenizers):
    for tokenizer in tokenizers.values():
        assert tokenizer.tokenize("\\boxed{1234}")[-5:-1] == list("1234")


def test_make_tokenizer_is_deterministic(tokenizers, data):
    again = make_tokenizer(FAMILIES["llada"], corpus(data, 0))
    assert again.backend_tokenizer.to_str() == tokenizers["llada"].backend_tokenizer.to_str()
