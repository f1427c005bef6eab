"""Files that a crash leaves whole or absent, and what is said of a disk that takes no more."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from unmask.denoisers.directories import partial
from unmask.errors import UserError

_SYSTEM_ERROR = re.compile(r"(?:os error|code:) (\d+)")  # in an error of safetensors
_MENDS = {
    errno.ENOSPC: "free some room",
    errno.EDQUOT: "free some room",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EROFS: "make the file system writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
}


class DiskError(UserError):
    """A file that cannot be written: what is said of it names the mend."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise DiskError where the system refuses a write within the block; `path`: what is written."""
    try:
        yield
    except OSError as error:
        mend = _MENDS.get(error.errno or 0, "bring its disk back")
        raise DiskError(f"{path} cannot be written ({error.strerror or error}): {mend}") from error


@contextmanager
def tensor_errors() -> Iterator[None]:
    """Raise what safetensors says of a write that the system refused as the OSError that it was."""
    try:
        yield
    except SafetensorError as error:
        code = _SYSTEM_ERROR.search(str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def write_durably(path: Path, text: str, *, shared: bool = False) -> None:
    """Write a text file atomically, synced to disk: after a crash it is whole, as it was before, or absent.

    `shared`: others may write the same file at the same time, as ranks do that each ask for the page of their run; the
    last one's stays. Raises DiskError where it cannot be written.
    """
    replace_durably(path, lambda temporary: temporary.write_text(text), shared=shared)


def replace_durably(path: Path, write: Callable[[Path], object], *, shared: bool = False) -> None:
    """As `write_durably`, what `write` puts at the path that it is given."""
    temporary = partial(path.with_name(f"{path.name}.{secrets.token_hex(4)}") if shared else path)
    with writing(path):
        try:
            write(temporary)
            sync(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


def sync(path: Path) -> None:
    """Have what was written to a file, or the names in a directory, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
