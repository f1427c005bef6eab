from __future__ import annotations

import io

import pytest
from rich.console import Console

from unmask.report import progress
from unmask.report.progress import TrainingProgress, with_speed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [100.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return seconds[0]

    monkeypatch.setattr(progress, "time", Clock)
    return seconds


def test_training_progress_prints_plain_lines_every_ten_seconds_and_at_the_end(clock: list[float]) -> None:
    file = io.StringIO()
    with TrainingProgress(30, first_step=5, console=Console(file=file, width=20)) as shown:
        for step in range(6, 31):
            clock[0] += 1.25
            shown.update(step, f"reward 0.512  solved {step / 30:.1%}")
        shown.message("reward [red] falls")
    assert file.getvalue().splitlines() == [
        "step 6/30  reward 0.512  solved 20.0%  0.8 steps/s  0:30 left",
        "step 14/30  reward 0.512  solved 46.7%  0.8 steps/s  0:20 left",
        "step 22/30  reward 0.512  solved 73.3%  0.8 steps/s  0:10 left",
        "step 30/30  reward 0.512  solved 100.0%  0.8 steps/s  0:00 left",
        "reward [red] falls",
    ]


def test_training_progress_shows_a_bar_with_messages_above() -> None:
    file = io.StringIO()
    with TrainingProgress(4, console=Console(file=file, width=100, force_terminal=True, color_system=None)) as shown:
        shown.update(1, "reward 0.250")
        shown.message("reward is collapsing")
        shown.update(4, "reward 0.750")
    text = file.getvalue()
    assert text.index("reward is collapsing") < text.rindex("4/4")
    assert "reward 0.750" in text
    assert "━" in text


@pytest.mark.parametrize(
    ("speed", "left", "end"),
    [
        (0.9, 109, "0.9 steps/s  2:01 left"),
        (0.0123, 150, "0.012 steps/s  3:23:15 left"),
        (123.4, 1000, "123 steps/s  0:08 left"),
        (0.0, 10, "reward 0.500"),
    ],
)
def test_with_speed_at_every_scale(speed: float, left: int, end: str) -> None:
    assert with_speed("reward 0.500", speed, left).endswith(end)
