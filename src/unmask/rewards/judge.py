"""A language model as judge, behind an HTTP endpoint with OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from unmask.errors import UserError
from unmask.rewards.endpoint import Endpoint, Failed
from unmask.settings.reader import build
from unmask.validation import setting
from unmask.validation.user_files import refuse_special, user_path

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
    timeout_seconds: float = setting(60.0, "of a call, from its beginning to the end of the reply")
    retries: int = setting(2, "further tries after a call that failed", high=20)
    retry_seconds: float = setting(1.0, "pause before the first of them; twice as long before each next one")
    longest_pause_seconds: float = setting(60.0, "that the endpoint may ask for (Retry-After), else the call fails")
    concurrency: int = setting(8, "calls at a time on each rank", high=1000)

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
        if (
            self.timeout_seconds <= 0
            or self.concurrency < 1
            or min(self.retries, self.retry_seconds, self.longest_pause_seconds) < 0
        ):
            raise UserError("timeout_seconds and concurrency must be positive, retries and pauses 0 or more")

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
        loop, endpoint = asyncio.get_running_loop(), self._endpoint()
        pool = ThreadPoolExecutor(self.settings.concurrency)
        pairs = zip(prompts, completions, strict=True)
        try:
            calls = (loop.run_in_executor(pool, self._score, endpoint, *pair) for pair in pairs)
            outcomes = await asyncio.gather(*calls)
        finally:
            endpoint.close()
            pool.shutdown(cancel_futures=True)
        faults = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
        if len(faults) == len(outcomes):
            raise UserError(
                f"judge at {self.settings.url!r} failed in all of {len(faults)} calls: {faults[-1].why}; see that it "
                "runs there and ends its answers with a score, or mend url, template and score in its settings"
            )
        if faults:
            _LOG.warning("judge failed in %d of %d calls, the last: %s", len(faults), len(outcomes), faults[-1].why)
        return [None if isinstance(outcome, Failed) else outcome for outcome in outcomes]

    def _endpoint(self) -> Endpoint:
        return Endpoint(
            url=self.settings.url.rstrip("/") + "/chat/completions",
            headers={"Content-Type": "application/json"},
            secret_headers={"Authorization": f"Bearer {self.api_key}"} if self.api_key else {},
            timeout_seconds=self.settings.timeout_seconds,
        )

    def _score(self, endpoint: Endpoint, prompt: str, completion: str) -> float | Failed:
        """The score, or why there is none. Raises UserError where the endpoint refuses the call."""
        settings = self.settings
        messages = [{"role": "user", "content": settings.message(prompt, completion)}]
        body = {"model": settings.model, "messages": messages, "temperature": settings.temperature}
        encoded = json.dumps(body).encode()
        pause_seconds = 0.0
        for number in range(settings.retries + 1):
            endpoint.wait(pause_seconds)
            outcome = self._try(endpoint, encoded)
            if isinstance(outcome, float) or outcome.retry_after_seconds > settings.longest_pause_seconds:
                break
            endpoint.hold(outcome.retry_after_seconds)
            pause_seconds = settings.retry_seconds * 2**number
        return outcome

    def _try(self, endpoint: Endpoint, body: bytes) -> float | Failed:
        reply = endpoint.post(body)
        if not isinstance(reply, Failed):
            return self._read(reply)
        why = reply.why.replace(self.api_key, "***") if self.api_key else reply.why  # some endpoints repeat it
        if reply.status in _REFUSALS:
            raise UserError(f"judge at {self.settings.url!r} answers {why}: check url, model and API key")
        if reply.retry_after_seconds > self.settings.longest_pause_seconds:
            why += f" (it asks for a pause of {reply.retry_after_seconds:.0f} s: see longest_pause_seconds)"
        return replace(reply, why=why)

    def _read(self, reply: bytes) -> float | Failed:
        try:
            match json.loads(reply):
                case {"choices": [{"message": {"content": str(text)}}, *_]}:
                    found = [*self.settings.pattern.finditer(text)]
                case _:
                    return Failed("the reply is not a chat completion")
        except (ValueError, RecursionError) as error:
            return Failed(f"{type(error).__name__}: {error}")
        # The reply may quote the completion, which may state a score of its own: a judge ends with its verdict.
        try:
            score = float(found[-1][1]) if found and found[-1][1] is not None else math.nan
        except ValueError:
            score = math.nan
        return score if math.isfinite(score) else Failed(f"the reply has no score: it ends in {text[-60:]!r}")


def load_judge(path: str) -> Judge:
    """The judge of a TOML file of `JudgeSettings`. Raises UserError for a file or a key that cannot be used."""
    try:
        refuse_special(user_path(path))
        document = tomllib.loads(user_path(path).read_text())
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
