"""The record of a run: files in RUN/record/, one a recorded step or evaluation, from which its page is made.

A file holds groups of completions of a prompt as safetensors: arrays, and texts as JSON. Nothing is pickled. Dimensions
of the arrays, beside those of `unmask.types`: W scored tokens of all rows one after another, B bytes of C packed bits
(little end first), V the group's own vocabulary, by which tokens are numbered here.

    token_NC, revealed_at_NC, logp_NC, confidence_NC    as in a Rollout, of completion columns
    length_N, reward_N                                  tokens through the first that ends it; reward
    token_id_V                                          id of each token of the vocabulary, for the tokenizer
    step_SN, canvas_SNC, guess_SZNC, guess_reward_NE    snapshots, with guesses and E = S·Z rewards of these
    guess_confidence_SZNC                               probability of the guessed token, 255 for 1
    row_sample_R, row_term_R, row_advantage_R           rows of the first update, those without gradient left out
    row_prompt_masks_R, row_masked_RB, row_scored_RB    prompt tokens masked in the row's input; masks; what is scored
    row_weight_W, row_target_W                          weight and target of each scored token
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from unmask.denoisers.directories import partial
from unmask.errors import UserError
from unmask.report.durable import replace_durably, writing

FOLDER = "record"
_NAME = re.compile(r"(step|evaluation)_([0-9]{6,})\.safetensors")

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Completions of one prompt, as they are recorded: texts and small facts in `about`, numbers in `arrays`."""

    about: dict[str, Any]
    arrays: Arrays


def write_groups(path: Path, groups: Sequence[Group]) -> None:
    """Write the groups of a step or evaluation, whole or not at all. Raises DiskError where that cannot be."""
    with writing(path):
        path.parent.mkdir(exist_ok=True)  # where the run's own directory is gone, nobody would look for a record
    content = to_bytes(groups)
    replace_durably(path, lambda temporary: temporary.write_bytes(content))


def to_bytes(groups: Sequence[Group]) -> bytes:
    """Groups as the bytes of a file: the same groups give the same bytes."""
    arrays = {
        f"{place}/{name}": np.ascontiguousarray(array)
        for place, group in enumerate(groups)
        for name, array in group.arrays.items()
    }
    # One entry: the library keeps no order of several.
    content: bytes = save(arrays, {"groups": json.dumps([group.about for group in groups])})
    return content


def read_groups(path: Path) -> list[Group]:
    """The groups of a file. Raises UserError where it is damaged."""
    try:
        with safe_open(path, framework="numpy") as opened:
            found = opened.metadata()["groups"]
            named = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (it is no dict)
        return _groups(json.loads(found), named)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it, and the page goes without that step") from error


def from_bytes(content: bytes) -> list[Group]:
    """What `to_bytes` made."""
    header_bytes = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_bytes])
    return _groups(json.loads(header["__metadata__"]["groups"]), load(content))


def _groups(abouts: list[dict[str, Any]], named: Arrays) -> list[Group]:
    arrays: list[Arrays] = [{} for _ in abouts]
    for key, array in named.items():
        place, _, name = key.partition("/")
        arrays[int(place)][name] = array
    return [Group(about=about, arrays=own) for about, own in zip(abouts, arrays, strict=True)]


def record_path(run: Path, kind: str, step: int) -> Path:
    """Where the groups of a "step", or of an "evaluation" after it, lie."""
    return run / FOLDER / f"{kind}_{step:06d}.safetensors"


def recorded(run: Path, kind: str) -> dict[int, Path]:
    """Files of a run's recorded steps, or evaluations, by their steps, in order."""
    found = {step: path for path in (run / FOLDER).glob(f"{kind}_*") if (step := _step_of(path)) is not None}
    return dict(sorted(found.items()))


def cut_record(run: Path, step: int) -> None:
    """Delete what was recorded after a step, and what a kill left half written: a run that goes on records it again."""
    for kind in ("step", "evaluation"):
        for later, path in recorded(run, kind).items():
            if later > step:
                path.unlink()
        for path in (run / FOLDER).glob(partial(Path(f"{kind}_*.safetensors")).name):
            path.unlink()


def _step_of(path: Path) -> int | None:
    named = _NAME.fullmatch(path.name)
    return int(named[2]) if named else None
