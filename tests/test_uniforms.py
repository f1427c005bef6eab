"""Keyed uniforms: pinned values, the same however they are asked for, no pattern along any key."""

import pytest
import torch

from helpers.small import surprise
from unmask.uniforms import Uniforms

CELLS = 64


def along(*words) -> torch.Tensor:
    return Uniforms().key("distribution", *words).draw()


COUNTER = torch.arange(20_000)
AXES = {
    "position": along(1, 2, COUNTER),
    "sample": along(1, COUNTER, 2),
    "prompt": along(COUNTER, 1, 2),
    "seed": Uniforms().key(COUNTER, "distribution", 1, 2).draw(),
    "far apart": along(COUNTER * 2**40),
    "negative": along(-COUNTER),
    "grid": along(torch.arange(200)[:, None], torch.arange(100)).flatten(),
}


def test_values_are_pinned():
    assert Uniforms().draw().item() == 0.8833108082136426
    assert Uniforms().key(7, "sample", 3).draw().item() == 0.4200491050060815
    assert Uniforms().key("token", torch.tensor([5])).draw().item() == 0.3018342077506765


def test_tensor_words_equal_integer_words():
    prompt, sample, position = torch.tensor([3, -4]), torch.tensor([0, 5, 2**40]), torch.arange(4)
    key = Uniforms().key(11, "purpose", prompt[:, None, None]).key(sample[:, None], position)
    drawn = key.draw()
    assert drawn.shape == (2, 3, 4)
    for i, j, k in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)).tolist():
        words = (int(prompt[i]), int(sample[j]), int(position[k]))
        assert Uniforms().key(11, "purpose", *words).draw() == drawn[i, j, k]
    assert torch.equal(
        Uniforms().key(11, "purpose", prompt[:1, None, None], sample[:, None], position).draw(), drawn[:1]
    )


def test_words_are_ordered_and_named():
    draws = {Uniforms().key(*words).draw().item() for words in ((1, 2), (2, 1), ("a", "b"), ("b", "a"), ("ab",), ())}
    assert len(draws) == 6


@pytest.mark.parametrize("draws", AXES.values(), ids=AXES)
def test_uniform_along_every_axis(draws):
    assert draws.dtype == torch.float64
    assert bool(((draws >= 0) & (draws < 1)).all())
    assert len(draws.unique()) == len(draws)
    assert abs(surprise((draws * CELLS).long().bincount(minlength=CELLS), torch.full((CELLS,), 1 / CELLS))) < 4
    low_bits = (draws * 2**53).long() % CELLS
    assert abs(surprise(low_bits.bincount(minlength=CELLS), torch.full((CELLS,), 1 / CELLS))) < 4


@pytest.mark.parametrize("draws", AXES.values(), ids=AXES)
def test_neighbouring_keys_are_uncorrelated(draws):
    for lag in (1, 2, 16):
        correlation = torch.corrcoef(torch.stack([draws[:-lag], draws[lag:]]))[0, 1]
        assert abs(correlation) < 4 / len(draws) ** 0.5


def test_permutation():
    first, second = Uniforms().key(1).permutation(500), Uniforms().key(2).permutation(500)
    assert sorted(first) == sorted(second) == list(range(500))
    assert first != second
    assert first == Uniforms().key(1).permutation(500)
    firsts = torch.tensor([Uniforms().key(seed).permutation(5)[0] for seed in range(1000)])
    assert abs(surprise(firsts.bincount(minlength=5), torch.full((5,), 0.2))) < 4
