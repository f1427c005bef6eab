"""Settings of an unmask model in lm-evaluation-harness (`--model_args`). Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unmask.errors import UserError
from unmask.sampling.unmasking import RULES, Unmasking
from unmask.settings.commands import steps_unread
from unmask.settings.reader import chosen
from unmask.settings.recipe import MODEL_FORMAT_HELP, MODEL_HELP
from unmask.validation import LARGEST_SEED, one_of, setting

if TYPE_CHECKING:
    from unmask.sampling.sampler import Sampler


@dataclass(frozen=True, kw_only=True)
class HarnessSettings:
    """Settings of `--model unmask` in lm-evaluation-harness, given as `--model_args model=DIRECTORY,steps=/2`."""

    model: str = setting("", MODEL_HELP)
    model_format: str | None = setting(None, MODEL_FORMAT_HELP)
    dtype: str = setting("float32", "of the weights: float32 or bfloat16")
    max_new_tokens: int | None = setting(
        None, "tokens of a completion; unset: the task's max_gen_toks, else 256", low=1
    )
    block_length: int | None = setting(None, "tokens a block; unset: the model's own blocks, else one block", low=1)
    steps: str = setting(
        "/1", "denoising steps of a completion; /2 is one step for every two tokens", idle=steps_unread
    )
    temperature: float | None = setting(None, "sampling temperature, 0 is greedy; unset: the task's")
    unmasking: str = setting("low_confidence", "which positions a step reveals")
    guidance_scale: float = setting(0.0, "classifier-free guidance, of likelihoods too; 0 is none")
    masks: int = setting(
        128, "random masks of a continuation whose likelihood is asked; a short one's are enumerated", low=1
    )
    check_greedy: bool = setting(True, "tell whether greedy sampling writes the continuation: a forward a token")
    seed: int = setting(0, "of all draws", high=LARGEST_SEED)

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError(
                "model_args names no model: give model=DIRECTORY, as in --model_args model=DIRECTORY,steps=/2"
            )
        one_of("dtype", self.dtype, ("float32", "bfloat16"))
        _ = self.rule_classes  # refuses an unknown one
        if self.masks < 1:
            raise UserError(f"masks is {self.masks}: give a positive number such as 128")
        count = self.steps.removeprefix("/")
        if not count.isdigit() or int(count) == 0:
            raise UserError(f"steps is {self.steps!r}: give a number such as 64, or /2 for two tokens a step")

    @property
    def rule_classes(self) -> list[type[Unmasking]]:
        """The class of the unmasking rule. Raises UserError where it is unknown."""
        return [chosen(RULES, self.unmasking, "unmasking")]

    def sampler(self, length: int, temperature: float, model_block: int | None) -> Sampler:
        """The sampler of completions of `length` tokens. Raises UserError where the settings do not fit it."""
        from unmask.sampling.sampler import Sampler

        count = int(self.steps.removeprefix("/"))
        return Sampler(
            max_new_tokens=length,
            block_length=self.block_length or model_block or length,
            steps=max(1, length // count) if self.steps.startswith("/") else count,
            temperature=temperature,
            unmasking=self.rule_classes[0](),
            guidance_scale=self.guidance_scale,
        )
