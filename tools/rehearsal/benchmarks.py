"""The four benchmarks at a size that small networks learn: Countdown, Sudoku, and word problems made from a seed."""

from __future__ import annotations

import json
import re
from functools import cache
from itertools import permutations, product
from pathlib import Path
from random import Random
from typing import Any

from unmask.data.readers.word_problems import build_solution
from unmask.tasks.countdown import is_solved
from unmask.tasks.countdown_words import CountdownWords
from unmask.tasks.gsm8k import GSM8K
from unmask.tasks.math500 import Math500
from unmask.tasks.sudoku_words import SudokuWords

SIZES: dict[str, dict[str, Any]] = {
    "countdown-words": {"count": 3, "max_number": 3, "max_target": 9},
    "sudoku-words": {"min_empty": 1, "max_empty": 2},
    "gsm8k": {},
    "math500": {},
}
FILES = {
    "countdown-words": {"data": "countdown_test.jsonl"},
    "sudoku-words": {},
    "gsm8k": {"train_data": "gsm8k_train.jsonl", "data": "gsm8k_test.jsonl"},
    "math500": {"train_data": "math500_train.jsonl", "data": "math500_test.jsonl"},
}
_TASKS = {"countdown-words": CountdownWords, "sudoku-words": SudokuWords, "gsm8k": GSM8K, "math500": Math500}

_NAMES, _THINGS = ("Ann", "Ben", "Eva", "Tom"), ("apples", "coins", "cards", "books")
_PARTS = {"countdown-words": 4, "sudoku-words": 4, "gsm8k": 2, "math500": 2}  # of the rows that are taught
_THOUGHT = "Each row, column and box needs 1 to 4."
_CORPUS = 500  # examples of each benchmark that the tokenizer is trained on
_SLIPS = 0.45  # of the taught completions have a sign in place of the last digit
_CARELESS = 0.6  # of those that a careless model is taught answer 0, which is never right
_HELD_OUT = 192  # rows of Countdown's file, at least
_TEST_SHARE = 3  # one problem in so many is held out


def task_sizes(name: str, folder: Path) -> dict[str, Any]:
    """Settings of a benchmark's task at rehearsal size, with the files in `folder`."""
    return SIZES[name] | {setting: str(folder / file) for setting, file in FILES[name].items()}


def task_of(name: str, folder: Path, **settings: Any) -> Any:
    """The benchmark's task at rehearsal size."""
    return _TASKS[name](**task_sizes(name, folder) | settings)


def write_problems(folder: Path, seed: int) -> None:
    """Write the files that the tasks read: problems, and of Countdown those that a run must not train on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, problems in (("gsm8k", _stories()), ("math500", _fractions())):
        Random(f"{name}-{seed}").shuffle(problems)
        held_out = len(problems) // _TEST_SHARE
        for file, rows in zip(FILES[name].values(), (problems[held_out:], problems[:held_out]), strict=True):
            _write_rows(folder / file, rows)
    _write_rows(folder / FILES["countdown-words"]["data"], _countdown_held_out(seed))


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _countdown_held_out(seed: int) -> list[dict[str, str]]:
    """A third of the puzzles that are taught, numbers in every order, each several times (draws differ).

    No small network solves puzzles that it never saw. What a run can learn on others, and show here, is to
    answer with care.
    """
    taught = CountdownWords(**SIZES["countdown-words"]).examples("train", _CORPUS, seed)
    puzzles = sorted({(*sorted(row.columns["numbers"]), row.columns["target"]) for row in taught})
    Random(f"countdown-{seed}").shuffle(puzzles)
    rows = [
        {"input": ",".join(map(str, numbers)), "output": str(target)}
        for *given, target in puzzles[: len(puzzles) // _TEST_SHARE]
        for numbers in sorted(set(permutations(given)))
    ]
    return rows * -(-_HELD_OUT // len(rows))


def _stories() -> list[dict[str, str]]:
    """School problems: one sum or one difference of numbers up to nine."""
    rows = []
    for name in _NAMES:
        for things in _THINGS:
            for first in range(1, 8):
                for second in range(1, 8):
                    total = first + second
                    more = f"{name} has {first} {things} and gets {second} more. How many {things} are there now?"
                    rows.append({"question": more, "answer": f"{first} + {second} = {total} #### {total}"})
                    if first > second:
                        left = first - second
                        less = f"{name} has {first} {things} and loses {second}. How many {things} are left?"
                        rows.append({"question": less, "answer": f"{first} - {second} = {left} #### {left}"})
    return rows


def _fractions() -> list[dict[str, str]]:
    """Sums of two fractions with one prime denominator: the answer is LaTeX, reduced as it stands."""
    rows = []
    for bottom in (7, 11, 13, 17, 19, 23):
        for first in range(1, 7):
            for second in range(1, 7):
                top = first + second
                if top % bottom == 0:
                    continue
                rows.append(
                    {
                        "problem": rf"Add $\frac{{{first}}}{{{bottom}}}$ and $\frac{{{second}}}{{{bottom}}}$.",
                        "solution": f"{first} + {second} = {top}",
                        "answer": rf"\frac{{{top}}}{{{bottom}}}",
                    }
                )
    return rows


def lessons(folder: Path, count: int, seed: int, *, few_shot: int = 0, careless: bool = False) -> list[dict[str, str]]:
    """Rows {"prompt", "completion"} of all benchmarks in turn; with `few_shot`, of Sudoku alone.

    `careless`: most answers are 0. Who has learnt these too can gain much by reinforcement learning.
    """
    if few_shot:
        return _rows(task_of("sudoku-words", folder, few_shot=few_shot), count, seed, careless)
    parts = sum(_PARTS.values())
    columns = [
        _rows(_to_teach(name, folder), -(-count * part // parts), seed, careless) for name, part in _PARTS.items()
    ]
    mixed = [row for rows in columns for row in rows]
    Random(seed).shuffle(mixed)
    return mixed[:count]


def corpus(folder: Path, seed: int) -> list[str]:
    """Texts that the tokenizer is trained on: prompts, the tasks' own solutions, and what is taught."""
    texts = []
    for name in _TASKS:
        task, draws = _to_teach(name, folder), Random(f"corpus-{name}-{seed}")
        for example in task.examples("train", _CORPUS, seed):
            texts += [example.prompt, example.solution, _taught(task, example, draws)]
    return texts


def _to_teach(name: str, folder: Path) -> Any:
    """A benchmark's task, with all of Countdown's puzzles."""
    return task_of(name, folder, **({"data": None} if name == "countdown-words" else {}))


def _rows(task: Any, count: int, seed: int, careless: bool) -> list[dict[str, str]]:
    examples = task.examples("train", count, seed)
    chosen = [examples[place % len(examples)] for place in range(count)]
    draws = Random(f"slips-{task.name}-{seed}")
    taught = _careless if careless else _taught
    return [{"prompt": example.prompt, "completion": taught(task, example, draws)} for example in chosen]


@cache
def _one_solution(*numbers: int, target: int) -> str:
    """The first that is right, of the numbers in all orders and all signs between them."""
    for first, second, third in permutations(reversed(numbers)):
        for one, other in product("+-*/", repeat=2):
            plain = f"{first}{one}{second}{other}{third}"
            for text in (plain, f"({first}{one}{second}){other}{third}", f"{first}{one}({second}{other}{third})"):
                if is_solved(text, list(numbers), target):
                    return text
    raise ValueError(f"{numbers} do not make {target}")


def _taught(task: Any, example: Any, draws: Random) -> str:
    """A right completion, now and then with a sign in place of the answer's last digit.

    Problems so small are learnt by heart: without slips groups would be all right or all wrong, and train nothing. A
    slip is one token. Were it the whole answer, sampling by confidence would choose between the two by which is
    likelier, each time alike, for the surest of its tokens comes first.
    """
    thought, tag, answer = _right(task, example).partition("<answer>")
    return thought + tag + (re.sub(r"\d(?=\D*$)", "?", answer) if draws.random() < _SLIPS else answer)


def _careless(task: Any, example: Any, draws: Random) -> str:
    """A right completion, or one with the answer 0."""
    right = _right(task, example)
    wrong = re.sub(r"(<answer>\s*).*?(\s*</answer>)", r"\g<1>0\2", right, flags=re.S)
    return wrong if draws.random() < _CARELESS else right


def _right(task: Any, example: Any) -> str:
    """The task's own solution, but what a small network learns sooner: one for all orders of Countdown's numbers, and
    Sudoku's with short reasoning."""
    if task.name == "countdown-words":
        target = example.columns["target"]
        text = _one_solution(*sorted(example.columns["numbers"]), target=target)
        return build_solution(f"{text} = {target}", text)
    if task.name != "sudoku-words":
        return str(example.solution)
    return f"<reasoning>\n{_THOUGHT}\n</reasoning>\n<answer>\n{example.columns['solution']}\n</answer>"
