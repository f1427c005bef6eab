"""A completion shown in the terminal as it appears, denoising step by denoising step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_MASK = "░"
_LONGEST_LINE = 100  # columns of a frame's text; pipes and files have no end of their own
_SHOWN = str.maketrans({"\n": "⏎", "\t": "⇥", "\r": "␍"})
# A state's style, and the signs put around its tokens where there is no colour.
_KNOWN = ("", "", "")
_MASKED = ("dim", "", "")
_REVEALED = ("bold on green", "[", "]")
_REMASKED = ("red", "(", ")")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A completion after one denoising step; each list has one entry per token.

    revealed: tokens that this step filled in. remasked: tokens that it masked again. confidence: the probability
    that the model gave each token. What `tokens` holds under a mask is never shown. further_masks: masked end tokens
    that were cut off behind the last one.
    """

    step: int
    tokens: list[str]
    masked: list[bool]
    revealed: list[bool]
    confidence: list[float] | None
    remasked: list[bool] | None = None
    further_masks: int = 0


def denoising_text(frame: Frame, widths: Sequence[int] | None = None, color: bool = True) -> Text:
    """One frame as running text.

    A mask is as wide as `widths` says for its token; by default masks can be counted, one column each. Without colour a
    newly revealed token reads [x] and a token masked again (░).
    """
    from rich.text import Text

    widths = widths or [1] * (len(frame.tokens) - 1) + [1 + frame.further_masks]
    text = Text()
    for index, width in enumerate(widths):
        text.append_text(_cell(frame, index, width, color))
    return text


def print_denoising(
    frames: Sequence[Frame],
    prompt: str,
    answer: str,
    reward: float | None,
    console: Console,
    columns: int | None = None,
) -> None:
    """Print the prompt, every frame, the answer and its reward where there is one.

    With `columns` the tokens are laid out as a grid of that many columns, and the frames side by
    side as far as the console is wide enough.
    """
    color = console.color_system is not None and not console.no_color
    frames = _with_remasked(frames)
    console.print(_labelled("prompt", prompt), soft_wrap=True)
    console.print()
    if columns is None:
        _print_lines(frames, console, color)
    else:
        _print_grids(frames, console, color, columns)
    console.print(_legend(frames, color), soft_wrap=True)
    console.print(_labelled("answer", answer), soft_wrap=True)
    if reward is not None:
        console.print(_labelled("reward", f"{reward:.2f}"), soft_wrap=True)


def with_one_end(frames: Sequence[Frame], is_end: Sequence[bool]) -> list[Frame]:
    """The frames, each run of end tokens that the completion ends in cut to its first, with their number behind it.

    is_end: for each token of the last frame, whether it is an end token.
    """
    count = sum(1 for _ in takewhile(bool, reversed(is_end)))
    if count < 2:
        return list(frames)
    first = len(is_end) - count
    return [_cut(frame, first + 1, f"{frames[-1].tokens[first]}×{count}") for frame in frames]


def _cut(frame: Frame, length: int, last: str) -> Frame:
    """The first tokens of a frame, with another text for the last of them."""
    return replace(
        frame,
        tokens=[*frame.tokens[: length - 1], last],
        masked=frame.masked[:length],
        revealed=frame.revealed[:length],
        confidence=frame.confidence and frame.confidence[:length],
        remasked=frame.remasked and frame.remasked[:length],
        further_masks=sum(frame.masked[length:]),
    )


def _with_remasked(frames: Sequence[Frame]) -> list[Frame]:
    """The frames, where they do not say so themselves told apart from the frame before."""
    told = list(frames[:1])
    for before, frame in pairwise(frames):
        hidden = zip(before.masked, frame.masked, strict=True)
        remasked = frame.remasked or [masked and not was_masked for was_masked, masked in hidden]
        told.append(replace(frame, remasked=remasked))
    return told


def _state(frame: Frame, index: int) -> tuple[str, str, str]:
    if frame.masked[index]:
        return _REMASKED if frame.remasked is not None and frame.remasked[index] else _MASKED
    return _REVEALED if frame.revealed[index] else _KNOWN


def _shown(token: str) -> str:
    """The token on one line, without control characters that would act on the terminal."""
    return "".join(sign if sign.isprintable() else "�" for sign in token.translate(_SHOWN))


def _cell(frame: Frame, index: int, width: int, color: bool) -> Text:
    from rich.text import Text

    style, left, right = _state(frame, index)
    body = _MASK * max(width, 1) if frame.masked[index] else _shown(frame.tokens[index])
    # The style goes on the sign, not on the text as a whole: padding added later stays plain.
    return Text.assemble((body, style)) if color else Text(f"{left}{body}{right}")


def _title(frame: Frame, step_digits: int) -> str:
    title = f"step {frame.step:>{step_digits}}"
    if frame.confidence is None or not any(frame.revealed):
        return title
    new = [value for value, revealed in zip(frame.confidence, frame.revealed, strict=True) if revealed]
    return f"{title}  {100 * fmean(new):.0f} %"


def token_widths(frames: Sequence[Frame]) -> list[int]:
    """Columns of each token as it was last seen: masks this wide keep the frames aligned."""
    from rich.cells import cell_len

    widths = [1] * len(frames[0].tokens)
    for frame in frames:
        for index, token in enumerate(frame.tokens):
            if not frame.masked[index]:
                widths[index] = cell_len(_shown(token))
    return widths


def _print_lines(frames: Sequence[Frame], console: Console, color: bool) -> None:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", max_width=_LONGEST_LINE)
    for frame in frames:
        table.add_row(_title(frame, len(str(frames[-1].step))), denoising_text(frame, color=color))
    console.print(table)
    console.print()


def _print_grids(frames: Sequence[Frame], console: Console, color: bool, columns: int) -> None:
    from rich.columns import Columns

    width = max(token_widths(frames))
    grids = [_grid(frame, columns, width, color) for frame in frames]
    console.print(Columns(grids, padding=(0, 4), equal=True))


def _grid(frame: Frame, columns: int, width: int, color: bool) -> Text:
    from rich.text import Text

    rows = []
    for start in range(0, len(frame.tokens), columns):
        indexes = range(start, min(start + columns, len(frame.tokens)))
        rows.append(Text(" " if color else "").join(_padded(frame, i, width, color) for i in indexes))
    # The blank last line keeps the grids apart that come to stand one below the other.
    return Text("\n").join([Text(_title(frame, 1)), *rows, Text(" ")])


def _padded(frame: Frame, index: int, width: int, color: bool) -> Text:
    from rich.text import Text

    cell = _cell(frame, index, width, color)
    signs_width = 0 if color else 2
    if not color and _state(frame, index)[1] == "":
        cell = Text(" ") + cell
    cell.pad_right(max(0, width + signs_width - cell.cell_len))
    return cell


def _legend(frames: Sequence[Frame], color: bool) -> Text:
    from rich.text import Text

    states = [_state(frame, index) for frame in frames for index in range(len(frame.tokens))]
    parts = []
    for state, sample, meaning in (
        (_MASKED, _MASK, "masked"),
        (_REVEALED, "x", "new"),
        (_REMASKED, _MASK, "masked again"),
    ):
        if state in states:
            style, left, right = state
            sign = (sample, style) if color else f"{left}{sample}{right}"
            parts.append(Text.assemble(sign, f" {meaning}"))
    if any(frame.confidence is not None for frame in frames):
        parts.append(Text("% mean confidence of the new tokens"))
    return Text("   ").join(parts)


def _labelled(label: str, value: str) -> Text:
    from rich.text import Text

    return Text.assemble((label, "bold"), f"  {_shown(value)}")
