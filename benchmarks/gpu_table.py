"""The figures of the GPU command as a page of Markdown."""

from __future__ import annotations

from typing import Any

_COLUMNS = {
    "seconds": "s",
    "tokens_per_s": "tokens/s",
    "TFLOP_per_s": "TFLOP/s",
    "utilisation": "of peak",
    "peak_GiB": "peak GiB",
    "planned_GiB": "planned GiB",
}


def markdown(setting: dict[str, Any], parts: dict[str, dict[str, Any]]) -> str:
    """Where it was measured, the checks, and a line for each part that has figures or has none and says why."""
    lines = [", ".join(f"{name} {value}" for name, value in setting.items()), ""]
    checks = parts.get("correctness", {}).get("checks", {})
    wrong = [name for name, holds in checks.items() if holds is not True]
    lines += [
        f"{len(checks) - len(wrong)} of {len(checks)} checks hold" + "".join(f"; NOT {name}" for name in wrong),
        "",
    ]
    lines += ["| part | " + " | ".join(_COLUMNS.values()) + " |", "|---|" + "---|" * len(_COLUMNS)]
    for name, part in parts.items():
        reason = part.get("failed") or part.get("skipped")
        if reason:
            lines.append(f"| {name} | {reason} |" + " |" * (len(_COLUMNS) - 1))
        elif "seconds" in part:
            lines.append(f"| {name} | " + " | ".join(str(part.get(key, "")) for key in _COLUMNS) + " |")
    return "\n".join(lines) + "\n"
