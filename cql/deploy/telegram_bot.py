"""A Telegram bot over the service: a position comes in; the action, its support, the explanation, the map go out.

    TELEGRAM_BOT_TOKEN=… python -m cql bot http://127.0.0.1:8000 --chats 12345

Needs the extra ``telegram``. A service that asks for a token gets what the environment variable GLASSBOX_TOKEN holds.
The bot knows nothing but what the service answers, and asks it anew for every message. The bot's token is part of every
address of the Bot API, so nothing that is logged holds it.
"""

import asyncio
import logging
import math
import os
import re
import textwrap
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from cql.analysis.figures.position import draw_position
from cql.analysis.figures.style import png
from cql.errors import RunError
from cql.world import GridMap

API = "https://api.telegram.org/bot"
PATIENCE = 10.0  # seconds for an answer of the service
CAPTION, MESSAGE = 1024, 4096  # UTF-16 units that Telegram takes
ARROWS = {(-1, 0): "↑ ", (1, 0): "↓ ", (0, -1): "← ", (0, 1): "→ "}
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?")
WHOLE = re.compile(r"[-+]?[0-9]+")
SEPARATORS = re.compile(r"[\s()\[\]{},;:\"“”]+")
FILLERS = {"row", "column", "col", "cell", "state"}
log = logging.getLogger(__name__)


class Unclear(ValueError):
    """A message that names no position or action of the model in service; the text is the answer, one sentence."""


class ServiceError(Exception):
    """The service has no answer; the text says why, one sentence."""


@dataclass(frozen=True)
class Field:
    """What may be asked about: the service's answer to ``GET /v1/map``.

    Attributes:
        model: ID of the entry. actions: their names. observations: what an observation is, as JSON schema.
        board: the environment as a grid, or None. cells: on a grid, the observation of every state, ``[S]``.
        greedy: ``[S]``, counts: ``[S, A]``, on a grid.
    """

    model: str
    actions: list[str]
    observations: dict
    board: GridMap | None = None
    cells: list | None = None
    greedy: np.ndarray | None = None
    counts: np.ndarray | None = None

    @classmethod
    def of(cls, answer: dict) -> "Field":
        board, common = answer["board"], (answer["model"], answer["actions"], answer["observations"])
        if board is None:
            return cls(*common)
        states = board["rows"] * board["columns"]
        masks = {name: np.isin(np.arange(states), board[name]) for name in ("hazard", "goal", "terminal", "start")}
        return cls(*common, GridMap((board["rows"], board["columns"]), **masks, moves=np.array(board["moves"])),
                   board["cells"], np.array(board["greedy"]), np.array(board["counts"]))

    @property
    def usage(self) -> str:
        """What to send, one sentence."""
        if self.board is not None:
            rows, columns = self.board.shape
            return (f"Send a cell as row and column, such as “{self._example}”: rows go from 0 to {rows - 1}, columns "
                    f"from 0 to {columns - 1}, counted from the top left.")
        if self.observations["type"] == "integer":
            return f"Send the number of a state, from 0 to {self.observations['maximum']}."
        return f"Send the {self.observations['minItems']} numbers of an observation, such as “{self._example}”."

    @property
    def help(self) -> str:
        return (f"{self.usage}\n\nYou get what to do there, whether the logged data support it, why, and the map if "
                f"there is one.\n\nAdd an action to ask about it instead, such as “{self._example} {self.actions[0]}”. "
                f"The actions: {self.listed}.")

    @property
    def listed(self) -> str:
        """The actions, if they are few."""
        return ", ".join(self.actions[:8]) + (", …" if len(self.actions) > 8 else "")

    @property
    def _example(self) -> str:
        if self.board is not None:
            return " ".join(str(size // 2) for size in self.board.shape)
        return "0" if self.observations["type"] == "integer" else " ".join(["0.5"] * self.observations["minItems"])


def understood(text: str, field: Field) -> tuple[int | list[float], int | None, int | None]:
    """What a message asks: ``7 3``, ``(7, 3)``, ``row 7, column 3``, ``31``, ``7 3 left``, each also after ``/cell``.

    A vector's numbers may be written as ``.5``, ``1e-3`` and ``−1.25``. What is neither a number, a name nor a
    separator is refused, not skipped: a part of a number could be lost with it.

    Returns:
        The observation, the state (on a grid, else None), the action that is asked about (None: what the policy does).

    Raises:
        Unclear: none of these, or nothing that this model knows.
    """
    plain = re.sub(r"^/[a-z_]+(@\w+)?(?![\w@])", "", text.casefold()).replace("−", "-").rstrip(" .!?")
    words = [word for word in SEPARATORS.split(plain) if word and word not in FILLERS]
    named = next((n for n, word in enumerate(words) if not NUMBER.fullmatch(word)), len(words))
    numbers = words[:named]
    if not numbers:
        raise Unclear(field.usage)
    action = _action(words[named:], field)
    if field.board is None and field.observations["type"] == "array":
        if len(numbers) != field.observations["minItems"]:
            raise Unclear(field.usage)
        vector = [float(number) for number in numbers]
        for x, word in zip(vector, numbers):
            if not math.isfinite(x):
                raise Unclear(f"The number {_short(word)} is too large.")
        return vector, None, action
    if not all(WHOLE.fullmatch(number) for number in numbers) or len(numbers) > (1 if field.board is None else 2):
        raise Unclear(field.usage)
    found = [int(number) for number in numbers]
    if field.board is None:
        if not 0 <= found[0] <= field.observations["maximum"]:
            raise Unclear(f"There is no state {_short(numbers[0])}: they go from 0 to {field.observations['maximum']}.")
        return found[0], None, action
    limits = field.board.shape if len(found) == 2 else (len(field.cells),)
    for what, index, limit in zip(("row", "column") if len(found) == 2 else ("state",), found, limits):
        if not 0 <= index < limit:
            raise Unclear(f"There is no {what} {_short(str(index))}: they go from 0 to {limit - 1}.")
    state = int(np.ravel_multi_index(found, limits))
    return field.cells[state], state, action


def _action(words: list[str], field: Field) -> int | None:
    if not words:
        return None
    name, names = " ".join(words), [" ".join(SEPARATORS.split(action.casefold())) for action in field.actions]
    if name in names:
        return names.index(name)
    if not all(word[0].isalpha() or NUMBER.fullmatch(word) for word in words):  # a number that is none, not a name
        raise Unclear(field.usage)
    raise Unclear(f"There is no action “{_short(name)}”: they are {field.listed}.")


def _short(text: str) -> str:
    return text if len(text) <= 20 else text[:19] + "…"


@dataclass(frozen=True)
class Answer:
    """What goes back: the action with its support, why, and a picture (None without a grid)."""

    headline: str
    text: str
    picture: bytes | None


class Service:
    """The service, asked over HTTP.

    Args:
        client: an ``httpx.AsyncClient`` whose base is the service's address.
    """

    def __init__(self, client):
        self.client = client

    async def field(self) -> Field:
        """Raises ServiceError."""
        return _read(Field.of, await self._asked("GET", "/v1/map"))

    async def answer(self, field: Field, observation, state: int | None, action: int | None) -> Answer:
        """Raises ServiceError."""
        about = {"observation": observation}
        acted, explained = await asyncio.gather(
            self._asked("POST", "/v1/act", about),
            self._asked("POST", "/v1/explain", about if action is None else about | {"action": action}))
        return _read(_answer, field, state, action, acted, explained)

    async def _asked(self, method: str, path: str, body: dict | None = None) -> dict:
        import httpx

        try:
            response = await self.client.request(method, path, json=body)
            answer = response.json() if response.content else {}
        except (httpx.HTTPError, ValueError) as error:
            log.warning("%s %s: %s", method, path, error or type(error).__name__)
            raise ServiceError("The service cannot be reached: try again later.") from None
        if response.status_code != 200:
            log.warning("%s %s: status %d", method, path, response.status_code)
            reason = answer.get("detail") if isinstance(answer, dict) else None
            reason = reason if isinstance(reason, str) else f"status {response.status_code}."
            raise ServiceError(f"The service {'refuses' if response.status_code < 500 else 'cannot answer'}: {reason}")
        return answer


def _read(form, *answers):
    """What the service's answers say. Raises ServiceError if they have another form than ``form`` reads."""
    try:
        return form(*answers)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        log.warning("the service's answer has another form than the bot knows: %r", error)
        raise ServiceError("The service answers in a form that this bot does not know.") from None


def _answer(field: Field, state: int | None, action: int | None, acted: dict, explained: dict) -> Answer:
    if not acted["model"] == explained["model"] == field.model:
        raise ServiceError("Another model was put into service just now: ask again.")
    if state is None:
        return Answer(_headline(field, acted, explained), explained["text"], None)
    headline = "" if field.board.terminal[state] else _headline(field, acted, explained)
    return Answer(headline, explained["text"],
                  png(draw_position(field.board, field.actions, field.greedy, field.counts, state, action)))


def _headline(field: Field, acted: dict, explained: dict) -> str:
    """What the policy does and its support; below it the verdict on another action that was asked about."""
    decision, visits = acted["decisions"][0], explained["support"]["state_count"]
    data = ("the data were never here" if not visits else f"in the data, {decision['count']} of {visits} times here"
            if decision["supported"] else f"never in the data, which were here {visits} times")
    lines = [f"{_sign(field, decision['action'])}: {data}."]
    if explained["action"]["index"] != decision["action"]:
        lines.append(f"{_sign(field, explained['action']['index'])}: {explained['verdict']}.")
    return "\n".join(lines)


def _sign(field: Field, action: int) -> str:
    row, column = (0, 0) if field.board is None else field.board.moves[action]
    return f"{ARROWS.get((int(row), int(column)), '')}{field.actions[action].capitalize()}"


def parts(text: str, limit: int) -> list[str]:
    """The text in pieces that Telegram takes: one if it fits, else cut between words."""
    if len(text.encode("utf-16-le")) <= 2 * limit:
        return [text]
    return textwrap.wrap(text, limit // 2, replace_whitespace=False)  # a character is at most two units


def application(token: str, service: Service, chats: list[int], api: str = API):
    """The bot as a ``telegram.ext.Application``.

    Args:
        chats: whom it answers; empty: everyone. api: where the Bot API is.
    """
    from telegram import Update
    from telegram.error import TelegramError
    from telegram.ext import Application, CommandHandler, MessageHandler, filters

    async def help(update: Update, _) -> None:
        try:
            text = (await service.field()).help
        except ServiceError as error:
            text = str(error)
        await update.message.reply_text(text)

    async def answer(update: Update, _) -> None:
        message = update.message
        try:
            field = await service.field()
            asked = understood(message.text or "", field)
            answer = await service.answer(field, *asked)
        except (Unclear, ServiceError) as error:
            await message.reply_text(str(error))
            return
        log.info("chat %d: model %s, observation %s, action %s: %s", message.chat_id, field.model, asked[0], asked[2],
                 answer.headline.replace("\n", " "))
        whole = f"{answer.headline}\n\n{answer.text}".strip()
        if answer.picture is not None:
            fits = len(parts(whole, CAPTION)) == 1
            await message.reply_photo(answer.picture, caption=whole if fits else answer.headline)
            whole = "" if fits else answer.text
        for part in parts(whole, MESSAGE) if whole else []:
            await message.reply_text(part)

    async def refuse(update: Update, _) -> None:
        log.warning("chat %d is not among those that are answered", update.message.chat_id)
        await update.message.reply_text(f"This bot does not answer in this chat, whose ID is {update.message.chat_id}.")

    async def failed(update: Update | None, context) -> None:
        log.error("a message was not answered", exc_info=context.error)
        if update is not None:  # None: it failed while it asked for messages
            with suppress(TelegramError):  # it may be the Bot API that failed
                await update.message.reply_text("Something went wrong here: ask again later.")

    async def ready(made: Application) -> None:
        print(f"answering as @{made.bot.username}{'' if chats else ', in every chat'}", flush=True)

    async def closed(_) -> None:
        await service.client.aclose()

    made = Application.builder().token(token).base_url(api).post_init(ready).post_shutdown(closed).build()
    sent = ~filters.StatusUpdate.ALL  # all but notes that someone joined, and the like
    if chats:
        made.add_handler(MessageHandler(sent & ~filters.Chat(chats), refuse))
    made.add_handler(CommandHandler(["start", "help"], help))
    made.add_handler(MessageHandler(sent, answer))
    made.add_error_handler(failed)
    return made


class Discreet(logging.Formatter):
    """Writes records without these words, and of an error of the Bot API or the way to it no traceback."""

    def __init__(self, secrets: list[str]):
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")
        self.secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        return hide(super().format(record), self.secrets)

    def formatException(self, raised) -> str:
        from telegram.error import TelegramError

        kind, error, _ = raised
        return f"{kind.__name__}: {error}" if isinstance(error, TelegramError) else super().formatException(raised)


def hide(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "<token>")
    return text


def run(service: str, chats: list[int], api_base: str = API) -> None:
    """Runs the bot until it is stopped. Raises RunError for a token or an address that cannot be used."""
    try:
        import httpx
        from telegram.error import TelegramError
    except ModuleNotFoundError as error:
        raise RunError(f"the bot needs the extra telegram: pip install 'glassbox-cql[telegram]' ({error}).") from None
    token, service_token = os.environ.get("TELEGRAM_BOT_TOKEN", ""), os.environ.get("GLASSBOX_TOKEN", "")
    if not re.fullmatch(r"\d+:[\w-]+", token, re.ASCII):
        raise RunError("the environment variable TELEGRAM_BOT_TOKEN must hold the bot's token, as 123456:ABC….")
    if not (service_token.isascii() and service_token.isprintable()):
        raise RunError("the environment variable GLASSBOX_TOKEN must hold ASCII characters only.")
    for url in (service, api_base):
        if not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", url):
            raise RunError(f"{url} is no address: give one that begins with http:// or https://.")
    secrets = [word for word in (token, service_token) if word]
    handler = logging.StreamHandler()
    handler.setFormatter(Discreet(secrets))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it writes every address
    client = httpx.AsyncClient(base_url=service, timeout=PATIENCE,
                               headers={"Authorization": f"Bearer {service_token}"} if service_token else {})
    try:
        application(token, Service(client), chats, api_base).run_polling(allowed_updates=["message"])
    except TelegramError as error:
        raise RunError(f"the Bot API cannot be used ({hide(str(error), secrets)}).") from None
