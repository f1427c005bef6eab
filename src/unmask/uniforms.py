"""Counter-based random numbers: every draw is a pure function of a key that says what it is for (splitmix64).

A key is folded from words (seed, purpose, iteration, prompt, sample, step, position from the completion's start, ...).
Nothing then depends on batch make-up, padding, order, compaction, micro-batches or ranks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

_BITS = 64
_MODULUS = 1 << _BITS
_INCREMENT = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # splitmix64 (Steele, Lea, Flood 2014)
_SHIFTS = (30, 27, 31)

Word = int | str | Tensor


def _signed(value: int) -> int:
    """The same 64 bits as the two's complement integer that an int64 tensor holds."""
    value %= _MODULUS
    return value - _MODULUS if value >= _MODULUS // 2 else value


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (the tensor operator keeps the sign)."""
    return (value >> bits) & ((1 << (_BITS - bits)) - 1)


def _mix_tensor(value: Tensor) -> Tensor:
    value = value + _signed(_INCREMENT)
    value = (value ^ _shift_right(value, _SHIFTS[0])) * _signed(_MULTIPLIERS[0])
    value = (value ^ _shift_right(value, _SHIFTS[1])) * _signed(_MULTIPLIERS[1])
    return value ^ _shift_right(value, _SHIFTS[2])


def _mix_int(value: int) -> int:
    value = (value + _INCREMENT) % _MODULUS
    value = (value ^ (value >> _SHIFTS[0])) * _MULTIPLIERS[0] % _MODULUS
    value = (value ^ (value >> _SHIFTS[1])) * _MULTIPLIERS[1] % _MODULUS
    return value ^ (value >> _SHIFTS[2])


def _fold(state: int | Tensor, word: Word) -> int | Tensor:
    if isinstance(word, str):
        word = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    if isinstance(state, int) and isinstance(word, int):
        return _mix_int(state ^ (word % _MODULUS))
    left = _signed(state) if isinstance(state, int) else state
    right = _signed(word) if isinstance(word, int) else word
    return _mix_tensor(left ^ right)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Uniforms:
    """A key of random draws: `key` folds in more words, ints, strings or int64 tensors; `draw` gives the numbers.

    Tensors broadcast, and the key then has their shape:

        key = Uniforms().key(seed, "mask", update).key(prompt_N[:, None]).key(position_L)
        key.draw()  # [N, L], each number the same whichever others are drawn
    """

    state: int | Tensor = 0

    def key(self, *words: Word) -> Uniforms:
        """The key with more words folded in, in order."""
        state = self.state
        for word in words:
            state = _fold(state, word)
        return Uniforms(state)

    def draw(self) -> Tensor:
        """float64 uniforms in [0, 1), one for each element of the key, 53 bits each."""
        state = self.state if isinstance(self.state, Tensor) else torch.tensor(_signed(self.state))
        return _shift_right(_mix_tensor(state), _BITS - 53).to(torch.float64) * 2.0**-53

    def permutation(self, count: int) -> list[int]:
        """A random permutation of range(count), the same for the same key."""
        return self.key(torch.arange(count)).draw().argsort(stable=True).tolist()
