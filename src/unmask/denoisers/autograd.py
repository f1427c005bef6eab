"""Calls of functions with written-out gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    """The tensor that a torch.autograd.Function makes of its arguments: `function.apply`, typed alike in every PyTorch.

    Versions differ in whether `apply` itself has types.
    """
    run: Callable[..., Tensor] = function.apply
    return run(*arguments)
