"""What a rehearsed recipe must do, read from the files of its runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file

SPREAD = 0.2  # of the groups differ in reward


class Failed(Exception):
    """A recipe does not do what it must."""


def training_rows(run: Path) -> list[dict[str, Any]]:
    """Metrics of the training steps, without their seconds."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if "_seconds" not in key} for row in rows]


def check_updates(run: Path) -> dict[str, float]:
    """Loss and gradients are finite and not all zero, groups differ in reward; the figures."""
    rows = [row for row in training_rows(run) if "loss" in row]
    values = [value for row in rows for value in (row["loss"], row["grad_norm"])]
    if not all(map(math.isfinite, values)):
        raise Failed(f"loss or gradient is not finite: {values}")
    steepest = max(row["grad_norm"] for row in rows)
    if not steepest > 0:
        raise Failed("all gradients are zero")
    spread = 1 - sum(row["frac_reward_zero_std"] for row in rows) / len(rows)
    reward = sum(row["reward"] for row in rows) / len(rows)
    if spread < SPREAD:
        raise Failed(f"{spread:.0%} of the groups differ in reward (mean {reward:.2f})")
    return {"groups": spread, "reward": reward, "gradient": steepest}


def last_checkpoint(run: Path) -> Path:
    """The checkpoint with the most steps."""
    return max((run / "checkpoints").glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))


def check_moved(run: Path, stand_in: Path) -> None:
    """The trained weights are others than before: the adapters where there are some, else the model's own."""
    checkpoint = last_checkpoint(run)
    adapters = list(checkpoint.rglob("adapter*.safetensors"))
    if adapters:
        moved = any(bool(tensor.any()) for name, tensor in load_file(adapters[0]).items() if "lora_B" in name)
    else:
        before, after = load_file(stand_in / "model.safetensors"), load_file(checkpoint / "model.safetensors")
        moved = any(bool((before[name] != after[name]).any()) for name in after)
    if not moved:
        raise Failed("no weight has moved")


def check_layout(run: Path, stand_in: Path) -> None:
    """The checkpoint has config.json, names and shapes of the published layout."""
    checkpoint = last_checkpoint(run)
    ours, published = _shapes(checkpoint), _shapes(stand_in)
    if ours != published:
        other = sorted(set(ours.items()) ^ set(published.items()))[:3]
        raise Failed(f"tensors of the checkpoint are not those of the published layout: {other}")
    if _settings(checkpoint) != _settings(stand_in):
        raise Failed("config.json of the checkpoint is not the published one")


def _settings(directory: Path) -> dict[str, Any]:
    """Of config.json; the mask token is added where a published one names none."""
    settings: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return {key: value for key, value in settings.items() if key != "mask_token_id"}


def _shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(directory / "model.safetensors", "pt") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118


def check_resumed(whole: Path, killed: Path) -> None:
    """A run that was killed and resumed wrote the bytes of one that was not."""
    expected, found = _outcome(whole), _outcome(killed)
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if differing:
        raise Failed(f"resumed differently: {', '.join(differing[:3])} of {len(differing)} files")


def _outcome(run: Path) -> dict[str, object]:
    files = sorted(path for path in (run / "checkpoints").rglob("*") if path.is_file() and path.name != "state.json")
    state: dict[str, object] = {str(path.relative_to(run)): path.read_bytes() for path in files}
    names = ("completions.jsonl", "before.json", "after.json")
    return state | {"metrics.jsonl": training_rows(run)} | {name: (run / name).read_bytes() for name in names}


def gain(run: Path) -> tuple[float, float, float, float]:
    """Held-out rate as sampled in training: before, after, and the 95 % interval of the gain."""
    summary = json.loads((run / "summary.json").read_text())
    figures = next(value for name, value in summary.items() if name.startswith("sampled_"))
    before, after = figures["before"]["solved"], figures["after"]["solved"]
    return before, after, figures["gain_low"], figures["gain_high"]
