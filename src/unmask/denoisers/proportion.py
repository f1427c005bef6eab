"""Whether a config.json describes about as many weights as the files hold, before memory is taken for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from unmask.denoisers.intact import tensor_files
from unmask.errors import UserError

_REPEATED = re.compile(r"^(num|n)_(.*_)?(layers|experts|blocks)$")  # settings that say how often a part is built
_MOST_TIMES = 4  # tied weights are described twice, packed ones stored as half
_SPARE = 1_000_000  # weights


def check_proportion(directory: Path, config: Any, network: Callable[[Any], nn.Module]) -> None:
    """Raise UserError where the `network` of a config has several times the weights that the directory's files hold.

    Else a wrong number in config.json takes all memory before the misfit is seen.
    """
    shapes = [shape for path in tensor_files(directory) for shape in _shapes(path)]
    if not shapes:
        return  # the loader says what is missing
    most = max(len(shapes), *(size for shape in shapes for size in shape))
    for key, value in _integers(config.to_dict()):
        if _REPEATED.search(key) and value > most:
            raise UserError(
                f"{directory / 'config.json'} has {key} = {value}, and no file there has as many tensors or rows: do "
                "its config.json and *.safetensors belong together?"
            )
    with torch.device("meta"):
        described = sum(weight.numel() for weight in network(deepcopy(config)).parameters())
    stored = sum(map(prod, shapes))
    if described > _MOST_TIMES * stored + _SPARE:
        raise UserError(
            f"{directory / 'config.json'} describes {described:,} weights, and the files there hold {stored:,}: do its "
            "config.json and *.safetensors belong together?"
        )


def _shapes(path: Path) -> list[list[int]]:
    with safe_open(path, framework="numpy") as tensors:
        return [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118 - it is no mapping


def _integers(table: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Names and values of the integers in nested tables."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _integers(value)
        elif isinstance(value, int):
            yield str(key), value
