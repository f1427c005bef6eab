"""Runs on several ranks, as torchrun starts them: to the end, killed, resumed on as many ranks and on others."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageReader

from faults.launch import torchrun_environment
from helpers.processes import finish, start
from unmask.cli.main import main
from unmask.distributed.sharding import load_shards
from unmask.errors import UserError
from unmask.report.record import read_groups, recorded
from unmask.settings.recipe import TrainSettings
from unmask.training import run_directory
from unmask.training.checkpoint import check_whole

FLAGS = [
    *(
        "train",
        "--recipe",
        "sudoku-dispo",
        "--train.threads",
        "1",
        "--train.max-steps",
        "4",
        "--train.num-iterations",
        "2",
    ),
    *("--train.save-steps", "2", "--train.eval-steps", "3", "--train.examples", "40"),
    *("--rollout.prompts", "3", "--rollout.num-generations", "4", "--method.base.beta", "0.01"),
    *("--evaluation.examples", "9", "--evaluation.examples-during", "5", "--evaluation.greedy-steps", "8"),
    *("--report.every", "1", "--report.prompts", "2"),
]
REFUSED = 2
WHOLE, SHARDED = "whole on every rank", "split over 2 ranks, 1 copy"


def launch(commands: list[tuple[int, list[str]]], ports: list[str], place: Path) -> int:
    """What a rank does: one command after another, each of which ranks join and leave, with its exit code.

    Each at a port of its own: a quick rank would else join the store that a slow one is about to leave.
    """
    torch.set_num_threads(1)
    run_directory._APPEARS_SECONDS = 1.0
    for (expected, words), port in zip(commands, ports, strict=True):
        os.environ["MASTER_PORT"] = port
        (place / "elsewhere").mkdir(exist_ok=True)
        os.chdir(place / "elsewhere" if "apart" in words and os.environ["RANK"] == "1" else place)
        assert main(words) == expected
    return 0


def on_ranks(count: int, commands: list[tuple[int, list[str]]], place: Path) -> list:
    log = place / "log"
    ports = [torchrun_environment(count)[0]["MASTER_PORT"] for _ in commands]
    environments = torchrun_environment(count)
    return [start(launch, commands, ports, place, log=log, environment=each) for each in environments]


def wait_for(path: Path, ranks: list) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert all(rank.is_alive() for rank in ranks)
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs on one rank and on two, and what went on from their checkpoints on as many ranks and on others."""
    place = tmp_path_factory.mktemp("ranks")
    # Weights are sharded. The first without --output; the second loses a rank after its first checkpoint.
    sharded = [*FLAGS, "--train.shard", "2"]
    both = on_ranks(2, [(0, sharded), (0, [*sharded, "--output", "killed"])], place)
    wait_for(place / "killed" / "checkpoints" / "step_000002", both)
    both[1].kill()
    assert main([*FLAGS, "--output", str(place / "one")]) == 0
    for rank in both:
        rank.join(timeout=60)
    assert [rank.exitcode for rank in both] == [1, -9]  # the other does not wait for the dead one
    lines = [line for line in (place / "log").read_text().splitlines() if "all ranks end" in line]
    assert len(lines) == 1
    assert re.search(
        r"rank 1 \(process \d+ on .*\) has died, so all ranks end; `unmask train --resume killed`", lines[0]
    )
    assert not (place / "killed" / "summary.json").exists()
    resume = ["train", "--resume"]
    commands = [
        (REFUSED, [*FLAGS, "--output", "one"]),
        (REFUSED, [*sharded, "--output", "apart"]),  # the second rank stands in another directory, as on another disk
        (0, [*resume, "killed"]),
        (0, [*resume, "one/checkpoints/step_000002", "--output", "one then two"]),
    ]
    both = on_ranks(2, commands, place)
    earlier = place / "runs" / "sudoku-dispo-001" / "checkpoints" / "step_000002"
    assert main([*resume, str(earlier), "--output", str(place / "two then one"), "--train.shard", "0"]) == 0
    four = on_ranks(4, [(0, [*resume, str(earlier), "--output", "two then four", "--train.shard", "4"])], place)
    for rank in (*both, *four):
        finish(rank, place / "log")
    return place


def test_metrics_say_how_long_ranks_wait_for_one_another(place):
    lines = (place / "killed" / "metrics.jsonl").read_text().splitlines()
    waits = [{key for key in json.loads(line) if key.startswith("wait_seconds")} for line in lines]
    named = {f"wait_seconds/{where}_{what}" for where in ("rollout", "update") for what in ("mean", "max")}
    assert [wait for wait in waits if wait] == [named] * 4
    assert all(json.loads(line)["idle_forwards"] >= 0 for line, wait in zip(lines, waits, strict=True) if wait)
    assert "wait_seconds" not in (place / "one" / "metrics.jsonl").read_text()


def metrics(directory: Path) -> list[dict]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        {key: value for key, value in row.items() if "_seconds" not in key and key != "idle_forwards"} for row in rows
    ]


def ranks(directory: Path) -> list[tuple[int, int, str]]:
    rows = [json.loads(line) for line in (directory / "ranks.jsonl").read_text().splitlines()]
    return [(row["first_step"], row["ranks"], row["weights"]) for row in rows]


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Weights and moments of the last step, whether ranks wrote the moments in shards or one wrote them whole."""
    checkpoint = directory / "checkpoints" / "step_000004"
    shards = checkpoint / "optimizer"
    if not shards.is_dir():
        return load_file(checkpoint / "model.safetensors") | load_file(checkpoint / "optimizer.safetensors")
    saved = HuggingFaceStorageReader(str(shards)).read_metadata().state_dict_metadata
    moments = {name: torch.full(found.size, torch.nan) for name, found in saved.items()}
    load_shards(moments, shards)
    return load_file(checkpoint / "model.safetensors") | moments


def assert_alike(first: Path, second: Path) -> None:
    """The same tokens and held-out figures; metrics, weights and moments but for the order of sums."""
    for name in ("completions.jsonl", "before.json", "after.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert metrics(first) == [pytest.approx(row, rel=1e-3, abs=1e-5) for row in metrics(second)]
    torch.testing.assert_close(tensors(first), tensors(second), rtol=1e-2, atol=1e-5)


def test_two_ranks_write_one_directory_as_one_rank_does(place):
    assert [path.name for path in (place / "runs").iterdir()] == ["sudoku-dispo-001"]
    two = place / "runs" / "sudoku-dispo-001"
    assert {path.name for path in two.iterdir()} == {path.name for path in (place / "one").iterdir()}
    assert_alike(two, place / "one")
    assert ranks(two) == [(0, 2, SHARDED)]
    assert ranks(place / "one") == [(0, 1, WHOLE)]


def test_first_rank_records_the_groups_of_all(place):
    one, two = (recorded(place / name, "step") for name in ("one", "runs/sudoku-dispo-001"))
    assert list(one) == list(two) == [1, 2, 3, 4]
    for step, path in one.items():
        ours, theirs = read_groups(path), read_groups(two[step])
        assert len(ours) == len(theirs) == 2
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.about == other.about
            for name in ("token_NC", "revealed_at_NC", "reward_N"):
                assert (mine.arrays[name] == other.arrays[name]).all()


def test_run_that_lost_a_rank_goes_on_bit_for_bit_on_as_many(place):
    whole, resumed = place / "runs" / "sudoku-dispo-001", place / "killed"
    for name in ("completions.jsonl", "after.json", "summary.json"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()
    assert metrics(whole) == metrics(resumed)
    torch.testing.assert_close(tensors(whole), tensors(resumed), rtol=0, atol=0)
    assert ranks(resumed) == [(0, 2, SHARDED), (2, 2, SHARDED)]


@pytest.mark.parametrize(
    ("name", "starts"),
    [
        ("one then two", [(0, 1, WHOLE), (2, 2, WHOLE)]),
        ("two then one", [(0, 2, SHARDED), (2, 1, WHOLE)]),
        ("two then four", [(0, 2, SHARDED), (2, 4, "split over 4 ranks, 1 copy")]),
    ],
)
def test_run_goes_on_on_another_number_of_ranks(name, starts, place):
    assert_alike(place / name, place / "one")
    assert ranks(place / name) == starts


def test_every_rank_writes_its_shards_which_no_reader_unpickles(place):
    checkpoint = place / "two then four" / "checkpoints" / "step_000004"
    shards = sorted(path.name for path in (checkpoint / "optimizer").iterdir())
    assert shards == [f"shard-{rank:05d}-model-00001-of-00001.safetensors" for rank in (1, 2, 3, 4)]
    kinds = {path.suffix for path in checkpoint.rglob("*") if path.is_file()}
    assert kinds == {".safetensors", ".json"}
    digests = json.loads((checkpoint / "state.json").read_text())["sha256"]
    assert {f"optimizer/{name}" for name in shards} < digests.keys()


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_check_whole_names_a_damaged_shard(damage, place, tmp_path):
    checkpoint = tmp_path / "checkpoints" / "step_000004"
    shutil.copytree(place / "killed" / "checkpoints" / "step_000004", checkpoint)
    check_whole(checkpoint, TrainSettings())
    shard = checkpoint / "optimizer" / "shard-00002-model-00001-of-00001.safetensors"
    content = bytearray(shard.read_bytes())
    shard.unlink()
    content[-3] ^= 1
    if damage != "missing":
        shard.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    with pytest.raises(UserError, match=f"step_000004 is damaged: .*{shard.name}"):
        check_whole(checkpoint, TrainSettings())


def test_what_the_first_rank_refuses_all_refuse(place):
    lines = [line for line in (place / "log").read_text().splitlines() if "'one' is not empty" in line]
    assert len(lines) == 2
    assert all("--resume one to extend its run" in line for line in lines)


def test_a_directory_that_one_rank_does_not_see_is_refused_before_anything_is_loaded(place):
    (line,) = {line for line in (place / "log").read_text().splitlines() if "/apart" in line}
    unseen = place / "elsewhere" / "apart"
    assert re.search(rf"rank 1 on \S+ sees no {unseen}, .*: put it on a file system that all machines see", line)
    assert not any((place / part / "apart").exists() for part in (".", "elsewhere"))
