"""The Task protocol: examples to train and evaluate on, and a reward that checks a completion."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from unmask.data.example import Example
from unmask.errors import UserError

DRAWS_BEFORE_GIVING_UP = 10_000


class Task(Protocol):
    """What a model is trained and evaluated on: prompts with known answers, and a reward that checks a completion.

    A task is a frozen dataclass that subclasses Task; its fields are its settings. It must have `name`,
    `max_new_tokens`, `examples` and `rewards`; all else has a default:

        @dataclass(frozen=True, kw_only=True)
        class Doubling(Task):
            name: ClassVar[str] = "doubling"
            max_new_tokens: ClassVar[int] = 4
            largest: int = setting(99, "largest number in a prompt")

            def examples(self, split, count, seed):
                check_split(self, split)
                numbers = [n for n in range(1, self.largest + 1) if in_split(str(n), split)]
                return [Example(prompt=f"{n}+{n}=", solution=str(2 * n), columns={"answer": 2 * n}) for n in numbers]

            def rewards(self, prompts, completions, **columns):
                answers = column(columns, "answer", completions)
                return [float(text.strip() == str(answer)) for text, answer in zip(completions, answers)]

    Tasks of the package are listed in `unmask.tasks.TASKS`.
    """

    name: ClassVar[str]
    gives_pairs: ClassVar[bool] = False  # whether examples bring ranked completions, so that none are sampled

    @property
    @abstractmethod
    def max_new_tokens(self) -> int:
        """Completion length in tokens: every solution fits, and the end token where solutions vary in length."""

    @abstractmethod
    def examples(self, split: str, count: int, seed: int) -> list[Example]:
        """The first `count` examples of a split, deterministic in (split, seed) and prefix-stable in count.

        No prompt occurs in two splits, whatever the seeds. A split read from a file keeps the file's order, ignores
        the seed, and may have fewer than `count`. Raises UserError for an unknown split or an unusable file.
        """

    @abstractmethod
    def rewards(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """The reward of each completion (signature of TRL's reward functions): 1.0 right, 0.0 wrong.

        `columns`: the examples' columns, each a list as long as `completions`. Published rewards may have other
        values. Raises UserError where a column is missing.
        """

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits: "train", "test", then further held-out ones. Default: ("train", "test")."""
        return ("train", "test")

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Tokens that spell every prompt and solution, without special tokens; for models trained from scratch.

        Default: empty, for prose and models that bring a tokenizer.
        """
        return ()

    @property
    def verifies(self) -> bool:
        """Whether `rewards` can tell right from wrong; if not, it raises UserError and `metrics` is empty.

        Default: True.
        """
        return True

    def well_formed(self, completion: str) -> bool:
        """Whether a completion has the form of an answer, right or wrong: the share of these falls first in collapse.

        Default: whether it holds anything but white space.
        """
        return bool(completion.strip())

    def metrics(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> dict[str, list[float]]:
        """Evaluation metrics by name, a value from 0 to 1 per completion; "solved" is among them if the task verifies.

        Default: "solved", which is the reward.
        """
        return {"solved": self.rewards(prompts, completions, **columns)}


def first_accepted(draw: Callable[[], Example | None], task: Task, split: str, mend: str) -> Example:
    """The first example that `draw` does not reject with None.

    Raises UserError, which says to `mend` the settings, where 10,000 draws in a row are rejected.
    """
    for _ in range(DRAWS_BEFORE_GIVING_UP):
        example = draw()
        if example is not None:
            return example
    raise UserError(f"{task} found no puzzle for split {split!r}; {mend}")


def column(columns: Mapping[str, list[Any]], name: str, completions: list[str]) -> list[Any]:
    """One column of a reward call. Raises UserError if it is missing or not as long as `completions`."""
    if name not in columns:
        raise UserError(f"the reward needs the column {name!r}; add it to the data set")
    values = columns[name]
    if len(values) != len(completions):
        raise UserError(f"column {name!r} has {len(values)} values; give {len(completions)}, one per completion")
    return values
