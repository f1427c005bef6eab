"""Memory of the machine itself, which the processes of several ranks share: what copies of a GPU's tensors may take."""

from __future__ import annotations

import resource
from pathlib import Path

import psutil
import torch

_SHARE = 0.5  # of the free memory that copies may take
_CONTROL_GROUP = Path("/sys/fs/cgroup")


def pinned_bytes(needed: int) -> int:
    """Bytes of pinned memory that PyTorch takes for a tensor of so many: a power of two."""
    return 1 << (needed - 1).bit_length() if needed else 0


def room_bytes(ranks: int = 1) -> float:
    """Bytes that copies of each of so many ranks of this machine may take.

    Pinned memory of the copies before is kept by PyTorch for these: it is as good as free, and may be taken whole.
    """
    rooms: list[float] = [psutil.virtual_memory().available / ranks, _room_of_control_group() / ranks]
    taken = psutil.Process().memory_info()
    for limit, taken_bytes in ((resource.RLIMIT_AS, taken.vms), (resource.RLIMIT_DATA, getattr(taken, "data", 0))):
        most_bytes = resource.getrlimit(limit)[0]
        if most_bytes != resource.RLIM_INFINITY:
            rooms.append(most_bytes - taken_bytes)
    pinned: dict[str, int] = torch.cuda.host_memory_stats()
    kept_bytes = pinned.get("allocated_bytes.current", 0) - pinned.get("active_bytes.current", 0)
    return max(kept_bytes, _SHARE * (min(rooms) + kept_bytes))


def _room_of_control_group() -> float:
    """Bytes that the container's limit leaves, by version 2 of control groups; infinite where there is none."""
    try:
        most, taken = ((_CONTROL_GROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
    except OSError:
        return float("inf")
    return float("inf") if most == "max" else float(most) - float(taken)
