"""Dealing: each completion is sampled once, each group is trained on once, and nothing depends on how many ranks."""

from dataclasses import fields

import pytest
import torch

from unmask.distributed import World
from unmask.training.dealing import Dealing, dealt_groups, groups_of
from unmask.types import Rollout, Snapshot


class OneOfRanks(World):
    """A rank of several in one process: what it would gather is made of what every rank would give."""

    def given(self, values):
        object.__setattr__(self, "values", values)
        return self

    def gather(self, value):
        return torch.cat(self.values)


def ranks(size):
    return [OneOfRanks(device=torch.device("cpu"), rank=rank, size=size) for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 12])
def test_rows_and_gathered_give_every_completion_once_in_order(size):
    whole = torch.arange(24.0).view(2, 12)
    dealt = [Dealing(world=world, groups=4, group_size=3) for world in ranks(size)]
    assert sorted(row for dealing in dealt for row in dealing.rows) == list(range(12))
    for dealing in dealt:
        each = -(-12 // size)
        shares = [whole[:, other.rows].T for other in dealt]
        dealing.world.given([torch.cat([share, share[:1].expand(each - len(share), 2)]) for share in shares])
        assert torch.equal(dealing.gathered(whole[:, dealing.rows], place=1), whole)


@pytest.mark.parametrize(("size", "neighbours"), [(1, 6), (2, 3), (3, 2), (4, 1), (6, 1), (12, 1)])
def test_neighbours_are_of_one_group(size, neighbours):
    for world in ranks(size):
        dealing = Dealing(world=world, groups=4, group_size=6)
        assert dealing.neighbours == neighbours
        groups = [row // 6 for row in dealing.rows]
        assert all(len(set(groups[at : at + neighbours])) == 1 for at in range(0, len(groups), neighbours))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_dealt_groups_are_all_dealt_the_first_to_the_first_rank(size):
    work = [5.0, 1.0, 7.0, 0.0, 3.0, 3.0]
    dealt = dealt_groups(work, size)
    assert len(dealt) == size
    assert sorted(group for groups in dealt for group in groups) == list(range(6))
    assert dealt[0][0] == 0
    assert all(groups == sorted(groups) for groups in dealt)
    loads = [sum(work[group] for group in groups) for groups in dealt]
    assert max(loads) <= max(7.0, sum(work) / size + 3.0)


def test_dealt_groups_spread_those_that_cost_nothing():
    assert sorted(map(len, dealt_groups([0.0] * 6, 3))) == [2, 2, 2]
    assert dealt_groups([1.0, 0.0, 0.0, 1.0], 2) == [[0, 1], [2, 3]]


def test_groups_of_takes_every_tensor_along_its_samples():
    tokens_NL = torch.arange(30).view(6, 5)
    snapshot = Snapshot(
        step_N=torch.arange(6),
        canvas_NL=tokens_NL,
        guesses_ZNL=torch.stack([tokens_NL, -tokens_NL]),
        logp_ZNL=torch.zeros(2, 6, 5),
        confidence_ZNL=torch.zeros(2, 6, 5),
    )
    rollout = Rollout.fake(tokens_NL, prompt_length=2, group_size=2, mask_id=0, snapshots=(snapshot,))
    taken, rows = groups_of(rollout, [2, 0]), [4, 5, 0, 1]
    for field in fields(rollout):
        value = getattr(rollout, field.name)
        if torch.is_tensor(value):
            assert torch.equal(getattr(taken, field.name), value[rows]), field.name
    assert torch.equal(taken.snapshots[0].guesses_ZNL, snapshot.guesses_ZNL[:, rows])
    assert torch.equal(taken.snapshots[0].step_N, torch.tensor(rows))
    assert len(groups_of(rollout, []).tokens_NL) == len(groups_of(rollout, []).snapshots[0].step_N) == 0
