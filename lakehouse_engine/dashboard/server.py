"""Runs the application until it is interrupted."""

from __future__ import annotations

import errno
import socket
import threading
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from lakehouse_engine.errors import UsageError
from lakehouse_engine.spec.environment import Environment

PORT = 8090


def serve(
    paths: Sequence[Path],
    environment: Callable[[], Environment],
    root: Path,
    host: str,
    port: int,
    token_file: Path | None,
    show: bool,
    report: Callable[[str], None],
) -> None:
    """Serves on ``host`` and ``port`` (0: any free one) until Ctrl-C. With ``show`` it opens the browser.

    Raises ``UsageError`` EXTRA_MISSING, PORT_IN_USE, BAD_HOST, TOKEN_FILE, and what loading and connecting raise.
    """
    try:
        import uvicorn

        from lakehouse_engine.dashboard.access import is_loopback, token_of
        from lakehouse_engine.dashboard.app import create_app
    except ImportError as error:
        raise UsageError("EXTRA_MISSING", f"{error.name} is missing; install with: pip install"
                         " 'lakehouse-yaml[dashboard]'") from None  # fmt: skip
    from lakehouse_engine.dashboard.project import Project

    project = Project(paths, environment)
    project.database.ask("select 1")
    token = None
    if token_file is not None or not is_loopback(host):
        own = token_file is None
        token_file = token_file or root / ".lakehouse" / "dashboard.token"
        token = token_of(token_file, make=own)
    listening = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listening.getsockname()[1]}"
    report(f"dashboard on {url}; Ctrl-C ends it")
    if token is not None:
        report(f"the token that it asks for is in {token_file}; put TLS in front of it where the network is not yours")
    config = uvicorn.Config(create_app(project, token), log_level="warning", access_log=False, server_header=False,
                            proxy_headers=False, timeout_graceful_shutdown=2)  # fmt: skip
    if show:
        opening = threading.Timer(0.5, webbrowser.open, [url])
        opening.daemon = True
        opening.start()
    try:
        with suppress(KeyboardInterrupt):  # uvicorn ends what is under way, and raises it again
            uvicorn.Server(config).run(sockets=[listening])
    finally:
        listening.close()
        project.database.close()
    report("stopped")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ``UsageError`` PORT_IN_USE, BAD_HOST."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                                flags=socket.AI_PASSIVE)[0]  # fmt: skip
        made = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise UsageError("BAD_HOST", f"cannot listen on {host}: {error}") from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError("PORT_IN_USE", f"port {port} is taken; choose another with --port, or 0 for any") from None
        raise UsageError("BAD_HOST", f"cannot listen on {host}:{port}: {error.strerror}") from None
    return made
