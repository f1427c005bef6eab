"""The process a command runs in: threads, memory, quiet libraries."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import sys

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's mallopt
_ONE_GIB = 1 << 30
_ONE_MIB = 1 << 20


def prepare(threads: int | None) -> None:
    """Set PyTorch's CPU threads (None: its choice), let glibc keep freed memory, silence transformers.

    A crash in C, such as one of a reward function's, shows where it was.
    """
    if sys.__stderr__ is not None:
        faulthandler.enable(file=sys.__stderr__)
    if threads:
        torch.set_num_threads(threads)
    # By default glibc gives every large tensor back to the kernel, which clears its pages again for the next one.
    _set_malloc({_MMAP_THRESHOLD: _ONE_GIB, _TRIM_THRESHOLD: _ONE_GIB})
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def give_back_freed_memory() -> None:
    """Have glibc give every large tensor back, against what `prepare` has set.

    Sharded weights come and go, layer by layer and of all sizes: what is kept of them would be several times the model.
    """
    _set_malloc({_MMAP_THRESHOLD: _ONE_MIB, _TRIM_THRESHOLD: _ONE_MIB})


def _set_malloc(options: dict[int, int]) -> None:
    """Set options of glibc's malloc, where there is one and the user has set none."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if sys.platform == "linux" and mallopt is not None and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        for option, value in options.items():
            mallopt(option, value)
