"""Rendering prompts: the tokenizer's chat template, a system message, a prefilled start of the completion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unmask.data.example import Example
from unmask.data.turns import end_marks, render_turns
from unmask.errors import UserError
from unmask.validation import one_of, setting

TEMPLATES = ("auto", "never")


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """How prompts are rendered for the model."""

    template: str = setting(
        "auto", "auto: the tokenizer's chat template where it has one; never: the prompt's text as it is"
    )
    system: str | None = setting(None, "system message of every prompt; needs a chat template")
    prefill: str = setting(
        "", "text with which every completion begins: the model goes on from it, rewards read it too"
    )

    def __post_init__(self) -> None:
        one_of("chat.template", self.template, TEMPLATES)


PLAIN = ChatSettings()


@dataclass(frozen=True, kw_only=True)
class RenderedPrompt:
    """Text of a rendered prompt, and its end that already belongs to the completion (the prefill)."""

    text: str
    prefill: str


def render_prompt(tokenizer: Any, example: Example, chat: ChatSettings) -> RenderedPrompt:
    """The text that the model reads for an example: chat template, system message and prefill applied.

    A trailing assistant message of the example is prefilled, followed by `chat.prefill`. Raises UserError where the
    prompt needs a chat template and there is none, or the template refuses it.

        render_prompt(tokenizer, Example(prompt="2+2?", ...), ChatSettings(prefill="<reasoning>"))
        # text "<user>2+2?<end><assistant><reasoning>", prefill "<reasoning>"
    """
    turns, prefill = _turns(example, chat)
    if uses_template(tokenizer, chat):
        return RenderedPrompt(text=render_turns(tokenizer, turns, answers=True) + prefill, prefill=prefill)
    if len(turns) > 1:
        why = "chat.template is never" if chat.template == "never" else "the tokenizer has no chat template"
        raise UserError(
            f"prompt {example.prompt[:40]!r} has {len(turns)} messages and {why}: "
            "give one user's message and no chat.system, or a tokenizer with a chat template"
        )
    return RenderedPrompt(text=turns[0]["content"] + prefill, prefill=prefill)


def render_completion(tokenizer: Any, example: Example, completion: str, chat: ChatSettings) -> str:
    """The text that the model should write after the rendered prompt, for supervised training.

    It is the completion without its prefill, and the mark with which the chat template ends the turn; no header of a
    next turn. Raises UserError where the template renders the prompt or the completion differently once the prompt is
    answered, or writes more behind the completion than the end of the turn.
    """
    start = render_prompt(tokenizer, example, chat)
    rest = completion.removeprefix(start.prefill)
    if not uses_template(tokenizer, chat):
        return rest
    turns, _ = _turns(example, chat)
    answer = {"role": "assistant", "content": start.prefill + rest}
    whole = render_turns(tokenizer, [*turns, answer], answers=False)
    behind = whole.removeprefix(start.text)
    # Templates may trim what they are given.
    spelt = (text for text in (rest, rest.rstrip(), rest.lstrip(), rest.strip()) if behind.startswith(text))
    written = next(spelt, None)
    if not whole.startswith(start.text) or written is None:
        raise UserError(
            f"the chat template changes prompt {example.prompt[:40]!r} or its completion when it is "
            "answered: set chat.template to never, or mend the template"
        )
    return written + _turn_end(tokenizer, behind.removeprefix(written))


def _turn_end(tokenizer: Any, tail: str) -> str:
    """The end of the turn in what a template writes behind a completion; nothing where that is white space alone."""
    if not tail.strip():
        return ""
    lead = tail[: len(tail) - len(tail.lstrip())]
    mark = next((mark for mark in end_marks(tokenizer) if tail.startswith(mark, len(lead))), None)
    if mark is None:
        raise UserError(
            f"the chat template writes {tail[:40]!r} behind a completion, which ends with no token that ends a turn: "
            "set chat.template to never, or end the assistant's messages with such a token in the template"
        )
    return lead + mark


def _turns(example: Example, chat: ChatSettings) -> tuple[list[Mapping[str, str]], str]:
    """The messages to answer, and what the answer begins with."""
    turns = list(example.messages) or [{"role": "user", "content": example.prompt}]
    begun = turns.pop()["content"] if turns[-1]["role"] == "assistant" else ""
    if chat.system is not None:
        if turns[0]["role"] == "system":
            raise UserError(f"prompt {example.prompt[:40]!r} has a system message of its own: unset chat.system")
        turns.insert(0, {"role": "system", "content": chat.system})
    return turns, begun + chat.prefill


def uses_template(tokenizer: Any, chat: ChatSettings) -> bool:
    """Whether prompts are worded by the tokenizer's chat template."""
    return chat.template == "auto" and bool(tokenizer.chat_template)
