"""Memory of logits: the most bytes of tensors over a vocabulary that were alive at once, gradients of weights apart."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Logits(TorchDispatchMode):
    """Counts the storages of tensors with a dimension of the vocabulary's size, and none of the width's."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.vocabulary, self.width = vocabulary, width
        self.alive = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and self.vocabulary in leaf.shape and self.width not in leaf.shape:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def freed() -> None:
            self._seen.discard(key)
            self.alive -= size

        self._seen.add(key)
        weakref.finalize(storage, freed)
        self.alive += size
        self.most = max(self.most, self.alive)


def logits_megabytes(call: Callable[[], Any], vocabulary: int, width: int) -> float:
    """In MB, during the call."""
    with _Logits(vocabulary, width) as counted:
        call()
    return counted.most / 2**20
