"""Spans, prompt masks, keyed draws, the fully masked row: what every masking is made of."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.by_hand import PROMPT, TOKENS, hand_rollout, rollout_by_hand
from helpers.small import EOS, MASK, few
from unmask.objective.masks import (
    EosTokens,
    FullyMasked,
    all_completion,
    mask_prompt,
    through_eos,
    through_first_eos,
)
from unmask.objective.masks.base import position_draws, row_draws, sample_rows, single_rows, smallest
from unmask.uniforms import Uniforms

M, E = MASK, EOS
ROLLOUT = hand_rollout()
REWARDS = torch.tensor([[1.0, -1.0], [0.5, -0.5]])


def test_spans_by_hand():
    rollout = rollout_by_hand([[EOS, 1, 2, EOS, 3, EOS, EOS], [EOS, 1, 2, 3, 4, 5, 6]], prompt_length=2, group_size=1)

    def at(span):
        assert not bool(span(rollout)[:, :2].any())
        return span(rollout)[:, 2:].int().tolist()

    assert at(through_eos) == [[1, 1, 0, 0, 0], [1] * 5]
    assert at(all_completion) == [[1] * 5] * 2
    assert at(EosTokens(eos_id=EOS, count=0)) == [[1, 0, 1, 0, 0], [1] * 5]
    assert at(EosTokens(eos_id=EOS, count=1)) == [[1, 1, 1, 0, 0], [1] * 5]
    assert at(EosTokens(eos_id=EOS, count=2)) == [[1, 1, 1, 1, 0], [1] * 5]


def test_through_first_eos_by_hand():
    region = torch.tensor([False, True, True, True, True])
    tokens = torch.tensor([[E, 1, 2, 3, 4], [E, E, 1, E, 2], [1, 2, 3, E, E], [1, 2, E, 4, 5]])
    assert through_first_eos(tokens, region, E).int().tolist() == [
        [0, 1, 1, 1, 1],
        [0, 1, 0, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 1, 1, 0, 0],
    ]
    assert torch.equal(
        through_first_eos(tokens.view(2, 2, 5), region, E), through_first_eos(tokens, region, E).view(2, 2, 5)
    )


def test_mask_prompt_draws():
    def drawn(prob, update=0, shared=False):
        return mask_prompt(ROLLOUT, prob, Uniforms(), update, shared=shared)

    maskable = ROLLOUT.attention_NL & ~ROLLOUT.region_L
    assert torch.equal(drawn(1.0), maskable)
    assert not bool(drawn(0.0).any())
    samples = torch.arange(4000)
    first_row = {name: value[:1].expand(4000, -1) for name, value in vars(ROLLOUT).items() if name.endswith("_NL")}
    wide = replace(ROLLOUT, **first_row, prompt_N=torch.zeros_like(samples), sample_N=samples)
    single = mask_prompt(wide, 0.3, Uniforms(), 0, shared=False)[:, :PROMPT]
    assert abs(single.float().mean() - 0.3) < 0.02
    assert abs(torch.corrcoef(single.float().T)[0, 1]) < 0.06
    assert len(mask_prompt(wide, 0.3, Uniforms(), 0, shared=True).unique(dim=0)) == 1
    assert len({tuple(drawn(0.5, update, shared=True).flatten().tolist()) for update in range(8)}) > 4
    both = drawn(0.5, shared=True)
    assert torch.equal(both[0], both[1])
    expected = Uniforms().key("prompt mask", 0, ROLLOUT.prompt_N[:, None]).key(ROLLOUT.position_L).draw() < 0.5
    assert torch.equal(both, expected & maskable)


@pytest.mark.parametrize("shared", [False, True])
def test_fully_masked_by_hand(shared):
    batch = FullyMasked(prompt_mask_prob=0.5, shared=shared)(ROLLOUT, REWARDS, Uniforms(), 3, 4)
    hidden = mask_prompt(ROLLOUT, 0.5, Uniforms(), 3, shared=shared)
    rows = [0, 2] if shared else [0, 1, 2, 3]
    for forward, row in enumerate(rows):
        prompt = [M if hide else token for hide, token in zip(hidden[row, :3].tolist(), TOKENS[row][:3], strict=True)]
        assert batch.inputs_FL[forward].tolist() == [*prompt, M, M, M, M]
    assert batch.attention_FL.tolist() == ROLLOUT.attention_NL[rows].tolist()
    assert batch.forward_R.tolist() == ([0, 0, 1, 1] if shared else [0, 1, 2, 3])
    assert batch.unit_R.tolist() == [0, 1, 2, 3]
    assert batch.advantage_U.tolist() == [1.0, -1.0, 0.5, -0.5]
    assert batch.targets_RL.tolist() == TOKENS
    assert batch.scored_RL[:, PROMPT:].int().tolist() == [
        [1, 1, 1, 0],
        [1, 1, 1, 1],
        [1, 0, 0, 0],
        [1, 1, 1, 1],
    ]
    assert torch.equal(batch.token_weight_RL, batch.scored_RL.float())
    assert batch.temperature == 1.0
    assert batch.old_RL is None


def test_position_draws_are_keyed_by_prompt_sample_row_and_position():
    draws = position_draws(ROLLOUT, row_draws(ROLLOUT, Uniforms().key("mask", 5), 2))
    assert draws.shape == (4, 2, 7)
    for sample, (prompt, index) in enumerate([(4, 0), (4, 1), (9, 0), (9, 1)]):
        for row in range(2):
            for column in range(7):
                expected = Uniforms().key("mask", 5, prompt, index, row, column - PROMPT).draw()
                assert draws[sample, row, column] == expected


@few
@given(st.lists(st.booleans(), min_size=3, max_size=9), st.integers(0, 9), st.integers(0, 99))
def test_smallest_takes_the_smallest_draws(eligible, count, seed):
    draw = Uniforms().key(seed, torch.arange(len(eligible))).draw()[None, None]
    eligible = torch.tensor(eligible)[None, None]
    chosen = smallest(draw, eligible, torch.tensor([[count]]))
    assert int(chosen.sum()) == min(count, int(eligible.sum()))
    assert not bool((chosen & ~eligible).any())
    others = draw[eligible & ~chosen]
    assert chosen.sum() == 0 or bool((draw[chosen].max() < others).all())


def test_sample_rows_by_hand():
    masked = torch.zeros(4, 2, 7, dtype=torch.bool)
    masked[:, 0, 4:], masked[2, 1, 1] = True, True
    weight = torch.arange(56.0).view(4, 2, 7).double()
    scored = masked & ROLLOUT.region_L
    length = torch.tensor([3, 4, 1, 4])
    batch = sample_rows(
        ROLLOUT, masked_NRL=masked, scored_NRL=scored, token_weight_NRL=weight, length_N=length, advantage=REWARDS
    )
    assert batch.inputs_FL[0].tolist() == [1, 2, 3, 4, MASK, MASK, MASK]
    assert batch.inputs_FL[4:6].tolist() == [[0, 5, 6, EOS, MASK, MASK, MASK], [0, MASK, 6, EOS, 1, EOS, 2]]
    assert batch.targets_RL.tolist() == [row for row in TOKENS for _ in range(2)]
    assert batch.attention_FL[:, 0].tolist() == [True] * 4 + [False] * 4
    assert batch.forward_R.tolist() == list(range(8))
    assert batch.unit_R.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert torch.equal(batch.scored_RL.view(4, 2, 7), scored)
    assert torch.equal(batch.token_weight_RL, weight.float().view(8, 7))
    assert batch.advantage_U.tolist() == [1.0, -1.0, 0.5, -0.5]
    assert batch.length_U.tolist() == [3, 4, 1, 4]


def test_single_rows_by_hand():
    sample = torch.tensor([0, 0, 2, 3, 3])
    masked = torch.zeros(5, 7, dtype=torch.bool)
    masked[1:, 5:] = True
    weight = torch.arange(35.0).view(5, 7).double()
    scored = masked & (torch.arange(7) > 5)
    batch = single_rows(ROLLOUT, sample, masked_RL=masked, scored_RL=scored, token_weight_RL=weight, advantage=REWARDS)
    assert batch.inputs_FL[:3].tolist() == [TOKENS[0], [1, 2, 3, 4, 5, M, M], [0, 5, 6, E, 1, M, M]]
    assert batch.targets_RL.tolist() == [TOKENS[index] for index in sample]
    assert torch.equal(batch.attention_FL, ROLLOUT.attention_NL[sample])
    assert torch.equal(batch.scored_RL, scored)
    assert torch.equal(batch.token_weight_RL, weight.float())
    assert batch.forward_R.tolist() == batch.unit_R.tolist() == list(range(5))
    assert batch.advantage_U.tolist() == [1.0, 1.0, 0.5, -0.5, -0.5]
    assert batch.length_U.tolist() == [0, 1, 1, 1, 1]
