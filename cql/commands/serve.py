"""The service over what a registry has promoted: python -m cql serve REGISTRY

Needs the extra ``serve``. One process answers all requests: a decision in a finite state space is a look-up, so that
HTTP itself costs the most. It is plain HTTP: where a token crosses a network, put a proxy with TLS before it.
"""

import argparse
import gc
import ipaddress
import logging
import os
import signal
import socket
import sys

from cql.deploy.store import Registry
from cql.errors import RunError, reports_errors

SHORTEST = 16  # characters of a token
CONNECTIONS = 500  # beyond that: 503


@reports_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cql serve", description=__doc__.splitlines()[0])
    parser.add_argument("registry", metavar="REGISTRY")
    parser.add_argument("--host", default="127.0.0.1",
                        help="one that other machines reach needs a token (default %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default %(default)s)")
    parser.add_argument("--token-env", metavar="NAME",
                        help="environment variable that holds the token which requests must carry")
    parser.add_argument("--decisions", metavar="FOLDER",
                        help="where every decision is recorded (default: REGISTRY-decisions)")
    parser.add_argument("--keep", type=int, metavar="N",
                        help="delete all but the newest N full files of 64 MiB there (default: delete none)")
    arguments = parser.parse_args(argv)
    try:
        return _serve(arguments)
    except KeyboardInterrupt:  # the server, once it has stopped, raises it again
        return 0


def _serve(arguments: argparse.Namespace) -> int:
    try:
        import uvicorn

        from cql.deploy.app import create_app
        from cql.deploy.decision_log import DecisionLog
    except ModuleNotFoundError as error:
        raise RunError(f"the service needs the extra serve: pip install 'glassbox-cql[serve]' ({error}).") from None
    import torch

    registry = Registry(arguments.registry)
    registry.entries()  # a folder that is no registry is refused here
    token = None if arguments.token_env is None else _token(arguments.token_env)
    if arguments.keep is not None and arguments.keep < 1:
        raise RunError("--keep must be at least 1.")
    listener = _listener(arguments.host, arguments.port, token)
    folder = arguments.decisions or str(registry.path.absolute()) + "-decisions"
    log = DecisionLog(folder, keep=arguments.keep)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    torch.set_num_threads(1)  # an explanation leaves the other cores to the answers
    host, port = listener.getsockname()[:2]
    print(f"serving {arguments.registry} at http://{f'[{host}]' if ':' in host else host}:{port}, "
          f"decisions recorded in {folder}", flush=True)
    app = create_app(registry, token, log, ["*"] if token else _hosts(arguments.host))
    # a log_config would close all handlers, ``log`` among them
    server = uvicorn.Server(uvicorn.Config(
        app, http="httptools", loop="asyncio", ws="none", access_log=False, log_config=None, log_level="warning",
        proxy_headers=False, server_header=False, limit_concurrency=CONNECTIONS, timeout_keep_alive=20,
        timeout_graceful_shutdown=10))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the server raises the signal again once it has stopped
    sys.setswitchinterval(5e-4)  # seconds after which a thread that loads a model lets the others go on
    gc.freeze()  # what is imported is never garbage: looking through all of it would hold an answer up for 0.1 s
    server.run(sockets=[listener])
    return 0


def _token(name: str) -> str:
    token = os.environ.get(name, "")
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise RunError(f"the environment variable {name} must hold a token: "
                       f"at least {SHORTEST} ASCII characters without spaces.")
    return token


def _hosts(host: str) -> list[str]:
    """The names of this machine in a request to it."""
    return ["127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host]


def _listener(host: str, port: int, token: str | None) -> socket.socket:
    """An open socket. Raises RunError if it cannot be had, or if other machines could reach it without a token."""
    if not 0 <= port < 2**16:
        raise RunError(f"a port is a number from 0 to {2**16 - 1}, not {port}.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        if token is None and not ipaddress.ip_address(address[0]).is_loopback:
            raise RunError(f"other machines may reach {host}: give a token (--token-env NAME).")
        listener = socket.create_server(address[:2], family=family, backlog=CONNECTIONS)
        # accepted ones inherit it: asyncio sets it for others only
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise RunError(f"{host}:{port} cannot be listened at ({error}).") from None
