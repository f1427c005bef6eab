"""Who owns the directory of a run: one process, by a lock that ends with it, however it ends. Torch-free."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from unmask.denoisers.directories import LOCK, holds_something, leftovers
from unmask.errors import UserError
from unmask.settings.resume import check_unused, free_directories, new_directory

_LOG = logging.getLogger("unmask")
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of file systems that know none
_HELD: set[int] = set()  # descriptors of locks that this process holds


class InUseError(UserError):
    """A directory that another process owns."""


def _forget_in_child() -> None:
    """A forked child shares its parent's locks, and may outlive it: it gives its share back."""
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_forget_in_child)


@contextmanager
def owned(directory: Path) -> Iterator[None]:
    """Own `directory`, made where it is missing, and remove what a killed owner was writing; then give it back.

    What was made for it and is empty in the end goes again. Raises InUseError where another process owns it,
    UserError where it cannot be written.
    """
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        descriptor = _lock(directory)
    except OSError as error:
        raise UserError(f"{directory} cannot be written ({error.strerror}): make it so, or give another") from error
    _HELD.add(descriptor)
    try:
        for path in leftovers(directory):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        yield
    finally:
        if descriptor in _HELD:  # else this is a forked child
            (directory / LOCK).unlink(missing_ok=True)
            _HELD.remove(descriptor)
            os.close(descriptor)
            _remove_empty(made)


def _remove_empty(directories: Iterable[Path]) -> None:
    """Remove directories, each within the next, as far as they are empty."""
    for directory in directories:
        try:
            directory.rmdir()
        except OSError:  # somebody has put something there
            return


@contextmanager
def owned_new(output: str | None, name: str) -> Iterator[Path]:
    """Own a new directory: `output`, or runs/NAME-NNN with the first number that nobody else has.

    Raises UserError where `output` holds something, or another process owns it.
    """
    with ExitStack() as stack:
        if output is not None:
            directory = new_directory(output, name)
            stack.enter_context(owned(directory))
            check_unused(directory)
        else:
            directory = _own_numbered(name, stack)
        yield directory


def _own_numbered(name: str, stack: ExitStack) -> Path:
    for directory in free_directories(name):
        with ExitStack() as attempt:
            try:
                attempt.enter_context(owned(directory))
            except InUseError:
                continue  # of a run started at the same time
            if not holds_something(directory):  # else that run has been and gone
                stack.push(attempt.pop_all())
                return directory
    raise AssertionError("numbers end")


def _lock(directory: Path) -> int:
    """The descriptor of the locked file within the directory, which names this process."""
    path = directory / LOCK
    while True:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # an owner has just removed the directory
        try:
            if _take(descriptor, directory) and _is_at(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # of an owner that has just ended, and removed it


def _take(descriptor: int, directory: Path) -> bool:
    """Lock the file. Raises InUseError where another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
        raise InUseError(
            f"{directory} is in use by {holder}: wait until that ends, or give another directory"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _LOG.warning("unmask: the file system of %s knows no locks: see that no other process writes there", directory)
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
