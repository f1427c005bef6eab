"""Text files that a crash leaves whole or absent."""

from __future__ import annotations

import os
from pathlib import Path


def write_durably(path: Path, text: str) -> None:
    """Write a text file atomically, synced to disk: after a crash it is whole or absent."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
