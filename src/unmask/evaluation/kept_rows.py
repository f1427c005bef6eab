"""Rows of a table that are kept as they are finished, and found again by the same command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unmask.denoisers.loading import resolve
from unmask.errors import UserError
from unmask.report.durable import write_durably
from unmask.settings.commands import EvaluateSettings
from unmask.settings.inputs import input_digests
from unmask.settings.reader import document_of

_MODEL_FILES = ("*.safetensors", "*config.json", "tokenizer*", "*.jinja")


class KeptRows:
    """Rows of a table in a JSON file, whole after each of them; with None they are in memory alone.

    Until the table is done, .NAME.unfinished beside the file says what it is a table of: the same command goes on from
    its rows. A pipe, or what a link leads to, gets the whole table at the end.
    """

    def __init__(self, output: Path | None = None) -> None:
        self._output = output
        self._replaces = output is not None and not output.is_symlink() and (output.is_file() or not output.exists())
        self._of: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []

    @property
    def how_to_go_on(self) -> list[str]:
        """What to say when the command is interrupted now; nothing where no row is kept."""
        if not (self._replaces and self.rows):
            return []
        return [f"{_count(len(self.rows))} in {self._output}, from which the same command goes on"]

    def begin(self, of: dict[str, Any]) -> None:
        """Take up the rows of an unfinished table `of` the same (see `identity`), if there is one."""
        self._of = of
        if self._replaces and self._unfinished.is_file():
            try:
                found = json.loads(self._unfinished.read_text())
            except ValueError:
                raise UserError(f"{self._unfinished} is no unfinished table: delete it") from None
            if isinstance(found, dict) and found.get("of") == of:
                self.rows = found["rows"]

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row that is finished."""
        self.rows.append(row)
        if self._replaces:
            self._write()
            write_durably(self._unfinished, json.dumps({"of": self._of, "rows": self.rows}))

    def finish(self) -> list[dict[str, Any]]:
        """All rows, now that the table is done."""
        if self._output is not None:
            self._write()
        if self._replaces:
            self._unfinished.unlink(missing_ok=True)
        return self.rows

    def _write(self) -> None:
        assert self._output is not None  # noqa: S101
        text = json.dumps(self.rows, indent=1) + "\n"
        if self._replaces:
            write_durably(self._output, text)
        else:
            self._output.write_text(text)

    @property
    def _unfinished(self) -> Path:
        assert self._output is not None  # noqa: S101
        return self._output.with_name(f".{self._output.name}.unfinished")


def identity(settings: EvaluateSettings) -> dict[str, Any]:
    """What a table is of, as JSON reads it back: settings, digests of the user's files, the model's files."""
    model = resolve(settings.model)
    files = [path for pattern in _MODEL_FILES for path in model.glob(pattern)]
    found = {
        "settings": document_of(settings),
        "inputs": input_digests(settings),
        "model": {str(path.absolute()): [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(files)},
    }
    return dict(json.loads(json.dumps(found)))


def _count(rows: int) -> str:
    return "1 finished row is" if rows == 1 else f"{rows} finished rows are"
