"""What GPUs have of a training step: completions, dealt one by one to be sampled, and whole groups to be trained on.

As `training.dealing` deals them where each group is as much work as any other.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Shares:
    """The completions of a step, `prompts` groups of `group_size`, dealt over `ranks` GPUs.

    Shares(prompts=16, group_size=8, ranks=24)  # 8 GPUs sample six, 16 five; 16 train on a group, 8 on none
    """

    prompts: int
    group_size: int
    ranks: int

    @property
    def most(self) -> int:
        """Completions that the GPU with the most samples."""
        return -(-self.prompts * self.group_size // self.ranks)

    @property
    def fewest(self) -> int:
        """Completions that the GPU with the fewest samples: as many, or one less."""
        return self.prompts * self.group_size // self.ranks

    @property
    def with_more(self) -> int:
        """GPUs that sample one completion more than the fewest."""
        return self.prompts * self.group_size % self.ranks

    @property
    def groups(self) -> int:
        """Groups that the GPU with the most is trained on."""
        return -(-self.prompts // self.ranks)

    @property
    def idle(self) -> int:
        """GPUs without a group to train on."""
        return max(0, self.ranks - self.prompts)

    @property
    def alike(self) -> int:
        """Neighbouring completions of a GPU that begin alike, and so share the forward of their first step."""
        return self.group_size // self.ranks if self.group_size % self.ranks == 0 else 1
