"""``python -m cql explore``: the explorable page, served on this machine or written to a file."""

import argparse
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cql.errors import RunError, reports_errors
from cql.explorable import explore


class Handler(BaseHTTPRequestHandler):
    """Answers / with the page and everything else with 404."""

    def __init__(self, contents: bytes, *arguments):
        self.contents = contents
        super().__init__(*arguments)

    def do_GET(self):
        if self.path.partition("?")[0] not in ("/", "/index.html"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(self.contents)))
        self.end_headers()
        self.wfile.write(self.contents)

    def log_message(self, *_):
        """Requests are not worth a line."""


@reports_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cql explore", description=(
        "A page on which the world, the data and alpha are changed and the exact solution follows."))
    parser.add_argument("run", metavar="RUN", nargs="?",
                        help="open the page with this run's map, first data set and trained Q")
    parser.add_argument("--port", type=int, default=8080, help="0: any that is free (default %(default)s)")
    parser.add_argument("--out", metavar="FILE", help="write the page to this file instead; it needs no network")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.port < 2**16:
        raise RunError(f"a port is a number from 0 to {2**16 - 1}, not {arguments.port}.")
    shown = explore(run=arguments.run)
    if arguments.out is not None:
        shown.save(arguments.out)
        print(f"page: {arguments.out}")
        return 0
    try:
        server = ThreadingHTTPServer(("127.0.0.1", arguments.port), partial(Handler, shown.html.encode()))
    except OSError as error:
        reason = error.strerror
        raise RunError(f"port {arguments.port} cannot be listened at ({reason}): give another --port.") from None
    with server:
        print(f"the page is at http://127.0.0.1:{server.server_port}/ until Ctrl-C", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0
