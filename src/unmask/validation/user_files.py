"""The user's files, read where reading ends: a device or a pipe, perhaps behind a link, is refused. Torch-free."""

from __future__ import annotations

import errno
import stat
from pathlib import Path


def refuse_special(path: Path) -> None:
    """Raise OSError for what is there and is neither a file nor a directory; /dev/zero has no end, a pipe may wait."""
    kind = path.stat().st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", str(path))
