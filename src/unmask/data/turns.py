"""Turns of a conversation as the tokenizer's chat template writes them, and the tokens that end a turn or a text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from unmask.data.template_process import TemplateError, TemplateProcess
from unmask.errors import UserError
from unmask.verifiers.answers import END_MARKS

_WRITTEN = re.compile(r"<[^<>\s]+>")  # a word of a vocabulary that looks like a mark
_PROCESSES: WeakKeyDictionary[Any, TemplateProcess] = WeakKeyDictionary()  # of tokenizers, while those live
_OPENING, _CONTENT = "first words", "last words"  # contents of messages, to find again in what a template writes


def render_turns(tokenizer: Any, turns: Sequence[Mapping[str, str]], *, answers: bool) -> str:
    """The chat template's text, with the start of the assistant's turn behind it if the model `answers`.

    Raises UserError where the template refuses the messages.
    """
    return templated(tokenizer, turns, "change them, or set chat.template to never", add_generation_prompt=answers)


def templated(tokenizer: Any, turns: Sequence[Mapping[str, str]], mend: str, **options: bool) -> str:
    """The chat template's text with these options of transformers. Raises UserError, with `mend`, where it refuses."""
    if tokenizer not in _PROCESSES:
        _PROCESSES[tokenizer] = TemplateProcess(tokenizer)
    try:
        return _PROCESSES[tokenizer].render(turns, options)
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise UserError(f"the chat template refuses messages of {roles} ({error}): {mend}") from error


def end_ids(tokenizer: Any, eos_id: int | None = None) -> frozenset[int]:
    """Tokens that end a completion: text behind the first of them is not the completion's.

    They are `eos_id`, the tokenizer's end-of-sequence and padding tokens, the mark that its chat template writes behind
    an assistant's message, and known ones of its vocabulary, such as <|eot_id|>.
    """
    others = frozenset((tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.mask_token_id))
    ends = frozenset((eos_id, tokenizer.eos_token_id, *({tokenizer.pad_token_id} - others)))
    # Some tokenizers have several templates by name, in a dictionary, which is no key of a cache.
    return _end_ids(tokenizer, repr(tokenizer.chat_template), ends, others)


def end_marks(tokenizer: Any) -> tuple[str, ...]:
    """The texts of `end_ids`, longest first."""
    texts = tokenizer.convert_ids_to_tokens(sorted(end_ids(tokenizer)))
    return tuple(sorted(texts, key=len, reverse=True))


@lru_cache(maxsize=8)
def _end_ids(
    tokenizer: Any, chat_template: str, ends: frozenset[int | None], others: frozenset[int | None]
) -> frozenset[int]:
    known = {_id_of(tokenizer, name) for name in END_MARKS} - others
    written = {_written_mark(tokenizer)} if tokenizer.chat_template else set()
    return frozenset(token for token in ends | known | written if token is not None)


def _id_of(tokenizer: Any, text: str) -> int | None:
    """The token that is spelt so; None where there is none."""
    token: int | None = tokenizer.convert_tokens_to_ids(text)
    return token if token is not None and tokenizer.convert_ids_to_tokens(token) == text else None


def _written_mark(tokenizer: Any) -> int | None:
    """The token that the chat template writes behind an assistant's message, unless it also opens a conversation."""
    user, answer = {"role": "user", "content": _OPENING}, {"role": "assistant", "content": _CONTENT}
    try:
        tail = render_turns(tokenizer, [user, answer], answers=False).rpartition(_CONTENT)[2].lstrip()
    except UserError:  # said again, with the user's messages, where a prompt is rendered
        return None
    added = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    word = _WRITTEN.match(tail)
    mark = next((text for text in added if tail.startswith(text)), word[0] if word else None)
    return None if mark is None or mark in _opening(tokenizer, user) else _id_of(tokenizer, mark)


def _opening(tokenizer: Any, user: Mapping[str, str]) -> str:
    """What the template writes before the first message, of the system if it takes one."""
    system = {"role": "system", "content": _CONTENT}
    try:
        return render_turns(tokenizer, [system, user], answers=False).partition(_CONTENT)[0]
    except UserError:
        return render_turns(tokenizer, [user], answers=False).partition(_OPENING)[0]
