"""Phases are told as bars or lines, long silence is broken, and time left is that of the phase alone."""

from __future__ import annotations

import io
import threading
from contextlib import suppress

import pytest
from rich.console import Console

from unmask.report.progress import Progress, advance, doing, message, phase, speed_words, telling


class Told:
    """A Progress on a clock that the test moves, and the lines that it has told."""

    def __init__(self, **options) -> None:
        self.seconds = 100.0
        self.file = io.StringIO()
        console = Console(file=self.file, width=20)
        self.progress = Progress(console, clock=lambda: self.seconds, beat_seconds=1e6, **options)

    def wait(self, seconds: float) -> None:
        """Let time pass as the thread sees it that looks every five seconds."""
        for _ in range(round(seconds / 5)):
            self.seconds += 5
            self.progress.beat()

    def lines(self) -> list[str]:
        lines = self.file.getvalue().splitlines()
        self.file.truncate(self.file.seek(0))
        return lines


@pytest.fixture
def told():
    found = Told()
    with telling(found.progress):
        yield found


def test_phase_tells_its_begin_a_line_every_ten_seconds_and_its_end(told):
    with phase("step", 30, done=5):
        for step in range(6, 31):
            told.seconds += 1.25
            advance(figures=f"reward 0.512  solved {step / 30:.1%}")
        message("reward [red] falls")
    assert told.lines() == [
        "step 5/30",
        "step 13/30  reward 0.512  solved 43.3%  0.8 steps/s  0:21 left",
        "step 21/30  reward 0.512  solved 70.0%  0.8 steps/s  0:11 left",
        "step 29/30  reward 0.512  solved 96.7%  0.8 steps/s  0:01 left",
        "reward [red] falls",
        "step 30/30  reward 0.512  solved 100.0%  0.8 steps/s  in 0:31",
    ]


def test_phase_that_stands_still_is_told_of_again(told):
    with phase("loading a model"):
        told.wait(45)
    with phase("step", 3):
        told.seconds += 100
        advance(figures="reward 0.500")
        told.wait(10)
        doing("sampling")
        told.wait(35)
    assert told.lines() == [
        "loading a model",
        "loading a model  0:20 so far",
        "loading a model  0:40 so far",
        "loading a model  in 0:45",
        "step 0/3",
        "step 1/3  reward 0.500  0.01 steps/s  3:20 left",
        "step 1/3  reward 0.500  0.0083 steps/s  4:00 left  sampling: 0:10 so far",
        "step 1/3  reward 0.500  0.0071 steps/s  4:40 left  sampling: 0:30 so far",
        "step 1/3  reward 0.500  0.0069 steps/s  in 2:25",
    ]


@pytest.mark.parametrize("step_seconds", [0.5, 7, 19, 31, 200])
def test_no_thirty_seconds_are_silent_whatever_a_step_takes(step_seconds, monkeypatch):
    told, at = Told(), []
    tell = told.progress.message
    monkeypatch.setattr(told.progress, "message", lambda text: (at.append(told.seconds), tell(text)))
    begin, beats = told.seconds, 0
    with telling(told.progress), phase("step", 400):
        while told.seconds < begin + 600:
            end = told.seconds + step_seconds
            while begin + 5 * (beats + 1) <= end:
                beats += 1
                told.seconds = begin + 5 * beats
                told.progress.beat()
            told.seconds = end
            advance()
    gaps = [after - before for before, after in zip(at, [*at[1:], told.seconds], strict=True)]
    assert max(gaps) < 30


def test_phase_that_is_whole_is_told_of_once(told):
    with phase("row", 4):
        told.seconds += 15
        advance(4)
        told.wait(20)
        advance(0, "solved 50.0%")
    assert told.lines() == [
        "row 0/4",
        "row 4/4  0.2 steps/s  0:05 so far",
        "row 4/4  solved 50.0%  0.11 steps/s  in 0:35",
    ]


def test_phase_within_another_takes_no_part_in_its_time_left(told):
    with phase("step", 4):
        for _ in range(2):
            told.seconds += 10
            advance()
        told.lines()
        with phase("evaluation after step 2:", 8, unit="completion"):
            told.seconds += 40
            advance(4)
            told.wait(20)
        told.seconds += 10
        advance()
    assert told.lines() == [
        "evaluation after step 2: 0/8",
        "evaluation after step 2: 4/8  0.1 completions/s  0:40 left",
        "evaluation after step 2: 4/8  0.067 completions/s  1:00 left  the next: 0:20 so far",
        "evaluation after step 2: 4/8  0.067 completions/s  in 1:00",
        "step 3/4  0.1 steps/s  0:10 left",
        "step 3/4  0.1 steps/s  in 1:30",
    ]


def test_phase_that_is_short_or_fails_ends_without_a_line(told):
    with phase("preparing"):
        told.seconds += 1
    with suppress(KeyboardInterrupt), phase("loading"):
        told.seconds += 60
        raise KeyboardInterrupt
    advance()  # of no phase
    assert told.lines() == ["preparing", "loading"]


def test_ranks_but_the_first_are_silent(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    told = Told()
    with telling(told.progress), phase("step", 2):
        told.wait(60)
        advance()
        message("a warning")
    assert told.lines() == []


def test_phase_without_a_progress_is_silent(capsys):
    with phase("step", 2):
        advance()
        message("nobody hears")
    assert capsys.readouterr() == ("", "")


def test_telling_makes_a_progress_where_there_is_none(told, capsys):
    with telling() as found:
        assert found is told.progress
    with telling(Progress()) as mine, telling() as found, phase("step", 2):
        assert found is mine
    assert capsys.readouterr().out == "step 0/2\n"


def test_a_thread_breaks_the_silence():
    heard = threading.Event()

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            if "so far" in text:
                heard.set()
            return super().write(text)

    seconds = iter(range(0, 10**9, 25))  # every look at the clock is 25 seconds later
    progress = Progress(Console(file=Stream()), clock=lambda: float(next(seconds)), beat_seconds=0.001)
    with progress.phase("loading"):
        assert heard.wait(60)
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_phases_are_bars_in_a_terminal_with_messages_above():
    file = io.StringIO()
    progress = Progress(Console(file=file, width=100, force_terminal=True, color_system=None))
    with telling(progress), phase("step", 4):
        advance(figures="reward 0.250")
        with phase("evaluation", 8, unit="completion"):
            advance(8)
        message("reward is collapsing")
        advance(3, "reward 0.750")
    text = file.getvalue()
    assert text.index("evaluation") < text.index("reward is collapsing") < text.rindex("4/4")
    assert "reward 0.750" in text
    assert "━" in text
    assert "0:00:00" in text  # the time that a phase has taken goes on by itself
    assert text.splitlines()[-1].strip().startswith("step 4/4  reward 0.750") or "step 4/4" in text


@pytest.mark.parametrize(
    ("speed", "words"), [(0.9, "0.9 steps/s"), (0.0123, "0.012 steps/s"), (123.4, "123 steps/s"), (10, "10 steps/s")]
)
def test_speed_words_at_every_scale(speed, words):
    assert speed_words(speed, "step") == words
