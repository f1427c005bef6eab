"""The two pictures of `scaling.py`, drawn from its numbers: the roofline, and how cost grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

_STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
_COLOURS = {"ours": "#1f6f8b", "ours, one forward for the group": "#2a9d55", "plain": "#b0563b"}
_MARKERS = {"layer": "s", "attention": "^", "head product": "o", "head gradient": "D", "softmax": "v"}
_KINDS = {
    "layer": "#1f6f8b",
    "attention": "#2a9d55",
    "head product": "#b0563b",
    "head gradient": "#7a4fa3",
    "softmax": "#8a7a2e",
}
_MEANING = {
    "layer": "layer (rows × tokens)",
    "attention": "attention (rows × tokens)",
    "head product": "head product (positions)",
    "head gradient": "head gradient (128 positions)",
    "softmax": "softmax (positions)",
}


def draw(data: dict[str, Any], output: Path) -> None:
    """Both, as PNG files in the directory."""
    with pyplot.rc_context(_STYLE):
        _roofline(data, output / "roofline.png")
        _scaling(data["sweeps"], output / "scaling.png")


# ---- roofline ----


def _roofline(data: dict[str, Any], path: Path) -> None:
    peak, bandwidth = data["machine"]["peak"] / 1e9, data["machine"]["bandwidth"] / 1e9
    figure, axes = pyplot.subplots(figsize=(9, 5.6))
    reach = [0.3, peak / bandwidth, 1500]
    axes.plot(reach, [min(peak, bandwidth * x) for x in reach], color="#333333", linewidth=1.6)
    axes.text(1400, peak * 1.06, f"peak of large products, {peak:.0f} GFLOP/s", ha="right", va="bottom")
    axes.text(0.34, bandwidth * 0.75, f"copy of a\nlarge tensor,\n{bandwidth:.0f} GB/s", ha="left", va="bottom")
    for kind, colour in _KINDS.items():
        points = [each for each in data["operations"] if each["kind"] == kind]
        x = [each["flops"] / each["bytes"] for each in points]
        y = [each["flops"] / each["seconds"] / 1e9 for each in points]
        axes.scatter(x, y, color=colour, marker=_MARKERS[kind], s=42, label=_MEANING[kind], zorder=3)
        for each, *spot in zip(points, x, y, strict=True):
            label = each["label"].removesuffix(" tokens").removesuffix(" positions").removeprefix("of ")
            left = kind == "head product" or label == "the weight"
            offset, align = ((-7, -3), "right") if left else ((7, -4), "left")
            axes.annotate(label, spot, offset, textcoords="offset points", ha=align, fontsize=9, color=colour)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs a byte that must be read or written", ylabel="GFLOP/s")
    axes.set(xlim=(0.3, 1500), ylim=(3, 200))
    _plain_ticks(axes, [0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], [5, 10, 20, 50, 100, 200])
    axes.legend(loc="lower right")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_title("Our operations below the machine's two ceilings (one core, float32)", loc="left")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


# ---- how cost grows ----


def _scaling(sweeps: list[dict[str, Any]], path: Path) -> None:
    figure, grid = pyplot.subplots(2, 4, figsize=(14, 7))
    rollouts = [sweep for sweep in sweeps if sweep["work"] == "rollout"]
    updates = [sweep for sweep in sweeps if sweep["work"] == "update"]
    for axes, sweep in zip(grid[0], rollouts, strict=False):
        _panel(axes, sweep)
    for axes, sweep in zip(grid[1], updates, strict=False):
        _panel(axes, sweep)
    for axes in grid[:, 0]:
        axes.set_ylabel("CPU seconds")
    handles = {line.get_label(): line for axes in grid.flat for line in axes.get_lines() if line.get_label()[0] != "_"}
    grid[1, 3].axis("off")
    grid[1, 3].legend(handles.values(), handles.keys(), loc="center left", fontsize=10)
    grid[1, 3].text(0.02, 0.24, "Numbers: fitted exponents.\nDotted: proportional to the size.", fontsize=10)
    figure.tight_layout(h_pad=2.0)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _panel(axes: Axes, sweep: dict[str, Any]) -> None:
    lowest = min(min(line["seconds"]) for line in sweep["lines"])
    highest = max(max(line["seconds"]) for line in sweep["lines"])
    for line in sweep["lines"]:
        sizes, seconds, colour = line["sizes"], line["seconds"], _COLOURS[line["side"]]
        axes.plot(sizes, seconds, "o-", color=colour, label=line["side"], markersize=4.5, linewidth=1.6)
    _label_ends(axes, sweep, highest / lowest * 2.4)
    sizes = sweep["lines"][0]["sizes"]
    start = sweep["lines"][0]["seconds"][0]
    axes.plot(sizes, [start * size / sizes[0] for size in sizes], ":", color="#888888", linewidth=1.1, label="_")
    axes.set(xscale="log", yscale="log", xlabel=sweep["size"])
    axes.set_xlim(sizes[0] / 1.25, sizes[-1] * (sizes[-1] / sizes[0]) ** 0.22)
    axes.set_ylim(lowest / 1.5, highest * 1.6)
    _plain_ticks(axes, sizes, [digit * 10.0**power for power in range(-3, 3) for digit in (1, 1.5, 2, 3, 5, 7)])
    axes.set_title(f"{sweep['work']}: {sweep['size']}", loc="left", fontsize=11)
    axes.grid(color="#e4e4e4", linewidth=0.6)


def _label_ends(axes: Axes, sweep: dict[str, Any], decades: float) -> None:
    """The exponent behind the last point of each line; points at the same place have their labels apart."""
    apart, before = decades**0.06, 0.0
    for line in sorted(sweep["lines"], key=lambda line: (line["sizes"][-1], line["seconds"][-1])):
        x, y = line["sizes"][-1], line["seconds"][-1]
        before = max(y, before * apart)
        grad_logp, colour = sweep["exponents"][line["side"]][0], _COLOURS[line["side"]]
        axes.annotate(
            f"{grad_logp:.2f}", (x, before), (6, 0), textcoords="offset points", va="center", color=colour, fontsize=10
        )


def _plain_ticks(axes: Axes, x: list[float], y: list[float]) -> None:
    """Ticks at round numbers, written as they are said."""
    for axis, places in ((axes.xaxis, x), (axes.yaxis, y)):
        axis.set_major_locator(FixedLocator(places))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda value, _: f"{value:,.6g}")
