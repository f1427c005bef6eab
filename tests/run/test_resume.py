"""A run that was killed goes on to the same weights, optimizer state, metrics and completions, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = [
    *("train", "--recipe", "sudoku-dispo", "--train.threads", "1", "--train.steps", "6", "--train.updates", "2"),
    *("--train.checkpoint-every", "2", "--train.evaluate-every", "3", "--train.examples", "40"),
    *("--rollout.prompts", "3", "--rollout.group-size", "4", "--method.base.beta", "0.01"),
    *("--evaluation.examples", "12", "--evaluation.examples-during", "6", "--evaluation.greedy-steps", "8"),
]


def start(*arguments: str) -> subprocess.Popen:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "unmask", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors


def rows(directory: Path) -> list[dict]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "step_seconds"} for line in lines]


def outcome(directory: Path) -> dict[str, object]:
    files = sorted(path for path in (directory / "checkpoints").rglob("*") if path.is_file())
    state = {str(path.relative_to(directory)): path.read_bytes() for path in files if path.name != "state.json"}
    return state | {
        "metrics": rows(directory),
        "completions": (directory / "completions.jsonl").read_bytes(),
        "after": (directory / "after.json").read_bytes(),
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, object]:
    directory = tmp_path_factory.mktemp("uninterrupted") / "run"
    finish(start(*RUN, "--output", str(directory)))
    return outcome(directory)


@pytest.mark.parametrize("moment", [0, 1, 2])
def test_killed_run_resumes_bit_for_bit(moment, uninterrupted, tmp_path):
    directory = tmp_path / "run"
    process = start(*RUN, "--output", str(directory))
    draw = random.Random(f"moment {moment}")  # two of three moments lie after a checkpoint
    lines = draw.randint(1 + 3 * moment, 2 + 3 * moment)
    deadline = time.monotonic() + 120
    while (
        not (directory / "metrics.jsonl").exists()
        or len((directory / "metrics.jsonl").read_bytes().splitlines()) < lines
    ):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(draw.random() * 0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (directory / "summary.json").exists()
    finish(start("train", "--resume", str(directory)))
    resumed = outcome(directory)
    assert resumed.keys() == uninterrupted.keys()
    assert [name for name in resumed if resumed[name] != uninterrupted[name]] == []
