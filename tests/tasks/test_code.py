"""The task of writing programs: files, prompts, which program a completion gives, and rewards."""

from __future__ import annotations

import ast
import errno
import json
import struct
import time
from pathlib import Path

import pytest

from helpers.sandboxes import needs_sandbox
from unmask.errors import UserError
from unmask.tasks.code import Code
from unmask.verifiers import sandbox
from unmask.verifiers.programs import LONGEST_PROGRAM, program
from unmask.verifiers.sandbox import check_sandbox, run_trials
from unmask.verifiers.seccomp import seccomp_filter

FUNCTIONS = [
    {
        "task_id": "Own/0",
        "prompt": "from typing import List\n\n\ndef largest(values: List[int]) -> int:\n"
        '    """The largest value; 0 of none."""\n',
        "canonical_solution": "    return max(values, default=0)\n",
        "test": "METADATA = {}\n\ndef check(candidate):\n"
        "    assert candidate([1, 5, 2]) == 5\n    assert candidate([]) == 0\n",
        "entry_point": "largest",
    },
    {
        "task_id": "Own/1",
        "prompt": "def shifted(text: str) -> str:\n    return text[1:] + text[:1]\n\n\n"
        'def unshifted(text: str) -> str:\n    """Undo shifted."""\n',
        "canonical_solution": "    return text[-1:] + text[:-1]\n",
        "test": "def check(candidate):\n    for text in ('', 'a', 'abc'):\n"
        "        assert candidate(shifted(text)) == text\n",
        "entry_point": "unshifted",
    },
    {
        "task_id": "Own/2",
        "prompt": "import math\n\n\ndef hypotenuse(a: float, b: float) -> float:\n"
        '    """Of a right triangle.\n\n    >>> hypotenuse(3, 4)\n    5.0\n    """\n',
        "canonical_solution": "    return math.sqrt(a * a + b * b)\n",
        "test": "def check(candidate):\n    assert abs(candidate(3, 4) - 5) < 1e-6\n"
        "    assert abs(candidate(1, 1) - math.sqrt(2)) < 1e-6\n",
        "entry_point": "hypotenuse",
    },
]
ASSERTS = [
    {
        "task_id": 1,
        "text": "Write a function to add two numbers.",
        "code": "def sum(a, b):\r\n  return a + b",
        "test_list": ["assert sum(1, 2) == 3", "assert sum(-1, 1) == 0"],
        "test_setup_code": "",
        "challenge_test_list": [],
    },
    {
        "task_id": 2,
        "prompt": "Write a function that gives the area of a circle.",
        "code": "import math\ndef area(radius):\n    return math.pi * radius ** 2",
        "test_imports": ["import math"],
        "test_list": ["assert math.isclose(area(1), math.pi)", "assert set([area(0)]) == {0}"],
    },
    {
        "task_id": 3,
        "text": "Write a function that counts the nodes of a tree.",
        "code": "class Node:\n    def __init__(self, key):\n        self.key, self.left = key, None\n\n"
        "def count(node):\n    return 1 + count(node.left) if node else 0",
        "test_list": ["assert count(root) == 2", "assert count(None) == 0"],
        "test_setup_code": "root = Node(1)\nroot.left = Node(2)",
    },
]
MAX, SHIFT, ROOT = (row["prompt"] for row in FUNCTIONS)


def written(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    return {
        "data": written(tmp_path / "test.jsonl", [*FUNCTIONS, *ASSERTS]),
        "train_data": written(tmp_path / "train.jsonl", [ASSERTS[1], *(row | {"text": "Other"} for row in ASSERTS)]),
    }


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what needs no sandbox: files and prompts."""
    monkeypatch.setattr("unmask.tasks.code.check_sandbox", lambda: None)


@needs_sandbox
def test_code_solutions_pass_and_are_well_formed(files: dict[str, str]) -> None:
    task = Code(**files, few_shot=1, time_limit_seconds=5)
    examples = task.examples("test", 10, 0)
    columns = {name: [example.columns[name] for example in examples] for name in examples[0].columns}
    prompts, solutions = [""] * 6, [example.solution for example in examples]
    bodies = [row["canonical_solution"] for row in FUNCTIONS]
    wrong = ["    return 7", "```python\ndef unshifted(text):\n    return text\n```", "I do not know"]
    wrong += ["```python\n" + row["test_list"][0] + "\n```" for row in ASSERTS]
    assert task.metrics(prompts, solutions, **columns) == {"solved": [1.0] * 6, "parses": [1.0] * 6}
    assert task.rewards(prompts, bodies + solutions[3:], **columns) == [1.0] * 6
    assert task.metrics(prompts, wrong, **columns) == {"solved": [0.0] * 6, "parses": [1.0, 1.0, 0.0, 1.0, 1.0, 1.0]}


@needs_sandbox
def test_code_hostile_completions_get_no_reward(files: dict[str, str]) -> None:
    task = Code(**files, time_limit_seconds=1)
    columns = task.examples("test", 1, 0)[0].columns
    attacks = [
        "def largest(values):\n    while True: pass",
        "    import os\n    os._exit(0)",
        "import sys\nsys.exit(0)\ndef largest(values): return 5",
        "def largest(values):\n    class Any:\n        __eq__ = lambda *_: True\n    return Any()",
        "print('passed')",
        "x = " + "9**" * 50 + "9\ndef largest(values): return x",
        "def largest(values): return 5\0",
        "(" * 100_000,
        "    return " + "9" * 10**5,
        "\n" * 10**6,
        "\ud800",
    ]
    repeated = {name: [value] * len(attacks) for name, value in columns.items()}
    assert task.rewards([""] * len(attacks), attacks, **repeated) == [0.0] * len(attacks)


@pytest.mark.usefixtures("unchecked")
def test_code_prompts_show_the_problem(files: dict[str, str]) -> None:
    first, *_, circle, _ = (example.prompt for example in Code(**files).examples("test", 10, 0))
    assert first.endswith(f"\n\nComplete this function:\n```python\n{MAX.rstrip()}\n```\n")
    assert "```python\nyour program\n```" in first
    assert "assert set([area(0)]) == {0}\n```\n" in circle
    assert "pi * radius" not in circle
    shown = Code(**files, few_shot=1).examples("test", 1, 0)[0].prompt
    assert shown.index("return a + b") < shown.index("Complete this function")
    # What is tested is not trained on: of the training file's four, one is in the test file and one is shown.
    assert len(Code(**files, few_shot=1).examples("train", 10, 0)) == 2
    names = [example.columns["names"] for example in Code(**files).examples("test", 10, 0)]
    assert names == [["largest"], ["unshifted"], ["hypotenuse"], ["sum"], ["area"], ["Node", "count"]]


@pytest.mark.parametrize(
    ("completion", "wanted"),
    [
        ("```python\nA = 1\n```", "A = 1"),
        ("First\n```python\nA = 1\n```\nbetter\n```py\nA = 2\n```\nso\n```\nout = 3\n```", "A = 2"),
        ("First\n```\nA = 1\n```\n```text\nB = 2\n```", "A = 1"),
        ("```python\nA = 1\n```\n```python\n\n```", "A = 1"),
        ("```python\nA = 1\nB = 2", "A = 1\nB = 2"),
        ("<answer>A = 1</answer> <answer>\nA = 2\n</answer>", "A = 2"),
        ("<answer>\n```python\nA = 1\n```\n</answer>", "A = 1"),
        ("A = 1<|eot_id|>A = 2", "A = 1"),
        ("\n \nA = 1\n", "A = 1"),
        ("def f(): pass", "def f(): pass"),
        ("Here it is: A = 1", None),
        ("hello", None),
        ("", None),
        ("A = '\0'", None),
        ("A = " + "(" * 500, None),
        ("A = " + "-" * 9_000 + "1", None),
        ("A = 1" + " " * LONGEST_PROGRAM + "# " + "x" * LONGEST_PROGRAM, None),
    ],
)
def test_program_of_a_completion(completion: str, wanted: str | None) -> None:
    assert program(completion) == wanted


@pytest.mark.parametrize(
    ("completion", "stub", "name", "wanted"),
    [
        # A body, with its indentation, without it, without that of its first line.
        ("    return 1", MAX, "largest", MAX + "    return 1\n"),
        ("\treturn 1", "def g():\n", "g", "def g():\n\treturn 1\n"),
        ("return 1", MAX, "largest", MAX + "    return 1\n"),
        ("x = 1\n    return x", MAX, "largest", MAX + "    x = 1\n    return x\n"),
        ("```python\n    return 1\n```", MAX, "largest", MAX + "    return 1\n"),
        # It ends where the function ends.
        ("    return 1\n\nprint(largest([]))\ndef", MAX, "largest", MAX + "    return 1\n\n"),
        # The function itself: imports and helpers of the stub stay.
        ("def largest(v): return 1", MAX, "largest", "from typing import List\n\n\ndef largest(v): return 1"),
        ("unshifted = str", SHIFT, "unshifted", SHIFT[: SHIFT.index("def unshifted")] + "unshifted = str"),
        (ROOT + "    return 1", ROOT, "hypotenuse", "import math\n\n\n" + ROOT + "    return 1"),
        ("    Some words.", MAX, "largest", None),
        ("words", MAX, "largest", None),
        ("    words\n    'more'", MAX, "largest", None),
        ("", MAX, "largest", None),
    ],
)
def test_program_may_be_a_body_or_a_whole_function(completion: str, stub: str, name: str, wanted: str | None) -> None:
    assert program(completion, stub, name) == wanted


ADD = "def add(a, b):\n    return a + b"
USAGE = "print(add(1, 2))"
SETTING = "result = add(1, 2)\nassert result == 3"


@pytest.mark.parametrize("fence", ["```", "~~~", "````", "~~~~~"])
@pytest.mark.parametrize(
    "tag", ["python", "Python3", "PYTHON", " python", "py", "Py3", "{.python}", "python title=x", ""]
)
def test_program_in_a_fence_of_any_kind(fence: str, tag: str) -> None:
    assert program(f"So:\n{fence}{tag}\n{ADD}\n{fence}\nDone.", name="add") == ADD
    assert program(f"So:\n{fence}{tag}\n{ADD}\n", name="add") == ADD
    assert program(f"So:\r\n{fence}{tag}\r\n{ADD}\n{fence}\r\nDone.", name="add") == ADD


def deeper(code: str, by: str) -> str:
    return "\n".join(by + line if line else line for line in code.split("\n"))


@pytest.mark.parametrize(
    "completion",
    [
        f"```\n```python\n{ADD}\n```\n```",
        f"````markdown\n# Sum\n```python\n{ADD}\n```\n````",
        f"~~~\n```python\n{ADD}\n```\n~~~",
        f"```markdown\n~~~py\n{ADD}\n~~~\n```\nThat is all.",
        f"- ```python\n{deeper(ADD, '  ')}\n  ```\n- more",
        f"1. First:\n\n   ```python\n{deeper(ADD, '   ')}\n   ```\n2. Then rest.",
        f"  * so\n      ```PYTHON\n{deeper(ADD, '      ')}\n      ```",
        f"- ```python\n{ADD}\n```",
        f"> ```python\n{deeper(ADD, '> ')}\n> ```\nas said",
        f"The program: ```python\n{ADD}\n```",
        f"```python\n{ADD}```\nIt adds.",
        f"<answer>```python\n{ADD}\n```</answer>",
        f"{ADD}\n```\nIt adds.",
        f"<answer>\n{ADD}\n</answer>",
        # A usage example, a log or a broken attempt behind it.
        f"```python\n{ADD}\n```\nUse:\n```python\n{USAGE}\n```",
        f"```python\n{ADD}\n```\nUse:\n```python\n{SETTING}\n```",
        f"```\n{ADD}\n```\nUse:\n```python\n{SETTING}\n```",
        f"```python\n{ADD}\n```\nUse:\n```\n{SETTING}\n```\n```text\n3\n```",
        f"```python\n{ADD}\n```\nUse:\n```python\n>>> add(1, 2)\n3\n```",
        f"```python\n{ADD}\n```\n```python\ndef add(a, b):\n    return (\n```",
        f"```python\ndef add(a, b):\n    return a - b\n```\nNo:\n```python\n{ADD}\n```",
    ],
)
def test_program_defining_the_function_is_found(completion: str) -> None:
    assert program(completion, name="add") == ADD


def test_program_keeps_fences_of_docstrings_and_strings() -> None:
    code = 'def add(a, b):\n    """Add.\n\n    ```\n    add(1, 2)\n    ```\n    """\n    return a + b'
    for text in (code, code.replace("    ```\n    add", "    ```python\n    add"), ADD + "\nmark = '```python'"):
        assert program(f"```python\n{text}\n```\nDone.", name="add") == text


@pytest.mark.parametrize("stray", [" ", "  ", "   ", "\t"])
def test_program_with_stray_indentation(stray: str) -> None:
    imported = f"import math\n\n{ADD}"
    for completion, wanted in [
        (f"```python\n{stray}{ADD}\n```", ADD),
        (f"{stray}{ADD}", ADD),
        (f"```python\n{deeper(imported, stray)}\n```", imported),
        (f"```python\nimport math\n\n{stray if stray.strip(chr(9)) else ''}{ADD}\n```", imported),
    ]:
        assert ast.dump(ast.parse(program(completion, name="add") or "")) == ast.dump(ast.parse(wanted))
    whole = program(f"{stray}def largest(v):\n    return 1", MAX, "largest")
    assert whole is not None
    assert whole.startswith("from typing import List\n\n\ndef largest(v):\n")


BODY = "best = 0\nfor value in values:\n    best = max(best, value)\nreturn best"


@pytest.mark.parametrize("margin", ["", " ", "  ", "   ", "    ", "      ", "        ", "\t", "\t\t"])
@pytest.mark.parametrize(
    "form", ["{}", "```python\n{}\n```", "- ```python\n{}\n  ```", "{}\n```\nIt loops.", "{}\n\nprint(1)"]
)
def test_program_of_a_body_with_any_indentation(margin: str, form: str) -> None:
    whole = program(form.format(deeper(BODY, margin)), MAX, "largest")
    assert whole is not None
    assert whole.rstrip() in {MAX + deeper(BODY, "    "), MAX + deeper(BODY + "\n\nprint(1)", "    ")}
    # Without that of its first line, or with more of it.
    if margin:
        whole = program(form.format(deeper(BODY, margin).lstrip()), MAX, "largest")
        assert whole is not None
        assert whole.startswith(MAX + "    best = 0\n    for value in values:\n        best")


def test_program_of_a_body_before_a_usage_example() -> None:
    body = "```python\n    return max(values, default=0)\n```\n"
    for usage in ("print(largest([1]))", "result = largest([1])\nprint(result)"):
        whole = program(f"{body}Use:\n```python\n{usage}\n```", MAX, "largest")
        assert whole == MAX + "    return max(values, default=0)\n"


@pytest.mark.parametrize(
    "completion",
    [
        f"```java\n{ADD}\n```",
        f"```text\n{ADD}\n```",
        f"```python\n{USAGE}\n```",
        "    Some words.\n```\nmore",
        "- a list\n- of words",
    ],
)
def test_program_of_no_program(completion: str) -> None:
    assert program(completion, name="add") is None


HOSTILE = ["```\n", "```a\n", "~~~a\n```\n", "```python\nA = 1\n", "``` ", "- ", "> ", "1.", "\t", "`", "<answer>"]
HOSTILE += ["<answer>A = 1</answer>", "```python\n" + "A = -" + "-" * 3000 + "1\n```\n"]


@pytest.mark.parametrize("unit", HOSTILE, ids=range(len(HOSTILE)))
def test_program_of_hostile_fences_takes_no_time(unit: str) -> None:
    text = unit * (100_000 // len(unit))
    for completion in (text, text + "x", "x" + text, "```python\n" + text):
        started = time.perf_counter()
        program(completion, MAX, "largest")
        assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "keys are missing; write prompt, canonical_solution, test and entry_point"),
        (FUNCTIONS[0] | {"entry_point": "smallest"}, "prompt does not define entry_point 'smallest'"),
        (FUNCTIONS[1] | {"entry_point": "shifted"}, "prompt does not define entry_point 'shifted'"),
        (FUNCTIONS[0] | {"test": None}, "test is None; write it as text"),
        (FUNCTIONS[0] | {"canonical_solution": "    return ("}, "reference solution is no Python program"),
        (FUNCTIONS[0] | {"test": "def check(:"}, "test is no Python program"),
        (ASSERTS[0] | {"code": "("}, "code is no Python program"),
        (ASSERTS[0] | {"test_list": "assert"}, "test_list is 'assert'; write a list"),
        (ASSERTS[0] | {"test_list": ["assert True"]}, "test_list uses nothing that code defines"),
        (ASSERTS[0] | {"text": " "}, "text is ' '; write it as text"),
        (["a"], "keys are missing"),
    ],
)
def test_code_refuses_faulty_files(tmp_path: Path, row: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"line 1: {message}"):
        Code(data=written(tmp_path / "faulty.jsonl", [row])).examples("test", 1, 0)


def test_code_refuses_faulty_settings(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"give task.data \(--task.data FILE\), the path of a file of lines .*entry_point"
    ):
        Code().examples("test", 1, 0)
    with pytest.raises(UserError, match="time_limit_seconds is 0"):
        Code(time_limit_seconds=0)
    with pytest.raises(UserError, match="memory_megabytes is 16"):
        Code(memory_megabytes=16)
    with pytest.raises(UserError, match="column 'stub'"):
        Code().rewards([""], [""])


def test_code_examples_refused_where_there_is_no_sandbox(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unmask.tasks.code.check_sandbox", check_sandbox.__wrapped__)
    monkeypatch.setattr(sandbox, "check_sandbox", check_sandbox.__wrapped__)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no bwrap here: install .*apt install bubblewrap"):
        Code(**files).examples("train", 1, 0)
    with pytest.raises(UserError, match="no bwrap here"):
        run_trials([], sandbox.Limits(seconds=1, memory_megabytes=256))
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(UserError, match=r"no sandbox here \(bwrap: No permissions to create new namespace\)"):
        Code(**files).examples("train", 1, 0)
    monkeypatch.setattr("platform.machine", lambda: "sparc")
    with pytest.raises(UserError, match="on sparc processors; use one of x86_64, aarch64"):
        Code(**files).examples("train", 1, 0)


def filtered(program_bytes: bytes, architecture: int, number: int) -> int:
    """What the kernel does with a call: a machine for the five instructions that the filter uses."""
    instructions = list(struct.iter_unpack("=HBBI", program_bytes))
    place = loaded = 0
    while True:
        code, if_true, if_false, operand = instructions[place]
        if code == 0x06:
            return operand
        if code == 0x20:
            loaded = {0: number, 4: architecture}[operand]
        else:
            holds = loaded == operand if code == 0x15 else loaded >= operand
            place += if_true if holds else if_false
        place += 1


@pytest.mark.parametrize(
    ("machine", "architecture", "allowed", "refused"),
    [
        # read, mmap, execve, exit_group; fork, clone, clone3, shmget, memfd_create, and read under its x32 number.
        ("x86_64", 0xC000003E, [0, 9, 59, 231], [57, 56, 435, 29, 319, 1 << 30]),
        ("aarch64", 0xC00000B7, [63, 222, 221, 94], [220, 435, 194, 279]),
    ],
)
def test_seccomp_filter_refuses_system_calls(
    machine: str, architecture: int, allowed: list[int], refused: list[int]
) -> None:
    program_bytes = seccomp_filter(machine)
    assert {filtered(program_bytes, architecture, number) for number in allowed} == {0x7FFF0000}
    assert {filtered(program_bytes, architecture, number) for number in refused} == {0x50000 | errno.EPERM}
    assert filtered(program_bytes, 0x40000003, 1) == 0x80000000  # 32-bit
