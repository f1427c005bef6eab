"""Disks that are full, read-only, broken, gone or slow."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faults.children import LONGEST, Ended, ended, start
from faults.injected import AtWrite, SlowDisk
from faults.runs import Small
from faults.table import Row

_DISK_BYTES = 32 << 20
REFUSED = (("read-only", errno.EROFS), ("full", errno.ENOSPC), ("broken", errno.EIO))
_AT = ("opens checkpoints/.step.partial/state.json", "mkdirs checkpoints/.step.partial", "opens .curve.png.partial")


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of 32 MiB in memory, mounted below the folder; None where this user may not mount."""
    place = folder / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "faults", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:  # noqa: S603
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)  # noqa: S603, S607


def told_in_one_line(end: Ended, words: str) -> list[str]:
    """What is wrong with how a command ended that should say one line with these words."""
    good = end.code == 2 and len(end.errors) == 1 and words in end.last_error
    return [] if good else [f"exit {end.code}, said {end.errors}"]


def full_disk(folder: Path, whole: dict[str, Any], count: int, seed: int) -> list[Row]:
    """A disk that fills up as a run writes, is freed, and the run goes on by the command that it told."""
    draw = random.Random(seed)
    with small_disk(folder) as disk:
        if disk is None:
            return [Row(fault="full disk (no right to mount one)")]
        row = Row(fault="full disk (32 MiB, mounted)")
        for number in range(count):
            small, ballast = Small(directory=disk / f"run-{number}"), disk / "ballast"
            room = draw.choice((draw.randint(1 << 12, 1 << 17), draw.randint(1 << 17, 6 << 20)))
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            ballast.write_bytes(bytes(free - room))
            end = small.go()
            wrong = told_in_one_line(end, "No space left on device") + small.torn()
            ballast.unlink()
            has_begun = (small.directory / "recipe.toml").is_file()
            end = small.go_on_as_told(end.last_error) if has_begun else small.go()
            row.add(1, wrong + _end(small, end, whole))
            subprocess.run(["rm", "-r", str(small.directory)], check=True)  # noqa: S603, S607
        return [row]


def refused_writes(folder: Path, whole: dict[str, Any], errors: Sequence[tuple[str, int]], count: int) -> list[Row]:
    """Writes that the system refuses from some moment on, by an error that is raised in its place."""
    rows = []
    for name, number in errors:
        row = Row(fault=f"{name} disk (error raised at a write)")
        for place, what in enumerate(_AT[:count]):
            small = Small(directory=folder / f"{name}-{place}")
            end = small.go(AtWrite(folder=str(small.directory), what=what, error=number))
            wrong = told_in_one_line(end, os.strerror(number)) + small.torn()
            row.add(1, wrong + _end(small, small.go_on_as_told(end.last_error), whole))
        rows.append(row)
    return rows


def gone_directory(folder: Path, whole: dict[str, Any]) -> list[Row]:
    """A directory that is moved away while its run trains, and comes back."""
    row = Row(fault="directory gone while training")
    small = Small(directory=folder / "gone")
    process = start([*small.command, "--output", str(small.directory)], small.folder)
    log, deadline = small.directory / "metrics.jsonl", time.monotonic() + LONGEST
    while (
        process.is_alive() and time.monotonic() < deadline and (not log.exists() or log.read_bytes().count(b"\n") < 2)
    ):
        time.sleep(0.002)
    small.directory.rename(folder / "elsewhere")
    end = ended(process, small.folder)
    wrong = told_in_one_line(end, "bring its disk back")
    wrong += ["it was made anew"] if small.directory.exists() else []
    (folder / "elsewhere").rename(small.directory)
    row.add(1, wrong + small.torn() + _end(small, small.go(), whole))
    return [row]


def slow_disk(folder: Path, whole: dict[str, Any]) -> list[Row]:
    """A disk that takes a fifth of a second for every sync."""
    row, small = Row(fault="slow disk (0.2 s a sync)"), Small(directory=folder / "slow")
    row.add(1, _end(small, small.go(SlowDisk(seconds=0.2)), whole))
    return [row]


def _end(small: Small, end: Ended, whole: dict[str, Any]) -> list[str]:
    return small.lost(whole) if end.code == 0 else [f"exit {end.code}: {end.last_error}"]
