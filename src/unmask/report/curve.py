"""The learning curve of a training run, drawn as a PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.report.durable import replace_durably

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RUNNING_MEAN_STEPS = 10
_MOST_POINTS = 2000  # of a line, twice as many as it has pixels
_LEGEND_COLUMNS = 3
_HEALTH = ("entropy", "frac_reward_zero_std")
_TRAINING_COLOR = "#c8c8c8"
_MEAN_COLOR = "#404040"
_EVALUATION_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_ENTROPY_COLOR = "#7a5195"
_EQUAL_GROUPS_COLOR = "#b8860b"


@dataclass(frozen=True, kw_only=True)
class _Label:
    """A figure written beside the first or the last evaluation of one kind."""

    step: float
    value: float
    color: str
    side: str


def draw_curve(metrics: Sequence[Mapping[str, Any]], path: Path, title: str, *, shared: bool = False) -> None:
    """Draw the training reward, evaluations, entropy and share of zero-spread groups as a PNG of 1000x700 pixels.

    `shared`: others may draw the same file at the same time.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    health = [name for name in _HEALTH if _points(metrics, name)]
    figure = Figure(figsize=(1000 / 120, 700 / 120), dpi=120)
    # Margins of our own: a layout that measures every label first takes twice as long, and a run draws often.
    figure.subplots_adjust(left=0.1, right=0.88 if health else 0.97, bottom=0.09, hspace=0.08)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    if health:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        _draw_health(lower, metrics)
        lower.set_xlabel("training step")
    else:
        upper = figure.subplots()
        upper.set_xlabel("training step")
    _draw_rewards(upper, metrics)
    legend_rows = math.ceil(len(upper.get_legend_handles_labels()[0]) / _LEGEND_COLUMNS)
    figure.subplots_adjust(top=0.92 - 0.034 * legend_rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_durably(path, FigureCanvasAgg(figure).print_png, shared=shared)


def is_drawn(name: str) -> bool:
    """Whether `draw_curve` reads the column of that name."""
    return name in {"step", "reward", *_HEALTH} or name.startswith("eval/")


def running_mean(values: Sequence[float], window: int = RUNNING_MEAN_STEPS) -> list[float]:
    """Mean of each value and those before it, over at most `window` values."""
    means = []
    for end in range(1, len(values) + 1):
        part = values[max(0, end - window) : end]
        means.append(sum(part) / len(part))
    return means


def spread(values: Sequence[float], gap: float) -> list[float]:
    """The values moved up as little as keeps at least `gap` between neighbours: labels that do not overlap."""
    spread_values = list(values)
    order = sorted(range(len(values)), key=values.__getitem__)
    for below, above in pairwise(order):
        spread_values[above] = max(spread_values[above], spread_values[below] + gap)
    return spread_values


def _points(metrics: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value) of every row that has a finite value of that name, in order of the steps."""
    return sorted(
        (row["step"], row[name])
        for row in metrics
        if isinstance(row.get(name), int | float) and math.isfinite(row[name]) and "step" in row
    )


def _draw_rewards(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    rewards = _points(metrics, "reward")
    if rewards:
        means = running_mean([value for _, value in rewards])
        smooth = [(step, mean) for (step, _), mean in zip(rewards, means, strict=True)]
        _draw_line(axes, rewards, _TRAINING_COLOR, width=0.8, label="training reward")
        _draw_line(axes, smooth, _MEAN_COLOR, width=1.6, label=f"mean of {RUNNING_MEAN_STEPS} steps")
    labels = _draw_evaluations(axes, metrics)
    _set_limits(axes, [step for step, _ in rewards] + [label.step for label in labels])
    shown = [value for _, value in rewards] + [label.value for label in labels]
    if shown and min(shown) >= 0 and max(shown) <= 1:
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.set_ylim(top=max(axes.get_ylim()[1], 0.02))
        axes.set_ylabel("solved")
    else:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        axes.set_ylabel("reward")
        axes.figure.subplots_adjust(left=0.13)  # -1.25e+04 is longer than 100 %
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _write_labels(axes, labels)
    _tidy(axes)
    if shown:
        # Above the panel, where no curve can run through it.
        axes.legend(ncols=_LEGEND_COLUMNS, loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=9)


def _draw_evaluations(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> list[_Label]:
    """Draw each evaluation's points with their intervals; return the figures for its two ends."""
    shown = ("/solved", "/preferred")
    keys = {key for row in metrics for key in row if key.startswith("eval/") and key.endswith(shown)}
    labels = []
    for key, color in zip(sorted(keys), cycle(_EVALUATION_COLORS), strict=False):
        points = _points(metrics, key)
        if not points:
            continue
        low, high = dict(_points(metrics, f"{key}_low")), dict(_points(metrics, f"{key}_high"))
        below = [max(0.0, value - low.get(step, value)) for step, value in points]
        above = [max(0.0, high.get(step, value) - value) for step, value in points]
        steps, values = zip(*points, strict=True)
        name = key.removeprefix("eval/").removesuffix("/solved").removesuffix("/preferred")
        bars = axes.errorbar(steps, values, yerr=(below, above), color=color, linewidth=1.2, capsize=3, zorder=3)
        bars.set_label(f"{name}, 95 % interval" if low else name)
        axes.plot(steps, values, "o", color=color, markersize=4.5, zorder=3)
        labels.append(_Label(step=steps[-1], value=values[-1], color=color, side="right"))
        if len(points) > 1:
            labels.append(_Label(step=steps[0], value=values[0], color=color, side="left"))
    return labels


def _set_limits(axes: Axes, steps: Sequence[float]) -> None:
    if steps:
        # The margin at either side is where the before and after figures stand.
        margin = 0.13 * max(max(steps) - min(steps), 1)
        axes.set_xlim(min(steps) - margin, max(steps) + margin)
    low, high = axes.get_ylim()
    axes.set_ylim(0 if low > -0.1 * (high - low) else low, high)


def _write_labels(axes: Axes, labels: Sequence[_Label]) -> None:
    low, high = axes.get_ylim()
    for side, offset_points, align in (("left", -7, "right"), ("right", 7, "left")):
        shown = [label for label in labels if label.side == side]
        heights = spread([label.value for label in shown], 0.055 * (high - low))
        axes.set_ylim(top=max([axes.get_ylim()[1], *heights]))
        for label, height in zip(shown, heights, strict=True):
            axes.annotate(
                f"{100 * label.value:.1f} %",
                (label.step, height),
                xytext=(offset_points, 0),
                textcoords="offset points",
                ha=align,
                va="center",
                color=label.color,
                fontsize=10,
                fontweight="bold",
            )


def _draw_health(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw the entropy against the left axis, the share of groups without spread against the right."""
    from matplotlib.ticker import PercentFormatter

    entropies, shares = (_points(metrics, name) for name in _HEALTH)
    if entropies:
        _draw_line(axes, entropies, _ENTROPY_COLOR, width=1.2)
        axes.set_ylabel("entropy", color=_ENTROPY_COLOR)
        axes.set_ylim(bottom=0)
    if shares:
        right = axes.twinx()
        _draw_line(right, shares, _EQUAL_GROUPS_COLOR, width=1.2)
        right.set_ylabel("groups of\nequal reward", color=_EQUAL_GROUPS_COLOR)
        right.set_ylim(0, 1.02)
        right.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        right.spines[["top", "left"]].set_visible(False)
    _tidy(axes)


def _draw_line(
    axes: Axes, points: Sequence[tuple[float, float]], color: str, width: float, label: str | None = None
) -> None:
    every = math.ceil(len(points) / _MOST_POINTS)
    steps, values = zip(*[*points[:-1:every], points[-1]], strict=True)
    # A line through a single point would not be seen.
    marker = "o" if len(points) == 1 else None
    axes.plot(steps, values, color=color, linewidth=width, marker=marker, label=label)


def _tidy(axes: Axes) -> None:
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
