"""The process in which chat templates run: they are programs that come with a model, and may compute without end.

It is a fork that stays, with the tokenizer as it was, and answers one conversation after another. The kernel bounds its
memory, and ends it when a rendering takes more than a second of computing.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import psutil

MOST_SECONDS = 1.0  # of computing, for one conversation
MOST_BYTES = 1 << 30  # of memory, beside what the process begins with
MOST_CHARACTERS = 1 << 24  # of what a template writes


class TemplateError(Exception):
    """Why a template gives no text."""


class TemplateProcess:
    """Renders conversations by the chat template of a tokenizer; threads may share it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = weakref.ref(tokenizer)  # whose end is this one's
        self._ended: set[str] = set()  # templates that were, and are not tried again
        self._lock = threading.Lock()
        self._start()

    def render(self, turns: Sequence[Mapping[str, Any]], options: Mapping[str, bool]) -> str:
        """The template's text for the turns, with options of transformers. Raises TemplateError."""
        template = self._tokenizer_now().chat_template
        with self._lock:
            if repr(template) in self._ended:
                raise TemplateError(_TOO_MUCH)
            try:
                self._link.send_bytes(json.dumps([template, [*map(dict, turns)], dict(options)]).encode())
                text, error = json.loads(self._link.recv_bytes())
            except BaseException as fault:  # also of a signal: an answer would be taken for that to another question
                self._stop()
                self._start()
                if not isinstance(fault, EOFError | ConnectionError):
                    raise
                self._ended.add(repr(template))
                raise TemplateError(_TOO_MUCH) from None
        if error is not None:
            raise TemplateError(error)
        return str(text)

    def _tokenizer_now(self) -> Any:
        tokenizer = self._tokenizer()
        assert tokenizer is not None  # noqa: S101 - who asks holds it
        return tokenizer

    def _start(self) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # as it is; unless it is said, a fork warns of it
        self._link, theirs = Pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: this one takes no locks
            child = os.fork()
        if child == 0:
            _serve(self._tokenizer_now(), theirs)
        theirs.close()
        self._stop = weakref.finalize(self, _stop, self._link, child)


_TOO_MUCH = f"it takes more than {MOST_SECONDS:g} s or {MOST_BYTES >> 20} MiB"


def _stop(link: Connection, child: int) -> None:
    link.close()
    with suppress(ChildProcessError):
        os.waitpid(child, 0)  # it ends with the link, or within a second


def _serve(tokenizer: Any, link: Connection) -> NoReturn:
    """What the child does until the link is closed."""
    try:
        gc.freeze()  # what the parent has yet to collect may hold what is of its process alone, such as tensors on GPUs
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # which goes to a whole terminal: the parent decides
        for number in (signal.SIGTERM, signal.SIGPROF):
            signal.signal(number, signal.SIG_DFL)
        _close_others(link.fileno())  # locks and connections of the parent are not to outlive it
        _limit_memory()
        while True:
            template, turns, options = json.loads(link.recv_bytes())
            signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
            answer = json.dumps(_rendered(tokenizer, template, turns, options)).encode()
            signal.setitimer(signal.ITIMER_PROF, 0)
            link.send_bytes(answer)
    finally:
        os._exit(0)


def _close_others(kept: int) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    os.closerange(3, kept)
    os.closerange(kept + 1, most)


def _limit_memory() -> None:
    most = psutil.Process().memory_info().vms + MOST_BYTES
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    with suppress(ValueError, OSError):  # macOS knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _rendered(tokenizer: Any, template: Any, turns: Any, options: Any) -> tuple[str | None, str | None]:
    """The text, or else what is wrong."""
    tokenizer.chat_template = template
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, **options)
    except MemoryError:
        return None, _TOO_MUCH
    except Exception as error:  # noqa: BLE001 - a template is a program: 1 / 0 is no error of templates
        return None, str(error)
    if len(text) > MOST_CHARACTERS:
        return None, f"it writes {len(text)} characters"
    return text, None
