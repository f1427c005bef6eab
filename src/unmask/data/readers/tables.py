"""Reading the user's tables: JSON lines, JSON, CSV and Parquet files, and Hub data sets, as rows with their places."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any

from unmask.data.readers.files import read_lines, read_text
from unmask.errors import UserError
from unmask.validation.user_files import user_path

Row = dict[str, Any]
Placed = tuple[str, Row]  # "line 3", the row there
Source = str | Iterable[Mapping[str, Any]]  # a file, org/name on the Hub, or the rows themselves

_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
_INSTALL = "run pip install 'unmask[data]'"


def is_on_hub(source: Source) -> bool:
    """Whether `read_table` takes this for the name of a data set on the Hub, not for a file or for rows."""
    if not isinstance(source, str):
        return False
    path = user_path(source)
    return path.suffix.lower() not in _READERS and not path.exists() and bool(_HUB_NAME.fullmatch(source))


def shown(source: Source) -> str:
    """What errors call it, as one thing: its own name, or that it was given as rows."""
    return source if isinstance(source, str) else "the data given"


def read_table(source: Source, config: str | None, split: str) -> list[Placed]:
    """(place, row) of each row of a file, of rows, or of a `split` of a Hub data set, in order; missing values are
    None.

    `place` ("line 3") is for error messages. Raises UserError for what cannot be read, with file, line and mend.
    """
    if not isinstance(source, str):
        return _filled(source, [(f"row {number}", dict(row)) for number, row in enumerate(source, 1)])
    reader = _READERS.get(Path(source).suffix.lower())
    if reader is None and not is_on_hub(source):
        raise UserError(
            f"task.data is {source!r}: give a file that ends in {', '.join(_READERS)}, or org/name on the Hub"
        )
    return _filled(source, list(reader(source) if reader is not None else _hub(source, config, split)))


def _filled(source: Source, placed: list[Placed]) -> list[Placed]:
    """The rows with all columns that any has."""
    if not placed:
        raise UserError(f"{shown(source)} has no rows: add one per prompt")
    columns = dict.fromkeys(name for _, row in placed for name in row)
    return [(place, {name: row.get(name) for name in columns}) for place, row in placed]


def _json_lines(path: str) -> Iterable[Placed]:
    for number, line in enumerate(read_lines(path), 1):
        place = f"line {number}"
        if not line.strip():
            raise UserError(f"{path}, {place}: the line is empty; remove it")
        yield place, _json_row(path, place, _parsed(line, f"{path}, {place}"))


def _json(path: str) -> Iterable[Placed]:
    rows = _parsed(read_text(path), path)
    if not isinstance(rows, list):
        raise UserError(f"{path} is no list; write a list of objects, or one object a line and call it .jsonl")
    for number, row in enumerate(rows, 1):
        yield f"row {number}", _json_row(path, f"row {number}", row)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        # Of a whole file, the parser's line and column help; of one line, the line itself.
        detail = str(error) if "\n" in text else short_repr(text)
        raise UserError(f"{where}: not JSON ({detail}); mend or remove it") from None


def _json_row(path: str, place: str, row: Any) -> Row:
    if not isinstance(row, dict):
        raise UserError(f"{path}, {place}: {short_repr(row)} is no object; write {{COLUMN: VALUE, ...}}")
    return row


def _csv(path: str) -> Iterable[Placed]:
    reader = csv.reader(io.StringIO(read_text(path)), strict=True)
    try:
        header = next(reader)
        if len(set(header)) < len(header):
            raise UserError(f"{path}, line 1: the header {short_repr(header)} names a column twice; rename one")
        for values in reader:
            place = f"line {reader.line_num}"
            if len(values) != len(header):
                raise UserError(f"{path}, {place}: {len(values)} values; write {len(header)}, as in the header")
            yield place, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; mend or remove the line") from None


def _parquet(path: str) -> Iterable[Placed]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table as read_parquet
    except ImportError:
        raise UserError(f"reading {path} needs pyarrow: {_INSTALL}") from None
    try:
        rows = read_parquet(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise UserError(f"cannot read {path} ({error}): give the path of a Parquet file") from None
    return _numbered(rows)


def _hub(name: str, config: str | None, split: str) -> Iterable[Placed]:
    """Files of data alone are read: the library runs no code of data sets."""
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise UserError(f"loading {name!r} from the Hub needs the datasets library: {_INSTALL}") from None
    try:
        return _numbered(load_dataset(name, config, split=split))
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(
            f"cannot load {name!r}, split {split!r}, from the Hub ({' '.join(str(error).split())}): check name, "
            "task.hub_config, task.hub_split and network, or give a file"
        ) from None


def _numbered(rows: Iterable[Row]) -> Iterable[Placed]:
    return [(f"row {number}", row) for number, row in enumerate(rows, 1)]


_READERS: dict[str, Callable[[str], Iterable[Placed]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
