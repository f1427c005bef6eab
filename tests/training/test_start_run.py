"""Starting: which directories every rank must see, and for how long one may take to appear."""

import threading
from pathlib import Path

import pytest

from unmask.distributed import World
from unmask.errors import UserError
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.training import run_directory, starting
from unmask.training.run_directory import check_seen


@pytest.mark.parametrize(
    ("checkpoint", "shard_size", "wanted"),
    [
        ("run/checkpoints/step_000002", 0, ["run/checkpoints/step_000002"]),  # the first alone writes to the copy
        ("run/checkpoints/step_000002", 2, ["run/checkpoints/step_000002", "copy"]),
        (None, 0, []),
        (None, 2, ["copy"]),
    ],
)
def test_ranks_of_a_run_that_goes_on_must_see_what_they_read_and_write(checkpoint, shard_size, wanted, monkeypatch):
    seen: list[Path] = []
    found = {"source": "run", "directory": "copy", "checkpoint": checkpoint, "state": {}}

    def stop(*_):
        raise UserError("enough")

    monkeypatch.setattr(World, "start", lambda *_, **__: World.single())
    monkeypatch.setattr(starting, "look", lambda *_: found)
    monkeypatch.setattr(starting, "check_seen", lambda world, directory: seen.append(directory))
    monkeypatch.setattr(starting, "build_trainer", stop)
    with pytest.raises(UserError, match="enough"):
        starting.resume_run(build(Recipe, {}), "run", "copy", shard_size)
    assert seen == [Path(place) for place in wanted]


def test_a_directory_that_appears_late_is_seen(tmp_path):
    """A machine that has asked for it before takes it for missing: for up to a minute, on NFS."""
    directory = tmp_path / "run"
    late = threading.Timer(0.3, directory.mkdir)
    late.start()
    check_seen(World.single(), directory)
    late.join()


def test_a_directory_that_does_not_appear_is_named_with_rank_and_mend(tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory, "_APPEARS_SECONDS", 0.1)
    with pytest.raises(UserError, match=rf"rank 0 on \S+ sees no {tmp_path}/run, .*: put it on a file system that all"):
        check_seen(World.single(), tmp_path / "run")
