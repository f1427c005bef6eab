"""`--watch`: a completion being denoised, drawn in a terminal below the bars, and nothing elsewhere."""

import io
import os
import pty
import time

import pyte
import pytest

from unmask.report import live, notebook
from unmask.report.live import DenoisingView, frames_of, watch_completion
from unmask.report.progress import Progress, phase, show, shows, telling, watch_completions
from unmask.report.terminal import OutputConsole

SAMPLE = {
    "prompt": "1234",
    "completions": [{"text": "ab c", "reward": 0.5, "tokens": ["ab", " ", "c"], "revealed_at": [1, 0, 2]}],
}


def test_frames_of_a_recorded_completion_reveal_each_token_at_its_step():
    frames = frames_of(SAMPLE["completions"][0])
    assert [frame.masked for frame in frames] == [[True, False, True], [False, False, True], [False] * 3]
    assert [frame.revealed for frame in frames] == [[False, True, False], [True, False, False], [False, False, True]]
    assert frames_of({"tokens": [], "revealed_at": []})[0].tokens == []


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0, "░░ ░"), (0.3, "ab ░"), (0.6, "ab c"), (2.0, "ab c"), (2.8, "░░ ░")]
)
def test_the_frame_that_is_due_is_drawn_and_after_a_pause_the_first_again(seconds, shown, monkeypatch):
    monkeypatch.setattr(live.time, "monotonic", lambda: 100.0 + seconds)
    console = OutputConsole(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=60)
    view = DenoisingView(title="step 1", frames=frames_of(SAMPLE["completions"][0]), began_seconds=100.0)
    with console.capture() as captured:
        console.print(view)
    screen = pyte.Screen(60, 4)
    pyte.Stream(screen).feed(captured.get().replace("\n", "\r\n"))
    assert screen.display[0].startswith("step 1, denoising step")
    assert screen.display[1].rstrip() == shown


def test_where_there_is_no_terminal_it_is_said_once_and_lines_are_as_without_it():
    outputs = []
    for watched in (True, False):
        output = io.StringIO()
        with telling(Progress(OutputConsole(file=output))):
            if watched:
                watch_completions()
            assert not shows()
            with phase("step", 2):
                watch_completion(1, SAMPLE)
                show("never")
        outputs.append(output.getvalue())
    assert outputs[0] == "--watch needs a terminal to draw in: this output has lines alone\n" + outputs[1]


def in_terminal(slave):
    """A phase of a second in a terminal, watched."""
    terminal = os.fdopen(slave, "w")
    with telling(Progress(OutputConsole(file=terminal, force_terminal=True, color_system="truecolor", width=60))):
        watch_completions()
        with phase("step", 2):
            watch_completion(7, SAMPLE)
            time.sleep(1.0)


def test_in_a_terminal_it_is_drawn_below_the_bar_and_gone_at_the_end():
    master, slave = pty.openpty()
    screen = pyte.Screen(60, 10)
    stream, seen = pyte.ByteStream(screen), []
    child = os.fork()
    if child == 0:
        try:
            os.close(master)
            in_terminal(slave)
        finally:
            os._exit(0)
    os.close(slave)
    while True:
        try:
            content = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        if not content:
            break
        stream.feed(content)
        seen.append([line.rstrip() for line in screen.display])
    os.waitpid(child, 0)
    os.close(master)
    drawn = [lines for lines in seen if any("denoising step 3/3" in line for line in lines)]
    assert drawn
    (place,) = [number for number, line in enumerate(drawn[-1]) if "step 7, a completion of reward 0.5" in line]
    assert drawn[-1][place - 1].startswith("step 0/2")
    assert drawn[-1][place + 1] == "ab c"
    assert not [line for line in seen[-1] if "denoising" in line]


def test_a_picture_is_shown_in_a_notebook_alone(tmp_path, monkeypatch):
    assert notebook.show_picture(tmp_path / "curve.png") is False
    shown = []
    pytest.importorskip("IPython")
    monkeypatch.setattr(notebook, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.core.display_functions.display", shown.append)
    (tmp_path / "curve.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert notebook.show_picture(tmp_path / "curve.png") is True
    assert shown[0].data == b"\x89PNG\r\n\x1a\n"
