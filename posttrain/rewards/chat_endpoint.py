"""One call of an OpenAI-compatible chat API: standard library, bounded in time, size and attempts.

Floor 3: knows HTTP, not scores. The key is read from its environment variable for each call and stored nowhere; no
redirect is followed, since the key would go with it, and nothing goes unencrypted but to this machine.
"""

import email.utils
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from posttrain.errors import RewardError
from posttrain.records import Message
from posttrain.settings import JudgeOptions

LOOPBACK = ("localhost", "127.0.0.1", "::1")
FATAL = {301, 302, 303, 307, 308, 401, 402, 403, 404}  # no other call will fare better
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}
MAX_REPLY_BYTES = 1 << 20
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds between attempts: doubled each time, or what Retry-After asks
SHOWN_CHARACTERS = 300


class Unanswered(Exception):
    """No usable answer to this call; the message says why, as a sentence that begins with its verb."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said, and the tokens that the call took as the API counts them."""

    text: str
    tokens: int


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        return None


def url_problem(base_url: str) -> str | None:
    """Return why a URL is not to be sent keys and completions, None where it may be."""
    parts = urlsplit(base_url)
    if parts.scheme == "https" and parts.hostname:
        return None
    if parts.scheme == "http" and parts.hostname in LOOPBACK:
        return None
    return f"base_url must begin with https:// (http:// on this machine only), not {base_url}"


def api_key(options: JudgeOptions) -> str | None:
    """Return the key; None where the options name no variable. Raises RewardError for one that holds none."""
    if options.api_key_env is None:
        return None
    key = os.environ.get(options.api_key_env, "").strip()
    if not re.fullmatch("[!-~]+", key):  # what else it holds would end up in an error of the HTTP library
        raise RewardError(
            f"reward judge: the environment variable {options.api_key_env} holds no key",
            fix=f"export {options.api_key_env}=...",
        )
    return key


def chat(messages: Sequence[Message], options: JudgeOptions, pause: Callable[[float], bool]) -> Reply:
    """Return the reply to a conversation; a full or failing server is asked again.

    `pause` waits so many seconds and returns whether to give up. Raises RewardError where no call can work (key, model,
    address), Unanswered where this one did not.
    """
    if problem := url_problem(options.base_url):
        raise RewardError(f"reward judge: {problem}")
    body = json.dumps(
        {
            "model": options.model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": options.max_tokens,
        }
    ).encode()
    seconds = FIRST_PAUSE
    for attempt in range(options.max_retries + 1):
        try:
            return _read(_post(body, options), options)
        except urllib.error.HTTPError as error:
            with error:
                said = _quoted(_some(error), options)
            if error.code in FATAL:
                raise RewardError(f"reward judge: {options.base_url} answered {error.code}: {said}") from None
            if error.code not in AGAIN:
                raise Unanswered(f"was answered {error.code}: {said}") from None
            why = f"was answered {error.code}"
            wait = _retry_after(error.headers.get("Retry-After")) or seconds
        except (OSError, http.client.HTTPException) as error:
            cause = str(getattr(error, "reason", error)) or type(error).__name__
            why, wait = f"had no answer: {_quoted(cause, options)}", seconds
        if attempt == options.max_retries or pause(min(wait, LONGEST_PAUSE)):
            break
        seconds = min(2 * seconds, LONGEST_PAUSE)
    raise Unanswered(f"{why}, asked {attempt + 1} times")


def _post(body: bytes, options: JudgeOptions) -> bytes:
    """Return the body of the answer; raises OSError where it is not there in time, or too large."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if (key := api_key(options)) is not None:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(f"{options.base_url.rstrip('/')}/chat/completions", body, headers)
    handlers: list[Any] = [_NoRedirect]
    if urlsplit(options.base_url).hostname in LOOPBACK:
        handlers.append(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + options.timeout
    with urllib.request.build_opener(*handlers).open(request, timeout=options.timeout) as response:
        content = b""
        while data := response.read1(1 << 16):
            content += data
            if len(content) > MAX_REPLY_BYTES:
                raise OSError(f"more than {MAX_REPLY_BYTES} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not whole after {options.timeout:g} s")
    return content


def _read(content: bytes, options: JudgeOptions) -> Reply:
    try:
        answer = json.loads(content)
        text = answer["choices"][0]["message"]["content"]
        usage = answer.get("usage") or {}
        tokens = int(usage.get("total_tokens") or 0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Unanswered(f"was answered with what is no chat completion: {_quoted(content, options)}") from None
    if not isinstance(text, str):
        raise Unanswered("was answered without a text")
    return Reply(text, tokens)


def _retry_after(header: str | None) -> float | None:
    """Return the seconds that a server asks to wait, given as a number or as a date; None where it does not say."""
    if header is None:
        return None
    try:
        return max(float(header), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None


def _some(error: urllib.error.HTTPError) -> bytes:
    try:
        return error.read(MAX_REPLY_BYTES)
    except (OSError, http.client.HTTPException):
        return b""


def _quoted(said: bytes | str, options: JudgeOptions) -> str:
    """Return the beginning of what a server said, without the key that it may have repeated."""
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    if options.api_key_env and (key := os.environ.get(options.api_key_env, "").strip()):
        text = text.replace(key, "[key]")
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
