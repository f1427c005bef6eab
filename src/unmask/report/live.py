"""One completion of the last training step, denoised again and again below the bars of a terminal (`--watch`)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unmask.report.denoising import Frame, denoising_text, token_widths
from unmask.report.progress import show, shows

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_FRAMES_A_SECOND = 4.0
_PAUSE_FRAMES = 8  # the finished completion stands still so long, then it begins again
_MOST_TOKENS = 400


@dataclass(frozen=True, kw_only=True)
class DenoisingView:
    """A renderable of rich that shows, at each time it is drawn, the frame that is due then."""

    title: str
    frames: list[Frame]
    began_seconds: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        count = len(self.frames)
        due = int((time.monotonic() - self.began_seconds) * _FRAMES_A_SECOND) % (count + _PAUSE_FRAMES)
        frame = self.frames[min(due, count - 1)]
        color = console.color_system is not None and not console.no_color
        yield Text(f"{self.title}, denoising step {frame.step}/{self.frames[-1].step}", style="dim")
        yield denoising_text(frame, token_widths(self.frames), color)


def watch_completion(step: int, sample: Mapping[str, Any]) -> None:
    """Show the first completion of a step's group, a row of completions.jsonl, where a terminal is watched."""
    if shows() and sample.get("completions"):
        completion = sample["completions"][0]
        title = f"step {step}, a completion of reward {completion['reward']:.3g}"
        show(DenoisingView(title=title, frames=frames_of(completion), began_seconds=time.monotonic()))


def frames_of(completion: Mapping[str, Any]) -> list[Frame]:
    """The frames of a recorded completion: its tokens, and the denoising step (from 0) that revealed each."""
    tokens, revealed_at = completion["tokens"][:_MOST_TOKENS], completion["revealed_at"][:_MOST_TOKENS]
    return [
        Frame(
            step=step + 1,
            tokens=tokens,
            masked=[at > step for at in revealed_at],
            revealed=[at == step for at in revealed_at],
            confidence=None,
        )
        for step in range(max(revealed_at, default=0) + 1)
    ]
