"""Logits of some positions, one slice of the vocabulary at a time: sampling never needs all of them at once.

Here and in `proposals`: C positions, T slices, S tokens of a slice, B folds, W tokens of a fold, Z draws a position.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from unmask.denoisers.head.chunks import chunk_positions, even_chunks
from unmask.denoisers.head.workspace import Workspace, is_mixed, multiply_into

_FOLD = 64  # neighbouring tokens; long rows are searched fold by fold
_LONG = 1024  # tokens; rows of no more are searched token by token
NEVER = -1e30  # logit of what has no probability; finite, for a slice may hold nothing else

POSITIONS = 2048  # at a time


class Logits(ABC):
    """float32 logits of C positions, read slice by slice.

    Logits of tokens that are never proposed are NEVER in the slices, `never_CU` has them: the mask token, and the runs
    of ids `unspelt`, which the tokenizer does not know.
    """

    never_CU: Tensor  # there once the slices were read

    def __init__(
        self,
        shape_CV: tuple[int, int],
        width: int,
        mask_id: int,
        like: Tensor,
        workspace: Workspace,
        unspelt: Sequence[range] = (),
    ) -> None:
        self.positions, self.vocabulary = shape_CV
        self.unspelt = unspelt
        self.fold = _FOLD if self.vocabulary > _LONG else 1
        width = self.vocabulary if self.fold == 1 else width  # a short row is one slice
        self.width = min(-(-self.vocabulary // self.fold), max(1, width // self.fold)) * self.fold
        self.mask_id, self.device, self.workspace = mask_id, like.device, workspace
        self._all: Tensor | None = None

    def slices(self) -> Iterator[tuple[int, Tensor]]:
        """Yield each slice's first token and its logits [C, S], which the next slice overwrites.

        S is whole folds: what is behind the vocabulary's end is NEVER.
        """
        never: list[Tensor] = []
        for first in range(0, self.vocabulary, self.width):
            tokens = min(self.width, self.vocabulary - first)
            logits_CS = self.workspace.floats(
                "logits", (self.positions, -(-tokens // self.fold) * self.fold), self.device
            )
            if logits_CS.shape[1] > tokens:
                logits_CS[:, tokens:] = NEVER
            self._write(slice(first, first + tokens), logits_CS[:, :tokens])
            if 0 <= self.mask_id - first < tokens:
                mask_C1 = logits_CS[:, self.mask_id - first, None]
                never.append(mask_C1.clone())
                mask_C1.fill_(NEVER)
            for run in self.unspelt:
                if run.start < first + tokens and run.stop > first:
                    unspelt_CS = logits_CS[:, max(0, run.start - first) : min(run.stop - first, tokens)]
                    never.append(unspelt_CS.clone())
                    unspelt_CS.fill_(NEVER)
            self._all = logits_CS if self.width >= self.vocabulary else None
            yield first, logits_CS
        self.never_CU = never[0] if len(never) == 1 else torch.cat(never, 1)

    def of_folds(self, fold_CZ: Tensor) -> Tensor:
        """Logits of Z folds of each position, [C, Z, W]; after the slices were read."""
        token_CZW = fold_CZ[..., None] * self.fold + torch.arange(self.fold, device=self.device)
        if self._all is not None:
            return self._all.gather(1, token_CZW.flatten(1)).view(token_CZW.shape)
        none_CZW = (token_CZW >= self.vocabulary) | (token_CZW == self.mask_id)
        for run in self.unspelt:
            none_CZW |= (token_CZW >= run.start) & (token_CZW < run.stop)
        return self._at(token_CZW.clamp(max=self.vocabulary - 1)).float().masked_fill(none_CZW, NEVER)

    @abstractmethod
    def _write(self, tokens: slice, logits_CS: Tensor) -> None:
        """Logits of neighbouring tokens, into a tensor."""

    @abstractmethod
    def _at(self, token_CZW: Tensor) -> Tensor:
        """Logits of some tokens."""


class GivenLogits(Logits):
    """Logits that exist as a tensor [C, V]."""

    def __init__(self, logits_CV: Tensor, mask_id: int, workspace: Workspace, unspelt: Sequence[range] = ()) -> None:
        positions, vocabulary = logits_CV.shape
        width = workspace.slice_width(positions, logits_CV.device)
        super().__init__((positions, vocabulary), width, mask_id, logits_CV, workspace, unspelt)
        self.logits_CV = logits_CV

    def _write(self, tokens: slice, logits_CS: Tensor) -> None:
        logits_CS.copy_(self.logits_CV[:, tokens]).clamp_(min=NEVER)

    def _at(self, token_CZW: Tensor) -> Tensor:
        return self.logits_CV.gather(1, token_CZW.flatten(1)).view(token_CZW.shape).clamp(min=NEVER)


class HeadLogits(Logits):
    """Logits computed from hidden states [C, D] and a head's weight [V, D], slice by slice; those of a fold again."""

    def __init__(
        self, hidden_CD: Tensor, weight_VD: Tensor, mask_id: int, workspace: Workspace, unspelt: Sequence[range] = ()
    ) -> None:
        shape_CV = (len(hidden_CD), len(weight_VD))
        # Whole where it is cast: autocast keeps a copy of the weight, of its slices it would make them again.
        narrow = workspace.slice_width(len(hidden_CD), hidden_CD.device)
        width = len(weight_VD) if _is_cast(weight_VD) else narrow
        super().__init__(shape_CV, width, mask_id, hidden_CD, workspace, unspelt)
        self.hidden_CD, self.weight_VD = hidden_CD, weight_VD

    def _write(self, tokens: slice, logits_CS: Tensor) -> None:
        whole = tokens == slice(0, self.vocabulary)  # not a view, which autocast would not know
        multiply_into(logits_CS, self.hidden_CD, self.weight_VD if whole else self.weight_VD[tokens])

    def _at(self, token_CZW: Tensor) -> Tensor:
        token_XW = token_CZW.flatten(0, 1)  # X: all draws of all positions
        place_X = torch.arange(len(token_XW), device=self.device) // token_CZW.shape[1]
        parts = []
        for chunk in even_chunks(len(token_XW), chunk_positions(self.fold * self.weight_VD.shape[1])):
            weight_YD = self.weight_VD.index_select(0, token_XW[chunk].flatten())  # rows are copied whole
            weight_XWD = weight_YD.view(-1, self.fold, weight_YD.shape[1])
            parts.append(torch.bmm(weight_XWD, self.hidden_CD[place_X[chunk], :, None]))
        return torch.cat(parts).view(token_CZW.shape)


def reduce_slices(
    reduce: Callable[[Logits, slice], tuple[Tensor, ...]],
    hidden_QD: Tensor,
    weight_VD: Tensor,
    mask_id: int,
    workspace: Workspace,
    unspelt: Sequence[range] = (),
) -> tuple[Tensor, ...]:
    """`reduce` called on the sliced logits of every chunk of positions, results concatenated."""
    most = chunk_positions(len(weight_VD)) if _is_cast(weight_VD) else POSITIONS
    parts = [
        reduce(HeadLogits(hidden_QD[chunk], weight_VD, mask_id, workspace, unspelt), chunk)
        for chunk in even_chunks(len(hidden_QD), most)
    ]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _is_cast(weight_VD: Tensor) -> bool:
    """Whether products need a copy of the weight in another precision."""
    return is_mixed(weight_VD) and weight_VD.dtype != torch.get_autocast_dtype(weight_VD.device.type)
