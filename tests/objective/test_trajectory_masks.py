"""Masks that follow the sampler: its blocks, the order of its steps, its prefixes."""

from dataclasses import replace

import pytest
import torch

from helpers.by_hand import ended_rollout, exact, padded, rollout_by_hand, taken_samples
from helpers.small import EOS, MASK, surprise
from unmask.objective.masks import (
    BlockRandom,
    EosTokens,
    EqualSegments,
    Prefixes,
    RandomMasks,
    RecordedTimes,
    Segments,
    ShrunkSteps,
    all_completion,
    through_eos,
)
from unmask.uniforms import Uniforms

MANY = 3000
PROMPT, WIDTH = 2, 6
TOKENS = [
    [1, 2, 3, 4, EOS, 5, EOS, 6],
    [1, 2, 7, 6, 5, 4, 3, 2],
    [5, 5, 1, 2, 3, 4, 5, EOS],
    [5, 5, EOS, 1, 1, 1, 1, 1],
]
REVEALED_AT = [[0, 1, 2, 4, 7, 7], [5, 5, 5, 5, 5, 5], [5, 4, 3, 2, 1, 0], [7, 0, 7, 6, 0, 1]]
CONFIDENCE = [
    [0.9, 0.2, 0.3, 0.1, 0.8, 0.7],
    [0.5, 0.5, 0.4, 0.5, 0.5, 0.6],
    [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    [0.6, 0.5, 0.4, 0.3, 0.2, 0.1],
]
REWARDS = torch.tensor([[1.0, -1.0], [0.5, -0.5]])
ROLLOUT = rollout_by_hand(
    TOKENS,
    prompt_length=PROMPT,
    group_size=2,
    revealed_at=REVEALED_AT,
    block_length=2,
    confidence_NL=torch.nn.functional.pad(torch.tensor(CONFIDENCE), (PROMPT, 0), value=-1.0),  # the prompt is no choice
)
SEGMENTS = Segments(grouping=ShrunkSteps(shrink=2), span=through_eos, per_row=True)
MASKINGS = {
    "blocks": BlockRandom(),
    "segments": SEGMENTS,
    "equal segments": Segments(grouping=EqualSegments(count=3), span=all_completion, per_row=False),
    "prefixes": Prefixes(fraction=0.5),
    "recorded": RandomMasks(distribution=RecordedTimes(count=2)),
}


def assert_law(values, probabilities):
    probabilities = torch.as_tensor(probabilities)
    assert surprise(values.flatten().bincount(minlength=len(probabilities)), probabilities) < 3


@pytest.mark.parametrize("masking", MASKINGS.values(), ids=MASKINGS)
def test_trajectory_maskings_ignore_padding_and_order(masking):
    batch = masking(ROLLOUT, REWARDS, Uniforms(), 1, 2)
    wider = masking(padded(ROLLOUT, 4), REWARDS, Uniforms(), 1, 2)
    turned = masking(taken_samples(ROLLOUT, [3, 2, 1, 0], 2), REWARDS.flip(0, 1), Uniforms(), 1, 2)
    assert torch.equal(turned.advantage_U.view(4, -1), batch.advantage_U.view(4, -1).flip(0))
    for name in ("inputs_FL", "targets_RL", "scored_RL", "token_weight_RL"):
        ours = getattr(batch, name)
        assert torch.equal(getattr(wider, name)[:, 4:], ours)
        assert torch.equal(getattr(turned, name).view(4, -1, 8), ours.view(4, -1, 8).flip(0))


# ---- blocks ----


def blocks_of(rollout, scored_RL):
    """The first block in which each row scores: the one masked in part, where clean tokens are left alone."""
    return torch.where(scored_RL, rollout.block_NL.repeat_interleave(len(scored_RL) // len(rollout.tokens_NL), 0), 99)


def block_views(rollout, **settings):
    groups = len(rollout.tokens_NL) // rollout.group_size
    masking = BlockRandom(**{"prompt_mask_prob": 0.0} | settings)
    return masking(rollout, torch.zeros(groups, rollout.group_size), Uniforms(), 0, 1)


def test_block_random_rows_by_hand():
    lengths = torch.tensor([1, 2, 3, 5, 7, 9] * 20)
    rollout = ended_rollout(lengths, width=9, block_length=3)
    batch = block_views(rollout, count=3)
    block_RL, span_RL = rollout.block_NL.repeat_interleave(3, 0), rollout.completion_NL.repeat_interleave(3, 0)
    partial_R1 = blocks_of(rollout, batch.scored_RL).amin(1, keepdim=True)
    masked = batch.inputs_FL == MASK
    assert bool(masked[(block_RL > partial_R1) | (rollout.region_L & ~span_RL)].all())
    assert not bool(masked[(block_RL < partial_R1) & span_RL].any() | masked[:, :2].any())
    assert torch.equal(batch.scored_RL, masked & span_RL)
    assert torch.equal(batch.inputs_FL, batch.targets_RL.masked_fill(masked, MASK))
    length_R1 = lengths.repeat_interleave(3)[:, None]
    weight = length_R1 / batch.scored_RL.sum(1, keepdim=True)
    torch.testing.assert_close(batch.token_weight_RL, torch.where(batch.scored_RL, weight, 0.0))
    assert batch.length_U.tolist() == lengths.tolist()
    assert BlockRandom() == BlockRandom(count=2, prompt_mask_prob=0.15)


def test_block_random_counts_and_blocks_are_uniform():
    """Three blocks of which two are used: orders 012, 102 ... modulo 2 give 0 1, 0 0, 1 0, 1 0, 0 0, 0 1."""
    rollout = ended_rollout([5] * MANY, width=9, block_length=3)
    scored_RL = block_views(rollout).scored_RL
    partial_N2 = blocks_of(rollout, scored_RL).amin(1).view(-1, 2)
    assert_law(2 * partial_N2[:, 0] + partial_N2[:, 1], [1 / 3, 1 / 3, 1 / 3, 0])
    for block, size in ((0, 3), (1, 2)):
        counts = (scored_RL & (rollout.block_NL[0] == block))[partial_N2.flatten() == block].sum(1)
        assert_law(counts - 1, [1 / size] * size)
    single = scored_RL.sum(1) == 1  # then one of the two positions of the second block
    assert_law(scored_RL[single].long().argmax(1) - 5, [0.5, 0.5])


def test_block_random_repeats_blocks_when_there_are_fewer_than_rows():
    rollout = ended_rollout([9] * 200, width=9, block_length=3)
    partial_N5 = blocks_of(rollout, block_views(rollout, count=5).scored_RL).amin(1).view(-1, 5)
    assert torch.equal(partial_N5[:, 3:], partial_N5[:, :2])
    assert bool((partial_N5[:, :3].sort(dim=1).values == torch.arange(3)).all())


def test_block_random_masks_clean_tokens_at_random():
    rollout = ended_rollout([5] * MANY, width=9, block_length=3, prompt_length=3)
    rollout = replace(rollout, attention_NL=rollout.attention_NL & (torch.arange(12) > 0))  # one pad
    plain = block_views(rollout)
    block_RL = rollout.block_NL.repeat_interleave(2, 0)
    clean_RL = (block_RL < blocks_of(rollout, plain.scored_RL).amin(1, keepdim=True)) & plain.attention_FL
    for prob in (0.0, 0.3, 1.0):
        batch = block_views(rollout, prompt_mask_prob=prob)
        masked = batch.inputs_FL == MASK
        assert torch.equal(masked[~clean_RL], (plain.inputs_FL == MASK)[~clean_RL])
        assert abs(masked[clean_RL].float().mean() - prob) <= (0.015 if prob == 0.3 else 0)
        assert torch.equal(batch.scored_RL, masked & rollout.completion_NL.repeat_interleave(2, 0))
        # Scored tokens count 1 / (share of the length that they make): together the length.
        torch.testing.assert_close(batch.token_weight_RL.sum(1), torch.full((2 * MANY,), 5.0))
        prompt = masked[:, 1:3].float()
        assert abs((prompt[:, 0] * prompt[:, 1]).mean() - prob**2) < 0.02


# ---- segments of the trajectory ----


def test_shrunk_steps_skip_those_that_revealed_nothing():
    def grouped(shrink, **changes):
        segment, count = ShrunkSteps(shrink=shrink)(replace(ROLLOUT, **changes))
        return segment[:, PROMPT:].tolist(), count

    assert grouped(2) == (
        [[0, 0, 1, 1, 2, 2], [0] * 6, [2, 2, 1, 1, 0, 0], [1, 0, 1, 1, 0, 0]],
        4,
    )
    assert grouped(3) == ([[0, 0, 0, 1, 1, 1], [0] * 6, [1, 1, 1, 0, 0, 0], [1, 0, 1, 0, 0, 0]], 3)
    assert grouped(1)[0] == [[0, 1, 2, 3, 4, 4], [0] * 6, [5, 4, 3, 2, 1, 0], [3, 0, 3, 2, 0, 1]]
    assert [grouped(1, steps=9)[1], grouped(2, steps=9)[1], grouped(9)[1]] == [9, 5, 1]
    assert ShrunkSteps() == ShrunkSteps(shrink=8)


def test_equal_segments_by_hand():
    def grouped(count):
        segment, number = EqualSegments(count=count)(ROLLOUT)
        return segment[:, PROMPT:].tolist(), number

    assert grouped(1) == ([[0] * 6] * 4, 1)
    assert grouped(2)[0] == [[0, 0, 0, 1, 1, 1], [1] * 6, [1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 0, 0]]
    # Steps 0 1 2, 3 4 5, 6 7 of eight: floor(3 s / 8).
    assert grouped(3) == ([[0, 0, 0, 1, 2, 2], [1] * 6, [1, 1, 1, 0, 0, 0], [2, 0, 2, 2, 0, 0]], 3)
    assert grouped(8) == grouped(99) == (REVEALED_AT, 8)
    assert EqualSegments() == EqualSegments(count=8)


@pytest.mark.parametrize("span", [through_eos, all_completion, EosTokens(eos_id=EOS, count=0)])
@pytest.mark.parametrize("grouping", [ShrunkSteps(shrink=3), EqualSegments(count=3)])
@pytest.mark.parametrize("per_row", [True, False])
def test_segments_score_every_token_once(span, grouping, per_row):
    batch = Segments(grouping=grouping, span=span, per_row=per_row)(ROLLOUT, REWARDS, Uniforms(), 0, 1)
    segment, count = grouping(ROLLOUT)
    assert count == 3
    for row in range(12):
        sample, index = divmod(row, 3)
        inside = ROLLOUT.region_L & (segment[sample] >= index)
        scored = span(ROLLOUT)[sample] & (segment[sample] == index)
        tokens = ROLLOUT.tokens_NL[sample]
        assert torch.equal(batch.inputs_FL[row], tokens.masked_fill(inside, MASK))
        assert torch.equal(batch.targets_RL[row], tokens)
        assert torch.equal(batch.scored_RL[row], scored)
        weight = 1 / max(1, int(scored.sum())) if per_row else 3 / WIDTH
        torch.testing.assert_close(batch.token_weight_RL[row], scored * torch.tensor(weight))
        assert batch.advantage_U[row] == REWARDS.flatten()[sample]
        assert batch.length_U[row] == scored.sum()
    assert torch.equal(batch.scored_RL.view(4, 3, 8).sum(1), span(ROLLOUT).long())
    assert batch.forward_R.tolist() == batch.unit_R.tolist() == list(range(12))
    assert torch.equal(batch.attention_FL, ROLLOUT.attention_NL.repeat_interleave(3, 0))


def test_segments_are_refused_after_a_remasking_sampler():
    remasked = replace(ROLLOUT, remasking=True)
    for masking in (SEGMENTS, MASKINGS["recorded"]):
        with pytest.raises(ValueError, match="remasking sampler"):
            masking(remasked, REWARDS, Uniforms(), 0, 1)


# ---- prefixes ----


@pytest.mark.parametrize(
    ("fraction", "positions"),
    [
        (1.0, [[0, 1, 2, 3, 4, 5]] * 4),
        (0.5, [[1, 2, 3], [0, 1, 2], [0, 1, 2], [3, 4, 5]]),  # ties: the first
        (0.25, [[1, 3], [0, 2], [0, 1], [4, 5]]),  # 1.5 positions are two
        (0.2, [[3], [2], [0], [5]]),
        (0.01, [[3], [2], [0], [5]]),
    ],
)
def test_prefixes_by_hand(fraction, positions):
    rollout = replace(ROLLOUT, attention_NL=ROLLOUT.attention_NL & (torch.arange(8) > 0))
    batch = Prefixes(fraction=fraction)(rollout, REWARDS, Uniforms(), 0, 1)
    rows = [(sample, position + PROMPT) for sample, chosen in enumerate(positions) for position in chosen]
    for row, (sample, column) in enumerate(rows):
        assert batch.inputs_FL[row].tolist() == TOKENS[sample][:column] + [MASK] * (8 - column)
        assert batch.scored_RL[row].nonzero().flatten().tolist() == [column]
        assert batch.targets_RL[row].tolist() == TOKENS[sample]
        assert batch.advantage_U[row] == REWARDS.flatten()[sample]
    assert torch.equal(batch.token_weight_RL, batch.scored_RL.float())
    assert batch.forward_R.tolist() == batch.unit_R.tolist() == list(range(len(rows)))
    assert batch.length_U.tolist() == [1] * len(rows)
    assert torch.equal(batch.attention_FL, batch.attention_FL.new_ones(len(rows), 8) & (torch.arange(8) > 0))
    assert Prefixes() == Prefixes(fraction=1.0)


# ---- recorded states as rows ----


@pytest.mark.parametrize(
    ("count", "laws"),
    [
        (1, [[1 / 8] * 8]),
        (2, [[1 / 4] * 4 + [0] * 4, [0] * 4 + [1 / 4] * 4]),
        # A stratum is 8/3 steps long.
        (
            3,
            [
                [3 / 8, 3 / 8, 2 / 8] + [0] * 5,
                [0, 0, 1 / 8, 3 / 8, 3 / 8, 1 / 8, 0, 0],
                [0] * 5 + [2 / 8, 3 / 8, 3 / 8],
            ],
        ),
    ],
)
def test_recorded_times_are_uniform_in_each_stratum(count, laws):
    revealed_at = torch.arange(8).expand(MANY, -1)
    rollout = ended_rollout([8] * MANY, width=8, revealed_at=revealed_at)
    masked, weight = RecordedTimes(count=count)(rollout, rollout.completion_NL, Uniforms(), 0, 1)
    assert masked.shape == (MANY, count, 10)
    assert bool((weight == 1).all())
    exact(weight.sum(), MANY * count * 10)
    for row, law in enumerate(laws):
        step = 8 - masked[:, row].sum(1)
        assert torch.equal(masked[:, row, PROMPT:], torch.arange(8) >= step[:, None])
        assert not bool(masked[:, row, :PROMPT].any())
        assert_law(step, law)


def test_recorded_times_keep_to_the_span():
    span = ROLLOUT.completion_NL
    masked = RecordedTimes(count=2)(ROLLOUT, span, Uniforms(), 0, 1).masked_NRL
    assert not bool((masked & ~span[:, None]).any())
    states = [ROLLOUT.revealed_at_NL >= step for step in range(8)]
    for sample in range(4):
        for row in range(2):
            assert any(torch.equal(masked[sample, row], state[sample] & span[sample]) for state in states)
