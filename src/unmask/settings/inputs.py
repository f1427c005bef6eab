"""The user's files that settings name: made absolute, and their digests, so that a run goes on with the same ones."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any, TypeVar

from unmask.data.readers.files import check_data_file
from unmask.data.readers.tables import is_on_hub
from unmask.errors import UserError
from unmask.settings.reader import Document, document_of
from unmask.validation.user_files import user_path
from unmask.validation.user_modules import files_of, module_of

Settings = TypeVar("Settings")

_LOG = logging.getLogger("unmask")
_ABSOLUTE = re.compile(r"(^|[,:]) */(?:[^/,:]*/)*(?=[^/,:])")  # the directories of an absolute path within specs


def with_absolute_paths(settings: Settings) -> Settings:
    """The settings with the files and directories that they name (`setting(names_files=True)`) as absolute paths."""
    changes = {}
    for name, value, names_files in _values(settings):
        changed = _absolute(value) if names_files else with_absolute_paths(value)
        if changed != value:
            changes[name] = changed
    return replace(settings, **changes) if changes else settings  # type: ignore[type-var]


def shareable_document(settings: Any) -> Document:
    """The table of the settings, to be shown to others: of files and directories that they name, the names alone."""
    document = document_of(settings)
    for field in fields(settings):
        value, within = getattr(settings, field.name), document.get(field.name)
        if {"choices", "section"} & set(field.metadata):
            document[field.name] = shareable_document(value)
            if isinstance(within, dict) and "choices" in field.metadata:
                document[field.name] = {"name": without_directories(within["name"]), **document[field.name]}
        elif field.metadata.get("names_files") and isinstance(within, str):
            document[field.name] = without_directories(within)
    return document


def without_directories(text: str) -> str:
    """A path, or specs with commas between (FILE.py:NAME, reward_model:DIR), without the directories above each."""
    return _ABSOLUTE.sub(r"\1", text).rstrip("/")


def check_data(settings: Any) -> None:
    """Raise UserError for a file of data (`setting(names_data=True)`) that is missing or empty; no more is read."""
    for field in fields(settings) if is_dataclass(settings) else ():
        source = getattr(settings, field.name)
        if field.metadata.get("names_data") and isinstance(source, str) and not is_on_hub(source):
            check_data_file(source)


def input_digests(settings: Any) -> dict[str, str]:
    """BLAKE2 digest of each file that the settings name, and of the user's imported Python files, by absolute path."""
    return {str(path): _digest(path) for path in sorted(_files(settings))}


def tell_changed_inputs(before: Mapping[str, str]) -> None:
    """Log a warning for each file that is no longer what it was; `before`: digests from `input_digests`."""
    for path, digest in before.items():
        if not Path(path).is_file():
            _LOG.warning("unmask: %s is gone since the run began: restore it", path)
        elif _digest(Path(path)) != digest:
            _LOG.warning("unmask: %s has changed since the run began: what follows is of the new file", path)


def _values(settings: Any) -> Iterator[tuple[str, Any, bool]]:
    """Name and value of each nested settings object and of each text that names files, and which of the two it is."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.metadata.get("names_files") and isinstance(value, str):
            yield field.name, value, True
        elif {"choices", "section"} & set(field.metadata) and is_dataclass(value):
            yield field.name, value, False


def _absolute(text: str) -> str:
    """A path, or specs with commas between (FILE.py:NAME, judge:FILE.toml, reward_model:DIR), with absolute paths."""
    if _exists(text):
        return str(user_path(text).absolute())
    words = [_absolute_spec(word.strip()) for word in text.split(",")]
    return ",".join(words) if all("," not in word for word in words) else text


def _absolute_spec(spec: str) -> str:
    before, colon, after = spec.partition(":")
    if before and colon and _exists(after):
        return f"{before}:{user_path(after).absolute()}"
    before, colon, after = spec.rpartition(":")
    return f"{user_path(before).absolute()}:{after}" if after and _exists(before) else spec


def _files(settings: Any) -> set[Path]:
    """The files that settings name, those of the classes chosen in them, and their imported neighbours."""
    found: set[Path] = set()
    for _, value, names_files in _values(settings):
        found |= set(_named_files(value)) if names_files else _files(value) | set(_source(type(value).__module__))
    return {path.absolute() for path in found if path.is_file()}


def _named_files(text: str) -> Iterator[Path]:
    """The files that a text names: a path, or specs with commas between."""
    for word in (text, *text.split(",")):
        place = word.rpartition(":")[0].strip()
        for part in (word.strip(), word.partition(":")[2].strip(), place):
            if _exists(part):
                yield user_path(part)
        yield from _source(module_of(user_path(place)) if place.endswith(".py") else place)


def _source(module: str) -> list[Path]:
    """The files of a module, where it is the user's."""
    return [] if module.partition(".")[0] == "unmask" else files_of(module)


def _exists(text: str) -> bool:
    """Whether a text, which may be anything, names a file that is there."""
    with suppress(UserError):
        return bool(text) and user_path(text).exists()
    return False


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return file_digest(stream, lambda: blake2b(digest_size=16)).hexdigest()
