"""The process a command runs in: threads, memory, quiet libraries."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import sys

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's mallopt
_ONE_GIB = 1 << 30


def prepare(threads: int | None) -> None:
    """Set PyTorch's CPU threads (None: its choice), let glibc keep freed memory, silence transformers.

    A crash in C, such as one of a reward function's, shows where it was.
    """
    if sys.__stderr__ is not None:
        faulthandler.enable(file=sys.__stderr__)
    if threads:
        torch.set_num_threads(threads)
    if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        # By default glibc gives every large tensor back to the kernel, which clears its pages again for the next one.
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_MMAP_THRESHOLD, _ONE_GIB)
            mallopt(_TRIM_THRESHOLD, _ONE_GIB)
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
