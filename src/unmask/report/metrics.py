"""Metrics files: one JSON object a line, truncated to the checkpoint when a run resumes."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from unmask.errors import UserError
from unmask.report.durable import writing


class MetricsLog:
    """Appends one JSON object a line to a file such as metrics.jsonl or completions.jsonl.

    A resumed run passes as `keep_bytes` the `position()` that its checkpoint stored: what the
    interrupted run wrote after that checkpoint is cut off, so no step appears twice.
    `then`: is given each record once it is written.
    """

    def __init__(
        self,
        path: Path,
        keep_bytes: int | None = None,
        then: Callable[[Mapping[str, Any]], object] | None = None,
    ) -> None:
        self._path, self._then = path, then
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if keep_bytes is not None:
                _truncate(path, keep_bytes)
            self._file = path.open("ab", buffering=0)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record, whole or not at all; a number that is not finite is written as null.

        Raises DiskError where it cannot be written.
        """
        line = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        end_bytes, written_bytes = os.fstat(self._file.fileno()).st_size, 0
        with writing(self._path):
            try:
                while written_bytes < len(line):
                    written_bytes += self._file.write(line[written_bytes:])
            except OSError:
                if written_bytes:
                    self._file.truncate(end_bytes)
                raise
        if self._then is not None:
            self._then(record)

    def position(self) -> int:
        """Byte offset of the end of the file, after an fsync. Raises DiskError where the file is gone from its path."""
        with writing(self._path):
            os.fsync(self._file.fileno())
            found = os.fstat(self._file.fileno())
            if not os.path.samestat(found, self._path.stat()):
                raise FileNotFoundError(errno.ENOENT, "another file is in its place")
        return found.st_size

    def close(self) -> None:
        """Close the file; nothing can be written afterwards."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MetricsReader:
    """Reads a file that a `MetricsLog` writes, each time what has been added since, and keeps some columns of it.

    So a long run neither reads nor holds all that it has ever written whenever it looks back.
    """

    def __init__(self, path: Path, wanted: Callable[[str], bool]) -> None:
        self._path, self._wanted = path, wanted
        self._rows: list[dict[str, Any]] = []
        self._lines = self._bytes = 0

    def rows(self) -> list[dict[str, Any]]:
        """The records of all whole lines, in order, with the wanted columns. Raises UserError for what is no record."""
        with self._path.open("rb") as file:
            file.seek(self._bytes)
            for line in file:  # only \n ends one
                if not line.endswith(b"\n"):
                    break
                self._lines, self._bytes = self._lines + 1, self._bytes + len(line)
                if line == b"\n":
                    continue
                record = _parse(line, self._lines, self._path)
                self._rows.append({sys.intern(name): record[name] for name in record if self._wanted(name)})
        return self._rows


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a file that a `MetricsLog` wrote, in order. Raises UserError where there is none."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: name the folder of a run that has written metrics")
    # Only \n ends a record: str.splitlines would also cut inside a completion that holds U+2028.
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    return [_parse(line, number, path) for number, line in enumerate(lines, start=1) if line]


def _parse(line: bytes, number: int, path: Path) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        shown = line[:40].decode(errors="replace")
        raise UserError(f"{path} line {number} is not a JSON object: {shown!r}; mend or delete that line")
    return record


def check_length(path: Path, keep_bytes: int) -> int:
    """Bytes of the file, 0 where there is none. Raises UserError where they are fewer than `keep_bytes`."""
    present_bytes = path.stat().st_size if path.exists() else 0
    if present_bytes < keep_bytes:
        raise UserError(
            f"{path} has {present_bytes} bytes but the checkpoint was saved at {keep_bytes}: "
            "restore the file, or start the run afresh"
        )
    return present_bytes


def _truncate(path: Path, keep_bytes: int) -> None:
    if check_length(path, keep_bytes) > keep_bytes:
        os.truncate(path, keep_bytes)


def _finite(value: Any) -> Any:
    """The value with every NaN and infinity, which JSON cannot express, replaced by None."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
