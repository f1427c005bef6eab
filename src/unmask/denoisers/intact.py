"""Whether the files of a checkpoint are whole, without reading their tensors: one line names the file and the mend."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from unmask.errors import UserError

_LFS = b"version https://git-lfs"
_HEADER_LIMIT = 100_000_000  # bytes; safetensors refuses longer headers too


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError where it is missing, cut, or anything else."""
    try:
        content = path.read_bytes()
        found = json.loads(content.decode())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): restore the file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(_lfs_pointer(path, content) or f"{path} is not JSON ({error}): restore the file") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object: restore the file")
    return found


def check_tensors(path: Path) -> None:
    """Raise UserError unless the safetensors file is there and as long as its header says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(8)
            (length,) = struct.unpack("<Q", start.ljust(8, b"\0"))
            header = json.loads(stream.read(length)) if 2 <= length <= min(size, _HEADER_LIMIT) else None
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"] if header else []
        whole = header is not None and size == 8 + length + max(ends, default=0)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): restore the file") from None
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        whole = False
    if not whole:
        pointer = _lfs_pointer(path, start)
        raise UserError(pointer or f"{path} is damaged ({size:,} bytes, not what its header says): copy it again")


def check_weights(directory: Path) -> None:
    """Raise UserError where a weights file of a model's directory is damaged, or a shard of its index is missing."""
    shards: set[str] = set()
    for index in sorted(directory.glob("*.safetensors.index.json")):
        shards |= set(map(str, read_json(index).get("weight_map", {}).values()))
    for name in sorted(shards | {path.name for path in directory.glob("model*.safetensors")}):
        check_tensors(directory / name)


def _lfs_pointer(path: Path, content: bytes) -> str | None:
    if content.startswith(_LFS[: max(8, len(content))]):
        return f"{path} is a Git LFS pointer, not the file itself: run git lfs pull there"
    return None
