"""An explanation handed to a language model at an OpenAI-compatible endpoint. Nothing calls it unless asked to."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

KEY = "GLASSBOX_API_KEY"  # environment variable
MAX_REPLY = 2**20  # bytes
TASK = ("You explain to a field operator why a decision model acts as it does. Use only the facts and numbers in the "
        "JSON that follows, in plain words and at most eight sentences. Null means not known: say so, do not guess.")


class AskError(RuntimeError):
    """The language model gave no usable answer; one sentence, which never holds the key."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes where the user sent it, nowhere else."""

    def redirect_request(self, *_):
        return None


def ask(url: str, name: str, explanation: dict, timeout: float = 30.0) -> str:
    """What the model ``name`` at ``url`` + "/chat/completions" says of an explanation, without unprintable characters.

    Args:
        url: base URL, http or https, as "http://127.0.0.1:8080/v1". The key in GLASSBOX_API_KEY, if set, is sent as
            a bearer token.
        timeout: seconds for the whole answer.

    Raises:
        AskError: a bad URL, no answer in time, an error status, a redirect, a reply too large or of another form.
    """
    deadline = time.monotonic() + timeout
    request = _request(url, name, explanation)
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout) as response:
            reply = _read(response, deadline, timeout)
    except urllib.error.HTTPError as error:
        raise AskError(f"the language model's server answered with status {error.code}.") from None
    except TimeoutError:
        raise AskError(_late(timeout)) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise AskError(_late(timeout)) from None
        raise AskError(f"the language model's server cannot be reached ({error.reason}).") from None
    except ValueError:  # says what was in the header: the key must not be shown
        raise AskError(f"the URL or the key in {KEY} cannot be sent in a request.") from None
    except (OSError, http.client.HTTPException) as error:
        raise AskError(f"the language model's server broke off ({type(error).__name__}).") from None
    return _answer(reply)


def _request(url: str, name: str, explanation: dict) -> urllib.request.Request:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
    except ValueError:
        valid = False
    if not valid:
        raise AskError("--ask takes a URL that begins with http:// or https://.")
    messages = [{"role": "system", "content": TASK},
                {"role": "user", "content": json.dumps(explanation, allow_nan=False)}]
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(KEY):
        headers["Authorization"] = f"Bearer {key}"
    return urllib.request.Request(url.rstrip("/") + "/chat/completions",
                                  json.dumps({"model": name, "messages": messages}).encode(), headers)


def _read(response, deadline: float, timeout: float) -> bytes:
    reply = b""
    while part := response.read1(2**16):
        reply += part
        if len(reply) > MAX_REPLY:
            raise AskError(f"the language model's reply is larger than {MAX_REPLY:,} bytes.")
        if time.monotonic() > deadline:  # each read has its own time limit: drop by drop would take for ever
            raise AskError(_late(timeout))
    return reply


def _late(timeout: float) -> str:
    return f"the language model did not answer within {timeout:g} seconds."


def _answer(reply: bytes) -> str:
    try:
        text = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str) or not text.strip():
        raise AskError("the language model's reply is not of the form of a chat completion.")
    return "".join(c for c in text.strip() if c.isprintable() or c in "\n\t")  # no control sequences to the terminal
