from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from unmask.report.curve import draw_curve, running_mean, spread


def _run(steps: int = 60) -> list[dict[str, Any]]:
    noise = random.Random(0)
    rows: list[dict[str, Any]] = []
    for step in range(steps + 1):
        solved = 0.1 + 0.5 * step / steps
        if step % 20 == 0:
            for name in ("sampled_4", "greedy_4"):
                interval = {"_low": solved - 0.05, "_high": solved + 0.05}
                row = {f"eval/{name}/solved{end}": value for end, value in interval.items()}
                rows.append({"step": step, f"eval/{name}/solved": solved, **row})
        if step:
            reward = solved + noise.gauss(0, 0.04)
            rows.append({"step": step, "reward": reward, "entropy": 1 / step, "frac_reward_zero_std": 0.3})
    return rows


def _share_of(pixels: np.ndarray, color: tuple[int, int, int]) -> float:
    return float((np.abs(pixels[..., :3] - np.array(color) / 255) < 0.02).all(axis=-1).mean())


def test_draw_curve_shows_rewards_and_each_evaluation_in_its_color(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    draw_curve(_run(), tmp_path / "new" / "curve.png", "Sudoku")
    pixels = imread(tmp_path / "new" / "curve.png")
    assert pixels.shape[:2] == pytest.approx((700, 1000), abs=2)
    for color in (
        (0x00, 0x72, 0xB2),
        (0xD5, 0x5E, 0x00),
        (0x40, 0x40, 0x40),
        (0x7A, 0x51, 0x95),
        (0xB8, 0x86, 0x0B),
    ):
        assert _share_of(pixels, color) > 2e-4
    assert _share_of(pixels, (255, 255, 255)) > 0.8
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 1, "reward": 0.5}],
        [{"step": 0, "eval/a/solved": 0.25}],
        [{"step": 1, "reward": None, "entropy": None}, {"step": 2, "reward": math.nan, "entropy": 0.1}],
        [{"step": 1, "reward": -2.0, "frac_reward_zero_std": 1.0}, {"step": 0, "eval/a/solved": 0.0}],
        [{"step": 0, "eval/a/solved": 0.5, "eval/a/solved_low": None}, {"step": 9, "eval/a/solved": None}],
        [{"step": step, "reward": 0.0} for step in (1, 2)],
    ],
)
def test_draw_curve_of_sparse_metrics_gives_a_picture(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    draw_curve(rows, tmp_path / "curve.png", "Sudoku")
    assert imread(tmp_path / "curve.png").shape[:2] == pytest.approx((700, 1000), abs=2)


def test_draw_curve_of_a_long_run_draws_no_more_points_than_can_be_seen(tmp_path: Path, monkeypatch) -> None:
    drawn, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda axes, *words, **more: drawn.append(words) or plot(axes, *words, **more))
    draw_curve([{"step": step, "reward": step % 3} for step in range(1, 50_001)], tmp_path / "curve.png", "Sudoku")
    assert [(steps[0], steps[-1]) for steps, _ in drawn] == [(1, 50_000)] * 2
    assert all(1900 < len(steps) < 2100 for steps, _ in drawn)


@pytest.mark.parametrize("factor", [-12345.678, 1e-7, 0.99])
@pytest.mark.parametrize("evaluations", [0, 1, 10])
def test_draw_curve_cuts_nothing_off(tmp_path: Path, factor: float, evaluations: int) -> None:
    rows = [
        {"step": step, "reward": factor * step / 30, "entropy": 123.4, "frac_reward_zero_std": 1} for step in (1, 30)
    ]
    for name in range(evaluations):
        rows += [{"step": step, f"eval/sampled_{name}/solved": name / 10} for step in (0, 30)]
    draw_curve(rows, tmp_path / "curve.png", "Sudoku")
    white = (imread(tmp_path / "curve.png")[..., :3] > 0.99).all(axis=-1)
    assert all(edge.all() for edge in (white[:4], white[-4:], white[:, :4], white[:, -4:]))
    title = white[:45].all(axis=1)
    assert not title[:40].all()  # is there,
    assert title[40:].all()  # and the legend stays below


def test_running_mean_looks_back_only() -> None:
    assert running_mean([1, 3, 5, 7], window=2) == [1, 2, 4, 6]


def test_spread_keeps_distance_and_order() -> None:
    assert spread([0.5, 0.2, 0.52, 0.9], gap=0.1) == pytest.approx([0.5, 0.2, 0.6, 0.9])
