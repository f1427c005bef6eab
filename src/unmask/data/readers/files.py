"""Readers of puzzle files. Every fault is a UserError that names the file and the line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from reprlib import repr as short_repr

from unmask.data.example import Example
from unmask.errors import UserError
from unmask.validation.user_files import refuse_special

_BEGINNING = 1 << 16  # bytes

RowReader = Callable[[Mapping[str, str]], Example]


def read_csv(path: str, names: tuple[str, ...], example: RowReader) -> list[Example]:
    """The examples of a comma-separated file whose first line is exactly `names`.

    `example` makes an example of a row and raises UserError for values that it cannot use.
    """
    header, *lines = read_lines(path)
    if header != ",".join(names):
        raise UserError(f"{path}, line 1: the header is {short_repr(header)}; write {','.join(names)}")
    if not lines:
        raise UserError(f"{path}: no puzzle below the header; add one per line")

    def row(line: str) -> dict[str, str]:
        try:
            (values,) = csv.reader([line])
        except csv.Error as error:
            raise UserError(f"not comma-separated values ({error}); mend or remove the line") from None
        if len(values) != len(names):
            raise UserError(f"{len(values)} values; write {len(names)}: {', '.join(names)}")
        return dict(zip(names, values, strict=True))

    return each_line(path, lines, 2, lambda line: example(row(line)))


def read_jsonl(path: str, names: tuple[str, ...], example: RowReader) -> list[Example]:
    """The examples of a file of JSON objects, one a line, each with exactly the keys `names` and text values.

    `example` makes an example of a row and raises UserError for values that it cannot use.
    """

    def row(line: str) -> dict[str, str]:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{short_repr(line)} is not JSON; mend or remove the line") from None
        if not isinstance(values, dict) or set(values) != set(names):
            raise UserError(f"wrong keys; write an object with {', '.join(names)}")
        for name, value in values.items():
            if not isinstance(value, str):
                raise UserError(f"{name} is {short_repr(value)}; write it as text in quotes")
        return values

    return each_line(path, read_lines(path), 1, lambda line: example(row(line)))


def read_lines(path: str) -> list[str]:
    """The lines of a text file. Raises UserError as `read_text` does."""
    return read_text(path).removesuffix("\n").split("\n")


def read_text(path: str) -> str:
    """The content of a non-empty UTF-8 file. Raises UserError where it cannot be read."""
    try:
        refuse_special(Path(path))
        # Spreadsheet tools put a byte-order mark first.
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _unreadable(path, error) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    if not text.strip():
        raise _empty(path)
    return text


def check_data_file(path: str) -> None:
    """Raise UserError for a file of data that cannot be opened or is empty. Nothing more is read."""
    try:
        refuse_special(Path(path))
        with Path(path).open("rb") as stream:
            beginning = stream.read(_BEGINNING)
    except OSError as error:
        raise _unreadable(path, error) from None
    if not beginning.strip():
        raise _empty(path)


def _unreadable(path: str, error: OSError) -> UserError:
    return UserError(f"cannot read {path} ({error.strerror}); give the path of a data file")


def _empty(path: str) -> UserError:
    return UserError(f"{path} is empty; give a file with rows")


def each_line(path: str, lines: list[str], first: int, parse: Callable[[str], Example]) -> list[Example]:
    """Examples that `parse` makes of lines numbered from `first`. Raises UserError with file and line."""
    examples = []
    for number, line in enumerate(lines, first):
        try:
            if not line.strip():
                raise UserError("the line is empty; remove it")
            examples.append(parse(line))
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
    return examples
