"""The sampler of completions: settings that a training run takes as they are, and a call of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unmask.errors import UserError
from unmask.settings.recipe import SamplerSettings

if TYPE_CHECKING:
    from unmask.api.batch import Batch, Prompts
    from unmask.api.model import Model
    from unmask.sampling.records import Record


@dataclass(frozen=True, kw_only=True)
class Sampler(SamplerSettings):
    """How completions are sampled: `max_new_tokens` masks after a prompt, filled block by block in `steps` steps.

    The same words as the command's `--rollout.` flags. `temperature` 0 is greedy.

        sampler = unmask.Sampler(max_new_tokens=64, block_length=32, steps=32, temperature=1.0)
        print(sampler.sample(model, ["What is 2 + 2?"], num_samples=4, seed=0).completions)
    """

    def sample(
        self,
        model: Model,
        prompts: Prompts,
        num_samples: int = 1,
        *,
        seed: int | tuple[int, int] = 0,
        record: Record | None = None,
        numbers: Sequence[int] | None = None,
    ) -> Batch:
        """`num_samples` completions of each prompt: texts, conversations, or rows with a "prompt" (see `examples_of`).

        `seed`: of all draws; in training (seed, step), so that no step repeats another's. `record`: what an objective
        wants remembered (`objective.record`). `numbers`: distinct numbers by which the prompts' draws are keyed, so
        that a prompt's completions do not depend on its neighbours; unset: 0, 1, 2 and so on.
        Raises UserError where settings, prompts and model do not go together.
        """
        from unmask.api.sampling import sampled

        if self.max_new_tokens is None:
            raise UserError("max_new_tokens is unset: say how many tokens a completion has")
        return sampled(self, model, prompts, num_samples, seed, record, numbers)
