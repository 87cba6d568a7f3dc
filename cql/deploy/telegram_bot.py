"""A Telegram bot over the service: a position comes in; the action, its support, the explanation and the map go out.

The bot knows only what the service answers, and asks it again for every message. The bot's token is part of every
address of the Bot API, so it is removed from everything that is logged.
"""

import asyncio
import logging
import math
import os
import re
import textwrap
from contextlib import suppress

from cql.errors import RunError

API = "https://api.telegram.org/bot"
PATIENCE = 30.0  # seconds for an answer of the service
CAPTION, MESSAGE = 1024, 4096  # characters that Telegram takes
ARROWS = {"up": "↑ ", "down": "↓ ", "left": "← ", "right": "→ "}
NUMBER = r"[-+]?(?>[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[-+]?[0-9]+)?(?![\w.])"
BETWEEN = r"(?:[\s,;:()\[\]“”]|row|column|cell|state)"
# "7 3", "(7,3) left", "/cell 7 3", "row 7, column 3", "31", "0.5 -1.25 action 1": numbers, then the words of an action
QUESTION = re.compile(rf"(?:/[a-z]+(?:@\w+)?(?!\w))?{BETWEEN}*({NUMBER}(?:{BETWEEN}+{NUMBER})*){BETWEEN}*(.*)")
log = logging.getLogger(__name__)


class NoAnswer(Exception):
    """A message is unclear, or the service cannot answer it; the text says why and is sent back."""


class Field:
    """What may be asked about, from the service's answer to ``GET /v1/map``.

    Attributes:
        model: ID of the entry. actions: their names.
        sizes: rows and columns of the map, or the number of states; of vectors, None. vector: how many numbers one has.
        cells: on a map, the observation of every cell; else None. example, usage: what to send.
    """

    def __init__(self, answer: dict):
        self.model, self.actions = answer["model"], answer["actions"]
        board, schema = answer["board"], answer["observations"]
        self.cells, self.sizes, self.vector = board and board["cells"], None, None
        if board is not None:
            self.sizes = rows, columns = board["rows"], board["columns"]
            self.example = f"{rows // 2} {columns // 2}"
            self.usage = (f"Send a cell as row and column, such as “{self.example}”: rows go from 0 to {rows - 1}, "
                          f"columns from 0 to {columns - 1}, counted from the top left.")
        elif schema["type"] == "integer":
            self.sizes, self.example = (schema["maximum"] + 1,), "0"
            self.usage = f"Send the number of a state, from 0 to {schema['maximum']}."
        else:
            self.vector = schema["minItems"]
            self.example = " ".join(["0.5"] * self.vector)
            self.usage = f"Send the {self.vector} numbers of an observation, such as “{self.example}”."
        self.listed = ", ".join(self.actions[:8]) + (", …" if len(self.actions) > 8 else "")
        self.help = (f"{self.usage}\n\nYou get what to do there, whether the logged data support it, why, and the map "
                     f"if there is one.\n\nAdd an action to ask about it instead, such as "
                     f"“{self.example} {self.actions[0]}”. The actions: {self.listed}.")


def understood(text: str, field: Field) -> dict:
    """What a message asks, as the service reads it: the observation and, if the message names one, the action.

    Raises:
        NoAnswer: the message is not of the form of ``QUESTION``, or names what this model does not have.
    """
    match = QUESTION.fullmatch(text.casefold().replace("−", "-").rstrip("\n .!?”"))
    if not match:
        raise NoAnswer(field.help if text.startswith("/") else field.usage)
    try:
        numbers = [float(word) if field.vector else int(word) for word in re.findall(NUMBER, match[1])]
    except ValueError:
        raise NoAnswer(field.usage) from None
    sizes = field.sizes if field.vector or len(numbers) > 1 else (math.prod(field.sizes),)
    if len(numbers) != (field.vector or len(sizes)) or math.inf in map(abs, numbers):
        raise NoAnswer(field.usage)
    names = [name.casefold() for name in field.actions]
    if match[2] and match[2] not in names:
        raise NoAnswer(f"There is no action “{match[2]:.20}”: they are {field.listed}.")
    action = {"action": names.index(match[2])} if match[2] else {}
    if field.vector:
        return {"observation": numbers, **action}
    state = 0
    for what, number, size in zip(("row", "column") if len(sizes) == 2 else ("state",), numbers, sizes):
        if not 0 <= number < size:
            raise NoAnswer(f"There is no {what} {str(number):.20}: they go from 0 to {size - 1}.")
        state = state * size + number
    return {"observation": field.cells[state] if field.cells else state, **action}


class Service:
    """The service, asked over HTTP by an ``httpx.AsyncClient`` whose base is its address. Raises NoAnswer."""

    def __init__(self, client):
        self.client = client

    async def field(self) -> Field:
        return _read(lambda response: Field(response.json()), await self._asked("GET", "/v1/map"))

    async def answer(self, field: Field, question: dict) -> tuple[str, str, bytes | None]:
        """The action with its support, the explanation, and the picture of the map where there is one.

        The action is that of ``POST /v1/act``, so that the service's decision log has it.
        """
        position = {"observation": question["observation"]}
        asked = [self._asked("POST", "/v1/act", json=position), self._asked("POST", "/v1/explain", json=question)]
        if field.cells:
            asked.append(self._asked("GET", "/v1/map.png", params=question))
        return _read(lambda *answers: _answer(field, *answers), *await asyncio.gather(*asked))

    async def _asked(self, method: str, path: str, **contents):
        import httpx

        try:
            response = await self.client.request(method, path, **contents)
        except httpx.HTTPError as error:
            log.warning("%s %s: %s", method, path, error or type(error).__name__)
            raise NoAnswer("The service cannot be reached: try again later.") from None
        if response.status_code != 200:
            log.warning("%s %s: status %d", method, path, response.status_code)
            try:
                reason = str(response.json()["detail"])
            except (ValueError, KeyError, TypeError):
                reason = f"status {response.status_code}."
            raise NoAnswer(f"The service {'refuses' if response.status_code < 500 else 'cannot answer'}: {reason}")
        return response


def _read(form, *answers):
    """``form`` of the service's answers. Raises NoAnswer if they do not have this form."""
    try:
        return form(*answers)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        log.warning("the service's answer has another form than the bot knows: %r", error)
        raise NoAnswer("The service answers in a form that this bot does not know.") from None


def _answer(field: Field, act, explain, *maps) -> tuple[str, str, bytes | None]:
    acted, explained = act.json(), explain.json()
    if {acted["model"], explained["model"], *(map.headers["X-Model"] for map in maps)} != {field.model}:
        raise NoAnswer("Another model was put into service just now: ask again.")
    decision, asked, visits = acted["decisions"][0], explained["action"], explained["support"]["state_count"]
    chosen, other = (f"{ARROWS.get(name, '')}{name.capitalize()}" for name in (decision["name"], asked["name"]))
    data = ("the data were never here" if not visits else f"in the data, {decision['count']} of {visits} times here"
            if decision["supported"] else f"never in the data, which were here {visits} times")
    headline = "" if explained["verdict"] == "terminal" else f"{chosen}: {data}."
    if asked["index"] != decision["action"] and headline:
        headline += f"\n{other}: {explained['verdict']}."
    return headline, explained["text"], maps[0].content if maps else None


def application(token: str, service: Service, chats: list[int], api: str = API):
    """The bot as a ``telegram.ext.Application``; without ``chats`` it answers everyone. ``api``: of the Bot API."""
    from telegram import Update
    from telegram.error import TelegramError
    from telegram.ext import Application, MessageHandler, filters

    async def answer(update: Update, _) -> None:
        message = update.message
        try:
            field = await service.field()
            question = understood(message.text or "", field)
            headline, text, picture = await service.answer(field, question)
        except NoAnswer as reason:
            await message.reply_text(str(reason))
            return
        log.info("chat %d: model %s, %s: %s", message.chat_id, field.model, question, headline.replace("\n", " "))
        whole = f"{headline}\n\n{text}".strip()
        if picture is not None:
            fits = len(whole) <= CAPTION
            await message.reply_photo(picture, caption=whole if fits else headline)
            whole = "" if fits else text
        for part in textwrap.wrap(whole, MESSAGE, replace_whitespace=False):
            await message.reply_text(part)

    async def refuse(update: Update, _) -> None:
        log.warning("chat %d is not among those that are answered", update.message.chat_id)
        await update.message.reply_text(f"This bot does not answer in this chat, whose ID is {update.message.chat_id}.")

    async def failed(update: Update | None, context) -> None:
        log.error("a message was not answered", exc_info=context.error)
        if update is not None:  # None: it failed while it asked for messages
            with suppress(TelegramError):
                await update.message.reply_text("Something went wrong here: ask again later.")

    async def ready(bot: Application) -> None:
        print(f"answering as @{bot.bot.username}{'' if chats else ', in every chat'}", flush=True)

    bot = Application.builder().token(token).base_url(api).post_init(ready).post_shutdown(
        lambda _: service.client.aclose()).build()
    sent = ~filters.StatusUpdate.ALL  # all but notes that someone joined, and the like
    if chats:
        bot.add_handler(MessageHandler(sent & ~filters.Chat(chats), refuse))
    bot.add_handler(MessageHandler(sent, answer))
    bot.add_error_handler(failed)
    return bot


class Discreet(logging.Formatter):
    """Writes records without these words, and no traceback of an error of the Bot API or the way to it."""

    def __init__(self, secrets: list[str]):
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")
        self.secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        return self.hidden(super().format(record))

    def formatException(self, raised) -> str:
        from telegram.error import TelegramError

        kind, error, _ = raised
        return f"{kind.__name__}: {error}" if isinstance(error, TelegramError) else super().formatException(raised)

    def hidden(self, text: str) -> str:
        for secret in filter(None, self.secrets):
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
    handler, discreet = logging.StreamHandler(), Discreet([token, service_token])
    handler.setFormatter(discreet)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it writes every address
    client = httpx.AsyncClient(base_url=service, timeout=PATIENCE,
                               headers={"Authorization": f"Bearer {service_token}"} if service_token else {})
    try:
        application(token, Service(client), chats, api_base).run_polling(allowed_updates=["message"])
    except TelegramError as error:
        raise RunError(f"the Bot API cannot be used ({discreet.hidden(str(error))}).") from None
