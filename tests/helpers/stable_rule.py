"""A user's unmasking rule, as it stands in a file of theirs: it remembers what it proposed the step before."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from unmask.sampling.unmasking import Unmasking, masked_score, rank
from unmask.validation import setting


@dataclass(frozen=True, kw_only=True)
class Stable(Unmasking):
    """Commit proposals that are the same as in the step before, and at least the surest; steps need no schedule."""

    name: ClassVar[str] = "stable"
    adaptive: ClassVar[bool] = True
    scheduled: ClassVar[bool] = False

    def initial_state(self, samples, positions, device):
        return torch.full((samples, positions), -1, device=device)

    def __call__(self, observation):
        before_NC = observation.state.gather(1, observation.position_NC)
        stable_NC = observation.token_NC == before_NC
        surest_NC = rank(masked_score(observation.confidence_NC, observation.masked_NC)) == 0
        return observation.masked_NC & ~(stable_NC | surest_NC)

    def next_state(self, observation):
        before_NC = observation.state.gather(1, observation.position_NC)
        now_NC = torch.where(observation.masked_NC, observation.token_NC, before_NC)
        return observation.state.scatter(1, observation.position_NC, now_NC)


@dataclass(frozen=True, kw_only=True)
class StableFirst(Stable):
    """Commit the scheduled number: proposals that are the same as in the step before first, then the surest."""

    name: ClassVar[str] = "stable_first"
    adaptive: ClassVar[bool] = False
    scheduled: ClassVar[bool] = True
    bonus: float = setting(1.0, "added to the confidence of stable proposals")

    def __call__(self, observation):
        stable_NC = observation.token_NC == observation.state.gather(1, observation.position_NC)
        score_NC = observation.confidence_NC + self.bonus * stable_NC
        return observation.masked_NC & (rank(masked_score(score_NC, observation.masked_NC)) >= observation.count)
