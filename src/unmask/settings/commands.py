"""The settings of the commands beside training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from unmask.data.chat import ChatSettings
from unmask.errors import UserError
from unmask.sampling.unmasking import RULES, LowConfidence, Unmasking
from unmask.settings.reader import chosen
from unmask.settings.recipe import (
    CACHING_HELP,
    FOUR_BIT_HELP,
    LORA_ALPHA_HELP,
    LORA_RANK_HELP,
    MODEL_FORMAT_HELP,
    MODEL_HELP,
    MOST_THREADS,
    THREADS_HELP,
    Recipe,
    RolloutSettings,
)
from unmask.tasks import TASKS, Sudoku, Task
from unmask.validation import (
    LARGEST_SEED,
    check_four_bit_has_adapters,
    check_ranges,
    choice,
    one_of,
    section,
    setting,
    where,
)

if TYPE_CHECKING:
    from unmask.sampling.sampler import Sampler


def _model_given(settings: PretrainRecipe) -> str | None:
    return None if settings.model is None else f"model is {settings.model!r}, which has sizes of its own"


def _prompt_given(settings: SampleSettings) -> str | None:
    return None if settings.prompt is None else "prompt is given in its place"


class HasRules(Protocol):
    """Settings that name unmasking rules."""

    @property
    def rule_classes(self) -> list[type[Unmasking]]:
        """The classes of the rules. Raises UserError where one is unknown."""


def steps_unread(settings: HasRules) -> str | None:
    """For `setting(idle=)`: why no rule reads the number of steps; None where one does."""
    if any(rule.scheduled for rule in settings.rule_classes):
        return None
    return f"unmasking is {','.join(rule.name for rule in settings.rule_classes)}, which takes as many as it needs"


def _is_count(word: str) -> bool:
    return word.isdecimal() and len(word) < 8 and int(word) > 0


@dataclass(frozen=True, kw_only=True)
class PlanSettings(Recipe):
    """Settings of `unmask plan`: a recipe and the GPUs on which its memory and time are predicted."""

    gpus: str = setting("1x80GB", "number and memory of the GPUs")
    gpu: str = setting("a100", "its speed: a100, h100, h200, rtx4090, or peak TFLOP/s at the recipe's precision")
    node_gpus: int = setting(8, "GPUs of a machine", low=1)
    link: float | None = setting(
        None, "GB/s that a GPU sends within its machine; unset: 230 a100, 350 h100 and h200, else 20", above=0
    )
    network: float = setting(40.0, "GB/s that a GPU sends to other machines: a 400 Gb/s adapter for each", above=0)
    utilisation: float = setting(0.4, "share of the peak that is reached", above=0, high=1)
    headroom: float = setting(0.1, "share of the memory that stays free: CUDA's own, fragments", below=1)
    prompt_tokens: int | None = setting(
        None, "prompt length with pads; unset: 256, or what the model has room for", low=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    """Settings of `unmask pretrain`: supervised masked-diffusion training of a new small model or of a checkpoint."""

    model: str | None = setting(
        None, "checkpoint directory to start from; unset: a new model of the sizes below", names_files=True
    )
    model_format: str | None = setting(None, MODEL_FORMAT_HELP, names_files=True)
    task: Task = choice(TASKS, Sudoku, "prompts and solutions")
    chat: ChatSettings = section(ChatSettings)
    hidden: int = setting(96, "width of a new model", idle=_model_given, low=1)
    layers: int = setting(3, "transformer layers of a new model", idle=_model_given, low=1)
    heads: int = setting(3, "attention heads of a new model", idle=_model_given, low=1)
    max_length: int = setting(64, "tokens that a new model takes, prompt and completion", idle=_model_given, low=1)
    lora_rank: int = setting(0, LORA_RANK_HELP)
    lora_alpha: int = setting(64, LORA_ALPHA_HELP, idle=where("lora_rank", 0))
    four_bit: bool = setting(False, FOUR_BIT_HELP)
    max_steps: int = setting(800, "optimizer updates", was="steps", low=1)
    batch: int = setting(128, "examples an update", low=1)
    micro_batch: int = setting(0, "examples at a time in an update; 0: all")
    precision: str = setting("fp32", "fp32, or bf16 autocast")
    examples: int = setting(100_000, "training examples; more updates go round again", low=1)
    validation_examples: int = setting(
        0, "further ones, never trained on, by which the best weights are picked; 0: the last"
    )
    eval_steps: int = setting(
        100, "updates between validations", was="validate_every", idle=where("validation_examples", 0), low=1
    )
    save_steps: int = setting(
        100, "updates between checkpoints, which --resume goes on from", was="checkpoint_every", low=1
    )
    learning_rate: float = setting(1e-3, "peak, after the warm-up", above=0)
    warmup_steps: int = setting(50, "updates of linear warm-up")
    weight_decay: float = setting(0.01, "AdamW's")
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", high=1e12)
    threads: int | None = setting(None, THREADS_HELP, low=1, high=MOST_THREADS)
    seed: int = setting(0, "of weights, examples, order and masks", high=LARGEST_SEED)

    def __post_init__(self) -> None:
        check_ranges(self)
        one_of("precision", self.precision, ("fp32", "bf16"))
        if self.model_format is not None and self.model is None:
            raise UserError("model_format reads a checkpoint: give model, or leave model_format unset")
        if self.lora_rank and self.model is None:
            raise UserError("lora_rank adapts a checkpoint: give model, or set lora_rank to 0")
        check_four_bit_has_adapters("", self.four_bit, self.lora_rank)
        if self.model is None and self.hidden % (2 * self.heads):
            raise UserError(
                f"hidden {self.hidden} is not an even multiple of {self.heads} heads: give such as {64 * self.heads}"
            )

    def check_spelling(self) -> None:
        """Raise UserError where a new model is to learn a task that has no vocabulary of its own."""
        if self.model is None and not self.task.vocabulary:
            raise UserError(
                f"task {self.task.name} is prose, which no new small model can spell: give model, or another task"
            )


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Settings of `unmask sample`: one completion, shown step by step."""

    model: str = setting("embedded:sudoku", MODEL_HELP)
    model_format: str | None = setting(None, MODEL_FORMAT_HELP)
    task: Task = choice(TASKS, Sudoku, "whose items and reward")
    chat: ChatSettings = section(ChatSettings)
    prompt: str | None = setting(None, "text to complete; unset: a held-out item of the task")
    item: int = setting(0, "which held-out item of the task", idle=_prompt_given)
    steps: int = setting(4, "denoising steps", idle=steps_unread, low=1)
    block_length: int | None = setting(None, "tokens a block; unset: one block", low=1)
    temperature: float = setting(0.0, "sampling temperature; 0 is greedy")
    unmasking: Unmasking = choice(RULES, LowConfidence, "positions to reveal")
    seed: int = setting(0, "of the draws", high=LARGEST_SEED)

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def rule_classes(self) -> list[type[Unmasking]]:
        """The class of the unmasking rule."""
        return [type(self.unmasking)]

    @property
    def rollout(self) -> RolloutSettings:
        """The settings of the sampler."""
        return RolloutSettings(steps=self.steps, block_length=self.block_length, unmasking=self.unmasking)

    def check(self) -> None:
        """Raise UserError, without torch, where completion length, blocks and steps do not fit."""
        self.rollout.check_blocks(self.task, ("max_new_tokens", "--block-length", "--steps"))


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Settings of `unmask evaluate`: solve rates by unmasking rule, completion length and number of steps."""

    model: str = setting("embedded:sudoku", MODEL_HELP)
    model_format: str | None = setting(None, MODEL_FORMAT_HELP, names_files=True)
    task: Task = choice(TASKS, Sudoku, "whose held-out items")
    chat: ChatSettings = section(ChatSettings)
    split: str = setting("test", "which held-out items; 4x4 Sudoku has test_unseen_grids too")
    examples: int = setting(500, "items", low=1)
    unmasking: str = setting("low_confidence", "rules to compare, by commas", names_files=True)
    lengths: str = setting("", "tokens of a completion to compare, by commas, such as 128,256,512; empty: the task's")
    steps: str = setting(
        "4,16",
        "numbers of denoising steps to compare, by commas; /2 is one step for every two tokens",
        idle=steps_unread,
    )
    samples: int = setting(1, "completions an item; of several, pass@k is told", low=1)
    over_denoising: bool = setting(False, "tell how many items are right at some step and wrong at the end")
    precision: str = setting("fp32", "of the weights: fp32, or bf16")
    temperature: float = setting(0.0, "sampling temperature; 0 is greedy")
    block_length: int | None = setting(None, "tokens a block; unset: one block", low=1)
    caching: str = setting("none", CACHING_HELP)
    batch: int = setting(250, "completions at a time", low=1)
    threads: int | None = setting(None, THREADS_HELP, low=1, high=MOST_THREADS)
    seed: int = setting(1, "of the held-out items and their draws", high=LARGEST_SEED)

    def __post_init__(self) -> None:
        check_ranges(self)
        one_of("precision", self.precision, ("fp32", "bf16"))
        _ = self.rule_classes  # refuses unknown ones
        if not all(_is_count(word.removeprefix("/")) for word in self.steps.split(",")):
            raise UserError(
                f"steps is {self.steps!r}: give numbers of denoising steps with commas between, such as 4,16 or /2,/1"
            )
        if self.lengths and not all(map(_is_count, self.lengths.split(","))):
            raise UserError(f"lengths is {self.lengths!r}: give numbers of tokens with commas between, such as 128,256")
        if self.samples > 1 and self.temperature == 0:
            raise UserError(f"samples is {self.samples} and temperature 0 makes them all equal: raise temperature")

    @property
    def rules(self) -> list[str]:
        """The unmasking rules, each a name in RULES or FILE.py:NAME."""
        return self.unmasking.split(",")

    @property
    def rule_classes(self) -> list[type[Unmasking]]:
        """The classes of the rules. Raises UserError where one is unknown."""
        return [chosen(RULES, rule, "unmasking") for rule in self.rules]

    def samplers(self) -> list[tuple[str, Sampler]]:
        """Rule and sampler of every row of the table: rules x lengths x numbers of steps.

        A rule that takes as many steps as it needs has one row a length. Raises UserError where they do not fit
        together.
        """
        return [
            (rule, rollout.sampler(self.task, temperature=self.temperature)) for rule, _, rollout in self._rollouts()
        ]

    def check(self) -> None:
        """Raise UserError, without torch, where nothing can be measured, or lengths, blocks and steps do not fit."""
        if not self.task.verifies:
            self.task.rewards([], [])  # raises what the task says of it, with its mend
            raise UserError(f"task {self.task.name} compares no answers: give one that does")
        for length in self._lengths:
            if self.block_length is not None and length % self.block_length:
                shown = f"--lengths {length}" if self.lengths else f"completion length {length} of the task"
                more = self.block_length * (length // self.block_length + 1)
                raise UserError(
                    f"{shown} is no multiple of --block-length {self.block_length}: give --lengths such as {more}, or "
                    "another --block-length"
                )
        for _, word, rollout in self._rollouts():
            shown = f"--steps {word}:" if word.startswith("/") else "--steps"
            rollout.check_blocks(self.task, ("--lengths", "--block-length", shown))

    @property
    def _lengths(self) -> list[int]:
        return [int(word) for word in self.lengths.split(",")] if self.lengths else [self.task.max_new_tokens]

    def _rollouts(self) -> Iterator[tuple[str, str, RolloutSettings]]:
        """Rule, number of steps as it is written, and settings of each row."""
        words = self.steps.split(",")
        for name, rule in zip(self.rules, self.rule_classes, strict=True):
            for length in self._lengths:
                for word in words if rule.scheduled else words[:1]:
                    count = length // int(word[1:]) if word.startswith("/") else int(word)
                    rollout = RolloutSettings(
                        steps=max(1, count),
                        max_new_tokens=length,
                        block_length=self.block_length,
                        unmasking=rule(),
                        caching=self.caching,
                    )
                    yield name, word, rollout


@dataclass(frozen=True, kw_only=True)
class OracleSettings:
    """Settings of `unmask oracle`: the enumerable toy on which gradients of methods are compared with the exact one."""

    groups: int = setting(6000, "groups of completions for each method and sampler", low=1)
    num_generations: int = setting(6, "completions a group", was="group_size")
    masks: int = setting(2000, "random masks for each completion in the table of likelihood estimates", low=1)
    scale: float = setting(1.0, "of the toy's logits: larger is surer", above=0)
    seed: int = setting(0, "of the toy", high=LARGEST_SEED)
    threads: int | None = setting(None, THREADS_HELP, low=1, high=MOST_THREADS)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.num_generations < 2:
            raise UserError(
                f"num_generations is {self.num_generations}: advantage compares completions of one prompt, give 2 or "
                "more"
            )
