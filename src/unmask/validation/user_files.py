"""The user's files: names that can be names of files, and what is read ends. Torch-free."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from reprlib import repr as short_repr

from unmask.errors import UserError

_LONGEST_NAME, _LONGEST_PATH = 255, 4000  # bytes


def user_path(text: str) -> Path:
    """The path that the user writes, ~ expanded. Raises UserError where no file can have that name."""
    try:
        path = Path(text).expanduser()
        encoded = os.fsencode(path)
    except (RuntimeError, UnicodeEncodeError) as error:  # ~ of a user who is not there; a lone surrogate
        raise UserError(f"{short_repr(text)} names no file ({error}): give a path") from None
    if b"\0" in encoded or len(encoded) > _LONGEST_PATH or max(map(len, encoded.split(b"/"))) > _LONGEST_NAME:
        raise UserError(f"{short_repr(text)} cannot be the name of a file: give a path")
    return path


def refuse_special(path: Path) -> None:
    """Raise OSError for what is there and is neither a file nor a directory; /dev/zero has no end, a pipe may wait."""
    kind = path.stat().st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", str(path))
