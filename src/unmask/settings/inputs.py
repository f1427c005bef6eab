"""The user's files that settings name: made absolute, and their digests, so that a run goes on with the same ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from unmask.data.readers.files import check_data_file
from unmask.data.readers.tables import is_on_hub

Settings = TypeVar("Settings")

_LOG = logging.getLogger("unmask")
_CHUNK = 1 << 20


def with_absolute_paths(settings: Settings) -> Settings:
    """The settings with the files and directories that they name (`setting(names_files=True)`) as absolute paths."""
    changes = {}
    for name, value, names_files in _values(settings):
        changed = _absolute(value) if names_files else with_absolute_paths(value)
        if changed != value:
            changes[name] = changed
    return replace(settings, **changes) if changes else settings  # type: ignore[type-var]


def check_data(settings: Any) -> None:
    """Raise UserError for a file of data (`setting(names_data=True)`) that is missing or empty; no more is read."""
    for field in fields(settings):
        source = getattr(settings, field.name)
        if field.metadata.get("names_data") and source is not None and not is_on_hub(source):
            check_data_file(source)


def input_digests(settings: Any) -> dict[str, str]:
    """BLAKE2 digest of each file that the settings name, by its absolute path."""
    found: dict[str, str] = {}
    for _, value, names_files in _values(settings):
        if names_files:
            found |= {str(path): _digest(path) for path in _files(value)}
        else:
            found |= input_digests(value)
    return found


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
        return str(_path(text).absolute())
    words = [_absolute_spec(word.strip()) for word in text.split(",")]
    return ",".join(words) if all("," not in word for word in words) else text


def _absolute_spec(spec: str) -> str:
    before, colon, after = spec.partition(":")
    if before and colon and _exists(after):
        return f"{before}:{_path(after).absolute()}"
    before, colon, after = spec.rpartition(":")
    return f"{_path(before).absolute()}:{after}" if after and _exists(before) else spec


def _files(text: str) -> Iterator[Path]:
    """The files that a text made by `_absolute` names."""
    for word in (text, *text.split(",")):
        for part in (word, word.partition(":")[2], word.rpartition(":")[0]):
            if _exists(part) and _path(part).is_file():
                yield _path(part)


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _exists(text: str) -> bool:
    return bool(text) and _path(text).exists()


def _digest(path: Path) -> str:
    digest = blake2b(digest_size=16)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
