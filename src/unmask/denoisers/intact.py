"""Whether the files of a checkpoint are whole, without reading their tensors: one line names the file and the mend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from unmask.errors import UserError
from unmask.validation.user_files import refuse_special

_LFS = b"version https://git-lfs"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError where it is missing, cut, or anything else."""
    content = _content(path)
    try:
        found = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): restore the file") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object: restore the file")
    return found


def check_text(path: Path) -> None:
    """Raise UserError unless the file is there and holds text."""
    content = _content(path)
    try:
        content.decode()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: restore the file") from None


def _content(path: Path) -> bytes:
    try:
        refuse_special(path)
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): restore the file") from None
    _refuse_lfs_pointer(path, content)
    return content


def check_tensors(path: Path) -> None:
    """Raise UserError unless the safetensors file is there and as long as its header says."""
    try:
        refuse_special(path)
        size = path.stat().st_size
        with path.open("rb") as stream:
            _refuse_lfs_pointer(path, stream.read(len(_LFS)))
        with safe_open(path, framework="numpy"):
            pass
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): restore the file") from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({size:,} bytes; {error}): copy it again") from None


def check_model_files(directory: Path) -> None:
    """Raise UserError where settings, an index or weights of a model are damaged, or a shard of an index is missing."""
    for name in ("config.json", "generation_config.json"):
        if (directory / name).exists():
            read_json(directory / name)
    for path in tensor_files(directory):
        check_tensors(path)


def tensor_files(directory: Path) -> list[Path]:
    """The files of a model's tensors, there or not: by name, and those that an index names. Raises UserError."""
    shards = {path.name for path in directory.glob("model*.safetensors")}
    for index in sorted(directory.glob("*.safetensors.index.json")):
        shards |= _shards(index)
    return [directory / name for name in sorted(shards)]


def _shards(index: Path) -> set[str]:
    """The files that an index of tensors names."""
    names = read_json(index).get("weight_map")
    if not names or not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{index} has no weight_map from tensors to files: restore the file")
    for name in names.values():
        if name in ("", "..") or Path(name).name != name:
            raise UserError(f"{index} names the file {name!r}, which lies outside its directory: restore the file")
    return set(names.values())


def _refuse_lfs_pointer(path: Path, content: bytes) -> None:
    if content.startswith(_LFS[: max(8, len(content))]):
        raise UserError(f"{path} is a Git LFS pointer, not the file itself: run git lfs pull there")
