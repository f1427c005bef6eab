"""What copies may take of a machine's memory."""

import resource
from types import SimpleNamespace

import pytest
import torch

from unmask.distributed import host_memory
from unmask.distributed.host_memory import pinned_bytes, room_bytes


def test_pinned_memory_is_taken_in_powers_of_two_and_what_copies_had_is_room(monkeypatch):
    assert [pinned_bytes(count) for count in (0, 1, 5, 8, 9)] == [0, 1, 8, 8, 16]
    monkeypatch.setattr(host_memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    before = room_bytes()
    monkeypatch.setattr(host_memory, "_room_of_control_group", lambda: float("inf"))
    assert before == 500
    for available, kept, room in [(600, 400, 500), (500, 500, 500), (100, 700, 700)]:
        monkeypatch.setattr(
            host_memory.psutil, "virtual_memory", lambda free=available: SimpleNamespace(available=free)
        )
        stats = {"allocated_bytes.current": kept + 200, "active_bytes.current": 200}
        monkeypatch.setattr(torch.cuda, "host_memory_stats", lambda stats=stats: stats)
        assert room_bytes() == room


def test_room_is_half_of_what_machine_container_and_limits_leave(monkeypatch, tmp_path):
    whole = room_bytes()
    assert 0.4 < room_bytes(ranks=2) / whole < 0.6
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    monkeypatch.setattr(host_memory, "_CONTROL_GROUP", tmp_path)
    assert room_bytes() == 300_000
    (tmp_path / "memory.max").write_text("max\n")
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    taken = host_memory.psutil.Process().memory_info().data
    resource.setrlimit(resource.RLIMIT_DATA, (taken + (200 << 20), limits[1]))
    try:
        assert room_bytes() == pytest.approx(100 << 20, rel=0.2)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)
