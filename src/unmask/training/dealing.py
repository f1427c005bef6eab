"""Who does what: completions dealt over ranks one by one to be sampled, whole groups by their work to be trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from unmask.distributed import World
from unmask.types import Prompts, Rollout


@dataclass(frozen=True, kw_only=True)
class Dealing:
    """The completions of a step, `groups` groups of `group_size`, dealt over the ranks one by one to be sampled.

    Groups that end early are then spread over all ranks. Draws are keyed by sample, so tokens are those of one process.
    """

    world: World
    groups: int
    group_size: int

    @property
    def rows(self) -> list[int]:
        """The completions that this rank samples."""
        return list(range(self.groups * self.group_size))[self.world.rank :: self.world.size]

    @property
    def neighbours(self) -> int:
        """How many of this rank's neighbouring completions are always of one group."""
        return self.group_size // self.world.size if self.group_size % self.world.size == 0 else 1

    def prompts(self, whole: Prompts) -> Prompts:
        """This rank's rows of the prompts of all completions."""
        return whole if self.world.size == 1 else _mapped(whole, lambda tensor, place: _taken(tensor, place, self.rows))

    def gathered(self, value: Tensor, place: int = 0) -> Tensor:
        """What each rank knows of the completions that it sampled, along dimension `place`: of all, in their order."""
        size, total = self.world.size, self.groups * self.group_size
        if size == 1:
            return value
        rows = value.movedim(place, 0)
        each = -(-total // size)
        padded = torch.cat([rows, rows[:1].expand(each - len(rows), *rows.shape[1:])])
        of_ranks = self.world.gather(padded).view(size, each, *rows.shape[1:])
        whole: Tensor = of_ranks.transpose(0, 1).flatten(0, 1)[:total].movedim(0, place)
        return whole

    def of_groups(self, sampled: Rollout, groups: Sequence[int]) -> Rollout:
        """The rollout of whole groups, of what all ranks have sampled; every rank asks for its own at the same time."""
        if self.world.size == 1:
            return sampled
        rows = rows_of_groups(groups, self.group_size)
        known = self.world.everyone([sampled.steps, sampled.exact])
        # Tensor by tensor, so that of each only one is there whole.
        rollout: Rollout = _mapped(sampled, lambda tensor, place: _taken(self.gathered(tensor, place), place, rows))
        return replace(
            rollout,
            group_size=self.group_size,
            steps=max(steps for steps, _ in known),
            exact=all(exact for _, exact in known),
        )


def groups_of(rollout: Rollout, groups: Sequence[int]) -> Rollout:
    """A rollout of some of its groups alone, maybe of none."""
    rows = rows_of_groups(groups, rollout.group_size)
    taken: Rollout = _mapped(rollout, lambda tensor, place: _taken(tensor, place, rows))
    return taken


def rows_of_groups(groups: Sequence[int], group_size: int) -> list[int]:
    """The rows of whole groups."""
    return [group * group_size + sample for group in groups for sample in range(group_size)]


def _mapped(rows: Any, function: Callable[[Tensor, int], Tensor]) -> Any:
    """Prompts, a rollout or a snapshot with each tensor's function of it and of the place of its dimension N."""
    changes: dict[str, Any] = {}
    for field in fields(rows):
        value, letters = getattr(rows, field.name), field.name.rpartition("_")[2]
        if isinstance(value, Tensor):
            changes[field.name] = function(value, letters.index("N"))
        elif field.name == "snapshots":
            changes[field.name] = tuple(_mapped(snapshot, function) for snapshot in value)
    return replace(rows, **changes)


def _taken(tensor: Tensor, place: int, rows: Sequence[int]) -> Tensor:
    return tensor.index_select(place, torch.tensor(rows, dtype=torch.long, device=tensor.device))


def dealt_groups(work_P: Sequence[float], ranks: int) -> list[list[int]]:
    """Groups of each rank, in order: the heaviest first, each to the rank with least work so far.

    The first group is the first rank's, which shows it. A rank may have none.

        dealt_groups([1, 4, 2, 2], 2)     # [[0, 2, 3], [1]]
    """
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    work = [0.0] * ranks
    for group in sorted(range(len(work_P)), key=lambda group: -work_P[group]):
        rank = min(range(ranks), key=lambda rank: (work[rank], len(dealt[rank])))
        dealt[rank].append(group)
        work[rank] += work_P[group]
    return sorted((sorted(groups) for groups in dealt), key=lambda groups: 0 not in groups)
