"""The user's own data: files of four kinds and the Hub, columns, splits, answers, and every fault with its mend."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unmask.errors import UserError
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.tasks import Dataset, Pairs, Sudoku
from unmask.training.build import build_trainer

ROWS = [{"prompt": f"What is {n} + {n}?", "completion": f"It is {2 * n}.", "answer": str(2 * n)} for n in range(60)]
TURNS = [{"role": "user", "content": "Two and two?"}]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def dataset(tmp_path: Path, rows: list[dict[str, Any]] = ROWS, **settings: Any) -> Dataset:
    return Dataset(data=written(tmp_path / "rows.jsonl", rows), **settings)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_read_table_gives_the_same_rows_in_order_for_every_kind_of_file(tmp_path, kind):
    rows = [row | {"note": 'two\nlines, "quoted"'} for row in ROWS]
    path = written(tmp_path / f"rows.{kind}", rows)
    examples = Dataset(test_data=path, answer_kind="number").examples("test", 100, 0)
    assert [example.prompt for example in examples] == [row["prompt"] for row in rows]
    assert [example.solution for example in examples] == [row["completion"] for row in rows]
    assert examples[7].columns == {"answer": "14", "note": 'two\nlines, "quoted"'}


def test_read_table_of_json_lines_needs_no_further_library(tmp_path, monkeypatch):
    for name in ("datasets", "pyarrow", "pandas"):
        monkeypatch.setitem(sys.modules, name, None)
    assert len(Dataset(test_data=written(tmp_path / "rows.jsonl", ROWS)).examples("test", 5, 0)) == 5
    for source in ("org/name", str(tmp_path / "rows.parquet")):
        with pytest.raises(UserError, match=r"pip install 'unmask\[data\]'"):
            Dataset(data=source).examples("train", 5, 0)


def test_read_table_of_a_hub_data_set_by_configuration_and_split(monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        if split == "dev":
            raise ValueError('Unknown split "dev".\nShould be one of train, test')
        return ROWS[:3] if split == "test" else ROWS

    errors = SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {}))
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setitem(sys.modules, "datasets.exceptions", errors)
    task = Dataset(data="org/name", test_data="org/name", hub_config="main")
    assert [example.prompt for example in task.examples("train", 1, 0)] == ["What is 3 + 3?"]
    assert set(asked) == {("org/name", "main", "train"), ("org/name", "main", "test")}
    with pytest.raises(
        UserError, match=r"org/name', split 'dev', from the Hub \(Unknown split .* check name, task.hub_config"
    ):
        Dataset(data="org/name", hub_split="dev").examples("train", 1, 0)


def test_dataset_a_tenth_of_the_prompts_is_held_out(tmp_path):
    rows = [{"prompt": f"Question {n}?"} for n in range(500)] + [{"prompt": f" Question\n{n}? "} for n in range(500)]
    task = dataset(tmp_path, rows)
    train, test = (task.examples(split, 2000, 0) for split in task.splits)
    words = [{" ".join(example.prompt.split()) for example in examples} for examples in (train, test)]
    assert not words[0] & words[1]
    assert len(train) + len(test) == 1000
    assert 60 <= len(test) <= 140
    assert task.examples("train", 9, 0) == task.examples("train", 9, 5) == train[:9]
    kept = [row["prompt"] for row in rows if row["prompt"] in {example.prompt for example in train}]
    assert [example.prompt for example in train] == kept


def test_dataset_what_is_tested_or_shown_is_not_trained_on(tmp_path):
    task = dataset(tmp_path, test_data=written(tmp_path / "test.jsonl", ROWS[:2]), few_shot=2)
    train = task.examples("train", 100, 0)
    assert len(train) == 56
    shown = "What is 2 + 2?\nIt is 4.\n\nWhat is 3 + 3?\nIt is 6.\n\n"
    assert train[0].prompt == shown + "What is 4 + 4?"
    assert task.examples("test", 1, 0)[0].prompt == shown + "What is 0 + 0?"


def test_dataset_conversations_show_solved_ones_as_turns(tmp_path):
    system = {"role": "system", "content": "Be short."}
    rows = [
        {
            "prompt": [system, {"role": "user", "content": f"{n}?"}],
            "completion": [{"role": "assistant", "content": "!"}],
        }
        for n in range(3)
    ]
    test = written(tmp_path / "test.jsonl", [{"prompt": [system, *TURNS]}])
    example = dataset(tmp_path, rows, test_data=test, few_shot=1).examples("test", 1, 0)[0]
    assert example.messages == (
        *(system, {"role": "user", "content": "0?"}, {"role": "assistant", "content": "!"}, TURNS[0]),
    )
    assert example.prompt == "Be short.\n\nTwo and two?"


def test_dataset_columns_are_mapped_and_the_others_passed_as_they_are(tmp_path):
    rows = [{"question": "Why?", "gold": 3, "tags": [1, {"a": None}]}, {"question": "How?", "gold": 4, "more": 0.5}]
    task = Dataset(
        test_data=written(tmp_path / "rows.json", rows),
        prompt_column="question",
        answer_column="gold",
        answer_kind="number",
    )
    assert [dict(example.columns) for example in task.examples("test", 9, 0)] == [
        {"gold": 3, "tags": [1, {"a": None}], "more": None},
        {"gold": 4, "tags": None, "more": 0.5},
    ]
    assert task.rewards(["", ""], ["so 3", "so 3"], gold=[3, 4], tags=[None, None]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("kind", "answer", "completion", "reward"),
    [
        ("number", "1,000", "\\boxed{1000}", 1.0),
        ("number", 0.5, "<answer>1/2</answer>", 1.0),
        ("number", "steps #### 7", "#### 7", 1.0),
        ("number", 7, "first 7, then 8", 0.0),
        ("number", 8, "first 7, then 8", 1.0),
        ("number", 7, "seven", 0.0),
        ("text", "New  York", "<answer>New\nYork</answer>", 1.0),
        ("text", "New York", "New York\n", 1.0),
        ("text", "New York", "new york", 0.0),
        ("text", "B", "\\boxed{B}<|eot_id|>", 1.0),
        ("text", "B", "I say B", 0.0),
        ("text", "E", "\\boxed{\\text{E}}", 1.0),
        ("text", "\\text{E}", "\\boxed{\\textbf{E}}", 1.0),
        ("text", "E", "\\boxed{\\text{F}}", 0.0),
        ("number", "so 2 + 2 = 4, \\boxed{4} in all 3 cases", "#### 4", 1.0),
        ("number", "3/4", "The probability is 3/4.", 1.0),
        ("number", 4, "The probability is 3/4.", 0.0),
        ("latex", r"\frac{1}{2}", r"so \boxed{\frac{1}{2}}", 1.0),
        ("latex", r"\frac{1}{2}", r"\frac{1}{2}", 1.0),
        ("latex", r"\frac{1}{2}", "", 0.0),
    ],
)
def test_dataset_answers_are_compared_by_their_kind(kind, answer, completion, reward):
    task = Dataset(answer_kind=kind)
    assert task.rewards([""], [completion], answer=[answer]) == [reward]
    assert task.metrics([""], [completion], answer=[answer]) == {"solved": [reward]}


def test_dataset_well_formed():
    assert Dataset(answer_kind="number").well_formed("it is 5")
    assert not Dataset(answer_kind="number").well_formed("it is many")
    assert Dataset(answer_kind="text").well_formed("many")
    assert not Dataset().well_formed(" \n<|endoftext|>")


def test_dataset_without_answers_rewards_come_from_elsewhere():
    assert not Dataset().verifies
    assert Dataset().metrics([""], ["x"], answer=["x"]) == {}
    with pytest.raises(UserError, match=r"answer_kind is none.*give reward.funcs"):
        Dataset().rewards([""], ["x"], answer=["x"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"prompt": "a"}\n\n{"prompt": "b"}', "line 2: the line is empty; remove it"),
        ('{"prompt": "a"}\n{"prompt": ', "line 2: not JSON .*mend or remove it"),
        ("[" * 100_000, "line 1: not JSON"),
        ("[1]", r"line 1: \[1\] is no object; write {COLUMN: VALUE"),
        ('{"question": "a"}', "line 1: there is no column 'prompt'; set task.prompt_column "),
        ('{"prompt": "a"}\n{"prompt": 5}', "line 2: prompt is 5; write text"),
        ('{"prompt": " "}', "prompt is ' '; write text"),
        ('{"prompt": "a", "x": 1}\n{"x": 2}', "line 2: prompt is None"),
        ('{"prompt": []}', r"prompt is \[\]; write text, or a list of"),
        ('{"prompt": [{"role": "user"}]}', "prompt holds .*give each message role and content"),
        ('{"prompt": [{"role": "system", "content": "s"}]}', "prompt has no message of the user"),
        ('{"prompt": "a", "completion": [{"role": "user", "content": "b"}]}', "completion has 1 messages; write one"),
        ('{"prompt": "a", "completions": "b"}', "a column is called 'completions'.*rename"),
        ("", "is empty"),
    ],
)
def test_dataset_faults_of_rows_name_file_line_and_mend(tmp_path, rows, message):
    path = tmp_path / "faulty.jsonl"
    path.write_text(rows)
    with pytest.raises(UserError, match=message) as caught:
        Dataset(test_data=str(path)).examples("test", 1, 0)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [("five", "ends in 'five'"), (True, "answer is True"), (None, "answer is None"), (float("inf"), "'inf'")],
)
def test_dataset_references_that_are_no_number(tmp_path, answer, message):
    path = written(tmp_path / "rows.jsonl", [ROWS[0], {"prompt": "b", "answer": answer}])
    with pytest.raises(UserError, match=f"line 2: .*{message}"):
        Dataset(test_data=path, answer_kind="number").examples("test", 1, 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "prompt,answer\na,1\nb\n", "line 3: 1 values; write 2"),
        ("a.csv", "prompt,prompt\na,1\n", "line 1: .*names a column twice"),
        ("a.csv", 'prompt,answer\n"a,1\n', "line 2: .*mend or remove"),
        ("a.csv", "prompt,answer\n", "has no rows"),
        ("a.json", '{"prompt": "a"}', "is no list; write a list of objects"),
        ("a.json", '[{"prompt": "a"},\n{"prompt"}]', "not JSON .*line 2"),
        ("a.json", '[{"prompt": "a"}, 5]', "row 2: 5 is no object"),
        ("a.txt", "a", r"give a file that ends in .jsonl, .json, .csv, .parquet, or org/name"),
    ],
)
def test_dataset_faults_of_other_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        Dataset(test_data=str(tmp_path / name)).examples("test", 1, 0)


def test_read_table_refuses_a_file_that_is_no_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_text("text")
    with pytest.raises(UserError, match="give the path of a Parquet file"):
        Dataset(test_data=str(tmp_path / "a.parquet")).examples("test", 1, 0)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_of_few_rows_one_prompt_is_held_out(tmp_path, count):
    for first in range(40):
        few = dataset(tmp_path, [{"prompt": f"{first + number}"} for number in range(count)])
        tested = {example.prompt for example in few.examples("test", 10, 0)}
        assert tested
        assert tested.isdisjoint(example.prompt for example in few.examples("train", 10, 0))


def test_dataset_faults_of_settings(tmp_path):
    with pytest.raises(UserError, match=r"give task.data \(--task.data FILE\), a .jsonl"):
        Dataset().examples("train", 1, 0)
    with pytest.raises(UserError, match="no split 'dev'"):
        Dataset().examples("dev", 1, 0)
    with pytest.raises(UserError, match="answer_kind is 'regex'; choose one of number, latex, text, none"):
        Dataset(answer_kind="regex")
    with pytest.raises(UserError, match=r"cannot read nowhere.jsonl"):
        Dataset(data="nowhere.jsonl").examples("train", 1, 0)
    with pytest.raises(UserError, match=r"has one prompt, .*: add rows, or give task\.test_data"):
        dataset(tmp_path, [{"prompt": "a"}]).examples("test", 1, 0)
    test = written(tmp_path / "test.jsonl", ROWS[:1])
    with pytest.raises(UserError, match=r"leaves 0 training rows"):
        dataset(tmp_path, ROWS[:1], test_data=test).examples("train", 1, 0)
    with pytest.raises(UserError, match=r"leaves 59 training rows .*few_shot is 60"):
        dataset(tmp_path, test_data=test, few_shot=60).examples("train", 1, 0)
    with pytest.raises(UserError, match=r"no completion; give task.completion_column"):
        dataset(tmp_path, [{"prompt": "a"}, {"prompt": "b"}], test_data=test, few_shot=1).examples("test", 1, 0)


def test_errors_of_rows_given_in_python_name_what_python_has():
    with pytest.raises(
        UserError, match=r"^the data given, row 1: .* to one of q, a \(in Python, Dataset\(prompt_column=...\)\)$"
    ):
        Dataset(data=[{"q": "1", "a": "2"}]).examples("train", 1, 0)
    with pytest.raises(UserError, match=r"\(in Python, Pairs\(rejected_column=...\)\)"):
        Pairs(data=[{"chosen": "1"}]).examples("train", 1, 0)
    with pytest.raises(UserError, match=r"^the data given has one prompt, "):
        Dataset(data=[{"prompt": "1"}]).examples("train", 1, 0)


def test_pairs_plain_and_as_whole_conversations(tmp_path):
    rows = [
        {"prompt": "Two and two?", "chosen": "4", "rejected": "5"},
        {"prompt": TURNS, "chosen": [{"role": "assistant", "content": "4"}], "rejected": "5"},
        {
            "chosen": [*TURNS, {"role": "assistant", "content": "4"}],
            "rejected": [*TURNS, {"role": "assistant", "content": "5"}],
        },
    ]
    examples = Pairs(test_data=written(tmp_path / "rows.jsonl", rows)).examples("test", 9, 0)
    assert [example.ranked for example in examples] == [("4", "5")] * 3
    assert [example.messages for example in examples] == [(), tuple(TURNS), tuple(TURNS)]
    assert {example.prompt for example in examples} == {"Two and two?"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "there is no column 'rejected'"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "rejected is ''"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ({"chosen": "b", "rejected": "c"}, "there is no column 'prompt'"),
        (
            {"chosen": [*TURNS, *TURNS], "rejected": [{"role": "user", "content": "x"}, *TURNS]},
            "differ before their last message",
        ),
    ],
)
def test_pairs_refuse_faulty_rows(tmp_path, row, message):
    path = written(tmp_path / "rows.jsonl", [row])
    with pytest.raises(UserError, match=f"line 1: .*{message}"):
        Pairs(test_data=path).examples("test", 1, 0)


def test_train_command_learns_from_rows_of_the_user_s(tmp_path):
    puzzles = Sudoku().examples("train", 24, 0)
    rows = [{"puzzle": item.prompt, "grid": item.solution, "level": 3} for item in puzzles]
    task = {"name": "dataset", "data": written(tmp_path / "rows.jsonl", rows), "prompt_column": "puzzle"}
    task |= {"test_data": written(tmp_path / "test.jsonl", rows[:4]), "answer_column": "grid", "answer_kind": "text"}
    document = {
        "task": task | {"max_new_tokens": Sudoku().max_new_tokens},
        "rollout": {"prompts": 4, "num_generations": 4},
        "train": {"max_steps": 1, "threads": 1},
        "evaluation": {"batch": 4, "greedy_steps": 8},
    }
    trainer = build_trainer(build(Recipe, document))
    assert len(trainer.source.examples.items) == 20
    assert len(trainer.evaluation(9)["sampled_4/solved"]) == 4
    metrics, sample = trainer.step(0)
    assert metrics["reward"] > 0
    right = [text["reward"] == 1 for text in sample["completions"]]
    item = next(item for item in puzzles if item.prompt == sample["prompt"])
    assert right == [text["text"] == item.solution for text in sample["completions"]]
