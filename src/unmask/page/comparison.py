"""What compares runs: how their recipes differ, which are seeds of one another, and gains paired by example."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from unmask.evaluation.statistics import paired_interval, solved_summary

_OF_A_SEED = ("train.seed",)
_UNCOMPARED = ("train.threads", "report.every", "report.prompts", "train.save_total_limit", "train.save_steps")


def comparison(runs: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, list[float]]]) -> dict[str, Any]:
    """Of runs as `run_of` gives them, and their held-out results by name: groups, differences, rates and gains."""
    settings = [{row["path"]: row["value"] for row in run["settings"]} for run in runs]
    return {
        "groups": _groups(runs, settings),
        "differences": _differences(settings),
        "rates": _rates(held_out),
        "gains": _gains(held_out),
    }


def _differences(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Settings that are not the same in all runs: their values, None where a run has no such setting."""
    paths = dict.fromkeys(path for values in settings for path in values)
    rows = [{"path": path, "values": [values.get(path) for values in settings]} for path in paths]
    return [row for row in rows if any(value != row["values"][0] for value in row["values"])]


def _groups(runs: Sequence[Mapping[str, Any]], settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Runs that differ in their seed alone, together: a curve with a band."""
    groups: dict[str, list[int]] = {}
    for number, values in enumerate(settings):
        left_out = (*_OF_A_SEED, *_UNCOMPARED)
        key = json.dumps({path: value for path, value in values.items() if path not in left_out}, sort_keys=True)
        groups.setdefault(key, []).append(number)
    names = [_name(runs, numbers) for numbers in groups.values()]
    return [  # of one method with other settings, by the first run's own name
        {"runs": numbers, "name": name if names.count(name) == 1 else f"{name} ({runs[numbers[0]]['name']})"}
        for numbers, name in zip(groups.values(), names, strict=True)
    ]


def _name(runs: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> str:
    first = runs[numbers[0]]
    return (
        f"{first['method']}, {len(numbers)} seeds" if len(numbers) > 1 else f"{first['method']}, seed {first['seed']}"
    )


def _rates(held_out: Sequence[Mapping[str, list[float]]]) -> list[dict[str, Any]]:
    """The rate of each run after training, with its 95 % interval, by name of the figure."""
    names = dict.fromkeys(name for results in held_out for name in results)
    return [
        {"name": name, "runs": [solved_summary(results[name]) if name in results else None for results in held_out]}
        for name in names
    ]


def _gains(held_out: Sequence[Mapping[str, list[float]]]) -> list[dict[str, Any]]:
    """What each run solves more than the first, paired by example, where both were asked as many examples."""
    first, *others = held_out
    return [
        {"name": name, "runs": [_gain(first[name], other.get(name)) for other in others]}
        for name in first
        if any(name in other for other in others)
    ]


def _gain(before: list[float], after: list[float] | None) -> dict[str, float] | None:
    if after is None or len(before) != len(after):
        return None
    gain, low, high = paired_interval(before, after)
    return {"gain": gain, "low": low, "high": high}
