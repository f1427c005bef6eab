"""Prompts that end in an assistant's message: warned of where it already holds the answer, and only there."""

import json
from pathlib import Path

import pytest

from unmask.cli.main import main


def trained(tmp_path: Path, capsys, begun: list[str], kind: str = "number") -> str:
    """What is printed of a step of training on sums, of which the last message of each conversation is given."""
    rows = [
        {"messages": [{"role": "user", "content": f"{n}+1="}, {"role": "assistant", "content": text}], "answer": n + 1}
        for n, text in enumerate(begun)
    ]
    for name, own in (("train", rows), ("test", [{"messages": [{"role": "user", "content": "50+1="}], "answer": 51}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    data = ("--task.data", str(tmp_path / "train.jsonl"), "--task.test-data", str(tmp_path / "test.jsonl"))
    sizes = "--rollout.max-new-tokens 4 --rollout.prompts 1 --rollout.num-generations 2 --train.max-steps 1"
    command = ["train", "--model", "embedded:arithmetic", "--task", "dataset", *data, *sizes.split()]
    rows_are = ["--task.prompt-column", "messages", "--task.answer-kind", kind, "--train.threads", "1"]
    funcs = Path(tmp_path / "same.py")
    funcs.write_text("def same(completions, **_):\n    return [1.0] * len(completions)\n")
    rewards = ["--reward.funcs", f"{funcs}:same"] if kind == "none" else []
    assert main([*command, *rows_are, *rewards, "--output", str(tmp_path / "run")]) == 0
    return capsys.readouterr().out


def test_prompts_that_show_their_answer_are_counted_in_one_line(tmp_path, capsys):
    printed = trained(tmp_path, capsys, ["1", "2", "9", "4"])  # of 0+1, 1+1, 2+1, 3+1
    (line,) = [line for line in printed.splitlines() if "already holds" in line]
    assert line.startswith("warning: 3 of 5 prompts end in an assistant message that already holds their answer")
    assert printed.index(line) < printed.index("base evaluation")


@pytest.mark.parametrize("kind", ["number", "none"])
def test_starts_that_hold_no_answer_or_none_to_compare_are_not_warned_of(kind, tmp_path, capsys):
    begun = ["9", "1"] if kind == "number" else ["1", "2"]
    assert "already holds" not in trained(tmp_path, capsys, begun, kind)
