"""Whatever takes seconds begins with a word: it is out before torch is imported, by whichever way."""

import pytest

from helpers.before_torch import END

METHOD = """
import torch
from dataclasses import dataclass
from unmask.methods import WD1
from unmask.sampling.unmasking import Random

@dataclass(frozen=True, kw_only=True)
class Mine(WD1):
    name = "mine"

@dataclass(frozen=True, kw_only=True)
class Drawn(Random):
    name = "drawn"
"""


@pytest.fixture
def until_torch(commands, tmp_path, tmp_path_factory):
    """A command in the test's directory, as far as the import of torch."""
    return lambda words: commands.run(words, tmp_path, tmp_path_factory.mktemp("outputs"))


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["train"], "unmask train: sudoku-dispo"),
        (["train", "--method", "mdpo"], "unmask train: mdpo-sudoku"),
        (["train", "--resume", "run"], "unmask train: run goes on"),
        (["evaluate", "--model", "there"], "unmask evaluate: there on sudoku"),
        (["pretrain", "--output", "model"], "unmask pretrain: a new model on sudoku"),
        (["sample"], "unmask sample: embedded:sudoku"),
        (["plan", "llada8b-spg"], "unmask plan: spg on"),
        (["oracle"], "unmask oracle: "),
        (["methods"], "unmask methods: "),
        (["methods", "mine.py:Mine"], "unmask methods: mine.py:Mine"),
        (["convert", "--model", "there", "--output", "model"], "unmask convert: there"),
        (["train", "--method", "mine.py:Mine"], "unmask train: starting"),
        (["evaluate", "--unmasking", "mine.py:Drawn"], "unmask evaluate: starting"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_main_says_a_word_before_torch_is_imported(words, first, until_torch, tmp_path):
    (tmp_path / "mine.py").write_text(METHOD)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "config.json").write_text('{"task": {"name": "sudoku"}}')
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text('model = "embedded:sudoku"\n')
    done = until_torch(words)
    assert (done.code, done.stderr) == (END, "")
    (said,) = done.stdout.splitlines()
    assert said.startswith(first)


@pytest.mark.parametrize("words", [["methods", "--markdown"], ["train", "--method", "mine.py:Mine", "--help"]])
def test_main_says_nothing_before_what_is_itself_the_output(words, until_torch, tmp_path):
    (tmp_path / "mine.py").write_text(METHOD)
    done = until_torch(words)
    assert (done.code, done.stdout, done.stderr) == (END, "", "")


SHOWN = ("--task.data", "rows.jsonl", "--task.few-shot", "2")
DATASET = ("--task", "dataset", "--model", "embedded:sudoku")


@pytest.mark.parametrize(
    ("words", "value", "mend"),
    [
        (["train", "--output", "used"], "'used' is not empty", "a new directory"),
        (["train", "--output", "begun"], "'begun' is not empty", "--resume begun to start its run again"),
        (["train", "--output", "mine.py"], "'mine.py' is not empty", "a new directory"),
        (["train", "--resume", "begun", "--output", "used"], "'used' is not empty", "a new directory"),
        (
            ["train", "--resume", "run", "--train.max-steps", "3"],
            "3, and the checkpoint has 4",
            "--resume run/checkpoints/",
        ),
        (["pretrain", "--output", "used"], "'used' is not empty", "a new directory"),
        (["pretrain", "--output", "mine.py"], "'mine.py' is not empty", "a new directory"),
        (["pretrain", "--output", "new", "--task", "gsm8k"], "gsm8k", "give model"),
        (["convert", "--model", "there", "--output", "used"], "'used' is not empty", "a new directory"),
        (["train", "--model", "nowhere"], "'nowhere'", "there is no such directory"),
        (["train", "--model", "embedded:chess"], "'embedded:chess'", "sudoku"),
        (["sample", "--model", "nowhere"], "'nowhere'", "there is no such directory"),
        (["evaluate", "--model", "used"], "'used'", "config.json"),
        (["pretrain", "--model", "nowhere", "--output", "new"], "'nowhere'", "there is no such directory"),
        (["convert", "--model", "nowhere", "--output", "new"], "'nowhere'", "there is no such directory"),
        (["plan", "--model", "nowhere"], "'nowhere'", "give one of"),
        (["plan", "--gpus", "8"], "'8'", "8x80GB"),
        (["plan", "--gpu", "h10"], "'h10'", "'h100'"),
        (["plan", "--gpus", "4x80GB", "--train.shard", "3"], "4 GPUs", "divides"),
        (["plan", "--rollout.block-length", "5"], "rollout.block_length 5", "divisor"),
        (["train", *DATASET, "--task.data", "nowhere.jsonl"], "nowhere.jsonl", "path of a data file"),
        (["train", *DATASET, "--task.data", "empty.jsonl"], "empty.jsonl is empty", "rows"),
        (
            ["train", *DATASET, "--task.data", "rows.jsonl", "--task.test-data", "no.csv"],
            "no.csv",
            "path of a data file",
        ),
        (["train", "--task", "gsm8k", "--model", "there", "--task.train-data", "no.jsonl"], "no.jsonl", "path"),
        (["train", "--task", "gsm8k", "--model", "there"], "--task.train-data", '"question": ..., "answer"'),
        (
            ["train", "--task", "math500", "--model", "there", "--task.train-data", "rows.jsonl"],
            "--task.data",
            "problem",
        ),
        (["evaluate", "--task", "gsm8k", "--model", "there"], "--task.data", '"question": ..., "answer"'),
        (["evaluate", "--task", "gsm8k", "--model", "there", *SHOWN], "--task.train-data", "question"),
        (["sample", "--task", "code", "--model", "there"], "--task.data", "a file of lines"),
        (["pretrain", "--task", "gsm8k", "--model", "there", "--output", "new"], "--task.train-data", "question"),
        (["train", *DATASET], "--task.data FILE", ".jsonl"),
        (["evaluate", "--task", "sudoku", "--task.data", "no.csv"], "no.csv", "path of a data file"),
        (["evaluate", "--task", "sudoku-words", "--model", "there", "--task.data", "no.csv"], "no.csv", "path"),
        (["evaluate", "--task", "countdown", "--task.data", "no.jsonl"], "no.jsonl", "path of a data file"),
        (["evaluate", "--task", "countdown-words", "--model", "there", "--task.data", "no.jsonl"], "no.jsonl", "path"),
        (
            ["evaluate", *DATASET, "--task.data", "rows.jsonl"],
            "dataset compares no answers",
            "--task.answer-kind number",
        ),
        (["evaluate", "--task", "pairs", "--model", "there"], "pairs knows the given completions alone", "vrpo"),
        (["evaluate", "--lengths", "16,30", "--block-length", "16"], "--lengths 30", "--block-length 16: give"),
        (["evaluate", "--block-length", "5"], "completion length 16 of the task", "another --block-length"),
        (["evaluate", "--block-length", "4", "--steps", "4,6"], "--steps 6", "multiple such as 8"),
        (["evaluate", "--block-length", "4", "--steps", "/3"], "--steps /3: 5", "multiple such as 4"),
        (["sample", "--block-length", "5"], "--block-length 5", "divisor"),
        (["sample", "--block-length", "4", "--steps", "6"], "--steps 6", "multiple such as 8"),
        (["train", "--rollout.block-length", "5"], "rollout.block_length 5", "divisor"),
        (["train", "--rollout.block-length", "4", "--rollout.steps", "6"], "rollout.steps 6", "multiple"),
        (["train", "--rollout.block-length", "4", "--evaluation.greedy-steps", "7"], "greedy_steps 7", "multiple"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_main_refuses_what_flags_and_files_decide_before_torch_is_imported(words, value, mend, until_torch, tmp_path):
    for name in ("used/sub", "begun", "run/checkpoints/step_000002", "run/checkpoints/step_000004", "there"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("begun", "run"):
        (tmp_path / name / "recipe.toml").write_text('model = "embedded:sudoku"\n')
    (tmp_path / "there" / "config.json").write_text('{"task": {"name": "sudoku"}}')
    (tmp_path / "mine.py").write_text(METHOD)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1", "answer": "2"}\n')
    (tmp_path / "empty.jsonl").touch()
    before = sorted(tmp_path.rglob("*"))
    done = until_torch(words)
    assert (done.code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert value in line
    assert mend in line
    assert sorted(tmp_path.rglob("*")) == before
