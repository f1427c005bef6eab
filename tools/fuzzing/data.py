"""Target: the user's files of data, for every task that reads some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzzing.values import JSON, damaged, mutated_json
from unmask.errors import UserError
from unmask.settings.inputs import check_data
from unmask.settings.reader import build
from unmask.tasks import TASKS

_TURNS = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
_ROWS: dict[str, dict[str, Any]] = {
    "dataset": {"prompt": "What is 6 * 7?", "completion": "42", "answer": "42"},
    "pairs": {"prompt": _TURNS[:1], "chosen": _TURNS, "rejected": [*_TURNS[:1], {"role": "assistant", "content": "5"}]},
    "gsm8k": {"question": "6 * 7?", "answer": "6 * 7 = <<6*7=42>>42 #### 42"},
    "math500": {"problem": "$1/2$?", "answer": r"\frac{1}{2}", "solution": "half"},
    "code": {
        "prompt": "def f(x):\n    '''x'''\n",
        "canonical_solution": "    return x\n",
        "test": "def check(f):\n    assert f(1) == 1\n",
        "entry_point": "f",
    },
    "sudoku-words": {},
    "sudoku": {},
    "countdown": {},
    "countdown-words": {},
}
_CSV = {
    "sudoku": b"Puzzle,Solution\n1003000000000000,1243341221344321\n",
    "sudoku-words": b"Puzzle,Solution\n1003000000000000,1243341221344321\n",
    "countdown": b'{"input": "1,2,3", "output": "6"}\n',
    "countdown-words": b'{"input": "1,2,3", "output": "6"}\n',
}
_KINDS = ["number", "latex", "text", "none"]


@st.composite
def data_files(draw: st.DrawFn) -> tuple[str, str, bytes, dict[str, Any]]:
    """A task, the end of its file's name, the file's content and further settings."""
    task = draw(st.sampled_from(sorted(_ROWS)))
    further: dict[str, Any] = {}
    if task in _CSV:
        return task, ".csv", draw(damaged(_CSV[task])), further
    suffix = draw(st.sampled_from([".jsonl", ".json", ".csv", ".parquet", ".txt", ""]))
    if task == "dataset":
        further["answer_kind"] = draw(st.sampled_from(_KINDS))
    if task in ("dataset", "gsm8k", "math500", "code"):
        further["few_shot"] = draw(st.integers(0, 2))
    rows: list[Any] = [_ROWS[task]] * draw(st.integers(1, 3))
    if draw(st.booleans()):
        rows.insert(draw(st.integers(0, len(rows))), draw(mutated_json(_ROWS[task]) | JSON))
    if suffix == ".json":
        content = json.dumps(rows).encode()
    elif suffix == ".csv":
        lines = [list(_ROWS[task]), *([str(value) for value in row.values()] for row in rows if isinstance(row, dict))]
        quote = draw(st.sampled_from(['"', "'", ""]))
        text = "\n".join(",".join(quote + word + quote for word in line) for line in lines)
        content = text.encode(errors="replace")
    else:
        content = "\n".join(map(json.dumps, rows)).encode()
    return task, suffix, content if draw(st.integers(0, 3)) else draw(damaged(content)), further


def run_data_file(case: tuple[str, str, bytes, dict[str, Any]], directory: Path) -> None:
    """Read the examples of both splits, and score the solutions that they bring."""
    name, suffix, content, further = case
    path = directory / f"case{suffix}"
    path.write_bytes(content)
    table = {"data": str(path), **further}
    if name in ("gsm8k", "math500", "code"):
        table["train_data"] = str(path)
    task = build(TASKS[name], table, "task.")
    check_data(task)
    for split in task.splits:
        for example in _examples(task, name, split):
            task.well_formed(example.solution)
            if task.verifies and name != "code":
                task.rewards(
                    [example.prompt], [example.solution], **{key: [value] for key, value in example.columns.items()}
                )


def _examples(task: Any, name: str, split: str) -> list[Any]:
    """The examples; of programs those that the file gives, without making a sandbox each time; none where refused."""
    try:
        return task._files.examples(split, 3) if name == "code" else task.examples(split, 3, 0)
    except UserError:
        return []
