"""Prompts that show their own answer: conversations that end in the assistant's message, from which a model goes on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from unmask.data.examples import Examples
from unmask.evaluation.evaluator import Evaluator
from unmask.report.progress import message

_LOOKED_AT = 1000  # examples of a split: rows of one file are made alike


def tell_shown_answers(evaluator: Evaluator, splits: Iterable[Examples]) -> None:
    """Warn, in one line, where prompts of the splits begin their completion with a right answer, by the task's word."""
    looked_at = shown = 0
    for examples in splits:
        first = range(min(len(examples.items), _LOOKED_AT))
        begun = [index for index in first if _is_begun(examples, index)]
        looked_at += len(first)
        if begun and evaluator.task.verifies:
            values = replace(evaluator, examples=examples).scored(begun, [examples.prefills[index] for index in begun])
            shown += sum(value == 1 for value in values["solved"])
    if shown:
        message(
            f"warning: {shown} of {looked_at} prompts end in an assistant message that already holds their answer, and "
            "the model goes on from it: leave that message out of their rows"
        )


def _is_begun(examples: Examples, index: int) -> bool:
    messages = examples.items[index].messages
    return bool(messages) and messages[-1]["role"] == "assistant"
