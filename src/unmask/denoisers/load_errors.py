"""What is said where a model cannot be loaded: its config.json, or the memory there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from unmask.errors import UserError

# What the allocators of CPUs, the kernel and safetensors say.
_OUT_OF_MEMORY = ("can't allocate memory", "DefaultCPUAllocator", "not enough memory", "Cannot allocate memory")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Raise UserError, with what to do, where memory does not suffice for what is loaded within."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        detail = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{what} does not fit the memory ({detail}): `unmask plan` says what it takes; split the weights over "
            "ranks (train.shard), train adapters (train.lora_rank), load 4 bits (four_bit), or take a smaller model"
        ) from error


@contextmanager
def config_errors(model: str) -> Iterator[None]:
    """Raise UserError where transformers can make no configuration, or network, of the config.json of a model."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever a value that is not checked leads to
        if is_out_of_memory(error):
            raise
        detail = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"model {model!r} has a config.json that cannot be used ({detail}): restore it") from error
