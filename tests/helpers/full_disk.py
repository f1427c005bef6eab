"""A disk that ends a write in the midst."""

import resource
from contextlib import contextmanager


@contextmanager
def no_file_larger_than(size):
    """A limit of the system, which ends a write in the midst as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
