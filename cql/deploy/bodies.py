"""What a request's body may be: bounded, and JSON in the strict sense."""

import asyncio
import json
from collections.abc import Set

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

MAX_BODY = 2**18  # bytes
MAX_BATCH = 1024  # observations
PATIENCE = 10.0  # seconds until a body must be there


async def read_object(request: Request) -> dict:
    """The JSON object in the body.

    Raises:
        HTTPException: 400 no JSON (nor are NaN and names given twice), 408 too slow, 413 too long, 415 of another type,
            422 no object.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "the body must be of the type application/json.")
    try:
        async with asyncio.timeout(PATIENCE):
            text = await _bounded(request)
    except TimeoutError:
        reason = f"the body was not there within {PATIENCE:g} seconds."
        raise HTTPException(408, reason, {"Connection": "close"}) from None
    except ClientDisconnect:
        raise HTTPException(400, "the body was never finished.") from None
    try:
        value = _DECODER.decode(text.decode())
    except RecursionError:
        raise HTTPException(400, "the body is nested too deeply.") from None
    except ValueError as error:  # of the text's encoding, too
        reason = str(error) if isinstance(error, StrictError) else "the body is no JSON in UTF-8."
        raise HTTPException(400, reason) from None
    if type(value) is not dict:
        raise HTTPException(422, "the body must be a JSON object.")
    return value


def asked(body: dict, required: set[str], optional: Set[str] = frozenset()) -> dict:
    """The body, if it has these members and no others. Raises HTTPException 422."""
    if not required <= body.keys() <= required | optional:
        names = [f'"{name}"' for name in sorted(required)] + [f'"{name}" if wanted' for name in sorted(optional)]
        raise HTTPException(422, f"the body must hold {', '.join(names)} and nothing else.")
    return body


async def _bounded(request: Request) -> bytes:
    parts, length = [], 0
    async for part in request.stream():  # whatever Content-Length says
        length += len(part)
        if length > MAX_BODY:  # the server reads on: closing on a client that still sends would lose it the answer
            raise HTTPException(413, f"the body is longer than {MAX_BODY} bytes.")
        parts.append(part)
    return b"".join(parts)


class StrictError(ValueError):
    """JSON that Python would read and others would not."""


def _members(pairs: list[tuple]) -> dict:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise StrictError("the body gives a name twice.")
    return members


def _no_number(name: str):
    raise StrictError(f"{name} is no number in JSON.")


_DECODER = json.JSONDecoder(object_pairs_hook=_members, parse_constant=_no_number)
