"""A language model as judge, behind an HTTP endpoint with OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from unmask.errors import UserError
from unmask.settings.reader import build
from unmask.validation import setting

_REPLY_BYTES = 2**20
_REFUSALS = (401, 403, 404)  # wrong key, no access, no such model: trying again does not help
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """Settings of a judge: its endpoint, the message to it, how its reply is read, and retries."""

    url: str = setting("", "of the API, /chat/completions left out, such as http://localhost:8000/v1")
    model: str = setting("", "the API's name of the judge")
    template: str = setting("", "message to the judge; {prompt} and {completion} stand for the texts")
    score: str = setting("", "regular expression whose one group is the score; its last match in the reply counts")
    api_key_variable: str = setting("", "environment variable that holds the API key; empty: none is sent")
    temperature: float = setting(0.0, "of the judge's sampling")
    timeout_seconds: float = setting(60.0, "of a call, each time that it waits")
    retries: int = setting(2, "further tries after a call that failed")
    retry_seconds: float = setting(1.0, "pause before the first of them; twice as long before each next one")
    concurrency: int = setting(8, "calls at a time on each rank")

    def __post_init__(self) -> None:
        for name in ("url", "model", "template", "score"):
            if not getattr(self, name):
                raise UserError(f"{name} is empty: set it, with url, model, template and score")
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"url is {self.url!r}: give one that begins with http:// or https://")
        if "{completion}" not in self.template:
            raise UserError("template does not show {completion}: write it where the completion belongs")
        if self.pattern.groups != 1:
            raise UserError(f"score {self.score!r} has {self.pattern.groups} groups: give one, such as 'Score: (\\d+)'")
        if self.timeout_seconds <= 0 or self.concurrency < 1 or min(self.retries, self.retry_seconds) < 0:
            raise UserError("timeout_seconds and concurrency must be positive, retries and retry_seconds 0 or more")

    @property
    def pattern(self) -> re.Pattern[str]:
        """`score`, compiled. Raises UserError where it is none."""
        try:
            return re.compile(self.score)
        except re.error as error:
            raise UserError(f"score {self.score!r} is not a regular expression: {error}") from error

    def message(self, prompt: str, completion: str) -> str:
        """The template with both texts in their places, in one pass: braces in the texts mean nothing."""
        texts = {"prompt": prompt, "completion": completion}
        return re.sub(r"\{(prompt|completion)\}", lambda place: texts[place[1]], self.template)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Reward function: a judge's score of each completion, several calls at a time; None where all tries fail.

    A call fails where the endpoint cannot be reached, gives an error or a reply without score. Scores are not
    remembered over steps: the judge may answer otherwise another time.
    """

    settings: JudgeSettings
    api_key: str = field(default="", repr=False)

    async def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float | None]:
        """Scores of the completions. Raises UserError where the endpoint refuses a call, or all of them fail."""
        loop = asyncio.get_running_loop()
        pool = ThreadPoolExecutor(self.settings.concurrency)
        pairs = zip(prompts, completions, strict=True)
        try:
            outcomes = await asyncio.gather(*(loop.run_in_executor(pool, self._score, *pair) for pair in pairs))
        finally:
            pool.shutdown(cancel_futures=True)
        faults = [outcome for outcome in outcomes if isinstance(outcome, str)]
        if len(faults) == len(outcomes):
            raise UserError(f"judge at {self.settings.url!r} failed in all of {len(faults)} calls: {faults[-1]}")
        if faults:
            _LOG.warning("judge failed in %d of %d calls, the last: %s", len(faults), len(outcomes), faults[-1])
        return [None if isinstance(outcome, str) else outcome for outcome in outcomes]

    def _score(self, prompt: str, completion: str) -> float | str:
        """The score, or why there is none."""
        message = self.settings.message(prompt, completion)
        outcome = self._try(message)
        for number in range(self.settings.retries):
            if isinstance(outcome, float):
                break
            time.sleep(self.settings.retry_seconds * 2**number)
            outcome = self._try(message)
        return outcome

    def _try(self, message: str) -> float | str:
        try:
            return self._read(self._reply(message))
        except UserError:
            raise
        except (OSError, HTTPException, ValueError) as error:
            return f"{type(error).__name__}: {error}"

    def _reply(self, message: str) -> bytes:
        """The endpoint's reply. Raises UserError for a refusal, OSError for another error status."""
        settings = self.settings
        url = settings.url.rstrip("/") + "/chat/completions"
        messages = [{"role": "user", "content": message}]
        body = {"model": settings.model, "messages": messages, "temperature": settings.temperature}
        headers = {"Content-Type": "application/json"}
        request = Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - settings allow http(s) alone
        if self.api_key:
            request.add_unredirected_header("Authorization", f"Bearer {self.api_key}")
        try:
            with urlopen(request, timeout=settings.timeout_seconds) as response:  # noqa: S310 - as above
                return bytes(response.read(_REPLY_BYTES))
        except HTTPError as error:
            with error:
                said = " ".join(error.read(300).decode(errors="replace").split())
            fault = f"{error.code} {error.reason}: {said}"
            if self.api_key:
                fault = fault.replace(self.api_key, "***")  # some endpoints repeat it
            if error.code in _REFUSALS:
                raise UserError(f"judge at {settings.url!r} answers {fault}: check url, model and API key") from None
            raise OSError(fault) from None

    def _read(self, reply: bytes) -> float:
        match json.loads(reply):
            case {"choices": [{"message": {"content": str(text)}}, *_]}:
                found = [*self.settings.pattern.finditer(text)]
            case _:
                raise ValueError("the reply is not a chat completion")
        # The reply may quote the completion, which may state a score of its own: a judge ends with its verdict.
        score = float(found[-1][1]) if found and found[-1][1] is not None else math.nan
        if not math.isfinite(score):
            raise ValueError(f"the reply has no score: it ends in {text[-60:]!r}")
        return score


def load_judge(path: str) -> Judge:
    """The judge of a TOML file of `JudgeSettings`. Raises UserError for a file or a key that cannot be used."""
    try:
        document = tomllib.loads(Path(path).expanduser().read_text())
        settings = build(JudgeSettings, document)
    except OSError as error:
        raise UserError(f"judge settings {path!r} cannot be read: {error.strerror}") from error
    except UserError as error:
        raise UserError(f"judge settings {path!r}: {error}") from None
    except ValueError as error:
        raise UserError(f"judge settings {path!r} are not TOML: {error}") from error
    variable = settings.api_key_variable
    api_key = os.environ.get(variable, "").strip() if variable else ""
    if variable and not (api_key and api_key.isascii() and api_key.isprintable()):
        raise UserError(f"judge settings {path!r}: the environment variable {variable} holds no API key: export one")
    return Judge(settings=settings, api_key=api_key)
