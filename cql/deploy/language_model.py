"""An explanation in the words of a language model behind an OpenAI-compatible endpoint; only on demand."""

import asyncio
import json
import os

KEY = "GLASSBOX_API_KEY"  # environment variable
TASK = ("You explain to a field operator why a decision model acts as it does. Use only the facts and numbers in the "
        "JSON that follows, in plain words and at most eight sentences. Null means not known: say so, do not guess.")


class AskError(RuntimeError):
    """The language model gave no usable answer; the message is one sentence and never holds the key."""


def ask(url: str, name: str, explanation: dict, timeout: float = 30.0) -> str:
    """What the language model ``name`` at a base URL says about an explanation, without unprintable characters.

    The key in GLASSBOX_API_KEY, if set, goes to this URL only: no redirect is followed. ``timeout``, in seconds, is for
    the whole answer (the client library's own is for single reads). Raises AskError.
    """
    async def answer() -> str:
        http = openai.DefaultAsyncHttpxClient(follow_redirects=False)
        async with openai.AsyncOpenAI(base_url=url, api_key=key or "none", max_retries=0, timeout=None,
                                      http_client=http) as api:
            messages: list = [{"role": "system", "content": TASK}, {"role": "user", "content": json.dumps(explanation)}]
            reply = await api.chat.completions.create(
                model=name, messages=messages, extra_headers={} if key else {"Authorization": openai.omit})
        text = reply.choices[0].message.content.strip()
        return "".join(c for c in text if c.isprintable() or c in "\n\t")

    key = os.environ.get(KEY, "")
    if not (key.isascii() and key.isprintable()):
        raise AskError(f"the environment variable {KEY} must hold printable ASCII characters only.")
    try:
        import openai
        if text := asyncio.run(asyncio.wait_for(answer(), timeout)):
            return text
        reason = "the language model's answer is empty."
    except ModuleNotFoundError as error:
        reason = f"--ask needs the extra llm: pip install 'glassbox-cql[llm]' ({error})."
    except TimeoutError:
        reason = f"the language model did not answer within {timeout:g} seconds."
    except Exception as error:  # its message may quote the request, and so the key
        kind = getattr(error, "status_code", None) or type(error.__cause__ or error).__name__
        reason = f"the language model gave no chat completion ({kind})."
    raise AskError(reason)
