"""The settings of a training run and of the commands beside it."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from unmask.data.chat import ChatSettings
from unmask.errors import UserError
from unmask.methods import METHODS, DiSPO
from unmask.sampling.caching import CACHINGS
from unmask.sampling.schedules import SCHEDULES, check_blocks
from unmask.sampling.unmasking import RULES, LowConfidence, Unmasking
from unmask.settings.trackers import TRACKERS, tracker_names
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
    from unmask.methods.base import Method
    from unmask.sampling.sampler import Sampler

# Help texts of settings that several commands have.
MODEL_HELP = "checkpoint directory, org/name on the Hub, or embedded:NAME"
MODEL_FORMAT_HELP = (
    "checkpoint format of your own: FILE.py:NAME or MODULE:NAME of a function that returns it; "
    "unset: recognised by config.json"
)
CACHING_HELP = "exact; or keys and values kept within a block: prefix, dual, prefix_delayed, dual_delayed"
LORA_RANK_HELP = "rank of low-rank adapters, which alone are trained then; 0: all weights are"
LORA_ALPHA_HELP = "scale of the adapters, times their rank"
FOUR_BIT_HELP = "hold the frozen base in 4 bits (with lora_rank, on a GPU; the extra four-bit)"
THREADS_HELP = "CPU threads; unset: PyTorch's choice"

MOST_THREADS = 1024  # with many more the process dies


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How completions are sampled: the fields of `Sampler`, unset ones from the task."""

    max_new_tokens: int | None = setting(
        None, "completion length in tokens; unset: the task's", also="max_completion_length", low=1
    )
    block_length: int | None = setting(None, "tokens a block; unset: one block", low=1)
    steps: int = setting(4, "denoising steps a completion", low=1)
    temperature: float = setting(1.0, "sampling temperature; 0 is greedy")
    guidance_scale: float = setting(0.0, "classifier-free guidance; 0 is none")
    stop_at_end: bool = setting(True, "a sample is done with the block that holds its end-of-sequence token")
    schedule: str = setting("uniform", "tokens revealed a step: uniform, linear, cosine, square or dream")
    unmasking: Unmasking = choice(RULES, LowConfidence, "positions to reveal")
    batch: int = setting(0, "completions at a time; where some have ended, others begin; 0: all")
    caching: str = setting("none", CACHING_HELP)

    def __post_init__(self) -> None:
        check_ranges(self, "rollout.")
        one_of("rollout.schedule", self.schedule, tuple(SCHEDULES))
        one_of("rollout.caching", self.caching, tuple(CACHINGS))

    def sampler(self, task: Task, *, steps: int | None = None, temperature: float | None = None) -> Sampler:
        """The sampler of these settings for a task; `steps` and `temperature` take the place of the settings'.

        Raises UserError where they do not fit together.
        """
        return self.sampler_of(task.max_new_tokens, steps=steps, temperature=temperature)

    def sampler_of(self, length: int, *, steps: int | None = None, temperature: float | None = None) -> Sampler:
        """As `sampler`, of completions with so many tokens where these settings name no number."""
        from unmask.sampling.sampler import Sampler

        length, block_length = self._lengths(length)
        return Sampler(
            max_new_tokens=length,
            block_length=block_length,
            steps=steps or self.steps,
            temperature=self.temperature if temperature is None else temperature,
            unmasking=self.unmasking,
            schedule=SCHEDULES[self.schedule],
            guidance_scale=self.guidance_scale,
            stop_at_end=self.stop_at_end,
            batch=self.batch,
            caching=CACHINGS[self.caching],
        )

    def check_blocks(self, task: Task, called: tuple[str, str, str], steps: int | None = None) -> None:
        """As `check_blocks` of the schedules, without torch; `steps` takes the place of the settings'."""
        count = (steps or self.steps) if self.unmasking.scheduled else None
        check_blocks(*self._lengths(task.max_new_tokens), count, called)

    def _lengths(self, of_task: int) -> tuple[int, int]:
        """Tokens of a completion, and of a block."""
        length = self.max_new_tokens or of_task
        return length, self.block_length or length


@dataclass(frozen=True, kw_only=True)
class RolloutSettings(SamplerSettings):
    """How the completions of a training step are sampled, and how many: `prompts` groups of `num_generations`."""

    prompts: int = setting(16, "prompts a training step, over all ranks", low=1)
    num_generations: int = setting(8, "completions a prompt", was="group_size")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_generations < 2:
            raise UserError(
                f"rollout.num_generations is {self.num_generations}: advantage compares completions of one prompt, "
                "give 2 or more"
            )


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """The reward: the weighted sum of reward functions, each found by its spec."""

    funcs: str = setting(
        "task",
        "by commas: task (its own), FILE.py:NAME, MODULE:NAME, reward_model:DIR, judge:FILE.toml",
        was="functions",
        names_files=True,
    )
    weights: str | None = setting(None, "of the functions in the reward, by commas; unset: all 1")
    batch: int = setting(16, "completions at a time in a reward model", low=1)
    # Ranks that wait for this one give up after two hours.
    timeout_seconds: float = setting(540.0, "that a call of a function may take, then it has failed; 0: no limit")
    retries: int = setting(0, "further tries of a call that failed, after 1, 2, 4, ... seconds", high=10)
    on_fault: str = setting("stop", "after them: stop the run, or none, which leaves the function out of those sums")

    def __post_init__(self) -> None:
        check_ranges(self, "reward.")
        one_of("reward.on_fault", self.on_fault, ("stop", "none"))
        specs = self.specs
        if not all(specs) or len(set(specs)) < len(specs):
            raise UserError(f"reward.funcs is {self.funcs!r}: give different functions with commas between")
        if len(self.function_weights) != len(specs):
            raise UserError(
                f"reward.weights {self.weights!r} are {len(self.function_weights)}, "
                f"reward.funcs {self.funcs!r} are {len(specs)}: give one weight for each function"
            )
        if self.on_fault == "none" and len(specs) == 1:
            raise UserError(
                f"reward.on_fault none would leave completions without a reward where {self.funcs!r} fails: "
                "add another function, or set it to stop"
            )

    @property
    def specs(self) -> list[str]:
        """Spec of each reward function: where it is found."""
        return [word.strip() for word in self.funcs.split(",")]

    @property
    def function_weights(self) -> list[float]:
        """Weight of each reward function. Raises UserError for what is not a finite number."""
        if self.weights is None:
            return [1.0] * len(self.specs)
        try:
            weights = [float(word) for word in self.weights.split(",")]
        except ValueError:
            weights = []
        if not weights or not all(map(isfinite, weights)):
            raise UserError(f"reward.weights is {self.weights!r}: give numbers with commas between, such as 1,0.2")
        return weights


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How the policy is updated: optimizer, precision, adapters, reference, evaluation and checkpoint intervals."""

    max_steps: int = setting(
        300, "training steps, one batch of rollouts each; the learning rate decays over them", was="steps", low=1
    )
    num_iterations: int = setting(1, "optimizer updates a batch of rollouts (mu)", was="updates", low=1)
    learning_rate: float = setting(1e-4, "peak, after the warm-up", above=0)
    warmup_steps: int = setting(20, "training steps of linear warm-up")
    final_fraction: float = setting(1.0, "of the peak rate, reached linearly at the last step; 1 is constant", high=1)
    adam_beta1: float = setting(0.9, "AdamW's first decay", below=1)
    adam_beta2: float = setting(0.99, "AdamW's second decay", below=1)
    weight_decay: float = setting(0.0, "AdamW's")
    max_grad_norm: float = setting(0.5, "gradients are clipped to this norm", high=1e12, above=0)
    micro_batch: int = setting(0, "forwards at a time in an update; 0: all")
    precision: str = setting("fp32", "fp32, or bf16 autocast")
    param_dtype: str = setting(
        "fp32", "how weights are held: fp32, or bf16 for those that adapters leave frozen", was="weights"
    )
    torch_compile: bool = setting(
        False,
        "kernels of the layers made by torch.compile (it needs a C++ compiler, or a GPU and Triton)",
        was="compile",
    )
    gradient_checkpointing: bool = setting(False, "keep less for the backward pass, recompute it there")
    lora_rank: int = setting(0, LORA_RANK_HELP)
    lora_alpha: int = setting(64, LORA_ALPHA_HELP, idle=where("lora_rank", 0))
    four_bit: bool = setting(False, FOUR_BIT_HELP)
    ref_model_sync_steps: int = setting(
        0, "training steps between mixes of the policy into the reference; 0: it stays", was="reference_sync_steps"
    )
    ref_model_mixup_alpha: float = setting(
        0.6,
        "share of the policy in such a mix",
        was="reference_mixup",
        high=1,
        idle=where("ref_model_sync_steps", 0),
    )
    threads: int | None = setting(None, THREADS_HELP, low=1, high=MOST_THREADS)
    shard: str = setting(
        "auto", "ranks that hold the weights together; 0: each holds all; auto: more only where all do not fit one GPU"
    )
    nodes_replicate: bool = setting(
        True,
        "where auto shards, each node holds the weights once; false: all nodes together",
        idle=lambda settings: None if settings.shard == "auto" else f"shard is {settings.shard}",
    )
    seed: int = setting(0, "of every random draw", high=LARGEST_SEED)
    examples: int = setting(20_000, "training prompts", low=1)
    over_denoising_filter: bool = setting(False, "keep prompts right at some greedy step and wrong at the end (MDPO)")
    shuffle_rewards: bool = setting(False, "control: rewards are permuted over the batch")
    eval_steps: int = setting(50, "training steps between evaluations", was="evaluate_every", low=1)
    save_steps: int = setting(50, "training steps between checkpoints", was="checkpoint_every", low=1)
    save_total_limit: int = setting(2, "newest checkpoints kept", was="keep_checkpoints", low=1)

    def __post_init__(self) -> None:
        check_ranges(self, "train.")
        one_of("train.precision", self.precision, ("fp32", "bf16"))
        one_of("train.param_dtype", self.param_dtype, ("fp32", "bf16"))
        if self.param_dtype == "bf16" and not self.lora_rank:
            raise UserError(
                'train.param_dtype is "bf16", which loses small updates: train adapters (train.lora_rank 128) or hold '
                'weights in "fp32"'
            )
        if self.lora_rank and self.ref_model_sync_steps:
            raise UserError(
                "train.ref_model_sync_steps moves the reference, and with train.lora_rank it is the base model: "
                "set one of them to 0"
            )
        check_four_bit_has_adapters("train.", self.four_bit, self.lora_rank)
        if self.shard != "auto" and not (self.shard.isdecimal() and len(self.shard) < 8):
            raise UserError(f"train.shard is {self.shard!r}: give a number of ranks, 0 or auto")
        if self.lora_rank and self.shard_size:
            raise UserError(
                f"train.shard {self.shard} shards what is trained, and with train.lora_rank that is small: set it to 0"
            )

    @property
    def shard_size(self) -> int:
        """Ranks that hold the weights together as far as the settings alone say, 0: each holds all."""
        return 0 if self.shard == "auto" else int(self.shard)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a training step, counted from 0: linear warm-up to the peak, then linear decay.

        rate(s) = peak min(1, (s + 1) / warmup) (1 - (1 - final_fraction) max(0, s + 1 - warmup) / (max_steps - warmup))

        A run that decays has its warm-up in the steps before the last, so that the decay ends where it should; a run of
        one step does not decay.
        """
        decays = self.final_fraction < 1 and self.max_steps > 1
        warmup = min(self.warmup_steps, self.max_steps - 1) if decays else self.warmup_steps
        warm_up = min(1.0, (step + 1) / max(1, warmup))
        if not decays:
            return self.learning_rate * warm_up
        after = max(0, step + 1 - warmup) / (self.max_steps - warmup)
        return self.learning_rate * warm_up * (1 - (1 - self.final_fraction) * after)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How a policy is evaluated on held-out prompts before, during and after training."""

    examples: int = setting(2000, "held-out prompts before and after training", low=1)
    examples_during: int = setting(500, "of them, during training", low=1)
    greedy_steps: int = setting(16, "denoising steps of the slow greedy figure", low=1)
    batch: int = setting(250, "completions at a time", low=1)
    seed: int = setting(1, "of the held-out prompts and their draws", high=LARGEST_SEED)

    def __post_init__(self) -> None:
        check_ranges(self, "evaluation.")


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """What a run records for its page (`unmask report`): groups of completions, step by step, and what trains them."""

    every: int = setting(5, "training steps between recorded ones", idle=where("prompts", 0), low=1)
    prompts: int = setting(1, "groups that a recorded step keeps, the first of it; 0: nothing is recorded")

    def __post_init__(self) -> None:
        check_ranges(self, "report.")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a training run; with the same recipe a run gives the same tokens and weights.

    Raises UserError where a method needs another unmasking rule than the rollout's.
    """

    model: str = setting("embedded:sudoku", MODEL_HELP, names_files=True)
    model_format: str | None = setting(None, MODEL_FORMAT_HELP, names_files=True)
    task: Task = choice(TASKS, Sudoku, "prompts and their reward")
    method: Method = choice(METHODS, DiSPO, "objective")
    chat: ChatSettings = section(ChatSettings)
    rollout: RolloutSettings = section(RolloutSettings)
    reward: RewardSettings = section(RewardSettings)
    train: TrainSettings = section(TrainSettings)
    evaluation: EvaluationSettings = section(EvaluationSettings)
    track: str = setting("", f"trackers that are told of the run, by commas: {', '.join(TRACKERS)}")
    report: ReportSettings = section(ReportSettings)

    def __post_init__(self) -> None:
        tracker_names(self.track)
        if self.report.prompts > self.rollout.prompts:
            raise UserError(
                f"report.prompts is {self.report.prompts}, and a step has rollout.prompts {self.rollout.prompts}: give "
                "as many at most"
            )
        wanted = self.method.unmasking or self.rollout.unmasking.name
        if self.rollout.unmasking.name != wanted:
            raise UserError(
                f"method {self.method.name} scores the distribution of {wanted} sampling, "
                f"not of {self.rollout.unmasking.name}: give --rollout.unmasking {wanted}"
            )
        if self.train.over_denoising_filter and not self.task.verifies:
            raise UserError(
                f"train.over_denoising_filter asks which completions are right, and task {self.task.name} compares no "
                "answers: set it to false, or give a task that does"
            )

    def check_blocks(self) -> None:
        """Raise UserError where completion length, blocks and numbers of steps do not go together."""
        called = ("max_new_tokens", "rollout.block_length")
        self.rollout.check_blocks(self.task, (*called, "rollout.steps"))
        self.rollout.check_blocks(self.task, (*called, "evaluation.greedy_steps"), self.evaluation.greedy_steps)
