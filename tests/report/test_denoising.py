from __future__ import annotations

import io

import pytest
from rich.console import Console

from unmask.report.denoising import Frame, denoising_text, print_denoising, with_one_end


def _frames(tokens: list[str], states: list[str]) -> list[Frame]:
    """One frame a state: `.` masked, `+` newly revealed, `=` known."""
    return [
        Frame(
            step=step,
            tokens=["<|mask|>" if sign == "." else token for token, sign in zip(tokens, state, strict=True)],
            masked=[sign == "." for sign in state],
            revealed=[sign == "+" for sign in state],
            confidence=[0.5 + step / 10] * len(tokens),
        )
        for step, state in enumerate(states, start=1)
    ]


SENTENCE = ["The", " answer", " is", "\n", "4"]


def _printed(
    frames: list[Frame],
    columns: int | None = None,
    width: int = 80,
    color: bool = False,
    reward: float | None = 1.0,
) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=color, color_system="standard" if color else None)
    print_denoising(frames, "2+[b]2\n", "4", reward, console, columns)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def test_print_denoising_marks_new_and_remasked_tokens_without_color() -> None:
    printed = _printed(_frames(SENTENCE, ["+..+.", "=+..+", "==+++"]))
    assert printed == (
        "prompt  2+[b]2⏎\n"
        "\n"
        "step 1  60 %  [The]░░[⏎]░\n"
        "step 2  70 %  The[ answer]░(░)[4]\n"
        "step 3  80 %  The answer[ is][⏎][4]\n"
        "\n"
        "░ masked   [x] new   (░) masked again   % mean confidence of the new tokens\n"
        "answer  4\n"
        "reward  1.00"
    )


def test_print_denoising_without_reward_has_no_reward_line() -> None:
    assert _printed(_frames(["4"], ["+"]), reward=None).endswith("\nanswer  4")


def test_print_denoising_puts_grids_side_by_side_as_far_as_they_fit() -> None:
    frames = _frames(list("1221"), ["+...", "=++.", "===+"])
    printed = _printed(frames, columns=2, width=30)
    assert printed.split("\n")[2:10] == [
        "step 1  60 %    step 2  70 %",
        "[1] ░            1 [2]",
        " ░  ░           [2] ░",
        "",
        "step 3  80 %",
        " 1  2",
        " 2 [1]",
        "",
    ]
    assert "step 1  60 %    step 2  70 %    step 3  80 %" in _printed(frames, columns=2)


def test_print_denoising_grid_cells_are_as_wide_as_the_widest_token() -> None:
    printed = _printed(_frames(["10", "2", "3"], ["+..", "=++"]), columns=2)
    assert printed.split("\n")[3:5] == ["[10] ░░          10 [2]", " ░░             [3]"]


def test_print_denoising_colors_tell_the_states_apart() -> None:
    printed = _printed(_frames(SENTENCE, ["+..+.", "=+..+"]), color=True)
    assert "\x1b[1;42mThe\x1b[0m" in printed
    assert "\x1b[2m░\x1b[0m" in printed
    assert "\x1b[31m░\x1b[0m" in printed
    assert "The\x1b[1;42m answer\x1b[0m" in printed


def test_denoising_text_has_one_column_a_mask() -> None:
    frame = _frames(SENTENCE, ["+...="])[0]
    assert denoising_text(frame).plain == "The░░░4"
    assert denoising_text(frame, color=False).plain == "[The]░░░4"


def test_frame_remasked_is_believed() -> None:
    frame = Frame(step=1, tokens=["a"], masked=[True], revealed=[False], confidence=None, remasked=[True])
    assert denoising_text(frame, color=False).plain == "(░)"


@pytest.mark.parametrize(("token", "shown"), [("\x1b[2J", "�[2J"), ("\t", "⇥"), ("é ", "é ")])
def test_print_denoising_shows_no_control_characters(token: str, shown: str) -> None:
    assert denoising_text(_frames([token], ["="])[0]).plain == shown


def test_with_one_end_cuts_the_last_run_of_ends_and_tells_their_number() -> None:
    frames = _frames(["4", "<end>", "2", "<end>", "<end>", "<end>"], ["+..+..", "=++==+", "======"])
    cut = with_one_end(frames, [False, True, False, True, True, True])
    assert [frame.tokens for frame in cut][-1] == ["4", "<end>", "2", "<end>×3"]
    assert [frame.revealed for frame in cut] == [frame.revealed[:4] for frame in frames]
    assert [len(frame.masked) for frame in cut] == [4, 4, 4]
    assert "2<end>×3" in _printed(cut)


def test_masks_can_be_counted_those_of_ends_that_are_cut_too() -> None:
    frames = _frames([" longer", " than", " others", "<end>", "<end>", "<end>"], ["......", "+....+", "=++++="])
    for shown, masks in ((frames, (6, 4)), (with_one_end(frames, [False] * 3 + [True] * 3), (6, 4))):
        _, _, first, second, third, *_ = _printed(shown).split("\n")
        assert (first.count("░"), second.count("░"), third.count("░")) == (*masks, 0)


@pytest.mark.parametrize("width", [80, 10_000])
def test_long_completions_wrap_wherever_they_are_printed(width: int) -> None:
    words = [f" word{number}" for number in range(60)]
    printed = _printed(_frames(words, ["." * 60, "+" * 60]), width=width)
    lines = printed.split("\n")[2:-4]
    assert max(map(len, lines)) <= min(width, 120)
    assert len(lines) > 4
    assert all(f"word{number}]" in printed for number in range(60))


@pytest.mark.parametrize("ends", [[False, False], [False, True], [True, False]])
def test_with_one_end_leaves_all_else_as_it_is(ends: list[bool]) -> None:
    frames = _frames(["4", "2"], ["+.", "=+"])
    assert with_one_end(frames, ends) == frames
