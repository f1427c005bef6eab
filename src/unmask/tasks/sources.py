"""Bases of the tasks whose examples come from files: the package's benchmarks, and the user's own rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from unmask.data.example import Example, check_split
from unmask.data.readers.tables import Row, Source, is_on_hub
from unmask.data.readers.user_rows import UserData
from unmask.data.readers.word_problems import ProblemFiles
from unmask.tasks.base import Task
from unmask.validation import check_range, setting


@dataclass(frozen=True, kw_only=True)
class FileTask(Task):
    """Base of tasks whose problems come from a test file and a training file of JSON lines."""

    data: str | None = setting(None, "path of the test file", names_data=True)
    train_data: str | None = setting(None, "path of the training file", names_data=True)
    few_shot: int = setting(0, "training problems that every prompt shows solved")

    def __post_init__(self) -> None:
        check_range("task.few_shot", self.few_shot, 0, 64)

    def examples(self, split: str, count: int, seed: int) -> list[Example]:
        """The first problems of a file. See Task.examples."""
        check_split(self, split)
        return self._files.examples(split, count)

    def check_named(self, split: str) -> None:
        """Raise UserError where no file is named that a split is read from; nothing is read."""
        self._files.check_named(split)

    @property
    @abstractmethod
    def _files(self) -> ProblemFiles: ...


def _data_in_file(task: RowsTask) -> str | None:
    return f"data is {_told(task.data)}" if task.data is not None and not is_on_hub(task.data) else None


def _test_data_in_file(task: RowsTask) -> str | None:
    if task.test_data is None:
        return "test_data is unset"
    return None if is_on_hub(task.test_data) else f"test_data is {_told(task.test_data)}"


def _told(source: Source) -> str:
    return f"{source!r}, a file" if isinstance(source, str) else "rows"


def _all_in_files(task: RowsTask) -> str | None:
    return _data_in_file(task) if _test_data_in_file(task) else None


@dataclass(frozen=True, kw_only=True)
class RowsTask(Task):
    """Base of tasks on the user's own rows, from a file or the Hugging Face Hub; in Python `data` may be the rows."""

    data: str | None = setting(
        None, "training rows: a .jsonl, .json, .csv or .parquet file, or org/name on the Hub", names_data=True
    )
    test_data: str | None = setting(
        None, "held-out rows, likewise; unset: a tenth of the data, chosen by prompt", names_data=True
    )
    hub_config: str | None = setting(
        None, "configuration of the Hub data set, where it has several", idle=_all_in_files
    )
    hub_split: str = setting("train", "split of the Hub data set that data names", idle=_data_in_file)
    hub_test_split: str = setting("test", "split of the Hub data set that test_data names", idle=_test_data_in_file)
    prompt_column: str = setting("prompt", "text, or a list of messages")
    max_new_tokens: int = setting(256, "completion length in tokens; given completions must fit")

    def __post_init__(self) -> None:
        check_range("task.max_new_tokens", self.max_new_tokens, 1, 1_000_000)

    def examples(self, split: str, count: int, seed: int) -> list[Example]:
        """The first rows of a split. See Task.examples."""
        check_split(self, split)
        return self._rows.examples(split, count)

    def check_named(self, split: str) -> None:
        """Raise UserError where no data is named that a split is read from; nothing is read."""
        self._rows.check_named(split)

    @cached_property
    def _rows(self) -> UserData:
        return UserData(
            data=self.data,
            test_data=self.test_data,
            hub_config=self.hub_config,
            hub_split=self.hub_split,
            hub_test_split=self.hub_test_split,
            read=self._read,
            few_shot=self._shots,
        )

    @property
    def _shots(self) -> int:
        """Training rows that every prompt shows solved."""
        return 0

    @abstractmethod
    def _read(self, row: Row) -> Example: ...


def check_named(task: Task, splits: Iterable[str]) -> None:
    """Raise UserError where a task of files names none that one of the splits is read from; nothing is read."""
    if isinstance(task, FileTask | RowsTask):
        for split in splits:
            task.check_named(split)
