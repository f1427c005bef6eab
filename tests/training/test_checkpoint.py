"""Checkpoints: ordered by number, ours alone are counted and deleted."""

from pathlib import Path

import pytest

from unmask.denoisers.directories import checkpoints, newest_checkpoint
from unmask.training.checkpoint import drop_old, set_aside


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("step_000002", "step_999999", "step_1000000", "step_1000001"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    for name in ("step_backup", "step_2000000_best", "step_3000000.old", "step_7", "step_", "step_٣٣٣٣٣٣", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    (tmp_path / "step_4000000").write_text("a file of the user's")
    (tmp_path / "step_5000000").symlink_to(tmp_path / "mine")
    return tmp_path


def test_checkpoints_are_directories_of_digits_in_order_of_their_numbers(folder):
    names = [path.name for path in checkpoints(folder)]
    assert names == ["step_000002", "step_999999", "step_1000000", "step_1000001"]
    assert newest_checkpoint(folder).name == "step_1000001"
    assert newest_checkpoint(folder / "nowhere") is None


def test_drop_old_keeps_the_newest_and_what_is_not_ours(folder):
    (folder / "step_000001").mkdir()  # of digits, but no checkpoint: the user's
    (folder / "step_000001" / "notes.txt").write_text("mine")
    before = {path.name for path in folder.iterdir()}
    drop_old(folder, 2)
    assert before - {path.name for path in folder.iterdir()} == {"step_000002", "step_999999"}


def test_set_aside_renames_and_never_replaces(folder):
    set_aside(folder / "step_000002")
    (folder / "step_000002").mkdir()
    set_aside(folder / "step_000002")
    assert {path.name for path in folder.glob("*.aside*")} == {"step_000002.aside", "step_000002.aside-2"}
    set_aside(folder / "step_000002")  # nothing there: nothing to do
