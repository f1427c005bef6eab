"""Checkpoints: ordered by number, ours alone are counted and deleted."""

from pathlib import Path

import pytest

from helpers.full_disk import no_file_larger_than
from helpers.small_contents import small_contents
from unmask.denoisers.directories import checkpoints, newest_checkpoint
from unmask.distributed import World
from unmask.report.durable import DiskError
from unmask.settings.recipe import TrainSettings
from unmask.training.checkpoint import check_whole, drop_old, save_checkpoint, set_aside
from unmask.training.saving import Saving


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


def saved(folder: Path, step: int) -> Path:
    """A checkpoint of the small denoiser."""
    with Saving() as saving:
        save_checkpoint(folder, step, small_contents(), {}, saving, World.single())
    return folder / f"step_{step:06d}"


@pytest.mark.parametrize("room_bytes", [10, 3000, 20_000, 30_000])
def test_save_checkpoint_leaves_nothing_where_the_disk_is_full(room_bytes, tmp_path):
    """By a limit on the size of a file, which safetensors and Python meet alike."""
    folder = tmp_path / "checkpoints"
    sizes = {path.name: path.stat().st_size for path in saved(folder, 1).iterdir()}
    assert max(sizes.values()) > room_bytes
    with no_file_larger_than(room_bytes), pytest.raises(DiskError, match="step_000002 cannot be written"):
        saved(folder, 2)
    assert [path.name for path in folder.iterdir()] == ["step_000001"]
    check_whole(folder / "step_000001", TrainSettings())


def test_save_checkpoint_does_not_make_a_directory_that_is_gone(tmp_path):
    with pytest.raises(DiskError, match="No such file or directory"):
        saved(tmp_path / "gone" / "checkpoints", 1)
    assert list(tmp_path.iterdir()) == []


def test_drop_old_leaves_no_part_of_a_checkpoint_under_its_name(folder, monkeypatch):
    removed = []
    monkeypatch.setattr("shutil.rmtree", lambda path: removed.append(path.name))
    drop_old(folder, 2)
    assert removed == [".step_000002.partial", ".step_999999.partial"]
    assert not (folder / "step_000002").exists()
