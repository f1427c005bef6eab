"""A run that was killed goes on to the same weights, optimizer state, metrics and completions, bit for bit."""

import json
import random
import time
from pathlib import Path

import pytest

from helpers.processes import Process, command, finish

RUN = [
    *(
        "train",
        "--recipe",
        "sudoku-dispo",
        "--train.threads",
        "1",
        "--train.max-steps",
        "6",
        "--train.num-iterations",
        "2",
    ),
    *("--train.save-steps", "2", "--train.eval-steps", "3", "--train.examples", "40"),
    *("--rollout.prompts", "3", "--rollout.num-generations", "4", "--method.base.beta", "0.01"),
    *("--evaluation.examples", "12", "--evaluation.examples-during", "6", "--evaluation.greedy-steps", "8"),
    *("--report.every", "2", "--report.prompts", "2"),
]


def rows(directory: Path) -> list[dict]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if "_seconds" not in key} for line in lines]


def outcome(directory: Path) -> dict[str, object]:
    files = sorted(path for path in (directory / "checkpoints").rglob("*") if path.is_file())
    state = {str(path.relative_to(directory)): path.read_bytes() for path in files if path.name != "state.json"}
    state |= {path.name: path.read_bytes() for path in (directory / "record").iterdir()}
    return state | {
        "metrics": rows(directory),
        "completions": (directory / "completions.jsonl").read_bytes(),
        "after": (directory / "after.json").read_bytes(),
    }


def kill_after(process: Process, directory: Path, lines: int, pause: float) -> None:
    """kill -9 once so many lines of metrics are written, and a moment later."""
    deadline = time.monotonic() + 120
    while (
        not (directory / "metrics.jsonl").exists()
        or len((directory / "metrics.jsonl").read_bytes().splitlines()) < lines
    ):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(pause)
    process.kill()
    process.join()
    assert not (directory / "summary.json").exists()


@pytest.mark.long
def test_resume_run_killed_at_three_moments_goes_on_bit_for_bit(tmp_path):
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    finish(command(*RUN, "--output", str(whole), log=log), log)
    process = command(*RUN, "--output", str(killed), log=log)
    draw = random.Random("moments")  # the first lies before any checkpoint, the others after one
    for moment in range(3):
        kill_after(process, killed, draw.randint(1 + 3 * moment, 2 + 3 * moment), draw.random() * 0.1)
        process = command("train", "--resume", str(killed), log=log)
    finish(process, log)
    expected, resumed = outcome(whole), outcome(killed)
    assert resumed.keys() == expected.keys()
    assert [name for name in resumed if resumed[name] != expected[name]] == []
