"""For tests of masks and scores: rollouts written out by hand."""

from dataclasses import replace

import torch

from helpers.small import EOS, MASK
from unmask.objective.masks import through_first_eos
from unmask.types import Rollout, ScoringBatch


def close(ours, expected):
    torch.testing.assert_close(
        torch.as_tensor(ours), torch.as_tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-6
    )


def exact(ours, expected):
    torch.testing.assert_close(
        torch.as_tensor(ours).double(), torch.as_tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


def rollout_by_hand(tokens, *, prompt_length, group_size, revealed_at=None, block_length=None, **changes) -> Rollout:
    """Groups of neighbours, no pads, all revealed in the first step, one block, unless told otherwise."""
    tokens = torch.as_tensor(tokens)
    position = torch.arange(tokens.shape[1]) - prompt_length
    width = tokens.shape[1] - prompt_length
    block = (position // (block_length or width)).clamp(min=-1)
    step = torch.zeros(len(tokens), width, dtype=torch.long) if revealed_at is None else torch.as_tensor(revealed_at)
    fields = {
        "completion_NL": through_first_eos(tokens, position >= 0, EOS),
        "block_NL": block.expand_as(tokens),
        "revealed_at_NL": torch.nn.functional.pad(step, (prompt_length, 0), value=-1),
    }
    return Rollout.fake(tokens, prompt_length=prompt_length, group_size=group_size, mask_id=MASK, **(fields | changes))


def ended_rollout(lengths, *, width, prompt_length=2, group_size=1, **settings) -> Rollout:
    """Completions of `width` positions that end after `lengths` tokens."""
    lengths = torch.as_tensor(lengths)
    tokens = torch.arange(prompt_length + width).remainder(7).repeat(len(lengths), 1)
    tokens.scatter_(1, prompt_length + lengths[:, None] - 1, EOS)
    return rollout_by_hand(tokens, prompt_length=prompt_length, group_size=group_size, **settings)


def padded(rollout, columns) -> Rollout:
    """The same rollout, its prompts with more pads."""
    fillers = {"tokens_NL": EOS, "block_NL": -1, "revealed_at_NL": -1}
    wider = {
        name: torch.nn.functional.pad(value, (columns, 0), value=fillers.get(name, 0))
        for name, value in vars(rollout).items()
        if name.endswith("_NL")
    }
    return replace(rollout, prompt_length=rollout.prompt_length + columns, **wider)


def taken_samples(rollout, index, group_size) -> Rollout:
    """Some samples of the rollout, in the order of `index`."""
    rows = {name: value[index] for name, value in vars(rollout).items() if name.endswith(("_N", "_NL"))}
    return replace(rollout, group_size=group_size, **rows)


PROMPT = 3
TOKENS = [[1, 2, 3, 4, 5, EOS, 6], [1, 2, 3, 7, 7, 7, 7], [0, 5, 6, EOS, 1, EOS, 2], [0, 5, 6, 1, 2, 3, EOS]]
REVEALED_AT = [[0, 1, 2, 2], [2, 1, 0, 2], [0, 0, 1, 2], [2, 2, 1, 0]]


def hand_rollout(**changes) -> Rollout:
    """Two prompts (one with a pad), two samples each, four tokens in three steps."""
    attention = torch.ones(4, 7, dtype=torch.bool)
    attention[2:, 0] = False
    settings = {"attention_NL": attention, "prompt_N": torch.tensor([4, 4, 9, 9]), "temperature": 0.5} | changes
    return rollout_by_hand(TOKENS, prompt_length=PROMPT, group_size=2, revealed_at=REVEALED_AT, **settings)


SCORED = [[0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def hand_batch(scored=SCORED) -> ScoringBatch:
    """Three forwards with 2, 1 and 2 rows."""
    inputs = torch.tensor([[1, MASK, MASK, MASK], [MASK, 2, MASK, 3], [4, MASK, MASK, 5]])
    scored = torch.tensor(scored).bool()
    return ScoringBatch(
        inputs_FL=inputs,
        attention_FL=torch.ones_like(inputs).bool(),
        forward_R=torch.tensor([0, 0, 1, 2, 2]),
        targets_RL=torch.tensor([[1, 2, 3, 4], [1, 5, 6, 7], [0, 2, 1, 3], [4, 0, 1, 5], [4, 2, 3, 5]]),
        scored_RL=scored,
        token_weight_RL=scored / 2,
        unit_R=torch.tensor([0, 0, 1, 2, 3]),
        advantage_U=torch.tensor([1.0, -1.0, 0.0, 2.0]),
        length_U=torch.tensor([4, 2, 1, 0]),
        temperature=0.7,
    )
