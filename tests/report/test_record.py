"""The record of a run on disk: what goes in comes out, the same bytes each time; damage is one line."""

import numpy as np
import pytest

from unmask.errors import UserError
from unmask.report.durable import DiskError
from unmask.report.record import (
    Group,
    cut_record,
    from_bytes,
    read_groups,
    record_path,
    recorded,
    to_bytes,
    write_groups,
)

GROUPS = [
    Group(about={"prompt": "</script>\u202e\x00🙂"}, arrays={"token_NC": np.arange(6, dtype=np.uint16).reshape(2, 3)}),
    Group(about={"prompt": "", "texts": []}, arrays={"reward_N": np.zeros(0, dtype=np.float32)}),
]


def same(left, right):
    assert [group.about for group in left] == [group.about for group in right]
    for one, other in zip(left, right, strict=True):
        assert one.arrays.keys() == other.arrays.keys()
        for name, array in one.arrays.items():
            assert (array.dtype, array.shape, array.tobytes()) == (
                other.arrays[name].dtype,
                other.arrays[name].shape,
                other.arrays[name].tobytes(),
            )


def test_read_groups_gives_what_was_written(tmp_path):
    path = record_path(tmp_path, "step", 5)
    write_groups(path, GROUPS)
    same(read_groups(path), GROUPS)
    same(from_bytes(path.read_bytes()), GROUPS)
    assert path.read_bytes() == to_bytes(GROUPS)


def test_write_groups_does_not_make_a_run_that_is_gone(tmp_path):
    with pytest.raises(DiskError, match=r"step_000005\.safetensors cannot be written \(No such file or directory\)"):
        write_groups(record_path(tmp_path / "gone", "step", 5), GROUPS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"no safetensors at all", None])
def test_read_groups_refuses_a_damaged_file_in_one_line(content, tmp_path):
    path = record_path(tmp_path, "step", 5)
    write_groups(path, GROUPS)
    path.write_bytes(path.read_bytes()[:-3] if content is None else content)
    with pytest.raises(UserError, match=r"step_000005\.safetensors cannot be read") as raised:
        read_groups(path)
    assert "\n" not in str(raised.value)


def test_cut_record_leaves_what_was_recorded_up_to_a_step(tmp_path):
    for kind in ("step", "evaluation"):
        for step in (1, 5, 10, 1_000_000):
            write_groups(record_path(tmp_path, kind, step), GROUPS)
    half = tmp_path / "record" / ".step_000005.safetensors.partial"
    half.write_bytes(b"half")
    (tmp_path / "record" / "step_notes.txt").write_text("the user's own")
    cut_record(tmp_path, 5)
    assert {kind: list(recorded(tmp_path, kind)) for kind in ("step", "evaluation")} == {
        "step": [1, 5],
        "evaluation": [1, 5],
    }
    assert not half.exists()
    assert (tmp_path / "record" / "step_notes.txt").exists()
    cut_record(tmp_path / "none", 0)
