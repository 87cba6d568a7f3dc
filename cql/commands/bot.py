"""``python -m cql bot URL``: a Telegram bot over the service."""

import argparse

from cql.deploy.telegram_bot import API, run
from cql.errors import reports_errors


@reports_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cql bot", description=(
        "A Telegram bot over the service: a position comes in, the action goes out. TELEGRAM_BOT_TOKEN holds the bot's "
        "token."))
    parser.add_argument("service", metavar="URL", help="of the service, as http://127.0.0.1:8000")
    parser.add_argument("--chats", type=int, nargs="+", default=[], metavar="ID",
                        help="answer in these chats only (default: in all)")
    parser.add_argument("--api-base", default=API, metavar="URL",
                        help="of the Bot API, up to the token (default %(default)s)")
    arguments = parser.parse_args(argv)
    run(arguments.service, arguments.chats, arguments.api_base)
    return 0
